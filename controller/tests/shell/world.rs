//! One controller, which can be killed and started again on the same store, with everything that talks to it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cleat_controller::agents::{AgentSettings, PathPolicy};
use cleat_controller::app::{self, AppError, Opening, Parts};
use cleat_controller::clients::Clients;
use cleat_controller::clock::Clock;
use cleat_controller::csi::Serving;
use cleat_controller::leadership::Leadership;
use cleat_controller::stored::{ClusterSettings, Stored};
use cleat_controller::trust::{ClusterTrust, ClusterTrustSettings};
use cleat_proto::cleat::v1 as proto;
use cleat_proto::csi::v1 as csi;
use cleat_runtime::Context;
use cleat_runtime::grpc::{Keepalive, endpoint, unix_endpoint};
use cleat_runtime::listen::{Limits, Listener};
use cleat_runtime::tls::renew::Renewable;
use cleat_runtime::tls::{ClientKind, ClientTransport, IssuedTls, ServerTlsArgs, ServerTransport};
use cleat_runtime::unix::UnixIncoming;
use csi::controller_client::ControllerClient;
use csi::identity_client::IdentityClient;
use csi::volume_capability::access_mode::Mode;
use proto::operator_client::OperatorClient;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;

use crate::agent::{Agent, Host};
use crate::certificates::Certificates;
use crate::rds::FakeRds;

pub const PREFIX: &str = "nqn.2026-01.io.cleat:";

/// How long a replica leads that does not renew its Lease.
pub const LEASE: Duration = Duration::from_secs(6);

/// Waits until something holds.
pub async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub rds: Arc<FakeRds>,
    pub agents: AgentSettings,
    pub core: cleat_core::Config,
    /// What the controller is told of TLS. Without, there is none, and everybody is taken for who it says it is.
    pub server: Option<ServerTlsArgs>,
    /// What the cluster is asked with about who is who, where it is.
    pub trust: Option<ClusterTrustSettings>,
    /// What everybody else dials with.
    pub certificates: Option<Certificates>,
    running: Option<Running>,
}

struct Running {
    runtime: tokio::runtime::Runtime,
    agents: SocketAddr,
    operators: SocketAddr,
    context: Context,
    ended: oneshot::Receiver<Result<(), AppError>>,
}

