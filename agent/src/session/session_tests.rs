//! The session against a scripted controller over loopback.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Mutex;

use cleat_proto::cleat::v1 as proto;
use cleat_proto::cleat::v1::agent_session_server::{AgentSession, AgentSessionServer};
use cleat_runtime::grpc::Keepalive;
use cleat_runtime::readiness::Readiness;
use cleat_runtime::tls::ClientTransport;
use proto::from_agent::Kind as Say;
use proto::to_agent::Kind as Hear;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::name::{Epoch, OperationId, VolumeId};
use crate::testing::kernel::{HOST, HOST_ID};
use crate::volume::outcome::{DirectiveResult, Outcome, Results as _};
use crate::volume::state::VolumePhase;

const PATIENCE: Duration = Duration::from_secs(20);

/// One session as the controller sees it.
struct Side {
    from_agent: Streaming<proto::FromAgent>,
    to_agent: mpsc::Sender<Result<proto::ToAgent, Status>>,
}

impl Side {
    async fn hear(&mut self) -> Say {
        let message = timeout(PATIENCE, self.from_agent.message()).await.expect("silence");
        message.expect("a stream").expect("not ended").kind.expect("a kind")
    }

    /// The next message that is no heartbeat.
    async fn next(&mut self) -> Say {
        loop {
            match self.hear().await {
                Say::Heartbeat(_) => {}
                other => return other,
            }
        }
    }

    async fn say(&self, kind: Hear) {
        self.to_agent.send(Ok(proto::ToAgent { kind: Some(kind) })).await.expect("the agent listens");
    }

    async fn welcome(&mut self, silence_ms: u32) -> proto::Inventory {
        assert!(matches!(self.next().await, Say::Hello(hello) if hello.node_id == "node-a"));
        self.say(Hear::Welcome(proto::Welcome {
            term: 1,
            session_id: "s".into(),
            heartbeat_interval_ms: 20,
            silence_deadline_ms: silence_ms,
        }))
        .await;
        match self.next().await {
            Say::Inventory(inventory) => inventory,
            other => panic!("not the inventory first: {other:?}"),
        }
    }
}

struct Scripted(mpsc::Sender<Side>);

