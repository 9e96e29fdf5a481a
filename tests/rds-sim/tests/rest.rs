//! The REST API as a client sees it: shapes, refusals, host lists, restarts, capacity, faults.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use rds_sim::AclMode;
use rds_sim::disk::Version;
use rds_sim::faults::{Action, Fault};
use rds_sim::rds::Hold;
use rds_sim::target::TargetKernel;
use rds_sim::testing::{Sim, start, start_with};
use reqwest::{Client, Method};
use serde_json::{Value, json};

const HOST_A: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-00000000000a";
const HOST_B: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-00000000000b";

fn client(sim: &Sim) -> Client {
    let certificate = reqwest::Certificate::from_pem(sim.ca_pem.as_bytes()).unwrap();
    Client::builder()
        .tls_certs_only([certificate])
        .timeout(Duration::from_secs(10))
        .build()
        .unwrap()
}

/// Status and body; an empty body is null.
async fn call(sim: &Sim, method: &str, path: &str, body: Value) -> (u16, Value) {
    try_call(sim, method, path, body).await.unwrap()
}

async fn try_call(sim: &Sim, method: &str, path: &str, body: Value) -> reqwest::Result<(u16, Value)> {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = client(sim).request(method, format!("{}/rest{path}", sim.url));
    let request = request.basic_auth(&sim.user, Some(&sim.password));
    let request = if body.is_null() {
        request
    } else {
        request.json(&body)
    };
    let response = request.send().await?;
    let status = response.status().as_u16();
    let text = response.text().await?;
    Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
}

fn volume(slot: &str) -> Value {
    json!({
        "type": "file", "slot": slot, "file-path": format!("/storage-pool/csi/{slot}.img"), "file-size": "16777216",
        "mount-filesystem": "no", "nvme-tcp-export": "yes", "nvme-tcp-server-port": "4420",
        "nvme-tcp-server-nqn": format!("nqn.2026-01.test:{slot}"),
    })
}

async fn add(sim: &Sim, slot: &str) -> String {
    let (status, item) = call(sim, "PUT", "/disk", volume(slot)).await;
    assert_eq!(status, 201, "{item}");
    item[".id"].as_str().unwrap().to_owned()
}

fn refusal(status: u16, message: &str, detail: &str) -> (u16, Value) {
    (
        status,
        json!({"error": status, "message": message, "detail": detail}),
    )
}

fn bad(detail: &str) -> (u16, Value) {
    refusal(400, "Bad Request", detail)
}

