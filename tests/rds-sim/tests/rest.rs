//! The REST API as a client sees it: shapes, commands, refusals, credentials.

#![allow(clippy::unwrap_used)]

mod support;

use rds_sim::disk::Version;
use rds_sim::target::TargetKernel;
use rds_sim::testing::{start, start_with};
use serde_json::{Value, json};
use support::{add, bad, call, client, refusal, volume};

#[tokio::test]
async fn a_volume_is_made_shown_found_and_removed_but_its_file_stays() {
    let sim = start().await.unwrap();
    let id = add(&sim, "pvc-1").await;
    let (status, item) = call(&sim, "GET", &format!("/disk/{id}"), Value::Null).await;
    assert_eq!(status, 200);
    assert!(item.as_object().unwrap().values().all(Value::is_string), "{item}");
    for (name, value) in [
        ("slot", "pvc-1"),
        ("type", "file"),
        ("file-path", "/storage-pool/csi/pvc-1.img"),
        ("file-size", "16777216"),
        ("size", "16777216"),
        ("nvme-tcp-export", "true"),
        ("mount-filesystem", "false"),
        ("nvme-tcp-server-port", "4420"),
        ("fs", "-"),
        ("nvme-tcp-server-nqn", "nqn.2026-01.test:pvc-1"),
        ("nvme-tcp-server-allow-host-name", ""),
    ] {
        assert_eq!(item[name], value, "{name}");
    }
    let (_, found) = call(&sim, "GET", "/disk?slot=pvc-1&.proplist=slot,size", Value::Null).await;
    assert_eq!(found, json!([{".id": id, "slot": "pvc-1", "size": "16777216"}]));
    let (status, none) = call(&sim, "GET", "/disk?slot=other", Value::Null).await;
    assert_eq!((status, none), (200, json!([])));

    let exported = sim.target.observe("nqn.2026-01.test:pvc-1").unwrap();
    assert_eq!(exported.ports.values().filter(|port| port.linked).count(), 2);
    assert_eq!(call(&sim, "DELETE", &format!("/disk/{id}"), Value::Null).await, (204, Value::Null));
    assert_eq!(sim.target.observe("nqn.2026-01.test:pvc-1").unwrap().subsystem, None);
    let (_, files) = call(&sim, "GET", "/file?name=storage-pool/csi/pvc-1.img", Value::Null).await;
    assert_eq!(files[0]["type"], ".img file");
    assert_eq!(files[0]["size"], "16777216");
    let file = files[0][".id"].as_str().unwrap();
    assert_eq!(call(&sim, "DELETE", &format!("/file/{file}"), Value::Null).await.0, 204);
    let (_, files) = call(&sim, "GET", "/file?type=.img%20file", Value::Null).await;
    assert_eq!(files, json!([]));
}

#[tokio::test]
async fn console_commands_do_the_same_by_post() {
    let sim = start().await.unwrap();
    let (status, made) = call(&sim, "POST", "/disk/add", volume("pvc-1")).await;
    assert_eq!(status, 200);
    let id = made["ret"].as_str().unwrap();
    add(&sim, "pvc-2").await;
    let print = json!({".query": ["slot=pvc-1", "slot=pvc-2", "#|"], ".proplist": ["slot"]});
    let (_, printed) = call(&sim, "POST", "/disk/print", print).await;
    assert_eq!(printed, json!([{".id": "*2", "slot": "pvc-1"}, {".id": "*3", "slot": "pvc-2"}]));
    let set = json!({"numbers": format!("{id},pvc-2"), "nvme-tcp-export": "no", "comment": "off"});
    assert_eq!(call(&sim, "POST", "/disk/set", set).await, (200, json!([])));
    let (_, off) = call(&sim, "GET", "/disk?nvme-tcp-export=false&comment=off", Value::Null).await;
    assert_eq!(off.as_array().unwrap().len(), 2);
    assert_eq!(call(&sim, "POST", "/disk/set", json!({"comment": "x"})).await, bad("missing =.id="));
    let gone = json!({"error": 404, "message": "Not Found"});
    assert_eq!(call(&sim, "POST", "/disk/remove", json!({".id": "*FF"})).await, (404, gone));
    assert_eq!(call(&sim, "POST", "/disk/remove", json!({".id": "pvc-1"})).await, (200, json!([])));
    assert_eq!(call(&sim, "POST", "/disk/format-drive", json!({})).await, bad("no such command"));
}

