#![allow(clippy::unwrap_used)]

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};

use super::*;

fn record(attachments: Value, fenced: Value) -> VolumeRecord {
    let record = json!({
        "spec": {"id": "v", "access": "RWO", "subsystemNqn": null, "portals": [], "sizeBytes": 4096},
        "identity": null, "attachments": attachments, "migration": null, "fenced": fenced, "pastEvidence": [],
    });
    serde_json::from_value(record).unwrap()
}

fn draining(step: &str, tried: Value) -> Value {
    json!([{
        "node": "a", "hostNqn": "nqn.2026-01.test:a", "epoch": "1.1", "role": "primary",
        "since": 0, "proven": true, "readOnly": false, "bootId": "b", "mayLandUntil": null,
        "phase": {"type": "draining", "cause": {"type": "requested"}, "evidence": null, "fence": {
            "rung": "acl", "step": step, "tried": tried, "since": 1000, "touched": true, "preemptedBy": null,
        }},
    }])
}

fn fenced(source: Value) -> Value {
    json!([{
        "node": "a", "hostNqn": "nqn.2026-01.test:a", "epoch": "1.1", "since": 3000,
        "evidence": {"node": "a", "epoch": "1.1", "source": source, "drained": {"type": "barrier"}, "at": 3000},
    }])
}

fn measured(run: impl FnOnce()) -> String {
    let recorder = PrometheusBuilder::new().build_recorder();
    ::metrics::with_local_recorder(&recorder, run);
    recorder.handle().render()
}

#[test]
fn a_fence_is_counted_with_its_rung_its_result_and_how_long_it_took() {
    let node = NodeId::new("a").unwrap();
    let text = measured(|| {
        let mut fences = Fences::default();
        let begun = record(draining("deny", json!([])), json!([]));
        assert!(fences.recorded(UnixMillis(1000), &begun).is_empty());
        let tried = json!([{"rung": "reservation", "result": "no other node"}]);
        for _ in 0..2 {
            fences.recorded(UnixMillis(2000), &record(draining("hide", tried.clone()), json!([])));
        }
        let cut = record(json!([]), fenced(json!({"type": "target-cut", "acl": true, "secret": null})));
        assert_eq!(fences.recorded(UnixMillis(3000), &cut), std::slice::from_ref(&node));
        assert_eq!(fences.recorded(UnixMillis(9000), &record(json!([]), json!([]))), [node]);
        assert!(fences.volumes.is_empty(), "nothing is kept of what is over");
    });
    for line in [
        "cleat_controller_fences_total{rung=\"reservation\",result=\"failed\"} 1",
        "cleat_controller_fences_total{rung=\"acl\",result=\"proven\"} 1",
        "cleat_controller_fence_seconds_sum{rung=\"acl\",result=\"proven\"} 2",
        "cleat_controller_fences_under_way 0",
        "cleat_controller_nodes_quarantined 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn a_fence_that_is_refused_and_goes_on_after_a_restart_is_counted_once() {
    let text = measured(|| {
        let stored = record(draining("refused", json!([])), json!([]));
        let mut fences = Fences::new(std::slice::from_ref(&stored));
        fences.recorded(UnixMillis(2000), &stored);
        let gone = json!({"type": "node-gone", "by": "alice", "reason": "it burnt"});
        fences.recorded(UnixMillis(5000), &record(json!([]), fenced(gone)));
    });
    assert!(!text.contains("refused"), "that was counted by the process before:\n{text}");
    assert!(text.contains("cleat_controller_fences_total{rung=\"node-gone\",result=\"proven\"} 1"), "{text}");
    assert!(text.contains("cleat_controller_nodes_quarantined 0"), "of it nothing is expected:\n{text}");
}

#[test]
fn a_quarantined_node_that_is_declared_gone_is_counted_no_more() {
    let node = NodeId::new("a").unwrap();
    let mut cut = fenced(json!({"type": "target-cut", "acl": true, "secret": null}));
    let mut fences = Fences::default();
    let text = measured(|| {
        fences.recorded(UnixMillis(3000), &record(json!([]), cut.clone()));
    });
    assert!(text.contains("cleat_controller_nodes_quarantined 1"), "{text}");
    cut[0]["gone"] = json!(true);
    let text = measured(|| {
        assert_eq!(fences.recorded(UnixMillis(4000), &record(json!([]), cut)), [node]);
    });
    assert!(text.contains("cleat_controller_nodes_quarantined 0"), "{text}");
}

#[test]
fn a_node_that_proves_its_absence_itself_ends_its_fence() {
    let text = measured(|| {
        let mut fences = Fences::default();
        fences.recorded(UnixMillis(1000), &record(draining("refused", json!([])), json!([])));
        let mut over = record(json!([]), json!([]));
        let proof = json!({"node": "a", "epoch": "1.1", "source": {"type": "agent-absent", "bootId": "b"},
            "drained": {"type": "live-deletion"}, "at": 3000});
        over.past_evidence.push(serde_json::from_value(proof).unwrap());
        fences.recorded(UnixMillis(3000), &over);
    });
    for line in [
        "cleat_controller_fences_total{rung=\"acl\",result=\"refused\"} 1",
        "cleat_controller_fences_total{rung=\"acl\",result=\"overtaken\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn the_counts_stay_those_of_all_volumes_whatever_comes_and_goes() {
    let on = |volume: usize, attachments: Value, fenced: Value| {
        let mut record = record(attachments, fenced);
        record.spec.id = VolumeId::new(format!("v{volume}")).unwrap();
        record
    };
    measured(|| {
        let mut fences = Fences::default();
        let mut random = 1_u64;
        for _ in 0..500 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let volume = (random % 5) as usize;
            let cut = fenced(json!({"type": "target-cut", "acl": true, "secret": null}));
            let next = match random / 8 % 4 {
                0 => on(volume, draining("deny", json!([])), json!([])),
                1 => on(volume, json!([]), cut),
                2 => on(volume, json!([]), json!([])),
                _ => {
                    fences.forgotten(&on(volume, json!([]), json!([])).spec.id);
                    continue;
                }
            };
            fences.recorded(UnixMillis(1), &next);
            let under_way: usize = fences.volumes.values().map(|known| known.under_way.len()).sum();
            let cut_off: BTreeSet<&NodeId> =
                fences.volumes.values().flat_map(|known| &known.quarantined).collect();
            assert_eq!(fences.under_way, under_way);
            assert_eq!(fences.cut_off.keys().collect::<BTreeSet<_>>(), cut_off);
        }
    });
}
