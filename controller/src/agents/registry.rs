//! The open sessions: where the engine finds the stream that a directive is meant for.
//!
//! In come directives with a session id; out they go to that session's task, or nowhere if it has ended: the core
//! gives a directive again on the next session. Sending never waits: a session that does not take its directives is cut.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cleat_core::{Directive, NodeId, OperationId, SessionId};
use cleat_proto::cleat::v1::ToAgent;
use cleat_rds::secret::NoSecret;
use tokio::sync::mpsc;

use super::encode;
use super::settings::AgentSettings;
use crate::engine::Agents;
use crate::metrics;

/// Orders that may wait for one stream. The core has one directive under way for each attachment, so an agent that
/// lets as many pile up does not read.
const ORDERS: usize = 4096;

/// What a session's task is sent.
#[derive(Debug)]
pub(crate) enum Order {
    /// Send this.
    Send(Box<ToAgent>),
    /// End the stream: the core does not accept it.
    Refused(String),
}

/// All open sessions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    open: Arc<Mutex<HashMap<SessionId, OpenSession>>>,
    settings: Arc<AgentSettings>,
}

#[derive(Debug)]
struct OpenSession {
    node: NodeId,
    orders: mpsc::Sender<Order>,
}

impl Sessions {
    /// A registry without a session.
    #[must_use]
    pub fn new(settings: AgentSettings) -> Self {
        Self { open: Arc::default(), settings: Arc::new(settings) }
    }

    /// What agents are sent.
    #[must_use]
    pub fn settings(&self) -> &AgentSettings {
        &self.settings
    }

    /// Opens a session, and gives the directives for its stream.
    pub(crate) fn open(&self, session: SessionId, node: NodeId) -> mpsc::Receiver<Order> {
        let (orders, taken) = mpsc::channel(ORDERS);
        let mut open = self.lock();
        open.insert(session, OpenSession { node, orders });
        metrics::sessions(open.len());
        taken
    }

    /// Closes the way to a session.
    pub(super) fn close(&self, session: &SessionId) {
        let mut open = self.lock();
        open.remove(session);
        metrics::sessions(open.len());
    }

    fn order(&self, session: &SessionId, order: Order) {
        let mut open = self.lock();
        let Some(one) = open.get(session) else {
            tracing::debug!(%session, "the session has ended; dropping its directive");
            return;
        };
        if let Err(error) = one.orders.try_send(order) {
            // The entry goes, and with it the session's task: the core hears of a lost session and starts over.
            tracing::error!(%session, node = %one.node, %error, "the agent does not read its directives; \
                 ending its session");
            open.remove(session);
            metrics::sessions(open.len());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, OpenSession>> {
        // The map is whole after every operation on it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agents for Sessions {
    fn direct(
        &self,
        node: &NodeId,
        session: &SessionId,
        operation: OperationId,
        directive: &Directive,
    ) -> Result<(), NoSecret> {
        let kind = match directive {
            Directive::Attach { .. } => "attach",
            Directive::Detach { .. } => "detach",
            Directive::Revoke { .. } => "revoke",
            Directive::Preempt { .. } => "preempt",
            Directive::Rekey { .. } => "rekey",
            Directive::Count { .. } => "count",
            Directive::Verify { .. } => "verify",
        };
        let message = encode::directive(operation, directive, &self.settings)?;
        let (volume, epoch) = (directive.volume(), directive.epoch());
        tracing::info!(%volume, %node, %epoch, %operation, %session, kind, "directive");
        self.order(session, Order::Send(Box::new(message)));
        Ok(())
    }

    fn refuse(&self, session: &SessionId, reason: String) {
        self.order(session, Order::Refused(reason));
    }
}
