//! Has an agent look, once a VM has moved to its node, which device the VM's processes hold.
//!
//! In come the switchover and the pod that KubeVirt reports for the target; out goes one Verify for each pod and session. What
//! always holds: nothing follows from the answer here. What the agent finds stands in its report of the volume, as drift for
//! people; an agent that does not know of pods finds nothing.

use super::Transition;
use crate::{
    Attachment, Directive, Effect, MigrationStep, NodeId, Phase, SessionId, VmMigration, VolumeId,
    VolumeRecord,
};

/// For which pod an agent was last asked, and on which session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Verified {
    session: SessionId,
    pod: String,
}

impl VolumeRecord {
    /// Where the VM has moved to, if it has, and what KubeVirt has reported of it.
    fn moved_to(&self) -> Option<(&Attachment, &VmMigration)> {
        let migration = self.migration.as_ref()?;
        let vm = migration.vm.as_deref()?;
        let has_moved = vm.has_switched() || migration.took(MigrationStep::Switchover);
        let target = self.attachment(&migration.target)?;
        let is_its = target.phase == Phase::Ready && target.epoch >= migration.target_epoch;
        (has_moved && is_its).then_some((target, vm))
    }
}

impl Transition<'_> {
    /// Has the target looked at, if that was not done. Says whether it was asked.
    pub(super) fn drive_verify(&mut self, volume: &VolumeId) -> bool {
        let Some((target, vm)) = self.core.volumes.get(volume).and_then(VolumeRecord::moved_to) else {
            return false;
        };
        let Some(pod) = vm.target_pod.clone() else {
            return false;
        };
        let (node, epoch) = (target.node.clone(), target.epoch);
        let Some(session) = self.core.nodes.get(&node).and_then(|n| n.ready_session()).cloned() else {
            return false;
        };
        let verified = Verified { session: session.clone(), pod: pod.clone() };
        if target.verified.as_ref() == Some(&verified) {
            return false;
        }
        let others = self.others_of(&vm.vm.uid, &node, volume);
        let operation = self.next_operation();
        if let Some(a) = self.attachment_mut(volume, &node) {
            a.verified = Some(verified);
        }
        let directive = Directive::Verify { volume: volume.clone(), epoch, pods: vec![pod], others };
        self.effects.push(Effect::Direct { node, session, operation, directive });
        true
    }

    /// The other volumes of a VM that a node has.
    fn others_of(&self, vm: &str, node: &NodeId, volume: &VolumeId) -> Vec<VolumeId> {
        let is_its = |record: &&VolumeRecord| {
            let seen = record.migration.as_ref().and_then(|migration| migration.vm.as_ref());
            record.spec.id != *volume && seen.is_some_and(|seen| seen.vm.uid == vm)
        };
        self.core.volumes_of(node).filter(is_its).map(|record| record.spec.id.clone()).collect()
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
