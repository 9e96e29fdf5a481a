//! Nodes of a real API server: which host one is, who may change that, and what a Node's state does.

use std::sync::Arc;

use cleat_api_server::Cluster;
use tonic::{Code, Status};

use crate::agent::Host;
use crate::cluster::{leads, published};
use crate::world::{World, eventually};

/// A cluster with these Nodes, and a controller that leads.
async fn with_nodes(names: &[&str]) -> (Cluster, World) {
    let (cluster, mut world) = (Cluster::own(), World::new());
    for name in names {
        make(&cluster, &world, name);
    }
    (world.core.target.acl, world.core.target.export_cuts) = (true, true);
    world.join(&cluster.kubeconfig(), "cleat", "one").await;
    leads(&world).await;
    (cluster, world)
}

fn make(cluster: &Cluster, world: &World, node: &str) {
    let file = world.dir.path().join("node.yaml");
    std::fs::write(&file, format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\n")).unwrap();
    cluster.kubectl(&["apply", "-f", file.to_str().unwrap()]);
}

/// Another machine that calls itself by the name of a node.
fn another(name: &str, number: u8) -> Arc<Host> {
    let host = Host::new(name, number);
    boots(&host, number);
    host
}

fn boots(host: &Host, boot: u8) -> String {
    let boot = uuid::Uuid::from_u128(u128::from(boot)).to_string();
    host.hello.lock().unwrap().identity.as_mut().unwrap().boot_id.clone_from(&boot);
    boot
}

async fn refused(world: &World, host: &Arc<Host>, both: [&Host; 2]) -> Status {
    let refused = world.dial(host).await.ended().await;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    for host in both {
        assert!(refused.message().contains(&host.nqn()), "{refused:?}");
    }
    refused
}

fn of_record(cluster: &Cluster, path: &str) -> String {
    cluster.kubectl(&["get", "cleatnode", "node-a", "-o", &format!("jsonpath={path}")])
}

fn uid(cluster: &Cluster) -> String {
    cluster.kubectl(&["get", "node", "node-a", "-o", "jsonpath={.metadata.uid}"])
}

/// A pin counts from when it is on record.
async fn is_pinned(cluster: &Cluster, host: &Host) {
    let names = "jsonpath={.items[*].spec.record.identity.hostNqn}";
    eventually("it is on record", async || {
        cluster.kubectl(&["get", "cleatnodes", "-o", names]) == host.nqn()
    })
    .await;
}

async fn is_silent(world: &World) {
    eventually("its agent is gone", async || world.node("node-a").await.session != "connected").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_node_made_again_is_another_host_once_the_first_has_nothing() {
    let (cluster, world) = with_nodes(&["node-a"]).await;
    let (first, second) = (Host::new("node-a", 1), another("node-a", 2));
    let agent = world.agent(&first).await;
    let csi = world.csi().await;
    csi.create("pvc-1").await.unwrap();
    cluster.wants("pvc-1", "node-a", false);
    published(&csi, "pvc-1", "node-a").await;
    let was = uid(&cluster);
    assert_eq!(of_record(&cluster, "{.spec.record.uid}"), was);
    drop(agent);
    is_silent(&world).await;
    // While the API server says that it is the same one, it is.
    refused(&world, &second, [&first, &second]).await;
    cluster.kubectl(&["delete", "node", "node-a"]);
    refused(&world, &second, [&first, &second]).await;
    make(&cluster, &world, "node-a");
    refused(&world, &second, [&first, &second]).await;
    assert_eq!(world.volume("pvc-1").await.attachments[0].phase, "Ready", "nothing has ended");

    let agent = world.agent(&first).await;
    cluster.wants_no_more("pvc-1", "node-a");
    csi.unpublish("pvc-1", "node-a").await.unwrap();
    drop(agent);
    is_silent(&world).await;
    // The first was heard since: the Node that is there now is its own.
    let same = refused(&world, &second, [&first, &second]).await;
    assert!(same.message().contains("is the one that it was"), "{same:?}");
    cluster.kubectl(&["delete", "node", "node-a"]);
    let gone = refused(&world, &second, [&first, &second]).await;
    assert!(gone.message().contains("not known that its Node is another one"), "{gone:?}");
    make(&cluster, &world, "node-a");
    let _agent = world.agent(&second).await;
    eventually("it is on record", async || of_record(&cluster, "{.spec.record.uid}") == uid(&cluster)).await;
    assert_eq!(of_record(&cluster, "{.spec.record.identity.hostNqn}"), second.nqn());
    refused(&world, &first, [&first, &second]).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_person_changes_which_host_a_node_is_without_a_restart() {
    let (cluster, mut world) = with_nodes(&["node-a"]).await;
    let (first, second) = (Host::new("node-a", 1), another("node-a", 2));
    let agent = world.agent(&first).await;
    is_pinned(&cluster, &first).await;
    drop(agent);
    is_silent(&world).await;
    refused(&world, &second, [&first, &second]).await;
    let (nqn, id) = (second.nqn(), second.nqn().rsplit(':').next().unwrap().to_owned());
    let patch = format!(r#"{{"spec":{{"record":{{"identity":{{"hostNqn":"{nqn}","hostId":"{id}"}}}}}}}}"#);
    cluster.kubectl(&["patch", "cleatnode", "node-a", "--type=merge", "-p", &patch]);
    // The first one has rebooted, so its record would be written.
    boots(&first, 3);
    refused(&world, &first, [&first, &second]).await;
    assert_eq!(of_record(&cluster, "{.spec.record.identity.hostNqn}"), nqn, "nobody has written over it");
    let agent = world.agent(&second).await;
    let boot = boots(&second, 2);
    eventually("it is whole", async || of_record(&cluster, "{.spec.record.identity.bootId}") == boot).await;
    let csi = world.csi().await;
    csi.create("pvc-1").await.unwrap();
    cluster.wants("pvc-1", "node-a", false);
    published(&csi, "pvc-1", "node-a").await;

    // By a deletion nobody gets it who may write, and whoever comes next once nobody may.
    drop(agent);
    is_silent(&world).await;
    cluster.kubectl(&["delete", "cleatnode", "node-a", "--wait=false"]);
    refused(&world, &first, [&first, &second]).await;
    let agent = world.agent(&second).await;
    cluster.wants_no_more("pvc-1", "node-a");
    csi.unpublish("pvc-1", "node-a").await.unwrap();
    drop(agent);
    is_silent(&world).await;
    let agent = world.agent(&first).await;
    eventually("there is a new record", async || {
        of_record(&cluster, "{.metadata.deletionTimestamp}").is_empty()
            && of_record(&cluster, "{.spec.record.identity.hostNqn}") == first.nqn()
    })
    .await;
    // And a restart reads the same.
    world.stop().await.unwrap();
    drop(agent.ended().await);
    world.join(&cluster.kubeconfig(), "cleat", "two").await;
    leads(&world).await;
    refused(&world, &second, [&first, &second]).await;
    let _agent = world.agent(&first).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_deleted_record_that_its_own_host_renews_is_a_new_one() {
    let (cluster, world) = with_nodes(&["node-a"]).await;
    let host = Host::new("node-a", 1);
    let agent = world.agent(&host).await;
    is_pinned(&cluster, &host).await;
    let was = of_record(&cluster, "{.metadata.uid}");
    drop(agent);
    is_silent(&world).await;
    cluster.kubectl(&["delete", "cleatnode", "node-a", "--wait=false"]);
    let boot = boots(&host, 2);
    let _agent = world.agent(&host).await;
    eventually("there is a new record", async || {
        of_record(&cluster, "{.spec.record.identity.bootId}") == boot
            && of_record(&cluster, "{.metadata.deletionTimestamp}").is_empty()
    })
    .await;
    assert_ne!(of_record(&cluster, "{.metadata.uid}"), was);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_node_that_is_deleted_or_not_ready_ends_nothing_though_it_is_silent() {
    let names = ["node-a", "node-b", "node-c", "node-d"];
    let (cluster, mut world) = with_nodes(&names[1..]).await;
    world.stop().await.unwrap();
    world.core.fence_after_ms = 100;
    world.join(&cluster.kubeconfig(), "cleat", "two").await;
    leads(&world).await;
    let csi = world.csi().await;
    let mut agents = Vec::new();
    for (node, number) in names.into_iter().zip(1..) {
        agents.push(world.agent(&Host::new(node, number)).await);
        let volume = format!("pvc-{number}");
        csi.create(&volume).await.unwrap();
        cluster.wants(&volume, node, false);
        published(&csi, &volume, node).await;
    }
    drop(agents);
    let not_ready =
        r#"{"status":{"conditions":[{"type":"Ready","status":"Unknown","reason":"NodeStatusUnknown"}]}}"#;
    cluster.kubectl(&["delete", "node", "node-b"]);
    cluster.kubectl(&["patch", "node", "node-c", "--subresource=status", "--type=merge", "-p", not_ready]);
    for taint in ["not-ready", "unreachable"] {
        cluster.kubectl(&["taint", "node", "node-c", &format!("node.kubernetes.io/{taint}=:NoExecute")]);
    }
    // Once the Nodes were read after all this, this one is fenced, and nobody else.
    cluster.kubectl(&["taint", "node", "node-d", "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"]);
    eventually("the mark is seen", async || world.volume("pvc-4").await.attachments.is_empty()).await;
    for volume in ["pvc-1", "pvc-2", "pvc-3"] {
        assert_eq!(world.volume(volume).await.attachments[0].phase, "Ready", "{volume}");
    }
    let log = world.rds.log.lock().unwrap().clone();
    let ended = |volume: &str| {
        log.iter().any(|asked| asked.contains(volume) && (asked.contains("deny") || asked.contains("hide")))
    };
    assert!(ended("pvc-4") && !["pvc-1", "pvc-2", "pvc-3"].into_iter().any(ended), "{log:?}");
}
