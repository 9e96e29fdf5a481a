//! The core's records and the agents' last reports as messages for people.

use cleat_core::{
    Attachment, Core, Epoch, Evidence, Fence, Fenced, Migration, Node, NodeId, Phase, SessionState, Source,
    Standing, UnixMillis, Verdict, VmRef, VolumeId, VolumeRecord,
};
use cleat_proto::cleat::v1 as proto;

use crate::agents::Reports;
use crate::engine::NoticeText;
use crate::explain;

/// One volume, without the agents' reports on it: those are added outside of the core's task.
pub(super) fn volume(core: &Core, id: &VolumeId, now: UnixMillis) -> Option<proto::VolumeInfo> {
    let record = core.volumes().get(id)?;
    let identity = record.identity.as_ref().map(|identity| proto::Identity {
        namespace_uuid: identity.namespace_uuid.to_string(),
        nguid: identity.nguid.map(|nguid| nguid.to_string()).unwrap_or_default(),
        size_bytes: record.spec.size_bytes,
        ..Default::default()
    });
    let waiting = core.waiting(id, now).into_iter().map(|waiting| proto::WaitInfo {
        request: waiting.request.to_owned(),
        node_id: waiting.node.map(String::from).unwrap_or_default(),
        since_unix_ms: waiting.since.0,
        waits_for: explain::wait(&waiting.wait),
    });
    Some(proto::VolumeInfo {
        volume_id: id.to_string(),
        access: record.spec.access.name().to_owned(),
        identity,
        attachments: record.attachments.iter().map(|a| attachment(core, record, a, now)).collect(),
        past_evidence: record.past_evidence.iter().map(|e| evidence(e, now)).collect(),
        waiting: waiting.collect(),
        migration: record.migration.as_ref().map(|m| migration(id, m)),
        fenced: record.fenced.iter().map(|f| fenced_from(id, f, now)).collect(),
        min_fence: record.spec.min_fence.name().to_owned(),
        deleted: record.deleted,
    })
}

/// Describes every volume.
pub(super) fn volumes(core: &Core, now: UnixMillis) -> Vec<proto::VolumeInfo> {
    core.volumes().keys().filter_map(|id| volume(core, id, now)).collect()
}

/// Adds what the agents last said of a volume.
pub(super) fn with_reports(mut volume: proto::VolumeInfo, reports: &Reports) -> proto::VolumeInfo {
    let Ok(id) = VolumeId::new(volume.volume_id.as_str()) else { return volume };
    for attachment in &mut volume.attachments {
        if let Ok(node) = NodeId::new(attachment.node_id.as_str()) {
            attachment.reported = reports.about(&node, &id);
        }
    }
    volume
}

fn attachment(core: &Core, record: &VolumeRecord, a: &Attachment, now: UnixMillis) -> proto::AttachmentInfo {
    let proof = a.evidence();
    let waits_for = match (core.waits_for(&record.spec.id, &a.node), a.trouble()) {
        (Some(wait), _) => explain::attachment_wait(&a.node, &wait),
        // What went wrong last is of interest also where nothing is waited for any more.
        (None, Some(trouble)) => format!("nothing (last: {})", explain::trouble(trouble)),
        (None, None) => String::new(),
    };
    proto::AttachmentInfo {
        node_id: a.node.to_string(),
        epoch: Some(epoch(a.epoch)),
        role: a.role.name().to_owned(),
        phase: core.phase_shown(&record.spec.id, a).to_owned(),
        since_unix_ms: a.since.0,
        may_write: proof.is_none_or(|proof| proof.verdict(now) != Verdict::Fenced),
        reported: None,
        evidence: proof.map(|proof| evidence(proof, now)),
        waits_for,
        cause: match &a.phase {
            Phase::Draining { cause, .. } => explain::drain_cause(cause),
            Phase::Granting | Phase::Connecting | Phase::Ready | Phase::Stray => String::new(),
        },
        fence: record.fence(&a.node).map(fence),
    }
}

fn fence(fence: &Fence) -> proto::FenceInfo {
    let tried = fence
        .tried
        .iter()
        .map(|tried| proto::TriedRung { rung: tried.rung.name().to_owned(), result: tried.result.clone() });
    proto::FenceInfo {
        rung: fence.rung.name().to_owned(),
        step: fence.step.name().to_owned(),
        tried: tried.collect(),
        since_unix_ms: fence.since.0,
    }
}

fn fenced_from(volume: &VolumeId, fenced: &Fenced, now: UnixMillis) -> proto::FencedInfo {
    proto::FencedInfo {
        node_id: fenced.node.to_string(),
        host_nqn: fenced.host_nqn.to_string(),
        epoch: Some(epoch(fenced.epoch)),
        evidence: Some(evidence(&fenced.evidence, now)),
        since_unix_ms: fenced.since.0,
        volume_id: volume.to_string(),
    }
}

