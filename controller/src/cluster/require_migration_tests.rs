#![allow(clippy::unwrap_used)]

use std::time::Duration;

use cleat_core::{Access, Config, Desired, MinFence, NodeRecord, Remembered, VolumeSpec};
use cleat_kubernetes::api::ApiServer;
use serde_json::{Value, json};

use super::*;

fn n(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn nodes(names: &[&str]) -> BTreeSet<NodeId> {
    names.iter().copied().map(n).collect()
}

fn attachment(node: &str, phase: &Value) -> Value {
    json!({
        "node": node, "hostNqn": format!("nqn.2014-08.org.example:{node}"), "epoch": "1.1", "role": "primary",
        "readOnly": false, "phase": phase, "since": 1, "proven": true, "bootId": null, "mayLandUntil": null,
    })
}

fn record(attachments: &[Value]) -> VolumeRecord {
    serde_json::from_value(json!({
        "spec": {"id": "v", "access": "RWX block", "subsystemNqn": null, "portals": [], "sizeBytes": 4096},
        "identity": null, "attachments": attachments, "migration": null, "fenced": [], "pastEvidence": [],
    }))
    .unwrap()
}

fn phase(name: &str) -> Value {
    match name {
        "draining" => json!({"type": name, "cause": {"type": "requested"}, "evidence": null}),
        name => json!({"type": name}),
    }
}

fn holding(itself: Itself, others: &[&str]) -> Holding {
    Holding { itself, others: nodes(others) }
}

#[test]
fn who_is_being_detached_holds_nothing_and_everybody_else_does() {
    let of = |all: &[(&str, &str)], node: &str| {
        let all: Vec<_> = all.iter().map(|(node, name)| attachment(node, &phase(name))).collect();
        Holding::from_parts(Some(&record(&all)), BTreeSet::new(), BTreeSet::new(), &n(node))
    };
    for (case, all, node, expected) in [
        ("nobody has it", &[][..], "b", holding(Itself::No, &[])),
        ("another node has it", &[("a", "ready")], "b", holding(Itself::No, &["a"])),
        ("another node is being let in", &[("a", "granting")], "b", holding(Itself::No, &["a"])),
        ("another node's device was found", &[("a", "stray")], "b", holding(Itself::No, &["a"])),
        ("the source drains", &[("a", "draining")], "b", holding(Itself::No, &[])),
        ("the node itself drains", &[("b", "draining"), ("a", "ready")], "b", holding(Itself::No, &["a"])),
        ("both have it", &[("a", "ready"), ("b", "ready")], "b", holding(Itself::Yes, &["a"])),
        ("it is being let in", &[("a", "ready"), ("b", "connecting")], "b", holding(Itself::Yes, &["a"])),
        ("its own device was found", &[("a", "ready"), ("b", "stray")], "b", holding(Itself::Yes, &["a"])),
    ] {
        assert_eq!(of(all, node), expected, "{case}");
    }
}

#[test]
fn who_has_the_volume_for_tickets_alone_holds_it_for_nobody() {
    let mut of_tickets = attachment("a", &phase("ready"));
    let ticket =
        json!({"id": "t", "kind": "backup", "generation": 1, "holder": "h", "since": 1, "renewMs": 60_000});
    of_tickets["wanted"] = json!({"csi": false, "unpublishing": false, "tickets": [ticket]});
    let of = |waiting: &[&str], node: &str| {
        let record = record(std::slice::from_ref(&of_tickets));
        Holding::from_parts(Some(&record), BTreeSet::new(), nodes(waiting), &n(node))
    };
    assert_eq!(of(&[], "b"), holding(Itself::No, &[]), "a backup gives way to a workload elsewhere");
    // Who asks there comes after whoever waits for the backup to go.
    assert_eq!(of(&["b"], "a"), holding(Itself::No, &["b"]));
}

#[test]
fn who_waits_for_the_volume_holds_it_for_whoever_comes_later() {
    let (none, waiting) = (BTreeSet::new(), nodes(&["b", "c"]));
    let held = Holding::from_parts(None, none, waiting, &n("c"));
    assert_eq!(held, holding(Itself::No, &["b"]), "its own earlier call is not another node's");
}

/// A start at which all records of volumes are lost, and two nodes are to have the volume: of one it is known which host it is.
fn all_lost() -> Core {
    let known: NodeRecord = serde_json::from_value(json!({
        "node": "a", "identity": {
            "hostNqn": "nqn.2014-08.org.example:a", "hostId": "00000000-0000-0000-0000-000000000001",
            "storageAddresses": [], "bootId": "b",
        },
    }))
    .unwrap();
    let desired = |node: &str| Desired {
        volume: VolumeId::new("v").unwrap(),
        node: n(node),
        access: Access::RwxBlock,
        min_fence: MinFence::default(),
        migration_timeout_ms: VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS,
        require_migration: true,
        since: UnixMillis(1),
        attached: true,
        epoch: None,
    };
    let remembered = Remembered {
        volumes: Vec::new(),
        nodes: vec![known],
        desired: vec![desired("a"), desired("b")],
        lists_first: false,
    };
    Core::rebuild(Config::default(), 1, remembered, UnixMillis(10)).0
}

#[test]
fn with_all_records_lost_who_is_to_have_a_volume_counts_as_holding_it() {
    let (core, v) = (all_lost(), VolumeId::new("v").unwrap());
    let of = |node: &str| Holding::of(&core, &v, &n(node), UnixMillis(10));
    assert_eq!(of("c"), holding(Itself::No, &["a", "b"]));
    // Somebody was refused and asks again, or had it: its VolumeAttachment says which.
    assert_eq!(of("a"), holding(Itself::IfAnswered, &["b"]));
    assert_eq!(of("b"), holding(Itself::IfAnswered, &["a"]));
}

fn vm(seen: Option<MoveSeen>) -> MoverSeen {
    let migration = seen.map(Box::new);
    MoverSeen::Vm { namespace: "vms".into(), name: "web".into(), uid: "v1".into(), migration }
}

fn moving(from: &str, to: Option<&str>, stage: MoveStage) -> MoveSeen {
    MoveSeen {
        uid: "m1".into(),
        name: Some("web-1".into()),
        source: from.into(),
        target: to.map(str::to_owned),
        stage,
        switched_ms: None,
        source_launcher: None,
        target_launcher: None,
    }
}

#[test]
fn only_a_migration_under_way_from_who_has_it_lets_a_second_node_in() {
    let there = |stage| vm(Some(moving("a", Some("b"), stage)));
    let of = |others: &[&str], mover: Option<MoverSeen>| moves_there(&n("b"), &nodes(others), mover.as_ref());
    for stage in [MoveStage::Preparing, MoveStage::Running] {
        assert_eq!(of(&["a"], Some(there(stage))), Ok(()));
    }
    let nameless = MoveSeen { name: None, ..moving("a", Some("b"), MoveStage::Preparing) };
    let elsewhere = |from, to| Some(vm(Some(moving(from, to, MoveStage::Running))));
    let contradiction = MoverSeen::Contradiction { why: "two VMs have it".into() };
    for (case, others, mover, says) in [
        ("no KubeVirt", &["a"][..], None, "the cluster has no KubeVirt"),
        ("no VM", &["a"], Some(MoverSeen::Nobody), "no pod of a KubeVirt VM"),
        (
            "a VM that stays, or another VM's migration",
            &["a"],
            Some(vm(None)),
            "VM vms/web has it, and has no",
        ),
        ("a UID that somebody wrote on a pod", &["a"], Some(vm(Some(nameless))), "for migration m1, and no"),
        ("completed", &["a"], Some(there(MoveStage::Completed)), "web-1 of VM vms/web has completed"),
        ("failed", &["a"], Some(there(MoveStage::Failed)), "has failed, and there is no later one"),
        ("aborted", &["a"], Some(there(MoveStage::Aborted)), "was aborted"),
        ("to another node", &["a"], elsewhere("a", Some("c")), "moves VM vms/web from node a to node c"),
        ("to no node yet", &["a"], elsewhere("a", None), "from node a to no node yet"),
        ("from another node", &["a"], elsewhere("c", Some("b")), "from node c to node b"),
        ("from one of two", &["a", "c"], elsewhere("a", Some("b")), "from node a to node b"),
        ("a contradiction", &["a"], Some(contradiction), "cannot be true together: two VMs have it"),
    ] {
        let said = of(others, mover).unwrap_err().to_string();
        assert!(said.contains(says), "{case}: {said:?} should say {says:?}");
    }
}

#[tokio::test]
async fn outside_a_cluster_only_a_second_node_is_refused() {
    let v = VolumeId::new("v").unwrap();
    for alone in [holding(Itself::No, &[]), holding(Itself::Yes, &["a"])] {
        assert_eq!(may_be_second(None, &v, &n("b"), alone).await, Ok(()));
    }
    let refused = may_be_second(None, &v, &n("b"), holding(Itself::No, &["a", "c"])).await.unwrap_err();
    let said = refused.to_string();
    assert!(said.starts_with("cannot attach volume v to node b beside node a and node c: "), "{said}");
    assert!(said.contains("outside a cluster") && said.ends_with("; detach it from there first"), "{said}");
}

/// What asks an API server that takes connections and says nothing.
async fn of_a_silent_api_server() -> (Attachments, tokio::net::TcpListener) {
    let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (folder, at) = (tempfile::tempdir().unwrap(), silent.local_addr().unwrap());
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{at}")}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    let file = folder.path().join("kubeconfig");
    std::fs::write(&file, kubeconfig.to_string()).unwrap();
    let server = ApiServer::connect(Some(&file), Duration::from_millis(200)).await.unwrap();
    (Attachments::watch(server, "cleat.io"), silent)
}

#[tokio::test]
async fn of_a_silent_api_server_only_a_second_node_has_to_wait() {
    let (attachments, _silent) = of_a_silent_api_server().await;
    let (v, asks) = (VolumeId::new("v").unwrap(), Some(&attachments));
    for not_second in [holding(Itself::No, &[]), holding(Itself::Yes, &["a"])] {
        assert_eq!(may_be_second(asks, &v, &n("b"), not_second).await, Ok(()));
    }
    for second in [holding(Itself::No, &["a"]), holding(Itself::IfAnswered, &["a"])] {
        let unknown = may_be_second(asks, &v, &n("b"), second).await.unwrap_err();
        assert!(matches!(unknown, NotAsClustered::MigrationNotAnswered { .. }), "{unknown:?}");
    }
}
