use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use http::{Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::Candidate;
use super::*;
use crate::api::ApiServer;

const DURATION: Duration = Duration::from_secs(15);
const MINUTE: Duration = Duration::from_secs(60);

/// An API server whose Lease another one has. It answers with that code, which may change.
fn server() -> (ApiServer, Arc<AtomicU16>) {
    let code = Arc::new(AtomicU16::new(200));
    let answers = Arc::clone(&code);
    let service = tower::service_fn(move |_: Request<Body>| {
        let code = answers.load(Ordering::Relaxed);
        let answer = if code == 200 {
            json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": "l", "namespace": "n", "resourceVersion": "1"},
                "spec": {"holderIdentity": "other", "leaseDurationSeconds": 15},
            })
        } else {
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": code})
        };
        async move {
            let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
            Ok::<_, Infallible>(response)
        }
    });
    (ApiServer::answered_by(Client::new(service, "n")), code)
}

fn candidate() -> Candidate {
    Candidate { namespace: "n".into(), name: "l".into(), identity: "me".into(), duration: DURATION }
}

/// A candidate that waits, what it tells others, and what the API server answers it.
fn waits() -> (tokio::task::JoinHandle<WaitEnded>, watch::Receiver<Standby>, Arc<AtomicU16>) {
    let ((server, code), (shown, standby)) = (server(), watch::channel(Standby::default()));
    let waiting = tokio::spawn(async move {
        let ended = candidate().acquire(server, &shown, &CancellationToken::new()).await;
        ended.map(|claim| claim.is_some()).expect_err("another one has it")
    });
    (waiting, standby, code)
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_cannot_look_is_not_ready_after_a_lease_time() {
    let (waiting, standby, code) = waits();
    let ready = || standby.borrow().is_ready();
    assert!(!ready(), "it has seen nothing");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(ready());
    for refused in [503, 403] {
        code.store(refused, Ordering::Relaxed);
        tokio::time::sleep(DURATION - Duration::from_secs(1)).await;
        assert!(ready(), "{refused}: it may be a slow call");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!ready(), "{refused}");
        code.store(200, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(ready(), "{refused}: it looks again");
    }
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn who_is_not_answered_waits_twelve_minutes_from_the_last_answer() {
    let (waiting, _standby, code) = waits();
    code.store(503, Ordering::Relaxed);
    tokio::time::sleep(MINUTE * 11).await;
    // Not what it wants to hear, and heard.
    code.store(403, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    code.store(503, Ordering::Relaxed);
    let silent = Instant::now();
    let ended = tokio::time::timeout(MINUTE * 13, waiting).await.expect("it ends").expect("no panic");
    let WaitEnded::NotAnswered(error) = ended else { panic!("{ended:?}") };
    assert!(silent.elapsed() >= MINUTE * 12 - Duration::from_secs(1), "{:?}", silent.elapsed());
    assert!(error.to_string().contains("has not answered for 72"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn who_lacks_a_right_waits_on() {
    let (waiting, standby, code) = waits();
    code.store(403, Ordering::Relaxed);
    tokio::time::sleep(MINUTE * 60).await;
    assert!(!waiting.is_finished() && !standby.borrow().is_ready());
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn who_is_not_warm_yet_waits_for_an_answer_no_longer_either() {
    for (code, ends) in [(200, false), (403, false), (503, true)] {
        let (server, answers) = server();
        answers.store(code, Ordering::Relaxed);
        let ended = tokio::time::timeout(MINUTE * 13, candidate().not_answered(&server)).await;
        assert_eq!(ended.is_ok(), ends, "{code}");
    }
}

#[test]
fn ten_lease_times_are_waited_where_a_lease_lasts_long() {
    assert_eq!(patience(DURATION), MINUTE * 12);
    assert_eq!(patience(MINUTE * 2), MINUTE * 20);
}
