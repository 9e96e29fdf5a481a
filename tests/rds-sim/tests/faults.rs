//! Faults on demand and the count of requests.

#![allow(clippy::unwrap_used)]

mod support;

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
    sim.faults.reset_requests();
    assert_eq!(sim.count("GET /rest/disk"), 0);
}
