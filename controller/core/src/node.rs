//! Nodes: who they are, whether their agent is heard, and whether they may be granted anything.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::{
    BootId, Claim, Epoch, HostId, HostNqn, LaterTerm, NodeId, NodeUid, Observed, SessionId, StorageAddress,
    UnixMillis, VolumeId,
};

/// Who a node says it is. Two nodes must not share a host NQN or a host id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeIdentity {
    /// As the node's every connect says it.
    pub host_nqn: HostNqn,
    /// The NVMe host identifier.
    pub host_id: HostId,
    /// Addresses on the storage networks: for people, and nothing is decided by them.
    pub storage_addresses: Vec<StorageAddress>,
    /// Which boot of its kernel this is.
    pub boot_id: BootId,
}

impl NodeIdentity {
    /// What this identity has in common with another's that it must not.
    pub(crate) fn clash(&self, other: &Self) -> Option<Claim> {
        if self.host_nqn == other.host_nqn {
            return Some(Claim::HostNqn(self.host_nqn.clone()));
        }
        (self.host_id == other.host_id).then_some(Claim::HostId(self.host_id))
    }

    /// What a node's record pins.
    pub(crate) fn host(&self) -> (HostNqn, HostId) {
        (self.host_nqn.clone(), self.host_id)
    }

    /// Whether it is the same host, whatever its boot and its addresses.
    pub(crate) fn is_same_host(&self, other: &Self) -> bool {
        self.host_nqn == other.host_nqn && self.host_id == other.host_id
    }
}

/// What is kept of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    /// The node.
    pub node: NodeId,
    /// Its host, by its own last report. Host NQN and host id are pinned: a person may change them, an agent may not.
    pub identity: NodeIdentity,
    /// The UID of its Node, where the orchestrator has one and it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<NodeUid>,
}

/// What is known of a node beside its agent's own words, at the moment when that connects.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct NodeSeen {
    /// The UID of its Node now. `None`: not known, or there is no Node.
    pub uid: Option<NodeUid>,
    /// What somebody else has made of the node's record by now. `None`: nothing; or what was read may be older than our own
    /// write.
    pub stored: Option<StoredNode>,
}

/// What the store has of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StoredNode {
    /// This record.
    Record(Box<NodeRecord>),
    /// None, or one that a person has deleted.
    Nothing,
}

/// Whether the agent is heard.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SessionState {
    /// Connected; its inventory has been read if `inventoried`.
    Up {
        /// The session.
        id: SessionId,
        /// Since when.
        since: UnixMillis,
        /// No directive goes out before the inventory has come in.
        inventoried: bool,
    },
    /// Not heard.
    Silent {
        /// Since when; the start of the controller if it has never been heard in this term.
        since: UnixMillis,
    },
}

/// Why a node is granted nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum QuarantineCause {
    /// It was fenced, and has not shown yet that it holds nothing of the volume.
    Fenced {
        /// The volume from which it was fenced.
        volume: VolumeId,
        /// When.
        since: UnixMillis,
        /// The name of the evidence's source.
        source: &'static str,
    },
    /// It reported a volume that it was not let in to, and has not shown yet that it does not hold it.
    ClaimsTooMuch {
        /// The volume that it reported.
        volume: VolumeId,
        /// When.
        since: UnixMillis,
    },
    /// It has seen a later term.
    LaterTerm(LaterTerm),
}

/// Whether the node may be granted volumes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It may be granted volumes.
    Admitted,
    /// It may not, until its inventory shows nothing of a revoked epoch.
    Quarantined {
        /// Every reason for the quarantine.
        causes: Vec<QuarantineCause>,
    },
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    /// Its host, by its own report.
    pub identity: NodeIdentity,
    /// Whether it is heard.
    pub session: SessionState,
    /// Whether it may be granted volumes.
    pub standing: Standing,
    /// What its kernel holds by its own last report, by volume.
    pub observed: BTreeMap<VolumeId, Observed>,
    /// How many volumes it may have at once, by its own word.
    pub max_volumes: Option<NonZeroU32>,
    /// Epochs of a later term than ours that it says to have seen, on this session: it refuses every directive of our term.
    pub ahead: BTreeMap<VolumeId, Epoch>,
}

impl Node {
    /// A node that has just said Hello.
    pub(crate) fn new(
        identity: NodeIdentity,
        session: SessionState,
        max_volumes: Option<NonZeroU32>,
    ) -> Self {
        Self {
            identity,
            session,
            max_volumes,
            standing: Standing::Admitted,
            observed: BTreeMap::new(),
            ahead: BTreeMap::new(),
        }
    }

    /// The session that may be given directives, if any.
    pub(crate) fn ready_session(&self) -> Option<&SessionId> {
        match &self.session {
            SessionState::Up { id, inventoried: true, .. } => Some(id),
            _ => None,
        }
    }

    pub(crate) fn is_session(&self, session: &SessionId) -> bool {
        matches!(&self.session, SessionState::Up { id, .. } if id == session)
    }
}
