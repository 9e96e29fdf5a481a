//! The state of a volume on this node, as it is reported.
//!
//! Owns: the types. `judge.rs` derives a state.

use std::time::Duration;

use cleat_host::{NamespaceUuid, Nguid};

use crate::ledger::Deletion;
use crate::name::{Epoch, VolumeId};
use crate::volume::clause::{self, FailedClause};

/// The state of one volume, as the inventory and the session report it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeState {
    /// The id of the volume that it describes.
    pub volume: VolumeId,
    /// The highest epoch that this node has seen for the volume; `None` if it has seen none.
    pub epoch: Option<Epoch>,
    /// Whether the grant of that epoch has ended.
    pub epoch_ended: bool,
    /// How far the volume has come.
    pub phase: VolumePhase,
    /// What the namespace reports of itself; `None` where there is none.
    pub identity: Option<ShownIdentity>,
    /// One entry for each controller of this node, over whichever portal.
    pub paths: Vec<Path>,
    /// The clause of the predicate that fails; `None` if none does.
    pub unready: Option<FailedClause>,
    /// Who has the device open, where somebody searched for that.
    pub openers: Vec<String>,
    /// The name of its device; `None` where it has none.
    pub device: Option<String>,
    /// Writes that this device has completed: a counter that moves while somebody writes.
    pub writes: u64,
    /// The proof of absence; `None` unless the volume is absent and this node has one.
    pub absence: Option<Absence>,
    /// Where the volume is published, and which device is there.
    pub staging: Vec<Staging>,
    /// What pods that have the volume hold in its place, each as text for a person; empty unless somebody looked.
    pub held_elsewhere: Vec<String>,
    /// It is shown that no connection of it has broken or gone since the grant came to this node, or for as long as a target
    /// may hold writes. Never of one that is not ready on all paths.
    pub unbroken: bool,
}

impl VolumeState {
    /// An Attach under a later grant has come, and has not begun.
    pub(super) fn is_to_be_attached(&mut self, coming: Epoch) {
        (self.epoch, self.epoch_ended, self.absence) = (Some(coming), false, None);
        if matches!(self.phase, VolumePhase::Absent | VolumePhase::Detaching) {
            let waits = format!("the attach under grant {coming} waits for its turn");
            (self.phase, self.unready) =
                (VolumePhase::Connecting, Some(clause::failed(clause::CONNECT, waits)));
        }
    }
}

/// How far a volume has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumePhase {
    /// The kernel has no controller of the volume.
    Absent,
    /// It has controllers or is making them, and the predicate does not hold yet.
    Connecting,
    /// The device can be used.
    Ready,
    /// The device can be used, over fewer paths than were granted.
    Degraded,
    /// It was ready, but has no live path any more, or its device is not the same.
    Lost,
    /// Its controllers are being deleted.
    Detaching,
}

impl VolumePhase {
    /// Every phase, in the order of a volume's life.
    pub const ALL: [Self; 6] =
        [Self::Absent, Self::Connecting, Self::Ready, Self::Degraded, Self::Lost, Self::Detaching];

    /// The phase in lower case, as logs and metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Connecting => "connecting",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Lost => "lost",
            Self::Detaching => "detaching",
        }
    }
}

/// What a namespace reports of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownIdentity {
    /// The UUID; `None` where the target gives none.
    pub uuid: Option<NamespaceUuid>,
    /// The NGUID; `None` where the target gives none.
    pub nguid: Option<Nguid>,
    /// Capacity in bytes, by sysfs.
    pub size_bytes: u64,
    /// Size of its logical blocks in bytes; `None` where it could not be read.
    pub block_size_bytes: Option<u32>,
    /// Whether the kernel refuses writes to it.
    pub read_only: bool,
}

/// One controller of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// The portal that it is connected to, as `plan::portal_text` gives it.
    pub portal: String,
    /// The controller's kernel name, such as `nvme3`.
    pub controller: String,
    /// The controller's state, as the kernel names it.
    pub state: String,
    /// The ANA state of the namespace over it; `None` where there is none.
    pub ana_state: Option<String>,
}

impl Path {
    /// Whether it carries I/O: the controller is live.
    pub fn is_live(&self) -> bool {
        self.state == "live"
    }
}

/// A target path at which the volume is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staging {
    /// The target path, in this agent's mount namespace.
    pub path: String,
    /// The device that is mounted there, as text for a person.
    pub device: String,
    /// Whether it is the volume's own device.
    pub same: bool,
}

/// Proof that the kernel has no controller of the subsystem any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absence {
    /// Controllers that were deleted since the grant began.
    pub deleted: Vec<Deletion>,
    /// Where the time of the detach went; `None` where nothing was detached.
    pub times: Option<DetachTimes>,
}

/// Where the time of a detach went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetachTimes {
    /// Search for users of the device.
    pub checks: Duration,
    /// Flush of the device.
    pub flush: Duration,
    /// Deletion of controllers, until the kernel showed none.
    pub delete: Duration,
}
