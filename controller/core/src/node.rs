//! Nodes: who they are, whether their agent is heard, and whether they may be granted anything.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    BootId, Epoch, HostId, HostNqn, NodeId, Observed, SessionId, StorageAddress, UnixMillis, VolumeId,
};

/// What tells one host from another. Two nodes must not share any of it but the boot id's absence.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// As the node's every connect says it.
    pub host_nqn: HostNqn,
    /// The NVMe host identifier.
    pub host_id: HostId,
    /// Addresses on the storage networks.
    pub storage_addresses: Vec<StorageAddress>,
    /// Which boot of its kernel this is.
    pub boot_id: BootId,
}

impl NodeIdentity {
    /// What this identity has in common with another's that it must not, but for addresses, in words.
    pub(crate) fn clash(&self, other: &Self) -> Option<String> {
        if self.host_nqn == other.host_nqn {
            return Some(format!("host NQN {}", self.host_nqn));
        }
        if self.host_id == other.host_id {
            return Some(format!("host id {}", self.host_id));
        }
        None
    }

    /// A storage address of this that is among others', in words.
    pub(crate) fn shared_address(&self, others: &BTreeSet<&StorageAddress>) -> Option<String> {
        let shared = self.storage_addresses.iter().find(|a| others.contains(a))?;
        Some(format!("storage address {shared}"))
    }
}

/// What is kept of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Which.
    pub node: NodeId,
    /// Who it is, by its own last word.
    pub identity: NodeIdentity,
}

/// Whether the agent is heard.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Session {
    /// Connected; its inventory has been read if `inventoried`.
    Up {
        /// The stream.
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

/// Whether the node may be granted volumes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Standing {
    /// It may.
    Admitted,
    /// It may not, until its inventory shows nothing of a revoked epoch.
    Quarantined {
        /// Why.
        reason: String,
    },
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Node {
    /// Who it is.
    pub identity: NodeIdentity,
    /// Whether it is heard.
    pub session: Session,
    /// Whether it may be granted volumes.
    pub standing: Standing,
    /// What its kernel holds by its own last word, by volume.
    pub observed: BTreeMap<VolumeId, Observed>,
    /// Epochs of a later term than ours that it says to have seen, on this session: it obeys nothing of our term.
    pub ahead: BTreeMap<VolumeId, Epoch>,
}

impl Node {
    /// A node that has just said Hello.
    pub(crate) fn new(identity: NodeIdentity, session: Session) -> Self {
        Self {
            identity,
            session,
            standing: Standing::Admitted,
            observed: BTreeMap::new(),
            ahead: BTreeMap::new(),
        }
    }

    /// The session that may be given directives, if any.
    pub(crate) fn ready_session(&self) -> Option<&SessionId> {
        match &self.session {
            Session::Up { id, inventoried: true, .. } => Some(id),
            _ => None,
        }
    }

    pub(crate) fn is_session(&self, session: &SessionId) -> bool {
        matches!(&self.session, Session::Up { id, .. } if id == session)
    }
}
