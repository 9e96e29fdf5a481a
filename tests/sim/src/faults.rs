//! What goes wrong, and when: a plan made of the seed before anything runs.
//!
//! Comes in: chance, and the time. Goes out: changes of the world and of the simulated network. Each fault ends by
//! itself; at [`FAULTS_END`] all do.

use turmoil::Sim;

use crate::chance::Chance;
use crate::programs::CONTROLLER;
use crate::world::{NODES, NodeIx, PORTALS, Universe};

/// When the last fault ends, in ms.
pub const FAULTS_END: u64 = 25_000;
/// From when on there are faults, in ms.
const FAULTS_BEGIN: u64 = 1_500;

/// One kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Messages between controller and agent are lost.
    Cut(NodeIx),
    /// They are held, and all arrive at the end.
    Hold(NodeIx),
    /// The node does not reach the target over these portals.
    Unlink(NodeIx, [bool; PORTALS]),
    /// Both: the node is alone.
    Isolate(NodeIx),
    /// The controller is killed, and started again at the end.
    KillController,
    /// An agent is.
    KillAgent(NodeIx),
    /// A node's machine is switched off, and on at the end.
    Reboot(NodeIx),
    /// The RDS's management is away.
    RdsAway,
    /// It is slow.
    RdsSlow,
    /// It loses answers.
    RdsLoses,
    /// The target restarts.
    TargetRestart,
    /// A node's kernel does not get deletions done.
    DeletionsHang(NodeIx),
    /// The backing store holds writes for long.
    Holds,
}

#[derive(Debug, Clone, Copy)]
struct Fault {
    from: u64,
    until: u64,
    kind: Kind,
}

/// All that goes wrong in one simulation.
#[derive(Debug)]
pub struct Plan {
    to_begin: Vec<Fault>,
    under_way: Vec<Fault>,
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed, "faults");
        let count = chance.within(4, 14);
        let mut to_begin: Vec<_> = (0..count).map(|_| fault(&mut chance)).collect();
        to_begin.sort_by_key(|fault| fault.from);
        Self { to_begin, under_way: Vec::new() }
    }

    /// Begins and ends what is due.
    pub fn apply(&mut self, now: u64, universe: &Universe, sim: &mut Sim<'_>) {
        let (over, under_way) =
            std::mem::take(&mut self.under_way).into_iter().partition(|it| it.until <= now);
        self.under_way = under_way;
        for Fault { kind, .. } in over {
            set(kind, false, universe, sim);
        }
        while let Some(fault) = self.to_begin.first().copied().filter(|fault| fault.from <= now) {
            self.to_begin.remove(0);
            let clashes = self.under_way.iter().any(|other| clash(other.kind, fault.kind));
            if !clashes {
                set(fault.kind, true, universe, sim);
                self.under_way.push(fault);
            }
        }
        if now >= FAULTS_END && self.under_way.is_empty() && self.to_begin.is_empty() {
            let mut world = universe.lock();
            if world.healed_at.is_none() {
                world.healed_at = Some(now);
                world.note("no more faults");
            }
        }
    }
}

fn fault(chance: &mut Chance) -> Fault {
    let node = chance.index(NODES.len());
    let links = [[true, false], [false, true], [false, false]][chance.index(3)];
    let (kind, longest) = match chance.index(16) {
        0 => (Kind::Cut(node), 9_000),
        1 => (Kind::Hold(node), 4_000),
        2 | 3 => (Kind::Unlink(node, links), 7_000),
        4 | 5 => (Kind::Isolate(node), 10_000),
        6 | 7 => (Kind::KillController, 2_500),
        8 | 9 => (Kind::KillAgent(node), 5_000),
        10 => (Kind::Reboot(node), 4_000),
        11 => (Kind::RdsAway, 4_000),
        12 => (if chance.percent(50) { Kind::RdsSlow } else { Kind::RdsLoses }, 5_000),
        13 => (Kind::TargetRestart, 3_000),
        14 => (Kind::DeletionsHang(node), 5_000),
        _ => (Kind::Holds, 8_000),
    };
    let from = chance.within(FAULTS_BEGIN, FAULTS_END - 1_000);
    let until = (from + chance.within(50, longest)).min(FAULTS_END);
    Fault { from, until, kind }
}

/// Whether two faults would undo each other.
fn clash(one: Kind, other: Kind) -> bool {
    let touches = |kind| match kind {
        Kind::Cut(node) | Kind::Hold(node) => (Some(node), 1),
        Kind::Isolate(node) => (Some(node), 3),
        Kind::Unlink(node, _) => (Some(node), 2),
        Kind::KillAgent(node) | Kind::Reboot(node) => (Some(node), 4),
        Kind::DeletionsHang(node) => (Some(node), 8),
        Kind::KillController => (None, 16),
        Kind::RdsAway | Kind::RdsSlow | Kind::RdsLoses => (None, 32),
        Kind::TargetRestart => (None, 64),
        Kind::Holds => (None, 128),
    };
    let ((node, what), (other_node, other_what)) = (touches(one), touches(other));
    node == other_node && what & other_what != 0
}

fn set(kind: Kind, begins: bool, universe: &Universe, sim: &mut Sim<'_>) {
    let mut world = universe.lock();
    world.note(format_args!("{} {kind:?}", if begins { "fault:" } else { "over:" }));
    world.count("faults");
    match kind {
        Kind::Cut(node) => cut(sim, node, begins),
        Kind::Hold(node) if begins => sim.hold(CONTROLLER, NODES[node]),
        Kind::Hold(node) => sim.release(CONTROLLER, NODES[node]),
        Kind::Unlink(node, links) => world.nodes[node].links = if begins { links } else { [true; PORTALS] },
        Kind::Isolate(node) => {
            world.nodes[node].links = [!begins; PORTALS];
            cut(sim, node, begins);
        }
        Kind::RdsAway => world.rds.away = begins,
        Kind::RdsSlow => world.rds.slow_ms = if begins { world.chance.within(200, 1_500) } else { 0 },
        Kind::RdsLoses => world.rds.loses = if begins { world.chance.within(10, 60) } else { 0 },
        Kind::TargetRestart if begins => world.target.go_down(),
        Kind::TargetRestart => world.target.up = true,
        Kind::DeletionsHang(node) => world.nodes[node].kernel.deletions_hang = begins,
        Kind::Holds => {
            world.target.holds_ms = if begins { world.longest_hold_ms } else { world.usual_hold_ms }
        }
        Kind::KillController | Kind::KillAgent(_) | Kind::Reboot(_) => {
            // What is dropped with a program looks at the world.
            drop(world);
            run(kind, begins, universe, sim);
        }
    }
}

/// Kills or starts programs.
fn run(kind: Kind, begins: bool, universe: &Universe, sim: &mut Sim<'_>) {
    let host = match kind {
        Kind::KillAgent(node) | Kind::Reboot(node) => NODES[node],
        _ => CONTROLLER,
    };
    if !begins {
        sim.bounce(host);
        return;
    }
    sim.crash(host);
    if let Kind::Reboot(node) = kind {
        universe.lock().reboot(node);
    }
}

fn cut(sim: &Sim<'_>, node: NodeIx, begins: bool) {
    if begins {
        sim.partition(CONTROLLER, NODES[node]);
    } else {
        sim.repair(CONTROLLER, NODES[node]);
    }
}
