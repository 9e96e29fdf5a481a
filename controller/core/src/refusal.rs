//! Why a request was not granted: what, on what, and what it waits for. Facts alone: the shell has the words for people
//! and the status codes.

use crate::{
    Access, Agent, MinFence, NodeId, NodeTrouble, QuarantineCause, RdsFailure, Tried, Trouble, UnixMillis,
    VolumeId, Wait,
};

/// A request's end without success.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// An RWO volume that another node has.
    AttachedElsewhere {
        /// The volume.
        volume: VolumeId,
        /// The node that has it.
        node: NodeId,
    },
    /// An RWX block volume that two other nodes have.
    MigrationLimit {
        /// The volume.
        volume: VolumeId,
        /// Who has it, oldest first.
        nodes: Vec<NodeId>,
    },
    /// An RWX block volume that two other nodes have, in a migration that has taken longer than it may.
    MigrationOverdue {
        /// The volume.
        volume: VolumeId,
        /// Who has it, oldest first.
        nodes: Vec<NodeId>,
        /// When the migration began.
        since: UnixMillis,
        /// How long it may take, in milliseconds.
        timeout_ms: u64,
    },
    /// The node has as many volumes as it may have.
    NodeFull {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// How many volumes it may have.
        limit: u32,
    },
    /// The same attachment exists with other arguments.
    Incompatible {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// Which argument, what it is and what was asked for.
        difference: Difference,
    },
    /// The node's agent is not heard.
    Silent {
        /// The node.
        node: NodeId,
        /// Since when.
        since: UnixMillis,
    },
    /// The node may not be granted anything.
    Quarantined {
        /// The node.
        node: NodeId,
        /// Every reason for the quarantine.
        causes: Vec<QuarantineCause>,
    },
    /// The agent could not make the device ready, or could not take it down.
    NotReady {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// What the agent could not do.
        unready: NodeTrouble,
    },
    /// The device is in use on the node; nothing was changed.
    InUse {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// Its users, each as text for a person.
        holders: Vec<String>,
    },
    /// The RDS did not do what was asked of it.
    Rds {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// What it said, or that it said nothing.
        error: RdsFailure,
    },
    /// The time a request may wait is over. What it waits for goes on, and a repeat joins it.
    StillWaiting {
        /// The volume.
        volume: VolumeId,
        /// What it waits for.
        wait: Box<Wait>,
        /// How long the request waited, in milliseconds.
        waited_ms: u64,
    },
    /// A later request overtook it.
    Overtaken {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// The request that overtook it.
        by: Overtaking,
    },
    /// The volume is being deleted.
    Deleting {
        /// The volume.
        volume: VolumeId,
    },
    /// The volume's record is being deleted: it takes no grant, and goes once nobody may write any more.
    RecordDeleted {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
    },
    /// The volume cannot be deleted while somebody may use it.
    StillAttached {
        /// The volume.
        volume: VolumeId,
        /// The nodes that have it.
        nodes: Vec<NodeId>,
    },
    /// A node that may still write could not be fenced.
    CannotFence {
        /// The volume.
        volume: VolumeId,
        /// The agent of the node that may still write.
        agent: Agent,
        /// Since when it is being detached.
        since: UnixMillis,
        /// What went wrong last.
        last: Option<Box<Trouble>>,
        /// The rungs of the ladder, each with its last result.
        tried: Vec<Tried>,
        /// The weakest fence that would do.
        min_fence: MinFence,
    },
    /// The only fence was to take the export off, and it stays off until the fenced node is clean.
    ExportOff {
        /// The volume.
        volume: VolumeId,
        /// The fenced node.
        node: NodeId,
        /// Since when.
        since: UnixMillis,
    },
    /// Nothing to fence.
    NotAttached {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
    },
    /// Nothing is known of the node.
    UnknownNode {
        /// The node.
        node: NodeId,
    },
    /// A node that is heard is not gone.
    NotGone {
        /// The node.
        node: NodeId,
        /// Since when it is heard.
        since: UnixMillis,
    },
}

/// The argument in which a repeated Publish differs from the attachment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Difference {
    /// Whether the device is read-only.
    ReadOnly {
        /// What the attachment has.
        is: bool,
        /// What was asked for.
        asked: bool,
    },
    /// How many nodes may have it.
    Access {
        /// What the attachment has.
        is: Access,
        /// What was asked for.
        asked: Access,
    },
}

/// The later request that a Publish gave way to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Overtaking {
    /// A detach.
    Detach,
    /// A fence.
    Fence,
    /// The node was declared gone.
    DeclaredGone,
}
