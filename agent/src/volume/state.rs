//! The state of a volume on this node, as it is reported.
//!
//! Owns: the types. What a state follows from is in `judge.rs`.

use std::time::Duration;

use cleat_host::{NamespaceUuid, Nguid};

use crate::ledger::Deletion;
use crate::name::{Epoch, VolumeId};
use crate::volume::clause::FailedClause;

/// The state of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeState {
    /// Which volume.
    pub volume: VolumeId,
    /// The highest epoch that this node has seen for the volume, if any.
    pub epoch: Option<Epoch>,
    /// Whether that grant has ended.
    pub epoch_ended: bool,
    /// How far the volume has come.
    pub phase: Phase,
    /// What the namespace says of itself, where there is one.
    pub identity: Option<ShownIdentity>,
    /// Its controllers.
    pub paths: Vec<Path>,
    /// The clause of the predicate that fails.
    pub unready: Option<FailedClause>,
    /// Who has the device open, where that was looked for.
    pub openers: Vec<String>,
    /// The name of its device; `None` where it has none.
    pub device: Option<String>,
    /// Writes that this device has completed.
    pub writes: u64,
    /// The proof of absence, where the volume is absent and this node has one.
    pub absence: Option<Absence>,
    /// Where the volume is published, and which device is there.
    pub staging: Vec<Staging>,
}

/// How far a volume has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The kernel has no controller of the volume.
    Absent,
    /// It has controllers or is making them, and the predicate does not hold yet.
    Connecting,
    /// The device can be used.
    Ready,
    /// The device can be used, over fewer paths than were granted.
    Degraded,
    /// It was ready; no live path is left, or the device is not what it was.
    Lost,
    /// Its controllers are being deleted.
    Detaching,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 6] =
        [Self::Absent, Self::Connecting, Self::Ready, Self::Degraded, Self::Lost, Self::Detaching];

    /// The phase as logs and metrics say it.
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

/// What a namespace says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownIdentity {
    /// Its UUID.
    pub uuid: Option<NamespaceUuid>,
    /// Its NGUID.
    pub nguid: Option<Nguid>,
    /// Its size.
    pub size_bytes: u64,
    /// The size of its logical blocks, where it is known.
    pub block_size_bytes: Option<u32>,
    /// Whether it can only be read.
    pub read_only: bool,
}

/// One controller of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// The portal that it is connected to, as the kernel says it.
    pub portal: String,
    /// The controller's name.
    pub controller: String,
    /// The controller's state, as the kernel says it.
    pub state: String,
    /// The ANA state of the namespace over it, where there is one.
    pub ana_state: Option<String>,
}

impl Path {
    /// Whether it carries I/O.
    pub fn is_live(&self) -> bool {
        self.state == "live"
    }
}

/// A place where the volume is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staging {
    /// The place.
    pub path: String,
    /// The device that is there.
    pub device: String,
    /// Whether it is the volume's own device.
    pub same: bool,
}

/// No controller of the subsystem is left in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absence {
    /// What was deleted since the grant began.
    pub deleted: Vec<Deletion>,
    /// Where the time of the detach went; `None` where nothing was detached.
    pub times: Option<DetachTimes>,
}

/// Where the time of a detach went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetachTimes {
    /// Looking for users.
    pub checks: Duration,
    /// Flushing the device.
    pub flush: Duration,
    /// Deleting controllers until the kernel showed none.
    pub delete: Duration,
}
