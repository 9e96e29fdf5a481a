//! Why an agent may not speak for a node, as facts. The shell renders them.

use crate::{HostId, HostNqn, NodeId, NodeUid, VolumeId};

/// Why an agent may not speak for a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SessionRefusal {
    /// Its node has opened a new session.
    Replaced {
        /// The node.
        node: NodeId,
    },
    /// The name is of those that are kept for hosts that no node is known to be.
    ReservedName {
        /// The name.
        node: NodeId,
    },
    /// Two nodes claim what only one may have.
    SharedIdentity {
        /// The node whose agent connects.
        node: NodeId,
        /// The other one.
        other: NodeId,
        /// What both claim.
        claim: Claim,
    },
    /// Another node holds a volume under the same host NQN.
    HolderHasHostNqn {
        /// The node whose agent connects.
        node: NodeId,
        /// Who holds the volume.
        other: NodeId,
        /// The host NQN.
        host_nqn: HostNqn,
    },
    /// Another host of that name may still hold a volume.
    OtherHostMayHold {
        /// The node.
        node: NodeId,
        /// The host that connects.
        host_nqn: HostNqn,
        /// The host that may still hold a volume.
        holder: HostNqn,
    },
    /// Two hosts claim to be the node.
    TwoHosts {
        /// The node.
        node: NodeId,
        /// Who is known under the name.
        known: (HostNqn, HostId),
        /// The host that connects.
        new: (HostNqn, HostId),
    },
    /// The node's record names another host.
    Pinned {
        /// The node.
        node: NodeId,
        /// Whom its record names.
        pinned: (HostNqn, HostId),
        /// The host that connects.
        new: (HostNqn, HostId),
        /// Why the pin holds.
        holds: PinHolds,
    },
}

/// Why a pin does not let go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PinHolds {
    /// The node's Node is the one that it was.
    SameNode(NodeUid),
    /// It is not known that its Node is another one.
    NodeUnknown,
    /// The node has this volume under the host NQN that both say: it is heard with its host id alone.
    Holds {
        /// The first that it has.
        volume: VolumeId,
    },
    /// It would let go, and nobody can say that the pinned host may not write to this volume; `None`: to any, for the RDS's
    /// lists were not read yet, or the node is to have a volume which nobody can name.
    InDoubt {
        /// The first of them.
        volume: Option<VolumeId>,
    },
}

/// What only one node may have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Claim {
    /// A host NQN.
    HostNqn(HostNqn),
    /// A host id.
    HostId(HostId),
}
