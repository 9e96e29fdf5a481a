//! The record of one live migration: a second node of an RWX block volume, from its grant until one side is gone.
//!
//! In come the moments of both grants, and what KubeVirt reports of the VM ([`VmMigration`]); out go steps with their
//! times, a result, and which side has gone. What always holds: a record is over once one side is proven to be gone, or
//! another migration has taken its place, and then its result is counted once, or it was when it ran out of time; a
//! record that KubeVirt has said nothing of is never overdue; and nothing of it says who can write.

use serde::{Deserialize, Serialize};

use crate::{Epoch, NodeId, UnixMillis, VmMigration, VmRef};

/// A moment of a migration, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStep {
    /// The target was granted its epoch.
    Granted,
    /// The RDS allows the target and its agent was sent an Attach.
    TargetConnecting,
    /// The target's kernel has a live path.
    TargetConnected,
    /// The target has proven that it can use the device, and that it is the same device as the source's.
    TargetReady,
    /// The VM was seen to run at the target.
    Switchover,
    /// A detach of one side began.
    Releasing,
    /// That side's agent has none of it left.
    Released,
    /// It is proven that that side cannot write.
    Evidence,
    /// Both sides had it for longer than a migration may take.
    TimedOut,
    /// The volume has one node again, or another migration has begun.
    Done,
}

impl MigrationStep {
    /// The name by which people and metrics know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::TargetConnecting => "target_connecting",
            Self::TargetConnected => "target_connected",
            Self::TargetReady => "target_ready",
            Self::Switchover => "switchover",
            Self::Releasing => "releasing",
            Self::Released => "released",
            Self::Evidence => "evidence",
            Self::TimedOut => "timed_out",
            Self::Done => "done",
        }
    }
}

/// How it stands, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum MigrationResult {
    /// Both nodes are attached, or one is on its way.
    Running,
    /// The source is gone; the target holds the volume, and the VM.
    Completed,
    /// The target is gone; the source holds the volume, and the VM never left it.
    RolledBack,
    /// The target never became ready, or the side that the VM was on has gone.
    Failed,
    /// Both sides had it for longer than a migration may take. Final: which side goes in the end does not change it.
    TimedOut,
    /// One side is gone, and nobody has said which of them the VM was to leave.
    Unattributed,
}

impl MigrationResult {
    /// All that a migration can end as, or have in the place of an end.
    pub const ENDS: [Self; 5] =
        [Self::Completed, Self::RolledBack, Self::Failed, Self::TimedOut, Self::Unattributed];

    /// The name by which people and metrics know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Unattributed => "unattributed",
        }
    }
}

/// One of the two nodes of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Where the VM ran when it began.
    Source,
    /// Where it is to run.
    Target,
}

impl Side {
    /// The name by which people know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

/// By what it was seen that the VM had moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SwitchoverBy {
    /// The target's first write.
    Counters,
    /// The device was let go of at the source, and is open at the target.
    Openers,
    /// KubeVirt has reported it.
    KubeVirt,
}

impl SwitchoverBy {
    /// The name by which people know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counters => "counters",
            Self::Openers => "openers",
            Self::KubeVirt => "kubevirt",
        }
    }
}

/// When a migration came to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct StepTaken {
    /// The step that was taken.
    pub step: MigrationStep,
    /// When.
    pub at: UnixMillis,
    /// Of a switchover: by what it was seen.
    // Text in the schema, as of the side that has gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub by: Option<SwitchoverBy>,
}

/// One live migration of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Migration {
    /// Where the VM ran when it began: as KubeVirt says; where it has said nothing, the node that had the volume first.
    pub source: NodeId,
    /// The source's grant.
    pub source_epoch: Epoch,
    /// Where it is to run.
    pub target: NodeId,
    /// The target's grant.
    pub target_epoch: Epoch,
    /// How it stands.
    pub result: MigrationResult,
    /// What happened when; each step at most once, in order.
    pub steps: Vec<StepTaken>,
    /// From when on its time counts.
    #[serde(default)]
    pub granted_at: UnixMillis,
    /// How long it may take, in milliseconds.
    #[serde(default)]
    pub timeout_ms: u64,
    /// The VM's migration, once KubeVirt has reported it.
    #[serde(default)]
    pub vm: Option<Box<VmMigration>>,
    /// The side that has gone.
    // Text in the schema: the API server would have to take nothing for one of the names.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub left: Option<Side>,
}

