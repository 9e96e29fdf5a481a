//! What reaches the core's task: events, and views of its state.

use std::num::NonZeroU32;

use cleat_core::{
    Core, Event, NodeId, NodeIdentity, NodeSeen, Refusal, Reply, RequestId, SessionId, UnixMillis, VolumeId,
};
use tokio::sync::oneshot;

use super::records::NodeMark;
use super::request_error::RequestError;

/// The answer to a request.
pub(super) type RequestResult = Result<Reply, Refusal>;
/// Hands a view's result to who asked.
pub(super) type Deliver = Box<dyn FnOnce() + Send>;
pub(super) type View = Box<dyn FnOnce(&Core, UnixMillis) -> Deliver + Send>;

/// Who waits for the answer to a request.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) request: RequestId,
    /// `None`: about all volumes of the node.
    pub(super) volume: Option<VolumeId>,
    pub(super) node: Option<NodeId>,
    pub(super) answer: oneshot::Sender<Result<Reply, RequestError>>,
}

/// An agent that connects.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) node: NodeId,
    pub(crate) session: SessionId,
    pub(crate) identity: NodeIdentity,
    pub(crate) max_volumes: Option<NonZeroU32>,
    pub(crate) seen: NodeSeen,
}

/// What a view is shown. To show what is durable costs as much as there is more decided of than that: who needs less asks
/// for less.
pub(super) enum Shown {
    /// All, as it is durable.
    All,
    /// Of volumes this one alone, as it is durable.
    Durable(VolumeId),
    /// Of volumes this one alone, with all that was decided about it, once that is durable.
    Decided(VolumeId),
    /// No volume.
    Nodes,
}

/// One thing for the core to do.
pub(super) enum Input {
    Event {
        event: Box<Event>,
        waiter: Option<Waiter>,
    },
    /// An agent says Hello. Its node's record was read after the mark; without one it was not.
    Hello {
        hello: Box<Hello>,
        mark: Option<NodeMark>,
    },
    View {
        of: Shown,
        view: View,
    },
}
