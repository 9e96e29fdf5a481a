//! The parts put together: configuration, listeners, engine, services, shutdown.
//!
//! In comes the command line; out goes a running controller. What holds: the configuration is checked before anything
//! is bound, and the stored state is read before anybody is served; the engine's end is the process's end; at a stop
//! first the streams and calls end, then the engine, so that what was decided has been carried out.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cleat_kubernetes::api::NoClient;
use cleat_kubernetes::events::Events;
use cleat_kubernetes::kubevirt::mover::MoverSeen;
use cleat_kubernetes::references::References;
use cleat_proto::cleat::v1::agent_session_server::AgentSessionServer;
use cleat_proto::cleat::v1::operator_server::OperatorServer;
use cleat_proto::csi::v1::controller_server::ControllerServer;
use cleat_proto::csi::v1::identity_server::IdentityServer;
use cleat_rds::{HostAcl, Rds, RestRds};
use cleat_runtime::grpc::{self, Keepalive};
use cleat_runtime::listen::{Incoming, Limits, Listener};
use cleat_runtime::readiness::{Readiness, ReadyFlag};
use cleat_runtime::tls::renew::{self, Renewable};
use cleat_runtime::tls::{ClientKind, IssuedTls, ServerTransport};
use cleat_runtime::unix::{UnixError, UnixIncoming};
use cleat_runtime::{Context, Failure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::agents::{self, AgentSessions, Reports, SessionContext, SessionIds, Sessions};
use crate::cli::{Cli, Settings};
use crate::clients::Clients;
use crate::clock::Clock;
use crate::cluster::{self, TicketSync};
use crate::csi::{CsiController, CsiIdentity, Serving, TicketVolumes};
use crate::engine::{self, EngineError, Started};
use crate::events;
use crate::leadership::{Leadership, OfLeader};
use crate::metrics;
use crate::nodes;
use crate::operator::{self, Operators};
use crate::pins::Pins;
use crate::stored::{StoreSettings, Stored, StoredError};
use crate::trust::{ClusterTrust, ClusterTrustSettings};

/// How often an RDS that does not answer is asked again whether it does.
const RDS_CHECK_EVERY: Duration = Duration::from_secs(2);
/// How long connections get to close at a stop. Ours close at once; a health watch of others may not.
const CLOSING: Duration = Duration::from_secs(3);
/// How often the health service looks at what is ready.
const HEALTH_EVERY: Duration = Duration::from_millis(500);

/// Everything that a controller is made of. `C`, `A` and `O` are where connections come from.
pub struct Parts<C = UnixIncoming, A = Incoming, O = A> {
    /// What was stored, and where to store.
    pub opening: Opening,
    /// Whether this process leads.
    pub leadership: Leadership,
    /// The RDS.
    pub rds: Arc<dyn Rds>,
    /// How long a change of a host list may take.
    pub rds_deadline: Duration,
    /// How volumes are served to hosts.
    pub serving: Serving,
    /// What agents are sent.
    pub agents: agents::AgentSettings,
    /// Times that decide.
    pub core: cleat_core::Config,
    /// Name of the CSI driver.
    pub driver_name: String,
    /// Where CSI is served.
    pub csi: C,
    /// Where agents are served.
    pub agents_at: A,
    /// Where operators are served.
    pub operators_at: O,
    /// How both are known.
    pub clients: Clients,
    /// Who has each volume as KubeVirt says, where that is not watched in the cluster: one look after the other.
    pub movers: Option<Movers>,
    /// The files that are read again while the controller runs, with a warning before they expire.
    pub certificates: Vec<Arc<dyn Renewable>>,
}

/// What opens the store, once this process leads. `None`: it was to stop before.
pub type Opening = Pin<Box<dyn Future<Output = Result<Option<Stored>, StoredError>> + Send>>;

/// Who has each volume, as it was found at each look.
pub type Movers = Pin<Box<dyn Stream<Item = BTreeMap<String, MoverSeen>> + Send>>;

/// Why a controller ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The store.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// The CSI socket cannot be served.
    #[error("cannot serve CSI (--csi-socket)")]
    Csi(#[from] UnixError),
    /// A listener cannot be bound.
    #[error(
        "cannot listen on {addr} ({option}); free the port, or name another address (0.0.0.0:PORT where this kernel has no IPv6)"
    )]
    Bind {
        /// The option that names the address.
        option: &'static str,
        /// The address.
        addr: std::net::SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A server failed.
    #[error("the {server} server failed")]
    Serve {
        /// The server: `CSI`, `agents'` or `operators'`.
        server: &'static str,
        /// What failed.
        #[source]
        source: tonic::transport::Error,
    },
}

