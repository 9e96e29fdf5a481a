//! The engine's handle: how the rest of the program asks the core something. Cheap to clone.
//!
//! Dropping a future of this handle takes nothing back: what was asked goes on, and a repeat joins it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cleat_core::{
    Core, Event, Grant, NodeId, NodeRecord, RdsFailure, Reply, RequestId, Statement, UnixMillis,
    VolumeDeletion, VolumeId, VolumeRecord, VolumeSpec,
};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::WatchedChange;
use super::input::{Hello, Input, Shown, View, Waiter};
use super::notices::NoticeText;
use super::records::{Committed, NodeMark};
use super::request_error::{EngineEnded, RequestError};
use super::storing::Stalled;
use super::ticket_board::TicketBoard;
use crate::clock::Clock;
use crate::metrics;

/// The engine, as the rest of the program sees it.
#[derive(Clone, Debug)]
pub struct Engine {
    inbox: mpsc::Sender<Input>,
    changes: broadcast::Sender<WatchedChange>,
    requests: Arc<AtomicU64>,
    clock: Clock,
    stalled: watch::Receiver<Stalled>,
    committed: Committed,
    tickets: TicketBoard,
}

impl Engine {
    pub(super) fn new(
        inbox: mpsc::Sender<Input>,
        changes: broadcast::Sender<WatchedChange>,
        clock: Clock,
        stalled: watch::Receiver<Stalled>,
        committed: Committed,
        tickets: TicketBoard,
    ) -> Self {
        Self { inbox, changes, requests: Arc::default(), clock, stalled, committed, tickets }
    }

    /// How each ticket stands.
    pub(crate) fn tickets(&self) -> &TicketBoard {
        &self.tickets
    }

    /// Hands a Publish to the core. It is with the core when this returns, whatever becomes of the answer.
    ///
    /// # Errors
    /// If the engine has ended.
    pub async fn publish(
        &self,
        node: NodeId,
        spec: VolumeSpec,
        read_only: bool,
    ) -> Result<Publishing, EngineEnded> {
        let (volume, to) = (spec.id.clone(), Some(node.clone()));
        let asked = self.ask(volume, to, |request| Event::Publish { request, node, spec, read_only });
        Ok(Publishing(asked.await?))
    }

    /// Hands an Unpublish to the core, from one node or (`None`) from all. It is with the core when this returns.
    ///
    /// # Errors
    /// If the engine has ended.
    pub async fn unpublish(
        &self,
        volume: VolumeId,
        node: Option<NodeId>,
    ) -> Result<Unpublishing, EngineEnded> {
        let asked =
            self.ask(volume.clone(), node.clone(), |request| Event::Unpublish { request, volume, node });
        Ok(Unpublishing(asked.await?))
    }

    /// Asks whether a volume may be deleted. If so, nobody is granted it until [`Engine::delete_ended`].
    ///
    /// # Errors
    /// The core's refusal, or that the engine has ended.
    pub async fn delete_begins(&self, volume: VolumeId) -> Result<(), RequestError> {
        let asked = self.ask(volume.clone(), None, |request| Event::DeleteBegins { request, volume });
        match asked.await?.answer().await? {
            Reply::MayDelete => Ok(()),
            other => Err(mismatch("delete", &other)),
        }
    }

    /// Fences a node from a volume because a person asks for it; waits until it is proven that it cannot write.
    ///
    /// # Errors
    /// The core's refusal, or that the engine has ended.
    pub async fn fence(
        &self,
        volume: VolumeId,
        node: NodeId,
        statement: Statement,
    ) -> Result<(), RequestError> {
        let Statement { by, reason } = statement;
        let asked = self.ask(volume.clone(), Some(node.clone()), |request| Event::Fence {
            request,
            volume,
            node,
            by,
            reason,
        });
        match asked.await?.answer().await? {
            Reply::Fenced => Ok(()),
            other => Err(mismatch("fence", &other)),
        }
    }

    /// Records that a person declares a node gone; waits until that is durable.
    ///
    /// # Errors
    /// The core's refusal, or that the engine has ended.
    pub async fn declare_gone(&self, node: NodeId, statement: Statement) -> Result<(), RequestError> {
        let Statement { by, reason } = statement;
        let asked =
            self.ask(None, Some(node.clone()), |request| Event::DeclareGone { request, node, by, reason });
        match asked.await?.answer().await? {
            Reply::Declared => Ok(()),
            other => Err(mismatch("declare gone", &other)),
        }
    }

    /// Tells watchers something that did not come from the core.
    pub(crate) fn tell(&self, notice: NoticeText) {
        metrics::notice(notice.reason);
        // An error means that nobody watches.
        let _ = self.changes.send(WatchedChange::Notice(Arc::new(notice)));
    }

