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
        self.send(proto::ToAgent { kind: Some(kind), about: None }).await;
    }

    async fn send(&self, message: proto::ToAgent) {
        self.to_agent.send(Ok(message)).await.expect("the agent listens");
    }

    async fn welcome(&mut self, silence_ms: u32) -> proto::Inventory {
        self.leads_under(1, silence_ms).await;
        match self.next().await {
            Say::Inventory(inventory) => inventory,
            other => panic!("not the inventory first: {other:?}"),
        }
    }

    async fn leads_under(&mut self, term: u64, silence_ms: u32) {
        assert!(
            matches!(self.next().await, Say::Hello(hello) if hello.node_id == "node-a" && hello.max_volumes == 16)
        );
        self.say(Hear::Welcome(proto::Welcome {
            term,
            session_id: "s".into(),
            heartbeat_interval_ms: 20,
            silence_deadline_ms: silence_ms,
            protocol: cleat_proto::SESSION_PROTOCOL,
            ..Default::default()
        }))
        .await;
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
    /// How many writes each counting has, as the test says.
    writes: watch::Sender<u64>,
}

impl NodeVolumes for FakeNode {
    async fn inventory(&self) -> Result<Vec<VolumeState>, String> {
        Ok(self.board.all())
    }

    fn submit(&self, directive: Directive) {
        self.directives.lock().expect("not poisoned").push(directive);
        self.arrived.notify_one();
    }

