//! What every session's task needs, and the ids of sessions.

use std::sync::atomic::{AtomicU64, Ordering};

use cleat_core::SessionId;
use tokio_util::sync::CancellationToken;

use super::registry::Sessions;
use super::reports::Reports;
use crate::engine::Engine;

/// What every session's task needs.
#[derive(Debug)]
pub(super) struct SessionContext {
    pub(super) engine: Engine,
    pub(super) sessions: Sessions,
    pub(super) reports: Reports,
    pub(super) term: u64,
    pub(super) stop: CancellationToken,
    count: AtomicU64,
}

impl SessionContext {
    pub(super) fn new(
        engine: Engine,
        sessions: Sessions,
        reports: Reports,
        term: u64,
        stop: CancellationToken,
    ) -> Self {
        Self { engine, sessions, reports, term, stop, count: AtomicU64::new(0) }
    }

    /// A session id that no other has had: terms rise with every start.
    pub(super) fn next_id(&self) -> SessionId {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        #[allow(clippy::expect_used)] // the text is not empty, which is the rule for session ids
        SessionId::new(format!("session-{}-{count}", self.term)).expect("not empty")
    }
}
