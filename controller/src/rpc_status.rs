//! The gRPC status of what the engine did not grant: one place for the CSI and the operators' service, every variant named.
//!
//! What callers do with the codes decides the choice: a sidecar takes `Aborted`, `Unavailable`, `DeadlineExceeded` and
//! `ResourceExhausted` for "may still be under way, repeat", anything else for "over".

use cleat_core::{RdsFailure, Refusal};
use tonic::{Code, Status};

use crate::engine::{EngineEnded, RequestError};

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        Self::new(request_code(&error), error.to_string())
    }
}

impl From<EngineEnded> for Status {
    fn from(ended: EngineEnded) -> Self {
        RequestError::Ended(ended).into()
    }
}

/// The status of a request that was not granted.
pub(crate) fn request_code(error: &RequestError) -> Code {
    match error {
        RequestError::Refused(refusal) => refusal_code(refusal),
        // The controller is stopping; its successor joins what was begun.
        RequestError::Ended(_) => Code::Unavailable,
        // Repeated, until there is room again.
        RequestError::Stalled { .. } => Code::Unavailable,
        RequestError::SetAside { .. } | RequestError::NodeSetAside { .. } => Code::Internal,
    }
}

/// The status of a refusal of the core.
fn refusal_code(refusal: &Refusal) -> Code {
    match refusal {
        // What stands in the way has to be changed by somebody: repeating alone does not help.
        Refusal::AttachedElsewhere { .. }
        | Refusal::MigrationLimit { .. }
        | Refusal::MigrationOverdue { .. }
        | Refusal::InUse { .. }
        | Refusal::StillAttached { .. }
        | Refusal::NotAttached { .. }
        | Refusal::NotGone { .. }
        | Refusal::ExportOff { .. }
        | Refusal::RecordDeleted { .. }
        | Refusal::Quarantined { .. } => Code::FailedPrecondition,
        // By this code the kubelet learns that the scheduler counted wrongly, and the pod goes to another node.
        Refusal::NodeFull { .. } => Code::ResourceExhausted,
        // CSI's code for a node that does not exist: for whoever asks, another node may do.
        Refusal::UnknownNode { .. } => Code::NotFound,
        Refusal::Incompatible { .. } => Code::AlreadyExists,
        // The agent may come back by itself.
        Refusal::Silent { .. } => Code::Unavailable,
        // It is tried again, and the node may come back.
        Refusal::CannotFence { .. } => Code::Unavailable,
        Refusal::NotReady { unready, .. } => clause_code(unready.clause()),
        Refusal::Rds { error, .. } => rds_failure_code(error),
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
        | "delete" | "lost" | "epoch" | "store" => Code::Unavailable,
        // Another directive took its place.
        "superseded" => Code::Aborted,
        // The two sides do not understand each other.
        "internal" | "request" => Code::Internal,
        // namespace-identity, identity, size, block-size, read-only, host-nqn, portal, holders, grant, ledger, secret; and what
        // a newer agent may name.
        _ => Code::FailedPrecondition,
    }
}

/// The status of what went wrong with the RDS.
pub(crate) fn rds_failure_code(error: &RdsFailure) -> Code {
    match error {
        RdsFailure::NotFound(_) => Code::NotFound,
        RdsFailure::Full(_) => Code::ResourceExhausted,
        RdsFailure::Unreachable(_) => Code::Unavailable,
        // Unauthorised is our own password at the RDS, and says nothing of the caller: never Unauthenticated.
        RdsFailure::Refused(_) | RdsFailure::Unauthorised(_) => Code::FailedPrecondition,
    }
}
