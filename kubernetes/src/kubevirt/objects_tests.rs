use serde_json::{Value, json};

use super::objects::*;

macro_rules! fixture {
    ($name:literal) => {
        serde_json::from_str::<Value>(include_str!(concat!("fixtures/", $name, ".json"))).expect("JSON")
    };
}
pub(super) use fixture;

/// 2026-11-30T09:00:00Z.
pub(super) const NINE: u64 = 1_796_029_200_000;
pub(super) const VM: &str = "6e1c1ff4-0d4f-4b6e-9d2a-000000000001";
pub(super) const JOB: &str = "6e1c1ff4-0d4f-4b6e-9d2a-0000000000a1";

fn uid(end: &str) -> String {
    format!("6e1c1ff4-0d4f-4b6e-9d2a-0000000000{end}")
}

fn of(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn a_launcher_says_its_vm_by_label_and_owner() {
    let source = PodSeen {
        namespace: "vms".into(),
        name: "virt-launcher-web-aaaaa".into(),
        uid: uid("c1"),
        role: PodRole::Launcher,
        node: of("node-a"),
        vmi_uid: of(VM),
        owner_vmi_uid: of(VM),
        job_uid: None,
        owner_pod_uid: None,
        claims: vec!["disk-0".into()],
        created_ms: NINE - 3_599_000,
        ended: false,
        deleted: false,
    };
    assert_eq!(pod(&fixture!("launcher")), Some(source.clone()));
    let target = PodSeen {
        name: "virt-launcher-web-bbbbb".into(),
        uid: uid("c2"),
        node: of("node-b"),
        job_uid: of(JOB),
        created_ms: NINE + 1000,
        ..source
    };
    assert_eq!(pod(&fixture!("target-launcher")), Some(target));
}

#[test]
fn an_attachment_says_its_vm_by_annotation_and_its_launcher_by_owner() {
    let source = PodSeen {
        namespace: "vms".into(),
        name: "hp-volume-x1".into(),
        uid: uid("d1"),
        role: PodRole::Attachment,
        node: of("node-a"),
        vmi_uid: of(VM),
        owner_vmi_uid: None,
        job_uid: None,
        owner_pod_uid: Some(uid("c1")),
        claims: vec!["disk-1".into()],
        created_ms: NINE - 3_300_000,
        ended: false,
        deleted: false,
    };
    assert_eq!(pod(&fixture!("attachment")), Some(source));
    let mut leaves = fixture!("attachment");
    leaves["metadata"]["deletionTimestamp"] = json!("2026-11-30T09:00:10Z");
    assert!(pod(&leaves).is_some_and(|pod| pod.deleted && !pod.ended));
    let target = pod(&fixture!("target-attachment")).expect("it is one");
    assert_eq!((target.job_uid, target.owner_pod_uid), (of(JOB), Some(uid("c2"))));
}

#[test]
fn a_vm_says_what_its_status_has_of_a_migration() {
    let at_first = instance(&fixture!("instance")).expect("it is one");
    assert_eq!((at_first.uid.as_str(), at_first.node, at_first.state), (VM, of("node-a"), None));

    let migrating = MigrationStateSeen {
        uid: of(JOB),
        source_node: of("node-a"),
        source_pod: of("virt-launcher-web-aaaaa"),
        target_node: of("node-b"),
        target_pod: of("virt-launcher-web-bbbbb"),
        target_attachment_uid: Some(uid("d2")),
        started_ms: Some(NINE + 31_000),
        ..MigrationStateSeen::default()
    };
    let seen = |object: &Value| instance(object).and_then(|vm| vm.state);
    assert_eq!(seen(&fixture!("instance-migrating")), Some(migrating.clone()));
    let ended = MigrationStateSeen { completed: true, ..migrating };
    let (ready_ms, ended_ms) = (Some(NINE + 40_000), Some(NINE + 41_000));
    assert_eq!(
        seen(&fixture!("instance-migrated")),
        Some(MigrationStateSeen { ready_ms, ended_ms, ..ended.clone() })
    );
    assert_eq!(
        seen(&fixture!("instance-aborted")),
        Some(MigrationStateSeen {
            ended_ms: Some(NINE + 38_000),
            failed: true,
            abort_requested: true,
            abort_status: of("Succeeded"),
            ..ended
        })
    );
    assert!(seen(&fixture!("instance-elsewhere")).is_some_and(|state| state.elsewhere));
}

#[test]
fn what_only_the_states_of_both_sides_have_is_read_there() {
    let mut object = fixture!("instance-elsewhere");
    let state =
        object.pointer_mut("/status/migrationState").and_then(Value::as_object_mut).expect("it has one");
    let whole = instance(&json!({"metadata": {"namespace": "n", "name": "v", "uid": "u"}, "status": {"migrationState": state}}))
        .and_then(|vm| vm.state);
    state.retain(|key, _| key.ends_with("State") || key == "startTimestamp");
    let of_sides = instance(&object).and_then(|vm| vm.state).expect("it has one");
    assert_eq!(of_sides.target_attachment_uid, Some(uid("f2")));
    assert_eq!(of_sides.ready_ms, Some(NINE + 40_000));
    assert_eq!(Some(of_sides), whole);
}

#[test]
fn a_migration_says_its_phase_and_when_it_came_to_it() {
    let running = migration(&fixture!("migration-running")).expect("it is one");
    assert_eq!(
        (running.uid.as_str(), running.vmi_name.as_str(), running.phase.as_str()),
        (JOB, "web", "Running")
    );
    assert_eq!((running.created_ms, running.source_pod), (NINE, of("virt-launcher-web-aaaaa")));
    let shown: Vec<_> = running.transitions.iter().map(|(phase, at)| (phase.as_str(), at - NINE)).collect();
    assert_eq!(
        shown,
        [
            ("Pending", 0),
            ("Scheduling", 9000),
            ("Scheduled", 20_000),
            ("PreparingTarget", 21_000),
            ("TargetReady", 24_000),
            ("Running", 31_000)
        ]
    );
    assert!(!running.abort_requested && !running.elsewhere);
    assert!(migration(&fixture!("migration-aborted")).is_some_and(|one| one.abort_requested));
    let mut sent = fixture!("migration-running");
    sent["spec"]["sendTo"] = json!({"migrationID": "m", "connectURL": "192.0.2.9:9185"});
    assert!(migration(&sent).is_some_and(|one| one.elsewhere));
}

#[test]
fn what_is_not_kubevirts_or_not_of_its_form_is_not_read() {
    for (pointer, value) in [
        ("/metadata/labels/kubevirt.io", json!("virt-exporter")),
        ("/metadata/labels", json!(null)),
        ("/metadata/uid", json!("")),
        ("/metadata/namespace", json!(7)),
        ("/metadata", json!("x")),
    ] {
        let mut object = fixture!("launcher");
        *object.pointer_mut(pointer).expect("it is there") = value.clone();
        assert_eq!(pod(&object), None, "{pointer}: {value}");
    }
    for object in [json!(null), json!([]), json!({"metadata": []}), json!({"spec": {"vmiName": "web"}})] {
        assert_eq!((pod(&object), instance(&object), migration(&object)), (None, None, None), "{object}");
    }
    let mut odd = fixture!("instance-migrated");
    odd["status"]["migrationState"]["completed"] = json!("true");
    odd["status"]["migrationState"]["startTimestamp"] = json!("yesterday");
    odd["status"]["migrationState"]["endTimestamp"] = json!("1960-01-01T00:00:00Z");
    let state = instance(&odd).and_then(|vm| vm.state).expect("the rest of it");
    assert_eq!((state.completed, state.started_ms, state.ended_ms), (false, None, None));
}

#[test]
fn a_text_that_no_name_or_uid_can_be_is_not_read() {
    for (text, is_read) in [
        ("u\n2026-11-30T09:00:00Z ERROR cleat_controller: all is lost".to_owned(), false),
        ("u\u{1b}[2J".to_owned(), false),
        ("u".repeat(254), false),
        ("u".repeat(253), true),
    ] {
        let mut object = fixture!("launcher");
        for pointer in [
            "/metadata/ownerReferences/0/uid",
            "/metadata/labels/kubevirt.io~1created-by",
            "/spec/volumes/1/persistentVolumeClaim/claimName",
        ] {
            *object.pointer_mut(pointer).expect("it is there") = json!(text);
        }
        let seen = pod(&object).expect("the rest of it");
        let read = is_read.then_some(text);
        assert_eq!((&seen.owner_vmi_uid, &seen.vmi_uid), (&read, &read));
        assert_eq!(seen.claims, Vec::from_iter(read));
    }
}
