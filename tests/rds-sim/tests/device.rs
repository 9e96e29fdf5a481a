//! The device behind the API: host lists, restarts, capacity, identities, portals, and a target that fails.

#![allow(clippy::unwrap_used)]

mod support;

use rds_sim::AclMode;
use rds_sim::pretend::Pretend;
use rds_sim::rds::Hold;
use rds_sim::target::TargetKernel;
use rds_sim::testing::{start, start_with};
use serde_json::{Value, json};
use support::{HOST_A, HOST_B, add, allowed, bad, call, volume};

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
    let path = sim.state().unwrap().disks[0].subsystem.clone().unwrap().namespace.unwrap().namespace.path;
    std::fs::remove_file(path).unwrap();
    sim.target.reboot();
    sim.restart(|_| {}).unwrap();
    let disks = sim.state().unwrap().disks;
    assert!(disks[0].broken.as_ref().unwrap().contains("is missing"), "{disks:?}");
    assert_eq!((disks[0].linked.len(), disks[1].linked.len()), (0, 2));
}

#[tokio::test]
async fn a_full_device_says_so_and_takes_nothing() {
    let sim = start_with(|options| options.capacity_bytes = Some(20 << 20)).await.unwrap();
    add(&sim, "pvc-1").await;
    assert_eq!(call(&sim, "PUT", "/disk", volume("pvc-2")).await, bad("failure: not enough space"));
    let (_, pool) = call(&sim, "GET", "/disk?slot=storage-pool", Value::Null).await;
    assert_eq!((&pool[0]["size"], &pool[0]["free"]), (&json!("20971520"), &json!("4194304")));
    assert_eq!(pool[0]["mounted"], "true");
}

#[tokio::test]
async fn sizes_change_only_upwards_and_only_on_request() {
    let refused = bad("failure: can not change file-size");
    let sim = start().await.unwrap();
    let id = add(&sim, "pvc-1").await;
    assert_eq!(call(&sim, "PATCH", &format!("/disk/{id}"), json!({"file-size": "32M"})).await, refused);
    assert_eq!(call(&sim, "PATCH", &format!("/disk/{id}"), json!({"file-size": "16M"})).await.0, 200);
    sim.restart(|options| options.grow_online = true).unwrap();
    let (status, item) = call(&sim, "PATCH", &format!("/disk/{id}"), json!({"file-size": "32M"})).await;
    assert_eq!((status, &item["size"]), (200, &json!("33554432")));
    assert_eq!(call(&sim, "PATCH", &format!("/disk/{id}"), json!({"file-size": "16M"})).await, refused);
}

#[tokio::test]
async fn a_failing_target_leaves_nothing_of_an_add_and_a_set_undone() {
    let sim = start_with(|options| options.acl = AclMode::List).await.unwrap();
    sim.target.fail_next("EnableNamespace");
    let (status, body) = call(&sim, "PUT", "/disk", volume("pvc-1")).await;
    assert_eq!((status, &body["message"]), (500, &json!("Internal Server Error")));
    assert!(body["detail"].as_str().unwrap().starts_with("std failure: "), "{body}");
    assert_eq!(sim.target.observe("nqn.2026-01.test:pvc-1").unwrap().subsystem, None);
    assert_eq!(call(&sim, "GET", "/file?type=.img%20file", Value::Null).await.1, json!([]));
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
        let namespace = sim.state().unwrap().disks[0].subsystem.clone().unwrap().namespace.unwrap();
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
    let hold = Hold { slot: Some("pvc-1".into()), portal: Some("10.77.1.1:4420".parse().unwrap()) };
    sim.device().hold(hold.clone(), true).unwrap();
    let linked = || sim.state().unwrap().disks.iter().map(|disk| disk.linked.len()).collect::<Vec<_>>();
    assert_eq!(linked(), [1, 2]);
    let all = Hold { slot: None, portal: None };
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
    let expected: Vec<_> = ["10.77.1.1:4421", "10.77.2.1:4421"].map(|p| p.parse().unwrap()).into();
    assert_eq!(linked, expected);
}

