//! The world: one or two leaders that run the shipped core, nodes, a target, and what is on its way between them.
//!
//! In come [`Action`](crate::kinds::Action)s; out goes the next world, or the invariant that it breaks. Nothing here
//! asks the core for its opinion.
//!
//! What the shell is taken to keep (each a rule of the design, and so an assumption of every result):
//! - effects of a step in their order, or of each volume in their order where records become durable in any; a crash may
//!   come before any of them;
//! - one store, and only the newest leader writes to it: the older one's next commit fails, and it ends;
//! - a leader whose claim is over tells callers nothing and asks nothing of the RDS; what it had asked has been done,
//!   or never will be, when the next one begins;
//! - requests to the RDS about one volume go one at a time; one that was not answered in time has been done, or never
//!   will be, when that is told. Where requests land late, that is so a quantum later; and until then nothing is
//!   answered as done that it could undo.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use cleat_core::{
    Access, Config, Core, Effect, Epoch, MinFence, OperationId, RdsRequest, Remembered, RequestId,
    UnixMillis, VolumeId, VolumeRecord, VolumeSpec,
};

use crate::check::Violation;
use crate::cluster::Cluster;
use crate::export::{Export, as_probed};
use crate::host::Host;
use crate::names::{N, NODES, V, VOLUMES, volume_id};
use crate::records::attachment_of;
use crate::target::Abilities;
use crate::tickets::{HeldTicket, KINDS_OF_TICKETS};

/// One unit of the abstract clock; every bound of the core is a small number of them.
pub const QUANTUM_MS: u64 = 1_000;
/// What a live migration may take.
pub const MIGRATION_TIMEOUT_MS: u64 = 2 * QUANTUM_MS;
/// Where the clock begins: higher than any other number in a state.
pub const EPOCH_MS: u64 = 1_000_000_000;

/// How much may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Budget {
    /// What callers may ask for.
    pub requests: u8,
    /// What may go wrong.
    pub faults: u8,
    /// How often the clock may go on.
    pub ticks: u8,
}

/// What real worlds do, and what a world is spared that is about something else: each costs states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dangers {
    /// The RDS's lists lack a volume for a while, and every request about it is answered "not found"; then it is there
    /// again, with the hosts that it had.
    pub lists_lack: bool,
    /// The end of a grant takes the node's registration off before its controllers are deleted, which may take long.
    pub unregisters_first: bool,
    /// A person says of a node that lives, and goes on writing, that it is gone.
    pub wrong_words: bool,
    /// Volumes are deleted, and a DELETE that is lost may land late.
    pub deletes: bool,
    /// A new leader's clock is not where the old one's was.
    pub clocks_jump: bool,
    /// A request to the RDS that was not answered is carried out some time later, also after its leader has died.
    pub requests_land_late: bool,
    /// A record takes its time to become durable, and those of different volumes become so in any order.
    pub records_in_any_order: bool,
    /// Records are lost before a start, all of them or one volume's. VolumeAttachments and what nodes do stay.
    pub records_lost: bool,
    /// Records are set back before a start to what somebody has copied once.
    pub records_older: bool,
    /// VolumeAttachments go without an Unpublish.
    pub attachments_vanish: bool,
    /// Of a VolumeAttachment nobody can say any more which volume it is about: its PersistentVolume has gone.
    pub names_lost: bool,
    /// Persons mark nodes as out of service.
    pub marks: bool,
    /// KubeVirt reports migrations, whatever VMs do.
    pub kubevirt_errs: bool,
    /// Holders of tickets want volumes, renew them, or fall silent.
    pub tickets: bool,
    /// Nothing goes wrong but what is said here.
    pub nothing_else: bool,
}

/// What a world is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Its name in what is printed.
    pub name: &'static str,
    /// The volumes, by their access.
    pub access: Vec<Access>,
    /// How many nodes take part.
    pub nodes: usize,
    /// What the target does; the core is told the same.
    pub truth: Abilities,
    /// How many portals it has.
    pub portals: usize,
    /// The weakest fence that suffices for its volumes.
    pub min_fence: MinFence,
    /// How many volumes a node may have, by its own word.
    pub max_volumes: Option<NonZeroU32>,
    /// People connect volumes by hand.
    pub strays: bool,
    /// How much may happen.
    pub budget: Budget,
    /// Persons fence nodes and declare them gone.
    pub persons: bool,
    /// What happens besides.
    pub dangers: Dangers,
    /// Time passes by parts of a quantum, too, and callers take a volume off all nodes at once. For walks alone: there is
    /// no end of that.
    pub uneven: bool,
    /// An agent's Hello and inventory are heard at once. Fewer interleavings.
    pub atomic_hello: bool,
    /// Only this invariant of the design (1 to 5) is looked at, to see that it can fail; all without it.
    pub only: Option<u64>,
}

