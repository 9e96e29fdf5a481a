//! The parts put together: configuration, listeners, engine, services, shutdown.
//!
//! In comes the command line; out goes a running controller. What holds: the configuration is checked before anything
//! is bound, and the stored state is read before anybody is served; the engine's end is the process's end; at a stop
//! first the streams and calls end, then the engine, so that what was decided has been carried out.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cleat_proto::cleat::v1::agent_session_server::AgentSessionServer;
use cleat_proto::cleat::v1::operator_server::OperatorServer;
use cleat_proto::csi::v1::controller_server::ControllerServer;
use cleat_proto::csi::v1::identity_server::IdentityServer;
use cleat_rds::secret::Keys;
use cleat_rds::{HostAcl, Rds, RestRds};
use cleat_runtime::grpc::{self, Keepalive};
use cleat_runtime::listen::{Incoming, Limits, Listener};
use cleat_runtime::readiness::{Readiness, ReadyFlag};
use cleat_runtime::tls::renew::{self, Renewable};
use cleat_runtime::tls::{ClientKind, ServerTransport};
use cleat_runtime::unix::{UnixError, UnixIncoming};
use cleat_runtime::{Context, Failure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::Connected;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::agents::{self, AgentSessions, Reports, SessionContext, SessionIds, Sessions};
use crate::cli::{Cli, Settings};
use crate::clients::Clients;
use crate::clock::Clock;
use crate::csi::{CsiController, CsiIdentity, Serving};
use crate::engine::{self, EngineError, RecordError, Records, Started};
use crate::operator::{self, Operators};
use crate::store::{CommitError, FileStore, OpenError, Store, StoreSpec};

/// How often an RDS that does not answer is asked again whether it does.
const RDS_CHECK_EVERY: Duration = Duration::from_secs(2);
/// How long connections get to close at a stop. Ours close at once; a health watch of others may not.
const CLOSING: Duration = Duration::from_secs(3);
/// How often the health service looks at what is ready.
const HEALTH_EVERY: Duration = Duration::from_millis(500);

/// Everything that a controller is made of. `C`, `A` and `O` are where connections come from.
pub struct Parts<C = UnixIncoming, A = Incoming, O = A> {
    /// What was stored, and where to store.
    pub stored: Stored,
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
    /// The files that are read again while the controller runs, with a warning before they expire.
    pub certificates: Vec<Arc<dyn Renewable>>,
}

/// An opened store.
pub struct Stored {
    /// Where records go.
    pub store: Arc<dyn Store>,
    /// What was there.
    pub records: Records,
    /// The term, higher than any before, and durable.
    pub term: u64,
}

/// Why what was stored cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// The store cannot be opened.
    #[error("--store")]
    Open(#[from] OpenError),
    /// A record cannot be read.
    #[error("--store file:{}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Which, and what is wrong with it.
        #[source]
        source: RecordError,
    },
    /// The store does not give the controller a term.
    #[error("--store file:{}: cannot take a term", path.display())]
    Term {
        /// The file.
        path: PathBuf,
        /// The store's error.
        #[source]
        source: CommitError,
    },
    /// It does not take the key of secrets.
    #[error("--store file:{}: cannot note which key secrets are made with", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The store's error.
        #[source]
        source: CommitError,
    },
    /// The task that opens it panicked.
    #[error("opening the store ended without an answer")]
    Panicked(#[from] tokio::task::JoinError),
}

impl Stored {
    /// Opens a store, and takes a term in it: higher than any of those before, that of any grant on record included, and
    /// not below the wall clock in milliseconds, so that it rises even if the store was lost in between.
    ///
    /// # Errors
    /// What is in the way, with the file.
    pub async fn open(spec: &StoreSpec, clock: Clock) -> Result<Self, StoredError> {
        let StoreSpec::File(path) = spec.clone();
        let opened = path.clone();
        let (store, loaded) = tokio::task::spawn_blocking(move || FileStore::open(&opened)).await??;
        let records = engine::read_records(loaded.entries)
            .map_err(|source| StoredError::Record { path: path.clone(), source })?;
        let least = clock.now().0.max(records.highest_term().saturating_add(1));
        let term = store.take_term(least).await.map_err(|source| StoredError::Term { path, source })?;
        Ok(Self { store: Arc::new(store), records, term })
    }

    /// Notes in the store what secrets are made with from now on, and says which volumes have secrets of another key.
    ///
    /// # Errors
    /// What is in the way, with the file.
    pub async fn take_key(&self, spec: &StoreSpec, keys: &Keys) -> Result<Keys, StoredError> {
        let StoreSpec::File(path) = spec.clone();
        let noted = self.store.take_key(keys.current(), keys.before()).await;
        let keys = keys.clone().in_eras(noted.map_err(|source| StoredError::Key { path, source })?);
        let mut old = 0_u32;
        for record in &self.records.volumes {
            let Some(secret) = &record.secret else { continue };
            old += u32::from(keys.is_old(secret.generation));
            if let Err(missing) = keys.secret(&record.spec.id, secret.generation) {
                tracing::error!("{missing}");
            }
        }
        tracing::info!(key = %keys.current(), volumes_of_older_keys = old, "new secrets use this key");
        Ok(keys)
    }
}

