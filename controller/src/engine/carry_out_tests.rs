#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cleat_core::{Directive, Epoch, NodeId, OperationId, SessionId, VolumeId, VolumeRecord};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::handle::Deliver;
use super::*;
use crate::agents::{Order, PathPolicy, Settings};
use crate::store::CommitError;

/// What happened, in its order: "commit a b" by the store, "ran 3" by the effects of step 3.
type Log = Arc<Mutex<Vec<String>>>;

/// A store whose commits wait for a permit each, and fail where the permit says so.
struct GatedStore {
    permits: tokio::sync::Mutex<mpsc::UnboundedReceiver<bool>>,
    log: Log,
}

#[tonic::async_trait]
impl Store for GatedStore {
    async fn commit(&self, changes: Vec<StoreChange>) -> Result<(), CommitError> {
        if !self.permits.lock().await.recv().await.unwrap() {
            return Err(CommitError::Closed);
        }
        let names = changes.iter().map(|change| match change {
            StoreChange::Put(key, _) => key.replace("volume/", ""),
            StoreChange::Delete(key) => format!("-{key}"),
        });
        let line = format!("commit {}", names.collect::<Vec<_>>().join(" "));
        self.log.lock().unwrap().push(line);
        Ok(())
    }
}

struct Bench {
    log: Log,
    permits: mpsc::UnboundedSender<bool>,
    steps: mpsc::Sender<Step>,
    orders: mpsc::Receiver<Order>,
    readiness: cleat_runtime::readiness::Readiness,
    running: JoinHandle<Result<(), EngineError>>,
}

struct NoRds;

#[tonic::async_trait]
impl crate::rds::Rds for NoRds {
    async fn volumes(
        &self,
        _: crate::rds::Priority,
        _: crate::rds::Freshness,
    ) -> Result<Arc<crate::rds::Inventory>, crate::rds::RdsError> {
        Ok(Arc::default())
    }
    async fn create(&self, _: &crate::rds::NewVolume) -> Result<crate::rds::Volume, crate::rds::RdsError> {
        unreachable!("not asked for here")
    }
    async fn delete(&self, _: &VolumeId) -> Result<(), crate::rds::RdsError> {
        unreachable!("not asked for here")
    }
    async fn allow(
        &self,
        _: &VolumeId,
        _: &cleat_core::HostNqn,
        _: crate::rds::Priority,
    ) -> Result<crate::rds::Admission, crate::rds::RdsError> {
        panic!("as a defect in the client would")
    }
    async fn deny(
        &self,
        _: &VolumeId,
        _: &cleat_core::HostNqn,
        _: crate::rds::Priority,
    ) -> Result<crate::rds::Admission, crate::rds::RdsError> {
        std::future::pending().await
    }
    async fn hide(&self, _: &VolumeId, _: crate::rds::Priority) -> Result<(), crate::rds::RdsError> {
        unreachable!("not asked for here")
    }
    async fn show(&self, _: &VolumeId, _: crate::rds::Priority) -> Result<(), crate::rds::RdsError> {
        unreachable!("not asked for here")
    }
    async fn set_secret(
        &self,
        _: &VolumeId,
        _: &crate::secret::Secret,
        _: crate::rds::Priority,
    ) -> Result<(), crate::rds::RdsError> {
        unreachable!("not asked for here")
    }
    async fn resource(&self) -> Result<crate::rds::SystemResource, crate::rds::RdsError> {
        unreachable!("not asked for here")
    }
    fn settle(&self) -> Duration {
        Duration::from_secs(60)
    }
}

fn session() -> SessionId {
    SessionId::new("s").unwrap()
}

fn node() -> NodeId {
    NodeId::new("node-a").unwrap()
}

fn unsettled() -> Unsettled {
    Unsettled::new([], Duration::from_secs(60), Duration::from_secs(1))
}

fn lanes(deadline: Duration) -> (Lanes, mpsc::Receiver<super::super::handle::Input>) {
    let (inbox, events) = mpsc::channel(16);
    (Lanes::new(Arc::new(NoRds), None, inbox, deadline, unsettled()), events)
}

