//! The record of one live migration: a second node of an RWX block volume, from its grant until one side is gone.

use serde::{Deserialize, Serialize};

use crate::{Epoch, NodeId, UnixMillis};

/// A moment of a migration, in the order in which they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStep {
    /// The target was granted its epoch.
    Granted,
    /// The RDS allows the target and its agent was sent an Attach.
    TargetConnecting,
    /// The target has proven that it can use the device, and that it is the same device as the source's.
    TargetReady,
    /// A detach of one side began.
    Releasing,
    /// That side's agent has none of it left.
    Released,
    /// It is proven that that side cannot write.
    Evidence,
    /// The volume has one node again.
    Done,
}

impl MigrationStep {
    /// The name by which people and metrics know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::TargetConnecting => "target_connecting",
            Self::TargetReady => "target_ready",
            Self::Releasing => "releasing",
            Self::Released => "released",
            Self::Evidence => "evidence",
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
    /// The source is gone; the target holds the volume.
    Completed,
    /// The target is gone; the source holds the volume.
    RolledBack,
    /// The target never became ready.
    Failed,
}

impl MigrationResult {
    /// The name by which people and metrics know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
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
}

/// One live migration of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Migration {
    /// Where the VM ran when it began.
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
}

impl Migration {
    pub(crate) fn begin(source: (NodeId, Epoch), target: (NodeId, Epoch), now: UnixMillis) -> Self {
        Self {
            source: source.0,
            source_epoch: source.1,
            target: target.0,
            target_epoch: target.1,
            result: MigrationResult::Running,
            steps: vec![StepTaken { step: MigrationStep::Granted, at: now }],
        }
    }

    /// Whether it is under way and this grant is a side of it. A side whose epoch was raised on the way still is.
    pub(crate) fn concerns(&self, node: &NodeId, epoch: Epoch) -> bool {
        self.result == MigrationResult::Running
            && ((*node == self.source && epoch >= self.source_epoch)
                || (*node == self.target && epoch >= self.target_epoch))
    }

    /// Records a step that has not been recorded yet; says whether it was new.
    pub(crate) fn record(&mut self, step: MigrationStep, now: UnixMillis) -> bool {
        if self.result != MigrationResult::Running || self.steps.iter().any(|taken| taken.step == step) {
            return false;
        }
        self.steps.push(StepTaken { step, at: now });
        true
    }

    /// Ends it, because `gone` is proven to be unable to write.
    pub(crate) fn end(&mut self, gone: &NodeId, now: UnixMillis) {
        let ready = self.steps.iter().any(|taken| taken.step == MigrationStep::TargetReady);
        let result = if *gone == self.source {
            MigrationResult::Completed
        } else if ready {
            MigrationResult::RolledBack
        } else {
            MigrationResult::Failed
        };
        self.record(MigrationStep::Done, now);
        self.result = result;
    }
}
