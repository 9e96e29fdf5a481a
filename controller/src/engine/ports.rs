//! What the engine needs of others, in its own terms: how a directive reaches an agent.
//!
//! The RDS ([`cleat_rds::Rds`]) and the store ([`crate::store::Store`]) are below the engine; agents' sessions are above
//! it, so they implement this.

use cleat_core::{Directive, NodeId, OperationId, SessionId};
use cleat_rds::secret::NoSecret;

/// Sends to agents. Nothing here waits.
pub trait Agents: Send + Sync + 'static {
    /// Sends a directive on the session that it is meant for. If that has ended, it is dropped: the core gives it again on
    /// the next session.
    ///
    /// # Errors
    /// If it needs a secret that cannot be made: then nothing was sent.
    fn direct(
        &self,
        node: &NodeId,
        session: &SessionId,
        operation: OperationId,
        directive: &Directive,
    ) -> Result<(), NoSecret>;

    /// Ends a session that the core does not accept.
    fn refuse(&self, session: &SessionId, reason: String);
}
