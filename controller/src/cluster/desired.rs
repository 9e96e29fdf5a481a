//! VolumeAttachments and PersistentVolumes, as the core takes them in at a start.

use cleat_core::{Access, Desired, Epoch, MinFence, NodeId, UnixMillis, VolumeId, VolumeSpec};
use cleat_ids::MIN_FENCE_KEY;
use cleat_kubernetes::attachments::{AllAttachments, PersistentVolumeSeen, VolumeAttachmentSeen};

use crate::csi::{EPOCH_KEY, fence_named};

/// Who is to have what, and the highest term under which any of it was answered.
pub(crate) fn desired(all: &AllAttachments) -> (Vec<Desired>, u64) {
    let found: Vec<Desired> = all.attachments.iter().filter_map(|seen| one(all, seen)).collect();
    let term = found.iter().filter_map(|desired| desired.epoch).map(|epoch| epoch.term).max().unwrap_or(0);
    (found, term)
}

fn one(all: &AllAttachments, seen: &VolumeAttachmentSeen) -> Option<Desired> {
    let (handle, pv) = all.volume_of(seen);
    let ids = handle.and_then(|handle| VolumeId::new(handle).ok()).zip(NodeId::new(&seen.node).ok());
    let Some((volume, node)) = ids else {
        tracing::error!(
            attachment = seen.name,
            pv = seen.pv,
            node = seen.node,
            "cannot see which volume this VolumeAttachment is about: its PersistentVolume is not there, and nothing was \
             answered to it; whether its node has that volume is known by the RDS and by its agent alone"
        );
        return None;
    };
    Some(Desired {
        volume,
        node,
        access: if pv.is_some_and(|pv| pv.shared_block) { Access::RwxBlock } else { Access::Rwo },
        min_fence: pv.map_or(MinFence::Reservation, min_fence),
        migration_timeout_ms: VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS,
        require_migration: false,
        since: UnixMillis(seen.created_ms),
        attached: seen.attached,
        epoch: seen.metadata.get(EPOCH_KEY).and_then(|epoch| epoch.parse::<Epoch>().ok()),
    })
}

/// What its owner demands; on any doubt the strongest.
fn min_fence(pv: &PersistentVolumeSeen) -> MinFence {
    let demanded = pv.attributes.get(MIN_FENCE_KEY);
    demanded.map_or(MinFence::default(), |name| fence_named(name).unwrap_or(MinFence::Reservation))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::csi::VOLUME_KEY;

    fn seen(name: &str, pv: &str, node: &str, metadata: &[(&str, &str)]) -> VolumeAttachmentSeen {
        VolumeAttachmentSeen {
            name: name.into(),
            pv: Some(pv.into()),
            volume: metadata
                .iter()
                .find(|(key, _)| *key == VOLUME_KEY)
                .map(|(_, volume)| (*volume).to_owned()),
            node: node.into(),
            created_ms: 7,
            deleting: false,
            attached: !metadata.is_empty(),
            metadata: metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    #[test]
    fn the_access_is_that_of_the_persistent_volume_and_rwo_on_any_doubt() {
        let shared = PersistentVolumeSeen {
            name: "pv-1".into(),
            handle: "vol-1".into(),
            shared_block: true,
            claim: None,
            attributes: BTreeMap::new(),
            says: Default::default(),
        };
        let all = AllAttachments {
            attachments: vec![
                seen("one", "pv-1", "node-a", &[(EPOCH_KEY, "9.2")]),
                seen("two", "gone", "node-b", &[(EPOCH_KEY, "12.1"), (VOLUME_KEY, "vol-2")]),
                seen("three", "gone", "node-c", &[]),
            ],
            volumes: BTreeMap::from([("pv-1".into(), shared)]),
        };
        let (found, term) = desired(&all);
        let short: Vec<_> =
            found.iter().map(|d| (d.volume.as_str(), d.node.as_str(), d.access, d.attached)).collect();
        assert_eq!(
            short,
            [("vol-1", "node-a", Access::RwxBlock, true), ("vol-2", "node-b", Access::Rwo, true)]
        );
        let demanded: Vec<_> = found.iter().map(|d| d.min_fence).collect();
        assert_eq!(demanded, [MinFence::default(), MinFence::Reservation], "and the strongest fence");
        assert_eq!(term, 12, "the next term is above each that was answered");
    }
}
