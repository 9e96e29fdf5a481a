//! An agent alone: a second agent in the node, with this program in the controller's place.
//!
//! In: volumes. Out: how long the agent says that each took, and how long it took as seen from here. What always
//! holds: all directives of a measurement are on the stream before the first result is read, so all volumes begin
//! together; any outcome but the one asked for is an error.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Mutex as StdMutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cleat_proto::cleat::v1::agent_session_server::{AgentSession, AgentSessionServer};
use cleat_proto::cleat::v1::directive_result::Outcome;
use cleat_proto::cleat::v1::{
    Attach, Detach, DirectiveResult, Epoch, FromAgent, Heartbeat, PathPolicy, ToAgent, Welcome, from_agent,
    to_agent,
};
use cleat_rig::{Command, Daemon, Network};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::disks;
use crate::world::{Node, World, blocking};

const PORT: u16 = 7100;
const LOG: &str = "/run/bench-agent.log";
const HEARTBEAT: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_secs(120);
/// For the agent to start and say hello.
const SESSION: Duration = Duration::from_secs(60);
/// For one directive, and for all of a measurement.
const DIRECTIVE: Duration = Duration::from_secs(120);

/// The parts of an attach or detach in milliseconds, by name.
pub(super) type Parts = BTreeMap<&'static str, f64>;

/// How long a measurement took.
#[derive(Debug, Clone, Default)]
pub(super) struct Reported {
    /// The longest time of one volume, from the directive's receipt to its result, as the agent says.
    pub(super) longest_ms: f64,
    /// From the first directive sent to the last result received.
    pub(super) wall_ms: f64,
    /// The mean time of each part.
    pub(super) parts: Parts,
}

/// The second agent and the session with it.
#[derive(Debug)]
pub(super) struct Directives {
    to_agent: mpsc::Sender<Result<ToAgent, Status>>,
    results: mpsc::Receiver<DirectiveResult>,
    portals: Vec<String>,
    term: u64,
    sequence: u64,
    epochs: BTreeMap<usize, Epoch>,
    agent: Daemon,
    _server: tokio::task::JoinHandle<()>,
}

impl Directives {
    /// Starts the agent and waits for its session.
    pub(super) async fn begin(world: &World, node: &Node) -> anyhow::Result<Self> {
        let (sessions_in, mut sessions) = mpsc::channel(1);
        let (results_in, results) = mpsc::channel(1024);
        let service = Service { sessions: sessions_in, results: results_in };
        let address = SocketAddr::from((Network::Management.host_address(), PORT));
        let listener =
            tokio::net::TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serving = tonic::transport::Server::builder()
            .add_service(AgentSessionServer::new(service))
            .serve_with_incoming(incoming);
        let server = tokio::spawn(async move {
            // Its end is seen as the session's.
            let _ = serving.await;
        });
        let agent = start_agent(node).await?;
        let to_agent = match tokio::time::timeout(SESSION, sessions.recv()).await {
            Ok(Some(session)) => session,
            _ => bail!(
                "the second agent opens no session; its log: {}",
                node.sh(&format!("tail -n 5 {LOG}")).await?
            ),
        };
        let term = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis();
        Ok(Self {
            to_agent,
            results,
            portals: world.rds.portals().to_vec(),
            term: u64::try_from(term)?,
            sequence: 0,
            epochs: BTreeMap::new(),
            agent,
            _server: server,
        })
    }

    /// The agent's process in the node.
    pub(super) fn agent_pid(&self) -> u32 {
        self.agent.pid()
    }

    /// Attaches the first `count` volumes.
    pub(super) async fn attach(&mut self, count: usize) -> anyhow::Result<Reported> {
        let deadline_ms = u32::try_from(DIRECTIVE.as_millis())?;
        let mut directives = Vec::new();
        for index in 0..count {
            self.sequence += 1;
            let epoch = Epoch { term: self.term, seq: self.sequence };
            self.epochs.insert(index, epoch);
            directives.push(to_agent::Kind::Attach(Attach {
                operation_id: format!("op-1-{}", self.sequence),
                volume_id: disks::id(index),
                epoch: Some(epoch),
                subsystem_nqn: disks::nqn(index),
                portals: self.portals.clone(),
                size_bytes: disks::SIZE_BYTES,
                path_policy: PathPolicy::All.into(),
                deadline_ms,
                ..Attach::default()
            }));
        }
        let times = |outcome: &Outcome| match outcome {
            Outcome::Ready(ready) => ready.times.map(|times| {
                vec![("connect", times.connect_us), ("device", times.device_us), ("checks", times.checks_us)]
            }),
            _ => None,
        };
        self.carried_out(directives, times).await
    }

