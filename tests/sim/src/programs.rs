//! Controller and agent, put together as their own `main` would, on what is simulated.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cleat_agent::ledger::Ledger;
use cleat_agent::link::Link;
use cleat_agent::session::outbox::Outbox;
use cleat_agent::session::{NodeDescription, Session};
use cleat_agent::volume::board::Board;
use cleat_agent::volume::watch::Watch;
use cleat_agent::volume::{ConnectIdentity, Fleet, Times, VolumeContext};
use cleat_controller::agents::{AgentSettings, PathPolicy};
use cleat_controller::app::{self, Parts};
use cleat_controller::clients::Clients;
use cleat_controller::clock::Clock;
use cleat_controller::csi::Serving;
use cleat_controller::engine::read_records;
use cleat_controller::leadership::Leadership;
use cleat_controller::store::Store as _;
use cleat_controller::stored::Stored;
use cleat_core::{Config, TargetAbilities, UnixMillis};
use cleat_host::fabrics::ConnectOptions;
use cleat_host::uevents::Uevents;
use cleat_host::work::Workers;
use cleat_host::{HostId, HostNqn};
use cleat_ids::{NodeId, NqnPrefix};
use cleat_rds::secret::Keys;
use cleat_runtime::Context;
use cleat_runtime::grpc::{Keepalive, endpoint};
use cleat_runtime::tls::ClientTransport;
use tokio::sync::watch;
use tonic::transport::Endpoint;

use crate::disk::MemoryStore;
use crate::host::Machine;
use crate::kubevirt;
use crate::net::{Dialler, Nic};
use crate::process::Ended;
use crate::rds;
use crate::world::{self, EPOCH_MS, NODES, NodeIx, PORTALS, Universe};

/// The controller's host.
pub const CONTROLLER: &str = "controller";
/// Where it serves CSI.
pub const CSI_PORT: u16 = 9_000;
/// Where it serves agents.
pub const AGENTS_PORT: u16 = 7_000;
/// Where it serves the operator.
pub const OPERATORS_PORT: u16 = 7_001;
/// The longest that a write is taken to be held, in ms.
const DRAIN_BOUND: u64 = 4_000;

/// What connects the controller.
#[must_use]
pub fn controller_endpoint() -> Endpoint {
    endpoint(CONTROLLER, &ClientTransport::Plaintext, Keepalive::default()).unwrap()
}

fn config(target: TargetAbilities) -> Config {
    Config {
        detach_grace_ms: 5_000,
        request_limit_ms: 3_000,
        drain_bound_ms: DRAIN_BOUND,
        retry_ms: 400,
        fence_after_ms: 2_500,
        fence_heard_after_ms: 5_000,
        interrupt_grace_ms: 1_000,
        target,
    }
}

#[allow(clippy::unwrap_used, reason = "it is a constant")]
fn prefix() -> NqnPrefix {
    NqnPrefix::parse(world::PREFIX).unwrap()
}

fn settings(secrets: Option<Arc<Keys>>) -> AgentSettings {
    AgentSettings {
        nqn_prefix: prefix(),
        path_policy: PathPolicy::Any,
        attach_deadline: Duration::from_millis(3_500),
        detach_deadline: Duration::from_secs(2),
        heartbeat_interval: Duration::from_millis(500),
        silence_deadline: Duration::from_millis(2_000),
        secrets,
    }
}

