//! What reaches the core's task: events, and views of its state.

use cleat_core::{Core, Event, NodeId, Refusal, Reply, RequestId, UnixMillis, VolumeId};
use tokio::sync::oneshot;

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

/// One thing for the core to do.
pub(super) enum Input {
    Event {
        event: Box<Event>,
        waiter: Option<Waiter>,
    },
    /// Of all that is durable; or, where it names a volume, of that one's record once it is.
    View {
        of: Option<VolumeId>,
        view: View,
    },
}
