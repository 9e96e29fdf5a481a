//! What deploy/manifests deploys: a cluster takes it as it is, and the controller does its work under exactly its rights.

use std::time::Duration;

use cleat_kubernetes::api::ApiServer;
use cleat_kubernetes::definitions;
use cleat_kubernetes::in_use::in_use;
use cleat_kubernetes::lease::Candidate;
use cleat_kubernetes::nodes;
use cleat_kubernetes::notes::Notes;
use cleat_kubernetes::records::{Before, ClusterRecords, Kind, RecordWrite, Written};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::records::record;
use cleat_api_server::{Cluster, PATIENCE, connect};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/manifests/cleat.yaml");

/// A client that is the controller, by a token of its service account.
async fn as_controller(cluster: &Cluster) -> ApiServer {
    let token = cluster.kubectl(&["-n", "cleat-system", "create", "token", "cleat-controller"]);
    let admin = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    let file = cluster.kubeconfig().with_file_name("controller");
    std::fs::write(&file, admin.replace("admin-token", &token)).unwrap();
    connect(&file, Duration::from_secs(20)).await
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn the_controller_does_its_work_under_the_rights_that_are_deployed() {
    let cluster = Cluster::own();
    // Twice: an upgrade is the same once more.
    for _ in 0..2 {
        cluster.kubectl(&["apply", "--server-side", "--validate=strict", "-f", MANIFESTS]);
    }
    let server = as_controller(&cluster).await;
    assert_eq!(in_use(&server, "cleat.io").await, Ok(Vec::new()), "no controller has led yet");
    definitions::install(&server).await.unwrap();
    let definitions = ["crd/cleatvolumes.cleat.io", "crd/cleatnodes.cleat.io"];
    cluster.kubectl(&[&["wait", "--for=condition=Established"][..], &definitions].concat());
    definitions::install(&server).await.unwrap();

    let ((leader, _), stop) = (watch::channel(None), CancellationToken::new());
    let candidate = Candidate {
        namespace: "cleat-system".into(),
        name: "cleat-controller".into(),
        identity: "one".into(),
        duration: Duration::from_secs(5),
    };
    let acquired = candidate.acquire(server.clone(), &leader, &stop);
    let claim = tokio::time::timeout(PATIENCE, acquired).await.unwrap().unwrap();
    claim.raise(claim.term() + 1).await.unwrap();
    let notes = Notes::new(server.clone(), "cleat-system", "cleat-secret-keys");
    for line in ["a", "b"] {
        notes.change(|_| Ok(Some([("0".to_owned(), line.to_owned())].into()))).await.unwrap();
    }
    let (records, value) = (ClusterRecords::new(server.clone()), record("pvc-1", 1 << 30));
    let made =
        RecordWrite { kind: Kind::Volume, name: "pvc-1", before: None, value: Some(&value), lets_in: true };
    let Written { version, .. } = records.write(claim.term(), &made, || true).await.unwrap();
    let used = in_use(&server, "cleat.io").await.unwrap();
    assert!(
        used.len() == 1 && used[0].starts_with("volume pvc-1: attached to a, b; c was fenced"),
        "{used:?}"
    );
    let before = Before { version, value: &value, deleting: false, unguarded: None };
    let gone = RecordWrite { before: Some(before), value: None, lets_in: false, ..made };
    records.write(claim.term(), &gone, || true).await.unwrap();
    assert_eq!(in_use(&server, "cleat.io").await, Ok(Vec::new()));
    assert_eq!(records.get(Kind::Node, "node-a").await, Ok(None));
    assert_eq!(nodes::uid(&server, "node-a").await, Ok(None));
    assert_eq!(nodes::out_of_service(&server).await, Ok(Vec::new()));
    claim.release().await;
}
