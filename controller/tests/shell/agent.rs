//! An agent that follows a script: a host whose kernel outlives sessions, and sessions with the controller.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cleat_proto::cleat::v1 as proto;
use proto::agent_session_client::AgentSessionClient;
use proto::directive_result::Outcome;
use proto::volume_state::Phase;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use uuid::Uuid;

use crate::world::{PREFIX, eventually};

/// What the host does when it is told to attach.
#[derive(Clone, Debug)]
pub enum OnAttach {
    Ready,
    /// Nothing, until it is told so.
    Hold,
    /// Fails with this clause, and leaves nothing behind.
    Fail(&'static str),
}

/// What the host does when it is told to detach.
#[derive(Clone, Debug)]
pub enum OnDetach {
    /// Deletes controllers in this state.
    Absent(&'static str),
    Busy(&'static str),
    Hold,
}

/// The one place where all hosts' connections meet: who could write to what, and whether that was ever too many.
pub struct Target {
    /// How many hosts may have a volume at once.
    limits: BTreeMap<String, usize>,
    connected: Mutex<BTreeMap<String, BTreeSet<String>>>,
    pub violations: Mutex<Vec<String>>,
}

impl Target {
    pub fn new(limits: BTreeMap<String, usize>) -> Arc<Self> {
        Arc::new(Self { limits, connected: Mutex::default(), violations: Mutex::default() })
    }

    fn changed(&self, volume: &str, host: &str, connected: bool) {
        let mut all = self.connected.lock().unwrap();
        let hosts = all.entry(volume.to_owned()).or_default();
        if connected {
            hosts.insert(host.to_owned())
        } else {
            hosts.remove(host)
        };
        if hosts.len() > self.limits[volume] {
            self.violations.lock().unwrap().push(format!("{volume} on {hosts:?}"));
        }
    }
}

/// A host. Its kernel keeps what it holds when the agent goes.
pub struct Host {
    pub hello: Mutex<proto::Hello>,
    held: Mutex<BTreeMap<String, proto::VolumeState>>,
    pub on_attach: Mutex<OnAttach>,
    pub on_detach: Mutex<OnDetach>,
    /// What the target would see of all hosts, where a test wants it watched.
    pub target: Mutex<Option<Arc<Target>>>,
    /// The keys that a report of registrations would show.
    pub registered: Mutex<Vec<u64>>,
    /// Every directive that came in, in order.
    pub directives: Mutex<Vec<proto::to_agent::Kind>>,
}

impl Host {
    /// A host with a number of its own, from which its identity is made.
    pub fn new(name: &str, number: u8) -> Arc<Self> {
        let uuid = Uuid::from_u128(u128::from(number));
        let hello = proto::Hello {
            protocol: cleat_proto::SESSION_PROTOCOL,
            node_id: name.into(),
            identity: Some(proto::NodeIdentity {
                host_nqn: format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}"),
                host_id: uuid.to_string(),
                storage_addresses: vec![format!("10.0.1.{number}"), format!("10.0.2.{number}")],
                boot_id: Uuid::new_v5(&Uuid::NAMESPACE_DNS, name.as_bytes()).to_string(),
            }),
            capabilities: Some(proto::Capabilities {
                kernel_release: "6.12.1".into(),
                fabrics: "kernel".into(),
                native_multipath: true,
                nqn_prefix: PREFIX.into(),
                ..Default::default()
            }),
            agent_version: "0.1.0".into(),
            max_volumes: 0,
        };
        Arc::new(Self {
            hello: Mutex::new(hello),
            held: Mutex::default(),
            on_attach: Mutex::new(OnAttach::Ready),
            on_detach: Mutex::new(OnDetach::Absent("live")),
            target: Mutex::default(),
            registered: Mutex::default(),
            directives: Mutex::default(),
        })
    }

    pub fn nqn(&self) -> String {
        self.hello.lock().unwrap().identity.as_ref().unwrap().host_nqn.clone()
    }

    pub fn holds(&self, volume: &str) -> bool {
        self.held.lock().unwrap().get(volume).is_some_and(|state| state.phase() != Phase::Absent)
    }

    /// The attaches that came in, with their operation and epoch.
    pub fn attaches(&self) -> Vec<proto::Attach> {
        let directives = self.directives.lock().unwrap();
        let attaches = directives.iter().filter_map(|kind| match kind {
            proto::to_agent::Kind::Attach(attach) => Some(attach.clone()),
            _ => None,
        });
        attaches.collect()
    }

    fn set(
        &self,
        volume: &str,
        epoch: Option<proto::Epoch>,
        phase: Phase,
        live: usize,
    ) -> proto::VolumeState {
        let path = |number: usize| proto::Path {
            portal: format!("10.0.{number}.100:4420"),
            controller: format!("nvme{number}"),
            state: if number <= live { "live" } else { "connecting" }.into(),
            ana_state: "optimized".into(),
        };
        let state = proto::VolumeState {
            volume_id: volume.into(),
            epoch,
            epoch_ended: phase == Phase::Absent,
            phase: phase.into(),
            identity: Some(proto::Identity {
                namespace_uuid: Uuid::new_v5(&Uuid::NAMESPACE_OID, volume.as_bytes()).to_string(),
                ..Default::default()
            }),
            paths: if phase == Phase::Absent { vec![] } else { vec![path(1), path(2)] },
            device: "nvme0n1".into(),
            ..Default::default()
        };
        self.held.lock().unwrap().insert(volume.into(), state.clone());
        if let Some(target) = &*self.target.lock().unwrap() {
            target.changed(volume, &self.nqn(), phase != Phase::Absent);
        }
        state
    }

    /// The kernel has the volume in this phase, whoever asked for it.
    pub fn hold(&self, volume: &str, epoch: proto::Epoch, phase: Phase) -> proto::VolumeState {
        self.set(volume, Some(epoch), phase, 2)
    }

    /// As a ledger would have it: a higher epoch has been seen, or this one has ended.
    fn stale(&self, volume: &str, epoch: Option<proto::Epoch>, attach: bool) -> Option<Outcome> {
        let held = self.held.lock().unwrap();
        let (state, epoch) = (held.get(volume)?, epoch?);
        let highest = state.epoch?;
        let (seen, asked) = ((highest.term, highest.seq), (epoch.term, epoch.seq));
        let over = attach && seen == asked && state.epoch_ended;
        let told = proto::StaleEpochOutcome { highest: Some(highest), ended: state.epoch_ended };
        (seen > asked || over).then_some(Outcome::StaleEpoch(told))
    }

    fn attach(&self, attach: &proto::Attach) -> Option<Outcome> {
        if let Some(stale) = self.stale(&attach.volume_id, attach.epoch, true) {
            return Some(stale);
        }
        match *self.on_attach.lock().unwrap() {
            OnAttach::Ready => Some(self.ready(attach)),
            OnAttach::Hold => None,
            OnAttach::Fail(clause) => Some(Outcome::Failed(proto::FailedOutcome {
                unready: Some(proto::Unready { clause: clause.into(), message: "the facts".into() }),
                nothing_left: true,
            })),
        }
    }

    fn ready(&self, attach: &proto::Attach) -> Outcome {
        let state = self.set(&attach.volume_id, attach.epoch, Phase::Ready, 2);
        let times = proto::AttachTimes { connect_us: 60_000, device_us: 20_000, checks_us: 5_000 };
        Outcome::Ready(proto::ReadyOutcome { state: Some(state), times: Some(times) })
    }

    /// Takes it down even under its user.
    fn revoke(&self, volume: &str, epoch: Option<proto::Epoch>) -> Outcome {
        self.set(volume, epoch, Phase::Absent, 0);
        Outcome::Absent(proto::AbsentOutcome::default())
    }

    /// The directives of one kind that came in.
    pub fn told<T>(&self, pick: impl Fn(&proto::to_agent::Kind) -> Option<T>) -> Vec<T> {
        self.directives.lock().unwrap().iter().filter_map(pick).collect()
    }

    fn detach(&self, detach: &proto::Detach) -> Option<Outcome> {
        if let Some(stale) = self.stale(&detach.volume_id, detach.epoch, false) {
            return Some(stale);
        }
        match *self.on_detach.lock().unwrap() {
            OnDetach::Absent(state) => {
                let held = self.holds(&detach.volume_id);
                self.set(&detach.volume_id, detach.epoch, Phase::Absent, 0);
                let gone = |controller: &str| proto::DeletedController {
                    controller: controller.into(),
                    portal: "10.0.1.100:4420".into(),
                    state_at_deletion: state.into(),
                };
                let deleted = if held { vec![gone("nvme1"), gone("nvme2")] } else { vec![] };
                let times = proto::DetachTimes { checks_us: 100, flush_us: 200, delete_us: 300 };
                Some(Outcome::Absent(proto::AbsentOutcome { deleted, times: Some(times) }))
            }
            OnDetach::Busy(holder) => {
                Some(Outcome::Busy(proto::BusyOutcome { holders: vec![holder.into()] }))
            }
            OnDetach::Hold => None,
        }
    }
}

/// One session of a host's agent. Dropped, it is killed: the stream is gone, and nothing was said.
pub struct Agent {
    pub host: Arc<Host>,
    say: mpsc::Sender<proto::FromAgent>,
    pub welcome: watch::Receiver<Option<proto::Welcome>>,
    /// Whether the agent says heartbeats.
    pub beating: watch::Sender<bool>,
    ended: AbortOnDropHandle<Status>,
}

impl Agent {
    /// Dials, and begins to talk.
    pub async fn dial(channel: Channel, host: &Arc<Host>) -> Self {
        Self::dial_as(channel, host, None).await
    }

