#![allow(clippy::unwrap_used)]

use cleat_kubernetes::kubevirt::mover::MoveSeen;
use serde_json::{Value, json};

use super::*;

fn id(volume: &str) -> VolumeId {
    VolumeId::new(volume).unwrap()
}

fn mover(stage: MoveStage, target: Option<&str>) -> MoverSeen {
    MoverSeen::Vm {
        namespace: "prod".into(),
        name: "web".into(),
        uid: "u-web".into(),
        migration: Some(Box::new(MoveSeen {
            uid: "u-move".into(),
            name: Some("move-web".into()),
            source: "node-a".into(),
            target: target.map(str::to_owned),
            stage,
            switched_ms: None,
            source_launcher: None,
            target_launcher: None,
        })),
    }
}

fn vm(stage: MoveStage) -> VmMigration {
    move_of(mover(stage, Some("node-b"))).unwrap()
}

/// A record with these nodes, and what it knows of a migration between them.
fn record(nodes: &[&str], known: Option<&VmMigration>) -> VolumeRecord {
    let attachments: Vec<Value> = nodes
        .iter()
        .map(|node| {
            json!({
                "node": node, "hostNqn": format!("nqn.2026-01.test:{node}"), "epoch": "1.1", "role": "primary",
                "since": 0, "proven": true, "readOnly": false, "bootId": "b", "mayLandUntil": null,
                "phase": {"type": "ready"},
            })
        })
        .collect();
    let migration = known.map(|vm| {
        json!({
            "source": "node-a", "sourceEpoch": "1.1", "target": "node-b", "targetEpoch": "1.2", "result": "running",
            "steps": [], "vm": vm,
        })
    });
    let record = json!({
        "spec": {"id": "v", "access": "RWX block", "subsystemNqn": null, "portals": [], "sizeBytes": 4096},
        "identity": null, "attachments": attachments, "migration": migration, "fenced": [], "pastEvidence": [],
    });
    serde_json::from_value(record).unwrap()
}

#[test]
fn what_is_handed_over_is_the_migration_with_its_vm_and_both_nodes() {
    let seen = vm(MoveStage::Running);
    assert_eq!((seen.uid.as_str(), seen.name.as_str()), ("u-move", "move-web"));
    assert_eq!(
        (seen.vm.namespace.as_str(), seen.vm.name.as_str(), seen.vm.uid.as_str()),
        ("prod", "web", "u-web")
    );
    assert_eq!((seen.source.as_str(), seen.target.as_ref().map(NodeId::as_str)), ("node-a", Some("node-b")));
    assert_eq!(seen.stage, VmStage::Running);
    assert_eq!(move_of(mover(MoveStage::Preparing, None)).unwrap().target, None, "it is not placed yet");
}

#[test]
fn nobody_a_vm_that_stays_and_a_contradiction_are_no_migration() {
    let stays = MoverSeen::Vm { namespace: "n".into(), name: "w".into(), uid: "u".into(), migration: None };
    for mover in [MoverSeen::Nobody, stays, MoverSeen::Contradiction { why: "both".into() }] {
        assert_eq!(moves(BTreeMap::from([("v".to_owned(), mover)])), Moves::new());
    }
    // What is no name of ours is nothing to us.
    assert_eq!(move_of(mover(MoveStage::Running, Some("a node"))), None);
}

#[test]
fn only_what_is_new_or_gone_is_handed_over() {
    let (first, later) = (vm(MoveStage::Preparing), vm(MoveStage::Running));
    let all = |of: &[(&str, &VmMigration)]| {
        of.iter().map(|(volume, vm)| (id(volume), (*vm).clone())).collect::<Moves>()
    };
    let said = all(&[("v-1", &first), ("v-2", &first), ("v-3", &first)]);
    let seen = all(&[("v-1", &first), ("v-2", &later), ("v-4", &first)]);
    assert_eq!(
        differences(&said, &seen),
        [(id("v-2"), Some(later)), (id("v-4"), Some(first)), (id("v-3"), None)]
    );
    assert!(differences(&seen, &seen).is_empty());
}

#[test]
fn what_a_record_of_both_nodes_does_not_say_is_handed_over_again() {
    let (early, now) = (vm(MoveStage::Preparing), vm(MoveStage::Running));
    let both = ["node-a", "node-b"];
    assert!(lacks(&record(&both, None), &now), "nothing of it");
    assert!(lacks(&record(&both, Some(&early)), &now), "not so far");
    assert!(!lacks(&record(&both, Some(&now)), &now));
    assert!(!lacks(&record(&both, Some(&now)), &early), "further than that");
    let switched = VmMigration { switched_at: Some(UnixMillis(7)), ..now.clone() };
    assert!(lacks(&record(&both, Some(&now)), &switched));
    let other = VmMigration { uid: MigrationUid::new("u-other").unwrap(), ..now.clone() };
    assert!(lacks(&record(&both, Some(&other)), &now));
    for alone in [&["node-a"][..], &["node-b"], &[]] {
        assert!(!lacks(&record(alone, None), &now), "{alone:?}: there is no pair to say it of");
    }
}
