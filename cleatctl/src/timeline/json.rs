//! A timeline as a document: the same names as in the other answers.

use serde_json::{Value, json};

use super::{MovedVm, Other, Timeline, VolumeLine, Who};

/// The whole timeline.
pub(crate) fn json(timeline: &Timeline) -> Value {
    let Timeline { vm, source, target, began, until, timeout_ms, due, volumes, slowest, others } = timeline;
    json!({
        "vm": vm.as_ref().map(|MovedVm { namespace, name, uid, .. }| json!({
            "namespace": namespace,
            "name": name,
            "uid": uid,
        })),
        "migration_uid": vm.as_ref().map(|vm| &vm.migration_uid),
        "migration": vm.as_ref().map(|vm| &vm.migration),
        "source_node_id": source,
        "target_node_id": target,
        "result": timeline.result(),
        "began_unix_ms": began,
        "ended_unix_ms": (!timeline.goes_on()).then_some(until),
        "timeout_ms": timeout_ms,
        "due_unix_ms": due,
        "slowest_volume_id": slowest.and_then(|at| volumes.get(at)).map(|line| &line.volume),
        "volumes": volumes.iter().map(|line| volume(line, *until)).collect::<Vec<_>>(),
        "others": others.iter().map(other).collect::<Vec<_>>(),
    })
}

fn volume(line: &VolumeLine, until: u64) -> Value {
    let phases = line.phases.iter().map(|phase| {
        json!({
            "name": phase.name(),
            "step": phase.step,
            "began_unix_ms": phase.from,
            "ended_unix_ms": phase.to,
            "lasts_ms": phase.lasts(until),
        })
    });
    let waits = line.waits.iter().map(|waiting| {
        let (phase, request) = match &waiting.who {
            Who::Attachment(phase) => (Some(phase), None),
            Who::Request(request) => (None, Some(request)),
        };
        json!({
            "node_id": waiting.node,
            "phase": phase,
            "request": request,
            "waits_for": waiting.waits_for,
        })
    });
    json!({
        "volume_id": line.volume,
        "source_node_id": line.source,
        "target_node_id": line.target,
        "result": line.result,
        "left": line.left,
        "overdue": line.overdue,
        "began_unix_ms": line.began,
        "ended_unix_ms": line.ended,
        "timed_out_unix_ms": line.timed_out_at,
        "handoff_ms": line.handoff_ms(until),
        "phases": phases.collect::<Vec<_>>(),
        "waits": waits.collect::<Vec<_>>(),
    })
}

fn other(other: &Other) -> Value {
    json!({
        "migration": other.migration,
        "migration_uid": other.migration_uid,
        "source_node_id": other.source,
        "target_node_id": other.target,
        "began_unix_ms": other.began,
        "result": other.result,
    })
}