/// The whole program, from its command line on.
///
/// # Errors
/// What ended it, with the exit code that belongs to it.
pub async fn run(cli: Cli, context: Context) -> Result<(), Failure> {
    let settings = cli.settings().map_err(Failure::config)?;
    warn_of(&settings);
    metrics::begin();
    let clock = Clock::start();
    let mut rds = RestRds::new(settings.rds.clone()).map_err(Failure::config)?;
    if let Some(ports) = settings.volume_ports.clone() {
        rds = rds.with_volume_ports(ports);
    }
    let (leadership, opening): (Leadership, Opening) = match settings.store.clone() {
        // Nobody is served before what is in a file was read.
        StoreSettings::File(path) => {
            let stored = Stored::in_file(path, clock).await.map_err(Failure::failed)?;
            (Leadership::alone(), Box::pin(async { Ok(Some(stored)) }))
        }
        StoreSettings::Kubernetes(cluster) => {
            let (leadership, stop) = (Leadership::by_lease(), context.stop.clone());
            let leads = leadership.clone();
            (leadership, Box::pin(async move { Stored::in_cluster(cluster, clock, &leads, &stop).await }))
        }
    };
    let leads = leadership.clone();
    rds.ask_before_writes(move |time| leads.outlives(time));
    let trust = match settings.trust.clone() {
        Some(trust) => Some(trust_of(trust, &settings, &context).await.map_err(Failure::config)?),
        None => None,
    };
    let parts = bind(settings, rds, opening, leadership, trust, &context).await.map_err(Failure::failed)?;
    serve(parts, clock, context).await.map_err(Failure::failed)
}

/// Who says who is who, and when the certificates of that end.
type Trust = (ClusterTrust, Arc<dyn Renewable>);

async fn trust_of(
    trust: ClusterTrustSettings,
    settings: &Settings,
    context: &Context,
) -> Result<Trust, NoClient> {
    let issued = |transport: &ServerTransport| match transport {
        ServerTransport::Issued(tls) => tls.clone(),
        ServerTransport::Plaintext | ServerTransport::Tls(_) => IssuedTls::default(),
    };
    let (agents, operators) = (issued(&settings.agent_transport), issued(&settings.operator_transport));
    ClusterTrust::begin(trust, agents, operators, context).await
}

/// What was asked for, and leaves a door open.
fn warn_of(settings: &Settings) {
    if settings.rds.host_acl == HostAcl::None {
        tracing::warn!(
            "--host-acl none: whoever reaches a portal of the RDS may connect to any volume; an attachment that has ended \
             is proven by its node alone"
        );
    }
    if settings.core.target.export_cuts && settings.volume_ports.is_none() {
        tracing::warn!(
            "no --rds-volume-ports: new volumes share a port, and a node with a kernel from 6.10 on that goes on using a \
             volume loses its device when another node is fenced from it and the export is off for a second or more"
        );
    }
    if matches!(settings.agent_transport, ServerTransport::Plaintext) {
        tracing::warn!(
            agent_listen = %settings.agent_listen, operator_listen = %settings.operator_listen,
            "--plaintext: INSECURE. Whoever reaches these addresses is taken for whatever node or operator it says it is, \
             and can read, attach, fence and destroy every volume. For tests only"
        );
    }
}

