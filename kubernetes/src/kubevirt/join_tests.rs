use serde_json::{Value, json};

use super::mover::{MoveSeen, MoveStage, MoverSeen};
use super::objects_tests::{NINE, VM, fixture};
use super::testing::{
    B, Cluster, JOB_LABEL, LATER, ended, later_launcher, later_migration, pair, seen, with,
};

#[test]
fn a_vm_that_stays_has_its_disks_and_no_migration() {
    let cluster = Cluster::of(&pair()[..2], fixture!("instance"), &[]);
    let stays =
        MoverSeen::Vm { namespace: "vms".into(), name: "web".into(), uid: VM.into(), migration: None };
    assert_eq!(cluster.movers(), [("vol-0".into(), stays.clone()), ("vol-1".into(), stays)].into());
}

#[test]
fn before_the_status_speaks_the_target_pod_names_the_migration() {
    let mut cluster = Cluster::of(&pair()[..3], fixture!("instance"), &[fixture!("migration-pending")]);
    assert_eq!(cluster.migration(), Some(seen(MoveStage::Preparing, None)));
    // The watch of migrations is behind.
    cluster.migrations.clear();
    let nameless = MoveSeen { name: None, ..seen(MoveStage::Preparing, None) };
    assert_eq!(cluster.migration(), Some(nameless.clone()));
    // It has no node yet.
    cluster.pods[2] = with(fixture!("target-launcher"), &[("/spec/nodeName", json!(null))]);
    let nowhere = MoveSeen { target: None, target_launcher: None, ..nameless };
    assert_eq!(cluster.migration(), Some(nowhere.clone()));
    // The VM's status does not say yet where it runs. Its other pod does.
    cluster.vms[0] = with(fixture!("instance"), &[("/status/nodeName", json!(null))]);
    assert_eq!(cluster.migration(), Some(nowhere));
}

#[test]
fn the_status_names_both_sides_for_all_disks_of_a_vm() {
    let cluster = Cluster::of(&pair(), fixture!("instance-migrating"), &[fixture!("migration-running")]);
    let movers = cluster.movers();
    assert_eq!(cluster.migration(), Some(seen(MoveStage::Running, None)));
    assert_eq!(movers["vol-0"], movers["vol-1"]);
}

#[test]
fn a_hotplugged_disk_is_its_launchers_or_of_the_vm_that_it_says() {
    let whole = Cluster::of(&pair(), fixture!("instance-migrating"), &[]).movers();
    let without = |of: usize, pointer: &str| {
        let mut pods = pair();
        pods[of] = with(pods[of].clone(), &[(pointer, json!(null))]);
        pods
    };
    for pods in [
        without(1, "/metadata/annotations"),
        without(1, "/metadata/ownerReferences"),
        without(3, "/metadata/annotations"),
        without(3, "/metadata/ownerReferences"),
    ] {
        assert_eq!(Cluster::of(&pods, fixture!("instance-migrating"), &[]).movers(), whole);
    }
    let neither = with(
        fixture!("attachment"),
        &[("/metadata/annotations", json!(null)), ("/metadata/ownerReferences", json!(null))],
    );
    let cluster = Cluster::of(&[fixture!("launcher"), neither], fixture!("instance"), &[]);
    assert_eq!(cluster.movers()["vol-1"], MoverSeen::Nobody);
}

