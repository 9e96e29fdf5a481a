//! Why a call failed, and which status that is. One place, every variant named.
//!
//! What callers do with the codes decides the choice: a sidecar takes `Aborted`, `Unavailable`, `DeadlineExceeded` and
//! `ResourceExhausted` for "may still be under way, repeat", anything else for "over".

use cleat_core::{MinFence, RdsFailure, Refusal, Tried, VolumeId};
use cleat_rds::RdsError;
use tonic::{Code, Status};

use super::MIN_FENCE;
use crate::engine::{Ended, Failed, rds_failure};
use crate::explain;

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

/// Why a call failed.
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
    Engine(#[from] Failed),
    /// The RDS, asked by this edge.
    #[error("volume {volume}: {}", cleat_runtime::exit::Causes(source))]
    Rds { volume: VolumeId, source: RdsError },
    /// The RDS has said that there is no such volume.
    #[error("volume {0} does not exist on the RDS")]
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
    /// The operation's task panicked.
    #[error("the operation ended without an answer: {0}")]
    Panicked(#[source] tokio::task::JoinError),
}

impl From<tokio::task::JoinError> for CallError {
    /// Only the end of the process cancels an operation.
    fn from(ended: tokio::task::JoinError) -> Self {
        if ended.is_cancelled() { Ended.into() } else { Self::Panicked(ended) }
    }
}

impl From<Ended> for CallError {
    fn from(ended: Ended) -> Self {
        Self::Engine(Failed::Ended(ended))
    }
}

impl CallError {
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::OutOfRange(_) => Code::OutOfRange,
            Self::Engine(Failed::Refused(refusal)) => refusal_code(refusal),
            // The controller is stopping; its successor joins what was begun.
            Self::Engine(Failed::Ended(_)) => Code::Unavailable,
            // Repeated, until there is room again.
            Self::Engine(Failed::Stalled { .. }) => Code::Unavailable,
            Self::Engine(Failed::SetAside { .. }) => Code::Internal,
            Self::Rds { source, .. } => rds_code(source),
            Self::NoSuchVolume(_) => Code::NotFound,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::Unusable { .. } | Self::NoSuchFence { .. } => Code::FailedPrecondition,
            Self::InProgress { .. } => Code::Aborted,
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

/// The status of a refusal of the core.
#[must_use]
pub fn refusal_code(refusal: &Refusal) -> Code {
    match refusal {
        // What stands in the way has to be changed by somebody: repeating alone does not help.
        Refusal::AttachedElsewhere { .. }
        | Refusal::MigrationLimit { .. }
        | Refusal::InUse { .. }
        | Refusal::StillAttached { .. }
        | Refusal::NotAttached { .. }
        | Refusal::NotGone { .. }
        | Refusal::ExportOff { .. }
        | Refusal::Quarantined { .. } => Code::FailedPrecondition,
        // CSI's code for a node that does not exist: for whoever asks, another node may do.
        Refusal::UnknownNode { .. } => Code::NotFound,
        Refusal::Incompatible { .. } => Code::AlreadyExists,
        // The agent may come back by itself.
        Refusal::Silent { .. } => Code::Unavailable,
        // It is tried again, and the node may come back.
        Refusal::CannotFence { .. } => Code::Unavailable,
        Refusal::NotReady { unready, .. } => clause_code(unready.clause()),
        Refusal::Rds { error, .. } => core_rds_code(error),
        // CSI's own code for "an operation is pending for this volume". The caller's deadline is not over, so it is
        // not DeadlineExceeded; and something is reachable and at work, so it is not Unavailable.
        Refusal::StillWaiting { .. } | Refusal::Deleting { .. } => Code::Aborted,
        // A later request for the opposite won.
        Refusal::Overtaken { .. } => Code::Aborted,
    }
}

/// The status of a clause that failed. What a network or a slow kernel can be the reason of may be different at the
/// next try, on the same node; a contradiction may not.
fn clause_code(clause: &str) -> Code {
    match clause {
        "subsystem" | "live-paths" | "single-device" | "device-node" | "direct-read" | "connect" | "look"
        | "delete" | "lost" | "epoch" => Code::Unavailable,
        // Another directive took its place.
        "superseded" => Code::Aborted,
        // The two sides do not understand each other.
        "internal" | "request" => Code::Internal,
        // namespace-identity, identity, size, read-only, host-nqn, portal, holders, grant, ledger, secret; and what a newer
        // agent may name.
        _ => Code::FailedPrecondition,
    }
}

fn core_rds_code(error: &RdsFailure) -> Code {
    match error {
        RdsFailure::NotFound(_) => Code::NotFound,
        RdsFailure::Full(_) => Code::ResourceExhausted,
        RdsFailure::Unreachable(_) => Code::Unavailable,
        // Unauthorised is our own password at the RDS, and says nothing of the caller: never Unauthenticated.
        RdsFailure::Refused(_) | RdsFailure::Unauthorised(_) => Code::FailedPrecondition,
    }
}

fn rds_code(error: &RdsError) -> Code {
    match error {
        // For the caller a name that is taken is the same as a volume with other properties.
        RdsError::Conflict { .. } => Code::FailedPrecondition,
        other => core_rds_code(&rds_failure(other)),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