    fn count(
        &self,
        _: CountRequest,
        mut report: impl FnMut(Counted) + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let mut writes = self.writes.subscribe();
        async move {
            loop {
                let writes_now = *writes.borrow_and_update();
                report(Counted { writes: writes_now, last_write_age: Duration::ZERO, open: true });
                if writes.changed().await.is_err() {
                    return;
                }
            }
        }
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
            controllers: Box::new(endpoint.expect("an endpoint")),
            token: None,
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
        max_volumes: 16,
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
    let failed: Vec<_> = (0..7).map(|_| millis(delays.after(None, false))).collect();
    assert_eq!(failed, [200, 400, 800, 1600, 3000, 3000, 3000]);
    assert_eq!(millis(delays.after(Some(Duration::from_secs(60)), false)), 200);
    // A controller that takes each session and ends it at once.
    let ended: Vec<_> =
        (0..6).map(|_| millis(delays.after(Some(Duration::from_millis(50)), false))).collect();
    assert_eq!(ended, [400, 800, 1600, 3000, 3000, 3000]);
}

#[test]
fn where_nobody_is_there_it_is_tried_more_often_for_a_while() {
    let mut delays = Delays::default();
    for _ in 0..9 {
        delays.after(None, false);
    }
    // A standby has refused, and what leads next may be behind the same address.
    assert_eq!(delays.after(None, true), LONGEST_UNREACHABLE);
    assert_eq!(delays.after(None, false), LONGEST_DELAY);
    let quick = (0..1000).filter(|_| delays.after(None, true) == LONGEST_UNREACHABLE).count();
    assert_eq!(quick, 119, "one that stays away is asked rarely");
    delays.after(Some(STANDS), false);
    assert!(delays.after(None, true) < LONGEST_UNREACHABLE);
    assert_eq!(delays.after(None, true), LONGEST_UNREACHABLE);
}

#[tokio::test]
async fn only_a_connect_that_nobody_took_is_tried_again_quickly() {
    use stream::Ended;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let gone = closed.local_addr().expect("an address");
    drop(closed);
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let takes = taken.local_addr().expect("an address");
    let taking = tokio::spawn(async move { while taken.accept().await.is_ok() {} });
    let connect = async |address: SocketAddr| {
        let tls = ClientTransport::Tls(Box::new(tonic::transport::ClientTlsConfig::new()));
        let endpoint = cleat_runtime::grpc::endpoint(&address.to_string(), &tls, Keepalive::default());
        Ended::Unreachable(endpoint.expect("an endpoint").connect().await.expect_err("it fails").into())
    };
    let nowhere =
        |all: Vec<Ended>| Ended::Nowhere(all.into_iter().map(|ended| ("one".to_owned(), ended)).collect());
    let unavailable = || Ended::Refused(Status::unavailable("this replica is a standby"));
    let unusable = cleat_runtime::tls::TlsError::NotChosen { tls: "--tls-ca" };
    for (ended, quick) in [
        (connect(gone).await, true),
        (Ended::NoneKnown, true),
        (nowhere(vec![connect(gone).await, connect(gone).await]), true),
        (connect(takes).await, false),
        (Ended::Unreachable(unusable.into()), false),
        (Ended::NoAnswer("connection"), false),
        (Ended::NoAnswer("Welcome"), false),
        (Ended::Silent(STANDS), false),
        (Ended::Closed, false),
        (unavailable(), false),
        (nowhere(vec![Ended::Closed, connect(gone).await]), false),
        (nowhere(vec![connect(gone).await, connect(takes).await]), false),
        (nowhere(vec![unavailable(), connect(gone).await]), false),
        (Ended::stopping(), false),
    ] {
        assert_eq!(ended.found_nobody(), quick, "{ended:?}");
    }
    taking.abort();
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
        cut_tickets: false,
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
async fn an_unknown_directive_is_refused_by_name_and_what_follows_is_done() {
    let mut rig = Rig::start().await;
    let mut side = rig.session().await;
    side.welcome(10_000).await;
    let epoch = Some(proto::Epoch { term: 1, seq: 2 });
    let about = proto::DirectiveHeader { operation_id: "op-1-7".into(), volume_id: "v".into(), epoch };
    // As a kind of a later version comes out of the decoder: with what it is about, and without; the latter asks for no
    // answer.
    side.send(proto::ToAgent::default()).await;
    side.send(proto::ToAgent { kind: None, about: Some(about) }).await;
    let Say::Result(result) = side.next().await else { panic!("no result") };
    assert_eq!(
        (result.operation_id.as_str(), result.volume_id.as_str(), result.epoch),
        ("op-1-7", "v", epoch)
    );
    let Some(proto::directive_result::Outcome::Failed(failed)) = result.outcome else {
        panic!("not refused")
    };
    let unready = failed.unready.expect("why");
    assert_eq!((unready.clause.as_str(), failed.nothing_left), ("unknown-directive", false));
    assert!(
        unready.message.contains("protocol 3") && unready.message.contains("upgrade the agent"),
        "{unready:?}"
    );
    let detach = proto::Detach {
        operation_id: "op-1-8".into(),
        volume_id: "v".into(),
        epoch,
        deadline_ms: 1000,
        cut_tickets: false,
    };
    side.say(Hear::Detach(detach)).await;
    timeout(PATIENCE, rig.node.arrived.notified()).await.expect("handed on");
}

#[tokio::test]
async fn writes_are_counted_until_the_next_count_or_the_sessions_end() {
    let mut rig = Rig::start().await;
    let mut side = rig.session().await;
    side.welcome(10_000).await;
    let count = |operation: &str, volume: &str| {
        Hear::Count(proto::Count {
            operation_id: operation.into(),
            volume_id: volume.into(),
            epoch: Some(proto::Epoch { term: 1, seq: 2 }),
            every_ms: 100,
            for_ms: 60_000,
        })
    };
    async fn counted(side: &mut Side) -> (String, u64) {
        match side.next().await {
            Say::Writes(said) => {
                assert_eq!((said.epoch, said.open), (Some(proto::Epoch { term: 1, seq: 2 }), true));
                assert!(said.last_write_age_us < PATIENCE.as_micros() as u64);
                (said.operation_id, said.writes)
            }
            other => panic!("{other:?}"),
        }
    }
    side.say(count("op-1-7", "v")).await;
    assert_eq!(counted(&mut side).await, ("op-1-7".into(), 0));
    rig.node.writes.send_replace(5);
    assert_eq!(counted(&mut side).await, ("op-1-7".into(), 5));
    side.say(count("op-1-8", "v")).await;
    assert_eq!(counted(&mut side).await, ("op-1-8".into(), 5));
    rig.node.writes.send_replace(6);
    assert_eq!(counted(&mut side).await, ("op-1-8".into(), 6), "nothing more of the one before");
    side.say(count("op-1-9", "../v")).await;
    assert!(matches!(side.next().await, Say::Result(result) if result.operation_id == "op-1-9"));
    drop(side);
    let mut side = rig.session().await;
    side.welcome(10_000).await;
    rig.node.writes.send_replace(7);
    loop {
        match side.hear().await {
            Say::Heartbeat(_) => break,
            Say::Writes(said) => panic!("nobody has asked on this one: {said:?}"),
            // What may not have been read on the one before.
            _ => {}
        }
    }
    assert_eq!(rig.node.writes.receiver_count(), 0);
}

#[tokio::test]
async fn a_welcome_that_makes_no_sense_is_refused_and_stopping_ends_the_session() {
    let mut rig = Rig::start().await;
    let mut side = rig.session().await;
    assert!(matches!(side.next().await, Say::Hello(_)));
    let protocol = cleat_proto::SESSION_PROTOCOL;
    side.say(Hear::Welcome(proto::Welcome { protocol, heartbeat_interval_ms: 0, ..Default::default() }))
        .await;
    let mut side = rig.session().await;
    side.welcome(10_000).await;
    rig.stop.cancel();
    timeout(PATIENCE, rig.running).await.expect("stops").expect("no panic");
}

/// Controllers at these addresses.
struct At(Vec<(&'static str, SocketAddr)>);

impl Controllers for At {
    fn candidates(&self) -> find::PendingCandidates<'_> {
        let endpoint = |address: &SocketAddr| {
            let plain = ClientTransport::Plaintext;
            cleat_runtime::grpc::endpoint(&address.to_string(), &plain, Keepalive::default())
                .expect("an endpoint")
        };
        let all = self.0.iter().map(|(name, address)| find::ControllerAddress {
            name: (*name).to_owned(),
            at: Box::new(endpoint(address)),
        });
        let all = all.collect();
        Box::pin(async { all })
    }
}

/// A replica that leads, or not, and notes who calls.
#[derive(Clone)]
struct Replica {
    leads: Arc<std::sync::atomic::AtomicBool>,
    sides: mpsc::Sender<Side>,
    tokens: Arc<Mutex<Vec<Option<String>>>>,
}

#[tonic::async_trait]
impl AgentSession for Replica {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<proto::ToAgent, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let token =
            request.metadata().get("authorization").map(|value| value.to_str().expect("text").to_owned());
        self.tokens.lock().expect("not poisoned").push(token);
        if !self.leads.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(Status::unavailable("this replica is a standby: one leads; ask that one"));
        }
        let (to_agent, messages) = mpsc::channel(16);
        let side = Side { from_agent: request.into_inner(), to_agent };
        self.sides.send(side).await.map_err(|_| Status::unavailable("the script is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

impl Replica {
    async fn start(leads: bool) -> (Self, SocketAddr, mpsc::Receiver<Side>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("an address");
        let (sides, sessions) = mpsc::channel(4);
        let replica = Self { leads: Arc::new(leads.into()), sides, tokens: Arc::default() };
        let server =
            tonic::transport::Server::builder().add_service(AgentSessionServer::new(replica.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (replica, address, sessions)
    }
}

fn session_of(controllers: At, token: Option<TokenFile>) -> Session<FakeNode> {
    let (link, _) = watch::channel(Link::Down);
    Session {
        controllers: Box::new(controllers),
        token,
        node_is: description(),
        node: Arc::default(),
        outbox: Arc::default(),
        link,
        ready: Readiness::default().flag("session"),
    }
}

#[tokio::test]
async fn standbys_and_dead_addresses_do_not_hide_the_one_that_leads() {
    // Nobody accepts what the kernel has; and nobody listens.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let gone = closed.local_addr().expect("an address");
    drop(closed);
    let (one, at_one, mut sides_of_one) = Replica::start(false).await;
    let (other, at_other, mut sides_of_other) = Replica::start(true).await;
    let all = [
        ("gone", gone),
        ("silent", silent.local_addr().expect("an address")),
        ("one", at_one),
        ("other", at_other),
    ];
    let stop = CancellationToken::new();
    let running = tokio::spawn(session_of(At(all.to_vec()), None).run(stop.clone()));
    let first = timeout(Duration::from_secs(10), sides_of_other.recv()).await.expect("found in time");
    let mut side = first.expect("the server runs");
    side.welcome(10_000).await;
    assert!(one.tokens.lock().expect("not poisoned").len() <= 1);
    // The other way round now.
    other.leads.store(false, std::sync::atomic::Ordering::SeqCst);
    one.leads.store(true, std::sync::atomic::Ordering::SeqCst);
    drop(side);
    let next = timeout(Duration::from_secs(10), sides_of_one.recv()).await.expect("found in time");
    next.expect("the server runs").welcome(10_000).await;
    stop.cancel();
    timeout(PATIENCE, running).await.expect("stops").expect("no panic");
}

/// One that connects for ever.
struct Nowhere;

impl cleat_runtime::grpc::Connector for Nowhere {
    fn open_channel(&self) -> cleat_runtime::grpc::PendingChannel<'_> {
        Box::pin(std::future::pending())
    }
}

/// A dead address beside one that is not.
struct BesideADeadOne(At);

impl Controllers for BesideADeadOne {
    fn candidates(&self) -> find::PendingCandidates<'_> {
        Box::pin(async {
            let mut all = self.0.candidates().await;
            all.push(find::ControllerAddress { name: "dead".into(), at: Box::new(Nowhere) });
            all
        })
    }
}

#[tokio::test]
async fn a_standby_that_begins_to_lead_is_found_while_another_address_is_dead() {
    let (replica, at, mut sides) = Replica::start(false).await;
    let mut session = session_of(At(Vec::new()), None);
    session.controllers = Box::new(BesideADeadOne(At(vec![("one", at)])));
    let stop = CancellationToken::new();
    let running = tokio::spawn(session.run(stop.clone()));
    while replica.tokens.lock().expect("not poisoned").is_empty() {
        tokio::task::yield_now().await;
    }
    replica.leads.store(true, std::sync::atomic::Ordering::SeqCst);
    // Long before the dead address is given up.
    let side = timeout(Duration::from_secs(6), sides.recv()).await.expect("found in time");
    side.expect("the server runs").welcome(10_000).await;
    stop.cancel();
    timeout(PATIENCE, running).await.expect("stops").expect("no panic");
}

#[tokio::test]
async fn after_a_later_leader_no_session_begins_with_an_older_one() {
    let (_replica, at, mut sides) = Replica::start(true).await;
    let stop = CancellationToken::new();
    let running = tokio::spawn(session_of(At(vec![("one", at)]), None).run(stop.clone()));
    for (term, begins) in [(2, true), (1, false), (2, true), (3, true)] {
        let mut side = timeout(PATIENCE, sides.recv()).await.expect("a session").expect("the server runs");
        side.leads_under(term, 10_000).await;
        let next = side.from_agent.message().await;
        let inventory =
            next.is_ok_and(|said| matches!(said, Some(said) if matches!(said.kind, Some(Say::Inventory(_)))));
        assert_eq!(inventory, begins, "term {term}");
    }
    stop.cancel();
    timeout(PATIENCE, running).await.expect("stops").expect("no panic");
}

#[tokio::test]
async fn a_token_goes_with_each_session_and_on_it_once_it_is_another_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("token");
    std::fs::write(&file, "first\n").expect("write");
    let (replica, at, mut sides) = Replica::start(true).await;
    let session = session_of(At(vec![("one", at)]), Some(TokenFile(file.clone())));
    let stop = CancellationToken::new();
    let running = tokio::spawn(session.run(stop.clone()));
    let mut side = timeout(PATIENCE, sides.recv()).await.expect("a session").expect("the server runs");
    assert!(matches!(side.next().await, Say::Hello(_)));
    side.say(Hear::Welcome(proto::Welcome {
        term: 1,
        session_id: "s".into(),
        heartbeat_interval_ms: 20,
        silence_deadline_ms: 10_000,
        takes_tokens: true,
        protocol: cleat_proto::SESSION_PROTOCOL,
        ..Default::default()
    }))
    .await;
    assert!(matches!(side.next().await, Say::Inventory(_)));
    std::fs::write(&file, "second\n").expect("write");
    match side.next().await {
        Say::Renewal(renewal) => assert_eq!(renewal.token, "second"),
        other => panic!("no renewal: {other:?}"),
    }
    assert_eq!(*replica.tokens.lock().expect("not poisoned"), [Some("Bearer first".to_owned())]);
    stop.cancel();
    timeout(PATIENCE, running).await.expect("stops").expect("no panic");
}