#[test]
fn how_it_ended_is_what_completed_and_failed_say() {
    let (migrating, migrated) = (fixture!("instance-migrating"), fixture!("instance-migrated"));
    let (running, succeeded) = (fixture!("migration-running"), fixture!("migration-succeeded"));
    let failed = with(running.clone(), &[("/status/phase", json!("Failed"))]);
    let said = |name: &str, value: Value, of: &Value| {
        with(of.clone(), &[(format!("/status/migrationState/{name}").as_str(), value)])
    };
    let switched = Some(NINE + 40_000);
    for (case, vm, object, stage, switched) in [
        (
            "nothing but the handover",
            said("startTimestamp", json!(null), &migrating),
            None,
            MoveStage::Preparing,
            None,
        ),
        ("it began", migrating.clone(), None, MoveStage::Running, None),
        (
            "its object says that it runs",
            said("startTimestamp", json!(null), &migrating),
            Some(&running),
            MoveStage::Running,
            None,
        ),
        ("completed", migrated.clone(), Some(&running), MoveStage::Completed, switched),
        (
            "an end without a result",
            said("completed", json!(null), &migrated),
            Some(&running),
            MoveStage::Running,
            switched,
        ),
        (
            "completed, and no end",
            said("endTimestamp", json!(null), &migrated),
            None,
            MoveStage::Completed,
            switched,
        ),
        ("its object knows first", migrating.clone(), Some(&succeeded), MoveStage::Completed, None),
        (
            "failed is completed as well",
            said("failed", json!(true), &migrated),
            Some(&running),
            MoveStage::Failed,
            switched,
        ),
        ("its object knows of a failure first", migrating.clone(), Some(&failed), MoveStage::Failed, None),
        (
            "the VM's status before the object",
            migrated.clone(),
            Some(&failed),
            MoveStage::Completed,
            switched,
        ),
        ("aborted", fixture!("instance-aborted"), Some(&failed), MoveStage::Aborted, None),
        (
            "aborted, as the target's handler says it first",
            said("abortStatus", json!(null), &fixture!("instance-aborted")),
            None,
            MoveStage::Aborted,
            None,
        ),
        (
            "aborted by KubeVirt itself, which nobody has asked for",
            said("abortRequested", json!(null), &fixture!("instance-aborted")),
            Some(&failed),
            MoveStage::Failed,
            None,
        ),
        (
            "failed, and the abort that was wanted had not come",
            said("abortStatus", json!("Failed"), &fixture!("instance-aborted")),
            None,
            MoveStage::Failed,
            None,
        ),
        (
            "an abort that came too late",
            said("abortStatus", json!("Failed"), &migrated),
            None,
            MoveStage::Completed,
            switched,
        ),
    ] {
        let objects: Vec<_> = object.into_iter().cloned().collect();
        let found = Cluster::of(&pair(), vm, &objects).migration();
        let expected = seen(stage, switched);
        let name = object.and(expected.name.clone());
        assert_eq!(found, Some(MoveSeen { name, ..expected }), "{case}");
    }
}

#[test]
fn before_the_handover_only_its_object_says_how_it_ended() {
    let failed = with(fixture!("migration-pending"), &[("/status/phase", json!("Failed"))]);
    for (object, stage) in [(failed, MoveStage::Failed), (fixture!("migration-aborted"), MoveStage::Aborted)]
    {
        for pod in [fixture!("target-launcher"), ended(fixture!("target-launcher"))] {
            let pods = [fixture!("launcher"), pod];
            let cluster = Cluster::of(&pods, fixture!("instance"), std::slice::from_ref(&object));
            assert_eq!(cluster.migration(), Some(seen(stage, None)));
        }
    }
    // Nor is the object there any more, which somebody has deleted.
    let pods = [fixture!("launcher"), ended(fixture!("target-launcher"))];
    let found = Cluster::of(&pods, fixture!("instance"), &[]).migration();
    assert_eq!(found, Some(MoveSeen { name: None, ..seen(MoveStage::Failed, None) }));
    // What was deleted before the handover goes at once, and its pod has its time.
    let at = ("/metadata/deletionTimestamp", json!("2026-11-30T09:00:12Z"));
    for pod in [fixture!("target-launcher"), ended(fixture!("target-launcher"))] {
        let pods = [fixture!("launcher"), with(pod, std::slice::from_ref(&at))];
        let found = Cluster::of(&pods, fixture!("instance"), &[]).migration();
        assert_eq!(found, Some(MoveSeen { name: None, ..seen(MoveStage::Aborted, None) }));
    }
}

#[test]
fn a_claim_that_was_made_again_under_its_name_is_another_claim() {
    let mut cluster = Cluster::of(&pair(), fixture!("instance-migrating"), &[]);
    cluster.claims[0].uid = "e9".into();
    assert_eq!(cluster.of_disk(), MoverSeen::Nobody);
    cluster.claims.remove(0);
    assert_eq!(cluster.of_disk(), MoverSeen::Nobody, "it is not known yet, or not any more");
    assert!(matches!(cluster.movers()["vol-1"], MoverSeen::Vm { .. }));
}

#[test]
fn a_vm_that_was_started_again_under_its_name_is_another_vm() {
    let (label, owner) = ("/metadata/labels/kubevirt.io~1created-by", "/metadata/ownerReferences");
    let again = with(
        fixture!("launcher"),
        &[("/metadata/uid", json!("c9")), (label, json!("v9")), (owner, json!(null))],
    );
    let vm = with(fixture!("instance"), &[("/metadata/uid", json!("v9"))]);
    // The migration object is of a VM of that name, and nothing with a UID leads to it.
    let mut cluster = Cluster::of(
        &[ended(fixture!("launcher")), ended(fixture!("target-launcher")), again],
        vm,
        &[fixture!("migration-running")],
    );
    let MoverSeen::Vm { uid, migration, .. } = cluster.of_disk() else { panic!("{:?}", cluster.of_disk()) };
    assert_eq!((uid.as_str(), migration), ("v9", None));
    // Both at once are two VMs, whatever they are called.
    cluster.pods[0] = fixture!("launcher");
    assert!(cluster.contradiction().contains("at once"));
}

