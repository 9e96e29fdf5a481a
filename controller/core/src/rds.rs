//! What is asked of the RDS, and what can come of it.

use crate::{Epoch, HostNqn, VolumeId};

/// A change at the RDS of who can connect. All are idempotent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RdsRequest {
    /// The host may connect, and the export is on. Success means that both were read back, and that nothing of a
    /// [`RdsRequest::Hide`] or a [`RdsRequest::Close`] that this process has asked for before is still under way.
    Allow {
        /// The volume.
        volume: VolumeId,
        /// The host.
        host_nqn: HostNqn,
    },
    /// The host may not connect. This alone does not stop a host that is connected. Success means that the list
    /// was read back without the host.
    Deny {
        /// The volume.
        volume: VolumeId,
        /// The host.
        host_nqn: HostNqn,
        /// It is a step of a fence, and goes before everything else.
        fence: bool,
    },
    /// The last host may not connect, and with nobody left that has the volume the export goes off: both in one.
    /// Success means what it does for [`RdsRequest::Deny`] and for [`RdsRequest::Hide`].
    Close {
        /// The volume.
        volume: VolumeId,
        /// The host.
        host_nqn: HostNqn,
    },
    /// The export off. Success means that it was read back as off; where the target drains, everything that it had
    /// received has landed.
    Hide {
        /// The volume.
        volume: VolumeId,
    },
    /// The export on, for those on the list. Success means that it was read back as on, and that nothing of a
    /// [`RdsRequest::Hide`] before it is still under way.
    Show {
        /// The volume.
        volume: VolumeId,
    },
    /// The secret of that generation is asked for at each new connection.
    SetSecret {
        /// The volume.
        volume: VolumeId,
        /// The generation that is to be in force.
        generation: Epoch,
    },
}

impl RdsRequest {
    /// The volume that it is about.
    #[must_use]
    pub fn volume(&self) -> &VolumeId {
        match self {
            Self::Allow { volume, .. }
            | Self::Deny { volume, .. }
            | Self::Close { volume, .. }
            | Self::Hide { volume }
            | Self::Show { volume }
            | Self::SetSecret { volume, .. } => volume,
        }
    }
}

/// What went wrong with the RDS. Five different things, and they stay different.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RdsFailure {
    /// It said that there is no such volume.
    #[error("not found: {0}")]
    NotFound(String),
    /// It refused.
    #[error("refused: {0}")]
    Refused(String),
    /// It has no room.
    #[error("full: {0}")]
    Full(String),
    /// It was not reached, or did not answer in time: what it did is not known.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// It did not accept our user or password.
    #[error("unauthorised: {0}")]
    Unauthorised(String),
}