impl Setup {
    /// The core's settings: the bounds in quanta.
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            detach_grace_ms: 3 * QUANTUM_MS,
            request_limit_ms: 4 * QUANTUM_MS,
            drain_bound_ms: 2 * QUANTUM_MS,
            retry_ms: QUANTUM_MS,
            fence_after_ms: QUANTUM_MS,
            fence_heard_after_ms: QUANTUM_MS,
            interrupt_grace_ms: QUANTUM_MS,
            target: as_probed(self.truth),
        }
    }

    /// A volume as callers describe it.
    #[must_use]
    pub fn spec(&self, v: V) -> VolumeSpec {
        VolumeSpec {
            id: volume_id(v),
            access: self.access[v],
            subsystem_nqn: None,
            portals: Vec::new(),
            size_bytes: 1 << 30,
            min_fence: self.min_fence,
            migration_timeout_ms: MIGRATION_TIMEOUT_MS,
            require_migration: false,
        }
    }
}

/// A request to the RDS that a leader has not been answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The answer carries it.
    pub operation: OperationId,
    /// What.
    pub request: RdsRequest,
    /// It was carried out already (the leader that asked has lost its claim since).
    pub done: bool,
}

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// The volume on a node.
    Publish,
    /// The volume off a node, or all.
    Unpublish,
    /// A node cut off from a volume, now.
    Fence,
    /// A node taken for gone.
    Gone,
    /// The volume deleted.
    Delete,
}

/// A request that is not answered: the volume, the node (`None`: all), and what is asked for.
pub type Open = (V, Option<N>, Ask);

/// A running controller.
#[derive(Debug, Clone)]
pub struct Leader {
    /// Which process it is; the world's own number, so that a term that is used twice does not confuse it.
    pub process: u64,
    /// What ships.
    pub core: Core,
    /// Requests to the RDS, in order.
    pub asked: Vec<Asked>,
    /// Effects that wait for a record to become durable, in order: of each volume that occurs, its record comes first.
    pub outbox: Vec<Effect>,
    /// How much its clock is ahead of the world's; in ms.
    pub ahead: i64,
    /// It dies when it has carried out so many more effects.
    pub dies_after: Option<u8>,
}

impl Leader {
    pub(crate) fn new(process: u64, core: Core, ahead: i64) -> Self {
        Self { process, core, asked: Vec::new(), outbox: Vec::new(), ahead, dies_after: None }
    }

    /// Whether the node has the volume, as far as this one knows.
    pub(crate) fn has(&self, v: V, n: N) -> bool {
        self.core.volumes().get(&volume_id(v)).is_some_and(|record| attachment_of(record, n).is_some())
    }
}

/// What callers were told and what was proven, by volume and node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    /// Told that it may use the volume, under this grant. Nobody writes before; and a device that was made under a
    /// later grant is nobody's until that one is told.
    pub handed_out: [[Option<Epoch>; NODES]; VOLUMES],
    /// Told that it cannot write, and not granted anew since.
    pub released: [[bool; NODES]; VOLUMES],
    /// Declared gone: evidence that rests on "and stays so".
    pub gone: [bool; NODES],
    /// A person has said so of a node that lived.
    pub wrongly_gone: [bool; NODES],
    /// A person has said so, heard or not: nobody connects anything by hand there.
    pub said_gone: [bool; NODES],
    /// The highest grant that was proven to be over.
    pub over: [[Option<Epoch>; NODES]; VOLUMES],
    /// The last two grants, oldest first.
    pub granted: [[Vec<Epoch>; NODES]; VOLUMES],
    /// Somebody has connected it there by hand, so that it is nobody's fault that it can write: until it cannot any
    /// more, with all that it wrote, or until it is handed out there.
    pub by_hand: [[bool; NODES]; VOLUMES],
    /// Somebody has connected it there by hand, and the newest leader has not heard of that: it can do nothing about it.
    /// So many older messages of the node come first.
    pub unheard_stray: [[Option<usize>; NODES]; VOLUMES],
    /// Somebody has asked since for it to be off, in whatever way.
    pub asked_off: [[bool; NODES]; VOLUMES],
    /// It was granted once, so that what its owner demands of a fence is known.
    pub specified: [bool; VOLUMES],
}

