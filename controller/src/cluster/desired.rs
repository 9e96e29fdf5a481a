//! VolumeAttachments and PersistentVolumes, as the core takes them in at a start.

use std::collections::BTreeSet;

use cleat_core::{Access, Desired, Epoch, NodeId, UnixMillis, VolumeId};
use cleat_kubernetes::attachments::{AllAttachments, PersistentVolumeSeen, VolumeAttachmentSeen};

use crate::csi::{EPOCH_KEY, VolumeDemands};

/// Who is to have what.
pub(crate) struct AllDesired {
    /// Each volume on each node.
    pub(crate) desired: Vec<Desired>,
    /// Nodes that are to have a volume which nobody can name.
    pub(crate) unclear: BTreeSet<NodeId>,
    /// The highest term under which any of it was answered.
    pub(crate) term: u64,
}

/// As VolumeAttachments say it.
pub(crate) fn desired(all: &AllAttachments) -> AllDesired {
    let term = all.attachments.iter().filter_map(epoch).map(|epoch| epoch.term).max().unwrap_or(0);
    let mut found = AllDesired { desired: Vec::new(), unclear: BTreeSet::new(), term };
    for seen in &all.attachments {
        let (handle, pv) = all.volume_of(seen);
        let (volume, node) = (handle.map(VolumeId::new), NodeId::new(&seen.node));
        match (volume, node) {
            (Some(Ok(volume)), Ok(node)) => found.desired.push(one(volume, node, seen, pv)),
            (None, Ok(node)) => {
                tracing::error!(
                    attachment = seen.name,
                    pv = seen.pv,
                    node = seen.node,
                    "cannot see which volume this VolumeAttachment is about: its PersistentVolume is not there, and no answer \
                     names it; nobody is let in to a volume without a record until the agent of its node has reported"
                );
                found.unclear.insert(node);
            }
            (Some(Err(_)), _) | (_, Err(_)) => tracing::error!(
                attachment = seen.name,
                volume = handle,
                node = seen.node,
                "cannot use this VolumeAttachment: Cleat gives no volume or node such a name; delete it"
            ),
        }
    }
    found
}

fn epoch(seen: &VolumeAttachmentSeen) -> Option<Epoch> {
    seen.metadata.get(EPOCH_KEY)?.parse().ok()
}

fn one(
    volume: VolumeId,
    node: NodeId,
    seen: &VolumeAttachmentSeen,
    pv: Option<&PersistentVolumeSeen>,
) -> Desired {
    let demands = VolumeDemands::presumed(pv.map(|pv| &pv.attributes));
    Desired {
        volume,
        node,
        access: if pv.is_some_and(|pv| pv.shared_block) { Access::RwxBlock } else { Access::Rwo },
        min_fence: demands.min_fence(),
        migration_timeout_ms: demands.migration_timeout_ms(),
        require_migration: demands.require_migration,
        since: UnixMillis(seen.created_ms),
        attached: seen.attached,
        epoch: epoch(seen),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use cleat_core::MinFence;

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
                seen("four", "gone", "node-d", &[(EPOCH_KEY, "15.1")]),
                seen("five", "gone", "node-e", &[(EPOCH_KEY, "3.1"), (VOLUME_KEY, "no name/")]),
            ],
            volumes: BTreeMap::from([("pv-1".into(), shared)]),
        };
        let AllDesired { desired: found, unclear, term } = desired(&all);
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
        let unclear: Vec<_> = unclear.iter().map(NodeId::as_str).collect();
        assert_eq!(unclear, ["node-c", "node-d"], "answered or not");
        assert_eq!(term, 15, "the next term is above each that was answered");
    }
}
