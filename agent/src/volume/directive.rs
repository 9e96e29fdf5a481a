//! What the controller can ask of a volume.
//!
//! Owns: the directive and its kinds. Only `session/decode.rs`, which checks it, makes one.

use std::collections::BTreeSet;

use cleat_host::fabrics::DhchapSecret;
use cleat_host::reservations::ReservationKey;
use tokio::time::Instant;

use crate::ledger::Grant;
use crate::name::{Epoch, OperationId, VolumeId};

/// What a directive asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Connect every portal of the grant, and prove that the device can be used.
    Attach {
        /// Portals, identity, size, use and number of paths that were granted.
        grant: Grant,
        /// The secret to connect with. It is not part of the grant and is never recorded.
        secret: Option<GivenSecret>,
        /// The moment, on this process's clock, at which the attach fails.
        deadline: Instant,
    },
    /// End the grant unless the device is in use.
    Detach {
        /// The moment after which the answer is Pending; the detach goes on.
        deadline: Instant,
        /// Tickets have had their time: who has the device open by a ticket's loop device is ended first.
        cut_tickets: bool,
    },
    /// End the grant even under an open device.
    Revoke {
        /// The moment after which the answer is Pending; the revoke goes on.
        deadline: Instant,
    },
    /// Observe again, judge the whole predicate, and report the state.
    Verify {
        /// Pods whose open devices are to be looked at, by UID.
        pods: BTreeSet<String>,
        /// Other volumes that these pods have.
        others: BTreeSet<VolumeId>,
    },
    /// Remove other nodes' registrations from the namespace.
    Preempt {
        /// This node's own key, which has to be registered first.
        key: ReservationKey,
        /// The keys whose registrations are to go.
        victims: Vec<ReservationKey>,
        /// The moment after which the answer is Pending; the preemption goes on.
        deadline: Instant,
    },
    /// Give every controller another secret.
    Rekey {
        /// The secret that every later connect uses.
        secret: DhchapSecret,
        /// Which of the volume's secrets it is: the newest generation wins.
        generation: Epoch,
        /// The moment after which the answer is Pending; the rekey goes on.
        deadline: Instant,
    },
}

/// A secret that came with an Attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenSecret {
    /// What connects authenticate with.
    pub secret: DhchapSecret,
    /// Which of the volume's secrets it is; `None` where the controller did not say.
    pub generation: Option<Epoch>,
}

impl Ask {
    /// The kind, for logs and metrics.
    pub fn kind(&self) -> DirectiveKind {
        match self {
            Self::Attach { .. } => DirectiveKind::Attach,
            Self::Detach { .. } => DirectiveKind::Detach,
            Self::Revoke { .. } => DirectiveKind::Revoke,
            Self::Verify { .. } => DirectiveKind::Verify,
            Self::Preempt { .. } => DirectiveKind::Preempt,
            Self::Rekey { .. } => DirectiveKind::Rekey,
        }
    }
}

/// The kinds of directives, as the protocol (`session.proto`) names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectiveKind {
    /// Connect and prove: [`Ask::Attach`].
    Attach,
    /// End a grant that nobody uses: [`Ask::Detach`].
    Detach,
    /// End a grant, even in use: [`Ask::Revoke`].
    Revoke,
    /// Report afresh, change nothing: [`Ask::Verify`].
    Verify,
    /// Remove registrations: [`Ask::Preempt`].
    Preempt,
    /// Replace the secret: [`Ask::Rekey`].
    Rekey,
}

impl DirectiveKind {
    /// The kind in lower case, as logs and metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Revoke => "revoke",
            Self::Verify => "verify",
            Self::Preempt => "preempt",
            Self::Rekey => "rekey",
        }
    }
}

/// What the controller sends an agent to do, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// Its operation id, which tells a repetition from a new directive.
    pub operation: OperationId,
    /// The volume that it is about.
    pub volume: VolumeId,
    /// The epoch of the grant that it is about.
    pub epoch: Epoch,
    /// What it asks for, with the arguments of its kind.
    pub ask: Ask,
    /// When this process received it.
    pub received: Instant,
}