    /// Hands on what the RDS says of a volume: who may connect to it is compared with what is on record.
    ///
    /// # Errors
    /// If the engine has ended.
    pub(crate) async fn listed(&self, volume: &cleat_rds::RdsVolume) -> Result<(), EngineEnded> {
        let volumes = vec![super::list_volumes::listed(volume)];
        self.submit(Event::RdsListed { volumes, whole: false }).await
    }

    /// Says that a volume was made by this very process.
    ///
    /// # Errors
    /// If the engine has ended.
    pub(crate) async fn made(&self, volume: VolumeId) -> Result<(), EngineEnded> {
        self.submit(Event::RdsMade { volume }).await
    }

    /// Says that a deletion has ended.
    ///
    /// # Errors
    /// If the engine has ended.
    pub async fn delete_ended(&self, volume: VolumeId, deletion: VolumeDeletion) -> Result<(), EngineEnded> {
        self.submit(Event::DeleteEnded { volume, deletion }).await
    }

    /// Hands an event that needs no answer to the core. Events of one caller arrive in their order.
    ///
    /// # Errors
    /// If the engine has ended.
    pub async fn submit(&self, event: Event) -> Result<(), EngineEnded> {
        let input = Input::Event { event: Box::new(event), waiter: None };
        self.inbox.send(input).await.map_err(|_| EngineEnded)
    }

    /// To be taken before a node's record is read live. `None`: what would be read may be older than what was decided.
    pub(crate) fn mark(&self, node: &NodeId) -> Option<NodeMark> {
        self.committed.mark(node)
    }

    /// Hands on that an agent says Hello.
    ///
    /// # Errors
    /// If the engine has ended.
    pub(crate) async fn hello(&self, hello: Hello, mark: Option<NodeMark>) -> Result<(), EngineEnded> {
        let hello = Input::Hello { hello: Box::new(hello), mark };
        self.inbox.send(hello).await.map_err(|_| EngineEnded)
    }

    /// Looks at what is durable. Volumes about which more was decided are shown as they are stored, so nobody waits for the
    /// store here. The answer comes after the sessions that were refused before have been refused.
    ///
    /// # Errors
    /// If the engine has ended.
    pub async fn view<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core, UnixMillis) -> T + Send + 'static,
    ) -> Result<T, EngineEnded> {
        self.look(Shown::All, look).await
    }

    /// [`Engine::view`] for who looks at one volume and at no other: whatever waits for the store, no other record is read.
    ///
    /// # Errors
    /// If the engine has ended.
    pub(crate) async fn view_of<T: Send + 'static>(
        &self,
        volume: VolumeId,
        look: impl FnOnce(&Core, UnixMillis) -> T + Send + 'static,
    ) -> Result<T, EngineEnded> {
        self.look(Shown::Durable(volume), look).await
    }

    /// [`Engine::view`] for who looks at no volume, but at what is kept of nodes.
    ///
    /// # Errors
    /// If the engine has ended.
    pub(crate) async fn registry<T: Send + 'static>(
        &self,
        look: impl FnOnce(&BTreeMap<NodeId, NodeRecord>) -> T + Send + 'static,
    ) -> Result<T, EngineEnded> {
        self.look(Shown::Nodes, |core, _| look(core.registry())).await
    }

    /// Comes back after the sessions that were refused before have been refused.
    ///
    /// # Errors
    /// If the engine has ended.
    pub(crate) async fn taken_in(&self) -> Result<(), EngineEnded> {
        self.look(Shown::Nodes, |_, _| ()).await
    }

    /// [`Engine::view`] for a caller whose other questions may fail otherwise.
    ///
    /// # Errors
    /// If the engine has ended.
    pub(crate) async fn consult<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core, UnixMillis) -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        Ok(self.view(look).await?)
    }

    /// Looks at one volume's record (`None`: there is none), with all that was decided about it so far; the answer comes
    /// once that is durable.
    ///
    /// # Errors
    /// If the record cannot be stored now, or the engine has ended.
    pub(crate) async fn record<T: Send + 'static>(
        &self,
        volume: VolumeId,
        look: impl FnOnce(Option<&VolumeRecord>) -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        let id = volume.clone();
        self.decided(volume, move |core, _| look(core.volumes().get(&id))).await
    }

    /// Looks at all that concerns one volume, with all that was decided about it and asked for so far; the answer comes once
    /// that is durable.
    ///
    /// # Errors
    /// If the record cannot be stored now, or the engine has ended.
    pub(crate) async fn decided<T: Send + 'static>(
        &self,
        volume: VolumeId,
        look: impl FnOnce(&Core, UnixMillis) -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        let seen = self.look(Shown::Decided(volume.clone()), look);
        tokio::select! {
            // In this order: what waits for the store must not grow.
            biased;
            reason = stalled(self.stalled.clone(), Some(volume), None) => Err(RequestError::Stalled { reason }),
            seen = seen => Ok(seen?),
        }
    }

    /// Volumes whose record cannot be read, or was changed by somebody else, and why: nobody knows who may write to them.
    pub(crate) fn set_aside(&self) -> BTreeMap<VolumeId, String> {
        self.committed.set_aside()
    }

    async fn look<T: Send + 'static>(
        &self,
        of: Shown,
        look: impl FnOnce(&Core, UnixMillis) -> T + Send + 'static,
    ) -> Result<T, EngineEnded> {
        let (answer, answered) = oneshot::channel();
        let view: View = Box::new(move |core, now| {
            let seen = look(core, now);
            // Who asked may have gone; then nobody wants it.
            Box::new(move || drop(answer.send(seen)))
        });
        self.inbox.send(Input::View { of, view }).await.map_err(|_| EngineEnded)?;
        answered.await.map_err(|_| EngineEnded)
    }

    /// Everything that changes from now on.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<WatchedChange> {
        self.changes.subscribe()
    }

    /// The time as the core sees it.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    async fn ask(
        &self,
        volume: impl Into<Option<VolumeId>>,
        node: Option<NodeId>,
        event: impl FnOnce(RequestId) -> Event,
    ) -> Result<Submitted, EngineEnded> {
        let request = RequestId(self.requests.fetch_add(1, Ordering::Relaxed));
        let (answer, answered) = oneshot::channel();
        let volume = volume.into();
        let (about, stalled) = ((volume.clone(), node.clone()), self.stalled.clone());
        let refused = self.stalled.borrow().reason(volume.as_ref(), node.as_ref());
        let is_refused = refused.is_some();
        let asked = Submitted { answered, about, stalled, refused };
        if is_refused {
            // It is not handed on: what waits for the store must not grow with those who repeat their calls.
            return Ok(asked);
        }
        let waiter = Waiter { request, volume, node, answer };
        let input = Input::Event { event: Box::new(event(request)), waiter: Some(waiter) };
        self.inbox.send(input).await.map_err(|_| EngineEnded)?;
        Ok(asked)
    }
}

