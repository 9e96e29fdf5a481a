#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cleat_core::{Directive, Epoch, HostNqn, NodeId, OperationId, SessionId, VolumeId, VolumeRecord};
use cleat_rds::secret::{Era, KeyId, NoSecret, Secret};
use cleat_rds::{Admission, Freshness, Inventory, Made, NewVolume, Priority, Rds, RdsError, SystemResource};
use cleat_runtime::readiness::Readiness;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::input::Input;
use super::super::storing::Stalled;
use super::*;
use crate::leadership::Leadership;
use crate::store::{Place, Store, Version, Write};

/// What happened, in its order: "commit a b" by the store, "sent a 3" for the directive of step 3 about a.
type Log = Arc<Mutex<Vec<String>>>;

/// What a commit is to come to.
enum Permit {
    Take,
    Refuse(CommitError),
    /// Of that volume; the others are taken.
    Conflict(&'static str),
    /// That volume's record takes no grant; the others are taken.
    Deleting(&'static str),
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
            Permit::Deleting(name) if *name == write.key.name => {
                Err(CommitError::Deleting { key: write.key.clone() })
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

/// A store behind an API: each record takes its own time, and those that are held take forever.
struct ApiStore {
    held: watch::Receiver<BTreeSet<&'static str>>,
    log: Log,
}

#[tonic::async_trait]
impl Store for ApiStore {
    fn place(&self) -> Place {
        Place::ApiServer
    }

    async fn take_key(&self, _: KeyId, before: KeyId) -> Result<Vec<Era>, CommitError> {
        Ok(vec![Era { first_term: 0, key: before }])
    }

    async fn take_term(&self, at_least: u64) -> Result<u64, CommitError> {
        Ok(at_least)
    }

    async fn commit(&self, writes: Vec<Write>) -> Vec<Result<Version, CommitError>> {
        let mut held = self.held.clone();
        let mut answers = Vec::new();
        for write in writes {
            held.wait_for(|held| !held.contains(write.key.name.as_str())).await.unwrap();
            self.log.lock().unwrap().push(format!("commit {}", write.key.name));
            answers.push(Ok(Version(write.expected.map_or(1, |version| version.0 + 1))));
        }
        answers
    }
}

struct Bench {
    log: Log,
    permits: mpsc::UnboundedSender<Permit>,
    held: watch::Sender<BTreeSet<&'static str>>,
    events: mpsc::Receiver<Input>,
    stalled: watch::Receiver<Stalled>,
    stop: CancellationToken,
    steps: mpsc::Sender<Decision>,
    sent: mpsc::UnboundedReceiver<OperationId>,
    readiness: Readiness,
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
struct OneAgent(mpsc::UnboundedSender<OperationId>, Log);

impl Agents for OneAgent {
    fn direct(
        &self,
        _: &NodeId,
        _: &SessionId,
        operation: OperationId,
        directive: &Directive,
    ) -> Result<(), NoSecret> {
        self.1.lock().unwrap().push(format!("sent {} {}", directive.volume(), operation.number));
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

fn rds_queue(deadline: Duration) -> (RdsQueue, mpsc::Receiver<Input>) {
    let (inbox, events) = mpsc::channel(16);
    (RdsQueue::new(Arc::new(NoRds), None, inbox, deadline, unsettled()), events)
}

/// On a disk.
fn bench() -> Bench {
    bench_with(|permits, _, log| Arc::new(GatedStore { permits, log }))
}

/// Behind an API; these records are held.
fn api_bench(hold: &[&'static str]) -> Bench {
    let bench = bench_with(|_, held, log| Arc::new(ApiStore { held, log }));
    bench.held.send_replace(hold.iter().copied().collect());
    bench
}

type Permits = tokio::sync::Mutex<mpsc::UnboundedReceiver<Permit>>;

fn bench_with(
    store: impl FnOnce(Permits, watch::Receiver<BTreeSet<&'static str>>, Log) -> Arc<dyn Store>,
) -> Bench {
    bench_of(Leadership::alone(), store)
}

fn bench_of(
    leadership: Leadership,
    store: impl FnOnce(Permits, watch::Receiver<BTreeSet<&'static str>>, Log) -> Arc<dyn Store>,
) -> Bench {
    let (permits, allowed) = mpsc::unbounded_channel();
    let (held, holds) = watch::channel(BTreeSet::new());
    let log = Log::default();
    let store = store(allowed.into(), holds, Arc::clone(&log));
    let (sending, sent) = mpsc::unbounded_channel();
    let (changes, _) = broadcast::channel(1024);
    let (steps, queue) = mpsc::channel(1024);
    let (rds_queue, events) = rds_queue(Duration::from_secs(1));
    let readiness = Readiness::default();
    let (stalling, stalled) = watch::channel(Stalled::default());
    let stop = CancellationToken::new();
    let storing = Storing::new(store, readiness.flag("store"), stalling, leadership, stop.clone());
    let executor = Executor::new(
        (storing, Book::default()),
        rds_queue,
        Arc::new(OneAgent(sending, Arc::clone(&log))),
        changes,
        Clock::start(),
        (Default::default(), unsettled(), Default::default()),
    );
    let running = tokio::spawn(executor.run(queue));
    Bench { log, permits, held, events, stalled, stop, steps, sent, readiness, running }
}

fn direct(node: &str, volume: &str, number: u64) -> Effect {
    Effect::Direct {
        node: NodeId::new(node).unwrap(),
        session: session(),
        operation: OperationId { term: 1, number },
        directive: Directive::Detach {
            volume: VolumeId::new(volume).unwrap(),
            epoch: Epoch { term: 1, seq: 1 },
            cut_tickets: false,
        },
    }
}

fn of_effects(effects: Vec<Effect>) -> Decision {
    Decision { now: UnixMillis(0), waiter: None, effects, changed: None, view: None }
}

/// A step with these records, and a directive about the first of them with the step's number.
fn step(number: u64, writes: &[&str]) -> Decision {
    let mut effects: Vec<Effect> = writes.iter().map(|volume| persist(volume)).collect();
    effects.push(direct("node-a", writes.first().unwrap_or(&"v"), number));
    of_effects(effects)
}

/// With a waiter for the answer to a request.
fn answering(
    mut decision: Decision,
    volume: Option<&str>,
    reply: Reply,
) -> (Decision, tokio::sync::oneshot::Receiver<Result<Reply, RequestError>>) {
    let (answer, answered) = tokio::sync::oneshot::channel();
    let (request, volume) = (RequestId(5), volume.map(|volume| VolumeId::new(volume).unwrap()));
    decision.waiter = Some(Waiter { request, volume, node: None, answer });
    decision.effects.push(Effect::Reply { request, result: Ok(reply) });
    (decision, answered)
}

impl Bench {
    async fn next_sent(&mut self) -> String {
        timeout(Duration::from_secs(10), self.sent.recv()).await.unwrap().unwrap().to_string()
    }

    fn stalled(&self, volume: &str) -> Option<String> {
        let volume = VolumeId::new(volume).unwrap();
        self.stalled.borrow().reason(Some(&volume), None).map(|reason| reason.to_string())
    }
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
    bench.steps.send(step(0, &["a"])).await.unwrap();
    // The commit of the first is under way, and waits for its permit; the others come in meanwhile.
    while bench.steps.capacity() < bench.steps.max_capacity() {
        tokio::task::yield_now().await;
    }
    for number in 1..=32 {
        bench.steps.send(step(number, &[&format!("v{number}")])).await.unwrap();
    }
    assert!(timeout(Duration::from_millis(50), bench.sent.recv()).await.is_err(), "before its commit");
    bench.permits.send(Permit::Take).unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-0");
    assert!(timeout(Duration::from_millis(50), bench.sent.recv()).await.is_err(), "before their commit");
    bench.permits.send(Permit::Take).unwrap();
    let mut sent = BTreeSet::new();
    for _ in 1..=32 {
        sent.insert(bench.next_sent().await);
    }
    assert_eq!(sent, (1..=32).map(|number| format!("op-1-{number}")).collect());
    drop(bench.steps);
    bench.running.await.unwrap().unwrap();
    let log = bench.log.lock().unwrap();
    let mut names: Vec<String> = (1..=32).map(|n| format!("v{n}")).collect();
    names.sort();
    let volumes: Vec<String> = names.iter().map(|name| format!("{name}=4096")).collect();
    assert_eq!(
        log[..3],
        ["commit a=4096".to_owned(), "sent a 0".into(), format!("commit {}", volumes.join(" "))]
    );
    assert_eq!(log.len(), 3 + 32, "two commits for 33 steps");
}

/// Whatever mix of steps comes at whatever pace: the effects about a volume run in the order of the steps, each after a
/// commit that has its record, or a later one of the same volume.
#[tokio::test]
async fn neither_records_nor_effects_of_a_volume_ever_swap() {
    for seed in 1..=20_u64 {
        let bench = bench();
        let mut random = seed;
        let mut next = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut last: HashMap<String, u64> = HashMap::new();
        for number in 0..60 {
            let mut effects = Vec::new();
            for volume in (0..4).map(|volume| format!("v{volume}")) {
                if next(3) == 0 {
                    effects.insert(0, numbered(&volume, 4096 + number));
                    effects.push(direct("node-a", &volume, number));
                    last.insert(volume, number);
                }
            }
            bench.steps.send(of_effects(effects)).await.unwrap();
            bench.permits.send(Permit::Take).unwrap();
            for _ in 0..next(4) {
                tokio::task::yield_now().await;
            }
        }
        for _ in 0..240 {
            bench.permits.send(Permit::Take).unwrap();
        }
        drop(bench.steps);
        timeout(Duration::from_secs(20), bench.running).await.unwrap().unwrap().unwrap();
        let (mut durable, mut sent) = (HashMap::new(), HashMap::new());
        for line in bench.log.lock().unwrap().iter() {
            match line.split_once(' ').unwrap() {
                ("commit", written) => durable.extend(written.split(' ').map(|written| {
                    let (volume, size) = written.split_once('=').unwrap();
                    (volume.to_owned(), size.parse::<u64>().unwrap())
                })),
                (_, directive) => {
                    let (volume, number) = directive.split_once(' ').unwrap();
                    let number: u64 = number.parse().unwrap();
                    assert!(durable[volume] >= 4096 + number, "seed {seed}: {line} before its record");
                    let before = sent.insert(volume.to_owned(), number);
                    assert!(
                        before.is_none_or(|before| before < number),
                        "seed {seed}: {line} after {before:?}"
                    );
                }
            }
        }
        assert_eq!(sent, last, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_record_of_one_volume_holds_up_no_other() {
    let mut bench = api_bench(&["a"]);
    for (number, volume) in (0..).zip(["a", "b", "a", "c"]) {
        bench.steps.send(step(number, &[volume])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!([bench.next_sent().await, bench.next_sent().await], ["op-1-1", "op-1-3"]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    bench.steps.send(step(4, &["b"])).await.unwrap();
    assert_eq!(bench.next_sent().await, "op-1-4");
    assert_eq!(bench.stalled("a").as_deref(), Some("the API server does not answer"));
    assert_eq!(bench.stalled("b"), None);
    assert_eq!(bench.readiness.missing(), [""; 0], "it works");
    bench.held.send_replace(BTreeSet::new());
    assert_eq!([bench.next_sent().await, bench.next_sent().await], ["op-1-0", "op-1-2"]);
    assert_eq!(*bench.stalled.borrow(), Stalled::default());
}

#[tokio::test(start_paused = true)]
async fn an_api_that_answers_nobody_is_seen_in_the_readiness() {
    let mut bench = api_bench(&["a", "b"]);
    bench.steps.send(step(0, &["a"])).await.unwrap();
    bench.steps.send(step(1, &["b"])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.readiness.missing(), ["store"]);
    bench.held.send_replace(BTreeSet::from(["a"]));
    assert_eq!(bench.next_sent().await, "op-1-1");
    assert!(bench.readiness.missing().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_reaches_a_node_waits_for_its_record_and_nobody_elses_does() {
    let mut bench = api_bench(&["node-a"]);
    let host_nqn = HostNqn::new("nqn.2014-08.org.example:a").unwrap();
    let request = RdsRequest::Allow { volume: VolumeId::new("b").unwrap(), host_nqn };
    let allow = Effect::Rds { operation: OperationId { term: 1, number: 9 }, request };
    let effects = vec![node_record("b1"), persist("a"), direct("node-a", "a", 0), allow];
    bench.steps.send(of_effects(effects)).await.unwrap();
    bench.steps.send(of_effects(vec![persist("c"), direct("node-b", "c", 1)])).await.unwrap();
    assert_eq!(bench.next_sent().await, "op-1-1");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(
        bench.sent.try_recv().is_err() && bench.events.try_recv().is_err(),
        "node-a's record is not durable"
    );
    bench.held.send_replace(BTreeSet::new());
    assert_eq!(bench.next_sent().await, "op-1-0");
    let Input::Event { event, .. } = bench.events.recv().await.unwrap() else { panic!("not an event") };
    assert!(matches!(*event, Event::RdsDone { .. }), "{event:?}");
    let log = bench.log.lock().unwrap();
    let place = |line: &str| log.iter().position(|found| found == line);
    assert!(place("commit node-a") < place("sent a 0"), "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn declared_comes_after_every_earlier_record_and_no_later_one() {
    let bench = api_bench(&["a", "late"]);
    let (declared, mut answered) = answering(step(0, &["a", "b"]), None, Reply::Declared);
    bench.steps.send(declared).await.unwrap();
    bench.steps.send(step(1, &["late"])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(answered.try_recv().is_err(), "a is not durable");
    bench.held.send_replace(BTreeSet::from(["late"]));
    assert_eq!(answered.await.unwrap(), Ok(Reply::Declared));
}

#[tokio::test(start_paused = true)]
async fn a_view_of_a_volume_waits_for_its_record_and_one_of_all_does_not() {
    let bench = api_bench(&["a"]);
    bench.steps.send(step(0, &["a"])).await.unwrap();
    for of in [Some(VolumeId::new("a").unwrap()), None] {
        let (log, seen) = (Arc::clone(&bench.log), if of.is_some() { "saw a" } else { "saw all" });
        let deliver: Deliver = Box::new(move || log.lock().unwrap().push(seen.to_owned()));
        let view = Some((of, deliver));
        bench.steps.send(Decision { view, ..of_effects(Vec::new()) }).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*bench.log.lock().unwrap(), ["saw all"]);
    bench.held.send_replace(BTreeSet::new());
    drop(bench.steps);
    bench.running.await.unwrap().unwrap();
    assert_eq!(bench.log.lock().unwrap()[1..], ["commit a", "sent a 0", "saw a"]);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_record_is_bounded_and_each_request_is_answered() {
    let mut bench = api_bench(&["a"]);
    bench.steps.send(of_effects(vec![persist("a")])).await.unwrap();
    let all = 2 * super::super::lanes::LANE as u64;
    for number in 0..all {
        let request = RdsRequest::Hide { volume: VolumeId::new("a").unwrap() };
        let asked = Effect::Rds { operation: OperationId { term: 1, number }, request };
        bench.steps.send(of_effects(vec![persist("a"), asked])).await.unwrap();
    }
    let Input::Event { event, .. } = bench.events.recv().await.unwrap() else { panic!("not an event") };
    let Event::RdsDone { result: Err(error), .. } = *event else { panic!("{event:?}") };
    assert!(error.to_string().contains("not asked"), "{error}");
    bench.steps.send(step(all, &["b"])).await.unwrap();
    assert_eq!(bench.next_sent().await, format!("op-1-{all}"));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_holds_everything_back_says_so_and_ends_by_itself() {
    let mut bench = bench();
    bench.steps.send(step(0, &["a"])).await.unwrap();
    for _ in 0..3 {
        let refusal = CommitError::Retry { reason: "no room".into() };
        bench.permits.send(Permit::Refuse(refusal)).unwrap();
    }
    bench.stalled.wait_for(|stalled| *stalled != Stalled::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(bench.readiness.missing(), ["store"]);
    assert!(bench.sent.try_recv().is_err(), "nothing is done that is not durable");
    bench.permits.send(Permit::Take).unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-0");
    assert!(bench.readiness.missing().is_empty());
    assert_eq!(*bench.stalled.borrow(), Stalled::default());
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_is_stopped_does_not_wait_for_room() {
    let bench = bench();
    bench.steps.send(step(0, &["a"])).await.unwrap();
    bench.permits.send(Permit::Refuse(CommitError::Retry { reason: "no room".into() })).unwrap();
    bench.stop.cancel();
    drop(bench.steps);
    let error = bench.running.await.unwrap().unwrap_err();
    assert!(matches!(&error, EngineError::Store(CommitError::Retry { .. })), "{error}");
    assert!(bench.log.lock().unwrap().is_empty(), "what is not durable was not decided");
}

#[tokio::test]
async fn a_record_that_somebody_else_wrote_sets_its_volume_aside_and_no_other() {
    let mut bench = bench();
    bench.permits.send(Permit::Conflict("v")).unwrap();
    let (first, answered) = answering(step(0, &["v", "w"]), Some("v"), Reply::Unpublished);
    bench.steps.send(first).await.unwrap();
    let refused = answered.await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("set aside") && refused.contains("version 77"), "{refused}");
    bench.steps.send(step(1, &["v"])).await.unwrap();
    // Another volume's directive goes out; those of the first one, of both steps, have not.
    bench.permits.send(Permit::Take).unwrap();
    bench.steps.send(step(2, &["w2"])).await.unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-2");
    assert_eq!(bench.log.lock().unwrap()[0], "commit w=4096");
}

#[tokio::test]
async fn a_record_that_takes_no_grant_is_written_without_it() {
    let mut bench = bench();
    bench.permits.send(Permit::Deleting("a")).unwrap();
    let Effect::Persist(mut record) = persist("a") else { unreachable!() };
    record.attachments = serde_json::from_value(serde_json::json!([{
        "node": "node-b", "hostNqn": "nqn.2026-01.test:b", "epoch": "1.2", "role": "migration-target",
        "readOnly": false, "phase": {"type": "granting"}, "since": 0, "proven": false, "bootId": null,
        "mayLandUntil": null,
    }]))
    .unwrap();
    let host_nqn = HostNqn::new("nqn.2026-01.test:b").unwrap();
    let request = RdsRequest::Allow { volume: VolumeId::new("a").unwrap(), host_nqn };
    let allow = Effect::Rds { operation: OperationId { term: 1, number: 9 }, request };
    let grant = of_effects(vec![Effect::Persist(record), persist("b"), direct("node-a", "b", 1), allow]);
    let (grant, mut answered) = answering(grant, Some("a"), Reply::Unpublished);
    bench.steps.send(grant).await.unwrap();
    assert_eq!(bench.next_sent().await, "op-1-1", "the other volume goes on");
    let mut events = Vec::new();
    for _ in 0..2 {
        let Input::Event { event, .. } = bench.events.recv().await.unwrap() else { panic!("not an event") };
        events.push(*event);
    }
    let refused = Event::GrantsRefused {
        volume: VolumeId::new("a").unwrap(),
        grants: vec![(NodeId::new("node-b").unwrap(), Epoch { term: 1, seq: 2 })],
    };
    assert_eq!(events[0], refused, "before the answer by which the core would try again");
    let Event::RdsDone { result: Err(error), .. } = &events[1] else { panic!("{events:?}") };
    assert!(error.to_string().contains("not asked"), "{error}");
    assert!(answered.try_recv().is_err(), "its record is not durable");
    bench.permits.send(Permit::Take).unwrap();
    bench.steps.send(step(2, &["a"])).await.unwrap();
    assert_eq!(bench.next_sent().await, "op-1-2");
    assert_eq!(answered.await.unwrap(), Ok(Reply::Unpublished));
}

fn node_record(boot: &str) -> Effect {
    let identity = cleat_core::NodeIdentity {
        host_nqn: HostNqn::new("nqn.2014-08.org.example:a").unwrap(),
        host_id: cleat_core::HostId::from_bytes([1; 16]).unwrap(),
        storage_addresses: Vec::new(),
        boot_id: cleat_core::BootId::new(boot).unwrap(),
    };
    Effect::PersistNode(Box::new(cleat_core::NodeRecord { node: node(), identity, uid: None }))
}

#[tokio::test]
async fn a_nodes_record_that_is_always_another_is_left_after_a_few_tries() {
    let mut bench = bench();
    for _ in 0..NODE_TRIES {
        bench.permits.send(Permit::Conflict("node-a")).unwrap();
    }
    let mut first = step(0, &["a"]);
    first.effects.insert(0, node_record("b1"));
    bench.steps.send(first).await.unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-0", "nobody waits for it");
    assert_eq!(*bench.stalled.borrow(), Stalled::default());
    let mut second = step(1, &[]);
    second.effects.insert(0, node_record("b2"));
    bench.steps.send(second).await.unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-1", "no commit: it has no permit");
    let log = bench.log.lock().unwrap();
    let commits: Vec<&String> = log.iter().filter(|line| line.starts_with("commit")).collect();
    assert_eq!(commits.len(), NODE_TRIES as usize, "{log:?}");
}

/// A declaration about the node is decided, with the record to be forgotten.
fn declared() -> (Decision, tokio::sync::oneshot::Receiver<Result<Reply, RequestError>>) {
    let forgotten = of_effects(vec![Effect::ForgetNode(node())]);
    let (mut step, answered) = answering(forgotten, None, Reply::Declared);
    step.waiter.as_mut().unwrap().node = Some(node());
    (step, answered)
}

#[tokio::test]
async fn a_node_that_a_person_pins_otherwise_is_written_the_next_time() {
    let mut bench = bench();
    let pinned = CommitError::Pinned { key: Key::node("node-a"), reason: "of another host".into() };
    bench.permits.send(Permit::Refuse(pinned)).unwrap();
    bench.steps.send(of_effects(vec![node_record("b1"), direct("node-a", "v", 0)])).await.unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-0");
    bench.permits.send(Permit::Take).unwrap();
    bench.steps.send(of_effects(vec![node_record("b2"), direct("node-a", "v", 1)])).await.unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-1");
    let (step, mut answered) = declared();
    bench.steps.send(step).await.unwrap();
    tokio::task::yield_now().await;
    assert!(answered.try_recv().is_err(), "its record is not forgotten yet");
    bench.permits.send(Permit::Take).unwrap();
    assert_eq!(answered.await.unwrap(), Ok(Reply::Declared));
    assert_eq!(
        *bench.log.lock().unwrap(),
        ["sent v 0", "commit node-a=null", "sent v 1", "commit node-a=null"]
    );
}

#[tokio::test]
async fn a_declaration_about_a_node_whose_record_is_set_aside_is_an_error() {
    let mut bench = bench();
    let refused = CommitError::Refused { key: Key::node("node-a"), reason: "not so".into() };
    bench.permits.send(Permit::Refuse(refused)).unwrap();
    bench.steps.send(of_effects(vec![node_record("b1"), direct("node-a", "v", 0)])).await.unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-0");
    let (step, answered) = declared();
    bench.steps.send(step).await.unwrap();
    let error = answered.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("node node-a") && error.contains("not so"), "{error}");
}

#[tokio::test]
async fn a_nodes_record_that_another_wrote_once_is_written_over_it() {
    let mut bench = bench();
    bench.permits.send(Permit::Conflict("node-a")).unwrap();
    bench.permits.send(Permit::Take).unwrap();
    let mut first = step(0, &[]);
    first.effects.insert(0, node_record("b1"));
    bench.steps.send(first).await.unwrap();
    assert_eq!(bench.sent.recv().await.unwrap().to_string(), "op-1-0");
    assert_eq!(*bench.log.lock().unwrap(), ["commit ", "commit node-a=null", "sent v 0"]);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_is_seen_in_the_readiness_and_holds_everything_back() {
    let mut bench = bench();
    let ready = || bench.readiness.missing().is_empty();
    bench.steps.send(step(0, &["a"])).await.unwrap();
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
    bench.steps.send(step(0, &["a"])).await.unwrap();
    let refusal = CommitError::Fatal { reason: "the disk is gone".into() };
    bench.permits.send(Permit::Refuse(refusal)).unwrap();
    let error = bench.running.await.unwrap().unwrap_err();
    assert!(matches!(&error, EngineError::Store(_)), "{error}");
    assert!(bench.log.lock().unwrap().is_empty());
    assert!(bench.sent.recv().await.is_none());
}

#[tokio::test]
async fn a_process_that_does_not_lead_carries_nothing_out() {
    let mut bench = bench_of(Leadership::by_lease(), |permits, _, log| Arc::new(GatedStore { permits, log }));
    bench.permits.send(Permit::Take).unwrap();
    bench.steps.send(step(0, &["a"])).await.unwrap();
    let error = bench.running.await.unwrap().unwrap_err();
    assert!(matches!(&error, EngineError::SteppedDown { .. }), "{error}");
    assert!(bench.sent.recv().await.is_none(), "nothing was sent");
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_for_what_the_rds_was_asked_within_its_deadline() {
    let bench = bench();
    let host_nqn = HostNqn::new("nqn.2014-08.org.example:a").unwrap();
    // It is never answered; its deadline is a second.
    let request = RdsRequest::Deny { volume: VolumeId::new("v").unwrap(), host_nqn, fence: false };
    let asked = Effect::Rds { operation: OperationId { term: 1, number: 9 }, request };
    bench.permits.send(Permit::Take).unwrap();
    bench.steps.send(of_effects(vec![asked])).await.unwrap();
    let began = tokio::time::Instant::now();
    drop(bench.steps);
    bench.running.await.unwrap().unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn the_rds_always_answers_also_by_panic_and_by_silence() {
    let (mut rds_queue, mut events) = rds_queue(Duration::from_millis(100));
    let volume = || VolumeId::new("v").unwrap();
    let host_nqn = || HostNqn::new("nqn.2014-08.org.example:a").unwrap();
    let operation = |number| OperationId { term: 1, number };
    rds_queue.begin(operation(1), RdsRequest::Allow { volume: volume(), host_nqn: host_nqn() });
    rds_queue.begin(operation(2), RdsRequest::Deny { volume: volume(), host_nqn: host_nqn(), fence: false });
    for (number, words) in [(1, "ended without an answer"), (2, "no answer within 100ms")] {
        let input = timeout(Duration::from_secs(10), events.recv()).await.unwrap().unwrap();
        let Input::Event { event, .. } = input else { panic!("not an event") };
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