/// The subsystem's host list as the target has it: `None` is any host.
fn allowed(sim: &Sim, slot: &str) -> Option<Vec<String>> {
    let observed = sim.target.observe(&format!("nqn.2026-01.test:{slot}")).unwrap();
    let subsystem = observed.subsystem.unwrap();
    (!subsystem.any_host).then(|| subsystem.hosts.into_iter().collect())
}

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
    assert_eq!(
        call(&sim, "DELETE", &format!("/disk/{id}"), Value::Null).await,
        (204, Value::Null)
    );
    assert_eq!(
        sim.target.observe("nqn.2026-01.test:pvc-1").unwrap().subsystem,
        None
    );
    let (_, files) = call(&sim, "GET", "/file?name=storage-pool/csi/pvc-1.img", Value::Null).await;
    assert_eq!(files[0]["type"], ".img file");
    assert_eq!(files[0]["size"], "16777216");
    let file = files[0][".id"].as_str().unwrap();
    assert_eq!(
        call(&sim, "DELETE", &format!("/file/{file}"), Value::Null)
            .await
            .0,
        204
    );
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
    assert_eq!(
        printed,
        json!([{".id": "*2", "slot": "pvc-1"}, {".id": "*3", "slot": "pvc-2"}])
    );
    let set = json!({"numbers": format!("{id},pvc-2"), "nvme-tcp-export": "no", "comment": "off"});
    assert_eq!(call(&sim, "POST", "/disk/set", set).await, (200, json!([])));
    let (_, off) = call(
        &sim,
        "GET",
        "/disk?nvme-tcp-export=false&comment=off",
        Value::Null,
    )
    .await;
    assert_eq!(off.as_array().unwrap().len(), 2);
    assert_eq!(
        call(&sim, "POST", "/disk/set", json!({"comment": "x"})).await,
        bad("missing =.id=")
    );
    let gone = json!({"error": 404, "message": "Not Found"});
    assert_eq!(
        call(&sim, "POST", "/disk/remove", json!({".id": "*FF"})).await,
        (404, gone)
    );
    assert_eq!(
        call(&sim, "POST", "/disk/remove", json!({".id": "pvc-1"})).await,
        (200, json!([]))
    );
    assert_eq!(
        call(&sim, "POST", "/disk/format-drive", json!({})).await,
        bad("no such command")
    );
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
        (
            with("nvme-tcp-export", json!("maybe")),
            "input does not match any value of nvme-tcp-export",
        ),
        (
            with("nvme-tcp-server-port", json!(70000)),
            "value of nvme-tcp-server-port out of range (1..65535)",
        ),
        (
            with("file-size", json!("lots")),
            "invalid value for argument file-size",
        ),
        (
            with("file-size", Value::Null),
            "invalid value for argument file-size",
        ),
        (
            with("file-path", json!("/pool/../etc/passwd")),
            "invalid value for argument file-path",
        ),
        (with("slot", json!("a/b")), "invalid value for argument slot"),
        (
            with("slot", json!("pvc-1")),
            "failure: already have disk with such slot",
        ),
        (
            with("file-path", json!("storage-pool/csi/pvc-1.img")),
            "failure: file is already in use",
        ),
        (
            with("type", json!("raid")),
            "input does not match any value of type",
        ),
        (
            with("iscsi-export", json!("yes")),
            "failure: rds-sim does not simulate iscsi-export",
        ),
        (json!({"slot": "x"}), "missing =type="),
        (
            json!({"type": "file", "slot": "x", "file-path": "p/x.img"}),
            "missing =file-size=",
        ),
    ] {
        assert_eq!(
            call(&sim, "PUT", "/disk", body.clone()).await,
            bad(detail),
            "{body}"
        );
    }
    let missing = (404, json!({"error": 404, "message": "Not Found"}));
    assert_eq!(call(&sim, "GET", "/disk/*FF", Value::Null).await, missing);
    let no_item = refusal(404, "Not Found", "no such item");
    assert_eq!(
        call(&sim, "PATCH", "/disk/*FF", json!({"comment": "x"})).await,
        no_item
    );
    assert_eq!(call(&sim, "DELETE", "/disk/*FF", Value::Null).await, no_item);
    let identifier = bad("missing or invalid resource identifier");
    assert_eq!(call(&sim, "PATCH", "/disk", json!({})).await, identifier);
    assert_eq!(call(&sim, "DELETE", "/disk/%2A2", Value::Null).await, identifier);
    assert_eq!(
        call(&sim, "GET", "/nowhere", Value::Null).await,
        bad("no such command or directory (nowhere)")
    );
    let method = refusal(406, "Not Acceptable", "no such command or directory (remove)");
    assert_eq!(
        call(&sim, "DELETE", "/system/resource", Value::Null).await,
        method
    );
    assert_eq!(call(&sim, "HEAD", "/disk", Value::Null).await.0, 501);
    // Nothing of all that left a trace: the pool and one volume.
    assert_eq!(
        call(&sim, "GET", "/disk", Value::Null)
            .await
            .1
            .as_array()
            .unwrap()
            .len(),
        2
    );
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
    let sim = start_with(|options| options.version = Version { major: 7, minor: 20 })
        .await
        .unwrap();
    let unknown = bad("unknown parameter nvme-tcp-server-nqn");
    assert_eq!(call(&sim, "PUT", "/disk", volume("pvc-1")).await, unknown);
    let mut body = volume("pvc-1");
    body.as_object_mut().unwrap().remove("nvme-tcp-server-nqn");
    let (status, item) = call(&sim, "PUT", "/disk", body).await;
    assert_eq!((status, item.get("nvme-tcp-server-nqn")), (201, None));
    assert!(sim.target.observe("pvc-1").unwrap().subsystem.is_some());
}

