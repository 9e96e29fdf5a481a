//! The world: what is really there, whatever anybody thinks of it, and its time.
//!
//! Owns: the target, the nodes with their kernels, the controller's disk, what clients were told. Everything in the
//! simulation that is not a program under test or the network between them is in here, behind one lock that one
//! thread takes.
//!
//! Comes in: time ([`World::advance`]), and what programs do to kernels, RDS and disk. Goes out: what they see; the
//! trace; the first violation of an invariant.

pub mod kernel;
pub mod management;
pub mod probed;
pub mod rules;
pub mod target;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cleat_controller::csi::MIN_FENCE_KEY;
use cleat_core::MinFence;
use cleat_host::uevents::{Action, DeviceEvent, DeviceKind, HostEvent};
use cleat_ids::MIGRATION_TIMEOUT_KEY;
use tokio::sync::broadcast;

use crate::chance::Chance;
use crate::disk::Disk;
use crate::faults::Kind;
use crate::kubevirt::KubeVirt;
use kernel::Kernel;
use management::Management;
use probed::Probed;
use rules::Told;
use target::Target;

/// A node by its number.
pub type NodeIx = usize;
/// A volume by its number.
pub type VolumeIx = usize;

/// The nodes.
pub const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
/// How many volumes there are; those with an odd number are shared.
pub const VOLUMES: usize = 4;
/// How many portals the target has.
pub const PORTALS: usize = 2;
/// Size of every volume, in bytes.
pub const SIZE: u64 = 1 << 30;
/// What precedes a volume's id in its subsystem's NQN.
pub const PREFIX: &str = "nqn.2026-01.io.cleat:";
/// The wall clock when the simulation begins, in ms since 1970.
pub const EPOCH_MS: u64 = 1_700_000_000_000;

/// Something that is wrong on purpose, to see it caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// An agent says that a controller is deleted, and it is not.
    AgentLies,
    /// The target has a list of hosts and does not look at it.
    AclIgnored,
    /// The backing store holds writes longer than the drain bound says.
    HeldTooLong,
    /// The controller's disk forgets what it said to have written.
    DiskForgets,
    /// Taking an export away waits for nothing, and the RDS was probed to wait.
    DrainPretended,
    /// Taking an export away ends no session.
    CutPretended,
    /// Preempt-and-abort waits for nothing.
    AbortPretended,
    /// Hosts connect with any secret, and the RDS was probed to ask for one.
    SecretIgnored,
    /// Requests to the RDS come into force later than they were said to be able to.
    LandsTooLate,
    /// A target that restarts exports everything and lets everybody in, until it is told again.
    RestartForgets,
    /// Nodes are declared gone that only do not answer.
    WordFalse,
    /// Connections break and are back before the agent has looked, and the kernel does not say so.
    BreaksUnseen,
    /// A controller takes over a store whose last owner only stands still.
    LockIgnored,
}

