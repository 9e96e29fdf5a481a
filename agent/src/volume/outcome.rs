//! How a directive ends.
//!
//! Owns: the outcomes and what each of them proves. Goes out: to whatever delivers results ([`Results`]).

use std::time::Duration;

use crate::ledger::rules::Stale;
use crate::name::{Epoch, OperationId, VolumeId};
use crate::volume::clause::FailedClause;
use crate::volume::directive::Directive;
use crate::volume::state::{Absence, VolumeState};

/// The result of a directive, as it is sent to the controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectiveResult {
    /// The operation id of the directive.
    pub operation: OperationId,
    /// The volume that it was about.
    pub volume: VolumeId,
    /// The epoch of the grant that it was about.
    pub epoch: Epoch,
    /// How it ended, or that it goes on.
    pub outcome: Outcome,
}

impl DirectiveResult {
    /// Makes the result of a directive and its outcome.
    pub fn of(directive: &Directive, outcome: Outcome) -> Self {
        let Directive { operation, volume, epoch, .. } = directive;
        Self { operation: *operation, volume: volume.clone(), epoch: *epoch, outcome }
    }
}

/// Where results go: the session's outbox.
pub trait Results: std::fmt::Debug + Send + Sync + 'static {
    /// Takes a result, which replaces an earlier one of the same operation. Never waits.
    fn deliver(&self, result: DirectiveResult);
}

/// How a directive ended, or that it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The device has been proven to be usable.
    Ready(Ready),
    /// No controller of the subsystem is left.
    Absent(Absence),
    /// The device is in use; nothing was touched.
    Busy(Busy),
    /// It could not be done; the clause says why.
    Failed(DirectiveFailure),
    /// Its epoch has ended or been superseded.
    StaleEpoch(Stale),
    /// Its deadline has passed and it goes on; another result follows.
    Pending(StillRunning),
    /// No victim is registered any more.
    Preempted(Preempted),
    /// Every controller has the new secret, and later ones will use it.
    Rekeyed,
}

impl Outcome {
    /// A failure without a statement about what is left.
    pub(super) fn failed(unready: FailedClause) -> Self {
        Self::Failed(DirectiveFailure { unready, nothing_left: false })
    }

    /// The outcome in lower case, as logs and metrics have it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Ready(_) => "ready",
            Self::Absent(_) => "absent",
            Self::Busy(_) => "busy",
            Self::Failed(_) => "failed",
            Self::StaleEpoch(_) => "stale_epoch",
            Self::Pending(_) => "pending",
            Self::Preempted(_) => "preempted",
            Self::Rekeyed => "rekeyed",
        }
    }
}

/// The device can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The state in which it was proven.
    pub state: Box<VolumeState>,
    /// Where the time of the attach went; `None` where nothing was attached.
    pub times: Option<AttachTimes>,
}

/// Where the time of an attach went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachTimes {
    /// From the directive's receipt until all controllers that it made were live.
    pub connect: Duration,
    /// From then until the device node was there.
    pub device: Duration,
    /// From then until the predicate held.
    pub checks: Duration,
}

/// Somebody uses the device; nothing was touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    /// Its users, each as text for a person.
    pub holders: Vec<String>,
}

/// Why a directive could not be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectiveFailure {
    /// The clause that does not hold, and what was seen.
    pub unready: FailedClause,
    /// Whether it was proven that no controller of the subsystem was left behind.
    pub nothing_left: bool,
}

/// A directive goes on past its deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StillRunning {
    /// What it waits for, as text for a person.
    pub message: String,
    /// For how long it has been going on.
    pub age: Duration,
}

/// What a reservation report says that was read after the last preemption was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preempted {
    /// All keys that are registered.
    pub left_keys: Vec<u64>,
    /// Victims' keys that were registered and whose preemption the target answered with success.
    pub aborted_keys: Vec<u64>,
}