/// Runs a controller until it is killed.
///
/// # Errors
/// If it ends by itself.
pub async fn controller(universe: Universe, nic: Nic, disk: PathBuf) -> Ended {
    let movers = universe.lock().kubevirt.begun.then(|| kubevirt::looks(universe.clone()));
    let (now, target, key) = {
        let mut world = universe.lock();
        world.note("controller starts");
        (world.now, world.probed.target(), world.probed.key()?)
    };
    let (store, entries) = MemoryStore::open(&universe);
    let records = read_records(entries)?;
    // As the program does it.
    let term = store.take_term((EPOCH_MS + now).max(records.highest_term() + 1)).await?;
    let stored = Stored { store: Arc::new(store), records, term, cluster: None };
    let portals = (0..PORTALS).map(|at| world::portal(at).parse()).collect::<Result<_, _>>()?;
    let parts = Parts {
        opening: Box::pin(async { Ok(Some(stored)) }),
        leadership: Leadership::alone(),
        rds: Arc::new(rds::client(universe, &disk, target.acl)?),
        // As the command line makes it.
        rds_deadline: rds::TIMEOUT * 20 + rds::SETTLE,
        serving: Serving { nqn_prefix: prefix(), portals },
        agents: settings(key),
        core: config(target),
        driver_name: "cleat.io".into(),
        csi: Box::pin(nic.listen(CSI_PORT)),
        agents_at: Box::pin(nic.listen(AGENTS_PORT)),
        operators_at: Box::pin(nic.listen(OPERATORS_PORT)),
        clients: Clients::Anybody,
        movers,
        certificates: Vec::new(),
    };
    app::serve(parts, Clock::at(UnixMillis(EPOCH_MS + now)), Context::default()).await?;
    Ok(())
}

/// Runs a node's agent until it is killed.
///
/// # Errors
/// If it ends by itself.
pub async fn agent(universe: Universe, node: NodeIx, nic: Nic, disk: PathBuf) -> Ended {
    let (uevents, events) = Uevents::scripted();
    let boot = {
        let mut world = universe.lock();
        world.note(format_args!("agent of {} starts", NODES[node]));
        world.nodes[node].events = Some(events);
        world.nodes[node].kernel.boot
    };
    let identity = ConnectIdentity {
        host_nqn: HostNqn::parse(&world::host_nqn(node))?,
        host_id: HostId::parse(&world::host_id(node))?,
        boot_id: uuid::Uuid::from_u128(u128::from(boot) + 1).to_string(),
        prefix: NqnPrefix::parse(world::PREFIX)?,
        connect: ConnectOptions::default(),
    };
    let node_is = describe(node, &identity)?;
    let times = Times {
        stragglers: Duration::from_millis(300),
        sweep: Duration::from_secs(1),
        judge: Duration::from_secs(5),
        ..Times::default()
    };
    let shared = VolumeContext {
        host: Arc::new(Machine::new(universe, node)),
        ledger: Ledger::open_with(&disk, Workers::in_place(Duration::from_millis(2)))?,
        board: Board::default(),
        identity,
        times,
        uevents: Some(uevents),
        observations: Default::default(),
        disconnects: Default::default(),
        portals: Default::default(),
        queue: Default::default(),
    };
    shared.disconnects.events_arrive();
    let context = Context::default();
    let outbox = Arc::new(Outbox::default());
    let (link, linked) = watch::channel(Link::Down);
    let fleet = Fleet::new(Arc::new(shared), outbox.clone(), linked);
    fleet.load();
    fleet.sweep().await?;
    let session = Session {
        controllers: Box::new(Dialler::through(nic, controller_endpoint(), CONTROLLER, AGENTS_PORT)),
        token: None,
        node_is,
        node: Arc::new(fleet.clone()),
        outbox,
        link,
        ready: context.readiness.flag("session with the controller"),
    };
    let watching = tokio::spawn(Watch::new(fleet).run(context.stop.clone()));
    session.run(context.stop).await;
    watching.await?;
    Ok(())
}

fn describe(
    node: NodeIx,
    identity: &ConnectIdentity,
) -> Result<NodeDescription, Box<dyn std::error::Error + Send + Sync>> {
    Ok(NodeDescription {
        node_id: NodeId::parse(NODES[node])?,
        host_nqn: identity.host_nqn.clone(),
        host_id: identity.host_id,
        storage_addresses: vec![format!("10.0.1.{}", node + 1).parse()?],
        boot_id: identity.boot_id.clone(),
        kernel_release: "6.18".into(),
        fabrics: "simulated",
        native_multipath: true,
        nqn_prefix: identity.prefix.clone(),
        in_band_auth: false,
        reservations: false,
        agent_version: "simulated".into(),
        max_volumes: 0,
    })
}