/// Why a controller ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The CSI socket cannot be served.
    #[error("--csi-socket")]
    Csi(#[from] UnixError),
    /// A listener cannot be bound.
    #[error("cannot listen on {addr} ({option})")]
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
        /// The server: `CSI`, `agent` or `operator`.
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
    let mut settings = cli.settings().map_err(Failure::config)?;
    warn_of(&settings);
    let clock = Clock::start();
    let mut rds = RestRds::new(settings.rds.clone()).map_err(Failure::config)?;
    if let Some(ports) = settings.volume_ports.clone() {
        rds = rds.with_volume_ports(ports);
    }
    let stored = Stored::open(&settings.store, clock).await.map_err(Failure::failed)?;
    if let Some(keys) = &settings.agents.secrets {
        let noted = stored.take_key(&settings.store, keys).await.map_err(Failure::failed)?;
        settings.agents.secrets = Some(Arc::new(noted));
    }
    let parts = bind(settings, rds, stored, &context).await.map_err(Failure::failed)?;
    serve(parts, clock, context).await.map_err(Failure::failed)
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
    stored: Stored,
    context: &Context,
) -> Result<Parts, AppError> {
    let Settings {
        csi_socket,
        agent_listen,
        agent_transport,
        operator_listen,
        operator_transport,
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
    let clients = Clients::from(&agent_transport);
    let listeners = [&agent_transport, &operator_transport].into_iter().filter_map(ServerTransport::tls);
    let mut certificates: Vec<Arc<dyn Renewable>> = vec![rds.certificates()];
    certificates.extend(listeners.map(|tls| Arc::new(tls.clone()) as Arc<dyn Renewable>));
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
        stored,
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
        stored,
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
        certificates,
    } = parts;
    let Context { stop, readiness, giving_up: _ } = context;
    let (stored_flag, rds_flag) = (readiness.flag("store"), readiness.flag("rds"));
    let Stored { store, records, term } = stored;
    let secrets = agents.secrets.clone();
    let (volumes, sessions, reports) = (records.volumes.len(), Sessions::new(agents), Reports::default());
    let stop_engine = CancellationToken::new();
    let start = engine::Start {
        config: core,
        term,
        records,
        store,
        storing: stored_flag,
        rds: Arc::clone(&rds),
        rds_deadline,
        secrets: sessions.settings().secrets.clone(),
        agents: Arc::new(sessions.clone()),
        clock,
    };
    let (Started { engine, term }, engine_end) = engine::start(start, stop_engine.clone());
    tracing::info!(term, volumes, "records read, term taken");

    let (csi_health, csi_health_service) = tonic_health::server::health_reporter();
    csi_health.set_service_status("", ServingStatus::NotServing).await;
    let csi_server = grpc::server(Keepalive::default())
        .add_service(csi_health_service)
        .add_service(IdentityServer::new(CsiIdentity::new(driver_name, readiness.clone())))
        .add_service(ControllerServer::new(CsiController::new(
            engine.clone(),
            Arc::clone(&rds),
            serving,
            stop.clone(),
        )))
        .serve_with_incoming_shutdown(csi, stop.clone().cancelled_owned());
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", ServingStatus::NotServing).await;
    let agent_sessions = AgentSessions::new(SessionContext {
        engine: engine.clone(),
        sessions,
        reports: reports.clone(),
        ids: SessionIds::of(term),
        stop: stop.clone(),
    });
    let agent_sessions =
        AgentSessionServer::new(agent_sessions).max_decoding_message_size(agents::MESSAGE_BYTES);
    let agent_server = grpc::server(Keepalive::default())
        .add_service(health_service.clone())
        .add_service(InterceptedService::new(agent_sessions, clients.admit(ClientKind::Node)))
        .serve_with_incoming_shutdown(agents_at, stop.clone().cancelled_owned());
    for files in &certificates {
        tokio::spawn(renew::keep_fresh(Arc::clone(files), stop.clone()));
    }
    let operators =
        Operators::new(engine.clone(), reports.clone(), certificates, secrets.clone(), stop.clone());
    let operator_server = grpc::server(Keepalive::default())
        .add_service(health_service)
        .add_service(OperatorServer::with_interceptor(operators, clients.admit(ClientKind::Operator)))
        .serve_with_incoming_shutdown(operators_at, stop.clone().cancelled_owned());

    tracing::info!(?clients, "serving");

    let watching = tokio::spawn(watch_over(rds, rds_flag, readiness, [csi_health, health], stop.clone()));
    let looking = tokio::spawn(operator::keep_looking(engine, reports, secrets, stop.clone()));
    let served = async {
        let (csi, agents, operators) = tokio::join!(
            ended("CSI", csi_server, &stop),
            ended("agents'", agent_server, &stop),
            ended("operators'", operator_server, &stop)
        );
        csi.and(agents).and(operators)
    };
    tokio::pin!(engine_end);
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(CLOSING).await;
    };
    let result = tokio::select! {
        // Whatever else is under way: nothing may be done that is not durable.
        ended = &mut engine_end => {
            // Open streams and calls end too, without success.
            stop.cancel();
            return Err(after(ended));
        }
        served = served => served,
        () = overdue => {
            tracing::warn!("some connections were still open, and are cut");
            Ok(())
        }
    };
    stop_engine.cancel();
    engine_end.await?;
    watching.abort();
    looking.abort();
    result
}

/// An engine that ends by itself does so with an error.
fn after(ended: Result<(), EngineError>) -> AppError {
    match ended {
        Err(error) => error.into(),
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

/// Asks the RDS until it has answered once, and keeps the health services at what the readiness says.
async fn watch_over(
    rds: Arc<dyn Rds>,
    reached: ReadyFlag,
    readiness: Readiness,
    health: [HealthReporter; 2],
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
            let ready = readiness.missing().is_empty();
            let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            for reporter in &health {
                reporter.set_service_status("", status).await;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = reach => {}
        () = tell => {}
    }
    for reporter in &health {
        reporter.set_service_status("", ServingStatus::NotServing).await;
    }
}
