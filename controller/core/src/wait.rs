//! What a request or an attachment waits for, as facts. The shell renders them.
//!
//! The core makes these where it decides; nothing is decided by them. What always holds: each names the RDS, or a node
//! whose agent can bring it about.

use crate::{Fence, NodeId, Rung, TicketId, Trouble, UnixMillis, VmRef, VolumeId};

/// What a request waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wait {
    /// The RDS has not listed its volumes since the controller began.
    FirstList {
        /// When the controller began.
        since: UnixMillis,
        /// Why the last try gave none.
        last: Option<String>,
    },
    /// The lists lack the volume, and have not lacked it for long enough to be believed.
    ListOf {
        /// The volume.
        volume: VolumeId,
        /// How long lists have to lack it, in milliseconds.
        lacked_for_ms: u64,
        /// Why the last try gave no list.
        last: Option<String>,
    },
    /// The list does not say who may connect.
    ReadableList {
        /// The volume.
        volume: VolumeId,
        /// What cannot be understood of it.
        problem: String,
    },
    /// Agents have to report what they hold of a volume whose list and record disagree.
    Reports {
        /// The volume.
        volume: VolumeId,
        /// The nodes whose agents are waited for.
        nodes: Vec<NodeId>,
        /// What the list leaves open.
        doubt: ListDoubt,
    },
    /// All have reported, or are cut off, and what was on its way before may still land.
    ListDrainBound {
        /// The volume.
        volume: VolumeId,
        /// When the drain bound will have passed.
        until: UnixMillis,
        /// What the list leaves open.
        doubt: ListDoubt,
    },
    /// The node's agent is connected and has not sent its inventory.
    Inventory {
        /// The node.
        node: NodeId,
    },
    /// The node has as many volumes as it may have, and one of them is being detached.
    Room {
        /// The node.
        node: NodeId,
        /// How many volumes it may have.
        limit: u32,
    },
    /// Two nodes have the volume, and a VM does not need it on one of them any more, for its migration is over.
    Leaving {
        /// That node.
        node: NodeId,
        /// The VM.
        vm: VmRef,
        /// What its detach waits for; `None`: nobody has asked for that yet.
        wait: Option<AttachmentWait>,
    },
    /// Tickets have the volume on a node.
    Ticket {
        /// The node.
        node: NodeId,
        /// The first of them.
        ticket: TicketId,
        /// Its holder.
        holder: String,
        /// Until then they have time to let go of it; `None`: they keep it.
        until: Option<UnixMillis>,
    },
    /// Nodes that have the volume, or may.
    Holders(Vec<HolderWait>),
}

/// What is waited for on one node that has the volume, or may.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HolderWait {
    /// The node.
    pub node: NodeId,
    /// For what; `None`: it was granted the volume after a detach from all nodes was asked for.
    pub wait: Option<AttachmentWait>,
}

/// What an attachment waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AttachmentWait {
    /// The condition.
    pub condition: Condition,
    /// What went wrong last.
    pub last: Option<Trouble>,
}

/// What has to come about before an attachment goes on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Condition {
    /// The node was ready, and its agent reports that it cannot use the device.
    DeviceBack {
        /// The node.
        node: NodeId,
        /// The clause that fails and the facts, as the agent reports them.
        unready: String,
    },
    /// It is a stray: somebody has to publish the volume to the node or unpublish it from there.
    CallAboutStray {
        /// The node.
        node: NodeId,
    },
    /// It was being granted when the controller started: the caller has to repeat its Publish.
    RepeatedPublish {
        /// The node.
        node: NodeId,
    },
    /// A fence rests on the export alone, which stays off until the node has shown that it holds nothing.
    FencedNodeClean {
        /// The volume.
        volume: VolumeId,
        /// The fenced node.
        node: NodeId,
        /// When it was fenced.
        since: UnixMillis,
    },
    /// The RDS has to bring the export back.
    ExportOn {
        /// The volume.
        volume: VolumeId,
        /// For which fences it was taken off; none where they are over.
        fences: Vec<ExportFence>,
    },
    /// The RDS has to allow the host.
    HostAllowed,
    /// The agent has to connect and to prove that it can use the device.
    Ready(Agent),
    /// The RDS has to answer the grant that is being taken back.
    GrantAnswered,
    /// The agent has to detach and to prove that nothing is left, or its fence has to succeed.
    Detached {
        /// The agent that is waited for.
        agent: Agent,
        /// The fence under way.
        fence: Option<Box<Fence>>,
    },
    /// The node holds nothing any more; the export going off drains what it wrote.
    Drained {
        /// The node.
        node: NodeId,
        /// The barrier under way.
        fence: Box<Fence>,
    },
    /// The node cannot write any more, and what it wrote may still land.
    DrainBound {
        /// The node.
        node: NodeId,
        /// When the drain bound will have passed.
        until: UnixMillis,
        /// Why it has to pass.
        why: BoundCause,
    },
    /// The RDS has to take the host off its list.
    HostDenied,
}

/// A fence for which an export was taken off.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExportFence {
    /// The node that is fenced.
    pub node: NodeId,
    /// The rung that it takes.
    pub rung: Rung,
    /// When it began.
    pub since: UnixMillis,
}

/// An agent that is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Agent {
    /// Its node.
    pub node: NodeId,
    /// Whether it can be given a directive.
    pub heard: Heard,
}

/// How an agent is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Heard {
    /// It has sent its inventory and takes directives.
    Ready,
    /// It is connected and has not sent its inventory.
    NoInventory,
    /// Its session ended.
    SilentSince(UnixMillis),
    /// It has not connected since the controller began.
    NeverSince(UnixMillis),
}

/// Why writes of a node that cannot write any more may still land.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BoundCause {
    /// A connection may have broken under its user.
    MayHaveBroken,
    /// A person declared the node gone.
    DeclaredGone,
    /// The target is not known to wait for what it has received.
    CutWithoutDrain,
}

/// Why a list of the RDS does not say who may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListDoubt {
    /// The export is off, and no record says why.
    FoundOff,
    /// The export is on, and by its record it is off.
    FoundOn,
    /// The RDS keeps no list of hosts, and there is no record.
    NoList,
    /// The nodes are to have it, no record says that they have, and no host is known for them.
    Desired,
    /// There is no record of it, and the nodes are to have a volume which nobody can name.
    Unclear,
}
