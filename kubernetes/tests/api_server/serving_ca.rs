//! The CA of the controller's certificate on a real API server: one for all replicas, rotated, never written over.

use std::time::{Duration, SystemTime};

use cleat_api_server::shared;
use cleat_kubernetes::serving_ca::{CaError, CaTimes, ServingCa};

const DAY: Duration = Duration::from_secs(86_400);

fn times() -> CaTimes {
    CaTimes { lifetime: DAY * 30, renew_before: DAY * 10, overlap: DAY }
}

async fn ca(name: &str) -> ServingCa {
    ServingCa::new(shared().server().await, "default", name, name, times())
}

fn published(name: &str) -> String {
    shared().kubectl(&["get", "configmap", name, "-o", r"jsonpath={.data.ca\.crt}"])
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn replicas_that_begin_at_once_have_one_ca_and_it_is_published() {
    let mut tending = tokio::task::JoinSet::new();
    let now = SystemTime::now();
    for _ in 0..8 {
        let ca = ca("ca-many").await;
        tending.spawn(async move { ca.tend(now).await });
    }
    let mut all = Vec::new();
    while let Some(tended) = tending.join_next().await {
        all.push(tended.unwrap().unwrap());
    }
    assert_eq!(all.len(), 8);
    assert!(all.iter().all(|authority| authority.is(&all[0])), "there are several");
    assert_eq!(published("ca-many").trim(), all[0].published().trim());
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn the_next_ca_is_published_before_it_signs_and_the_last_one_stays() {
    let (one, other) = (ca("ca-rotates").await, ca("ca-rotates").await);
    let now = SystemTime::now();
    let first = one.tend(now).await.unwrap();
    let due = now + DAY * 21;
    let prepared = one.tend(due).await.unwrap();
    assert!(prepared.is(&first));
    let both = published("ca-rotates");
    assert_eq!(both.matches("BEGIN CERTIFICATE").count(), 2);
    // A person who deletes what is published only delays it.
    shared().kubectl(&["delete", "configmap", "ca-rotates"]);
    assert!(other.tend(due + DAY / 2).await.unwrap().is(&first));
    assert_eq!(published("ca-rotates"), both);
    let second = other.tend(due + DAY + Duration::from_secs(1)).await.unwrap();
    assert!(!second.is(&first), "it signs now");
    assert!(one.tend(due + DAY * 2).await.unwrap().is(&second), "for all replicas");
    assert!(
        both.contains(published("ca-rotates").split("-----END").next().unwrap()),
        "it was published before"
    );
    assert_eq!(published("ca-rotates").matches("BEGIN CERTIFICATE").count(), 2);
    let leaf = second.issue(&["a.test".into()], due + DAY, DAY).unwrap();
    assert!(leaf.until <= second.until());
    let later = one.tend(now + DAY * 31).await.unwrap();
    assert!(later.is(&second));
    assert_eq!(published("ca-rotates").matches("BEGIN CERTIFICATE").count(), 1);
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_secret_with_something_else_is_named_and_left_as_it_is() {
    let cluster = shared();
    cluster.kubectl(&["create", "secret", "generic", "ca-foreign", "--from-literal=password=x"]);
    let refused = ca("ca-foreign").await.tend(SystemTime::now()).await.map(drop).unwrap_err();
    assert!(matches!(refused, CaError::Content { .. }), "{refused:?}");
    let said = refused.to_string();
    assert!(
        said.contains("default/ca-foreign") && said.contains("Opaque") && said.contains("delete it"),
        "{said}"
    );
    let data = cluster.kubectl(&["get", "secret", "ca-foreign", "-o", "jsonpath={.data}"]);
    assert_eq!(data, r#"{"password":"eA=="}"#);
    assert!(!cluster.kubectl(&["get", "configmaps", "-o", "name"]).contains("ca-foreign"));
}
