//! What went wrong with an attachment, as facts. The shell renders them.
//!
//! The core notes the last one with the attachment and notifies people of each ([`crate::Notice::Trouble`]). Nothing is
//! decided by it.

use crate::{
    DeviceDifference, DeviceIdentity, Epoch, NodeId, Outcome, RdsFailure, Rung, SessionId, VolumeId,
};

/// What does not go on, or what somebody has said about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Trouble {
    /// The RDS did not do something.
    Rds {
        /// What was asked of it.
        task: RdsTask,
        /// What it answered, or that it did not.
        error: RdsFailure,
    },
    /// The node cannot use the volume, or could not give it up.
    Unready(NodeTrouble),
    /// The agent is at it.
    Progress(String),
    /// The device is in use on the node.
    InUse {
        /// Its users, each as text for a person.
        holders: Vec<String>,
    },
    /// The agent's outcome does not belong to its directive.
    UnexpectedOutcome(Box<Outcome>),
    /// A rung of the ladder did not hold.
    RungFailed {
        /// The rung.
        rung: Rung,
        /// What came of it, as it is kept with the fence.
        result: String,
    },
    /// The record of its end may be older than the RDS's list, which its host is on.
    ProofOlderThanList,
    /// The record is older than what was done since.
    RecordOlder(OlderBy),
    /// Its host is on the RDS's list without a record.
    ListedWithoutRecord,
    /// It was let in, and somebody else has taken its host off the RDS's list since.
    KeptOut,
    /// It is to have the volume, and no record says that it has.
    DesiredWithoutRecord,
    /// The node holds the volume without a grant.
    HeldWithoutGrant,
    /// The node reports the volume, and cannot have it: every session was ended and its host not let in since.
    ClaimsTooMuch,
    /// A person wants the node fenced.
    FenceAsked {
        /// The person who says so.
        by: String,
        /// Why, in that person's words.
        reason: String,
    },
    /// A person has declared the node gone.
    DeclaredGone {
        /// The person who says so.
        by: String,
        /// Why, in that person's words.
        reason: String,
    },
    /// A node that was declared gone has connected. Its detach goes on.
    HeardThoughGone {
        /// The session that it concerns.
        session: SessionId,
        /// Its attachment was over: it counts as able to write again.
        may_write_again: bool,
    },
}

/// What the RDS was to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RdsTask {
    /// Allow the host.
    Allow,
    /// Take the host off its list.
    Deny,
    /// Take the export off.
    ExportOff,
    /// Bring the export back.
    ExportOn,
    /// Put the secret in force.
    SetSecret,
}

/// How it is known that a record is older than what was done since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OlderBy {
    /// The host is not on the RDS's list any more.
    NotListed,
    /// The node has had a later grant of the volume.
    LaterGrant,
}

/// Why a node cannot use a volume, or could not give it up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NodeTrouble {
    /// The agent names the clause of the readiness predicate, or the step, that failed.
    Clause {
        /// The clause.
        clause: String,
        /// What was seen.
        message: String,
    },
    /// The namespace is not the one that was attached before.
    OtherNamespace {
        /// What the agent found.
        found: Box<DeviceIdentity>,
        /// What was pinned at the first attach.
        pinned: Box<DeviceIdentity>,
    },
    /// The device is not like that of another node that has the volume.
    OtherDevice {
        /// The other node.
        node: NodeId,
        /// In what.
        difference: DeviceDifference,
    },
    /// The node has seen another epoch than the one that is granted.
    OtherEpoch {
        /// The highest that it has seen.
        highest: Epoch,
        /// That epoch's grant ended there.
        ended: bool,
        /// The one that is granted.
        granted: Epoch,
    },
    /// The node has seen an epoch of a later term.
    LaterTerm(LaterTerm),
    /// It was ready, and the node reports that it cannot use it any more.
    Lost {
        /// The clause that fails and the facts; `None`: the agent does not list the volume.
        unready: Option<String>,
    },
}

impl NodeTrouble {
    /// The clause of the readiness predicate, or the step, that failed.
    #[must_use]
    pub fn clause(&self) -> &str {
        match self {
            Self::Clause { clause, .. } => clause,
            Self::OtherNamespace { .. } => "identity",
            Self::OtherDevice { difference, .. } => difference.clause(),
            Self::OtherEpoch { .. } | Self::LaterTerm(_) => "epoch",
            Self::Lost { .. } => "lost",
        }
    }
}

/// A node has seen an epoch of a later term than this controller's. It carries out nothing of this term.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LaterTerm {
    /// Of which volume.
    pub volume: VolumeId,
    /// The epoch.
    pub highest: Epoch,
    /// This controller's term.
    pub term: u64,
}