async fn bind(
    settings: Settings,
    rds: RestRds,
    opening: Opening,
    leadership: Leadership,
    trust: Option<Trust>,
    context: &Context,
) -> Result<Parts, AppError> {
    let Settings {
        csi_socket,
        agent_listen,
        agent_transport,
        operator_listen,
        operator_transport,
        trust: _,
        store: _,
        driver_name,
        rds: _,
        volume_ports: _,
        serving,
        agents,
        core,
        rds_deadline,
    } = settings;
    let csi = UnixIncoming::bind(csi_socket).await?.or_give_up(context.giving_up.clone());
    let clients = match &trust {
        Some((trust, _)) => Clients::OfCluster(trust.clone()),
        None => Clients::from(&agent_transport),
    };
    let listeners = [&agent_transport, &operator_transport].into_iter().filter_map(ServerTransport::tls);
    let mut certificates: Vec<Arc<dyn Renewable>> = vec![rds.certificates()];
    certificates.extend(listeners.map(|tls| Arc::new(tls.clone()) as Arc<dyn Renewable>));
    certificates.extend(trust.map(|(_, ends)| ends));
    let listen =
        async |name, kind: ClientKind, addr, transport| {
            Listener::bind(name, addr, transport, Limits::of_process())
                .await
                .map_err(|source| AppError::Bind { option: kind.listen_option(), addr, source })
        };
    let agents_at = listen("agents", ClientKind::Node, agent_listen, agent_transport).await?;
    let operators_at = listen("operators", ClientKind::Operator, operator_listen, operator_transport).await?;
    tracing::info!(
        csi_socket = %csi.path().display(), agents = %agents_at.address(), operators = %operators_at.address(),
        "listening"
    );
    let (agents_at, operators_at) =
        (agents_at.incoming(context.stop.clone()), operators_at.incoming(context.stop.clone()));
    Ok(Parts {
        opening,
        leadership,
        rds: Arc::new(rds),
        rds_deadline,
        serving,
        agents,
        core,
        driver_name,
        csi,
        agents_at,
        operators_at,
        clients,
        movers: None,
        certificates,
    })
}

