//! Agents without kernels: each says what its node would hold, and answers every directive at once as done.
//!
//! They connect again for as long as this lasts, as agents do, and note when each directive to attach has reached them.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cleat_proto::cleat::v1 as proto;
use cleat_runtime::grpc::{Keepalive, endpoint};
use cleat_runtime::tls::ClientTransport;
use proto::agent_session_client::AgentSessionClient;
use proto::directive_result::Outcome;
use proto::volume_state::Phase;
use proto::{from_agent, to_agent};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use crate::certificates::Certificates;
use crate::scale::{self, Scale};

/// Before an agent connects again.
const AGAIN: Duration = Duration::from_millis(200);

/// All agents.
pub(crate) struct Fleet {
    shared: Arc<Shared>,
    controller: watch::Sender<Option<SocketAddr>>,
    /// Ended with this.
    _sessions: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    /// Sessions on which the inventory was sent.
    up: AtomicUsize,
    /// When the directive to attach a volume has come in.
    directed: Mutex<HashMap<String, Instant>>,
}

impl Shared {
    fn directed(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.directed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fleet {
    /// As soon as a controller is named, all connect.
    pub(crate) fn start(scale: &Scale, certificates: &Certificates) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (controller, at) = watch::channel(None);
        let mut sessions = JoinSet::new();
        for node in 0..scale.agents {
            let held = scale.held_by(node).map(|volume| (scale::volume(volume), ready(volume))).collect();
            let transport = certificates.agent(node)?;
            let agent = Agent { node, transport, held, shared: Arc::clone(&shared) };
            sessions.spawn(agent.run(at.clone()));
        }
        Ok(Self { shared, controller, _sessions: sessions })
    }

    /// Names the controller.
    pub(crate) fn connect_to(&self, controller: SocketAddr) {
        self.controller.send_replace(Some(controller));
    }

    /// How many sessions are up, with their inventories sent.
    pub(crate) fn up(&self) -> usize {
        self.shared.up.load(Ordering::Relaxed)
    }

    /// When the directive to attach a volume has come in, if it has.
    pub(crate) fn directed(&self, volume: &str) -> Option<Instant> {
        self.shared.directed().get(volume).copied()
    }
}

struct Agent {
    node: usize,
    transport: ClientTransport,
    held: BTreeMap<String, proto::VolumeState>,
    shared: Arc<Shared>,
}

impl Agent {
    async fn run(mut self, mut controller: watch::Receiver<Option<SocketAddr>>) {
        loop {
            let Ok(at) = controller.wait_for(Option::is_some).await.map(|at| *at) else { return };
            if let Some(at) = at {
                let mut counted = Up { shared: Arc::clone(&self.shared), is: false };
                // However it ends, it begins again.
                let _ = self.session(at, &mut counted).await;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn session(&mut self, at: SocketAddr, up: &mut Up) -> anyhow::Result<()> {
        let endpoint = endpoint(&at.to_string(), &self.transport, Keepalive::default())?;
        let channel = endpoint.local_address(Some(scale::address(self.node))).connect().await?;
        let (say, queue) = mpsc::channel(64);
        say.send(from(from_agent::Kind::Hello(scale::hello(self.node)))).await?;
        let mut client = AgentSessionClient::new(channel);
        let mut hear = client.session(ReceiverStream::new(queue)).await?.into_inner();
        let (mut beats, mut count) = (tokio::time::interval(Duration::from_secs(3600)), 0);
        beats.tick().await;
        loop {
            let message = tokio::select! {
                _ = beats.tick() => {
                    count += 1;
                    say.send(from(from_agent::Kind::Heartbeat(proto::Heartbeat { count }))).await?;
                    continue;
                }
                message = hear.message() => message?,
            };
            let Some(kind) = message.and_then(|message| message.kind) else { return Ok(()) };
            if let to_agent::Kind::Welcome(welcome) = &kind {
                let volumes = self.held.values().cloned().collect();
                say.send(from(from_agent::Kind::Inventory(proto::Inventory { volumes }))).await?;
                beats = tokio::time::interval(Duration::from_millis(welcome.heartbeat_interval_ms.into()));
                up.set();
            } else if let Some(result) = self.carry_out(kind) {
                say.send(from(from_agent::Kind::Result(result))).await?;
            }
        }
    }

    fn carry_out(&mut self, kind: to_agent::Kind) -> Option<proto::DirectiveResult> {
        let (operation_id, volume_id, epoch, outcome) = match kind {
            to_agent::Kind::Attach(attach) => {
                self.shared.directed().insert(attach.volume_id.clone(), Instant::now());
                let state = self.hold(&attach.volume_id, attach.epoch, Phase::Ready);
                let ready = proto::ReadyOutcome { state: Some(state), times: None };
                (attach.operation_id, attach.volume_id, attach.epoch, Outcome::Ready(ready))
            }
            to_agent::Kind::Detach(detach) => {
                let outcome = self.let_go(&detach.volume_id, detach.epoch);
                (detach.operation_id, detach.volume_id, detach.epoch, outcome)
            }
            to_agent::Kind::Revoke(revoke) => {
                let outcome = self.let_go(&revoke.volume_id, revoke.epoch);
                (revoke.operation_id, revoke.volume_id, revoke.epoch, outcome)
            }
            // Nobody fences here, and nobody counts.
            _ => return None,
        };
        Some(proto::DirectiveResult { operation_id, volume_id, epoch, outcome: Some(outcome) })
    }

    fn let_go(&mut self, volume: &str, epoch: Option<proto::Epoch>) -> Outcome {
        self.hold(volume, epoch, Phase::Absent);
        let gone = |number: usize| proto::DeletedController {
            controller: format!("nvme{number}"),
            portal: scale::PORTALS[number].to_owned(),
            state_at_deletion: "live".to_owned(),
        };
        Outcome::Absent(proto::AbsentOutcome { deleted: vec![gone(0), gone(1)], times: None })
    }

    fn hold(&mut self, volume: &str, epoch: Option<proto::Epoch>, phase: Phase) -> proto::VolumeState {
        let number = volume.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let state = state(number, epoch, phase);
        self.held.insert(volume.to_owned(), state.clone());
        state
    }
}

/// Counts a session as up while it is.
struct Up {
    shared: Arc<Shared>,
    is: bool,
}

impl Up {
    fn set(&mut self) {
        if !std::mem::replace(&mut self.is, true) {
            self.shared.up.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.is {
            self.shared.up.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A volume that is Ready by its first grant.
fn ready(volume: usize) -> proto::VolumeState {
    let epoch = scale::epoch(volume);
    state(volume, Some(proto::Epoch { term: epoch.term, seq: epoch.seq }), Phase::Ready)
}

fn state(volume: usize, epoch: Option<proto::Epoch>, phase: Phase) -> proto::VolumeState {
    let path = |number: usize| proto::Path {
        portal: scale::PORTALS[number].to_owned(),
        controller: format!("nvme{number}"),
        state: "live".to_owned(),
        ana_state: "optimized".to_owned(),
    };
    let is_there = phase != Phase::Absent;
    proto::VolumeState {
        volume_id: scale::volume(volume),
        epoch,
        epoch_ended: !is_there,
        phase: phase.into(),
        identity: Some(proto::Identity {
            namespace_uuid: scale::namespace(volume).to_string(),
            size_bytes: scale::SIZE_BYTES,
            block_size_bytes: 512,
            ..Default::default()
        }),
        paths: if is_there { vec![path(0), path(1)] } else { vec![] },
        device: if is_there { "nvme0n1".to_owned() } else { String::new() },
        ..Default::default()
    }
}

fn from(kind: from_agent::Kind) -> proto::FromAgent {
    proto::FromAgent { kind: Some(kind) }
}
