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

/// A list with these hosts, as [`Bench::shown`] gives it.
fn list(names: &[&str]) -> String {
    let nobody = "nqn.2026-01.io.cleat:nobody.pvc-1.RANDOM".to_owned();
    let hosts = names.iter().map(|name| format!("nqn.2026-01.test:{name}"));
    [nobody].into_iter().chain(hosts).collect::<Vec<_>>().join(",")
}

#[tokio::test]
async fn who_may_not_write_sends_no_write_and_reads_all_the_same() {
    let bench = bench_with_volume().await;
    let leads = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let asked = Arc::clone(&leads);
    bench.rds.ask_before_writes(move |time| {
        assert_eq!(time, TIMEOUT, "for as long as the kernel may deliver it");
        asked.load(std::sync::atomic::Ordering::SeqCst)
    });
    bench.allow("a").await.unwrap();
    leads.store(false, std::sync::atomic::Ordering::SeqCst);
    bench.router.log();
    let refused = bench.deny("a").await.unwrap_err();
    assert!(matches!(&refused, RdsError::Unreachable { way: Way::Queue, .. }), "{refused}");
    assert!(format!("{refused:?}").contains("no longer leads"), "{refused:?}");
    assert!(bench.router.log().iter().all(|line| line.starts_with("GET")), "it came to the RDS");
    assert_eq!(bench.shown("pvc-1"), (list(&["a"]), true));
    bench.rds.volumes(Priority::Attach, Freshness::Now).await.unwrap();
}

#[tokio::test]
async fn hosts_come_and_go_with_one_write_and_never_is_everybody_admitted() {
    let bench = bench_with_volume().await;
    assert_eq!(bench.shown("pvc-1"), (list(&[]), true));
    let one_write = || {
        let log = bench.router.log();
        let writes: Vec<_> = log.iter().filter(|line| !line.starts_with("GET")).collect();
        assert!(
            matches!(writes[..], [only] if only.starts_with("PATCH disk/*1 nvme-tcp-server-allow")),
            "{log:?}"
        );
    };
    assert_eq!(bench.allow("a").await.unwrap(), Admission::Enforced);
    one_write();
    assert_eq!(bench.shown("pvc-1"), (list(&["a"]), true));
    bench.allow("b").await.unwrap();
    one_write();
    assert_eq!(bench.shown("pvc-1").0, list(&["a", "b"]));
    bench.deny("a").await.unwrap();
    one_write();
    assert_eq!(bench.shown("pvc-1"), (list(&["b"]), true));
    bench.deny("b").await.unwrap();
    one_write();
    assert_eq!(bench.shown("pvc-1"), (list(&[]), true));
    bench.deny("b").await.unwrap();
    assert!(bench.router.log().iter().all(|line| line.starts_with("GET")));
    bench.allow("c").await.unwrap();
    assert_eq!(bench.shown("pvc-1"), (list(&["c"]), true));
    let admitted = bench.router.admitted.lock().unwrap().clone();
    assert!(!admitted.contains(&"EVERYBODY".to_owned()), "{admitted:?}");
}

#[tokio::test]
async fn hidden_nobody_gets_in_and_shown_only_those_on_the_list() {
    let bench = bench_with_volume().await;
    bench.allow("a").await.unwrap();
    for _ in 0..2 {
        bench.rds.hide(&id("pvc-1"), Priority::Fence).await.unwrap();
        assert_eq!(bench.shown("pvc-1"), (list(&["a"]), false));
    }
    bench.deny("a").await.unwrap();
    assert_eq!(bench.shown("pvc-1"), (list(&[]), false), "a change of the list shows nothing");
    for _ in 0..2 {
        bench.rds.show(&id("pvc-1"), Priority::Fence).await.unwrap();
        assert_eq!(bench.shown("pvc-1"), (list(&[]), true));
    }
}

/// As earlier versions made them, and left them after the last Unpublish.
#[tokio::test]
async fn a_volume_without_the_placeholder_is_adopted_by_whatever_comes_first() {
    for (operation, hosts, shown) in
        [("allow", list(&["a"]), true), ("deny", list(&[]), false), ("show", list(&[]), true)]
    {
        let bench = bench_with_volume().await;
        {
            let mut disks = bench.router.disks.lock().unwrap();
            disks[0].insert("nvme-tcp-export".into(), json!("no"));
            disks[0].insert("nvme-tcp-server-allow-host-name".into(), json!(""));
        }
        match operation {
            "allow" => bench.allow("a").await.map(drop),
            "deny" => bench.deny("a").await.map(drop),
            _ => bench.rds.show(&id("pvc-1"), Priority::Fence).await,
        }
        .unwrap();
        assert_eq!(bench.shown("pvc-1"), (hosts, shown), "{operation}");
        let admitted = bench.router.admitted.lock().unwrap().clone();
        assert!(!admitted.contains(&"EVERYBODY".to_owned()), "{operation}: {admitted:?}");
    }
}

#[tokio::test]
async fn a_volume_open_to_everybody_is_closed_by_denying_one() {
    let bench = bench_with_volume().await;
    bench.router.disks.lock().unwrap()[0].insert("nvme-tcp-server-allow-host-name".into(), json!(""));
    bench.deny("a").await.unwrap();
    assert_eq!(bench.shown("pvc-1"), (list(&[]), true));
}