/// Ends, with the reason, once something that a request about this volume and node rests on cannot be stored.
async fn stalled(
    mut watched: watch::Receiver<Stalled>,
    volume: Option<VolumeId>,
    node: Option<NodeId>,
) -> Arc<str> {
    let why = |stalled: &Stalled| stalled.reason(volume.as_ref(), node.as_ref());
    let reason = watched.wait_for(|stalled| why(stalled).is_some()).await.map(|stalled| why(&stalled));
    match reason {
        Ok(Some(reason)) => reason,
        // The engine has ended, which the answer says.
        _ => std::future::pending().await,
    }
}

/// A request that is with the core.
#[derive(Debug)]
struct Submitted {
    answered: oneshot::Receiver<Result<Reply, RequestError>>,
    about: (Option<VolumeId>, Option<NodeId>),
    stalled: watch::Receiver<Stalled>,
    /// Why it was not handed on.
    refused: Option<Arc<str>>,
}

impl Submitted {
    async fn answer(self) -> Result<Reply, RequestError> {
        let Self { answered, about: (volume, node), stalled: watched, refused } = self;
        if let Some(reason) = refused {
            return Err(RequestError::Stalled { reason });
        }
        let stalled = stalled(watched, volume, node);
        tokio::select! {
            biased;
            reason = stalled => Err(RequestError::Stalled { reason }),
            answer = answered => answer.map_err(|_| EngineEnded)?,
        }
    }
}

/// A Publish that is with the core.
#[derive(Debug)]
#[must_use = "the answer says whether the node has proven that it can use the volume"]
pub struct Publishing(Submitted);

impl Publishing {
    /// Waits until the node has proven that it can use the volume.
    ///
    /// # Errors
    /// The core's refusal, or that the engine has ended.
    pub async fn granted(self) -> Result<Grant, RequestError> {
        match self.0.answer().await? {
            Reply::Published(grant) => Ok(*grant),
            other => Err(mismatch("publish", &other)),
        }
    }
}

/// An Unpublish that is with the core.
#[derive(Debug)]
#[must_use = "the answer says whether it is proven that the node cannot write"]
pub struct Unpublishing(Submitted);

impl Unpublishing {
    /// Waits until it is proven that the node cannot write to the volume.
    ///
    /// # Errors
    /// The core's refusal, or that the engine has ended.
    pub async fn proven(self) -> Result<(), RequestError> {
        match self.0.answer().await? {
            Reply::Unpublished => Ok(()),
            other => Err(mismatch("unpublish", &other)),
        }
    }
}

/// The core answered a request with another one's success: never report that as one.
fn mismatch(asked: &'static str, got: &Reply) -> RequestError {
    tracing::error!(asked, ?got, "the core's answer does not fit the request");
    RequestError::Ended(EngineEnded)
}

/// A request that could not even be asked of the RDS in time.
pub(super) fn unanswered(message: impl Into<String>) -> RdsFailure {
    RdsFailure::Unreachable(message.into())
}