/// What a report of KubeVirt is to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Nothing that was not known.
    Same,
    /// The record's own migration, of which nothing was known.
    Attributed,
    /// It has gone on.
    Advanced,
    /// The VM goes the other way than was taken for granted. This record ends, and the next one begins.
    Swapped,
    /// Another migration. This record ends if it has not, and the next one begins.
    Successor,
    /// Nothing that is about this record.
    Other,
}

impl Migration {
    pub(crate) fn begin(
        source: (NodeId, Epoch),
        target: (NodeId, Epoch),
        now: UnixMillis,
        timeout_ms: u64,
    ) -> Self {
        Self {
            source: source.0,
            source_epoch: source.1,
            target: target.0,
            target_epoch: target.1,
            result: MigrationResult::Running,
            steps: vec![StepTaken { step: MigrationStep::Granted, at: now, by: None }],
            granted_at: now,
            timeout_ms,
            vm: None,
            left: None,
        }
    }

    /// A start begins with it. The clock may have been set back since, and records of before have no time-out.
    pub(crate) fn begin_again(&mut self, now: UnixMillis, timeout_ms: u64) {
        if self.timeout_ms == 0 {
            self.granted_at = self.steps.first().map_or(now, |taken| taken.at);
            self.timeout_ms = timeout_ms;
        }
        self.granted_at = self.granted_at.min(now);
    }

    /// What was kept of `before` is this node's.
    pub(crate) fn rename(&mut self, before: &NodeId, node: &NodeId) {
        for side in [&mut self.source, &mut self.target] {
            if side == before {
                side.clone_from(node);
            }
        }
    }

    /// Whether it is under way and this grant is a side of it. A side whose epoch was raised on the way still is.
    pub(crate) fn concerns(&self, node: &NodeId, epoch: Epoch) -> bool {
        !self.is_over()
            && ((*node == self.source && epoch >= self.source_epoch)
                || (*node == self.target && epoch >= self.target_epoch))
    }

    /// Records a step that has not been recorded yet; says whether it was new.
    pub(crate) fn record(&mut self, step: MigrationStep, now: UnixMillis) -> bool {
        // What is only seen, and after the fact, comes too late to be put in order.
        let late = match step {
            MigrationStep::TargetConnected => self.took(MigrationStep::TargetReady),
            MigrationStep::Switchover => {
                !self.took(MigrationStep::TargetReady) || self.took(MigrationStep::Releasing)
            }
            _ => false,
        };
        if late || self.is_over() || self.took(step) {
            return false;
        }
        self.steps.push(StepTaken { step, at: now, by: None });
        true
    }

    /// Records that the VM has moved, if that was not known; says whether it was new. It was then, or, where that is not
    /// in order, right after the step before.
    pub(crate) fn switch_over(&mut self, then: UnixMillis, by: SwitchoverBy) -> bool {
        let at = self.steps.last().map_or(then, |last| last.at.max(then));
        let new = self.record(MigrationStep::Switchover, at);
        if let Some(taken) = self.steps.last_mut().filter(|_| new) {
            taken.by = Some(by);
        }
        new
    }

    pub(crate) fn took(&self, step: MigrationStep) -> bool {
        self.steps.iter().any(|taken| taken.step == step)
    }

    /// Takes in what KubeVirt reports. `Swapped` and `Successor` change nothing here: whoever asks begins the next one.
    pub(crate) fn take(&mut self, seen: &VmMigration, now: UnixMillis) -> Taken {
        let this_way = seen.goes(&self.source, &self.target);
        let other_way = seen.goes(&self.target, &self.source);
        let (over, is_final) = (self.is_over(), seen.stage.is_final());
        let taken = match &mut self.vm {
            Some(known) if known.uid == seen.uid => match this_way {
                true if known.advance(seen) => Taken::Advanced,
                true => Taken::Same,
                false => Taken::Other,
            },
            // One that is over already, and was never heard of, may be long past: it begins nothing.
            _ if over => return if is_final { Taken::Other } else { Taken::Successor },
            // So may one that is over while another one runs: KubeVirt goes back to it where this one was called off early.
            Some(_) if is_final => return Taken::Other,
            Some(_) => return if this_way || other_way { Taken::Successor } else { Taken::Other },
            None if this_way => {
                self.vm = Some(Box::new(seen.clone()));
                Taken::Attributed
            }
            None if other_way && !is_final => return Taken::Swapped,
            None => return Taken::Other,
        };
        let has_switched = self.vm.as_ref().is_some_and(|vm| vm.has_switched());
        let new_step = taken != Taken::Other && has_switched && self.switch_over(now, SwitchoverBy::KubeVirt);
        // Said after the source had gone: where the VM was then.
        let by_the_vm = matches!(self.result, MigrationResult::Completed | MigrationResult::Failed);
        if over && by_the_vm && self.left == Some(Side::Source) {
            self.result = self.result_without(Side::Source);
        }
        if new_step && taken == Taken::Same { Taken::Advanced } else { taken }
    }

