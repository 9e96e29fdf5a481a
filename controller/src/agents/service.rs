//! The RPC: takes a stream, gives each its own task, and hears of its end whatever ends it.

use std::pin::Pin;
use std::sync::Arc;

use cleat_core::{Event, NodeId, SessionId};
use cleat_proto::cleat::v1 as proto;
use cleat_proto::cleat::v1::agent_session_server::AgentSession;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::encode;
use super::session::{Ending, Talk};
use super::session_context::SessionContext;
use crate::clients::Caller;
use crate::leadership::{ARRIVES, Leadership};
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
        let leadership = self.context.leadership.clone();
        let stream = ReceiverStream::new(outgoing).map(move |message| under_a_claim(message, &leadership));
        Ok(Response::new(Box::pin(stream)))
    }
}

/// A directive may have waited long for the agent to read: the claim is asked once more as it leaves, and the session ends
/// where it does not hold any more.
fn under_a_claim(
    message: Result<proto::ToAgent, Status>,
    leadership: &Leadership,
) -> Result<proto::ToAgent, Status> {
    match message {
        Ok(message) if encode::volume_of(&message).is_some() && !leadership.outlives(ARRIVES) => {
            Err(Status::unavailable("this controller no longer leads, or not for long enough; connect again"))
        }
        message => message,
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proto::to_agent::Kind;

    use super::*;

    #[test]
    fn a_directive_that_waited_is_not_sent_once_the_claim_is_lost() {
        let message = |kind| Ok(proto::ToAgent { kind: Some(kind), about: None });
        let attach = || message(Kind::Attach(proto::Attach { volume_id: "v".into(), ..Default::default() }));
        let detach = || message(Kind::Detach(proto::Detach { volume_id: "v".into(), ..Default::default() }));
        let heartbeat = || message(Kind::Heartbeat(proto::Heartbeat { count: 1 }));
        assert!(under_a_claim(attach(), &Leadership::alone()).is_ok());
        // Of a claim that is not there nothing holds.
        let lost = Leadership::by_lease();
        for directive in [attach(), detach()] {
            let refused = under_a_claim(directive, &lost).unwrap_err();
            assert!(refused.message().contains("no longer leads"), "{refused:?}");
        }
        assert!(under_a_claim(heartbeat(), &lost).is_ok(), "it starts nothing");
    }
}
