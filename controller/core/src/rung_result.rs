//! Why a rung of the ladder was not taken, or did not hold. It is stored with the fence as text ([`crate::Tried`]), so
//! this alone of the core's reasons has its words here: short, below the rung's name, in parentheses.

use std::fmt;

use crate::{FenceStep, MinFence, NodeId, Outcome, RdsFailure};

/// What came of a rung.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RungResult {
    /// The volume asks for a stronger fence.
    WeakerThan(MinFence),
    /// The target has no reservations.
    NoReservations,
    /// The target keeps to no list of hosts.
    NoList,
    /// The target asks for no secret.
    NoSecret,
    /// Export off is not known to end sessions.
    NoCut,
    /// Export off is not known to wait for received writes.
    NoDrain,
    /// Nobody can preempt the registration.
    NoHelper,
    /// A survivor would be locked out: its agent is not heard, or it uses no secret.
    NotRekeyed(NodeId),
    /// A stray would be locked out.
    StrayNotRekeyed(NodeId),
    /// A survivor's agent fell silent.
    SilentForRekey(NodeId),
    /// The export going off would hit a node that may be using the volume.
    InUseBy(NodeId),
    /// Nobody has declared the node gone.
    NotDeclaredGone,
    /// The list was not read back without the node.
    ListNotRead,
    /// The RDS refused a step.
    Rds(FenceStep, RdsFailure),
    /// Unknown registrations are left after the preemption.
    StillRegistered { by: NodeId, keys: Vec<u64> },
    /// A helper failed.
    Helper { by: NodeId, problem: HelperProblem },
}

/// Why a node could not do its part of a fence against another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HelperProblem {
    /// It has seen a later term.
    LaterTerm(crate::LaterTerm),
    /// A step of it failed on that node.
    Failed { clause: String, message: String },
    /// Its outcome does not belong to the directive.
    Unexpected(Outcome),
}

impl fmt::Display for RungResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WeakerThan(min) => write!(f, "weaker than the volume's minFence, {}", min.name()),
            Self::NoReservations => f.write_str("the target has no reservations"),
            Self::NoList => f.write_str("the target has no list of hosts that it keeps to"),
            Self::NoSecret => f.write_str("the target asks for no secret"),
            Self::NoCut => f.write_str("taking the export off is not known to end sessions"),
            Self::NoDrain => f.write_str("taking the export off is not known to wait for received writes"),
            Self::NoHelper => f.write_str("no other node that has the volume is connected to preempt it"),
            Self::NotRekeyed(node) => {
                write!(f, "node {node} uses the volume and cannot be sent another secret")
            }
            Self::StrayNotRekeyed(node) => {
                write!(f, "node {node} holds the volume without a grant and cannot be sent a secret")
            }
            Self::SilentForRekey(node) => {
                write!(f, "node {node} uses the volume, and its agent is not connected to get the new secret")
            }
            Self::InUseBy(node) => write!(f, "node {node} may be using the volume"),
            Self::NotDeclaredGone => f.write_str("nobody has declared the node gone"),
            Self::ListNotRead => f.write_str("the list of hosts was not read back without the node"),
            Self::Rds(step, error) => write!(f, "the RDS did not {}: {error}", rds_does(*step)),
            Self::StillRegistered { by, keys } => {
                let keys: Vec<String> = keys.iter().map(|key| format!("{key:#x}")).collect();
                write!(f, "after node {by} preempted, still registered: {}", keys.join(", "))
            }
            Self::Helper { by, problem } => write!(f, "node {by}: {problem}"),
        }
    }
}

impl fmt::Display for HelperProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LaterTerm(crate::LaterTerm { volume, highest, term }) => {
                write!(
                    f,
                    "has seen epoch {highest} of volume {volume}, later than this controller's term {term}"
                )
            }
            Self::Failed { clause, message } => write!(f, "{clause}: {message}"),
            Self::Unexpected(outcome) => write!(f, "unexpected outcome: {outcome:?}"),
        }
    }
}

fn rds_does(step: FenceStep) -> &'static str {
    match step {
        FenceStep::Deny => "take the host off its list",
        FenceStep::SetSecret => "put another secret in force",
        FenceStep::Hide => "take the export off",
        FenceStep::Preempt | FenceStep::Rekey | FenceStep::Refused => "carry out its step",
    }
}