    /// With a token.
    pub async fn dial_as(channel: Channel, host: &Arc<Host>, token: Option<&str>) -> Self {
        let (say, queue) = mpsc::channel(64);
        let hello = host.hello.lock().unwrap().clone();
        say.send(from(proto::from_agent::Kind::Hello(hello))).await.unwrap();
        let (welcomed, welcome) = watch::channel(None);
        let (beating, beats) = watch::channel(true);
        let mut client = AgentSessionClient::new(channel);
        let talking = Talking { host: Arc::clone(host), say: say.clone(), welcomed, beats };
        let mut request = tonic::Request::new(ReceiverStream::new(queue));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let ended = AbortOnDropHandle::new(tokio::spawn(async move {
            match client.session(request).await {
                Ok(answer) => talking.talk(answer.into_inner()).await,
                Err(status) => status,
            }
        }));
        Self { host: Arc::clone(host), say, welcome, beating, ended }
    }

    /// Waits until the controller has welcomed the agent.
    pub async fn up(mut self) -> Self {
        let welcomed = self.welcome.wait_for(Option::is_some);
        tokio::time::timeout(Duration::from_secs(20), welcomed).await.expect("a Welcome").unwrap();
        self
    }

    /// Says something unasked.
    pub async fn say(&self, kind: proto::from_agent::Kind) {
        self.send(from(kind)).await;
    }

