#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cleat_core::{Directive, Epoch, HostNqn, NodeId, OperationId, SessionId, VolumeId, VolumeRecord};
use cleat_rds::secret::{Era, KeyId, Secret};
use cleat_rds::{Admission, Freshness, Inventory, Made, NewVolume, Priority, Rds, RdsError, SystemResource};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::input::Deliver;
use super::*;

/// What happened, in its order: "commit a b" by the store, "ran 3" by the effects of step 3.
type Log = Arc<Mutex<Vec<String>>>;

/// What a commit is to come to.
enum Permit {
    Take,
    Refuse(CommitError),
    /// Of that volume; the others are taken.
    Conflict(&'static str),
}

/// A store whose commits wait for a permit each, and fail where the permit says so.
struct GatedStore {
    permits: tokio::sync::Mutex<mpsc::UnboundedReceiver<Permit>>,
    log: Log,
}

#[tonic::async_trait]
impl Store for GatedStore {
    async fn take_key(&self, _: KeyId, before: KeyId) -> Result<Vec<Era>, CommitError> {
        Ok(vec![Era { first_term: 0, key: before }])
    }

    async fn take_term(&self, at_least: u64) -> Result<u64, CommitError> {
        Ok(at_least)
    }

    async fn commit(&self, writes: Vec<Write>) -> Vec<Result<Version, CommitError>> {
        let permit = self.permits.lock().await.recv().await.unwrap();
        if let Permit::Refuse(error) = permit {
            return writes.iter().map(|_| Err(error.clone())).collect();
        }
        let mut names = Vec::new();
        let answers = writes.iter().map(|write| match &permit {
            Permit::Conflict(name) if *name == write.key.name => {
                let (key, expected) = (write.key.clone(), write.expected);
                Err(CommitError::Conflict { key, expected, found: Some(Version(77)) })
            }
            _ => {
                let size = write.value.as_ref().map(|value| value["record"]["spec"]["sizeBytes"].clone());
                names.push(format!("{}={}", write.key.name, size.unwrap_or_default()));
                Ok(Version(write.expected.map_or(1, |version| version.0 + 1)))
            }
        });
        let answers = answers.collect();
        self.log.lock().unwrap().push(format!("commit {}", names.join(" ")));
        answers
    }
}

struct Bench {
    log: Log,
    permits: mpsc::UnboundedSender<Permit>,
    stalled: watch::Receiver<Stalled>,
    stop: CancellationToken,
    steps: mpsc::Sender<Decision>,
    sent: mpsc::UnboundedReceiver<OperationId>,
    readiness: cleat_runtime::readiness::Readiness,
    running: JoinHandle<Result<(), EngineError>>,
}

struct NoRds;

#[tonic::async_trait]
impl Rds for NoRds {
    async fn volumes(&self, _: Priority, _: Freshness) -> Result<Arc<Inventory>, RdsError> {
        Ok(Arc::default())
    }
    async fn create(&self, _: &NewVolume) -> Result<Made, RdsError> {
        unreachable!("not asked for here")
    }
    async fn delete(&self, _: &VolumeId) -> Result<(), RdsError> {
        unreachable!("not asked for here")
    }
    async fn allow(&self, _: &VolumeId, _: &HostNqn, _: Priority) -> Result<Admission, RdsError> {
        panic!("as a defect in the client would")
    }
    async fn deny(&self, _: &VolumeId, _: &HostNqn, _: Priority) -> Result<Admission, RdsError> {
        std::future::pending().await
    }
    async fn close(&self, _: &VolumeId, _: &HostNqn, _: Priority) -> Result<Admission, RdsError> {
        unreachable!("not asked for here")
    }
    async fn hide(&self, _: &VolumeId, _: Priority) -> Result<(), RdsError> {
        unreachable!("not asked for here")
    }
    async fn show(&self, _: &VolumeId, _: Priority) -> Result<(), RdsError> {
        unreachable!("not asked for here")
    }
    async fn set_secret(&self, _: &VolumeId, _: &Secret, _: Priority) -> Result<(), RdsError> {
        unreachable!("not asked for here")
    }
    async fn resource(&self) -> Result<SystemResource, RdsError> {
        unreachable!("not asked for here")
    }
    fn settle(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// Takes whatever it is sent.
struct OneAgent(mpsc::UnboundedSender<OperationId>);

impl Agents for OneAgent {
    fn direct(
        &self,
        _: &NodeId,
        _: &SessionId,
        operation: OperationId,
        _: &Directive,
    ) -> Result<(), NoSecret> {
        let _ = self.0.send(operation);
        Ok(())
    }
    fn refuse(&self, _: &SessionId, _: String) {
        unreachable!("not asked for here")
    }
}

fn session() -> SessionId {
    SessionId::new("s").unwrap()
}

fn node() -> NodeId {
    NodeId::new("node-a").unwrap()
}

fn unsettled() -> RdsInDoubt {
    RdsInDoubt::new([], Duration::from_secs(60), Duration::from_secs(1))
}

fn rds_queue(deadline: Duration) -> (RdsQueue, mpsc::Receiver<super::super::input::Input>) {
    let (inbox, events) = mpsc::channel(16);
    (RdsQueue::new(Arc::new(NoRds), None, inbox, deadline, unsettled()), events)
}

fn bench() -> Bench {
    let (permits, allowed) = mpsc::unbounded_channel();
    let log = Log::default();
    let store = GatedStore { permits: allowed.into(), log: Arc::clone(&log) };
    let (sending, sent) = mpsc::unbounded_channel();
    let (changes, _) = broadcast::channel(1024);
    let (steps, queue) = mpsc::channel(1024);
    let rds_queue = rds_queue(Duration::from_secs(1)).0;
    let readiness = cleat_runtime::readiness::Readiness::default();
    let (stalling, stalled) = watch::channel(None);
    let stop = CancellationToken::new();
    let storing = Storing {
        store: Arc::new(store),
        book: Book::default(),
        ready: readiness.flag("store"),
        stalled: stalling,
        leadership: Leadership::alone(),
        stop: stop.clone(),
    };
    let executor = Executor::new(
        storing,
        rds_queue,
        Arc::new(OneAgent(sending)),
        changes,
        Clock::start(),
        (Fences::default(), unsettled()),
    );
    Bench {
        log,
        permits,
        stalled,
        stop,
        steps,
        sent,
        readiness: readiness.clone(),
        running: tokio::spawn(executor.run(queue)),
    }
}

/// A step with these records, a directive with its own number, and a mark in the log when its effects have run.
fn step(bench: &Bench, number: u64, writes: &[&str]) -> Decision {
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
    Decision { now: UnixMillis(0), waiter: None, effects, changed: None, view: Some(ran) }
}

fn persist(volume: &str) -> Effect {
    numbered(volume, 4096)
}

/// One that its size distinguishes.
fn numbered(volume: &str, size: u64) -> Effect {
    let record: VolumeRecord = serde_json::from_value(serde_json::json!({
        "spec": {"id": volume, "access": "RWO", "subsystemNqn": null, "portals": [], "sizeBytes": size},
        "identity": null, "attachments": [], "migration": null, "pastEvidence": [],
    }))
    .unwrap();
    Effect::Persist(Box::new(record))
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
    assert!(timeout(Duration::from_millis(50), bench.sent.recv()).await.is_err(), "before its commit");
    bench.permits.send(Permit::Take).unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-0");
    assert!(timeout(Duration::from_millis(50), bench.sent.recv()).await.is_err(), "before their commit");
    bench.permits.send(Permit::Take).unwrap();
    for number in 1..=32 {
        let sent = timeout(Duration::from_secs(10), bench.sent.recv()).await.unwrap().unwrap();
        assert_eq!(sent.to_string(), format!("op-1-{number}"));
    }
    drop(bench.steps);
    bench.running.await.unwrap().unwrap();
    let log = bench.log.lock().unwrap();
    let mut names: Vec<String> = (1..=32).map(|n| format!("v{n}")).collect();
    names.sort();
    let volumes: Vec<String> = names.iter().map(|name| format!("{name}=4096")).collect();
    assert_eq!(
        log[..3],
        ["commit a=4096".to_owned(), "ran 0".into(), format!("commit {}", volumes.join(" "))]
    );
    assert_eq!(log.len(), 3 + 32, "two commits for 33 steps");
}

/// Whatever mix of steps comes at whatever pace: each step's effects run in the order of the steps, and after a commit
/// that has its record, or a later one of the same volume, and those of every step before.
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
        let mut needs: Vec<HashMap<String, u64>> = vec![HashMap::new()];
        for number in 0..60 {
            let mut step = step(&bench, number, &[]);
            let mut state = needs.last().unwrap().clone();
            for _ in 0..next(3) {
                let volume = format!("v{}", next(4));
                step.effects.insert(0, numbered(&volume, 4096 + number));
                state.insert(volume, 4096 + number);
            }
            needs.push(state);
            bench.steps.send(step).await.unwrap();
            bench.permits.send(Permit::Take).unwrap();
            for _ in 0..next(4) {
                tokio::task::yield_now().await;
            }
        }
        drop(bench.steps);
        timeout(Duration::from_secs(20), bench.running).await.unwrap().unwrap().unwrap();
        let (mut durable, mut ran) = (HashMap::new(), 0);
        for line in bench.log.lock().unwrap().iter() {
            match line.split_once(' ').unwrap() {
                ("commit", written) => durable.extend(written.split(' ').map(|written| {
                    let (volume, size) = written.split_once('=').unwrap();
                    (volume.to_owned(), size.parse::<u64>().unwrap())
                })),
                (_, number) => {
                    assert_eq!(number, ran.to_string(), "seed {seed}");
                    ran += 1;
                    for (volume, size) in &needs[ran] {
                        assert!(
                            durable[volume] >= *size,
                            "seed {seed}: step {number} ran before its records"
                        );
                    }
                }
            }
        }
        assert_eq!((&durable, ran), (&needs[60], 60), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_holds_everything_back_says_so_and_ends_by_itself() {
    let mut bench = bench();
    bench.steps.send(step(&bench, 0, &["a"])).await.unwrap();
    for _ in 0..3 {
        let refusal = CommitError::Retry { reason: "no room".into() };
        bench.permits.send(Permit::Refuse(refusal)).unwrap();
    }
    bench.stalled.wait_for(Option::is_some).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(bench.readiness.missing(), ["store"]);
    assert!(bench.sent.try_recv().is_err(), "nothing is done that is not durable");
    bench.permits.send(Permit::Take).unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-0");
    assert!(bench.readiness.missing().is_empty());
    assert_eq!(*bench.stalled.borrow(), None);
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_stopped_does_not_wait_for_room() {
    let bench = bench();
    bench.steps.send(step(&bench, 0, &["a"])).await.unwrap();
    bench.permits.send(Permit::Refuse(CommitError::Retry { reason: "no room".into() })).unwrap();
    bench.stop.cancel();
    let error = bench.running.await.unwrap().unwrap_err();
    assert!(matches!(&error, EngineError::Store(CommitError::Retry { .. })), "{error}");
}

#[tokio::test]
async fn a_record_that_somebody_else_wrote_sets_its_volume_aside_and_no_other() {
    let mut bench = bench();
    bench.permits.send(Permit::Conflict("v")).unwrap();
    let (answer, answered) = tokio::sync::oneshot::channel();
    let mut first = step(&bench, 0, &["v", "w"]);
    let volume = Some(VolumeId::new("v").unwrap());
    first.waiter = Some(Waiter { request: RequestId(5), volume, node: None, answer });
    first.effects.push(Effect::Reply { request: RequestId(5), result: Ok(cleat_core::Reply::Unpublished) });
    bench.steps.send(first).await.unwrap();
    let refused = answered.await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("set aside") && refused.contains("version 77"), "{refused}");
    bench.steps.send(step(&bench, 1, &["v"])).await.unwrap();
    // Another volume's directive goes out; those of the first one, of both steps, have not.
    let mut other = step(&bench, 2, &["w2"]);
    for effect in &mut other.effects {
        if let Effect::Direct { directive: Directive::Detach { volume, .. }, .. } = effect {
            *volume = VolumeId::new("w2").unwrap();
        }
    }
    bench.permits.send(Permit::Take).unwrap();
    bench.steps.send(other).await.unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-2");
    assert_eq!(bench.log.lock().unwrap()[0], "commit w=4096");
}

fn node_record(boot: &str) -> Effect {
    let identity = cleat_core::NodeIdentity {
        host_nqn: HostNqn::new("nqn.2014-08.org.example:a").unwrap(),
        host_id: cleat_core::HostId::from_bytes([1; 16]).unwrap(),
        storage_addresses: Vec::new(),
        boot_id: cleat_core::BootId::new(boot).unwrap(),
    };
    Effect::PersistNode(Box::new(cleat_core::NodeRecord { node: node(), identity }))
}

#[tokio::test]
async fn a_nodes_record_that_is_always_another_is_left_after_a_few_tries() {
    let mut bench = bench();
    for _ in 0..NODE_TRIES {
        bench.permits.send(Permit::Conflict("node-a")).unwrap();
    }
    let mut first = step(&bench, 0, &["a"]);
    first.effects.insert(0, node_record("b1"));
    bench.steps.send(first).await.unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-0", "nobody waits for it");
    assert_eq!(*bench.stalled.borrow(), None);
    let mut second = step(&bench, 1, &[]);
    second.effects.insert(0, node_record("b2"));
    bench.steps.send(second).await.unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-1", "no commit: it has no permit");
    let log = bench.log.lock().unwrap();
    let commits: Vec<&String> = log.iter().filter(|line| line.starts_with("commit")).collect();
    assert_eq!(commits.len(), NODE_TRIES as usize, "{log:?}");
}

#[tokio::test]
async fn a_nodes_record_that_another_wrote_once_is_written_over_it() {
    let mut bench = bench();
    bench.permits.send(Permit::Conflict("node-a")).unwrap();
    bench.permits.send(Permit::Take).unwrap();
    let mut first = step(&bench, 0, &[]);
    first.effects.insert(0, node_record("b1"));
    bench.steps.send(first).await.unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-0");
    assert_eq!(*bench.log.lock().unwrap(), ["commit ", "commit node-a=null", "ran 0"]);
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
    assert!(bench.sent.try_recv().is_err());
    bench.permits.send(Permit::Take).unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-0");
    assert!(bench.readiness.missing().is_empty());
}

#[tokio::test]
async fn after_a_commit_that_failed_nothing_is_carried_out() {
    let mut bench = bench();
    bench.steps.send(step(&bench, 0, &["a"])).await.unwrap();
    let refusal = CommitError::Fatal { reason: "the disk is gone".into() };
    bench.permits.send(Permit::Refuse(refusal)).unwrap();
    let error = bench.running.await.unwrap().unwrap_err();
    assert!(matches!(&error, EngineError::Store(_)), "{error}");
    assert!(bench.log.lock().unwrap().is_empty());
    assert!(bench.sent.recv().await.is_none());
}

#[tokio::test]
async fn the_rds_always_answers_also_by_panic_and_by_silence() {
    let (mut rds_queue, mut events) = rds_queue(Duration::from_millis(100));
    let volume = || VolumeId::new("v").unwrap();
    let host_nqn = || HostNqn::new("nqn.2014-08.org.example:a").unwrap();
    let operation = |number| OperationId { term: 1, number };
    rds_queue.begin(operation(1), cleat_core::RdsRequest::Allow { volume: volume(), host_nqn: host_nqn() });
    rds_queue.begin(
        operation(2),
        cleat_core::RdsRequest::Deny { volume: volume(), host_nqn: host_nqn(), fence: false },
    );
    for (number, words) in [(1, "ended without an answer"), (2, "no answer within 100ms")] {
        let input = timeout(Duration::from_secs(10), events.recv()).await.unwrap().unwrap();
        let super::super::input::Input::Event { event, .. } = input else { panic!("not an event") };
        let Event::RdsDone { operation: done, result: Err(error) } = *event else {
            panic!("not a failed answer")
        };
        assert_eq!(done, operation(number));
        assert!(
            matches!(&error, cleat_core::RdsFailure::Unreachable(text) if text.contains(words)),
            "{error}"
        );
    }
}