/// Serves until `context.stop` is cancelled, or until something that the controller cannot do without has failed.
///
/// # Errors
/// What failed.
pub async fn serve<C, A, O, S, T, U>(
    parts: Parts<C, A, O>,
    clock: Clock,
    context: Context,
) -> Result<(), AppError>
where
    C: Stream<Item = io::Result<S>>,
    A: Stream<Item = io::Result<T>>,
    O: Stream<Item = io::Result<U>>,
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    U: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let Parts {
        opening,
        leadership,
        rds,
        rds_deadline,
        serving,
        agents,
        core,
        driver_name,
        csi,
        agents_at,
        operators_at,
        clients,
        movers,
        certificates,
    } = parts;
    let Context { stop, readiness, giving_up: _ } = context;
    let stored_flag = readiness.flag("store");
    // Not of the process's own readiness: without the RDS agents and operators are served all the same.
    let reached = Readiness::default();
    let rds_flag = reached.flag("rds");

    let controller = OfLeader::none_yet(&leadership);
    let (csi_health, csi_health_service) = tonic_health::server::health_reporter();
    csi_health.set_service_status("", ServingStatus::NotServing).await;
    let driver = driver_name.clone();
    let for_csi = [readiness.clone(), reached];
    let identity = CsiIdentity::new(driver_name, for_csi.clone(), leadership.clone());
    let csi_server = grpc::server(Keepalive::default())
        .add_service(csi_health_service)
        .add_service(IdentityServer::new(identity))
        .add_service(controller.clone())
        .serve_with_incoming_shutdown(csi, stop.clone().cancelled_owned());
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", ServingStatus::NotServing).await;
    let sessions_of_agents = OfLeader::none_yet(&leadership);
    let agent_server = grpc::server(Keepalive::default())
        .add_service(health_service.clone())
        .add_service(sessions_of_agents.clone())
        .serve_with_incoming_shutdown(agents_at, stop.clone().cancelled_owned());
    for files in &certificates {
        tokio::spawn(renew::keep_fresh(Arc::clone(files), stop.clone()));
    }
    let operators = OfLeader::none_yet(&leadership);
    let operator_server = grpc::server(Keepalive::default())
        .add_service(health_service)
        .add_service(operators.clone())
        .serve_with_incoming_shutdown(operators_at, stop.clone().cancelled_owned());

    tracing::info!(?clients, "serving");

    let watching = tokio::spawn(watch_over(
        Arc::clone(&rds),
        rds_flag,
        leadership.clone(),
        [(csi_health, for_csi.to_vec()), (health, vec![readiness])],
        stop.clone(),
    ));
    let stop_engine = CancellationToken::new();
    let leading = async {
        let Some(stored) = opened(opening, &leadership, &stored_flag).await? else { return Ok(()) };
        let mut agents = agents;
        if let Some(keys) = &agents.secrets {
            agents.secrets = Some(Arc::new(stored.take_key(keys).await?));
        }
        let Stored { store, records, term, cluster: of_cluster } = stored;
        let attachments = of_cluster.as_ref().map(|cluster| Arc::clone(&cluster.attachments));
        let cluster = of_cluster.map(|cluster| cluster.server);
        let of_watches = cluster.clone();
        let secrets = agents.secrets.clone();
        let (volumes, sessions, reports) = (records.volumes.len(), Sessions::new(agents), Reports::default());
        let start = engine::Start {
            config: core,
            term,
            records,
            store,
            storing: stored_flag,
            leadership: leadership.clone(),
            rds: Arc::clone(&rds),
            rds_deadline,
            secrets: secrets.clone(),
            agents: Arc::new(sessions.clone()),
            clock,
        };
        let (Started { engine, term, changes }, engine_end) = engine::start(start, stop_engine.clone());
        tracing::info!(term, volumes, "records read, term taken");
        let context = SessionContext {
            engine: engine.clone(),
            sessions,
            pins: cluster.clone().map(Pins::new),
            reports: reports.clone(),
            ids: SessionIds::of(term),
            leadership: leadership.clone(),
            stop: stop.clone(),
        };
        let sessions = AgentSessionServer::new(AgentSessions::new(context))
            .max_decoding_message_size(agents::MESSAGE_BYTES);
        sessions_of_agents.begin(clients.admit(ClientKind::Node, sessions));
        let of_tickets = TicketVolumes::new(engine.clone(), Arc::clone(&rds), serving.clone());
        let service = Operators::new(
            engine.clone(),
            reports.clone(),
            certificates,
            secrets.clone(),
            attachments.is_none().then(|| of_tickets.clone()),
            stop.clone(),
        );
        operators.begin(clients.admit(ClientKind::Operator, OperatorServer::new(service)));
        controller.begin(ControllerServer::new(CsiController::new(
            engine.clone(),
            rds,
            serving,
            attachments.clone(),
            stop.clone(),
        )));
        let beside = cluster.map(|server| {
            let engine = engine.clone();
            let marks = tokio::spawn(nodes::watch(server.clone(), engine.clone(), stop.clone()));
            let controller = format!("{driver}/controller");
            let timeout = server.timeout();
            let about = References::new(server.clone(), &driver);
            let events = Events::new(server, &controller, &leadership.identity());
            let writing = events::write(changes, events, about, leadership.clone(), timeout, stop.clone());
            [marks, tokio::spawn(writing)]
        });
        leadership.serve();
        if let Some(movers) = movers {
            tokio::spawn(cluster::follow_movers(movers, engine.clone(), stop.clone()));
        }
        if let Some(attachments) = attachments {
            let (of, at) = (Arc::clone(&attachments), engine.clone());
            tokio::spawn(cluster::follow_vanished(of, at, stop.clone()));
            if let Some(server) = of_watches {
                let (of, at) = (Arc::clone(&attachments), engine.clone());
                tokio::spawn(cluster::follow_migrating(server.clone(), of, at, stop.clone()));
                let tickets = TicketSync {
                    attachments: Arc::clone(&attachments),
                    engine: engine.clone(),
                    volumes: of_tickets,
                    reports: reports.clone(),
                    leadership: leadership.clone(),
                };
                tokio::spawn(cluster::follow_tickets(server, tickets, stop.clone()));
            }
            tokio::spawn(cluster::keep_annotations(attachments, engine.clone(), stop.clone()));
        }
        let looking = tokio::spawn(operator::keep_looking(engine, reports, secrets, stop.clone()));
        let ended = tokio::select! {
            ended = engine_end => ended,
            () = leadership.lost() => {
                Err(EngineError::SteppedDown { reason: "the Lease was lost".into() })
            }
        };
        looking.abort();
        beside.into_iter().flatten().for_each(|task| task.abort());
        ended.map_err(AppError::from)
    };
    let served = async {
        let (csi, agents, operators) = tokio::join!(
            ended("CSI", csi_server, &stop),
            ended("agents'", agent_server, &stop),
            ended("operators'", operator_server, &stop)
        );
        csi.and(agents).and(operators)
    };
    tokio::pin!(leading);
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(CLOSING).await;
    };
    let mut over = false;
    let served = async {
        tokio::select! {
            served = served => served,
            () = overdue => {
                tracing::warn!("some connections were still open, and are cut");
                Ok(())
            }
        }
    };
    tokio::pin!(served);
    let result = loop {
        tokio::select! {
            // Whatever else is under way: nothing may be done that is not durable.
            ended = &mut leading, if !over => {
                if let (Ok(()), true) = (&ended, stop.is_cancelled()) {
                    over = true;
                    continue;
                }
                // Open streams and calls end too, without success.
                stop.cancel();
                if let Err(AppError::Stored(_)) = ended {
                    // Nothing was done yet, so another replica need not wait.
                    leadership.end().await;
                }
                return Err(after(ended));
            }
            served = &mut served => break served,
        }
    };
    stop_engine.cancel();
    if !over {
        leading.await?;
    }
    leadership.end().await;
    watching.abort();
    result
}