/// One state of the world.
#[derive(Debug, Clone)]
pub struct World {
    /// What it is made of.
    pub setup: Arc<Setup>,
    /// The clock.
    pub now: u64,
    /// What may still happen.
    pub budget: Budget,
    /// Newest first; the second, if any, does not know yet that it is one no more.
    pub leaders: Vec<Arc<Leader>>,
    /// What is durable.
    pub stored: Arc<BTreeMap<VolumeId, VolumeRecord>>,
    /// The nodes.
    pub hosts: [Arc<Host>; NODES],
    /// The target's volumes.
    pub exports: Arc<[Export; VOLUMES]>,
    /// Requests of callers to the newest leader that are not answered: volume, node, and what is asked for.
    pub open: Arc<BTreeMap<RequestId, Open>>,
    /// What callers were told.
    pub told: Arc<Told>,
    /// What the cluster has beside the records.
    pub cluster: Arc<Cluster>,
    /// What holders of tickets wish for, and were said.
    pub tickets: Arc<[[Option<HeldTicket>; KINDS_OF_TICKETS.len()]; VOLUMES]>,
    /// Which volume each epoch was granted for. History: not a part of the state.
    pub epochs: Arc<BTreeMap<Epoch, V>>,
    /// The epochs of which something is durable, or was. History: not a part of the state.
    pub durable: Arc<BTreeSet<Epoch>>,
    /// Kinds of answers and proofs that were seen. History: not a part of the state.
    pub seen: Arc<BTreeMap<&'static str, u32>>,
    /// What happened, in words, where somebody wants to read it. History: not a part of the state.
    pub told_in_words: Option<Vec<String>>,
    /// The invariant that was broken on the way here.
    pub broken: Option<Violation>,
    numbers: u64,
}

impl World {
    /// The beginning: every agent is connected and has told what it holds, nothing is granted.
    #[must_use]
    pub fn new(setup: &Arc<Setup>) -> Self {
        let nothing = Remembered { lists_first: setup.in_cluster(), ..Remembered::default() };
        let (core, _) = Core::rebuild(setup.config(), 1, nothing, UnixMillis(EPOCH_MS));
        let leader = Leader::new(1, core, 0);
        let mut world = Self {
            setup: Arc::clone(setup),
            now: EPOCH_MS,
            budget: setup.budget,
            leaders: vec![Arc::new(leader)],
            stored: Arc::default(),
            hosts: Default::default(),
            exports: Arc::default(),
            open: Arc::default(),
            told: Arc::default(),
            cluster: Arc::default(),
            tickets: Arc::default(),
            epochs: Arc::default(),
            durable: Arc::default(),
            seen: Arc::default(),
            told_in_words: None,
            broken: None,
            numbers: 0,
        };
        for n in 0..setup.nodes {
            world.connect(n, 0);
            world.controller_hears(n);
        }
        if setup.in_cluster() {
            world.begins_in_a_cluster();
        }
        world
    }

    /// A number that was never used before.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) fn host(&mut self, n: N) -> &mut Host {
        Arc::make_mut(&mut self.hosts[n])
    }

    pub(crate) fn export(&mut self, v: V) -> &mut Export {
        &mut Arc::make_mut(&mut self.exports)[v]
    }

    pub(crate) fn told(&mut self) -> &mut Told {
        Arc::make_mut(&mut self.told)
    }

    pub(crate) fn tickets_mut(&mut self) -> &mut [[Option<HeldTicket>; KINDS_OF_TICKETS.len()]; VOLUMES] {
        Arc::make_mut(&mut self.tickets)
    }

    pub(crate) fn cluster(&mut self) -> &mut Cluster {
        Arc::make_mut(&mut self.cluster)
    }

    pub(crate) fn saw(&mut self, kind: &'static str) {
        *Arc::make_mut(&mut self.seen).entry(kind).or_default() += 1;
    }

    pub(crate) fn breaks(&mut self, violation: Violation) {
        let number = violation.invariant().strip_prefix("invariant ").and_then(|n| n.parse().ok());
        if self.setup.only.is_none() || self.setup.only == number {
            self.broken.get_or_insert(violation);
        }
    }

    /// What a leader's clock says.
    #[must_use]
    pub fn now_of(&self, which: usize) -> UnixMillis {
        UnixMillis(self.now.saturating_add_signed(self.leaders[which].ahead))
    }

    /// Which leader is this process, if it is still there.
    #[must_use]
    pub fn leader_of(&self, process: u64) -> Option<usize> {
        self.leaders.iter().position(|l| l.process == process)
    }
}
