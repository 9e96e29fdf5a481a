//! What every session's task needs, and the ids of sessions.

use std::sync::atomic::{AtomicU64, Ordering};

use cleat_core::SessionId;
use tokio_util::sync::CancellationToken;

use super::registry::Sessions;
use super::reports::Reports;
use crate::engine::Engine;
use crate::leadership::Leadership;
use crate::pins::Pins;

/// What every session's task needs.
#[derive(Debug)]
pub(crate) struct SessionContext {
    /// Where events go.
    pub(crate) engine: Engine,
    /// The sessions that are open.
    pub(crate) sessions: Sessions,
    /// What the cluster says of nodes, where there is one.
    pub(crate) pins: Option<Pins>,
    /// What agents last said of their nodes.
    pub(crate) reports: Reports,
    /// Names new sessions.
    pub(crate) ids: SessionIds,
    /// Whether this process leads.
    pub(crate) leadership: Leadership,
    /// Ends every session when it is cancelled.
    pub(crate) stop: CancellationToken,
}

/// Ids of the sessions of one term: no other session ever has one of them, since terms rise with every start.
#[derive(Debug)]
pub(crate) struct SessionIds {
    term: u64,
    count: AtomicU64,
}

impl SessionIds {
    /// The ids of a term.
    pub(crate) fn of(term: u64) -> Self {
        Self { term, count: AtomicU64::new(0) }
    }

    /// Their term.
    pub(super) fn term(&self) -> u64 {
        self.term
    }

    /// An id that no session has had.
    pub(super) fn next(&self) -> SessionId {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        #[allow(clippy::expect_used)] // the text is not empty, which is the rule for session ids
        SessionId::new(format!("session-{}-{count}", self.term)).expect("not empty")
    }
}
