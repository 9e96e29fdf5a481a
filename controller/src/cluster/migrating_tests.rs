#![allow(clippy::unwrap_used)]

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
    moved(stage, Some("node-b"))
}

fn moved(stage: MoveStage, target: Option<&str>) -> VmMigration {
    move_of("v", mover(stage, target)).unwrap().unwrap().1
}

#[test]
fn the_targets_pod_comes_with_each_report_and_is_not_kept() {
    let mut mover = mover(MoveStage::Running, Some("node-b"));
    if let MoverSeen::Vm { migration: Some(seen), .. } = &mut mover {
        seen.target_launcher = Some("u-pod".into());
    }
    let seen = move_of("v", mover).unwrap().unwrap().1;
    assert_eq!(seen.target_pod.as_deref(), Some("u-pod"));
    let kept: VmMigration = serde_json::from_value(serde_json::to_value(&seen).unwrap()).unwrap();
    assert_eq!(kept.target_pod, None);
    assert_eq!(differences(&Moves::from([(id("v"), kept)]), &Moves::from([(id("v"), seen)])).len(), 1);
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
    assert_eq!(moved(MoveStage::Preparing, None).target, None, "it is not placed yet");
}

#[test]
fn nobody_and_a_vm_that_stays_are_no_migration() {
    let stays = MoverSeen::Vm { namespace: "n".into(), name: "w".into(), uid: "u".into(), migration: None };
    for mover in [MoverSeen::Nobody, stays] {
        assert_eq!(move_of("v", mover), Ok(None));
    }
}

#[test]
fn what_cannot_be_taken_in_is_named_and_the_rest_is_taken_in() {
    let (seen, unseen) = moves(BTreeMap::from([
        ("v".to_owned(), mover(MoveStage::Running, Some("node-b"))),
        ("w".to_owned(), mover(MoveStage::Running, Some("a node"))),
        ("x".to_owned(), MoverSeen::Contradiction { why: "two VMs have it".into() }),
    ]));
    assert_eq!(seen, Moves::from([(id("v"), vm(MoveStage::Running))]));
    assert_eq!(unseen.keys().collect::<Vec<_>>(), ["w", "x"]);
    assert!(unseen["w"].contains("a node"), "{}", unseen["w"]);
    assert_eq!(unseen["x"], "two VMs have it");
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
    let (mut next, past) = (record(&both, None), record(&both, Some(&now)).migration.unwrap());
    next.migration = Some(Migration { vm: None, ..past.clone() });
    next.past_migrations = vec![past];
    assert!(!lacks(&next, &now), "it was followed by another one");
    for alone in [&["node-a"][..], &["node-b"], &[]] {
        assert!(!lacks(&record(alone, None), &now), "{alone:?}: there is no pair to say it of");
    }
}