impl Planted {
    /// All of them, with the names by which they are asked for.
    pub const ALL: [(&'static str, Self); 13] = [
        ("agent-lies", Self::AgentLies),
        ("acl-ignored", Self::AclIgnored),
        ("held-too-long", Self::HeldTooLong),
        ("disk-forgets", Self::DiskForgets),
        ("drain-pretended", Self::DrainPretended),
        ("cut-pretended", Self::CutPretended),
        ("abort-pretended", Self::AbortPretended),
        ("secret-ignored", Self::SecretIgnored),
        ("lands-too-late", Self::LandsTooLate),
        ("restart-forgets", Self::RestartForgets),
        ("word-false", Self::WordFalse),
        ("breaks-unseen", Self::BreaksUnseen),
        ("lock-ignored", Self::LockIgnored),
    ];
}

/// A node.
#[derive(Debug, Default)]
pub struct Node {
    /// Its kernel.
    pub kernel: Kernel,
    /// Whether it reaches the target, over each portal.
    pub links: [bool; PORTALS],
    /// The whole machine stands still.
    pub stands_still: bool,
    /// It was destroyed, and nothing has taken its place.
    pub gone: bool,
    /// Where its agent hears of events.
    pub events: Option<broadcast::Sender<HostEvent>>,
}

/// The world.
#[derive(Debug)]
pub struct World {
    /// The time since the beginning, in ms.
    pub now: u64,
    /// Since when nothing fails any more.
    pub healed_at: Option<u64>,
    /// The clients have put everything away.
    pub put_away: bool,
    /// Chance of the world's own.
    pub chance: Chance,
    /// The target.
    pub target: Target,
    /// The RDS's management.
    pub rds: Management,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The controller's disk.
    pub disk: Disk,
    /// What is wrong on purpose.
    pub planted: Option<Planted>,
    /// What the controller was told that the target can do.
    pub probed: Probed,
    /// The weakest fence that suffices for each volume.
    min_fences: Vec<MinFence>,
    /// Kernels take a controller away that the target refuses.
    pub gives_up_when_refused: bool,
    /// Kernels do not say that a connection is back.
    pub breaks_are_unheard: bool,
    /// The longest that the backing store may ever hold a write, in ms.
    pub longest_hold_ms: u64,
    /// The longest that it holds one while nothing is wrong with it, in ms.
    pub usual_hold_ms: u64,
    /// How long a migration may take, where CreateVolume was asked for that.
    pub migration_timeout_s: Option<u64>,
    /// What KubeVirt has.
    pub kubevirt: KubeVirt,
    /// Faults that a scene begins or ends.
    pub(crate) orders: Vec<(Kind, bool)>,
    told: Told,
    seen: BTreeMap<String, u64>,
    trace: Vec<String>,
    hash: u64,
    violation: Option<String>,
}

/// The world, as everybody holds it.
#[derive(Debug, Clone)]
pub struct Universe(Arc<Mutex<World>>);

impl Universe {
    /// A world of a seed.
    #[must_use]
    pub fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    /// The world. One thread runs everything, so nobody ever waits here.
    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The id of a volume.
#[must_use]
pub fn volume_id(volume: VolumeIx) -> String {
    format!("{}-{volume}", if is_shared(volume) { "rwx" } else { "rwo" })
}

/// The volume of an id.
#[must_use]
pub fn volume_of(id: &str) -> Option<VolumeIx> {
    let volume = id.rsplit_once('-')?.1.parse().ok()?;
    (volume_id(volume) == id).then_some(volume)
}

/// Whether two nodes may have a volume.
#[must_use]
pub fn is_shared(volume: VolumeIx) -> bool {
    volume % 2 == 1
}

/// The UUID of a volume's namespace.
#[must_use]
pub fn namespace_uuid(volume: VolumeIx) -> String {
    format!("00000000-0000-4000-8000-{:012x}", volume + 1)
}

/// The host id of a node.
#[must_use]
pub fn host_id(node: NodeIx) -> String {
    format!("11111111-1111-4111-8111-{:012x}", node + 1)
}

/// The host NQN of a node.
#[must_use]
pub fn host_nqn(node: NodeIx) -> String {
    format!("nqn.2014-08.org.nvmexpress:uuid:{}", host_id(node))
}

/// The address of a portal.
#[must_use]
pub fn portal(portal: usize) -> String {
    format!("10.0.{}.100:4420", portal + 1)
}

impl World {
    /// The world of a seed, with nothing wrong but what is planted.
    #[must_use]
    pub fn new(seed: u64, planted: Option<Planted>) -> Self {
        Self::with(seed, planted, None, VOLUMES)
    }

    /// A world for a scene: with a target that was probed to do this, and so many volumes.
    #[must_use]
    pub fn of_scene(seed: u64, probed: Probed, volumes: usize) -> Self {
        let mut world = Self::with(seed, None, Some(probed), volumes);
        world.min_fences.fill(MinFence::NodeGone);
        world
    }

    fn with(seed: u64, planted: Option<Planted>, probed: Option<Probed>, volumes: usize) -> Self {
        let mut chance = Chance::new(seed, "world");
        let by_chance = Probed::of(&mut chance, planted);
        let probed = probed.unwrap_or(by_chance);
        let abilities = probed.true_abilities(planted);
        // What ends with a fence by reservation has something on its way then, or nothing is seen of it.
        let usual_hold_ms = if planted == Some(Planted::AbortPretended) { 3_000 } else { 50 };
        let mut target = Target::new(volumes, probed.target().acl, abilities, usual_hold_ms);
        target.forgets = planted == Some(Planted::RestartForgets);
        // Somebody has to be there still when it comes.
        let late = planted == Some(Planted::LandsTooLate);
        let node = || Node { links: [true; PORTALS], ..Node::default() };
        Self {
            now: 0,
            healed_at: None,
            put_away: false,
            target,
            rds: Management::default(),
            nodes: NODES.iter().map(|_| node()).collect(),
            disk: Disk::default(),
            planted,
            probed,
            min_fences: (0..volumes).map(|_| probed.min_fence(&mut chance)).collect(),
            gives_up_when_refused: chance.percent(50) && !late,
            breaks_are_unheard: planted == Some(Planted::BreaksUnseen),
            longest_hold_ms: if planted == Some(Planted::HeldTooLong) { 12_000 } else { 3_000 },
            usual_hold_ms,
            migration_timeout_s: None,
            kubevirt: KubeVirt::default(),
            orders: Vec::new(),
            told: Told::default(),
            seen: BTreeMap::new(),
            trace: Vec::new(),
            hash: 0xcbf2_9ce4_8422_2325,
            violation: None,
            chance,
        }
    }

