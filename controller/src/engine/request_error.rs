//! Why a request was not granted.

use std::sync::Arc;

use cleat_core::{NodeId, Refusal, VolumeId};

use crate::explain;

/// The engine has ended; the process is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the controller is stopping; what was begun goes on when it runs again, and a repeated call joins it"
)]
pub struct EngineEnded;

/// Why a request was not granted: what every caller of the engine gets. `rpc_status` has its code,
/// `explain` the words of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The core refused.
    #[error("{}", explain::refusal(.0))]
    Refused(Refusal),
    /// There is no core any more.
    #[error(transparent)]
    Ended(#[from] EngineEnded),
    /// The store does not take what this rests on now.
    #[error(
        "the controller cannot store what this needs now: {reason}. What has begun goes on once the store works; \
         repeat the call"
    )]
    Stalled {
        /// What is in the way.
        reason: Arc<str>,
    },
    /// The volume's record was written by somebody else.
    #[error(
        "volume {volume} was set aside: {reason}. Let only one controller use the store, and restart it: it then \
             begins from what is stored"
    )]
    SetAside {
        /// The volume.
        volume: VolumeId,
        /// What was found.
        reason: String,
    },
    /// A node was declared gone, and its record is left to somebody else.
    #[error(
        "what node {node} has is recorded as gone, but its own record was set aside, and pins its host again after a restart: \
         {reason}. Let nobody else write it, restart the controller, and declare the node gone again"
    )]
    NodeSetAside {
        /// The node.
        node: NodeId,
        /// What was found.
        reason: String,
    },
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
