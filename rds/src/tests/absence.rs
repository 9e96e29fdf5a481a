//! What a list lacks is not absent, and what is removed late is removed from nobody.

use super::*;

async fn bench_with_volume() -> Bench {
    let bench = Bench::with(|config| config.settle = Duration::from_secs(1)).await;
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
    bench.rds.allow(&id("pvc-1"), &host("a"), Priority::Attach).await.unwrap();
    bench.router.log();
    bench
}

/// Everything that rests on the volume's being there, or not.
async fn everything(bench: &Bench) -> Vec<(&'static str, Result<(), RdsError>)> {
    let (rds, volume, a) = (&bench.rds, id("pvc-1"), host("a"));
    vec![
        ("deny", rds.deny(&volume, &a, Priority::Fence).await.map(drop)),
        ("hide", rds.hide(&volume, Priority::Fence).await),
        ("allow", rds.allow(&volume, &a, Priority::Attach).await.map(drop)),
        ("look", rds.volume(&volume, Priority::List, Freshness::Now).await.map(drop)),
        ("delete", rds.delete(&volume).await),
    ]
}

#[tokio::test]
async fn a_list_that_lacks_a_disk_that_is_there_proves_nothing() {
    let bench = bench_with_volume().await;
    bench.router.lacking.lock().unwrap().push("pvc-1".into());
    for (what, result) in everything(&bench).await {
        let error = result.expect_err(what);
        assert!(matches!(error, RdsError::Malformed { .. }), "{what}: {error}");
        assert!(error.to_string().contains("it lacks volume pvc-1"), "{what}: {error}");
    }
    assert!(bench.router.log().iter().all(|line| line.starts_with("GET")), "nothing was changed");
    bench.router.lacking.lock().unwrap().clear();
    for (what, result) in everything(&bench).await {
        result.unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

#[tokio::test]
async fn an_empty_list_is_read_again_and_never_believed() {
    let bench = bench_with_volume().await;
    bench.router.fault("GET disk", Fault::Answer(200, "[]"));
    bench.rds.deny(&id("pvc-1"), &host("a"), Priority::Fence).await.expect("one is got over");
    for _ in 0..3 {
        bench.router.fault("GET disk", Fault::Answer(200, "[]"));
    }
    let error = bench.rds.volume(&id("pvc-1"), Priority::List, Freshness::Now).await.unwrap_err();
    assert!(
        matches!(error, RdsError::Malformed { .. }) && error.to_string().contains("it is empty"),
        "{error}"
    );
}

#[tokio::test]
async fn a_volume_is_absent_once_it_was_denied_by_slot_and_number_often_enough() {
    let bench = bench_with_volume().await;
    bench.router.disks.lock().unwrap().clear();
    let absent = bench.rds.deny(&id("pvc-1"), &host("a"), Priority::Fence).await.unwrap_err();
    assert!(matches!(absent, RdsError::NotFound { .. }), "{absent}");
    let log = bench.router.log();
    let count = |line: &str| log.iter().filter(|asked| *asked == line).count();
    assert_eq!(
        (count("GET disk"), count("GET disk/*1")),
        (6, 3),
        "three lists, three by slot, three by number"
    );
}

#[tokio::test]
async fn a_removal_that_lands_late_finds_nothing_under_its_number() {
    let bench = bench_with_volume().await;
    let late = Arc::new(Notify::new());
    bench.router.fault("DELETE disk", Fault::Late(Arc::clone(&late)));
    bench.rds.delete(&id("pvc-1")).await.expect("it is sent again");
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
    bench.rds.allow(&id("pvc-1"), &host("b"), Priority::Attach).await.unwrap();
    late.notify_one();
    bench.until_asked("DELETE disk").await;
    assert!(bench.router.disk("pvc-1").is_some());
}

#[tokio::test]
async fn nobody_is_let_in_while_a_lost_removal_may_still_land() {
    let bench = bench_with_volume().await;
    let late = Arc::new(Notify::new());
    for _ in 0..10 {
        bench.router.fault("DELETE disk", Fault::Late(Arc::clone(&late)));
    }
    assert!(bench.rds.delete(&id("pvc-1")).await.unwrap_err().outcome_unknown());
    for result in [
        bench.rds.allow(&id("pvc-1"), &host("b"), Priority::Attach).await.map(drop),
        bench.rds.show(&id("pvc-1"), Priority::Fence).await,
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, RdsError::InDoubt { .. }), "{error}");
        assert!(error.to_string().contains("remove its disk"), "{error}");
    }
}