#[test]
fn pods_that_have_ended_count_while_no_other_is_there() {
    let pods: Vec<_> = pair().into_iter().map(ended).collect();
    let vm = with(fixture!("instance-migrating"), &[("/status/phase", json!("Failed"))]);
    let failed = with(fixture!("migration-running"), &[("/status/phase", json!("Failed"))]);
    let cluster = Cluster::of(&pods, vm, &[failed]);
    assert_eq!(cluster.migration(), Some(seen(MoveStage::Failed, None)), "both died");
}

#[test]
fn the_way_back_is_another_migration_with_other_sides() {
    // The VM is on B; the pod that is to take it back to A has the next migration's UID.
    let (done, back) = (fixture!("instance-migrated"), later_launcher("node-a", 11));
    let objects = [fixture!("migration-succeeded"), later_migration("Scheduling", "bbbbb")];
    let expected = MoveSeen {
        uid: LATER.into(),
        name: Some("web-again".into()),
        source: "node-b".into(),
        target: Some("node-a".into()),
        stage: MoveStage::Preparing,
        switched_ms: None,
        source_launcher: Some(B.into()),
        target_launcher: Some("c3".into()),
    };
    let pods = [ended(fixture!("launcher")), fixture!("target-launcher"), back];
    for known in [&objects[..], &objects[..1], &objects[1..], &[]] {
        let cluster = Cluster::of(&pods, done.clone(), known);
        let name = known.last().filter(|last| last["metadata"]["uid"] == LATER).and(expected.name.clone());
        assert_eq!(cluster.migration(), Some(MoveSeen { name, ..expected.clone() }));
    }

    // Then the status speaks of it. Who was the first one's target has the first one's UID, and is no target now.
    let handed_over = json!({
        "migrationUid": LATER, "sourceNode": "node-b", "sourcePod": "virt-launcher-web-bbbbb",
        "targetNode": "node-a", "targetPod": "virt-launcher-web-ccccc",
    });
    let vm = with(done, &[("/status/migrationState", handed_over)]);
    assert_eq!(Cluster::of(&pods, vm.clone(), &objects).migration(), Some(expected.clone()));
    let back_again =
        with(vm, &[("/status/nodeName", json!("node-a")), ("/status/migrationState/completed", json!(true))]);
    let completed = MoveSeen { stage: MoveStage::Completed, ..expected };
    for known in [&objects[..], &objects[..1], &objects[1..], &[]] {
        let found = Cluster::of(&pods, back_again.clone(), known).migration();
        assert_eq!(
            found.map(|one| MoveSeen { name: completed.name.clone(), ..one }),
            Some(completed.clone())
        );
    }
}

#[test]
fn a_status_that_is_behind_gives_the_next_migration_no_source() {
    // It has the VM on A still; what moves to C moves from B.
    let pods = [ended(fixture!("launcher")), fixture!("target-launcher"), later_launcher("node-c", 11)];
    let objects = [fixture!("migration-succeeded"), later_migration("Pending", "bbbbb")];
    for vm in [fixture!("instance"), fixture!("instance-migrating"), fixture!("instance-migrated")] {
        for known in [&objects[..], &objects[..1], &objects[1..], &[]] {
            let found = Cluster::of(&pods, vm.clone(), known).migration().expect("there is one");
            assert_eq!((found.uid.as_str(), found.stage), (LATER, MoveStage::Preparing));
            assert_eq!((found.source.as_str(), found.target.as_deref()), ("node-b", Some("node-c")));
        }
    }
    // Nothing says from where: nothing is said.
    let pods = pods.map(ended);
    assert_eq!(Cluster::of(&pods, fixture!("instance"), &[]).migration(), None);
}

#[test]
fn a_failed_migration_stays_until_the_next_one_has_a_target() {
    let failed = with(fixture!("migration-running"), &[("/status/phase", json!("Failed"))]);
    let mut pods = vec![fixture!("launcher"), ended(fixture!("target-launcher"))];
    let objects = [failed, later_migration("Pending", "aaaaa")];
    let cluster = Cluster::of(&pods, fixture!("instance-aborted"), &objects);
    assert_eq!(cluster.migration(), Some(seen(MoveStage::Aborted, None)));
    pods.push(later_launcher("node-b", 11));
    let cluster = Cluster::of(&pods, fixture!("instance-aborted"), &objects);
    let next = cluster.migration().expect("there is one");
    assert_eq!((next.uid.as_str(), next.stage), (LATER, MoveStage::Preparing));
    assert_eq!((next.source.as_str(), next.target_launcher.as_deref()), ("node-a", Some("c3")));
}

