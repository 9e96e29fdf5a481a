//! The core's reasons as text for people: the one place that has their words.
//!
//! In come the facts that the core gives (refusals, waits, troubles, evidence); out go sentences for CSI errors, notices,
//! logs and `cleatctl`. Nothing is decided by them. What always holds: an error reads "cannot X: Y; do Z" and names what
//! it is about.

mod evidence;
mod refusal;
mod session;
#[cfg(test)]
mod tests;
mod trouble;
mod wait;

use std::time::{Duration, UNIX_EPOCH};

use cleat_core::{NodeId, Tried, UnixMillis};

pub(crate) use evidence::{assumption, drain_cause, drained_by};
pub(crate) use refusal::{quarantine, refusal};
pub(crate) use session::session_refusal;
pub(crate) use trouble::trouble;
pub(crate) use wait::{attachment_wait, wait};

/// The last second that RFC 3339 can say.
const LAST_SECOND: u64 = 253_402_300_799;

/// A moment: RFC 3339, UTC, whole seconds.
pub(crate) fn when(at: UnixMillis) -> String {
    let since_1970 = Duration::from_secs((at.0 / 1000).min(LAST_SECOND));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since_1970).to_string()
}

/// Rungs, each with its result.
pub(crate) fn rungs(tried: &[Tried]) -> String {
    let each = tried.iter().map(|tried| format!("{} ({})", tried.rung.name(), tried.result));
    each.collect::<Vec<_>>().join("; ")
}

fn nodes(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}