    /// Sends a message, whatever is in it.
    pub async fn send(&self, message: proto::FromAgent) {
        self.say.send(message).await.expect("the session is up");
    }

    pub async fn delta(&self, volume: &str, phase: Phase, live: usize) {
        let epoch = self.host.held.lock().unwrap().get(volume).and_then(|state| state.epoch);
        let state = self.host.set(volume, epoch, phase, live);
        self.say(proto::from_agent::Kind::Delta(state)).await;
    }

    /// Waits until an attach of the volume has come in, and gives it.
    pub async fn told_to_attach(&self, volume: &str) -> proto::Attach {
        let found = || self.host.attaches().into_iter().rfind(|attach| attach.volume_id == volume);
        eventually("an Attach", async || found().is_some()).await;
        found().unwrap()
    }

    /// Answers an attach that was held.
    pub async fn answer_ready(&self, attach: &proto::Attach) {
        let outcome = self.host.ready(attach);
        self.say(proto::from_agent::Kind::Result(result(
            &attach.operation_id,
            &attach.volume_id,
            attach.epoch,
            outcome,
        )))
        .await;
    }

    /// Whether its session is up still.
    pub fn stands(&self) -> bool {
        self.welcome.borrow().is_some() && !self.ended.is_finished()
    }

    /// The stream's end, and why.
    pub async fn ended(self) -> Status {
        tokio::time::timeout(Duration::from_secs(20), self.end()).await.expect("it ends")
    }

