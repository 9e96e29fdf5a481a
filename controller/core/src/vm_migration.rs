//! What KubeVirt reports of a VM's live migration: which of two nodes the VM leaves, and how that goes for the VM.
//!
//! In comes what the shell has joined by UID; out go roles, results and what people are shown. What always holds: nothing
//! here says who can write. A report may be late, doubled or false, and then a record is at most wrong for people.

use serde::{Deserialize, Serialize};

use crate::{MigrationUid, NodeId, UnixMillis};

/// How far KubeVirt has come with a migration, in the order in which it goes on: it never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum VmStage {
    /// The target is being made ready; the VM runs at the source.
    Preparing,
    /// The VM's memory is on its way; which of the two runs it is not known.
    Running,
    /// The VM runs at the target.
    Completed,
    /// It has failed; the VM runs at the source, if it runs.
    Failed,
    /// Somebody has called it off; the VM runs at the source.
    Aborted,
}

impl VmStage {
    /// The name by which people know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }

    /// KubeVirt is done with it.
    #[must_use]
    pub fn is_final(self) -> bool {
        self >= Self::Completed
    }
}

/// Which VM it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// Its UID: a VM of the same name that is made later has another one.
    pub uid: String,
}

/// One live migration of a VM, as KubeVirt reports it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmMigration {
    /// Which migration it is.
    pub uid: MigrationUid,
    /// The migration object's name, in the VM's namespace.
    pub name: String,
    /// The VM.
    pub vm: VmRef,
    /// Where the VM ran when it began.
    pub source: NodeId,
    /// Where it is to run, once that is known.
    pub target: Option<NodeId>,
    /// How far it has come.
    pub stage: VmStage,
    /// When the VM was found to run at the target, by KubeVirt's clock. For people.
    #[serde(default)]
    pub switched_at: Option<UnixMillis>,
    /// The UID of the pod that runs the VM at the target, or is to run it, while that is known. Not kept: it is reported again.
    #[serde(skip)]
    pub target_pod: Option<String>,
}

impl VmMigration {
    /// The longest text that is kept: no name in Kubernetes is longer.
    const LONGEST: usize = 253;

    /// What is kept of it is bounded.
    pub(crate) fn is_bounded(&self) -> bool {
        let texts = [&self.name, &self.vm.namespace, &self.vm.name, &self.vm.uid];
        texts.into_iter().chain(&self.target_pod).all(|text| text.len() <= Self::LONGEST)
    }

    /// Whether the VM goes this way.
    pub(crate) fn goes(&self, source: &NodeId, target: &NodeId) -> bool {
        self.source == *source && self.target.as_ref() == Some(target)
    }

    /// Takes in what a later report of the same migration says more; one of an earlier stage says nothing. Says whether
    /// anything is new.
    pub(crate) fn advance(&mut self, later: &Self) -> bool {
        if later.stage < self.stage {
            return false;
        }
        if later.target_pod.is_some() {
            self.target_pod.clone_from(&later.target_pod);
        }
        let switched_at = self.switched_at.or(later.switched_at);
        let new = (later.stage, switched_at) != (self.stage, self.switched_at);
        (self.stage, self.switched_at) = (later.stage, switched_at);
        new
    }

    /// The VM was seen to run at the target.
    pub(crate) fn has_switched(&self) -> bool {
        self.stage == VmStage::Completed || self.switched_at.is_some()
    }
}
