//! Who may have a volume, given who has it or may have it; and what a grant says.

use crate::{Access, Attachment, Difference, Grant, NodeId, Refusal, VolumeRecord, VolumeSpec};

/// What admission says to a node that wants a volume.
pub(super) enum Admission {
    Admit,
    /// Somebody is being detached; it is worth waiting for.
    WaitForDetach,
    Refuse(Refusal),
}

/// Whether one more node may have the volume, given those who have it or may have it.
pub(super) fn admission(record: Option<&VolumeRecord>, node: &NodeId, spec: &VolumeSpec) -> Admission {
    if let Some(entry) = record.and_then(|r| r.fenced.iter().find(|f| f.blocks())) {
        let (volume, node) = (spec.id.clone(), entry.node.clone());
        return Admission::Refuse(Refusal::ExportOff { volume, node, since: entry.since });
    }
    // For whoever is let in, the export is on: the node that is being fenced by that alone would connect again.
    if record.is_some_and(|r| r.others(node).any(|a| a.is_fenced_by_export())) {
        return Admission::WaitForDetach;
    }
    let others: Vec<&Attachment> =
        record.map(|r| r.attachments.iter().filter(|a| a.node != *node).collect()).unwrap_or_default();
    // What the holders were granted under counts as long as there are any.
    let access = match record {
        Some(record) if !others.is_empty() && record.spec.access == Access::Rwo => Access::Rwo,
        _ => spec.access,
    };
    if others.len() < access.limit() {
        return Admission::Admit;
    }
    if others.iter().filter(|a| !a.phase.is_draining()).count() < access.limit() {
        return Admission::WaitForDetach;
    }
    let nodes: Vec<NodeId> = others.iter().map(|a| a.node.clone()).collect();
    Admission::Refuse(match (access, nodes.first()) {
        (Access::Rwo, Some(node)) => {
            Refusal::AttachedElsewhere { volume: spec.id.clone(), node: node.clone() }
        }
        _ => Refusal::MigrationLimit { volume: spec.id.clone(), nodes },
    })
}

/// Which argument of a repeated Publish is not that of the attachment.
pub(super) fn difference(
    record: &VolumeRecord,
    a: &Attachment,
    spec: &VolumeSpec,
    read_only: bool,
) -> Option<Difference> {
    if a.read_only != read_only {
        return Some(Difference::ReadOnly { is: a.read_only, asked: read_only });
    }
    if record.spec.access != spec.access {
        return Some(Difference::Access { is: record.spec.access, asked: spec.access });
    }
    None
}

/// What the holder of an attachment is to know of it.
pub(super) fn grant_of(record: &VolumeRecord, a: &Attachment, reserve: bool) -> Grant {
    Grant {
        epoch: a.epoch,
        spec: record.spec.clone(),
        read_only: a.read_only,
        identity: record.identity.clone(),
        secret: a.secret,
        reserve,
    }
}