#[tonic::async_trait]
impl AgentSession for Scripted {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<proto::ToAgent, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (to_agent, messages) = mpsc::channel(16);
        let side = Side { from_agent: request.into_inner(), to_agent };
        self.0.send(side).await.map_err(|_| Status::unavailable("the script is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

#[derive(Default)]
struct FakeNode {
    board: Board,
    directives: Mutex<Vec<Directive>>,
    arrived: tokio::sync::Notify,
}

impl NodeVolumes for FakeNode {
    async fn inventory(&self) -> Result<Vec<VolumeState>, String> {
        Ok(self.board.all())
    }

    fn submit(&self, directive: Directive) {
        self.directives.lock().expect("not poisoned").push(directive);
        self.arrived.notify_one();
    }

    fn board(&self) -> &Board {
        &self.board
    }
}

struct Rig {
    node: Arc<FakeNode>,
    outbox: Arc<Outbox>,
    link: watch::Receiver<Link>,
    sessions: mpsc::Receiver<Side>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Rig {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address: SocketAddr = listener.local_addr().expect("an address");
        let (sender, sessions) = mpsc::channel(4);
        let service = AgentSessionServer::new(Scripted(sender));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let (node, outbox) = (Arc::new(FakeNode::default()), Arc::new(Outbox::default()));
        let (link, linked) = watch::channel(Link::Down);
        let endpoint = cleat_runtime::grpc::endpoint(
            &address.to_string(),
            &ClientTransport::Plaintext,
            Keepalive::default(),
        );
        let session = Session {
            endpoint: Box::new(endpoint.expect("an endpoint")),
            node_is: description(),
            node: node.clone(),
            outbox: outbox.clone(),
            link,
            ready: Readiness::default().flag("session"),
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(session.run(stop.clone()));
        Self { node, outbox, link: linked, sessions, stop, running }
    }

    async fn session(&mut self) -> Side {
        timeout(PATIENCE, self.sessions.recv()).await.expect("no connect").expect("the server runs")
    }

    fn state(&self, volume: &str, phase: VolumePhase) {
        self.node.board.put(&VolumeId::parse(volume).expect("an id"), crate::testing::state(volume, phase));
    }
}

fn description() -> NodeDescription {
    NodeDescription {
        node_id: NodeId::parse("node-a").expect("a name"),
        host_nqn: HostNqn::parse(HOST).expect("an NQN"),
        host_id: HostId::parse(HOST_ID).expect("an id"),
        storage_addresses: Vec::new(),
        boot_id: "boot-1".into(),
        kernel_release: "6.18.0".into(),
        fabrics: "kernel",
        native_multipath: true,
        nqn_prefix: NqnPrefix::parse("nqn.2026-01.io.cleat:").expect("a prefix"),
        in_band_auth: false,
        reservations: true,
        agent_version: "1".into(),
    }
}

fn result(operation: &str) -> DirectiveResult {
    DirectiveResult {
        operation: OperationId::parse(operation).expect("an id"),
        volume: VolumeId::parse("v").expect("an id"),
        epoch: Epoch::new(1, 1).expect("an epoch"),
        outcome: Outcome::Rekeyed,
    }
}

#[test]
fn connects_become_rarer_until_a_session_has_stood() {
    let mut delays = Delays::default();
    let millis = |delay: Duration| delay.as_millis();
    let failed: Vec<_> = (0..7).map(|_| millis(delays.after(None))).collect();
    assert_eq!(failed, [200, 400, 800, 1600, 3200, 5000, 5000]);
    assert_eq!(millis(delays.after(Some(Duration::from_secs(60)))), 200);
    // A controller that takes each session and ends it at once.
    let ended: Vec<_> = (0..6).map(|_| millis(delays.after(Some(Duration::from_millis(50))))).collect();
    assert_eq!(ended, [400, 800, 1600, 3200, 5000, 5000]);
}

#[tokio::test]
async fn the_inventory_comes_first_and_changes_follow() {
    let mut rig = Rig::start().await;
    rig.state("v", VolumePhase::Ready);
    let mut side = rig.session().await;
    let inventory = side.welcome(10_000).await;
    assert_eq!(inventory.volumes.len(), 1);
    rig.link.wait_for(|link| *link == Link::Up).await.expect("the session lives");
    rig.state("v", VolumePhase::Degraded);
    assert!(
        matches!(side.next().await, Say::Delta(state) if state.phase() == proto::volume_state::Phase::Degraded)
    );
    rig.state("w", VolumePhase::Connecting);
    assert!(matches!(side.next().await, Say::Delta(state) if state.volume_id == "w"));
    assert!(matches!(side.hear().await, Say::Heartbeat(_)), "no change is told twice");
}

#[tokio::test]
async fn a_result_that_may_not_have_been_read_is_sent_again_on_the_next_stream() {
    let mut rig = Rig::start().await;
    rig.outbox.deliver(result("op-1-1"));
    let mut side = rig.session().await;
    side.welcome(10_000).await;
    assert!(matches!(side.next().await, Say::Result(result) if result.operation_id == "op-1-1"));
    drop(side);
    rig.link.wait_for(|link| *link == Link::Down).await.expect("the session lives");
    let mut side = rig.session().await;
    side.welcome(10_000).await;
    assert!(matches!(side.next().await, Say::Result(result) if result.operation_id == "op-1-1"));
}

#[tokio::test]
async fn a_silent_controller_is_dropped_and_dialled_again() {
    let mut rig = Rig::start().await;
    let mut side = rig.session().await;
    side.welcome(100).await;
    // The stream stays open, and nothing more is said on it.
    let mut next = rig.session().await;
    next.welcome(10_000).await;
    drop(side);
}

#[tokio::test]
async fn directives_are_handed_on_and_bad_ones_answered_by_name() {
    let mut rig = Rig::start().await;
    let mut side = rig.session().await;
    side.welcome(10_000).await;
    let detach = proto::Detach {
        operation_id: "op-1-7".into(),
        volume_id: "v".into(),
        epoch: Some(proto::Epoch { term: 1, seq: 2 }),
        deadline_ms: 1000,
    };
    side.say(Hear::Detach(proto::Detach { volume_id: "../v".into(), ..detach.clone() })).await;
    match side.next().await {
        Say::Result(result) => assert_eq!(result.operation_id, "op-1-7"),
        other => panic!("{other:?}"),
    }
    side.say(Hear::Detach(detach)).await;
    timeout(PATIENCE, rig.node.arrived.notified()).await.expect("handed on");
    assert_eq!(rig.node.directives.lock().expect("not poisoned")[0].volume.as_str(), "v");
}

#[tokio::test]
async fn a_welcome_that_makes_no_sense_is_refused_and_stopping_ends_the_session() {
    let mut rig = Rig::start().await;
    let mut side = rig.session().await;
    assert!(matches!(side.next().await, Say::Hello(_)));
    side.say(Hear::Welcome(proto::Welcome { heartbeat_interval_ms: 0, ..Default::default() })).await;
    let mut side = rig.session().await;
    side.welcome(10_000).await;
    rig.stop.cancel();
    timeout(PATIENCE, rig.running).await.expect("stops").expect("no panic");
}
