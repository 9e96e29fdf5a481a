//! Create, delete and list.

use super::*;

#[tokio::test]
async fn a_volume_is_made_once_with_exact_properties_and_found_again() {
    let bench = Bench::start().await;
    let Made { volume: made, added } = bench.rds.create(&new("pvc-1", 1_073_745_920)).await.unwrap();
    assert!(added);
    assert_eq!(made.size, ByteSize(1_073_745_920));
    assert_eq!(made.nqn, "nqn.2000-02.com.mikrotik:pvc-1");
    let disk = bench.router.disk("pvc-1").unwrap();
    for (name, value) in [
        ("type", "file"),
        ("file-path", "/pool/cleat/pvc-1.img"),
        ("file-size", "1073745920"),
        ("mount-filesystem", "no"),
        ("nvme-tcp-export", "yes"),
        ("comment", "cleat cluster=one"),
        ("nvme-tcp-server-port", "4420"),
        ("nvme-tcp-server-nqn", "nqn.2000-02.com.mikrotik:pvc-1"),
    ] {
        assert_eq!(disk[name], value, "{name}");
    }
    assert_eq!(bench.shown("pvc-1").0, "nqn.2026-01.io.cleat:nobody.pvc-1.RANDOM");
    bench.router.log();
    let again = Made { volume: made, added: false };
    assert_eq!(bench.rds.create(&new("pvc-1", 1_073_745_920)).await.unwrap(), again);
    assert!(bench.router.log().iter().all(|line| line.starts_with("GET")));

    assert_eq!(bench.rds.create(&new("pvc-1", 4096)).await.unwrap(), again, "larger than asked for is fine");
    let other = bench.rds.create(&new("pvc-1", 2 << 30)).await.unwrap_err();
    assert!(matches!(other, RdsError::Conflict { .. }), "{other}");
    assert!(other.to_string().contains("1073745920"), "{other}");
    let parameters = VolumeParameters { min_fence: Some("acl".to_owned()), ..VolumeParameters::default() };
    let other = bench.rds.create(&NewVolume { parameters, ..new("pvc-1", 4096) }).await.unwrap_err();
    assert!(other.to_string().contains("made with minFence none, not acl"), "{other}");
}

#[tokio::test]
async fn what_a_volume_was_made_with_is_kept_at_the_rds() {
    let bench = Bench::start().await;
    let parameters = VolumeParameters {
        migration_timeout: Some("120".to_owned()),
        require_migration: Some("true".to_owned()),
        ..VolumeParameters::default()
    };
    let wanted = NewVolume { parameters: parameters.clone(), ..new("pvc-1", 4096) };
    bench.rds.create(&wanted).await.unwrap();
    let comment = "cleat cluster=one migration-timeout-seconds=120 require-migration=true";
    assert_eq!(bench.router.disk("pvc-1").unwrap()["comment"], comment);
    let found = bench.rds.create(&wanted).await.unwrap();
    assert_eq!((found.added, found.volume.parameters), (false, parameters));
    let other = bench.rds.create(&new("pvc-1", 4096)).await.unwrap_err();
    assert!(other.to_string().contains("made with migrationTimeoutSeconds 120, not none"), "{other}");
}

#[tokio::test]
async fn each_volume_gets_a_port_of_its_own_where_there_are_ports_for_that() {
    let bench = Bench::start().await;
    bench.rds.create(&new("pvc-0", 4096)).await.unwrap();
    let ports = "4420-4422".parse().unwrap();
    let rds = bench.rds.clone().with_volume_ports(ports);
    let (pvc_1, pvc_2) = (new("pvc-1", 4096), new("pvc-2", 4096));
    let (one, two) = tokio::join!(rds.create(&pvc_1), rds.create(&pvc_2));
    let both = [one.unwrap().volume.port, two.unwrap().volume.port];
    assert!(both == [Some(4421), Some(4422)] || both == [Some(4422), Some(4421)], "{both:?}");
    // A repeated call finds what it has made, and what was made before is as good.
    assert_eq!(rds.create(&new("pvc-1", 4096)).await.unwrap().volume.port, both[0]);
    assert_eq!(rds.create(&new("pvc-0", 4096)).await.unwrap().volume.port, Some(4420));
    let full = rds.create(&new("pvc-3", 4096)).await.unwrap_err();
    assert!(matches!(full, RdsError::Full { .. }), "{full}");
    rds.delete(&id("pvc-2")).await.unwrap();
    assert_eq!(rds.create(&new("pvc-3", 4096)).await.unwrap().volume.port, both[1]);
}