#[tokio::test]
async fn refusals_have_routeros_status_and_words() {
    let sim = start().await.unwrap();
    add(&sim, "pvc-1").await;
    let with = |name: &str, value: Value| {
        let mut body = volume("pvc-2");
        body[name] = value;
        body
    };
    for (body, detail) in [
        (with("colour", json!("red")), "unknown parameter colour"),
        (with("nvme-tcp-export", json!("maybe")), "input does not match any value of nvme-tcp-export"),
        (with("nvme-tcp-server-port", json!(70000)), "value of nvme-tcp-server-port out of range (1..65535)"),
        (with("file-size", json!("lots")), "invalid value for argument file-size"),
        (with("file-size", Value::Null), "invalid value for argument file-size"),
        (with("file-path", json!("/pool/../etc/passwd")), "invalid value for argument file-path"),
        (with("slot", json!("a/b")), "invalid value for argument slot"),
        (with("slot", json!("pvc-1")), "failure: already have disk with such slot"),
        (with("file-path", json!("storage-pool/csi/pvc-1.img")), "failure: file is already in use"),
        (with("type", json!("raid")), "input does not match any value of type"),
        (with("iscsi-export", json!("yes")), "failure: rds-sim does not simulate iscsi-export"),
        (json!({"slot": "x"}), "missing =type="),
        (json!({"type": "file", "slot": "x", "file-path": "p/x.img"}), "missing =file-size="),
    ] {
        assert_eq!(call(&sim, "PUT", "/disk", body.clone()).await, bad(detail), "{body}");
    }
    let missing = (404, json!({"error": 404, "message": "Not Found"}));
    assert_eq!(call(&sim, "GET", "/disk/*FF", Value::Null).await, missing);
    let no_item = refusal(404, "Not Found", "no such item");
    assert_eq!(call(&sim, "PATCH", "/disk/*FF", json!({"comment": "x"})).await, no_item);
    assert_eq!(call(&sim, "DELETE", "/disk/*FF", Value::Null).await, no_item);
    let identifier = bad("missing or invalid resource identifier");
    assert_eq!(call(&sim, "PATCH", "/disk", json!({})).await, identifier);
    assert_eq!(call(&sim, "DELETE", "/disk/%2A2", Value::Null).await, identifier);
    assert_eq!(
        call(&sim, "GET", "/nowhere", Value::Null).await,
        bad("no such command or directory (nowhere)")
    );
    let method = refusal(406, "Not Acceptable", "no such command or directory (remove)");
    assert_eq!(call(&sim, "DELETE", "/system/resource", Value::Null).await, method);
    assert_eq!(call(&sim, "HEAD", "/disk", Value::Null).await.0, 501);
    // Nothing of all that left a trace: the pool and one volume.
    assert_eq!(call(&sim, "GET", "/disk", Value::Null).await.1.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn without_the_right_password_everything_is_401() {
    let sim = start().await.unwrap();
    let url = format!("{}/rest/system/resource", sim.url);
    let body = json!({"error": 401, "message": "Unauthorized"});
    for request in [
        client(&sim).get(&url),
        client(&sim).get(&url).basic_auth(&sim.user, Some("wrong")),
        client(&sim).get(format!("{}/rest/x", sim.url)),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), 401);
        assert_eq!(response.json::<Value>().await.unwrap(), body);
    }
    let (_, resource) = call(&sim, "GET", "/system/resource", Value::Null).await;
    assert_eq!(resource["version"], "7.24 (stable)");
    assert_eq!(resource["board-name"], "RDS2216");
}

#[tokio::test]
async fn before_7_21_the_nqn_is_the_slot() {
    let sim = start_with(|options| options.version = Version { major: 7, minor: 20 }).await.unwrap();
    let unknown = bad("unknown parameter nvme-tcp-server-nqn");
    assert_eq!(call(&sim, "PUT", "/disk", volume("pvc-1")).await, unknown);
    let mut body = volume("pvc-1");
    body.as_object_mut().unwrap().remove("nvme-tcp-server-nqn");
    let (status, item) = call(&sim, "PUT", "/disk", body).await;
    assert_eq!((status, item.get("nvme-tcp-server-nqn")), (201, None));
    assert!(sim.target.observe("pvc-1").unwrap().subsystem.is_some());
}