/// Waits for the store. Until this process leads, it is ready while it would take over.
async fn opened(
    opening: Opening,
    leadership: &Leadership,
    ready: &ReadyFlag,
) -> Result<Option<Stored>, StoredError> {
    let standing_by = async {
        while let Some(stands_by) = leadership.stands_by() {
            ready.set(stands_by);
            tokio::time::sleep(HEALTH_EVERY).await;
        }
        // Whoever opens the store says it from now on.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        opened = opening => opened,
        () = standing_by => Ok(None),
    }
}

/// An engine that ends by itself does so with an error.
fn after(ended: Result<(), AppError>) -> AppError {
    match ended {
        Err(error) => error,
        Ok(()) => EngineError::SteppedDown { reason: "the engine ended unasked".into() }.into(),
    }
}

/// A server that ends ends the others too.
async fn ended(
    server: &'static str,
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    stop: &CancellationToken,
) -> Result<(), AppError> {
    let result = serving.await.map_err(|source| AppError::Serve { server, source });
    stop.cancel();
    result
}

/// Asks the RDS until it has answered once, and keeps each health service at what its conditions say.
async fn watch_over(
    rds: Arc<dyn Rds>,
    reached: ReadyFlag,
    leadership: Leadership,
    health: [(HealthReporter, Vec<Readiness>); 2],
    stop: CancellationToken,
) {
    let reach = async {
        loop {
            match rds.resource().await {
                Ok(resource) => {
                    tracing::info!(version = resource.version, board = resource.board, "RDS reached");
                    reached.set(true);
                    return std::future::pending::<()>().await;
                }
                Err(error) => {
                    tracing::warn!(error = %cleat_runtime::exit::Causes(&error), "RDS not reached yet");
                }
            }
            tokio::time::sleep(RDS_CHECK_EVERY).await;
        }
    };
    let tell = async {
        let mut every = tokio::time::interval(HEALTH_EVERY);
        loop {
            every.tick().await;
            let leads = leadership.serves();
            metrics::leads(leads);
            metrics::stands_by(leadership.stands_by().unwrap_or(false));
            for (reporter, conditions) in &health {
                let ready = leads && conditions.iter().all(|all| all.missing().is_empty());
                let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
                reporter.set_service_status("", status).await;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = reach => {}
        () = tell => {}
    }
    for (reporter, _) in &health {
        reporter.set_service_status("", ServingStatus::NotServing).await;
    }
}