#[tokio::test]
async fn operations_run_one_at_a_time_and_a_slot_is_given_once() {
    let sim = start().await.unwrap();
    let (a, b, c) = tokio::join!(
        call(&sim, "PUT", "/disk", volume("pvc-1")),
        call(&sim, "PUT", "/disk", volume("pvc-1")),
        call(&sim, "PUT", "/disk", volume("pvc-2")),
    );
    let mut statuses = [a.0, b.0];
    statuses.sort_unstable();
    assert_eq!((statuses, c.0), ([201, 400], 201));
    let disks = sim.state().unwrap().disks;
    assert_eq!(disks.len(), 2);
    assert_ne!(disks[0].id, disks[1].id);
}

#[tokio::test]
async fn a_fence_that_is_only_pretended_reads_as_if_it_had_been_made() {
    let sim =
        start_with(|options| (options.acl, options.acl_empty_denies) = (AclMode::List, true)).await.unwrap();
    let id = add(&sim, "pvc-1").await;
    let (list, export) = ("nvme-tcp-server-allow-host-name", "nvme-tcp-export");
    let set = async |body: Value| {
        let (status, item) = call(&sim, "PATCH", &format!("/disk/{id}"), body).await;
        assert_eq!(status, 200, "{item}");
        item
    };
    let enabled = || {
        let disk = sim.state().unwrap().disks[0].clone();
        (disk.linked.len(), disk.subsystem.unwrap().namespace.unwrap().enabled)
    };
    set(json!({ list: format!("{HOST_A},{HOST_B}") })).await;

    sim.pretend(Pretend::Acl);
    assert_eq!(set(json!({ list: HOST_B })).await[list], HOST_B);
    assert_eq!(allowed(&sim, "pvc-1").unwrap().len(), 2, "nobody is taken off");
    sim.device().pretend_nothing().unwrap();
    assert_eq!(allowed(&sim, "pvc-1").unwrap(), [HOST_B]);

    sim.pretend(Pretend::Cut);
    assert_eq!(set(json!({ export: "no" })).await[export], "false");
    assert_eq!(enabled(), (2, true));
    set(json!({ export: "yes" })).await;
    sim.device().pretend_nothing().unwrap();

    sim.pretend(Pretend::Drain);
    assert_eq!(set(json!({ export: "no" })).await[export], "false");
    assert_eq!(enabled(), (0, true));
    set(json!({ export: "yes" })).await;
    assert_eq!(enabled(), (2, true));
    sim.device().pretend_nothing().unwrap();
    set(json!({ export: "no" })).await;
    assert_eq!(enabled(), (0, false));
}

#[tokio::test]
async fn a_password_is_a_secret_that_hosts_on_the_list_have_to_know() {
    let sim = start_with(|options| options.in_band_auth = true).await.unwrap();
    let id = add(&sim, "pvc-1").await;
    let (list, password) = ("nvme-tcp-server-allow-host-name", "nvme-tcp-server-password");
    assert_eq!(allowed(&sim, "pvc-1"), None);
    let set = json!({ list: HOST_A, password: "one" });
    let (_, item) = call(&sim, "PATCH", &format!("/disk/{id}"), set).await;
    assert!(item["nvme-tcp-server-secret"].as_str().unwrap().starts_with("DHHC-1:00:"), "{item}");
    let secrets = || sim.target.observe("nqn.2026-01.test:pvc-1").unwrap().subsystem.unwrap().secrets;
    let one = secrets()[HOST_A].clone();
    let (_, item) =
        call(&sim, "PATCH", &format!("/disk/{id}"), json!({ list: HOST_B, password: "two" })).await;
    assert_eq!(item[list], HOST_B);
    // The list is not enforced here; what keeps a host out is that it does not know the secret.
    assert_eq!(allowed(&sim, "pvc-1").unwrap(), [HOST_A, HOST_B]);
    assert!(secrets()[HOST_A] == secrets()[HOST_B] && secrets()[HOST_A] != one);

    let other = add(&sim, "pvc-2").await;
    let clash =
        call(&sim, "PATCH", &format!("/disk/{other}"), json!({ list: HOST_B, password: "three" })).await;
    assert_eq!(clash, bad("failure: rds-sim has one secret to a host, and disk pvc-1 has another"));
}
