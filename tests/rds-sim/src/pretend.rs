//! What the device says it does and does not do: for tests that a fence is believed for its proof, not for an answer.
//!
//! In: a list of [`Pretend`]s from the test control. Out: what [`crate::rds`] leaves out at the target. What always
//! holds: the REST API shows what was asked for, as if it had been done; the kernel shows the truth.

use serde::{Deserialize, Serialize};

/// A step of a fence that is recorded and not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pretend {
    /// The host list is recorded; whoever was let in once is let in for ever.
    Acl,
    /// Export off is recorded; sessions and namespace stay as they are.
    Cut,
    /// Export off takes the portals away and leaves the namespace up: nothing waits for writes in flight.
    Drain,
}

/// `POST /pretend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretendRequest {
    /// What to leave out from now on.
    pub pretend: Pretend,
}
