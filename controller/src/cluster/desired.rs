//! VolumeAttachments and PersistentVolumes, as the core takes them in at a start.

use cleat_core::{Access, Desired, Epoch, NodeId, UnixMillis, VolumeId};
use cleat_kubernetes::attachments::{AllAttachments, VolumeAttachmentSeen};

use crate::csi::{EPOCH_KEY, VolumeDemands};

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
    let demands = VolumeDemands::presumed(pv.map(|pv| &pv.attributes));
    Some(Desired {
        volume,
        node,
        access: if pv.is_some_and(|pv| pv.shared_block) { Access::RwxBlock } else { Access::Rwo },
        min_fence: demands.min_fence(),
        migration_timeout_ms: demands.migration_timeout_ms(),
        require_migration: demands.require_migration,
        since: UnixMillis(seen.created_ms),
        attached: seen.attached,
        epoch: seen.metadata.get(EPOCH_KEY).and_then(|epoch| epoch.parse::<Epoch>().ok()),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use cleat_core::MinFence;
    use cleat_kubernetes::attachments::PersistentVolumeSeen;

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
            attributes: BTreeMap::from([("cleat.io/migration-timeout-seconds".into(), "120".into())]),
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
        let demanded: Vec<_> =
            found.iter().map(|d| (d.min_fence, d.migration_timeout_ms, d.require_migration)).collect();
        let strongest = (MinFence::Reservation, 300_000, true);
        assert_eq!(demanded, [(MinFence::default(), 120_000, false), strongest], "and the strongest demands");
        assert_eq!(term, 12, "the next term is above each that was answered");
    }
}