    /// The stream's end, whenever that is.
    pub async fn end(self) -> Status {
        let Self { ended, say, beating, .. } = self;
        let status = ended.await.unwrap();
        drop((say, beating));
        status
    }
}

struct Talking {
    host: Arc<Host>,
    say: mpsc::Sender<proto::FromAgent>,
    welcomed: watch::Sender<Option<proto::Welcome>>,
    beats: watch::Receiver<bool>,
}

impl Talking {
    async fn talk(self, mut hear: Streaming<proto::ToAgent>) -> Status {
        let mut beat = tokio::time::interval(Duration::from_millis(100));
        let mut count = 0;
        loop {
            let message = tokio::select! {
                _ = beat.tick(), if *self.beats.borrow() && self.welcomed.borrow().is_some() => {
                    count += 1;
                    self.tell(proto::from_agent::Kind::Heartbeat(proto::Heartbeat { count })).await;
                    continue;
                }
                message = hear.message() => message,
            };
            match message {
                Ok(Some(proto::ToAgent { kind: Some(kind), .. })) => self.obey(kind).await,
                Ok(Some(_)) => return Status::internal("an empty message"),
                Ok(None) => return Status::ok("closed"),
                Err(status) => return status,
            }
        }
    }

    async fn obey(&self, kind: proto::to_agent::Kind) {
        use proto::to_agent::Kind;
        match &kind {
            Kind::Heartbeat(_) => return,
            Kind::Welcome(welcome) => {
                let volumes = self.host.held.lock().unwrap().values().cloned().collect();
                self.tell(proto::from_agent::Kind::Inventory(proto::Inventory { volumes })).await;
                self.welcomed.send_replace(Some(welcome.clone()));
            }
            Kind::Attach(attach) => {
                if let Some(outcome) = self.host.attach(attach) {
                    self.answer(&attach.operation_id, &attach.volume_id, attach.epoch, outcome).await;
                }
            }
            Kind::Detach(detach) => {
                if let Some(outcome) = self.host.detach(detach) {
                    self.answer(&detach.operation_id, &detach.volume_id, detach.epoch, outcome).await;
                }
            }
            Kind::Revoke(revoke) => {
                let (operation, volume) = (&revoke.operation_id, &revoke.volume_id);
                let outcome = self.host.revoke(volume, revoke.epoch);
                self.answer(operation, volume, revoke.epoch, outcome).await;
            }
            Kind::Preempt(preempt) => {
                let left_keys = self.host.registered.lock().unwrap().clone();
                let (aborted_keys, left_keys) =
                    left_keys.into_iter().partition(|key| preempt.victim_keys.contains(key));
                let outcome = Outcome::Preempted(proto::PreemptedOutcome { left_keys, aborted_keys });
                self.answer(&preempt.operation_id, &preempt.volume_id, preempt.epoch, outcome).await;
            }
            Kind::Rekey(rekey) => {
                let outcome = Outcome::Rekeyed(proto::RekeyedOutcome {});
                self.answer(&rekey.operation_id, &rekey.volume_id, rekey.epoch, outcome).await;
            }
            Kind::Verify(_) | Kind::Count(_) => {}
        }
        self.host.directives.lock().unwrap().push(kind);
    }

    async fn answer(&self, operation: &str, volume: &str, epoch: Option<proto::Epoch>, outcome: Outcome) {
        self.tell(proto::from_agent::Kind::Result(result(operation, volume, epoch, outcome))).await;
    }

    async fn tell(&self, kind: proto::from_agent::Kind) {
        // A stream that is over is seen by whoever reads it.
        let _ = self.say.send(from(kind)).await;
    }
}

fn result(
    operation: &str,
    volume: &str,
    epoch: Option<proto::Epoch>,
    outcome: Outcome,
) -> proto::DirectiveResult {
    proto::DirectiveResult {
        operation_id: operation.into(),
        volume_id: volume.into(),
        epoch,
        outcome: Some(outcome),
    }
}

fn from(kind: proto::from_agent::Kind) -> proto::FromAgent {
    proto::FromAgent { kind: Some(kind) }
}
