//! What the controller can ask of a volume.
//!
//! Owns: the directive and its kinds. A directive is made only by who has checked it (`session/decode.rs`).

use cleat_host::fabrics::DhchapSecret;
use cleat_host::reservations::ReservationKey;
use tokio::time::Instant;

use crate::ledger::Grant;
use crate::name::{Epoch, OperationId, VolumeId};

/// What a directive asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Connect and prove.
    Attach {
        /// What is granted.
        grant: Grant,
        /// The secret to connect with. Not a part of the grant: it is written down nowhere.
        secret: Option<GivenSecret>,
        /// By when.
        deadline: Instant,
    },
    /// End the grant unless the device is in use.
    Detach {
        /// By when.
        deadline: Instant,
    },
    /// End the grant even under an open device.
    Revoke {
        /// By when.
        deadline: Instant,
    },
    /// Read the state again.
    Verify,
    /// Remove other nodes' registrations.
    Preempt {
        /// This node's own key.
        key: ReservationKey,
        /// Whose registrations go.
        victims: Vec<ReservationKey>,
        /// By when.
        deadline: Instant,
    },
    /// Give every controller another secret.
    Rekey {
        /// The secret.
        secret: DhchapSecret,
        /// Which one it is.
        generation: Epoch,
        /// By when.
        deadline: Instant,
    },
}

/// A secret that came with an Attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenSecret {
    /// The secret.
    pub secret: DhchapSecret,
    /// Which of the volume's it is, where that was said.
    pub generation: Option<Epoch>,
}

impl Ask {
    /// The kind, for logs and metrics.
    pub fn kind(&self) -> DirectiveKind {
        match self {
            Self::Attach { .. } => DirectiveKind::Attach,
            Self::Detach { .. } => DirectiveKind::Detach,
            Self::Revoke { .. } => DirectiveKind::Revoke,
            Self::Verify => DirectiveKind::Verify,
            Self::Preempt { .. } => DirectiveKind::Preempt,
            Self::Rekey { .. } => DirectiveKind::Rekey,
        }
    }
}

/// The kinds of directives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectiveKind {
    /// Attach.
    Attach,
    /// Detach.
    Detach,
    /// Revoke.
    Revoke,
    /// Verify.
    Verify,
    /// Preempt.
    Preempt,
    /// Rekey.
    Rekey,
}

impl DirectiveKind {
    /// The kind as logs and metrics say it.
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

/// One directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// By which a repetition is known.
    pub operation: OperationId,
    /// About which volume.
    pub volume: VolumeId,
    /// Under which grant.
    pub epoch: Epoch,
    /// What to do.
    pub ask: Ask,
    /// When it came in.
    pub received: Instant,
}