#[tokio::test]
async fn without_lists_a_volume_is_exported_at_once() {
    let bench = Bench::with(|config| config.host_acl = HostAcl::None).await;
    assert!(bench.rds.create(&new("pvc-1", 4096)).await.unwrap().volume.exported);
    let (volume, a) = (id("pvc-1"), host("a"));
    assert_eq!(bench.rds.allow(&volume, &a, Priority::Attach).await.unwrap(), Admission::NotEnforced);
    assert_eq!(bench.rds.deny(&volume, &a, Priority::Detach).await.unwrap(), Admission::NotEnforced);
    assert!(bench.shown("pvc-1").1);
}

/// A repeated CreateVolume must not bring back what a fence rests on.
#[tokio::test]
async fn without_lists_an_export_that_is_off_stays_off_when_created_again() {
    let bench = Bench::with(|config| config.host_acl = HostAcl::None).await;
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
    bench.rds.hide(&id("pvc-1"), Priority::Fence).await.unwrap();
    assert!(!bench.rds.create(&new("pvc-1", 4096)).await.unwrap().volume.exported);
    assert!(!bench.shown("pvc-1").1);
}

#[tokio::test]
async fn a_lost_answer_to_create_leaves_one_volume_after_the_retry() {
    let bench = Bench::start().await;
    bench.router.fault("PUT disk", Fault::LoseAnswer);
    let lost = bench.rds.create(&new("pvc-1", 4096)).await.unwrap_err();
    assert!(matches!(lost, RdsError::Unreachable { way: Way::Timeout, .. }), "{lost}");
    assert!(lost.outcome_unknown());
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
    assert_eq!(bench.router.disks.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_create_that_lands_while_the_retry_is_under_way_is_taken_for_its_own() {
    let bench = Bench::start().await;
    let (late, hold) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    bench.router.fault("PUT disk", Fault::Late(Arc::clone(&late)));
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap_err();
    bench.router.log();
    bench.router.fault("PUT disk", Fault::Hold(Arc::clone(&hold)));
    let rds = bench.rds.clone();
    let retry = tokio::spawn(async move { rds.create(&new("pvc-1", 4096)).await });
    bench.until_asked("PUT disk").await;
    late.notify_one();
    while bench.router.disk("pvc-1").is_none() {
        tokio::task::yield_now().await;
    }
    hold.notify_one();
    retry.await.unwrap().unwrap();
    assert_eq!(bench.router.disks.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn create_takes_neither_a_file_left_behind_nor_a_foreign_slot() {
    let bench = Bench::start().await;
    bench.router.add_file("pool/cleat/pvc-1.img");
    let left = bench.rds.create(&new("pvc-1", 4096)).await.unwrap_err();
    assert!(matches!(left, RdsError::Conflict { .. }), "{left}");
    bench.router.add_disk(json!({"slot": "nvme1", "type": "hardware"}));
    let taken = bench.rds.create(&new("nvme1", 4096)).await.unwrap_err();
    assert!(matches!(taken, RdsError::Conflict { .. }), "{taken}");
    assert!(bench.router.log().iter().all(|line| line.starts_with("GET")));
}

#[tokio::test]
async fn a_full_rds_and_a_refusal_are_different_things() {
    let bench = Bench::start().await;
    bench.router.fault(
        "PUT disk",
        Fault::Answer(400, r#"{"error":400,"message":"Bad Request","detail":"failure: not enough space"}"#),
    );
    let full = bench.rds.create(&new("pvc-1", 4096)).await.unwrap_err();
    assert!(matches!(full, RdsError::Full { .. }), "{full}");
    let body = r#"{"error":500,"message":"Internal Server Error","detail":"std failure: not allowed (9)"}"#;
    bench.router.fault("PUT disk", Fault::Answer(500, body));
    let refused = bench.rds.create(&new("pvc-1", 4096)).await.unwrap_err();
    assert!(matches!(refused, RdsError::Refused { status: 500, .. }), "{refused}");
    assert!(refused.to_string().contains("not allowed (9)"), "{refused}");
    assert!(!refused.outcome_unknown());
}

#[tokio::test]
async fn delete_takes_export_disk_and_file_in_this_order_and_may_be_repeated() {
    let bench = Bench::start().await;
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
    bench.rds.allow(&id("pvc-1"), &host("a"), Priority::Attach).await.unwrap();
    bench.router.log();
    bench.rds.delete(&id("pvc-1")).await.unwrap();
    let log = bench.router.log();
    let writes: Vec<_> = log.iter().filter(|line| !line.starts_with("GET")).collect();
    assert_eq!(writes[0], "PATCH disk/*1 nvme-tcp-export=no");
    assert_eq!(writes[1], "DELETE disk/*1");
    assert!(writes[2].starts_with("DELETE file/*"), "{writes:?}");
    assert!(bench.router.disk("pvc-1").is_none() && bench.router.files.lock().unwrap().is_empty());
    bench.rds.delete(&id("pvc-1")).await.unwrap();
    assert!(bench.router.log().iter().all(|line| line.starts_with("GET")));
}

#[tokio::test]
async fn a_delete_that_was_interrupted_is_finished_by_the_retry() {
    let interrupted_at = async |begins: &'static str| {
        let bench = Bench::start().await;
        bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
        bench.rds.allow(&id("pvc-1"), &host("a"), Priority::Attach).await.unwrap();
        bench.router.fault(begins, Fault::LoseAnswer);
        match (begins, bench.rds.delete(&id("pvc-1")).await) {
            ("DELETE disk", result) => result.expect("it is asked again until the answer is known"),
            (_, result) => assert!(result.unwrap_err().outcome_unknown(), "{begins}"),
        }
        bench.rds.delete(&id("pvc-1")).await.unwrap();
        assert!(bench.router.disk("pvc-1").is_none(), "{begins}");
        assert!(bench.router.files.lock().unwrap().is_empty(), "{begins}");
    };
    tokio::join!(interrupted_at("PATCH disk"), interrupted_at("DELETE disk"), interrupted_at("DELETE file"));
}

#[tokio::test]
async fn delete_touches_nothing_that_is_not_ours() {
    let bench = Bench::start().await;
    let elsewhere = json!({"slot": "pvc-1", "type": "file", "file-path": "/pool/other/pvc-1.img"});
    bench.router.add_disk(elsewhere);
    let user = json!({"slot": "backup", "type": "file", "file-path": "/pool/cleat/pvc-2.img"});
    bench.router.add_disk(user);
    for name in ["pvc-1", "pvc-2"] {
        let error = bench.rds.delete(&id(name)).await.unwrap_err();
        assert!(matches!(error, RdsError::Conflict { .. }), "{error}");
    }
    assert!(bench.router.log().iter().all(|line| line.starts_with("GET")));
}

#[tokio::test]
async fn callers_at_once_share_a_list_and_a_writer_gets_one_begun_later() {
    let bench = Bench::start().await;
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
    bench.router.log();
    let hold = Arc::new(Notify::new());
    bench.router.fault("GET disk", Fault::Hold(Arc::clone(&hold)));
    let within = Freshness::Within(Duration::from_secs(60));
    let ask = |freshness| {
        let rds = bench.rds.clone();
        tokio::spawn(async move { rds.volumes(Priority::List, freshness).await.map(drop) })
    };
    let first = ask(Freshness::Now);
    bench.until_asked("GET disk").await;
    // These came after it was begun: they share the next one.
    let later: Vec<_> = (0..10).map(|_| ask(Freshness::Now)).collect();
    tokio::task::yield_now().await;
    hold.notify_one();
    for task in later.into_iter().chain([first]) {
        task.await.unwrap().unwrap();
    }
    assert_eq!(bench.router.log().len(), 2);
    ask(within).await.unwrap().unwrap();
    assert_eq!(bench.router.log().len(), 0, "a recent answer serves");
    bench.rds.allow(&id("pvc-1"), &host("a"), Priority::Attach).await.unwrap();
    let shown = bench.rds.volume(&id("pvc-1"), Priority::List, within).await.unwrap();
    assert!(shown.hosts.contains(host("a").as_str()), "not the list from before the write");
}

#[tokio::test]
async fn an_error_is_never_absence() {
    let bench = Bench::start().await;
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
    for (status, body) in [
        (404, "<html>no such page</html>"),
        (200, r#"{"error":404}"#),
        (200, "[{\"slot\":"),
        (502, ""),
        (500, r#"{"error":500,"message":"Internal Server Error","detail":"timeout"}"#),
    ] {
        bench.router.fault("GET disk", Fault::Answer(status, body));
        let error = bench.rds.volume(&id("pvc-1"), Priority::List, Freshness::Now).await.unwrap_err();
        assert!(!matches!(error, RdsError::NotFound { .. }), "{status} {body}: {error}");
        bench.router.fault("GET disk", Fault::Answer(status, body));
        assert!(bench.rds.delete(&id("pvc-1")).await.is_err(), "{status} {body}");
    }
    let absent = bench.rds.volume(&id("pvc-2"), Priority::List, Freshness::Now).await.unwrap_err();
    assert!(matches!(absent, RdsError::NotFound { .. }), "{absent}");
    assert!(bench.router.disk("pvc-1").is_some());
}