    /// The id of a volume.
    #[must_use]
    pub fn volume(&self, volume: VolumeIx) -> String {
        volume_id(volume)
    }

    /// What CreateVolume has said of a volume.
    #[must_use]
    pub fn context(&self, volume: VolumeIx) -> HashMap<String, String> {
        let least = self.min_fences[volume];
        let least = (MIN_FENCE_KEY.to_owned(), least.name().to_owned());
        let timeout = self.migration_timeout_s.map(|s| (MIGRATION_TIMEOUT_KEY.to_owned(), s.to_string()));
        [Some(least), timeout].into_iter().flatten().collect()
    }

    /// Lets everything in the world come up to `now`, and judges it.
    pub fn advance(&mut self, now: u64) {
        self.now = now;
        self.expire_sessions();
        self.land_requests();
        for volume in 0..self.target.luns.len() {
            for landed in self.target.land(volume, now) {
                self.count("writes landed");
                self.answer(volume, &landed);
            }
        }
        for node in 0..self.nodes.len() {
            self.run_kernel(node);
        }
        self.judge();
    }

    /// A node's machine is switched off and on: its kernel forgets everything, its agent was killed before.
    pub fn reboot(&mut self, node: NodeIx) {
        self.nodes[node].stands_still = false;
        let kernel = &mut self.nodes[node].kernel;
        let boot = kernel.boot + 1;
        *kernel = Kernel::default();
        kernel.boot = boot;
    }

    /// Opens a device and writes to it from now on; nothing if there is none.
    pub fn open(&mut self, node: NodeIx, volume: VolumeIx) {
        if let Some(device) = self.nodes[node].kernel.devices.get_mut(&volume) {
            device.open = true;
            self.note(format_args!("{} opens {}", NODES[node], volume_id(volume)));
        }
    }

    /// Stops writing and closes, once what is under way has been answered or failed.
    pub fn close(&mut self, node: NodeIx, volume: VolumeIx) {
        if let Some(device) = self.nodes[node].kernel.devices.get_mut(&volume)
            && device.open
        {
            device.open = false;
            self.note(format_args!("{} closes {}", NODES[node], volume_id(volume)));
        }
    }

    /// Tells a node's agent of an event.
    fn event(&mut self, node: NodeIx, instance: u32, action: Action, nvme_event: Option<&str>) {
        let event = DeviceEvent {
            action,
            kind: DeviceKind::NvmeController,
            name: format!("nvme{instance}"),
            dev: None,
            sequence: 1,
            nvme_event: nvme_event.map(str::to_owned),
        };
        if let Some(events) = &self.nodes[node].events {
            // An error means that nobody listens just now.
            let _ = events.send(HostEvent::Device(event));
        }
    }

    /// Takes a line into the trace.
    pub fn note(&mut self, line: impl fmt::Display) {
        let line = format!("{:>7} {line}", self.now);
        for byte in line.bytes() {
            // FNV-1a.
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.trace.push(line);
    }

    /// Counts something that has happened, so that a simulation which sees nothing can be told from one that finds
    /// nothing.
    pub fn count(&mut self, what: impl Into<String>) {
        *self.seen.entry(what.into()).or_default() += 1;
    }

    /// Something that must never be is.
    pub fn violated(&mut self, invariant: &str, what: impl fmt::Display) {
        if self.violation.is_none() {
            let text = format!("invariant {invariant}: {what}");
            self.note(format_args!("VIOLATION {text}"));
            self.violation = Some(text);
        }
    }

    /// The first violation.
    #[must_use]
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// The trace so far, its hash, and what was counted.
    #[must_use]
    pub fn record(&self) -> (&[String], u64, &BTreeMap<String, u64>) {
        (&self.trace, self.hash, &self.seen)
    }
}
