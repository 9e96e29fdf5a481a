//! The test control over HTTP: what the machine tests use.

#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::sync::Arc;

use rds_sim::control::StateReport;
use rds_sim::faults::{Action, Fault, Requests};
use rds_sim::pretend::Pretend;
use rds_sim::server::serve_control;
use rds_sim::testing::start;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn state_faults_holds_and_identities_are_at_hand_over_http() {
    let sim = start().await.unwrap();
    let volume = json!({"type": "file", "slot": "v", "file-path": "p/v.img", "file-size": "1M", "nvme-tcp-export": "yes"});
    let volume: Map<String, Value> = volume.as_object().unwrap().clone();
    sim.device().add(&volume).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let served = serve_control(listener, Arc::clone(&sim.rds), Arc::clone(&sim.faults), shutdown.clone());
    let served = tokio::spawn(served);
    let client = reqwest::Client::new();
    let post = async |path: &str, body: Value| {
        client.post(format!("{url}{path}")).json(&body).send().await.unwrap().status().as_u16()
    };
    let state = async || {
        client.get(format!("{url}/state")).send().await.unwrap().json::<StateReport>().await.unwrap()
    };

    assert_eq!(state().await, sim.state().unwrap());
    assert_eq!(post("/portals/down", json!({"portal": "10.77.1.1:4420"})).await, 204);
    assert_eq!(state().await.disks[0].linked.len(), 1);
    assert_eq!(post("/portals/up", json!({})).await, 204);
    assert_eq!(state().await.disks[0].linked.len(), 2);

    let uuid = "6e0b7f0c-52a3-4f0e-9c1d-2a648d3571e9";
    assert_eq!(post("/uuid", json!({"slot": "v", "uuid": uuid})).await, 204);
    assert_eq!(state().await.disks[0].uuid.to_string(), uuid);
    assert_eq!(post("/uuid", json!({"slot": "nobody"})).await, 404);

    assert_eq!(post("/pretend", json!({"pretend": "drain"})).await, 204);
    assert_eq!(state().await.pretends, [Pretend::Drain]);
    client.delete(format!("{url}/pretend")).send().await.unwrap();
    assert_eq!(state().await.pretends, []);
    assert_eq!(post("/hold-writes", json!({"slot": "v", "write_ms": 5})).await, 500, "it lies on its file");

    let fault = json!({"method": "PUT", "path": "/rest/disk", "count": 2, "action": "slow", "delay_ms": 9});
    assert_eq!(post("/faults", fault).await, 204);
    let expected = Fault::next(2, Action::Slow { delay_ms: 9 }).only("PUT", "/rest/disk");
    assert_eq!(state().await.faults, vec![expected]);
    assert_eq!(post("/faults", json!({"action": "explode"})).await, 422);
    client.delete(format!("{url}/faults")).send().await.unwrap();
    assert_eq!(state().await.faults, vec![]);
    let requests = client.get(format!("{url}/requests")).send().await.unwrap();
    assert_eq!(requests.json::<Requests>().await.unwrap(), Requests::default());

    shutdown.cancel();
    served.await.unwrap().unwrap();
}
