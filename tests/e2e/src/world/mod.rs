//! A world to test Cleat in: one RDS machine, some node machines, the controller on the host's side of the run's
//! network, and typed clients for all of them.
//!
//! ```no_run
//! use std::time::Duration;
//! use cleat_e2e::world::{Access, World, WorldOptions, wait_for, Look};
//!
//! fn main() -> anyhow::Result<()> {
//!     // First thing in main, before any thread: see cleat_rig::Namespace::enter.
//!     let run = cleat_rig::Namespace::enter("example")?;
//!     let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
//!     runtime.block_on(async {
//!         let world = World::boot(&run, WorldOptions::from_env()?.nodes(2)).await?;
//!         let volume = world.create_volume("pvc-1", Access::RwxBlock, 1 << 30).await?.value;
//!         let attached = world.attach(&volume, world.a()).await?;       // Publish, Stage, NodePublish
//!         let mut writer = world.a().write(&attached, 0, Some(1)).await?; // region 0, from number 1
//!         world.a().machine().cut_path(cleat_rig::Network::Storage1)?;  // the rig's own calls block briefly
//!         wait_for("Degraded", Duration::from_secs(30), async || {
//!             let seen = world.controller.volume(&volume.id).await?;
//!             Ok(Look::holds(seen.attachments.len() == 2, format!("{seen:?}")))
//!         })
//!         .await?;
//!         let stopped = writer.stop().await?;
//!         world.detach(&attached, world.a()).await?;
//!         let report = world.verify(&volume, &[stopped.facts]).await?;  // read on the RDS machine
//!         assert!(report.is_clean());
//!         anyhow::Ok(())
//!     })
//! }
//! ```
//!
//! In: a run of the rig and [`WorldOptions`]. Out: a [`World`] in which everything has answered once. What always
//! holds: every wait has a deadline and says what was seen last; state folders outlive a restart of their program;
//! everything ends with the world.

mod by_hand;
mod certificates;
mod cluster;
mod controller;
mod csi;
mod fencing;
mod metrics;
mod node;
mod options;
mod raw;
mod rds;
mod rds_orders;
mod target_view;
mod wait;
mod watch;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_rig::{Initramfs, KernelImage, Machine, MachineSpec, Namespace, Network, program};
use futures_util::future::try_join_all;

use crate::sequence::{Name, Report, RunFacts};

pub use by_hand::ByHand;
pub use certificates::{Certificates, Pair};
pub use cluster::{ApiServer, VMS};
pub use controller::{AGENT_PORT, Controller};
pub use csi::{Access, AttachTimes, Attached, DetachTimes, PublishContext, Timed, Volume};
pub use metrics::Metrics;
pub use node::{AgentStart, Node};
pub use options::WorldOptions;
pub use raw::{Connect, RawHost, RawVolume};
pub use rds::Rds;
pub use rds_orders::Burden;
pub use target_view::{KernelVersion, Kernels, Rung, TargetView};
pub use wait::{Look, NotInTime, wait_for};
pub use watch::{Heard, Watch};
pub use writer::{Seen, Stopped, Writer, gap};

/// Every subsystem of ours begins so; nothing else is ever touched by an agent.
pub const NQN_PREFIX: &str = "nqn.2026-01.io.cleat:";
/// The RDS machine's number: the last byte of its addresses.
pub const RDS_NUMBER: u8 = 1;
/// The number of node-a; node-b and so on follow.
pub const FIRST_NODE_NUMBER: u8 = 11;
/// A part that was started answers within this time, on a busy emulated machine too.
pub const START: Duration = Duration::from_secs(60);

/// Everything that a test needs, up and connected.
#[derive(Debug)]
pub struct World {
    /// The RDS.
    pub rds: Rds,
    /// The controller.
    pub controller: Controller,
    nodes: Vec<Node>,
    kernels: Kernels,
    folder: PathBuf,
    collected: AtomicU32,
    cluster: Option<ApiServer>,
}

/// Runs something of the rig, which blocks, beside the async world.
///
/// # Errors
/// Its own, and that it panicked.
pub async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> cleat_rig::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    Ok(tokio::task::spawn_blocking(job).await.context("a call of the rig panicked")??)
}

impl World {
    /// Boots the machines, starts every part and waits until all agents have a session.
    ///
    /// # Errors
    /// With the part that did not come up and what it said last. The logs are in the run's folder.
    pub async fn boot(run: &Namespace, options: WorldOptions) -> anyhow::Result<Self> {
        let world = Self::boot_machines(run, &options).await?;
        world.start().await.map_err(|error| {
            let (folder, missing) = world.collect_logs_now("start");
            error.context(format!("logs are in {} ({missing} missing)", folder.display()))
        })?;
        Ok(world)
    }

