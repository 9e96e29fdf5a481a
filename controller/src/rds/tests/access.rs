//! Who may connect.

use super::*;

async fn bench_with_volume() -> Bench {
    let bench = Bench::start().await;
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
    bench.router.log();
    bench
}

impl Bench {
    async fn allow(&self, name: &str) -> Result<Admission, RdsError> {
        self.rds.allow(&id("pvc-1"), &host(name), Priority::Attach).await
    }

    async fn deny(&self, name: &str) -> Result<Admission, RdsError> {
        self.rds.deny(&id("pvc-1"), &host(name), Priority::Detach).await
    }
}

#[tokio::test]
async fn hosts_come_and_go_and_at_no_moment_is_everybody_admitted() {
    let bench = bench_with_volume().await;
    assert_eq!(bench.allow("a").await.unwrap(), Admission::Enforced);
    assert_eq!(bench.shown("pvc-1"), ("nqn.2026-01.test:a".into(), true));
    bench.allow("b").await.unwrap();
    assert_eq!(bench.shown("pvc-1").0, "nqn.2026-01.test:a,nqn.2026-01.test:b");
    bench.deny("a").await.unwrap();
    assert_eq!(bench.shown("pvc-1"), ("nqn.2026-01.test:b".into(), true));
    bench.deny("b").await.unwrap();
    assert_eq!(bench.shown("pvc-1"), (String::new(), false));
    bench.deny("b").await.unwrap();
    bench.allow("c").await.unwrap();
    assert_eq!(bench.shown("pvc-1"), ("nqn.2026-01.test:c".into(), true));
    let admitted = bench.router.admitted.lock().unwrap().clone();
    assert!(!admitted.contains(&"EVERYBODY".to_owned()), "{admitted:?}");
}

#[tokio::test]
async fn a_volume_open_to_everybody_is_closed_by_denying_one() {
    let bench = bench_with_volume().await;
    bench.router.disks.lock().unwrap()[0].insert("nvme-tcp-export".into(), json!("yes"));
    bench.deny("a").await.unwrap();
    assert_eq!(bench.shown("pvc-1"), (String::new(), false));
    let on = bench.rds.set_export(&id("pvc-1"), true, Priority::Fence).await.unwrap_err();
    assert!(matches!(on, RdsError::Conflict { .. }), "{on}");
}

#[tokio::test]
async fn changes_of_one_volume_at_once_lose_nothing() {
    let bench = bench_with_volume().await;
    let names = ["a", "b", "c", "d", "e", "f"];
    let tasks = names.map(|name| {
        let rds = bench.rds.clone();
        tokio::spawn(async move { rds.allow(&id("pvc-1"), &host(name), Priority::Attach).await })
    });
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(bench.shown("pvc-1").0.split(',').count(), names.len());
}

#[tokio::test]
async fn success_is_what_was_read_back_and_not_what_was_said() {
    let bench = bench_with_volume().await;
    bench.router.fault("PATCH disk", Fault::Answer(200, "{}"));
    let error = bench.allow("a").await.unwrap_err();
    assert!(matches!(error, RdsError::Malformed { .. }), "{error}");
    assert_eq!(bench.shown("pvc-1").0, "");
    bench.allow("a").await.unwrap();
}

#[tokio::test]
async fn a_volume_that_is_not_there_is_said_to_be_so() {
    let bench = Bench::start().await;
    for result in [bench.allow("a").await, bench.deny("a").await] {
        assert!(matches!(result, Err(RdsError::NotFound { .. })), "{result:?}");
    }
}

#[tokio::test]
async fn a_deny_is_not_proven_while_an_earlier_allow_may_still_land() {
    let bench = Bench::with(|config| config.settle = Duration::from_secs(6)).await;
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
    bench.allow("a").await.unwrap();
    let late = Arc::new(Notify::new());
    bench.router.fault("PATCH disk", Fault::Late(Arc::clone(&late)));
    assert!(bench.allow("b").await.unwrap_err().outcome_unknown());

    let doubtful = bench.deny("b").await.unwrap_err();
    assert!(matches!(doubtful, RdsError::InDoubt { .. }), "{doubtful}");
    bench.deny("c").await.expect("the write in doubt says nothing of c");
    late.notify_one();
    while !bench.shown("pvc-1").0.contains(":b") {
        tokio::task::yield_now().await;
    }
    // It did land, and is seen to have: now the denial can be carried out and proven.
    let proven = async {
        while let Err(error) = bench.deny("b").await {
            assert!(matches!(error, RdsError::InDoubt { .. }), "{error}");
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), proven).await.expect("settles");
    assert_eq!(bench.shown("pvc-1"), ("nqn.2026-01.test:a".into(), true));
}

#[tokio::test]
async fn an_allow_that_is_seen_to_have_landed_is_in_doubt_no_more() {
    let bench = bench_with_volume().await;
    for begins in ["PATCH disk/*1 nvme-tcp-server-allow", "PATCH disk/*1 nvme-tcp-export"] {
        bench.router.fault(begins, Fault::LoseAnswer);
        assert!(bench.allow("a").await.unwrap_err().outcome_unknown());
        bench.allow("a").await.unwrap();
        bench.deny("a").await.expect("it was read before anything else was written");
    }
}

#[tokio::test]
async fn an_operation_goes_on_when_its_caller_has_gone() {
    let bench = bench_with_volume().await;
    let hold = Arc::new(Notify::new());
    bench.router.fault("PATCH disk", Fault::Hold(Arc::clone(&hold)));
    let rds = bench.rds.clone();
    let caller = tokio::spawn(async move { rds.allow(&id("pvc-1"), &host("a"), Priority::Attach).await });
    bench.until_asked("PATCH disk").await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    hold.notify_one();
    // The next operation on the volume waits for the one before, which has done both of its steps by then.
    bench.allow("b").await.unwrap();
    assert_eq!(bench.shown("pvc-1"), ("nqn.2026-01.test:a,nqn.2026-01.test:b".into(), true));
}

#[tokio::test]
async fn a_fence_overtakes_what_waits() {
    let bench = bench_with_volume().await;
    bench.rds.create(&new("pvc-2", 4096)).await.unwrap();
    bench.rds.allow(&id("pvc-2"), &host("z"), Priority::Attach).await.unwrap();
    bench.router.log();
    let hold = Arc::new(Notify::new());
    bench.router.fault("GET system", Fault::Hold(Arc::clone(&hold)));
    let run = |operation: &'static str| {
        let rds = bench.rds.clone();
        tokio::spawn(async move {
            match operation {
                "probe" => rds.resource().await.map(drop),
                "attach" => rds.allow(&id("pvc-1"), &host("a"), Priority::Attach).await.map(drop),
                _ => rds.set_export(&id("pvc-2"), false, Priority::Fence).await,
            }
        })
    };
    let probe = run("probe");
    bench.until_asked("GET system").await;
    let attach = run("attach");
    tokio::task::yield_now().await;
    let fence = run("fence");
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    hold.notify_one();
    for task in [probe, attach, fence] {
        task.await.unwrap().unwrap();
    }
    let log = bench.router.log();
    let place = |begins: &str| log.iter().position(|line| line.starts_with(begins)).unwrap();
    assert!(place("PATCH disk/*3 nvme-tcp-export=no") < place("PATCH disk/*1"), "{log:?}");
}
