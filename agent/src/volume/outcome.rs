//! What becomes of a directive.
//!
//! Owns: the outcomes and what each of them proves. Goes out: to whoever delivers results ([`Results`]).

use std::time::Duration;

use crate::ledger::rules::Stale;
use crate::name::{Epoch, OperationId, VolumeId};
use crate::volume::clause::FailedClause;
use crate::volume::directive::Directive;
use crate::volume::state::{Absence, VolumeState};

/// The result of a directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectiveResult {
    /// Of which operation.
    pub operation: OperationId,
    /// About which volume.
    pub volume: VolumeId,
    /// Under which grant.
    pub epoch: Epoch,
    /// What became of it.
    pub outcome: Outcome,
}

impl DirectiveResult {
    /// The result of a directive.
    pub fn of(directive: &Directive, outcome: Outcome) -> Self {
        let Directive { operation, volume, epoch, .. } = directive;
        Self { operation: *operation, volume: volume.clone(), epoch: *epoch, outcome }
    }
}

/// Where results go.
pub trait Results: std::fmt::Debug + Send + Sync + 'static {
    /// Takes a result; it replaces an earlier one of the same operation. Never waits.
    fn deliver(&self, result: DirectiveResult);
}

/// What became of a directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The device has been proven to be usable.
    Ready(Ready),
    /// No controller of the subsystem is left.
    Absent(Absence),
    /// The device is in use; nothing was touched.
    Busy(Busy),
    /// It failed.
    Failed(Failure),
    /// Its epoch has ended or been superseded.
    StaleEpoch(Stale),
    /// Its deadline has passed and it goes on; another result follows.
    Pending(Pending),
    /// No victim is registered any more.
    Preempted(Preempted),
    /// Every controller has the new secret, and later ones will use it.
    Rekeyed,
}

impl Outcome {
    /// A failure that says nothing of what is left.
    pub(super) fn failed(unready: FailedClause) -> Self {
        Self::Failed(Failure { unready, nothing_left: false })
    }

    /// The outcome as logs and metrics say it.
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
    /// From the directive's receipt until all controllers that were made were live.
    pub connect: Duration,
    /// Until the device node was there.
    pub device: Duration,
    /// Until the predicate held.
    pub checks: Duration,
}

/// The device is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    /// By whom, each in words.
    pub holders: Vec<String>,
}

/// A directive failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What failed.
    pub unready: FailedClause,
    /// Whether it was proven that no controller of the subsystem was left behind.
    pub nothing_left: bool,
}

/// A directive goes on past its deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// What it waits for, in words.
    pub message: String,
    /// For how long it has been going on.
    pub age: Duration,
}

/// What a reservation report says that was read after the last preemption had been answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preempted {
    /// The keys of all that are registered.
    pub left_keys: Vec<u64>,
    /// The victims' keys that were registered, and whose preemption the target has answered with success.
    pub aborted_keys: Vec<u64>,
}
