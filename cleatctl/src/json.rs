//! Answers as JSON: field names as in the messages, times in milliseconds since 1970, epochs as `TERM.SEQ`.

use cleat_proto::cleat::v1 as proto;
use proto::watch_event::Kind;
use serde_json::{Value, json};

use crate::format::{epoch, phase};

fn list<T>(items: &[T], one: impl Fn(&T) -> Value) -> Value {
    Value::Array(items.iter().map(one).collect())
}

pub(crate) fn volumes(volumes: &[proto::VolumeInfo]) -> Value {
    list(volumes, volume)
}

pub(crate) fn nodes(nodes: &[proto::NodeInfo]) -> Value {
    list(nodes, node)
}

pub(crate) fn migrations(migrations: &[proto::MigrationInfo]) -> Value {
    list(migrations, migration)
}

pub(crate) fn tickets(tickets: &[proto::TicketInfo]) -> Value {
    list(tickets, ticket)
}

pub(crate) fn volume(v: &proto::VolumeInfo) -> Value {
    json!({
        "volume_id": v.volume_id,
        "access": v.access,
        "identity": v.identity.as_ref().map(identity),
        "attachments": list(&v.attachments, attachment),
        "past_evidence": list(&v.past_evidence, evidence),
        "waiting": list(&v.waiting, |w| json!({
            "request": w.request,
            "node_id": w.node_id,
            "since_unix_ms": w.since_unix_ms,
            "waits_for": w.waits_for,
        })),
        "migration": v.migration.as_ref().map(migration),
        "fenced": list(&v.fenced, fenced),
        "min_fence": v.min_fence,
        "deleted": v.deleted,
    })
}

fn fenced(f: &proto::FencedInfo) -> Value {
    json!({
        "volume_id": f.volume_id,
        "node_id": f.node_id,
        "host_nqn": f.host_nqn,
        "epoch": epoch(f.epoch.as_ref()),
        "evidence": f.evidence.as_ref().map(evidence),
        "since_unix_ms": f.since_unix_ms,
    })
}

fn fence(f: &proto::FenceInfo) -> Value {
    json!({
        "rung": f.rung,
        "step": f.step,
        "tried": list(&f.tried, |t| json!({"rung": t.rung, "result": t.result})),
        "since_unix_ms": f.since_unix_ms,
    })
}

pub(crate) fn problems(problems: &[proto::DriftInfo]) -> Value {
    list(problems, |g| {
        json!({
            "kind": g.kind,
            "node_id": g.node_id,
            "volume_id": g.volume_id,
            "message": g.message,
        })
    })
}

fn attachment(a: &proto::AttachmentInfo) -> Value {
    json!({
        "node_id": a.node_id,
        "epoch": epoch(a.epoch.as_ref()),
        "role": a.role,
        "phase": a.phase,
        "since_unix_ms": a.since_unix_ms,
        "may_write": a.may_write,
        "reported": a.reported.as_ref().map(state),
        "evidence": a.evidence.as_ref().map(evidence),
        "waits_for": a.waits_for,
        "cause": a.cause,
        "fence": a.fence.as_ref().map(fence),
    })
}

fn evidence(e: &proto::EvidenceInfo) -> Value {
    json!({
        "node_id": e.node_id,
        "epoch": epoch(e.epoch.as_ref()),
        "source": e.source,
        "verdict": e.verdict,
        "drained_by": e.drained_by,
        "assumption": e.assumption,
        "at_unix_ms": e.at_unix_ms,
        "by": e.by,
        "reason": e.reason,
        "wanted_by": e.wanted_by,
        "wanted_because": e.wanted_because,
    })
}

fn identity(i: &proto::Identity) -> Value {
    json!({
        "namespace_uuid": i.namespace_uuid,
        "nguid": i.nguid,
        "size_bytes": i.size_bytes,
        "block_size_bytes": i.block_size_bytes,
        "read_only": i.read_only,
    })
}

