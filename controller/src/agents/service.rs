//! The RPC: takes a stream, gives each its own task, and hears of its end whatever ends it.

use std::pin::Pin;
use std::sync::Arc;

use cleat_core::{Event, NodeId, SessionId};
use cleat_proto::cleat::v1 as proto;
use cleat_proto::cleat::v1::agent_session_server::AgentSession;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::session::{Ending, Talk};
use super::session_context::SessionContext;
use crate::clients::Caller;
use crate::metrics;

/// Messages that may wait in front of the stream itself; the rest waits on the session's line.
const OUTGOING: usize = 16;

/// The `AgentSession` service.
#[derive(Debug)]
pub struct AgentSessions {
    context: Arc<SessionContext>,
}

impl AgentSessions {
    /// The service; every open stream ends when the context's `stop` is cancelled.
    pub(crate) fn new(context: SessionContext) -> Self {
        Self { context: Arc::new(context) }
    }
}

#[tonic::async_trait]
impl AgentSession for AgentSessions {
    type SessionStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<proto::ToAgent, Status>> + Send>>;

    /// Answers at once: an agent may well wait for the answer's head before it says Hello.
    async fn session(
        &self,
        request: Request<Streaming<proto::FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = Caller::of(&request)?;
        let (out, outgoing) = mpsc::channel(OUTGOING);
        tokio::spawn(supervise(Arc::clone(&self.context), request.into_inner(), out, caller));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// Runs one session in a task of its own, so that the core hears of its end even after a panic.
async fn supervise(
    context: Arc<SessionContext>,
    inbound: Streaming<proto::FromAgent>,
    out: mpsc::Sender<Result<proto::ToAgent, Status>>,
    caller: Caller,
) {
    let (known, mut introduced) = mpsc::unbounded_channel::<(NodeId, SessionId)>();
    let from = caller.name();
    let talk = Talk::new(Arc::clone(&context), inbound, out.clone(), caller, known);
    let ending = tokio::spawn(talk.run())
        .await
        .unwrap_or_else(|panicked| Ending(Status::internal(format!("the session's task ended: {panicked}"))));
    let Ending(status) = ending;
    metrics::session_ended(status.code());
    if let Ok((node, session)) = introduced.try_recv() {
        context.sessions.close(&session);
        tracing::info!(%node, %session, from, code = ?status.code(), reason = status.message(), "agent session ended");
        // An engine that has ended needs to hear nothing any more.
        let _ = context.engine.submit(Event::SessionLost { node, session }).await;
    } else {
        tracing::warn!(from, code = ?status.code(), reason = status.message(), "agent not admitted");
    }
    // Whoever does not read gets no reason; nothing waits for it.
    let _ = out.try_send(Err(status));
}