#[test]
fn a_migration_to_another_cluster_moves_no_volume() {
    let pods = &pair()[..2];
    assert_eq!(Cluster::of(pods, fixture!("instance-elsewhere"), &[]).migration(), None);
    let sent = with(fixture!("migration-running"), &[("/spec/sendTo", json!({"migrationID": "m"}))]);
    assert_eq!(
        Cluster::of(pods, fixture!("instance-migrating"), std::slice::from_ref(&sent)).migration(),
        None
    );
    assert_eq!(Cluster::of(&pair(), fixture!("instance"), &[sent]).migration(), None);
}

#[test]
fn what_cannot_be_true_together_attributes_nothing() {
    let (a, b) = (fixture!("launcher"), fixture!("target-launcher"));
    let (vm, running) = (fixture!("instance-migrating"), fixture!("migration-running"));
    let label = "/metadata/labels/kubevirt.io~1created-by";
    let to_itself = with(vm.clone(), &[("/status/migrationState/targetNode", json!("node-a"))]);
    let of_another = with(running.clone(), &[("/spec/vmiName", json!("db"))]);
    let of_elsewhere = with(running.clone(), &[("/metadata/namespace", json!("other"))]);
    let there = |of: &Value, node: &str| with(of.clone(), &[("/spec/nodeName", json!(node))]);
    let of = |pods: [&Value; 2], vm: &Value, object: &Value| {
        Cluster::of(&pods.map(Value::clone), vm.clone(), std::slice::from_ref(object))
    };
    for (cluster, why) in [
        (of([&a, &with(b.clone(), &[(label, json!("v9"))])], &vm, &running), "VM v9, and VM"),
        (of([&a, &b], &to_itself, &running), "from node-a to node-a"),
        (of([&a, &b], &vm, &of_another), "web-to-b, which is of VM vms/db"),
        (of([&a, &b], &vm, &of_elsewhere), "web-to-b, which is of VM other/web"),
        (of([&a, &there(&b, "node-c")], &vm, &running), "its pod virt-launcher-web-bbbbb does not fit"),
        (of([&there(&a, "node-c"), &b], &vm, &running), "its pod virt-launcher-web-aaaaa does not fit"),
        (
            of([&a, &with(b.clone(), &[(JOB_LABEL, json!(LATER))])], &vm, &running),
            "its pod virt-launcher-web-bbbbb does not fit",
        ),
        (
            of([&a, &b], &with(vm.clone(), &[("/metadata/namespace", json!("other"))]), &running),
            "VM other/web, which is of another namespace",
        ),
    ] {
        assert!(cluster.contradiction().contains(why), "{}: {why}", cluster.contradiction());
    }
    let mut pods = pair();
    pods[3] = there(&pods[3], "node-c");
    let cluster = Cluster::of(&pods, vm.clone(), std::slice::from_ref(&running));
    assert!(cluster.contradiction().contains("its pod hp-volume-x2 does not fit"));
    let said = "/metadata/annotations/kubevirt.io~1owner-vmi-uid";
    let foreign = with(fixture!("attachment"), &[(said, json!("v9"))]);
    let movers = Cluster::of(&[a, b, foreign], vm, &[running]).movers();
    assert!(matches!(&movers["vol-1"], MoverSeen::Contradiction { why } if why.contains("hp-volume-x1")));
    assert!(matches!(&movers["vol-0"], MoverSeen::Vm { .. }), "the other disk's pods fit together");
}

#[test]
fn two_migrations_with_a_target_at_once_are_a_contradiction() {
    let pods = [fixture!("launcher"), fixture!("target-launcher"), later_launcher("node-c", 1)];
    let objects = [fixture!("migration-pending"), later_migration("Pending", "aaaaa")];
    let cluster = Cluster::of(&pods, fixture!("instance"), &objects);
    assert!(cluster.contradiction().contains("two migrations of VM vms/web"));
    // One of them has ended: the other one is it.
    let objects = [fixture!("migration-aborted"), later_migration("Pending", "aaaaa")];
    let cluster = Cluster::of(&pods, fixture!("instance"), &objects);
    assert_eq!(cluster.migration().map(|one| one.uid), Some(LATER.into()));
}

#[test]
fn a_volume_without_a_claim_or_a_vm_is_nobodys() {
    let mut cluster = Cluster::of(&pair()[..1], fixture!("instance"), &[]);
    cluster.vms.clear();
    assert_eq!(cluster.of_disk(), MoverSeen::Nobody, "the VM is not known yet, or not any more");
    let mut cluster = Cluster::of(&pair(), fixture!("instance-migrating"), &[]);
    if let Some(pv) = cluster.attachments.volumes.get_mut("pv-vol-0") {
        pv.claim = None;
    }
    assert_eq!(cluster.of_disk(), MoverSeen::Nobody);
    cluster.attachments.volumes.clear();
    cluster.attachments.attachments.truncate(1);
    cluster.attachments.attachments[0].volume = Some("vol-0".into());
    assert_eq!(cluster.movers(), [("vol-0".into(), MoverSeen::Nobody)].into());
}
