//! Tickets as objects on a real API server: what attaches a volume, what gives way to a workload, and what is lost.

use std::time::{Duration, Instant};

use cleat_api_server::Cluster;
use cleat_kubernetes::tickets::RENEWED;
use serde_json::{Value, json};

use crate::agent::Host;
use crate::cluster::leads;
use crate::world::{RWO, World};

const NAMESPACE: &str = "shop";
const PATIENCE: Duration = Duration::from_secs(60);

/// A replica that leads, in a cluster where claim `root` of the namespace `shop` has the volume `vm-1`.
async fn begin() -> (Cluster, World) {
    let (cluster, mut world) = (Cluster::own(), World::new());
    world.core.interrupt_grace_ms = 3_000;
    for namespace in [NAMESPACE, "bank"] {
        cluster.kubectl(&["create", "namespace", namespace]);
    }
    cluster.identities().apply(&json!([{
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "root", "namespace": NAMESPACE},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "storageClassName": "", "volumeName": "pv-vm-1",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }]));
    let claim = cluster.kubectl(&["-n", NAMESPACE, "get", "pvc", "root", "-o", "jsonpath={.metadata.uid}"]);
    cluster.identities().apply(&json!([{
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv-vm-1"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
            "csi": {"driver": "cleat.io", "volumeHandle": "vm-1"},
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": NAMESPACE, "name": "root", "uid": claim,
            },
        },
    }]));
    world.join(&cluster.kubeconfig(), "cleat", "one").await;
    leads(&world).await;
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/tickets.cleat.io"]);
    (cluster, world)
}

fn ticket(cluster: &Cluster, namespace: &str, name: &str, spec: Value) {
    cluster.identities().apply(&json!([{
        "apiVersion": "cleat.io/v1alpha1", "kind": "Ticket",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    }]));
}

/// The ticket, once that holds of it.
async fn until(
    cluster: &Cluster,
    (namespace, name): (&str, &str),
    what: &str,
    holds: impl Fn(&Value) -> bool,
) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let object = cluster.kubectl(&["-n", namespace, "get", "ticket", name, "-o", "json"]);
        let object: Value = serde_json::from_str(&object).unwrap();
        if holds(&object["status"]) {
            return object;
        }
        assert!(Instant::now() < deadline, "{what}: {object:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn is_satisfied_on(status: &Value, node: &str) -> bool {
    status["satisfied"] == true && status["node"] == node
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let all = status["conditions"].as_array().into_iter().flatten();
    all.filter(|one| one["type"] == kind).map(|one| &one["reason"]).next().unwrap_or(&Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_ticket_object_attaches_a_volume_and_gives_way_to_a_workload() {
    let (cluster, world) = begin().await;
    let (first, second) = (Host::new("node-a", 1), Host::new("node-b", 2));
    let (_first, _second) = (world.agent(&first).await, world.agent(&second).await);
    let csi = world.csi().await;
    csi.create("vm-1").await.unwrap();
    let backup = json!({"type": "backup", "claim": "root", "holder": "velero", "node": "node-a", "renewSeconds": 3600});
    ticket(&cluster, NAMESPACE, "nightly", backup);
    let nightly = (NAMESPACE, "nightly");
    let there = until(&cluster, nightly, "satisfied", |status| is_satisfied_on(status, "node-a")).await;
    assert_eq!(there["status"]["satisfiedGeneration"], 1, "{there:#}");
    assert!(first.holds("vm-1") && !second.holds("vm-1"));

    let foreign = json!({"type": "backup", "volume": "vm-1", "holder": "somebody"});
    ticket(&cluster, "bank", "foreign", foreign);
    until(&cluster, ("bank", "foreign"), "refused", |status| {
        condition(status, "Satisfied") == "VolumeNotOfNamespace"
    })
    .await;

    cluster.wants("vm-1", "node-b", false);
    let caller = csi.clone();
    let publish = tokio::spawn(async move { caller.publish("vm-1", "node-b", RWO).await });
    let asked =
        until(&cluster, nightly, "interrupted", |status| status["interruptedUntil"].is_string()).await;
    assert_eq!(asked["status"]["waitsOn"], "ticket csi.node-b", "{asked:#}");
    assert_eq!(condition(&asked["status"], "Satisfied"), "Interrupted");
    publish.await.unwrap().unwrap();
    assert!(!first.holds("vm-1") && second.holds("vm-1"));
    let moved = until(&cluster, nightly, "beside it", |status| is_satisfied_on(status, "node-b")).await;
    assert_eq!(moved["metadata"]["generation"], 1);

    cluster.kubectl(&["-n", NAMESPACE, "delete", "ticket", "nightly"]);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let listed =
            world.operator().await.list_tickets(cleat_proto::cleat::v1::ListTicketsRequest::default()).await;
        if listed.unwrap().into_inner().tickets.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "it is not withdrawn");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(second.holds("vm-1"), "the workload keeps it");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_ticket_that_nobody_renews_is_lost_and_comes_back_with_a_renewal() {
    let (cluster, mut world) = begin().await;
    let host = Host::new("node-a", 1);
    let agent = world.agent(&host).await;
    world.csi().await.create("vm-1").await.unwrap();
    let backup =
        json!({"type": "backup", "claim": "root", "holder": "velero", "node": "node-a", "renewSeconds": 10});
    ticket(&cluster, NAMESPACE, "nightly", backup);
    let nightly = (NAMESPACE, "nightly");
    until(&cluster, nightly, "satisfied", |status| is_satisfied_on(status, "node-a")).await;
    let lost = |status: &Value| condition(status, "Lost") == "NotRenewed" && status["node"].is_null();
    until(&cluster, nightly, "lost, and detached", lost).await;
    assert!(!host.holds("vm-1"));

    cluster.kubectl(&["-n", NAMESPACE, "annotate", "ticket", "nightly", &format!("{RENEWED}=now")]);
    until(&cluster, nightly, "again", |status| is_satisfied_on(status, "node-a")).await;

    // A ticket that is deleted while nobody leads is withdrawn by the next leader.
    world.stop().await.unwrap();
    drop(agent.ended().await);
    cluster.kubectl(&["-n", NAMESPACE, "delete", "ticket", "nightly"]);
    world.join(&cluster.kubeconfig(), "cleat", "two").await;
    leads(&world).await;
    let _agent = world.agent(&host).await;
    let deadline = Instant::now() + PATIENCE;
    while host.holds("vm-1") {
        assert!(Instant::now() < deadline, "it is not withdrawn");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
