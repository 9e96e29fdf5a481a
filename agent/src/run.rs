//! The whole agent: from the command line to its end.
//!
//! Comes in: the arguments and the context of the process. Goes out: only what its parts do. Start: ledger,
//! identity, modules, a first reading of the kernel, and only then the socket and the session. Stop: connects
//! and disconnects nothing; operations under way have a moment to end.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cleat_host::fabrics::{self, Fabrics};
use cleat_host::identity::{HostIdentity, IdentitySource};
use cleat_host::modules;
use cleat_host::sysfs::{NativeMultipath, Sysfs};
use cleat_host::uevents::{Uevents, tells_connections};
use cleat_host::work;
use cleat_runtime::exit::Causes;
use cleat_runtime::grpc::Renewing;
use cleat_runtime::tls::renew;
use cleat_runtime::unix::UnixIncoming;
use cleat_runtime::{Context, Failure};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::args::{Args, Config};
use crate::csi::registration::Registering;
use crate::identity::{Held, Names};
use crate::ledger::Ledger;
use crate::link::Link;
use crate::session::find::ByName;
use crate::session::outbox::Outbox;
use crate::session::{NodeDescription, Session};
use crate::volume::board::Board;
use crate::volume::early_reset::DeadPaths;
use crate::volume::host::Host;
use crate::volume::linux::Linux;
use crate::volume::watch::Watch;
use crate::volume::{ConnectIdentity, Fleet, Times, VolumeContext};
use crate::{addresses, csi, metrics};

/// How long operations under way have to end when the agent stops.
const SETTLE: Duration = Duration::from_secs(10);
/// How long the first reading of the kernel may take.
const FIRST_LOOK: Duration = Duration::from_secs(30);
/// How long a kernel event that was asked for may take: a healthy one takes milliseconds.
const EVENT: Duration = Duration::from_secs(5);
/// How long the fabrics device may take to answer: it waits for a connect in the kernel, which an earlier
/// process may have left there.
const FABRICS_ANSWER: Duration = Duration::from_secs(120);

/// Runs the agent until it is asked to stop.
///
/// # Errors
/// [`Failure`] with the exit code, which shows whether the configuration or the machine is to blame.
pub async fn run(args: Args, context: Context) -> Result<(), Failure> {
    let config = args.into_config()?;
    metrics::begin();
    let sysfs = Sysfs::at(&config.roots.sysfs);
    let free = context.readiness.flag("state directory");
    let opened = Ledger::open_once_free(&config.state_dir, &config.roots.proc, &context.stop).await;
    let Some(ledger) = opened.map_err(Failure::failed)? else { return Ok(()) };
    free.set(true);
    let identity = host_identity(&config, &sysfs, &ledger).await?;
    let fabrics = open_fabrics(&config, &sysfs).await?;
    let addresses = storage_addresses(&config)?;
    let node_is = describe(&config, &identity, &sysfs, &fabrics, &addresses).await?;
    tracing::info!(
        node = %config.node_id, host_nqn = %identity.host_nqn, host_id = %identity.host_id, fabrics = fabrics.name(),
        boot = identity.boot_id, kernel = identity.kernel_release, addresses = ?addresses, "this node"
    );

    let outbox = Arc::new(Outbox::default());
    let (link, linked) = watch::channel(Link::Down);
    let shared =
        Arc::new(shared(&config, &identity, ledger, Linux::new(fabrics, &config.roots, &config.kubelet_dir)));
    prove_events(&shared, &config.roots.sysfs, &identity.kernel_release).await;
    let fleet = Fleet::new(shared, outbox.clone(), linked);
    let known = context.readiness.flag("kernel and ledger");
    let looked = async {
        fleet.load();
        fleet.sweep().await.map_err(Failure::failed)
    };
    tokio::time::timeout(FIRST_LOOK, looked)
        .await
        .map_err(|_| Failure::failed("the kernel's state and the ledger could not be read in time"))??;
    known.set(true);

    // The files are the same for all.
    if let Some(files) = config.controllers.first().and_then(Renewing::files) {
        tokio::spawn(renew::keep_fresh(Arc::new(files), context.stop.clone()));
    }
    let incoming = UnixIncoming::bind(&config.csi_socket).await.map_err(Failure::failed)?;
    let incoming = incoming.or_give_up(context.giving_up.clone());
    let registering = match &config.registration_dir {
        None => None,
        Some(dir) => {
            let registered = context.readiness.flag("registered with the kubelet");
            let bound = Registering::bind(dir, &config.driver_name, &config.csi_socket, registered).await;
            Some(bound.map_err(Failure::failed)?.or_give_up(context.giving_up.clone()))
        }
    };
    let session = Session {
        controllers: Box::new(ByName(config.controllers)),
        token: config.token,
        node_is,
        node: Arc::new(fleet.clone()),
        outbox,
        link,
        ready: context.readiness.flag("session with the controller"),
    };
    let (driver_name, node_id, max_volumes) = (config.driver_name, config.node_id, config.max_volumes);
    let dead_paths = config.early_path_reset.then(|| DeadPaths::new(fleet.clone()));
    let parts =
        Parts { fleet, incoming, registering, session, driver_name, node_id, max_volumes, dead_paths };
    parts.run(context.stop).await
}

