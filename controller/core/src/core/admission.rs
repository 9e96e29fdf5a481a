//! Who may have a volume, given who has it or may have it; and what a grant says.

use std::num::NonZeroU32;

use crate::{Access, Attachment, Difference, Grant, NodeId, Refusal, VmRef, VolumeRecord, VolumeSpec};

/// What admission says to a node that wants a volume.
pub(super) enum Admission {
    Admit,
    /// Somebody is being detached; it is worth waiting for.
    WaitForDetach,
    /// A VM's migration is over, and the side that it does not need any more is still to be detached. It is worth waiting for.
    WaitForLeaver(Leaver),
    Refuse(Refusal),
}

/// The side of a migration that its VM does not need any more, and that may write all the same.
pub(super) struct Leaver {
    pub(super) node: NodeId,
    pub(super) vm: VmRef,
    pub(super) is_draining: bool,
}

/// Who leaves next: of two nodes that both have the volume, in a migration that KubeVirt is done with. Nobody is let in by
/// this, and nobody has to go by it.
fn leaver(record: &VolumeRecord) -> Option<Leaver> {
    let migration = record.migration.as_ref()?;
    let (node, vm) = migration.leaves(record.reported.as_deref())?;
    let a = record.attachment(node).filter(|a| migration.concerns(node, a.epoch))?;
    Some(Leaver { node: node.clone(), vm: vm.clone(), is_draining: a.phase.is_draining() })
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
    let staying = others.iter().filter(|a| !a.phase.is_draining()).count();
    let leaver = record.filter(|_| access == Access::RwxBlock).and_then(leaver);
    match leaver.filter(|leaver| leaver.node != *node) {
        Some(leaver) if leaver.is_draining && staying < access.limit() => {
            return Admission::WaitForLeaver(leaver);
        }
        _ if staying < access.limit() => return Admission::WaitForDetach,
        Some(leaver) if !leaver.is_draining && staying == access.limit() => {
            return Admission::WaitForLeaver(leaver);
        }
        _ => {}
    }
    let nodes: Vec<NodeId> = others.iter().map(|a| a.node.clone()).collect();
    if let Some(overdue) = record.and_then(|r| r.migration.as_ref()).filter(|m| m.is_overdue()) {
        let (volume, since, timeout_ms) = (spec.id.clone(), overdue.granted_at, overdue.timeout_ms);
        return Admission::Refuse(Refusal::MigrationOverdue { volume, nodes, since, timeout_ms });
    }
    Admission::Refuse(match (access, nodes.first()) {
        (Access::Rwo, Some(node)) => {
            Refusal::AttachedElsewhere { volume: spec.id.clone(), node: node.clone() }
        }
        _ => Refusal::MigrationLimit { volume: spec.id.clone(), nodes },
    })
}

/// Whether a node has room for one more volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Free,
    /// Something is being detached; it is worth waiting for.
    WaitForDetach {
        limit: u32,
    },
    Full {
        limit: u32,
    },
}

/// What takes up room on a node. A ticket takes none from a workload: the scheduler knows nothing of it, and one that is not
/// interruptible would be in the way for as long as it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// For a Publish: what the orchestrator has there.
    Published,
    /// For a ticket.
    All,
}

/// Whether a node may have one more volume, given what counts of all others that it has, or may have. What is being detached
/// is in its kernel until it is proven gone, so it counts.
pub(super) fn room<'a>(
    max_volumes: Option<NonZeroU32>,
    others: impl Iterator<Item = &'a Attachment>,
) -> Room {
    let Some(limit) = max_volumes.map(NonZeroU32::get) else {
        return Room::Free;
    };
    let (mut all, mut staying) = (0_u32, 0_u32);
    for attachment in others {
        all += 1;
        staying += u32::from(!attachment.phase.is_draining());
    }
    match (all < limit, staying < limit) {
        (true, _) => Room::Free,
        (false, true) => Room::WaitForDetach { limit },
        (false, false) => Room::Full { limit },
    }
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