impl World {
    /// Nothing runs yet.
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            rds: FakeRds::new(),
            agents: AgentSettings {
                nqn_prefix: cleat_ids::NqnPrefix::parse(PREFIX).unwrap(),
                path_policy: PathPolicy::Any,
                attach_deadline: Duration::from_secs(20),
                detach_deadline: Duration::from_secs(20),
                heartbeat_interval: Duration::from_millis(100),
                silence_deadline: Duration::from_secs(10),
                secrets: None,
            },
            core: cleat_core::Config {
                detach_grace_ms: 10_000,
                request_limit_ms: 20_000,
                drain_bound_ms: 500,
                retry_ms: 100,
                ..cleat_core::Config::default()
            },
            server: None,
            trust: None,
            certificates: None,
            running: None,
        }
    }

    /// From its start on everybody is who a certificate says.
    pub fn secure(&mut self) -> &Certificates {
        let made = Certificates::make(self.dir.path());
        self.server = Some(made.server());
        self.certificates.insert(made)
    }

    /// With a controller that runs.
    pub async fn started() -> Self {
        let mut world = Self::new();
        world.start().await;
        world
    }

    /// With a controller that runs, and a sidecar.
    pub async fn served() -> (Self, Csi) {
        let world = Self::started().await;
        let csi = world.csi().await;
        (world, csi)
    }

    /// With a controller that runs, and agents of these nodes that are up.
    pub async fn with_nodes<const N: usize>(names: [&str; N]) -> (Self, Csi, [(Arc<Host>, Agent); N]) {
        let (world, csi) = Self::served().await;
        let nodes = world.nodes(names).await;
        (world, csi, nodes)
    }

    /// The same, and a volume that nobody has.
    pub async fn with_volume<const N: usize>(
        volume: &str,
        names: [&str; N],
    ) -> (Self, Csi, [(Arc<Host>, Agent); N]) {
        let (world, csi, nodes) = Self::with_nodes(names).await;
        csi.create(volume).await.unwrap();
        (world, csi, nodes)
    }

    /// Hosts of these names, numbered from 1, with agents that are up.
    pub async fn nodes<const N: usize>(&self, names: [&str; N]) -> [(Arc<Host>, Agent); N] {
        let mut nodes = Vec::new();
        for (name, number) in names.into_iter().zip(1..) {
            let host = Host::new(name, number);
            let agent = self.agent(&host).await;
            nodes.push((host, agent));
        }
        nodes.try_into().unwrap_or_else(|_| unreachable!("one for each name"))
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("csi.sock")
    }

    pub fn store(&self) -> PathBuf {
        self.dir.path().join("records")
    }

    /// Starts a controller on what is stored, as a process of its own would: on a runtime of its own.
    pub async fn start(&mut self) {
        assert!(self.running.is_none(), "it runs");
        let clock = Clock::start();
        // A killed controller's store is unlocked as soon as its last task is gone.
        let deadline = Instant::now() + Duration::from_secs(10);
        let stored = loop {
            match Stored::in_file(self.store(), clock).await {
                Ok(stored) => break stored,
                Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        self.start_with(stored, clock).await;
    }

    pub async fn start_with(&mut self, stored: Stored, clock: Clock) {
        self.launch(Leadership::alone(), clock, |_| Box::pin(async { Ok(Some(stored)) })).await;
        self.ready().await;
    }

    /// As one of several replicas, which asks for the Lease of that name.
    pub async fn join(&mut self, kubeconfig: &Path, lease: &str, replica: &str) {
        self.join_in(kubeconfig, "default", lease, replica).await;
    }

    /// The same, with the Lease in that namespace.
    pub async fn join_in(&mut self, kubeconfig: &Path, namespace: &str, lease: &str, replica: &str) {
        let cluster = ClusterSettings {
            kubeconfig: Some(kubeconfig.to_owned()),
            api_timeout: Duration::from_secs(2),
            namespace: namespace.into(),
            lease: lease.into(),
            lease_duration: LEASE,
            identity: format!("{replica}_{}", uuid::Uuid::new_v4()),
            driver: "cleat.io".into(),
        };
        let (leadership, clock) = (Leadership::by_lease(), Clock::start());
        let leads = leadership.clone();
        let opening = |stop: CancellationToken| -> Opening {
            Box::pin(async move { Stored::in_cluster(cluster, clock, &leads, &stop).await })
        };
        self.launch(leadership, clock, opening).await;
    }

    async fn launch(
        &mut self,
        leadership: Leadership,
        clock: Clock,
        opening: impl FnOnce(CancellationToken) -> Opening,
    ) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let socket = self.socket();
        let transport = |kind| match &self.server {
            None if self.trust.is_some() => ServerTransport::Issued(IssuedTls::default()),
            None => ServerTransport::Plaintext,
            Some(tls) => tls.load(kind, ([127, 0, 0, 1], 0).into()).unwrap(),
        };
        let transports = [transport(ClientKind::Node), transport(ClientKind::Operator)];
        let (rds, agents, core) = (Arc::clone(&self.rds), self.agents.clone(), self.core.clone());
        let context = Context::default();
        let opening = opening(context.stop.clone());
        let (addressed, address) = oneshot::channel();
        let (tell, ended) = oneshot::channel();
        let (within, trust) = (context.clone(), self.trust.clone());
        runtime.spawn(async move {
            let listeners = transports.iter().filter_map(ServerTransport::tls);
            let mut certificates: Vec<_> =
                listeners.map(|tls| Arc::new(tls.clone()) as Arc<dyn Renewable>).collect();
            let clients = match (trust, &transports) {
                (Some(trust), [ServerTransport::Issued(agents), ServerTransport::Issued(operators)]) => {
                    let (agents, operators) = (agents.clone(), operators.clone());
                    let begun = ClusterTrust::begin(trust, agents, operators, &within).await;
                    let (trust, ends) = begun.unwrap();
                    certificates.push(ends);
                    Clients::OfCluster(trust)
                }
                (_, [first, _]) => Clients::from(first),
            };
            let [agents_at, operators_at] = transports.map(|transport| {
                Listener::bind("test", ([127, 0, 0, 1], 0).into(), transport, Limits::of_process())
            });
            let (agents_at, operators_at) = (agents_at.await.unwrap(), operators_at.await.unwrap());
            // A socket of a controller that was killed a moment ago may still answer.
            let csi = loop {
                match UnixIncoming::bind(&socket).await {
                    Ok(csi) => break csi,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
            addressed.send((agents_at.address(), operators_at.address())).unwrap();
            let serving = Serving {
                nqn_prefix: cleat_ids::NqnPrefix::parse(PREFIX).unwrap(),
                portals: vec!["10.0.1.100:4420".parse().unwrap()],
            };
            let parts = Parts {
                opening,
                leadership,
                rds,
                rds_deadline: Duration::from_secs(5),
                serving,
                agents,
                core,
                driver_name: "cleat.io".into(),
                csi,
                agents_at: agents_at.incoming(within.stop.clone()),
                operators_at: operators_at.incoming(within.stop.clone()),
                clients,
                movers: None,
                certificates,
            };
            let _ = tell.send(app::serve(parts, clock, within).await);
        });
        let address = tokio::time::timeout(Duration::from_secs(10), address).await.unwrap().unwrap();
        let (agents, operators) = address;
        self.running = Some(Running { runtime, agents, operators, context, ended });
    }

    async fn ready(&self) {
        if *self.rds.away.borrow() {
            return;
        }
        eventually("ready", async || self.probe().await).await;
    }

    /// Whether it says that it is ready, as the kubelet asks it.
    pub fn is_ready(&self) -> bool {
        self.running.as_ref().expect("it runs").context.readiness.missing().is_empty()
    }

    pub async fn probe(&self) -> bool {
        probe(&self.socket()).await
    }

    /// As `kill -9` would: nothing is said, nothing is finished.
    pub fn kill(&mut self) {
        self.running.take().expect("it runs").runtime.shutdown_background();
    }

    /// As SIGTERM would. Gives what the controller ended with.
    pub async fn stop(&mut self) -> Result<(), AppError> {
        let running = self.running.take().expect("it runs");
        running.context.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), running.ended).await;
        running.runtime.shutdown_background();
        ended.expect("it stops in time").expect("it does not panic")
    }

    /// Whether the controller has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !self.running.as_mut().expect("it runs").ended.is_empty()
    }

    /// Waits for a controller that ends by itself.
    pub async fn end(&mut self) -> Result<(), AppError> {
        let running = self.running.take().expect("it runs");
        let ended = tokio::time::timeout(Duration::from_secs(10), running.ended).await;
        running.runtime.shutdown_background();
        ended.expect("it ends in time").expect("it does not panic")
    }

    pub fn agents_at(&self) -> SocketAddr {
        self.running.as_ref().expect("it runs").agents
    }

    pub fn operators_at(&self) -> SocketAddr {
        self.running.as_ref().expect("it runs").operators
    }

    /// A channel for the agent of a host, which dials with its own certificate.
    pub async fn channel(&self, host: &Host) -> Channel {
        let name = host.hello.lock().unwrap().node_id.clone();
        let certificates = self.certificates.as_ref();
        dial(self.agents_at(), &certificates.map_or(ClientTransport::Plaintext, |made| made.node(&name)))
            .await
    }

    /// The agent of a host, whatever comes of it.
    pub async fn dial(&self, host: &Arc<Host>) -> Agent {
        Agent::dial(self.channel(host).await, host).await
    }

    /// An agent that is up.
    pub async fn agent(&self, host: &Arc<Host>) -> Agent {
        self.dial(host).await.up().await
    }

    pub async fn operator(&self) -> OperatorClient<Channel> {
        let certificates = self.certificates.as_ref();
        let transport = certificates.map_or(ClientTransport::Plaintext, |made| made.operator("alice"));
        OperatorClient::new(dial(self.operators_at(), &transport).await)
    }

    /// A volume as operators see it.
    pub async fn volume(&self, volume: &str) -> proto::VolumeInfo {
        let request = proto::GetVolumeRequest { volume_id: volume.into() };
        self.operator().await.get_volume(request).await.unwrap().into_inner()
    }

    /// A node as operators see it.
    pub async fn node(&self, node: &str) -> proto::NodeInfo {
        let request = proto::GetNodeRequest { node_id: node.into() };
        self.operator().await.get_node(request).await.unwrap().into_inner()
    }

    pub async fn migrations(&self) -> Vec<proto::MigrationInfo> {
        let request = proto::ListMigrationsRequest {};
        self.operator().await.list_migrations(request).await.unwrap().into_inner().migrations
    }

    pub async fn drift(&self) -> Vec<proto::DriftInfo> {
        self.operator().await.list_drift(proto::ListDriftRequest {}).await.unwrap().into_inner().drift
    }

    pub async fn csi(&self) -> Csi {
        Csi::dial(&self.socket()).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.runtime.shutdown_background();
        }
    }
}

