//! The core's reasons as text for people: the one place that words them.
//!
//! In come the facts that the core gives (refusals, waits, troubles, evidence); out go sentences for CSI errors, notices,
//! logs and `cleatctl`. Nothing is decided by them. What always holds: an error reads "cannot X: Y; do Z" and names what
//! it is about.

mod desired;
mod evidence;
mod migration;
mod node;
mod refusal;
mod session;
#[cfg(test)]
mod tests;
mod ticket;
mod trouble;
mod wait;

use cleat_core::{NodeId, Tried, UnixMillis};
use cleat_runtime::date::rfc3339;

pub(crate) use desired::{desired_unclear, too_many_desired};
pub(crate) use evidence::{assumption, drain_cause, drained_by};
pub(crate) use migration::late_write;
pub(crate) use refusal::{quarantine, refusal};
pub(crate) use session::session_refusal;
pub(crate) use ticket::{TICKET_OF_BEFORE, interrupted_for, ticket_wait, ticket_waits_on};
pub(crate) use trouble::trouble;
pub(crate) use wait::{attachment_wait, wait};

/// A moment: RFC 3339, UTC, whole seconds.
pub(crate) fn when(at: UnixMillis) -> String {
    rfc3339(at.0)
}

/// Rungs, each with its result.
pub(crate) fn rungs(tried: &[Tried]) -> String {
    let each = tried.iter().map(|tried| format!("{} ({})", tried.rung.name(), tried.result));
    each.collect::<Vec<_>>().join("; ")
}

fn nodes(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}