    /// Boots the machines and starts nothing: for tests of how parts find each other. Then call
    /// [`Rds::start`], [`Controller::start`] and [`Node::start_agent`] in any order.
    ///
    /// # Errors
    /// If a program is not built, a kernel is not there, or a machine does not come up.
    pub async fn boot_machines(run: &Namespace, options: &WorldOptions) -> anyhow::Result<Self> {
        let folder = run.run_dir().path().join(format!("world-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let host = Network::Management.host_address().to_string();
        let rds_address = Network::Management.address(RDS_NUMBER).to_string();
        let names = (0..options.nodes).map(node_name).collect::<anyhow::Result<Vec<_>>>()?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let certificates = Certificates::make(&folder, &host, &rds_address, &names)?;
        let cluster = if options.in_cluster { Some(ApiServer::start().await?) } else { None };
        let sockets = run.run_dir().path();
        let controller = Controller::new(sockets, &folder, certificates.clone(), options, cluster.as_ref())?;
        let kernels = Kernels::of(options)?;

        // The namespace's own threads boot them side by side; meanwhile this thread has nothing else to do.
        let specs = tokio::task::block_in_place(|| machine_specs(options))?;
        let booted = tokio::task::block_in_place(|| run.boot_all(&specs))?;
        let mut machines = booted.into_iter().map(Arc::new);
        let rds = Rds::new(machines.next().context("no RDS machine")?, &certificates, options);
        let nodes = machines
            .zip(names.iter().zip(&certificates.nodes))
            .map(|(machine, (name, pair))| {
                Node::new((*name).to_owned(), machine, &certificates, pair.clone(), options)
            })
            .collect::<anyhow::Result<Vec<Node>>>()?;
        Ok(Self { rds, controller, nodes, kernels, folder, collected: AtomicU32::new(0), cluster })
    }

    async fn start(&self) -> anyhow::Result<()> {
        self.rds.start().await?;
        self.controller.start().await?;
        try_join_all(self.nodes.iter().map(|node| node.start_agent(AgentStart::default()))).await?;
        for node in &self.nodes {
            self.wait_session(node, START).await?;
        }
        Ok(())
    }

    /// Starts RDS and controller anew with another view of the target. There should be no volume.
    ///
    /// # Errors
    /// If either does not come up, or an agent does not find the controller again.
    pub async fn view_target(&self, view: &TargetView) -> anyhow::Result<()> {
        self.controller.stop_if_running().await?;
        self.rds.view(view).await?;
        self.controller.view(view)?;
        self.controller.start().await?;
        for node in &self.nodes {
            if !node.agent_runs().await {
                node.start_agent(AgentStart::default()).await?;
            }
        }
        for node in &self.nodes {
            self.wait_session(node, START).await?;
        }
        Ok(())
    }

    /// node-a.
    #[must_use]
    pub fn a(&self) -> &Node {
        self.node(0)
    }

    /// node-b.
    #[must_use]
    pub fn b(&self) -> &Node {
        self.node(1)
    }

    /// node-c.
    #[must_use]
    pub fn c(&self) -> &Node {
        self.node(2)
    }

    /// A node by its place.
    ///
    /// # Panics
    /// If the world was booted with fewer.
    #[must_use]
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The kernels of its machines.
    #[must_use]
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The API server of its cluster, if it has one.
    #[must_use]
    pub fn cluster(&self) -> Option<&ApiServer> {
        self.cluster.as_ref()
    }

    /// The folder of this world on the host: certificates, the controller's state and log.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Waits until the controller has a session with the node's agent.
    ///
    /// # Errors
    /// If it has none in time; the message names the session's state.
    pub async fn wait_session(&self, node: &Node, limit: Duration) -> anyhow::Result<()> {
        let what = format!("a session of the controller with {}", node.name());
        let name = node.name().to_owned();
        wait_for(what, limit, async || {
            let nodes = self.controller.nodes().await?;
            let seen = nodes.iter().find(|info| info.node_id == name);
            let state = seen.map_or("unknown to the controller", |info| info.session.as_str());
            Ok(Look::holds(state == "connected", state))
        })
        .await
        .map_err(Into::into)
    }

    /// Reads all regions of a volume's backing file on the RDS machine and judges them against what the runs said.
    /// A verdict that is not clean is no error here: see [`Report::is_clean`].
    ///
    /// # Errors
    /// If the file cannot be read or the runs make no sense.
    pub async fn verify(&self, volume: &Volume, runs: &[RunFacts]) -> anyhow::Result<Report> {
        self.rds.verify(volume, runs, crate::writer::args::DEFAULT_REGION_BYTES).await
    }

    /// Copies every console, kernel log and program log into a folder and says where that is.
    pub async fn collect_logs(&self, why: &str) -> PathBuf {
        tokio::task::block_in_place(|| self.collect_logs_now(why)).0
    }

    /// Collects them, and says so in words.
    pub async fn logs_are_in(&self, why: &str) -> String {
        format!("logs are in {}", self.collect_logs(why).await.display())
    }

    fn collect_logs_now(&self, why: &str) -> (PathBuf, usize) {
        let number = self.collected.fetch_add(1, Ordering::Relaxed);
        let plain: String =
            why.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(60).collect();
        let folder = self.folder.join(format!("logs-{number}-{plain}"));
        let mut missing = 0;
        if std::fs::create_dir_all(&folder).is_err() {
            return (folder, usize::MAX);
        }
        let mut keep =
            |machine: &Machine, files: &[&str]| missing += machine.collect_logs(&folder, files).len();
        keep(self.rds.machine(), &[rds::LOG]);
        for node in &self.nodes {
            keep(node.machine(), &[node::LOG]);
        }
        if std::fs::copy(self.controller.log_file(), folder.join("controller.log")).is_err() {
            missing += 1;
        }
        for log in self.cluster.iter().flat_map(ApiServer::logs) {
            let name = log.file_name().unwrap_or_default();
            missing += usize::from(std::fs::copy(&log, folder.join(name)).is_err());
        }
        (folder, missing)
    }

    /// Leaves machines and controller running after this program has ended with 0; the name by which `hack/rig`
    /// finds them.
    ///
    /// # Errors
    /// If a machine is still in use by something else of this program, or there is an API server, which ends with it.
    pub fn keep(self, run: &Namespace) -> anyhow::Result<String> {
        ensure!(
            self.cluster.is_none(),
            "cannot leave a world with an API server: that ends with this program"
        );
        let mut machines = vec![self.rds.into_machine()?];
        for node in self.nodes {
            machines.push(node.into_machine()?);
        }
        let name = run.keep(&machines)?;
        self.controller.release();
        // Their handles would take the taps away.
        machines.into_iter().for_each(std::mem::forget);
        Ok(name)
    }
}

/// The volume's name as records carry it.
pub(crate) fn record_name(text: &str) -> anyhow::Result<Name> {
    Ok(text.parse()?)
}

fn node_name(index: usize) -> anyhow::Result<String> {
    let letter = u8::try_from(index).ok().and_then(|i| b'a'.checked_add(i)).filter(u8::is_ascii_lowercase);
    Ok(format!("node-{}", char::from(letter.context("more nodes than letters")?)))
}

fn machine_specs(options: &WorldOptions) -> anyhow::Result<Vec<MachineSpec>> {
    let kernel = KernelImage::find(&options.kernel)?;
    let rds_kernel = KernelImage::find(options.rds_kernel.as_ref().unwrap_or(&options.kernel))?;
    let mut for_rds = Initramfs::for_kernel(&rds_kernel);
    for name in ["rds-sim", "cleat-writer"].into_iter().chain(options.rds_programs.iter().map(String::as_str))
    {
        for_rds = for_rds.program(program(name)?);
    }
    let for_rds = for_rds.build()?;
    let mut for_nodes = Initramfs::for_kernel(&kernel).program(program("cleat-agent")?);
    for name in ["cleat-writer", "bench-guest", "use-guest"]
        .into_iter()
        .chain(options.node_programs.iter().map(String::as_str))
    {
        for_nodes = for_nodes.program(program(name)?);
    }
    let for_nodes = for_nodes.build()?;
    let mut specs = vec![
        MachineSpec::new("rds", RDS_NUMBER, &rds_kernel, &for_rds)
            .memory_mib(options.rds_memory_mib)
            .cpus(options.rds_cpus)
            .disk_mib(options.rds_disk_mib),
    ];
    for index in 0..options.nodes {
        let number = FIRST_NODE_NUMBER + u8::try_from(index).context("too many nodes")?;
        let mut spec = MachineSpec::new(node_name(index)?, number, &kernel, &for_nodes)
            .memory_mib(options.node_memory_mib)
            .cpus(options.node_cpus)
            .disk_mib(64);
        for word in &options.node_kernel_arguments {
            spec = spec.kernel_argument(word);
        }
        if let Some(image) = &options.node_image {
            spec = spec.image(image);
        }
        specs.push(spec);
    }
    Ok(specs)
}