#[tokio::test]
async fn the_host_list_is_ignored_single_or_a_list() {
    let both = format!("{HOST_A},{HOST_B}");
    let literal = Some(vec![both.clone()]);
    let list = Some(vec![HOST_A.to_owned(), HOST_B.to_owned()]);
    for (acl, denies, with_both, with_none) in [
        (AclMode::Ignored, false, None, None),
        (AclMode::Ignored, true, None, None),
        (AclMode::Single, false, literal, None),
        (AclMode::List, false, list.clone(), None),
        (AclMode::List, true, list, Some(vec![])),
    ] {
        let adjust = |options: &mut rds_sim::Options| {
            options.acl = acl;
            options.acl_empty_denies = denies;
        };
        let sim = start_with(adjust).await.unwrap();
        let id = add(&sim, "pvc-1").await;
        assert_eq!(allowed(&sim, "pvc-1"), with_none, "{acl:?} {denies}, at first");
        let name = "nvme-tcp-server-allow-host-name";
        let (_, item) = call(&sim, "PATCH", &format!("/disk/{id}"), json!({ name: both })).await;
        assert_eq!(item[name], both);
        assert_eq!(allowed(&sim, "pvc-1"), with_both, "{acl:?} {denies}");
        let (_, item) = call(&sim, "PATCH", &format!("/disk/{id}"), json!({ name: "" })).await;
        assert_eq!(item[name], "");
        assert_eq!(allowed(&sim, "pvc-1"), with_none, "{acl:?} {denies}, again");
    }
}

#[tokio::test]
async fn a_restart_touches_nothing_and_a_reboot_makes_everything_again() {
    let sim = start_with(|options| options.acl = AclMode::List).await.unwrap();
    let id = add(&sim, "pvc-1").await;
    let name = "nvme-tcp-server-allow-host-name";
    call(&sim, "PATCH", &format!("/disk/{id}"), json!({ name: HOST_A })).await;
    let before = sim.state().unwrap();
    sim.target.take_steps();
    let keep = |options: &mut rds_sim::Options| options.acl = AclMode::List;
    sim.restart(keep).unwrap();
    assert_eq!(sim.target.take_steps(), vec![]);
    assert_eq!(sim.state().unwrap().disks, before.disks);
    sim.target.reboot();
    sim.restart(keep).unwrap();
    assert_eq!(sim.state().unwrap().disks, before.disks);
    assert_ne!(add(&sim, "pvc-2").await, id);
}

#[tokio::test]
async fn a_missing_file_keeps_its_own_disk_down_and_no_other() {
    let sim = start().await.unwrap();
    add(&sim, "pvc-1").await;
    add(&sim, "pvc-2").await;
    let path = sim.state().unwrap().disks[0]
        .subsystem
        .clone()
        .unwrap()
        .namespace
        .unwrap()
        .namespace
        .path;
    std::fs::remove_file(path).unwrap();
    sim.target.reboot();
    sim.restart(|_| {}).unwrap();
    let disks = sim.state().unwrap().disks;
    assert!(
        disks[0].broken.as_ref().unwrap().contains("is missing"),
        "{disks:?}"
    );
    assert_eq!((disks[0].linked.len(), disks[1].linked.len()), (0, 2));
}

#[tokio::test]
async fn a_full_device_says_so_and_takes_nothing() {
    let sim = start_with(|options| options.capacity_bytes = Some(20 << 20))
        .await
        .unwrap();
    add(&sim, "pvc-1").await;
    assert_eq!(
        call(&sim, "PUT", "/disk", volume("pvc-2")).await,
        bad("failure: not enough space")
    );
    let (_, pool) = call(&sim, "GET", "/disk?slot=storage-pool", Value::Null).await;
    assert_eq!(
        (&pool[0]["size"], &pool[0]["free"]),
        (&json!("20971520"), &json!("4194304"))
    );
    assert_eq!(pool[0]["mounted"], "true");
}

#[tokio::test]
async fn sizes_change_only_upwards_and_only_where_asked_for() {
    let refused = bad("failure: can not change file-size");
    let sim = start().await.unwrap();
    let id = add(&sim, "pvc-1").await;
    assert_eq!(
        call(&sim, "PATCH", &format!("/disk/{id}"), json!({"file-size": "32M"})).await,
        refused
    );
    assert_eq!(
        call(&sim, "PATCH", &format!("/disk/{id}"), json!({"file-size": "16M"}))
            .await
            .0,
        200
    );
    sim.restart(|options| options.grow_online = true).unwrap();
    let (status, item) = call(&sim, "PATCH", &format!("/disk/{id}"), json!({"file-size": "32M"})).await;
    assert_eq!((status, &item["size"]), (200, &json!("33554432")));
    assert_eq!(
        call(&sim, "PATCH", &format!("/disk/{id}"), json!({"file-size": "16M"})).await,
        refused
    );
}