pub async fn dial(address: SocketAddr, transport: &ClientTransport) -> Channel {
    endpoint(&address.to_string(), transport, Keepalive::default()).unwrap().connect().await.unwrap()
}

/// Whether whoever serves the socket says that it is ready.
pub async fn probe(socket: &Path) -> bool {
    let Ok(channel) = unix_endpoint(socket, Keepalive::default()).unwrap().connect().await else {
        return false;
    };
    let answer = IdentityClient::new(channel).probe(csi::ProbeRequest {}).await;
    answer.is_ok_and(|answer| answer.into_inner().ready == Some(true))
}

/// A sidecar.
#[derive(Clone)]
pub struct Csi {
    pub client: ControllerClient<Channel>,
}

pub fn block(mode: Mode) -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(csi::volume_capability::AccessMode { mode: mode.into() }),
        access_type: Some(csi::volume_capability::AccessType::Block(Default::default())),
    }
}

pub fn publish_request(volume: &str, node: &str, mode: Mode) -> csi::ControllerPublishVolumeRequest {
    csi::ControllerPublishVolumeRequest {
        volume_id: volume.into(),
        node_id: node.into(),
        volume_capability: Some(block(mode)),
        ..Default::default()
    }
}

pub const RWX: Mode = Mode::MultiNodeMultiWriter;
pub const RWO: Mode = Mode::SingleNodeWriter;

