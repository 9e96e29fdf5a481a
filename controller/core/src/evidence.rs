//! Evidence that a node cannot write any more: from where, when, and what it rests on.
//!
//! Three values; Unknown never admits a writer. Evidence also says whether it is *drained*: a target lands writes
//! that it has received long after their host is gone, so "cannot send any more" is not "nothing is on its way".

use serde::{Deserialize, Serialize};

use crate::{BootId, Epoch, NodeId, UnixMillis};

/// Who or what proves that a node cannot write.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Source {
    /// The node's own agent: its kernel holds no controller of the subsystem.
    AgentAbsent {
        /// The boot under which it looked.
        boot_id: BootId,
    },
    /// The node never got a directive to attach under this epoch.
    NeverAllowed,
    /// The target refuses the host, and its sessions were cut after that.
    TargetCut {
        /// The list of hosts was read back without it.
        acl: bool,
        /// The secret that it does not know, by its generation.
        secret: Option<Epoch>,
    },
    /// The report of registrations, read after the preemption, is without its key; and the host is off the list.
    Reservation {
        /// Whose agent preempted and read the report.
        by: NodeId,
    },
    /// The export is off. Proves something only as long as it is.
    ExportOff,
    /// A person has declared the node gone.
    NodeGone {
        /// The person who says so.
        by: String,
        /// Why, in that person's words.
        reason: String,
    },
}

impl Source {
    /// The name by which people and metrics know it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::AgentAbsent { .. } => "AgentAbsent",
            Self::NeverAllowed => "NeverAllowed",
            Self::TargetCut { .. } => "TargetCut",
            Self::Reservation { .. } => "Reservation",
            Self::ExportOff => "ExportOff",
            Self::NodeGone { .. } => "NodeGone",
        }
    }
}

impl Source {
    /// The RDS's list was read back without the host on the way to this proof.
    pub(crate) fn took_the_host_off_the_list(&self) -> bool {
        matches!(self, Self::TargetCut { acl: true, .. } | Self::Reservation { .. })
    }

    /// It says that the node's kernel holds nothing, so a kernel that does contradicts it.
    pub(crate) fn says_nothing_is_held(&self) -> bool {
        matches!(self, Self::AgentAbsent { .. } | Self::NeverAllowed | Self::NodeGone { .. })
    }
}

/// By what it is known that nothing the node wrote is still on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Drained {
    /// The device was never reported ready under this epoch: nobody was sent an Attach.
    NeverHandedOut,
    /// Every controller was live when it was deleted: the kernel waits for what is in flight on a live one.
    LiveDeletion,
    /// The target's namespace was taken down with no session left, which waits for every write it has received.
    Barrier,
    /// The target's preempt-and-abort waits for what is in flight.
    Abort,
    /// Nothing better is known; the longest time that the backing store may hold a write has to pass first.
    /// This is an assumption about the target, and is named as one.
    Bound {
        /// When it will have passed.
        until: UnixMillis,
    },
}

/// Whether the node can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It cannot, and nothing it wrote is on its way.
    Fenced,
    /// It can write.
    NotFenced,
    /// Not known: counts as NotFenced wherever a writer would be admitted.
    Unknown,
}

/// One proof.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// The node that cannot write.
    pub node: NodeId,
    /// The epoch that is over.
    pub epoch: Epoch,
    /// Who says so.
    pub source: Source,
    /// How it is known to be drained.
    pub drained: Drained,
    /// When it was given.
    pub at: UnixMillis,
    /// The person who wanted the node off the volume, whatever it was doing. Set when the attachment is over.
    #[serde(default)]
    pub statement: Option<Box<Statement>>,
}

/// What a person has said, and answers for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    /// The person who says so.
    pub by: String,
    /// Why, in that person's words.
    pub reason: String,
}

impl Evidence {
    /// Whether it says more than another proof about the same grant.
    pub(crate) fn is_better_than(&self, old: &Self, now: UnixMillis) -> bool {
        match (&self.drained, &old.drained) {
            _ if old.verdict(now) == Verdict::Fenced => false,
            (Drained::Bound { until }, Drained::Bound { until: before }) => until < before,
            _ => true,
        }
    }

    /// What this proves at a given time.
    #[must_use]
    pub fn verdict(&self, now: UnixMillis) -> Verdict {
        match self.drained {
            Drained::NeverHandedOut | Drained::LiveDeletion | Drained::Barrier | Drained::Abort => {
                Verdict::Fenced
            }
            Drained::Bound { until } if now >= until => Verdict::Fenced,
            Drained::Bound { .. } => Verdict::Unknown,
        }
    }
}
