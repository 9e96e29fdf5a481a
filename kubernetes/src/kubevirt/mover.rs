//! Who has a volume, and how far its migration is, in KubeVirt's words made ours.

use super::objects::{MigrationStateSeen, VmMigrationSeen};

/// Who has a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoverSeen {
    /// No VM that is known.
    Nobody,
    /// A VM.
    Vm {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
        /// Its newest migration; it stays when it is over.
        migration: Option<Box<MoveSeen>>,
    },
    /// What the objects say cannot be.
    Contradiction {
        /// What is wrong, for people.
        why: String,
    },
}

/// A VM's migration from one node to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveSeen {
    /// The UID of its object.
    pub uid: String,
    /// The name of its object, while that is known.
    pub name: Option<String>,
    /// From where.
    pub source: String,
    /// To where, once the target pod has a node.
    pub target: Option<String>,
    /// How far it is.
    pub stage: MoveStage,
    /// When the VM was seen to run at the target.
    pub switched_ms: Option<u64>,
    /// The UID of the pod that runs the VM at the source, while that is known.
    pub source_launcher: Option<String>,
    /// The same at the target.
    pub target_launcher: Option<String>,
}

/// How far a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MoveStage {
    /// The target is being made ready.
    Preparing,
    /// The VM's memory is being copied, or the VM runs at the target and the end is not said yet.
    Running,
    /// The VM is at the target.
    Completed,
    /// It has failed.
    Failed,
    /// It was aborted, as somebody has asked.
    Aborted,
}

impl MoveStage {
    /// It will not go on.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Aborted)
    }
}

/// How far a migration is, by the VM's status, where that speaks of it, and by its own object. A failed one is `completed` as
/// well, and that it has an end's time says nothing: KubeVirt sets it before it knows how it ended, and has lost it at times.
/// Nor does an abort that has succeeded say that somebody wanted it, since KubeVirt aborts what does not get on; and where one
/// was wanted, the handler that sees its end first may not say what became of it.
pub(super) fn stage(state: Option<&MigrationStateSeen>, object: Option<&VmMigrationSeen>) -> MoveStage {
    let phase = object.map_or("", |object| object.phase.as_str());
    let said = |is: fn(&MigrationStateSeen) -> bool| state.is_some_and(is);
    let wanted = said(|state| state.abort_requested) || object.is_some_and(|object| object.abort_requested);
    if said(|state| state.failed) {
        let has_not_come = said(|state| state.abort_status.as_deref() == Some("Failed"));
        if wanted && !has_not_come { MoveStage::Aborted } else { MoveStage::Failed }
    } else if said(|state| state.completed) || phase == "Succeeded" {
        MoveStage::Completed
    } else if phase == "Failed" {
        if wanted { MoveStage::Aborted } else { MoveStage::Failed }
    } else if phase == "Running" || said(|state| state.started_ms.is_some() || state.ready_ms.is_some()) {
        MoveStage::Running
    } else {
        MoveStage::Preparing
    }
}