/// The parts that run until the end.
struct Parts<H> {
    fleet: Fleet<H>,
    incoming: UnixIncoming,
    registering: Option<Registering>,
    session: Session<Fleet<H>>,
    driver_name: String,
    node_id: crate::name::NodeId,
    max_volumes: u32,
    /// `None` unless it was asked for.
    dead_paths: Option<DeadPaths<H>>,
}

impl<H: Host> Parts<H> {
    async fn run(self, stop: CancellationToken) -> Result<(), Failure> {
        let watch = Watch::new(self.fleet.clone());
        // Before the controller asks what there is.
        self.fleet.carry_over().await;
        let watching = tokio::spawn(watch.run(stop.clone()));
        let talking = tokio::spawn(self.session.run(stop.clone()));
        let looking = self.dead_paths.map(|dead_paths| tokio::spawn(dead_paths.run(stop.clone())));
        // Last, as the kubelet calls at once.
        let registering = self.registering.map(|registering| tokio::spawn(registering.serve(stop.clone())));
        let (fleet, driver_name, node_id) = (self.fleet.clone(), self.driver_name, self.node_id);
        let served =
            csi::serve(self.incoming, driver_name, node_id, self.max_volumes, fleet, stop.clone()).await;
        // Whatever ended it, the rest ends with it: half an agent is worse than one that is started again.
        stop.cancel();
        let (watched, talked) = tokio::join!(watching, talking);
        if let Some(looking) = looking {
            looking.await.map_err(Failure::failed)?;
        }
        if let Some(registering) = registering {
            registering.await.map_err(Failure::failed)?.map_err(Failure::failed)?;
        }
        self.fleet.settle(SETTLE).await;
        served.map_err(Failure::failed)?;
        watched.and(talked).map_err(Failure::failed)
    }
}

async fn host_identity(config: &Config, sysfs: &Sysfs, ledger: &Ledger) -> Result<HostIdentity, Failure> {
    let topology = sysfs.read(FIRST_LOOK).await.map_err(Failure::failed)?;
    let held = Held::look(&topology, ledger, &config.prefix).await;
    let source = IdentitySource::at(&config.nvme_dir, &config.roots.proc);
    let names = Names {
        source: &source,
        nvme_dir: &config.nvme_dir,
        state_dir: &config.state_dir,
        node: &config.node_id,
    };
    let identity = names.settle(&held).map_err(Failure::failed)?;
    if identity.uuid_differs {
        tracing::warn!(
            host_nqn = %identity.host_nqn, host_id = %identity.host_id,
            "the host NQN has another UUID than the host id; using both as they are"
        );
    }
    if let Err(clash) = identity.check_against(&topology) {
        // For that volume only: everything else that is attached has to be reported and detached all the
        // same.
        tracing::error!(error = %Causes(&clash), "attaches of the volume of this controller are refused");
    }
    if topology.multipath != NativeMultipath::On {
        tracing::warn!(
            multipath = ?topology.multipath,
            "native multipath is off: attaches of volumes with several portals are refused; boot with \
             nvme_core.multipath=Y"
        );
    }
    Ok(identity)
}

