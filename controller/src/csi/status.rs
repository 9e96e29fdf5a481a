//! Why a CSI call failed, and which status that is. What the engine refuses has its status in [`crate::rpc_status`].

use cleat_core::{MinFence, Tried, VolumeId};
use cleat_rds::RdsError;
use tonic::{Code, Status};

use super::MIN_FENCE;
use crate::cluster::NotAsClustered;
use crate::engine::{EngineEnded, RequestError, rds_failure};
use crate::{explain, rpc_status};

/// A field of a request that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub(super) struct Invalid {
    pub(super) field: String,
    pub(super) problem: String,
}

impl Invalid {
    pub(super) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// Why a CSI call failed: the last stop of every error on its way to a caller, made into a `Status` here alone.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The capacity range cannot be met.
    #[error("capacity_range: {0}")]
    OutOfRange(String),
    /// A volume asks for a fence that this target is not known to do.
    #[error(
        "parameters[{MIN_FENCE:?}]: this RDS is not known to support {} or stronger: {}. Ask for less, or find out what it \
         does (cleatctl rds probe) and give the controller the result (--rds-abilities)",
        min_fence.name(), explain::rungs(lacking)
    )]
    NoSuchFence { min_fence: MinFence, lacking: Vec<Tried> },
    /// The engine refused, or has ended.
    #[error(transparent)]
    Engine(#[from] RequestError),
    /// By what the cluster says now the call is not to be begun.
    #[error(transparent)]
    Cluster(#[from] NotAsClustered),
    /// The RDS, asked by this edge.
    #[error("volume {volume}: {}", cleat_runtime::exit::Causes(source))]
    Rds { volume: VolumeId, source: RdsError },
    /// The RDS gave no list of its volumes.
    #[error("cannot list the volumes of the RDS: {}", cleat_runtime::exit::Causes(.0))]
    NoList(RdsError),
    /// The RDS has said that there is no such volume.
    #[error("cannot find volume {0}: the RDS has none of that name; check the id")]
    NoSuchVolume(VolumeId),
    /// The volume exists, and is not what was asked for.
    #[error("volume {volume}: {difference}")]
    Exists { volume: VolumeId, difference: String },
    /// What the RDS has under this name cannot be used as it is.
    #[error("volume {volume}: {problem}")]
    Unusable { volume: VolumeId, problem: String },
    /// Another call works on the volume.
    #[error("volume {volume}: {operation} is under way since {since}; repeat when it is over")]
    InProgress { volume: VolumeId, operation: &'static str, since: String },
    /// The token of a page was not given by this driver.
    #[error("starting_token: {token:?} is none that this driver gave: begin again without one")]
    UnknownToken { token: String },
    /// The RDS has not listed its volumes since this controller began.
    #[error(
        "what the RDS has is not known yet: it has not listed its volumes since this controller began; repeat the call"
    )]
    NotListedYet,
    /// The operation's task panicked.
    #[error("the operation ended without an answer: {0}; repeat the call")]
    Panicked(#[source] tokio::task::JoinError),
}

impl From<tokio::task::JoinError> for CallError {
    /// Only the end of the process cancels an operation.
    fn from(ended: tokio::task::JoinError) -> Self {
        if ended.is_cancelled() { EngineEnded.into() } else { Self::Panicked(ended) }
    }
}

impl From<EngineEnded> for CallError {
    fn from(ended: EngineEnded) -> Self {
        Self::Engine(RequestError::Ended(ended))
    }
}

impl CallError {
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::OutOfRange(_) => Code::OutOfRange,
            Self::Engine(error) => rpc_status::request_code(error),
            Self::Cluster(
                NotAsClustered::NotAnswered { .. } | NotAsClustered::MigrationNotAnswered { .. },
            ) => Code::Unavailable,
            Self::Cluster(_) => Code::FailedPrecondition,
            Self::Rds { source, .. } | Self::NoList(source) => rds_code(source),
            Self::NoSuchVolume(_) => Code::NotFound,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::Unusable { .. } | Self::NoSuchFence { .. } => Code::FailedPrecondition,
            Self::InProgress { .. } | Self::UnknownToken { .. } => Code::Aborted,
            Self::NotListedYet => Code::Unavailable,
            // What it did is not known.
            Self::Panicked(_) => Code::Internal,
        }
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

fn rds_code(error: &RdsError) -> Code {
    match error {
        // For the caller a name that is taken is the same as a volume with other properties.
        RdsError::Conflict { .. } => Code::FailedPrecondition,
        other => rpc_status::rds_failure_code(&rds_failure(other)),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