impl Csi {
    pub async fn dial(socket: &Path) -> Self {
        let channel = unix_endpoint(socket, Keepalive::default()).unwrap().connect().await.unwrap();
        Self { client: ControllerClient::new(channel) }
    }

    pub async fn create(&self, name: &str) -> Result<csi::Volume, Status> {
        self.create_sized(name, 1 << 20).await
    }

    pub async fn create_sized(&self, name: &str, required_bytes: i64) -> Result<csi::Volume, Status> {
        let request = csi::CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(csi::CapacityRange { required_bytes, limit_bytes: 0 }),
            volume_capabilities: vec![block(RWX)],
            ..Default::default()
        };
        Ok(self.client.clone().create_volume(request).await?.into_inner().volume.unwrap())
    }

    pub async fn delete(&self, volume: &str) -> Result<(), Status> {
        let request = csi::DeleteVolumeRequest { volume_id: volume.into(), ..Default::default() };
        self.client.clone().delete_volume(request).await.map(drop)
    }

    /// Publishes; gives the epoch of the PublishContext.
    pub async fn publish(&self, volume: &str, node: &str, mode: Mode) -> Result<String, Status> {
        let request = publish_request(volume, node, mode);
        let answer = self.client.clone().controller_publish_volume(request).await?.into_inner();
        let mut context = answer.publish_context;
        assert_eq!(context["cleat.io/subsystem-nqn"], format!("{PREFIX}{volume}"));
        assert_eq!(context["cleat.io/namespace-uuid"].len(), 36);
        Ok(context.remove("cleat.io/epoch").unwrap())
    }

    pub async fn unpublish(&self, volume: &str, node: &str) -> Result<(), Status> {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: volume.into(),
            node_id: node.into(),
            ..Default::default()
        };
        self.client.clone().controller_unpublish_volume(request).await.map(drop)
    }
}