    /// When both sides will have had it for too long. One that KubeVirt has said nothing of may be no migration.
    pub(crate) fn due(&self) -> Option<UnixMillis> {
        let running = self.result == MigrationResult::Running && self.vm.is_some();
        running.then(|| self.granted_at.plus(self.timeout_ms))
    }

    /// Ends its time, if that has passed; says whether it did. Nobody is cut by it.
    pub(crate) fn time_out(&mut self, now: UnixMillis) -> bool {
        let timed_out = self.due().is_some_and(|due| now >= due);
        if timed_out {
            self.record(MigrationStep::TimedOut, now);
            self.result = MigrationResult::TimedOut;
        }
        timed_out
    }

    /// Ends it, because `gone` is proven to be unable to write.
    pub(crate) fn end(&mut self, gone: &NodeId, now: UnixMillis) {
        if self.is_over() {
            return;
        }
        let left = if *gone == self.source { Side::Source } else { Side::Target };
        self.left = Some(left);
        self.end_as(self.result_without(left), now);
    }

    /// Ends it, because another migration of the same two nodes has begun. Nobody is gone.
    pub(crate) fn give_way(&mut self, next: &VmMigration, now: UnixMillis) {
        if self.is_over() {
            return;
        }
        let result = match &self.vm {
            None => MigrationResult::Unattributed,
            // Where it begins the next time the VM has come to.
            Some(vm) if vm.has_switched() || next.source == self.target => MigrationResult::Completed,
            Some(_) => self.result_without(Side::Target),
        };
        self.end_as(result, now);
    }

    fn end_as(&mut self, result: MigrationResult, now: UnixMillis) {
        self.record(MigrationStep::Done, now);
        if self.result != MigrationResult::TimedOut {
            self.result = result;
        }
    }

    /// As what it ends without this side.
    fn result_without(&self, left: Side) -> MigrationResult {
        let Some(vm) = &self.vm else {
            return MigrationResult::Unattributed;
        };
        let switched = vm.has_switched() || self.took(MigrationStep::Switchover);
        match (left, switched) {
            (Side::Source, true) => MigrationResult::Completed,
            (Side::Target, false) if self.took(MigrationStep::TargetReady) => MigrationResult::RolledBack,
            // The VM was on the side that has gone; or the target never had it.
            (Side::Source, false) | (Side::Target, _) => MigrationResult::Failed,
        }
    }

    /// The side that its VM does not need any more, as long as both have the volume: known once KubeVirt is done with it, or
    /// with it is at the `next` one, for a VM has one at a time. By this alone nobody goes.
    pub(crate) fn leaves(&self, next: Option<&VmMigration>) -> Option<(&NodeId, &VmRef)> {
        let vm = self.vm.as_ref().filter(|_| !self.is_over())?;
        let stays = if vm.stage.is_final() {
            if vm.has_switched() { &self.target } else { &self.source }
        } else {
            let is_next = |n: &&VmMigration| n.vm.uid == vm.vm.uid && n.uid != vm.uid && !n.stage.is_final();
            &next.filter(is_next)?.source
        };
        let goes = [(&self.source, &self.target), (&self.target, &self.source)];
        goes.into_iter().find(|(_, other)| *other == stays).map(|(node, _)| (node, &vm.vm))
    }

    /// One side is gone, or another migration has taken its place.
    #[must_use]
    pub fn is_over(&self) -> bool {
        match self.result {
            MigrationResult::Running => false,
            MigrationResult::TimedOut => self.took(MigrationStep::Done),
            MigrationResult::Completed
            | MigrationResult::RolledBack
            | MigrationResult::Failed
            | MigrationResult::Unattributed => true,
        }
    }

    /// Both sides have had it for too long, and both have it still.
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        self.result == MigrationResult::TimedOut && !self.is_over()
    }
}

#[cfg(test)]
#[path = "migration_tests.rs"]
mod tests;