/// A target that takes the export off answers when the last write has landed, and may show it as off before.
#[tokio::test]
async fn a_hide_waits_for_its_answer_and_lets_others_have_their_turn() {
    let bench = bench_with_volume().await;
    bench.rds.create(&new("pvc-2", 4096)).await.unwrap();
    let landed = Arc::new(Notify::new());
    bench.router.fault("PATCH disk/*1 nvme-tcp-export=no", Fault::Hold(Arc::clone(&landed)));
    let rds = bench.rds.clone();
    let hiding = tokio::spawn(async move { rds.hide(&id("pvc-1"), Priority::Fence).await });
    bench.until_asked("PATCH disk/*1 nvme-tcp-export=no").await;
    bench.router.disks.lock().unwrap()[0].insert("nvme-tcp-export".into(), json!("no"));
    let began = tokio::time::Instant::now();
    bench.rds.allow(&id("pvc-2"), &host("z"), Priority::Attach).await.unwrap();
    assert!(began.elapsed() >= TIMEOUT - Duration::from_millis(500), "one request at a time, for so long");
    assert!(!hiding.is_finished(), "it is answered for longer than other requests may take");
    landed.notify_one();
    hiding.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_export_that_somebody_else_took_off_is_taken_off_for_the_answer() {
    let bench = bench_with_volume().await;
    bench.router.disks.lock().unwrap()[0].insert("nvme-tcp-export".into(), json!("no"));
    let writes = async || {
        bench.rds.hide(&id("pvc-1"), Priority::Fence).await.unwrap();
        bench.router.log().iter().filter(|line| line.starts_with("PATCH disk/*1 nvme-tcp-export=no")).count()
    };
    assert_eq!(writes().await, 1, "what is shown is not yet what has been waited for");
}

#[tokio::test]
async fn a_show_is_not_proven_while_an_earlier_hide_may_still_land() {
    let bench = Bench::with(|config| config.settle = Duration::from_secs(4)).await;
    bench.rds.create(&new("pvc-1", 4096)).await.unwrap();
    bench.router.fault("PATCH disk", Fault::Late(Arc::new(Notify::new())));
    assert!(bench.rds.hide(&id("pvc-1"), Priority::Fence).await.unwrap_err().outcome_unknown());
    let doubtful = bench.rds.show(&id("pvc-1"), Priority::Fence).await.unwrap_err();
    assert!(matches!(doubtful, RdsError::InDoubt { .. }), "{doubtful}");
}

#[tokio::test]
async fn a_hide_is_not_proven_while_an_earlier_show_may_still_land() {
    let bench = bench_with_volume().await;
    bench.rds.hide(&id("pvc-1"), Priority::Fence).await.unwrap();
    let late = Arc::new(Notify::new());
    bench.router.fault("PATCH disk", Fault::Late(Arc::clone(&late)));
    assert!(bench.rds.show(&id("pvc-1"), Priority::Fence).await.unwrap_err().outcome_unknown());
    let doubtful = bench.rds.hide(&id("pvc-1"), Priority::Fence).await.unwrap_err();
    assert!(matches!(doubtful, RdsError::InDoubt { .. }), "{doubtful}");
    bench.deny("a").await.expect("an export that comes late lets nobody in who is off the list");
}

#[tokio::test]
async fn without_lists_a_volume_whose_list_keeps_all_out_is_named() {
    let bench = bench_with_volume().await;
    let mut config = config(&bench.url, &bench.dir);
    config.host_acl = HostAcl::None;
    let rds = RestRds::new(config).unwrap();
    let refused = rds.allow(&id("pvc-1"), &host("a"), Priority::Attach).await.unwrap_err();
    assert!(matches!(refused, RdsError::Conflict { .. }), "{refused}");
    assert!(refused.to_string().contains("--host-acl list"), "{refused}");
}

#[tokio::test]
async fn a_secret_is_not_sent_in_clear() {
    let bench = bench_with_volume().await;
    let secret = Secret::for_test(1);
    let error = bench.rds.set_secret(&id("pvc-1"), &secret, Priority::Fence).await.unwrap_err();
    assert!(matches!(error, RdsError::Cleartext { .. }), "{error}");
    assert!(bench.router.log().is_empty(), "nothing was asked at all");
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
    assert_eq!(bench.shown("pvc-1").0, list(&names));
}

#[tokio::test]
async fn success_is_what_was_read_back_and_not_what_was_said() {
    let bench = bench_with_volume().await;
    bench.router.fault("PATCH disk", Fault::Answer(200, "{}"));
    let error = bench.allow("a").await.unwrap_err();
    assert!(matches!(error, RdsError::Malformed { .. }), "{error}");
    assert_eq!(bench.shown("pvc-1").0, list(&[]));
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
    assert_eq!(bench.shown("pvc-1"), (list(&["a"]), true));
}

#[tokio::test]
async fn an_allow_that_is_seen_to_have_landed_is_in_doubt_no_more() {
    let bench = bench_with_volume().await;
    bench.router.fault("PATCH disk/*1 nvme-tcp-server-allow", Fault::LoseAnswer);
    assert!(bench.allow("a").await.unwrap_err().outcome_unknown());
    bench.allow("a").await.unwrap();
    bench.deny("a").await.expect("it was read before anything else was written");
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
    // The next operation on the volume waits for the one before, which has come to its end by then.
    bench.allow("b").await.unwrap();
    assert_eq!(bench.shown("pvc-1"), (list(&["a", "b"]), true));
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
                _ => rds.hide(&id("pvc-2"), Priority::Fence).await,
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
