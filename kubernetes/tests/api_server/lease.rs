//! The Lease: one holder, terms that rise, and a claim that ends in time.

use std::time::{Duration, Instant};

use cleat_kubernetes::api::ApiServer;
use cleat_kubernetes::lease::{Candidate, Leader, LeaseClaim, Standby, WaitEnded};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use cleat_api_server::{Cluster, PATIENCE, connect, shared};

/// Longer than a busy machine keeps a renewal waiting.
const HOLDS: Duration = Duration::from_secs(6);

fn candidate(name: &str, identity: &str) -> Candidate {
    Candidate { namespace: "default".into(), name: name.into(), identity: identity.into(), duration: HOLDS }
}

async fn acquire(server: &ApiServer, candidate: Candidate) -> LeaseClaim {
    let ((standby, _), stop) = (watch::channel(Standby::default()), CancellationToken::new());
    let acquired = candidate.acquire(server.clone(), &standby, &stop);
    tokio::time::timeout(PATIENCE, acquired).await.unwrap().unwrap().unwrap()
}

/// As long as anybody else needs to take what is never let go.
async fn lost(claim: &LeaseClaim) {
    tokio::time::timeout(PATIENCE, claim.lost().cancelled()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn of_many_candidates_one_has_it_and_the_others_know_whose_it_is() {
    let cluster = shared();
    let server = cluster.server().await;
    let stop = CancellationToken::new();
    let mut tries = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (server, stop) = (server.clone(), stop.clone());
        tries.spawn(async move {
            let (standby, of) = watch::channel(Standby::default());
            let claim = candidate("many", &format!("c{n}")).acquire(server, &standby, &stop).await.unwrap();
            (claim, of.borrow().leader.clone())
        });
    }
    let (first, of) = tries.join_next().await.unwrap().unwrap();
    let first = first.unwrap();
    assert_eq!(of, None, "nobody else");
    // Twice as long as it holds: it is renewed, and nobody else gets it.
    tokio::time::sleep(HOLDS * 2).await;
    assert!(first.outlives(Duration::ZERO));
    stop.cancel();
    while let Some(ended) = tries.join_next().await {
        let (claim, of) = ended.unwrap();
        assert!(claim.is_none(), "two have it");
        let leader = of.as_ref().and_then(Leader::seen).map(|(identity, _)| identity);
        assert_eq!(leader, Some(first.identity()));
    }
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_lease_that_is_let_go_is_taken_under_a_higher_term() {
    let cluster = shared();
    let server = cluster.server().await;
    let first = acquire(&server, candidate("let-go", "a")).await;
    let raised = first.raise(first.term() + 1000).await.unwrap();
    assert_eq!(first.term(), raised);
    first.clone().release().await;
    assert!(!first.outlives(Duration::ZERO));
    let second = acquire(&server, candidate("let-go", "b")).await;
    assert!(second.term() > raised, "{} {raised}", second.term());
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_lease_that_a_person_deletes_is_lost_and_terms_still_rise() {
    let cluster = shared();
    let server = cluster.server().await;
    let first = acquire(&server, candidate("deleted", "a")).await;
    let (again, waits) = (server.clone(), candidate("deleted", "b"));
    let second = tokio::spawn(async move { acquire(&again, waits).await });
    cluster.kubectl(&["delete", "lease", "deleted"]);
    let second = second.await.unwrap();
    assert!(!first.outlives(Duration::ZERO), "two have it");
    assert!(first.lost().is_cancelled());
    assert!(second.term() > first.term());
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_lease_that_another_takes_by_force_is_lost() {
    let cluster = shared();
    let server = cluster.server().await;
    let first = acquire(&server, candidate("forced", "a")).await;
    let patch = r#"{"spec":{"holderIdentity":"b"}}"#;
    cluster.kubectl(&["patch", "lease", "forced", "--type=merge", "-p", patch]);
    lost(&first).await;
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_label_on_the_lease_ends_nothing_and_stays() {
    let cluster = shared();
    let server = cluster.server().await;
    let claim = acquire(&server, candidate("labelled", "a")).await;
    cluster.kubectl(&["label", "lease", "labelled", "team=red"]);
    claim.raise(claim.term() + 1).await.unwrap();
    tokio::time::sleep(HOLDS).await;
    assert!(claim.outlives(Duration::ZERO));
    let path = "jsonpath={.metadata.labels.team} {.metadata.annotations.cleat\\.io/term}";
    assert_eq!(cluster.kubectl(&["get", "lease", "labelled", "-o", path]), format!("red {}", claim.term()));
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_lease_of_an_older_etcd_ends_its_holder_and_who_waits() {
    let cluster = shared();
    let server = cluster.server().await;
    let first = acquire(&server, candidate("set-back", "a")).await;
    let count = "jsonpath={.metadata.annotations.cleat\\.io/renewals}";
    let renewals =
        || cluster.kubectl(&["get", "lease", "set-back", "-o", count]).parse::<u64>().expect("a count");
    let before = renewals();
    let again = server.clone();
    let waits = tokio::spawn(async move {
        let ((standby, _), stop) = (watch::channel(Standby::default()), CancellationToken::new());
        candidate("set-back", "b").acquire(again, &standby, &stop).await.map(|claim| claim.is_some())
    });
    first.raise(first.term() + 1).await.unwrap();
    // The standby has seen that, and more.
    tokio::time::sleep(HOLDS).await;
    assert!(first.outlives(Duration::ZERO) && renewals() > before);
    let older = format!(r#"{{"metadata":{{"annotations":{{"cleat.io/renewals":"{before}"}}}}}}"#);
    cluster.kubectl(&["patch", "lease", "set-back", "--type=merge", "-p", &older]);
    lost(&first).await;
    assert!(matches!(
        tokio::time::timeout(PATIENCE, waits).await.unwrap().unwrap(),
        Err(WaitEnded::SetBack(_))
    ));
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn while_the_api_is_silent_a_claim_ends_before_anybody_else_has_it() {
    let cluster = Cluster::own();
    let server = connect(&cluster.kubeconfig(), Duration::from_secs(2)).await;
    let first = acquire(&server, candidate("silent", "a")).await;
    let (name, after) = (candidate("silent", "b"), server.clone());
    let second = tokio::spawn(async move { acquire(&after, name).await });
    tokio::time::sleep(HOLDS / 2).await;
    assert!(first.outlives(Duration::ZERO) && !first.outlives(HOLDS));
    cluster.freeze(true);
    let frozen = Instant::now();
    lost(&first).await;
    assert!(frozen.elapsed() <= HOLDS + Duration::from_secs(1), "it ends by itself: {:?}", frozen.elapsed());
    assert!(!first.outlives(Duration::ZERO) && !second.is_finished());
    cluster.freeze(false);
    let second = tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap();
    assert!(second.term() > first.term());
    assert!(first.raise(second.term() + 1).await.is_err(), "a claim that was lost stays lost");
}