#[tokio::test]
async fn a_target_that_fails_leaves_nothing_of_an_add_and_the_old_state_of_a_set() {
    let sim = start_with(|options| options.acl = AclMode::List).await.unwrap();
    sim.target.fail_next("EnableNamespace");
    let (status, body) = call(&sim, "PUT", "/disk", volume("pvc-1")).await;
    assert_eq!((status, &body["message"]), (500, &json!("Internal Server Error")));
    assert!(
        body["detail"].as_str().unwrap().starts_with("std failure: "),
        "{body}"
    );
    assert_eq!(
        sim.target.observe("nqn.2026-01.test:pvc-1").unwrap().subsystem,
        None
    );
    assert_eq!(
        call(&sim, "GET", "/file?type=.img%20file", Value::Null).await.1,
        json!([])
    );
    let id = add(&sim, "pvc-1").await;
    sim.target.fail_next("AllowHost");
    let set = json!({"nvme-tcp-server-allow-host-name": HOST_A});
    assert_eq!(call(&sim, "PATCH", &format!("/disk/{id}"), set).await.0, 500);
    assert_eq!(allowed(&sim, "pvc-1"), None);
    assert_eq!(sim.state().unwrap().disks[0].linked.len(), 2);
}

#[tokio::test]
async fn identities_are_pinned_overridden_rerolled_or_changed() {
    let sim = start().await.unwrap();
    let id = add(&sim, "pvc-1").await;
    let uuid = || {
        let namespace = sim.state().unwrap().disks[0]
            .subsystem
            .clone()
            .unwrap()
            .namespace
            .unwrap();
        assert_ne!(namespace.namespace.uuid, namespace.namespace.nguid);
        namespace.namespace.uuid
    };
    let toggle = async || {
        for export in ["no", "yes"] {
            let set = json!({"nvme-tcp-export": export});
            assert_eq!(call(&sim, "PATCH", &format!("/disk/{id}"), set).await.0, 200);
        }
    };
    let pinned = uuid();
    toggle().await;
    assert_eq!(uuid(), pinned);
    let other = "6e0b7f0c-52a3-4f0e-9c1d-2a648d3571e9".parse().unwrap();
    sim.device().set_uuid("pvc-1", Some(other)).unwrap();
    assert_eq!(uuid(), other);
    sim.device().set_uuid("pvc-1", None).unwrap();
    assert_eq!(uuid(), pinned);
    sim.restart(|options| options.uuid_random = true).unwrap();
    assert_eq!(uuid(), pinned, "a restart is no enable");
    toggle().await;
    assert_ne!(uuid(), pinned);
}

#[tokio::test]
async fn portals_can_be_held_down() {
    let sim = start().await.unwrap();
    add(&sim, "pvc-1").await;
    add(&sim, "pvc-2").await;
    let hold = Hold {
        slot: Some("pvc-1".into()),
        portal: Some("10.77.1.1:4420".parse().unwrap()),
    };
    sim.device().hold(hold.clone(), true).unwrap();
    let linked = || {
        sim.state()
            .unwrap()
            .disks
            .iter()
            .map(|disk| disk.linked.len())
            .collect::<Vec<_>>()
    };
    assert_eq!(linked(), [1, 2]);
    let all = Hold {
        slot: None,
        portal: None,
    };
    sim.device().hold(all.clone(), true).unwrap();
    assert_eq!(linked(), [0, 0]);
    sim.device().hold(all, false).unwrap();
    assert_eq!(linked(), [2, 2]);
}

#[tokio::test]
async fn a_port_without_portal_is_opened_on_every_address() {
    let sim = start().await.unwrap();
    let mut body = volume("pvc-1");
    body["nvme-tcp-server-port"] = json!("4421");
    assert_eq!(call(&sim, "PUT", "/disk", body).await.0, 201);
    let linked = sim.state().unwrap().disks[0].linked.clone();
    let expected: Vec<_> = ["10.77.1.1:4421", "10.77.2.1:4421"]
        .map(|p| p.parse().unwrap())
        .into();
    assert_eq!(linked, expected);
}

#[tokio::test]
async fn faults_fail_slow_drop_hang_and_lose_replies_and_requests_are_counted() {
    let sim = start().await.unwrap();
    let body = json!({"error": 503, "message": "Service Unavailable"});
    sim.next_request(Action::Fail {
        status: 503,
        body: body.clone(),
    });
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
    assert_eq!(
        (sim.count("GET /rest/disk/*"), sim.count("PATCH /rest/disk/*")),
        (1, 1)
    );
    sim.faults.reset_requests();
    assert_eq!(sim.count("GET /rest/disk"), 0);
}
