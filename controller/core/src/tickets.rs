//! Tickets: why a volume should be attached somewhere, and what becomes of each.
//!
//! A ticket is a wish, an attachment a fact: this file has the wishes, and `tickets/decide.rs` says what each of them gets,
//! given who has the volume. What holds, whatever the tickets say:
//! - a workload's ticket never has a node taken from it, nor has one that is not interruptible;
//! - a volume never moves for a ticket that is no workload's: it is attached where the volume is;
//! - who is interrupted has its time first, and that time is never cut short;
//! - "satisfied" is said for the generation of the ticket that the attachment was made for, and for no other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{NodeId, Refusal, Role, TicketId, UnixMillis};

pub(crate) mod decide;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod rule_tests;
#[cfg(test)]
mod scenario_tests;
#[cfg(test)]
mod testing;
mod yielding;

/// What a ticket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum TicketType {
    /// Its content is brought back.
    Restore,
    /// It grows.
    Expansion,
    /// A person or a program wants it on a node, to write to it.
    Api,
    /// The orchestrator wants it for a workload: a VolumeAttachment.
    Csi,
    /// A snapshot is made of it.
    Snapshot,
    /// It is backed up.
    Backup,
    /// It is copied to another volume.
    Clone,
}

impl TicketType {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Restore, Self::Expansion, Self::Api, Self::Csi, Self::Snapshot, Self::Backup, Self::Clone];

    /// The name by which people know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Restore => "restore",
            Self::Expansion => "expansion",
            Self::Api => "api",
            Self::Csi => "csi",
            Self::Snapshot => "snapshot",
            Self::Backup => "backup",
            Self::Clone => "clone",
        }
    }

    /// Which ticket has its node while nobody has the volume: the highest, and of equals the oldest.
    #[must_use]
    pub fn priority(self) -> u32 {
        match self {
            Self::Restore | Self::Expansion => 2000,
            Self::Api => 1000,
            Self::Csi => 900,
            Self::Snapshot | Self::Backup | Self::Clone => 800,
        }
    }

    /// Whether it is for what runs on its node: then the volume is of use on that node alone.
    #[must_use]
    pub fn is_workload(self) -> bool {
        matches!(self, Self::Csi | Self::Api)
    }

    /// Whether it gives way to a workload on another node: what it does can be done again.
    #[must_use]
    pub fn is_interruptible(self) -> bool {
        matches!(self, Self::Backup | Self::Snapshot)
    }
}

/// A reason why a volume should be attached somewhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Which one.
    pub id: TicketId,
    /// What it is for.
    pub kind: TicketType,
    /// Where. A workload's ticket is for this node and no other; any other ticket takes the volume to this node if nobody
    /// has it, and is attached where it is if somebody has. A csi ticket always names one.
    pub node: Option<NodeId>,
    /// Who wants it, for people.
    pub holder: String,
    /// Rises with each change of the wish.
    pub generation: u64,
    /// Since when it is wished for.
    pub since: UnixMillis,
    /// When its holder was last seen to renew it, by our clock; after a start that of the start.
    pub renewed: UnixMillis,
    /// An interruptible ticket that is not renewed for so long is lost. `None`: it need not be renewed.
    pub renew_ms: Option<u64>,
    /// Since when it is not satisfied: from the wish, from its change, or from the end of an attachment on.
    pub waits_since: UnixMillis,
}

/// What an orchestrator wants of an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CsiUse {
    /// Nothing: it is there for tickets alone.
    Nothing,
    /// It published the volume there.
    Published,
    /// It has asked for the volume to be taken from there.
    Unpublishing,
}

/// How far an attachment is, as tickets see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum HoldingState {
    /// It is granted, and the node has not proven yet that it can use the device: nobody was given it.
    Coming,
    /// The node had proven it, and has to again: who was given it may be using it.
    Again,
    /// The node has proven it.
    Ready,
    /// It is being taken down, and may still write.
    Leaving,
    /// It may write, and no grant of ours says for whom.
    Unknown,
}

/// A node that has the volume, or may.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Holding {
    pub(crate) node: NodeId,
    pub(crate) state: HoldingState,
    pub(crate) role: Role,
    pub(crate) csi: CsiUse,
    /// The tickets, other than csi ones, that it is there for, and for which generation of each. One that nothing is known
    /// of is here as well: it counts as one that nobody interrupts.
    pub(crate) tickets: BTreeMap<TicketId, u64>,
    /// Its tickets were asked to let go. While it is being taken down: that is why.
    pub(crate) interrupted: Option<Interruption>,
    /// The controller has just started, and the node was not heard yet: nobody is asked to let go there.
    pub(crate) unheard: bool,
}

/// The tickets of one node are to let go of the volume there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Interruption {
    /// For whom.
    pub by: InterruptedBy,
    /// Until then they have time; after it they are cut off.
    pub until: UnixMillis,
}

/// For whom tickets are interrupted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum InterruptedBy {
    /// A workload wants the volume on another node.
    Workload {
        /// Its ticket.
        ticket: TicketId,
        /// The node where it is.
        node: NodeId,
    },
    /// The volume is to be taken from the node: a true answer to that cannot wait, and a false one is none.
    Unpublish,
    /// None of the tickets is renewed any more.
    Silence,
}

/// How a ticket stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TicketStanding {
    /// The device is there for it.
    Satisfied {
        /// The node where the device is.
        node: NodeId,
        /// The generation of the ticket that this holds for.
        generation: u64,
    },
    /// The node is to have the volume for it; or has it, and is to keep it for this ticket as well.
    AttachOn(NodeId),
    /// It has the device, and is to let go of it.
    Interrupt {
        /// The node where the device is.
        node: NodeId,
        /// For whom.
        by: InterruptedBy,
        /// After that it is cut off.
        until: UnixMillis,
    },
    /// It has nothing.
    Waits {
        /// For what.
        wait: TicketWait,
        /// Since when.
        since: UnixMillis,
    },
}

/// What a ticket waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TicketWait {
    /// The volume is being taken from a node.
    Detaches {
        /// That node.
        node: NodeId,
    },
    /// A node's tickets were asked to let go.
    Yielding {
        /// That node.
        node: NodeId,
        /// The one of them that comes first.
        ticket: TicketId,
        /// Until then they have time.
        until: UnixMillis,
    },
    /// It gave way to a workload, and comes after it.
    YieldsTo {
        /// The workload's ticket.
        ticket: TicketId,
        /// The node that this one wants.
        node: NodeId,
    },
    /// Others have the volume, and keep it.
    Elsewhere {
        /// The nodes that have it, or may.
        nodes: Vec<NodeId>,
    },
    /// Another ticket comes first.
    Queue {
        /// That ticket.
        behind: TicketId,
    },
    /// The node can be granted nothing.
    Node(Box<Refusal>),
    /// It names no node, and no node has the volume.
    AnyNode,
    /// The volume has as many tickets as it may have: nothing is kept of this one.
    Room {
        /// How many.
        limit: usize,
    },
    /// All volumes together have as many as are kept: nothing is kept of this one.
    RoomOfAll {
        /// How many.
        limit: usize,
    },
    /// Its holder has to renew it.
    Renewal {
        /// When it was renewed last.
        since: UnixMillis,
    },
}