fn bench() -> Bench {
    let (permits, allowed) = mpsc::unbounded_channel();
    let log = Log::default();
    let store = GatedStore { permits: allowed.into(), log: Arc::clone(&log) };
    let sessions = Sessions::new(Settings {
        nqn_prefix: "nqn.2026-01.io.cleat:".into(),
        path_policy: PathPolicy::Any,
        attach_deadline: Duration::from_secs(1),
        detach_deadline: Duration::from_secs(1),
        heartbeat_interval: Duration::from_secs(1),
        silence_deadline: Duration::from_secs(3),
        secrets: None,
    });
    let orders = sessions.open(session(), node());
    let (changes, _) = broadcast::channel(1024);
    let (steps, queue) = mpsc::channel(1024);
    let lanes = lanes(Duration::from_secs(1)).0;
    let readiness = cleat_runtime::readiness::Readiness::default();
    let executor = Executor::new(
        (Arc::new(store), readiness.flag("store")),
        lanes,
        sessions,
        changes,
        Clock::start(),
        (Fences::default(), unsettled()),
    );
    Bench {
        log,
        permits,
        steps,
        orders,
        readiness: readiness.clone(),
        running: tokio::spawn(executor.run(queue)),
    }
}

/// A step with these records, a directive with its own number, and a mark in the log when its effects have run.
fn step(bench: &Bench, number: u64, writes: &[&str]) -> Step {
    let mut effects: Vec<Effect> = writes.iter().map(|volume| persist(volume)).collect();
    effects.push(Effect::Direct {
        node: node(),
        session: session(),
        operation: OperationId { term: 1, number },
        directive: Directive::Detach {
            volume: VolumeId::new("v").unwrap(),
            epoch: Epoch { term: 1, seq: 1 },
        },
    });
    let log = Arc::clone(&bench.log);
    let ran: Deliver = Box::new(move || log.lock().unwrap().push(format!("ran {number}")));
    Step { now: UnixMillis(0), waiter: None, effects, changed: None, view: Some(ran) }
}

fn persist(volume: &str) -> Effect {
    let record: VolumeRecord = serde_json::from_value(serde_json::json!({
        "spec": {"id": volume, "access": "RWO", "subsystem_nqn": "", "portals": [], "size_bytes": 4096},
        "identity": null, "attachments": [], "migration": null, "past_evidence": [],
    }))
    .unwrap();
    Effect::Persist(Box::new(record))
}

