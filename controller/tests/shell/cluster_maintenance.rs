//! `cleat-controller migrate-store` and `uninstall-check` as a person runs them, with the rights that are deployed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use cleat_api_server::Cluster;
use cleat_controller::clock::Clock;
use cleat_controller::stored::Stored;
use tokio::process::Command;

use crate::agent::Host;
use crate::cluster::{leads, published};
use crate::world::{RWO, World};

/// What the program says, and with which code it ends.
async fn ran(kubeconfig: &Path, words: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cleat-controller"));
    command.args(words).arg("--kubeconfig").arg(kubeconfig).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

async fn moved(kubeconfig: &Path, file: &Path, more: &[&str]) -> (Option<i32>, String) {
    let from = format!("file:{}", file.display());
    ran(kubeconfig, &[&["migrate-store", "--from", &from, "--to", "kubernetes"], more].concat()).await
}

/// What has to be said with that code.
#[track_caller]
fn assert_said((code, said): (Option<i32>, String), expected: i32, words: &[&str]) {
    assert_eq!(code, Some(expected), "{said}");
    for word in words {
        assert!(said.contains(word), "{word} is not in {said}");
    }
}

/// Its records are in a file, and one of them says that node-a has pvc-1; it has stopped. With the epoch of that.
async fn stopped_with_a_file() -> (World, Arc<Host>, (u64, u64)) {
    let mut world = World::started().await;
    let host = Host::new("node-a", 1);
    let agent = world.agent(&host).await;
    let csi = world.csi().await;
    csi.create("pvc-1").await.unwrap();
    let granted = published(&csi, "pvc-1", "node-a").await;
    world.stop().await.unwrap();
    drop(agent.ended().await);
    (world, host, granted)
}

/// A cluster with the controller's account in it, and as whom that calls.
fn deployed() -> (Cluster, PathBuf) {
    let cluster = Cluster::own();
    let kubeconfig = cluster.deployed();
    (cluster, kubeconfig)
}

async fn join(world: &mut World, kubeconfig: &Path, replica: &str) {
    world.join_in(kubeconfig, "cleat-system", "cleat-controller", replica).await;
    leads(world).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn records_of_a_file_are_moved_to_a_cluster_whole() {
    let (cluster, kubeconfig) = deployed();
    assert_said(ran(&kubeconfig, &["uninstall-check"]).await, 0, &["no volume is in use"]);
    let (mut world, host, granted) = stopped_with_a_file().await;
    let file = world.store();
    let rule = "records are moved --from file:PATH --to kubernetes";
    let to_a_file = format!("file:{}", world.dir.path().join("other").display());
    for to in ["kubernetes", &to_a_file] {
        let words = ["migrate-store", "--from", "kubernetes", "--to", to];
        assert_said(ran(&kubeconfig, &words).await, 64, &[rule]);
    }
    assert_said(moved(&kubeconfig, &world.dir.path().join("none"), &[]).await, 1, &["there is no such file"]);
    assert_said(moved(&kubeconfig, &file, &[]).await, 0, &["all records are in the cluster"]);
    assert_said(moved(&kubeconfig, &file, &[]).await, 1, &["is there from an earlier move"]);
    let again = Stored::in_file(file, Clock::start()).await.map(drop).unwrap_err();
    let again = cleat_runtime::exit::Causes(&again).to_string();
    assert!(again.contains("its records were moved to a cluster"), "no controller begins with it: {again}");

    let in_use = ["cannot uninstall", "volume pvc-1: attached to node-a"];
    assert_said(ran(&kubeconfig, &["uninstall-check"]).await, 1, &in_use);
    join(&mut world, &kubeconfig, "one").await;
    let other = Host::new("node-b", 2);
    let (_agent, _other) = (world.agent(&host).await, world.agent(&other).await);
    let csi = world.csi().await;
    cluster.wants("pvc-1", "node-a", false);
    cluster.wants("pvc-1", "node-b", false);
    assert_eq!(published(&csi, "pvc-1", "node-a").await, granted, "nothing is granted twice");
    let refused = csi.publish("pvc-1", "node-b", RWO).await.unwrap_err();
    assert!(refused.message().contains("attached to node node-a"), "{refused:?}");
    cluster.wants_no_more("pvc-1", "node-a");
    csi.unpublish("pvc-1", "node-a").await.unwrap();
    let next = published(&csi, "pvc-1", "node-b").await;
    assert!(next.0 > granted.0, "a later term: {next:?} {granted:?}");
    cluster.wants_no_more("pvc-1", "node-b");
    csi.unpublish("pvc-1", "node-b").await.unwrap();
    assert_said(ran(&kubeconfig, &["uninstall-check"]).await, 0, &["no volume is in use"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_cluster_with_a_leader_or_other_records_takes_none_of_a_file() {
    let (cluster, kubeconfig) = deployed();
    let (mut world, ..) = stopped_with_a_file().await;
    let mut leader = World::new();
    join(&mut leader, &kubeconfig, "one").await;
    let there = leader.agent(&Host::new("node-z", 9)).await;
    let csi = leader.csi().await;
    csi.create("pvc-9").await.unwrap();
    cluster.wants("pvc-9", "node-z", false);
    published(&csi, "pvc-9", "node-z").await;

    let file = world.store();
    let named = ["one_", "leads in the cluster"];
    assert_said(moved(&kubeconfig, &file, &["--wait", "2s"]).await, 1, &named);
    leader.stop().await.unwrap();
    drop(there.ended().await);
    assert_said(moved(&kubeconfig, &file, &[]).await, 1, &["says something else"]);
    world.start().await;
}
