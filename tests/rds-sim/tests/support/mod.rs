//! A client, and the volume that the tests make.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)] // each test binary uses its own part

use std::time::Duration;

use rds_sim::target::TargetKernel;
use rds_sim::testing::Sim;
use reqwest::{Client, Method};
use serde_json::{Value, json};

pub const HOST_A: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-00000000000a";
pub const HOST_B: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-00000000000b";

pub fn client(sim: &Sim) -> Client {
    let certificate = reqwest::Certificate::from_pem(sim.ca_pem.as_bytes()).unwrap();
    Client::builder().tls_certs_only([certificate]).timeout(Duration::from_secs(10)).build().unwrap()
}

/// Status and body; an empty body is null.
pub async fn call(sim: &Sim, method: &str, path: &str, body: Value) -> (u16, Value) {
    try_call(sim, method, path, body).await.unwrap()
}

pub async fn try_call(sim: &Sim, method: &str, path: &str, body: Value) -> reqwest::Result<(u16, Value)> {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = client(sim).request(method, format!("{}/rest{path}", sim.url));
    let request = request.basic_auth(&sim.user, Some(&sim.password));
    let request = if body.is_null() { request } else { request.json(&body) };
    let response = request.send().await?;
    let status = response.status().as_u16();
    let text = response.text().await?;
    Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
}

pub fn volume(slot: &str) -> Value {
    json!({
        "type": "file", "slot": slot, "file-path": format!("/storage-pool/csi/{slot}.img"), "file-size": "16777216",
        "mount-filesystem": "no", "nvme-tcp-export": "yes", "nvme-tcp-server-port": "4420",
        "nvme-tcp-server-nqn": format!("nqn.2026-01.test:{slot}"),
    })
}

pub async fn add(sim: &Sim, slot: &str) -> String {
    let (status, item) = call(sim, "PUT", "/disk", volume(slot)).await;
    assert_eq!(status, 201, "{item}");
    item[".id"].as_str().unwrap().to_owned()
}

pub fn refusal(status: u16, message: &str, detail: &str) -> (u16, Value) {
    (status, json!({"error": status, "message": message, "detail": detail}))
}

pub fn bad(detail: &str) -> (u16, Value) {
    refusal(400, "Bad Request", detail)
}

/// The subsystem's host list as the target has it: `None` is any host.
pub fn allowed(sim: &Sim, slot: &str) -> Option<Vec<String>> {
    let observed = sim.target.observe(&format!("nqn.2026-01.test:{slot}")).unwrap();
    let subsystem = observed.subsystem.unwrap();
    (!subsystem.any_host).then(|| subsystem.hosts.into_iter().collect())
}
