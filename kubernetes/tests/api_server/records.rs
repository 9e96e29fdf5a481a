//! ClusterRecords: written against a version, kept whole, and beside what people do to them.

use cleat_kubernetes::api::ApiError;
use cleat_kubernetes::definitions;
use cleat_kubernetes::nodes;
use cleat_kubernetes::records::{
    Before, ClusterRecords, Kind, RecordObject, RecordWrite, WriteError, Written,
};
use cleat_kubernetes::reviews::{Reviewed, Reviews};
use serde_json::{Map, Value, json};

use cleat_api_server::{Shared, shared};

async fn records() -> (&'static Shared, ClusterRecords) {
    let cluster = shared();
    let server = cluster.server().await;
    definitions::install(&server).await.unwrap();
    cluster.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/cleatvolumes.cleat.io",
        "crd/cleatnodes.cleat.io",
    ]);
    (cluster, ClusterRecords::new(server))
}

fn map(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// A record of that size, which one attachment of each kind has.
pub(crate) fn record(name: &str, size: u64) -> Map<String, Value> {
    let attachment = |node: &str, phase: Value| {
        json!({
            "node": node, "hostNqn": format!("nqn.2026-01.test:{node}"), "epoch": "17.1", "role": "primary",
            "readOnly": false, "phase": phase, "since": 1_790_000_000_000_u64, "proven": true, "bootId": "b",
            "mayLandUntil": null, "secret": "17.2", "stray": false,
        })
    };
    let evidence = |source: Value, drained: Value| json!({"node": "b", "epoch": "17.1", "source": source, "drained": drained, "at": 3, "statement": null});
    let fence = json!({
        "rung": "export-off", "step": "hide", "tried": [{"rung": "acl", "result": "no list"}], "since": 4, "touched": true,
        "denied": false, "preemptedBy": null, "aborted": false,
    });
    let draining = json!({
        "type": "draining", "cause": {"type": "forced", "by": "alice", "reason": "it hangs"}, "fence": fence,
        "evidence": evidence(json!({"type": "target-cut", "acl": true, "secret": null}), json!({"type": "bound", "until": 9})),
    });
    map(json!({"unsettled": true, "record": {
        "spec": {
            "id": name, "access": "RWX block", "subsystemNqn": format!("nqn.2026-01.io.cleat:{name}"),
            "portals": ["10.0.0.1:4420"], "sizeBytes": size, "minFence": "acl",
            "migrationTimeoutMs": 300_000, "requireMigration": false,
        },
        "identity": {"namespaceUuid": "00000000-0000-0000-0000-000000000001", "nguid": null},
        "attachments": [attachment("a", json!({"type": "ready"})), attachment("b", draining)],
        "migration": {
            "source": "a", "sourceEpoch": "17.1", "target": "b", "targetEpoch": "17.3", "result": "running",
            "steps": [{"step": "granted", "at": 5}], "grantedAt": 5, "timeoutMs": 300_000, "left": null,
            "vm": {
                "uid": "m", "name": "move-web", "vm": {"namespace": "prod", "name": "web", "uid": "v"}, "source": "a",
                "target": "b", "stage": "running", "switchedAt": null,
            },
        },
        "pastMigrations": [],
        "fenced": [{
            "node": "c", "hostNqn": "nqn.2026-01.test:c", "epoch": "17.1", "since": 6, "gone": true,
            "evidence": evidence(json!({"type": "node-gone", "by": "bob", "reason": "burnt"}), json!({"type": "barrier"})),
        }],
        "hidden": true, "secret": {"generation": "17.2", "inForce": true}, "deleting": false, "deleted": false,
        "pastEvidence": [
            evidence(json!({"type": "agent-absent", "bootId": "b"}), json!({"type": "live-deletion"})),
            evidence(json!({"type": "reservation", "by": "a"}), json!({"type": "abort"})),
            evidence(json!({"type": "never-allowed"}), json!({"type": "never-handed-out"})),
        ],
    }}))
}

fn write<'a>(
    name: &'a str,
    before: Option<Before<'a>>,
    value: Option<&'a Map<String, Value>>,
) -> RecordWrite<'a> {
    RecordWrite { kind: Kind::Volume, name, before, value, lets_in: false }
}