fn operation(order: Order) -> String {
    let Order::Say(message) = order else { panic!("{order:?}") };
    match message.kind {
        Some(cleat_proto::cleat::v1::to_agent::Kind::Detach(detach)) => detach.operation_id,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn steps_that_wait_share_a_commit_and_nothing_runs_before_its_own() {
    let mut bench = bench();
    bench.steps.send(step(&bench, 0, &["a"])).await.unwrap();
    // The commit of the first is under way, and waits for its permit; the others come in meanwhile.
    while bench.steps.capacity() < bench.steps.max_capacity() {
        tokio::task::yield_now().await;
    }
    for number in 1..=32 {
        bench.steps.send(step(&bench, number, &[&format!("v{number}")])).await.unwrap();
    }
    assert!(timeout(Duration::from_millis(50), bench.orders.recv()).await.is_err(), "before its commit");
    bench.permits.send(true).unwrap();
    assert_eq!(operation(bench.orders.recv().await.unwrap()), "op-1-0");
    assert!(timeout(Duration::from_millis(50), bench.orders.recv()).await.is_err(), "before their commit");
    bench.permits.send(true).unwrap();
    for number in 1..=32 {
        let order = timeout(Duration::from_secs(10), bench.orders.recv()).await.unwrap().unwrap();
        assert_eq!(operation(order), format!("op-1-{number}"));
    }
    drop(bench.steps);
    bench.running.await.unwrap().unwrap();
    let log = bench.log.lock().unwrap();
    let volumes: Vec<String> = (1..=32).map(|n| format!("v{n}")).collect();
    assert_eq!(log[..3], ["commit a".to_owned(), "ran 0".into(), format!("commit {}", volumes.join(" "))]);
    assert_eq!(log.len(), 3 + 32, "two commits for 33 steps");
}

/// Whatever mix of steps comes at whatever pace: records in the order of the steps, effects in the order of the
/// steps, and each step's effects after all of its records and of those before.
#[tokio::test]
async fn neither_records_nor_effects_ever_swap() {
    for seed in 1..=20_u64 {
        let bench = bench();
        let mut random = seed;
        let mut next = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut written = Vec::new();
        let mut expected = Vec::new();
        for number in 0..60 {
            let volumes: Vec<String> = (0..next(3)).map(|_| format!("v{}", next(4))).collect();
            let names: Vec<&str> = volumes.iter().map(String::as_str).collect();
            bench.steps.send(step(&bench, number, &names)).await.unwrap();
            written.extend(volumes.clone());
            expected.push((number, written.len()));
            bench.permits.send(true).unwrap();
            for _ in 0..next(4) {
                tokio::task::yield_now().await;
            }
        }
        drop(bench.steps);
        timeout(Duration::from_secs(20), bench.running).await.unwrap().unwrap().unwrap();
        let (mut durable, mut ran) = (Vec::new(), 0);
        for line in bench.log.lock().unwrap().iter() {
            match line.split_once(' ').unwrap() {
                ("commit", names) => durable.extend(names.split(' ').map(str::to_owned)),
                (_, number) => {
                    let (expected, needs) = expected[ran];
                    assert_eq!(number, expected.to_string(), "seed {seed}");
                    assert!(durable.len() >= needs, "seed {seed}: step {number} ran before its records");
                    ran += 1;
                }
            }
        }
        assert_eq!((durable, ran), (written, 60), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_is_seen_in_the_readiness_and_holds_everything_back() {
    let mut bench = bench();
    let ready = || bench.readiness.missing().is_empty();
    bench.steps.send(step(&bench, 0, &["a"])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(ready());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!ready());
    assert!(bench.orders.try_recv().is_err());
    bench.permits.send(true).unwrap();
    assert_eq!(operation(bench.orders.recv().await.unwrap()), "op-1-0");
    assert!(bench.readiness.missing().is_empty());
}

#[tokio::test]
async fn after_a_commit_that_failed_nothing_is_carried_out() {
    let mut bench = bench();
    bench.steps.send(step(&bench, 0, &["a"])).await.unwrap();
    bench.permits.send(false).unwrap();
    let error = bench.running.await.unwrap().unwrap_err();
    assert!(matches!(&error, EngineError::Store(_)), "{error}");
    assert!(bench.log.lock().unwrap().is_empty());
    assert!(bench.orders.recv().await.is_none());
}

#[tokio::test]
async fn the_rds_always_answers_also_by_panic_and_by_silence() {
    let (mut lanes, mut events) = lanes(Duration::from_millis(100));
    let volume = || VolumeId::new("v").unwrap();
    let host_nqn = || cleat_core::HostNqn::new("nqn.2014-08.org.example:a").unwrap();
    let operation = |number| OperationId { term: 1, number };
    lanes.begin(operation(1), cleat_core::RdsRequest::Allow { volume: volume(), host_nqn: host_nqn() });
    lanes.begin(
        operation(2),
        cleat_core::RdsRequest::Deny { volume: volume(), host_nqn: host_nqn(), fence: false },
    );
    for (number, words) in [(1, "ended without an answer"), (2, "no answer within 100ms")] {
        let input = timeout(Duration::from_secs(10), events.recv()).await.unwrap().unwrap();
        let super::super::handle::Input::Event { event, .. } = input else { panic!("not an event") };
        let cleat_core::Event::RdsDone { operation: done, result: Err(error) } = *event else {
            panic!("not a failed answer")
        };
        assert_eq!(done, operation(number));
        assert!(matches!(&error, cleat_core::RdsError::Unreachable(text) if text.contains(words)), "{error}");
    }
}
