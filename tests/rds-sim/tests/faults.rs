//! Faults on demand and the count of requests.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use rds_sim::faults::{Action, Fault};
use rds_sim::testing::start;
use serde_json::{Value, json};
use support::{call, try_call, volume};

#[tokio::test]
async fn faults_fail_slow_drop_hang_and_lose_replies_and_requests_are_counted() {
    let sim = start().await.unwrap();
    let body = json!({"error": 503, "message": "Service Unavailable"});
    sim.next_request(Action::Fail { status: 503, body: body.clone() });
    assert_eq!(call(&sim, "GET", "/disk", Value::Null).await, (503, body));

    sim.next_request(Action::Slow { delay_ms: 50 });
    let began = std::time::Instant::now();
    assert_eq!(call(&sim, "GET", "/disk", Value::Null).await.0, 200);
    assert!(began.elapsed() >= Duration::from_millis(50));

    sim.next_request(Action::Drop);
    assert!(try_call(&sim, "PUT", "/disk", volume("pvc-1")).await.is_err());
    assert_eq!(sim.state().unwrap().disks.len(), 0);

    sim.fault(Fault::next(1, Action::LoseReply).only("PUT", "/rest/disk"));
    assert!(try_call(&sim, "PUT", "/disk", volume("pvc-1")).await.is_err());
    assert_eq!(sim.state().unwrap().disks.len(), 1);
    assert_eq!(sim.faults.list(), vec![]);

    sim.fault(Fault::all(Action::Hang).only("PATCH", "/rest/disk/"));
    let held = try_call(&sim, "PATCH", "/disk/*2", json!({"comment": "x"}));
    let other = async {
        assert_eq!(call(&sim, "GET", "/disk/*2", Value::Null).await.0, 200);
        sim.faults.clear();
    };
    assert!(tokio::join!(held, other).0.is_err());

    assert_eq!((sim.count("GET /rest/disk"), sim.count("PUT /rest/disk")), (2, 2));
    assert_eq!((sim.count("GET /rest/disk/*"), sim.count("PATCH /rest/disk/*")), (1, 1));
    // All of it by this test's own address.
    let requests = sim.requests();
    assert_eq!(requests.by_source, BTreeMap::from([("127.0.0.1".to_owned(), requests.by_path)]));
    sim.faults.reset_requests();
    assert_eq!(sim.count("GET /rest/disk"), 0);
    assert!(sim.requests().by_source.is_empty());
}

#[tokio::test]
async fn an_answer_can_lack_a_disk_and_a_fault_ends_by_itself() {
    let sim = start().await.unwrap();
    call(&sim, "PUT", "/disk", volume("pvc-1")).await;
    let listed = async || {
        let (status, all) = call(&sim, "GET", "/disk", Value::Null).await;
        assert_eq!(status, 200);
        all.as_array().unwrap().iter().filter(|disk| disk["slot"] == "pvc-1").count()
    };
    assert_eq!(listed().await, 1);
    let lack = Fault::all(Action::Lack { slot: "pvc-1".into() }).only("GET", "/rest/disk");
    sim.fault(lack.clone());
    assert_eq!(listed().await, 0);
    let (status, body) = call(&sim, "GET", "/disk/*2", Value::Null).await;
    assert_eq!((status, body["detail"].as_str()), (404, Some("no such item")));
    assert_eq!(sim.state().unwrap().disks.len(), 1, "it is there all the while");
    sim.faults.clear();
    sim.fault(lack.lasting(Duration::from_millis(50)));
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while listed().await == 0 {
        assert!(std::time::Instant::now() < end, "it does not end");
    }
    assert_eq!(sim.faults.list(), vec![]);
}
