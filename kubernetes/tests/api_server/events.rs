//! Events: one for what happens, its count for what happens again, and the objects that they are about.

use std::time::Duration;

use cleat_api_server::{Shared, shared};
use cleat_kubernetes::events::{Events, Happening, ObjectOfCluster};
use cleat_kubernetes::references::References;

fn node(uid: &str) -> ObjectOfCluster {
    ObjectOfCluster {
        api_version: "v1".into(),
        kind: "Node".into(),
        namespace: None,
        name: "events-a".into(),
        uid: Some(uid.into()),
    }
}

fn happening(uid: &str, note: &str) -> Happening {
    Happening { object: node(uid), reason: "FenceStarted", warning: true, note: note.into() }
}

/// The Events about that object, each with its note and the count of its series.
fn shown(cluster: &Shared, uid: &str) -> Vec<String> {
    let path = r#"jsonpath={range .items[*]}{.reason}/{.type}/{.note}/{.series.count}{"\n"}{end}"#;
    let field = format!("--field-selector=regarding.uid={uid}");
    let events = "events.events.k8s.io";
    let text = cluster.kubectl(&["get", events, "-n", "default", &field, "-o", path]);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn what_happens_again_raises_the_count_of_one_event() {
    let cluster = shared();
    let mut events = Events::new(cluster.server().await, "cleat.io/controller", "one_1");
    for note in ["a is cut off", "a is cut off", "b is cut off", "a is cut off"] {
        events.say(happening("u-1", note)).await.unwrap();
    }
    assert_eq!(
        shown(cluster, "u-1"),
        ["FenceStarted/Warning/a is cut off/", "FenceStarted/Warning/b is cut off/"]
    );
    // The counts are written at most every few seconds, all at once then.
    tokio::time::sleep(Duration::from_secs(11)).await;
    events.write_counts().await.unwrap();
    assert_eq!(
        shown(cluster, "u-1"),
        ["FenceStarted/Warning/a is cut off/3", "FenceStarted/Warning/b is cut off/"]
    );
    let described =
        cluster.kubectl(&["get", "events", "-n", "default", "--field-selector=involvedObject.uid=u-1"]);
    assert!(described.contains("node/events-a"), "{described}");
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn an_event_that_somebody_deleted_is_made_again() {
    let cluster = shared();
    let mut events = Events::new(cluster.server().await, "cleat.io/controller", "two_1");
    let again = || happening("u-2", "again");
    events.say(again()).await.unwrap();
    cluster.kubectl(&[
        "delete",
        "events.events.k8s.io",
        "-n",
        "default",
        "--field-selector=regarding.uid=u-2",
    ]);
    tokio::time::sleep(Duration::from_secs(11)).await;
    events.say(again()).await.unwrap();
    assert_eq!(shown(cluster, "u-2").len(), 1);
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn the_claim_of_a_volume_is_found_by_the_handle_whatever_its_name() {
    let cluster = shared();
    let dir = tempfile::tempdir().unwrap();
    let volume = |pv: &str, handle: &str, driver: &str, claim: &str| {
        format!(
            "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {pv}}}\nspec:\n  capacity: {{storage: 1Gi}}\n  \
             accessModes: [ReadWriteOnce]\n  volumeMode: Block\n  csi: {{driver: {driver}, volumeHandle: {handle}}}\n  \
             claimRef: {{kind: PersistentVolumeClaim, apiVersion: v1, namespace: default, name: {claim}, uid: u-{claim}}}\n---\n"
        )
    };
    let all = [
        volume("ref-1", "ref-1", "cleat.io", "one"),
        volume("by-hand", "ref-2", "cleat.io", "two"),
        volume("ref-3", "ref-3", "other.io", "three"),
    ];
    let file = dir.path().join("volumes.yaml");
    std::fs::write(&file, all.concat()).unwrap();
    cluster.kubectl(&["apply", "-f", file.to_str().unwrap()]);
    let mut references = References::new(cluster.server().await, "cleat.io");
    for (handle, claim) in [("ref-1", Some("one")), ("ref-2", Some("two")), ("ref-3", None), ("none", None)] {
        let found = references.claim(handle).await;
        assert_eq!(found.as_ref().map(|found| found.name.as_str()), claim, "{handle}");
        let uid = found.and_then(|found| found.uid);
        assert_eq!(uid, claim.map(|claim| format!("u-{claim}")));
    }
    assert_eq!(references.node("nobody").await.uid, None);
}