fn state(s: &proto::VolumeState) -> Value {
    json!({
        "volume_id": s.volume_id,
        "epoch": epoch(s.epoch.as_ref()),
        "epoch_ended": s.epoch_ended,
        "phase": phase(s.phase()),
        "identity": s.identity.as_ref().map(identity),
        "paths": list(&s.paths, |p| json!({
            "portal": p.portal,
            "controller": p.controller,
            "state": p.state,
            "ana_state": p.ana_state,
        })),
        "unready": s.unready.as_ref().map(|u| json!({"clause": u.clause, "message": u.message})),
        "openers": s.openers,
        "device": s.device,
        "writes": s.writes,
        "staging": list(&s.staging, |s| json!({"path": s.path, "device": s.device, "same": s.same})),
    })
}

pub(crate) fn node(n: &proto::NodeInfo) -> Value {
    json!({
        "node_id": n.node_id,
        "identity": n.identity.as_ref().map(|i| json!({
            "host_nqn": i.host_nqn,
            "host_id": i.host_id,
            "storage_addresses": i.storage_addresses,
            "boot_id": i.boot_id,
        })),
        "capabilities": n.capabilities.as_ref().map(|c| json!({
            "kernel_release": c.kernel_release,
            "fabrics": c.fabrics,
            "native_multipath": c.native_multipath,
            "nqn_prefix": c.nqn_prefix,
            "in_band_auth": c.in_band_auth,
            "reservations": c.reservations,
        })),
        "session": n.session,
        "session_since_unix_ms": n.session_since_unix_ms,
        "standing": n.standing,
        "standing_reason": n.standing_reason,
        "volumes": list(&n.volumes, state),
        "agent_version": n.agent_version,
        "fenced": list(&n.fenced, fenced),
    })
}

pub(crate) fn migration(m: &proto::MigrationInfo) -> Value {
    json!({
        "volume_id": m.volume_id,
        "source_node_id": m.source_node_id,
        "target_node_id": m.target_node_id,
        "target_epoch": epoch(m.target_epoch.as_ref()),
        "result": m.result,
        "attributed_to": m.attributed_to,
        "steps": list(&m.steps, |s| json!({"name": s.name, "at_unix_ms": s.at_unix_ms, "by": s.by})),
        "vm_namespace": m.vm_namespace,
        "vm_name": m.vm_name,
        "vm_uid": m.vm_uid,
        "migration_uid": m.migration_uid,
        "left": m.left,
        "granted_at_unix_ms": m.granted_at_unix_ms,
        "timeout_ms": m.timeout_ms,
        "overdue": m.overdue,
    })
}

/// One event, named by its kind.
pub(crate) fn event(kind: &Kind) -> Value {
    match kind {
        Kind::Volume(v) => json!({"volume": volume(v)}),
        Kind::VolumeGone(id) => json!({"volume_gone": id}),
        Kind::Node(n) => json!({"node": node(n)}),
        Kind::Migration(m) => json!({"migration": migration(m)}),
        Kind::Ticket(t) => json!({"ticket": ticket(t)}),
        Kind::TicketGone(id) => json!({"ticket_gone": id}),
        Kind::Synced(synced) => json!({"synced": synced}),
        Kind::Notice(n) => json!({"notice": {
            "at_unix_ms": n.at_unix_ms,
            "reason": n.reason,
            "volume_id": n.volume_id,
            "node_id": n.node_id,
            "message": n.message,
        }}),
    }
}

pub(crate) fn ticket(t: &proto::TicketInfo) -> Value {
    json!({
        "id": t.id,
        "kind": t.kind,
        "volume_id": t.volume_id,
        "node_id": t.node_id,
        "priority": t.priority,
        "satisfied": t.satisfied,
        "since_unix_ms": t.since_unix_ms,
        "waits_for": t.waits_for,
        "namespace": t.namespace,
        "claim": t.claim,
        "name": t.name,
        "holder": t.holder,
        "generation": t.generation,
        "satisfied_generation": t.satisfied_generation,
        "device": t.device,
        "waits_on": t.waits_on,
        "interrupted_until_unix_ms": t.interrupted_until_unix_ms,
    })
}