async fn open_fabrics(config: &Config, sysfs: &Sysfs) -> Result<Arc<dyn Fabrics>, Failure> {
    let device = config.roots.dev.join("nvme-fabrics");
    modules::ensure_nvme_tcp(sysfs, &device, Path::new("modprobe")).await.map_err(Failure::failed)?;
    fabrics::open(config.fabrics, &device, Path::new("nvme"), sysfs).await.map_err(Failure::failed)
}

fn storage_addresses(config: &Config) -> Result<Vec<IpAddr>, Failure> {
    if !config.storage_addresses.is_empty() {
        return Ok(config.storage_addresses.clone());
    }
    addresses::find(&config.roots.sysfs).map_err(Failure::config)
}

async fn describe(
    config: &Config,
    identity: &HostIdentity,
    sysfs: &Sysfs,
    fabrics: &Arc<dyn Fabrics>,
    addresses: &[IpAddr],
) -> Result<NodeDescription, Failure> {
    let topology = sysfs.read(FIRST_LOOK).await.map_err(Failure::failed)?;
    let asked = Arc::clone(fabrics);
    let in_band_auth =
        work::once("ask for in-band authentication", FABRICS_ANSWER, move || asked.authenticates())
            .await
            .map_err(Failure::failed)?;
    Ok(NodeDescription {
        node_id: config.node_id.clone(),
        host_nqn: identity.host_nqn.clone(),
        host_id: identity.host_id,
        storage_addresses: addresses.to_vec(),
        boot_id: identity.boot_id.clone(),
        kernel_release: identity.kernel_release.clone(),
        fabrics: fabrics.name(),
        native_multipath: topology.multipath == NativeMultipath::On,
        nqn_prefix: config.prefix.clone(),
        in_band_auth,
        // Linux has the generic ioctls for NVMe since 4.5; what a target can do shows at the attach.
        reservations: true,
        agent_version: cleat_runtime::build_info(),
        max_volumes: config.max_volumes,
    })
}

fn shared(config: &Config, identity: &HostIdentity, ledger: Ledger, host: Linux) -> VolumeContext<Linux> {
    VolumeContext {
        host: Arc::new(host),
        ledger,
        board: Board::default(),
        identity: ConnectIdentity {
            host_nqn: identity.host_nqn.clone(),
            host_id: identity.host_id,
            boot_id: identity.boot_id.clone(),
            prefix: config.prefix.clone(),
            connect: config.connect,
        },
        times: Times {
            sweep: config.sweep_interval,
            stage: config.stage_wait,
            stay: config.lost_device_stay,
            ..Times::default()
        },
        uevents: listen(),
        observations: Default::default(),
        disconnects: Default::default(),
        portals: Default::default(),
        queue: Default::default(),
    }
}

/// Checks whether the kernel's events can be relied on. Where they cannot, detaches wait for the drain bound.
async fn prove_events<H>(shared: &VolumeContext<H>, sysfs: &Path, kernel_release: &str) {
    let Some(uevents) = &shared.uevents else { return };
    match uevents.prove(sysfs, EVENT).await {
        Ok(()) if tells_connections(kernel_release) => shared.disconnects.events_arrive(),
        Ok(()) => tracing::warn!(
            kernel = kernel_release,
            "this kernel may not say when a controller connects (5.18 and newer do): until it does, every \
             connection counts as broken, and detaches wait for the drain bound"
        ),
        Err(error) => tracing::error!(
            error = %Causes(&error),
            "no proof that kernel events arrive: detaches of what was attached before wait for the drain bound"
        ),
    }
}

/// Listens to the kernel. Without events everything still works, by reading from time to time.
fn listen() -> Option<Uevents> {
    Uevents::start()
        .inspect_err(|error| {
            tracing::error!(error = %Causes(error), "no events from the kernel; reading its state only \
                 from time to time");
        })
        .ok()
}