    /// Detaches the first `count` volumes.
    pub(super) async fn detach(&mut self, count: usize) -> anyhow::Result<Reported> {
        let deadline_ms = u32::try_from(DIRECTIVE.as_millis())?;
        let mut directives = Vec::new();
        for index in 0..count {
            self.sequence += 1;
            directives.push(to_agent::Kind::Detach(Detach {
                operation_id: format!("op-1-{}", self.sequence),
                volume_id: disks::id(index),
                epoch: self.epochs.get(&index).copied(),
                deadline_ms,
                ..Detach::default()
            }));
        }
        let times = |outcome: &Outcome| match outcome {
            Outcome::Absent(absent) => absent.times.map(|times| {
                vec![("checks", times.checks_us), ("flush", times.flush_us), ("delete", times.delete_us)]
            }),
            _ => None,
        };
        self.carried_out(directives, times).await
    }

    async fn carried_out(
        &mut self,
        directives: Vec<to_agent::Kind>,
        times: impl Fn(&Outcome) -> Option<Vec<(&'static str, u64)>>,
    ) -> anyhow::Result<Reported> {
        let count = directives.len();
        let begun = Instant::now();
        for kind in directives {
            self.to_agent
                .send(Ok(ToAgent { kind: Some(kind), about: None }))
                .await
                .context("the second agent's session is gone")?;
        }
        let mut reported = Reported::default();
        for _ in 0..count {
            let result = tokio::time::timeout(DIRECTIVE, self.results.recv()).await;
            let result =
                result.context("a directive got no result")?.context("the second agent's session is gone")?;
            let outcome = result.outcome.context("a result without an outcome")?;
            let parts = times(&outcome).with_context(|| format!("{}: {outcome:?}", result.operation_id))?;
            let total: u64 = parts.iter().map(|(_, us)| us).sum();
            reported.longest_ms = reported.longest_ms.max(total as f64 / 1000.0);
            for (name, us) in parts {
                *reported.parts.entry(name).or_default() += us as f64 / 1000.0 / count as f64;
            }
        }
        ensure!(self.results.try_recv().is_err(), "more results than directives");
        reported.wall_ms = begun.elapsed().as_secs_f64() * 1000.0;
        Ok(reported)
    }
}

async fn start_agent(node: &Node) -> anyhow::Result<Daemon> {
    let machine = node.shared_machine();
    let mut command = Command::new("cleat-agent")
        .args(["--node-id", "bench", "--csi-socket", "/run/bench/csi.sock", "--plaintext"])
        .args(["--controller", &format!("{}:{PORT}", Network::Management.host_address())])
        .args(["--state-dir", "/data/bench", "--nvme-dir", "/data/nvme", "--nqn-prefix", disks::PREFIX])
        .args(["--log-filter", "warn", "--keep-alive", &format!("{}s", super::KEEP_ALIVE_S)]);
    for network in Network::STORAGE {
        command = command.args(["--storage-address".to_owned(), machine.address(network).to_string()]);
    }
    blocking(move || {
        machine.sh("mkdir -p /data/bench")?;
        machine.daemon(&command, LOG)
    })
    .await
}

/// The controller's end of the session, as far as an agent alone needs one.
#[derive(Debug)]
struct Service {
    sessions: mpsc::Sender<mpsc::Sender<Result<ToAgent, Status>>>,
    results: mpsc::Sender<DirectiveResult>,
}

#[tonic::async_trait]
impl AgentSession for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ToAgent, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (to_agent, outgoing) = mpsc::channel(1024);
        let (mut incoming, results, sessions) =
            (request.into_inner(), self.results.clone(), self.sessions.clone());
        tokio::spawn(async move {
            let ready = StdMutex::new(Some(sessions));
            while let Ok(Some(message)) = incoming.message().await {
                let going_on = match message.kind {
                    Some(from_agent::Kind::Hello(_)) => to_agent.send(Ok(welcome())).await.is_ok(),
                    Some(from_agent::Kind::Inventory(_)) => {
                        let first = ready.lock().unwrap_or_else(PoisonError::into_inner).take();
                        match first {
                            Some(sessions) => sessions.send(to_agent.clone()).await.is_ok(),
                            None => true,
                        }
                    }
                    Some(from_agent::Kind::Heartbeat(Heartbeat { count })) => {
                        let kind = Some(to_agent::Kind::Heartbeat(Heartbeat { count }));
                        to_agent.send(Ok(ToAgent { kind, about: None })).await.is_ok()
                    }
                    Some(from_agent::Kind::Result(result)) => results.send(result).await.is_ok(),
                    Some(
                        from_agent::Kind::Delta(_)
                        | from_agent::Kind::Renewal(_)
                        | from_agent::Kind::Writes(_),
                    )
                    | None => true,
                };
                if !going_on {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

fn welcome() -> ToAgent {
    let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    // As a controller has it: agents follow none that began before the last one.
    let term =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |age| age.as_millis());
    let term = u64::try_from(term).unwrap_or(u64::MAX);
    let kind = to_agent::Kind::Welcome(Welcome {
        term,
        session_id: "bench".to_owned(),
        heartbeat_interval_ms: ms(HEARTBEAT),
        silence_deadline_ms: ms(SILENCE),
        takes_tokens: false,
        protocol: cleat_proto::SESSION_PROTOCOL,
        controller_version: String::new(),
    });
    ToAgent { kind: Some(kind), about: None }
}
