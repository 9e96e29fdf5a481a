//! Whether the device that a node has proven is the volume's: the namespace that was pinned, and what another node that is
//! ready has.
//!
//! In comes what an agent found; out goes what speaks against it, naming the clause. What always holds: nothing is decided
//! by it but whether this node becomes ready. What the other node reports counts for its own grant alone.

use super::Core;
use crate::{Attachment, DeviceIdentity, DeviceShown, NodeId, NodeTrouble, ObservedPhase, Phase, VolumeId};

impl Core {
    /// Why the device on this node cannot be the volume's; `None`: nothing that is known speaks against it.
    pub(super) fn other_device(
        &self,
        volume: &VolumeId,
        node: &NodeId,
        identity: &DeviceIdentity,
        shown: Option<DeviceShown>,
    ) -> Option<NodeTrouble> {
        let record = self.volumes.get(volume)?;
        if let Some(pinned) = record.identity.as_ref().filter(|pinned| !pinned.may_be(identity)) {
            let (found, pinned) = (Box::new(identity.clone()), Box::new(pinned.clone()));
            return Some(NodeTrouble::OtherNamespace { found, pinned });
        }
        let shown = shown?;
        record.others(node).filter(|other| other.phase == Phase::Ready).find_map(|other| {
            let difference = shown.difference(&self.shown_by(volume, other)?)?;
            Some(NodeTrouble::OtherDevice { node: other.node.clone(), difference })
        })
    }

    /// What the device of an attachment is like: as its agent reported last, since somebody may have grown it; else as it was
    /// proven.
    fn shown_by(&self, volume: &VolumeId, a: &Attachment) -> Option<DeviceShown> {
        let reported = self.nodes.get(&a.node).and_then(|node| node.observed.get(volume));
        let usable = |phase| matches!(phase, ObservedPhase::Ready | ObservedPhase::Degraded);
        let reported = reported.filter(|o| o.epoch == Some(a.epoch) && !o.ended && usable(o.phase));
        reported.and_then(|o| o.shown).or(a.shown)
    }
}

#[cfg(test)]
#[path = "same_device_tests.rs"]
mod tests;