fn evidence(e: &Evidence, now: UnixMillis) -> proto::EvidenceInfo {
    let verdict = e.verdict(now);
    let (by, reason) = match &e.source {
        Source::NodeGone { by, reason } => (by.clone(), reason.clone()),
        _ => Default::default(),
    };
    let wanted = e.statement.as_deref();
    proto::EvidenceInfo {
        node_id: e.node.to_string(),
        epoch: Some(epoch(e.epoch)),
        source: e.source.name().to_owned(),
        verdict: match verdict {
            Verdict::Fenced => "Fenced",
            Verdict::NotFenced => "NotFenced",
            Verdict::Unknown => "Unknown",
        }
        .to_owned(),
        drained_by: explain::drained_by(e, now).to_owned(),
        assumption: explain::assumption(e).unwrap_or_default(),
        at_unix_ms: e.at.0,
        by,
        reason,
        wanted_by: wanted.map(|wanted| wanted.by.clone()).unwrap_or_default(),
        wanted_because: wanted.map(|wanted| wanted.reason.clone()).unwrap_or_default(),
    }
}

pub(super) fn migration(volume: &VolumeId, m: &Migration) -> proto::MigrationInfo {
    let seen = m.vm.as_deref();
    let of_vm = |text: fn(&VmRef) -> &str| seen.map(|seen| text(&seen.vm).to_owned()).unwrap_or_default();
    let attributed = seen.map(|seen| format!("{}/{}", seen.vm.namespace, seen.name));
    proto::MigrationInfo {
        volume_id: volume.to_string(),
        source_node_id: m.source.to_string(),
        target_node_id: m.target.to_string(),
        target_epoch: Some(epoch(m.target_epoch)),
        result: m.result.name().to_owned(),
        attributed_to: attributed.unwrap_or_else(|| "unattributed".to_owned()),
        steps: m
            .steps
            .iter()
            .map(|taken| proto::MigrationStep {
                name: taken.step.name().to_owned(),
                at_unix_ms: taken.at.0,
                by: taken.by.map(|by| by.name().to_owned()).unwrap_or_default(),
            })
            .collect(),
        vm_namespace: of_vm(|vm| &vm.namespace),
        vm_name: of_vm(|vm| &vm.name),
        vm_uid: of_vm(|vm| &vm.uid),
        migration_uid: seen.map(|seen| seen.uid.to_string()).unwrap_or_default(),
        left: m.left.map(|side| side.name().to_owned()).unwrap_or_default(),
        granted_at_unix_ms: m.granted_at.0,
        timeout_ms: m.timeout_ms,
        overdue: m.is_overdue(),
    }
}

/// Every volume's latest migration.
pub(super) fn migrations(core: &Core) -> Vec<proto::MigrationInfo> {
    let recorded = core.volumes().values().filter_map(|v| v.migration.as_ref().map(|m| (&v.spec.id, m)));
    recorded.map(|(id, m)| migration(id, m)).collect()
}

/// Every node, without the agents' reports.
pub(super) fn nodes(core: &Core, now: UnixMillis) -> Vec<proto::NodeInfo> {
    core.nodes().iter().map(|(id, known)| describe(core, id, known, now)).collect()
}

/// One node, without its agent's report.
pub(super) fn node(core: &Core, id: &NodeId, now: UnixMillis) -> Option<proto::NodeInfo> {
    core.nodes().get(id).map(|known| describe(core, id, known, now))
}

fn describe(core: &Core, id: &NodeId, node: &Node, now: UnixMillis) -> proto::NodeInfo {
    let entries =
        core.volumes_of(id).flat_map(|record| record.fenced.iter().map(move |f| (&record.spec.id, f)));
    let fenced = entries.filter(|(_, f)| f.node == *id).map(|(volume, f)| fenced_from(volume, f, now));
    let (session, since) = match &node.session {
        SessionState::Up { since, .. } => ("connected", *since),
        SessionState::Silent { since } => ("silent", *since),
    };
    let (standing, reason) = match &node.standing {
        Standing::Admitted => ("Admitted", String::new()),
        Standing::Quarantined { causes } => ("Quarantined", explain::quarantine(causes)),
    };
    let identity = &node.identity;
    proto::NodeInfo {
        node_id: id.to_string(),
        identity: Some(proto::NodeIdentity {
            host_nqn: identity.host_nqn.to_string(),
            host_id: identity.host_id.to_string(),
            storage_addresses: identity.storage_addresses.iter().map(ToString::to_string).collect(),
            boot_id: identity.boot_id.to_string(),
        }),
        session: session.to_owned(),
        session_since_unix_ms: since.0,
        standing: standing.to_owned(),
        standing_reason: reason,
        fenced: fenced.collect(),
        ..Default::default()
    }
}

/// Adds what the node's agent last said.
pub(super) fn node_with_report(mut node: proto::NodeInfo, reports: &Reports) -> proto::NodeInfo {
    if let Ok(id) = NodeId::new(node.node_id.as_str()) {
        let reports = reports.of(&id);
        node.capabilities = reports.capabilities;
        node.agent_version = reports.agent_version;
        node.volumes = reports.volumes.into_values().collect();
    }
    node
}

pub(super) fn notice(notice: &NoticeText) -> proto::Notice {
    proto::Notice {
        at_unix_ms: notice.at.0,
        reason: notice.reason.to_owned(),
        volume_id: notice.volume.as_ref().map(ToString::to_string).unwrap_or_default(),
        node_id: notice.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        message: notice.message.clone(),
    }
}

fn epoch(epoch: Epoch) -> proto::Epoch {
    proto::Epoch { term: epoch.term, seq: epoch.seq }
}