fn after(written: Written, value: &Map<String, Value>) -> Option<Before<'_>> {
    Some(Before { version: written.version, value, deleting: written.deleting, unguarded: None })
}

fn always() -> bool {
    true
}

async fn listed(records: &ClusterRecords, name: &str) -> Option<RecordObject> {
    records.list().await.unwrap().into_iter().find(|stored| stored.name == name)
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_record_comes_back_as_it_was_written() {
    let (_, records) = records().await;
    let value = record("whole", 4096);
    let made = records.write(7, &write("whole", None, Some(&value)), always).await.unwrap();
    let there = listed(&records, "whole").await.unwrap();
    let (kind, name, version) = (Kind::Volume, "whole".into(), made.version);
    let (unguarded, status) = (None, None);
    let (term, deleting, there_is) = (7, false, value.clone());
    assert_eq!(
        there,
        RecordObject { kind, name, version, term, value: there_is, deleting, unguarded, status }
    );
    let _: cleat_core::VolumeRecord = serde_json::from_value(there.value["record"].clone()).unwrap();
    let gone = records.write(7, &write("whole", after(made, &value), None), always).await.unwrap();
    assert_eq!((gone.version, listed(&records, "whole").await), (0, None));
    let identity = json!({
        "hostNqn": "nqn.2026-01.test:a", "hostId": "00000000-0000-0000-0000-000000000001",
        "storageAddresses": ["10.0.0.9"], "bootId": "b",
    });
    let node = map(json!({"record": {"node": "node-a", "identity": identity}}));
    let of_node = RecordWrite { kind: Kind::Node, ..write("node-a", None, Some(&node)) };
    records.write(7, &of_node, always).await.unwrap();
    assert_eq!(listed(&records, "node-a").await.unwrap().value, node);
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_write_is_made_once_against_the_version_that_was_seen() {
    let (_, records) = records().await;
    let (one, two, three) = (record("cas", 1), record("cas", 2), record("cas", 3));
    let first = records.write(7, &write("cas", None, Some(&one)), always).await.unwrap();
    assert_eq!(
        records.write(7, &write("cas", None, Some(&one)), always).await,
        Ok(first),
        "its answer was lost"
    );
    let second = records.write(7, &write("cas", after(first, &one), Some(&two)), always).await.unwrap();
    assert_eq!(records.write(7, &write("cas", after(first, &one), Some(&two)), always).await, Ok(second));
    let late = records.write(7, &write("cas", after(first, &one), Some(&three)), always).await;
    assert_eq!(late, Err(WriteError::Conflict { found: second.version }));
    let removed = records.write(7, &write("cas", after(first, &one), None), always).await;
    assert_eq!(removed, Err(WriteError::Conflict { found: second.version }), "nor is it removed");
    assert_eq!(listed(&records, "cas").await.unwrap().value, two);
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn what_an_earlier_leader_wrote_too_late_is_written_over() {
    let (_, records) = records().await;
    let (one, late, ours) = (record("late", 1), record("late", 2), record("late", 3));
    let first = records.write(7, &write("late", None, Some(&one)), always).await.unwrap();
    let too_late = records.write(7, &write("late", after(first, &one), Some(&late)), always).await.unwrap();
    let made = records.write(8, &write("late", after(first, &one), Some(&ours)), always).await.unwrap();
    assert!(made.version > too_late.version);
    assert_eq!(listed(&records, "late").await.unwrap().value, ours);
    let back = records.write(7, &write("late", after(too_late, &late), Some(&late)), always).await;
    assert_eq!(back, Err(WriteError::Overtaken), "a later one is not");
    let unchanged = records.write(7, &write("late", after(too_late, &ours), Some(&one)), always).await;
    assert_eq!(unchanged, Err(WriteError::Overtaken), "nor where it says the same");
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn what_people_put_beside_a_record_stays_and_stops_nothing() {
    let (cluster, records) = records().await;
    let (one, two, three) = (record("beside", 1), record("beside", 2), record("beside", 3));
    let first = records.write(7, &write("beside", None, Some(&one)), always).await.unwrap();
    cluster.kubectl(&["label", "cleatvolume", "beside", "team=red"]);
    let second = records.write(7, &write("beside", after(first, &one), Some(&two)), always).await.unwrap();
    let off = r#"{"metadata":{"finalizers":["example.org/theirs"]}}"#;
    cluster.kubectl(&["patch", "cleatvolume", "beside", "--type=merge", "-p", off]);
    records.write(7, &write("beside", after(second, &two), Some(&three)), always).await.unwrap();
    let get =
        |path: &str| cluster.kubectl(&["get", "cleatvolume", "beside", "-o", &format!("jsonpath={path}")]);
    assert_eq!(get("{.metadata.labels.team}"), "red");
    assert_eq!(get("{.metadata.finalizers}"), r#"["example.org/theirs","cleat.io/may-write"]"#);
    assert_eq!(listed(&records, "beside").await.unwrap().value, three);
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_record_that_a_person_edits_is_a_conflict() {
    let (cluster, records) = records().await;
    let (one, two) = (record("edited", 1), record("edited", 2));
    let first = records.write(7, &write("edited", None, Some(&one)), always).await.unwrap();
    let patch = r#"{"spec":{"record":{"attachments":[]}}}"#;
    cluster.kubectl(&["patch", "cleatvolume", "edited", "--type=merge", "-p", patch]);
    let refused = records.write(7, &write("edited", after(first, &one), Some(&two)), always).await;
    assert!(matches!(refused, Err(WriteError::Conflict { .. })), "{refused:?}");
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_record_that_a_person_deletes_stays_and_lets_nobody_in() {
    let (cluster, records) = records().await;
    let (one, two, three) = (record("deleted", 1), record("deleted", 2), record("deleted", 3));
    let first = records.write(7, &write("deleted", None, Some(&one)), always).await.unwrap();
    cluster.kubectl(&["delete", "cleatvolume", "deleted", "--wait=false"]);
    let letting_in = |before, value| RecordWrite { lets_in: true, ..write("deleted", before, Some(value)) };
    assert_eq!(
        records.write(7, &letting_in(after(first, &one), &two), always).await,
        Err(WriteError::Deleting)
    );
    let second = records.write(7, &write("deleted", after(first, &one), Some(&two)), always).await.unwrap();
    assert!(second.deleting && listed(&records, "deleted").await.unwrap().deleting);
    assert_eq!(
        records.write(7, &letting_in(after(second, &two), &three), always).await,
        Err(WriteError::Deleting)
    );
    records.write(7, &write("deleted", after(second, &two), None), always).await.unwrap();
    assert_eq!(listed(&records, "deleted").await, None);
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_field_that_the_cluster_does_not_know_is_an_error_and_not_lost() {
    let (_, records) = records().await;
    let mut newer = record("newer", 1);
    newer.insert("ofTomorrow".into(), json!(1));
    let refused = records.write(7, &write("newer", None, Some(&newer)), always).await;
    assert!(
        matches!(&refused, Err(WriteError::Api(ApiError::Refused(why))) if why.contains("ofTomorrow")),
        "{refused:?}"
    );
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_status_is_in_the_table_and_changes_no_record() {
    let (cluster, records) = records().await;
    let one = record("described", 1);
    let first = records.write(7, &write("described", None, Some(&one)), always).await.unwrap();
    let status = json!({"nodes": "a (Ready)", "evidence": "b: TargetCut"});
    records.describe(Kind::Volume, "described", first.version, &status).await.unwrap();
    assert_eq!(listed(&records, "described").await.unwrap().status.as_ref(), Some(&status));
    let again = records.describe(Kind::Volume, "described", first.version, &status).await;
    assert_eq!(again, Err(ApiError::Conflict), "it is of another version by now");
    let table = cluster.kubectl(&["get", "cleatvolumes", "described"]);
    assert!(
        table.contains("a (Ready)") && table.contains("b: TargetCut") && table.contains("RWX block"),
        "{table}"
    );
    records.write(7, &write("described", after(first, &one), None), always).await.unwrap();
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_record_that_a_person_removes_by_force_is_made_again() {
    let (cluster, records) = records().await;
    let (one, two) = (record("removed", 1), record("removed", 2));
    let first = records.write(7, &write("removed", None, Some(&one)), always).await.unwrap();
    cluster.kubectl(&[
        "patch",
        "cleatvolume",
        "removed",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":null}}"#,
    ]);
    cluster.kubectl(&["delete", "cleatvolume", "removed"]);
    records.write(7, &write("removed", after(first, &one), Some(&two)), always).await.unwrap();
    assert_eq!(listed(&records, "removed").await.unwrap().value, two);
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_nodes_record_is_not_written_over_one_of_another_host() {
    let (cluster, records) = records().await;
    let of = |host: &str, boot: &str| {
        let identity = json!({
            "hostNqn": format!("nqn.2026-01.test:{host}"), "hostId": "00000000-0000-0000-0000-00000000000a",
            "storageAddresses": [], "bootId": boot,
        });
        map(json!({"record": {"node": "pinned", "identity": identity, "uid": "u1"}}))
    };
    fn of_node<'a>(before: Option<Before<'a>>, value: &'a Map<String, Value>) -> RecordWrite<'a> {
        RecordWrite { kind: Kind::Node, ..write("pinned", before, Some(value)) }
    }
    let (a, a_later, b) = (of("a", "1"), of("a", "2"), of("b", "2"));
    let first = records.write(7, &of_node(None, &a), always).await.unwrap();
    assert_eq!(records.get(Kind::Node, "pinned").await.unwrap().unwrap().value, a);
    let patch = r#"{"spec":{"record":{"identity":{"hostNqn":"nqn.2026-01.test:b"}}}}"#;
    cluster.kubectl(&["patch", "cleatnode", "pinned", "--type=merge", "-p", patch]);
    for term in [7, 8] {
        let refused = records.write(term, &of_node(after(first, &a), &a_later), always).await;
        assert!(
            matches!(&refused, Err(WriteError::Pinned { host }) if host.contains("test:b")),
            "term {term}: {refused:?}"
        );
    }
    let taken_over = records.write(7, &of_node(after(first, &a), &b), always).await.unwrap();
    assert_eq!(records.get(Kind::Node, "pinned").await.unwrap().unwrap().version, taken_over.version);
    let back = records.write(7, &of_node(after(taken_over, &b), &a), always).await;
    assert!(back.is_ok(), "what was seen may become another host's: {back:?}");
    assert_eq!(records.get(Kind::Node, "nobody").await, Ok(None));
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_node_that_is_made_again_has_another_uid_and_later_tokens_say_so() {
    let (cluster, _) = records().await;
    let (server, identities) = (cluster.server().await, cluster.identities());
    assert_eq!(nodes::uid(&server, "again").await, Ok(None));
    identities.pod("again", "agent", "again");
    let token = || identities.token("again", "agent", "again", "cleat.io");
    let (first, early) = (nodes::uid(&server, "again").await.unwrap(), token());
    cluster.kubectl(&["delete", "node", "again"]);
    assert_eq!(nodes::uid(&server, "again").await, Ok(None));
    identities.apply(&json!([{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "again"}}]));
    let second = nodes::uid(&server, "again").await.unwrap();
    assert!(first.is_some() && second.is_some() && first != second, "{first:?} {second:?}");
    let reviews = Reviews::new(server);
    for (token, uid) in [(early, first), (token(), second)] {
        let Reviewed::User(user) = reviews.token(&token, Some("cleat.io")).await.unwrap() else {
            panic!("refused")
        };
        assert_eq!((user.node(), user.node_uid()), (Some("again"), uid.as_deref()));
    }
}
