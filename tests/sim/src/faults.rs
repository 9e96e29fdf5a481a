//! What goes wrong, and when: a plan made of the seed before anything runs.
//!
//! Comes in: chance, and the time. Goes out: changes of the world, of the simulated network, and of programs. Each
//! fault ends by itself, but that a machine may be gone for good; at [`FAULTS_END`] all have.

use std::io;

use turmoil::Sim;

use crate::chance::Chance;
use crate::machines::{Machines, Program};
use crate::programs::CONTROLLER;
use crate::world::management::Which;
use crate::world::{NODES, NodeIx, PORTALS, Planted, Universe, World};

/// When the last fault ends, in ms.
pub const FAULTS_END: u64 = 25_000;
/// From when on there are faults, in ms.
const FAULTS_BEGIN: u64 = 1_500;
/// How long it is waited for a moment in which a request is on its way, in ms.
const ARMED: u64 = 3_000;
/// The same for one that clients bring about while it is waited for.
const AWAITED_FOR: u64 = 9_000;
/// In how many of a hundred seeds with nothing planted a request that lets a node in beside another one is awaited.
const AWAITED_IN: u64 = 25;
/// How long it takes to set a store back, in ms: more than a request may be on its way.
const SET_BACK: u64 = 13_000;

/// One kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Messages between controller and agent are lost.
    Cut(NodeIx),
    /// They are held, and all arrive at the end.
    Hold(NodeIx),
    /// The node does not reach the target over these portals.
    Unlink(NodeIx, [bool; PORTALS]),
    /// Both: the node is alone.
    Isolate(NodeIx),
    /// A program is killed, and started again at the end.
    Kill(Program),
    /// The controller is, while such a request of its to the RDS is on its way: that lands whenever it does.
    KillMidRequest(Which),
    /// It is, and somebody sets its store back before it is started again, when nothing of it is on its way any more.
    SetBack,
    /// A program stands still; at the end it goes on, or is killed and started again.
    Freeze(Program, AtItsEnd),
    /// A whole machine stands still, its kernel and all.
    FreezeMachine(NodeIx),
    /// A node's machine is switched off, and on at the end.
    Reboot(NodeIx),
    /// It is destroyed; at the end another one may take its place.
    Destroy(NodeIx),
    /// The RDS's management is away.
    RdsAway,
    /// It is slow.
    RdsSlow,
    /// It loses answers.
    RdsLoses,
    /// It carries requests out late, and in any order.
    RdsLags,
    /// The target restarts.
    TargetRestart,
    /// A node's kernel does not get deletions done.
    DeletionsHang(NodeIx),
    /// The backing store holds writes for long.
    Holds,
}

/// What becomes of a frozen program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtItsEnd {
    GoesOn,
    IsKilled,
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
    /// Waits for its moment.
    armed: Vec<Fault>,
    /// Has no end.
    for_good: Vec<Fault>,
    chance: Chance,
}

impl Plan {
    /// The plan of a seed; what is planted gets its occasions.
    #[must_use]
    pub fn new(seed: u64, world: &World) -> Self {
        let planted = world.planted;
        let mut chance = Chance::new(seed, "faults");
        let count = chance.within(4, 18);
        let mut to_begin: Vec<_> = (0..count).map(|_| by_chance(&mut chance)).collect();
        to_begin.extend(occasions(&mut chance, planted));
        let lists = world.probed.target().acl;
        let awaits = planted.is_none() && lists && Chance::new(seed, "awaited").percent(AWAITED_IN);
        to_begin.extend(awaits.then(awaited));
        // One machine at most: the others have to be enough for everything.
        let destroyed = to_begin.iter().position(|fault| matches!(fault.kind, Kind::Destroy(_)));
        let mut at = 0;
        to_begin.retain(|fault| {
            at += 1;
            !matches!(fault.kind, Kind::Destroy(_)) || destroyed == Some(at - 1)
        });
        to_begin.sort_by_key(|fault| fault.from);
        let (under_way, armed, for_good) = Default::default();
        Self { to_begin, under_way, armed, for_good, chance }
    }

    /// Begins and ends what is due.
    ///
    /// # Errors
    /// If a program cannot be started.
    pub fn apply(
        &mut self,
        now: u64,
        universe: &Universe,
        machines: &mut Machines,
        sim: &mut Sim<'_>,
    ) -> io::Result<()> {
        let mut scene = Scene { now, universe, machines, sim };
        let (over, under_way) =
            std::mem::take(&mut self.under_way).into_iter().partition(|it| it.until <= now);
        self.under_way = under_way;
        for Fault { kind, .. } in over {
            scene.set(kind, false)?;
        }
        while let Some(fault) = self.to_begin.first().copied().filter(|fault| fault.from <= now) {
            self.to_begin.remove(0);
            let mut others = self.under_way.iter().chain(&self.armed).chain(&self.for_good);
            if others.any(|other| clash(other.kind, fault.kind)) {
                continue;
            }
            match fault.kind {
                Kind::KillMidRequest(_) => self.armed.push(fault),
                Kind::Destroy(_) if fault.until == FAULTS_END => {
                    scene.set(fault.kind, true)?;
                    self.for_good.push(fault);
                }
                kind => {
                    scene.set(kind, true)?;
                    self.under_way.push(fault);
                }
            }
        }
        for fault in std::mem::take(&mut self.armed) {
            let Kind::KillMidRequest(which) = fault.kind else { continue };
            let armed = if which == Which::LetsInBeside { AWAITED_FOR } else { ARMED };
            let comes = universe.lock().any_on_its_way(which);
            if comes {
                scene.set(fault.kind, true)?;
                let until = (now + fault.until.saturating_sub(fault.from)).min(FAULTS_END);
                self.under_way.push(Fault { until, ..fault });
                self.follow_up(which, until, universe.lock().rds.suspect.map(|(_, node)| node));
            } else if now < fault.from + armed {
                self.armed.push(fault);
            }
        }
        universe.lock().rds.awaited =
            self.armed.iter().any(|it| it.kind == Kind::KillMidRequest(Which::LetsInBeside));
        let none_left = self.under_way.is_empty() && self.to_begin.is_empty() && self.armed.is_empty();
        if now >= FAULTS_END && none_left {
            let mut world = universe.lock();
            if world.healed_at.is_none() {
                world.healed_at = Some(now);
                world.note("no more faults");
            }
        }
        Ok(())
    }
}

impl Plan {
    /// A node that was being let in when the controller died (or was in already, and would be let in again) has an
    /// agent that does not answer: whoever fences it then does so while the request that lets it in may still come.
    fn follow_up(&mut self, which: Which, after: u64, node: Option<NodeIx>) {
        let for_sure = which == Which::LetsInBeside;
        let Some(node) = node.filter(|_| for_sure || self.chance.percent(50)) else { return };
        // What was awaited is in already, and what comes later than anything is waited for is waited for here.
        let (from, least, most) = match for_sure {
            true => (after, 14_000, 15_000),
            false => (after + self.chance.within(700, 2_000), 4_000, 9_000),
        };
        let until = (from + self.chance.within(least, most)).min(FAULTS_END);
        let kind = Kind::Freeze(Program::Agent(node), AtItsEnd::GoesOn);
        if from < until {
            self.to_begin.push(Fault { from, until, kind });
            self.to_begin.sort_by_key(|fault| fault.from);
        }
    }
}

fn by_chance(chance: &mut Chance) -> Fault {
    let node = chance.index(NODES.len());
    let links = [[true, false], [false, true], [false, false]][chance.index(3)];
    let at_its_end = if chance.percent(30) { AtItsEnd::IsKilled } else { AtItsEnd::GoesOn };
    let (kind, longest) = match chance.index(26) {
        0 => (Kind::Cut(node), 9_000),
        1 => (Kind::Hold(node), 4_000),
        2 | 3 => (Kind::Unlink(node, links), 7_000),
        4 | 5 => (Kind::Isolate(node), 10_000),
        6 => (Kind::Kill(Program::Controller), 2_500),
        7 | 8 => (Kind::KillMidRequest(if chance.percent(60) { Which::LetsIn } else { Which::Any }), 1_500),
        9 | 10 => (Kind::Kill(Program::Agent(node)), 5_000),
        11 => (Kind::Reboot(node), 4_000),
        12 => (Kind::RdsAway, 4_000),
        13 => (if chance.percent(50) { Kind::RdsSlow } else { Kind::RdsLoses }, 5_000),
        14 => (Kind::RdsLags, 6_000),
        15 => (Kind::TargetRestart, 3_000),
        16 => (Kind::TargetRestart, 300),
        17 => (Kind::DeletionsHang(node), 5_000),
        18 => (Kind::Holds, 8_000),
        19 | 20 => (Kind::Freeze(Program::Controller, at_its_end), 9_000),
        21 | 22 => (Kind::Freeze(Program::Agent(node), at_its_end), 9_000),
        23 => (Kind::FreezeMachine(node), 8_000),
        24 => {
            let from = chance.within(FAULTS_BEGIN, FAULTS_END - SET_BACK);
            return Fault { from, until: from + SET_BACK, kind: Kind::SetBack };
        }
        // Without an end in time, without an end at all.
        _ => (Kind::Destroy(node), 30_000),
    };
    fault(chance, kind, longest)
}

fn fault(chance: &mut Chance, kind: Kind, longest: u64) -> Fault {
    let from = chance.within(FAULTS_BEGIN, FAULTS_END - 1_000);
    let until = (from + chance.within(50, longest)).min(FAULTS_END);
    Fault { from, until, kind }
}

/// The controller dies when it lets a node in beside another one, which is fenced afterwards. Clients bring it about.
fn awaited() -> Fault {
    Fault { from: 0, until: 400, kind: Kind::KillMidRequest(Which::LetsInBeside) }
}

/// What a planted fault needs to show itself.
fn occasions(chance: &mut Chance, planted: Option<Planted>) -> Vec<Fault> {
    let node = chance.index(NODES.len());
    let kinds = match planted {
        Some(Planted::LandsTooLate) => {
            // One that writes down again a host which is fenced before it lands.
            return vec![awaited()];
        }
        Some(Planted::BreaksUnseen) => {
            // What was held for long when the connection broke; afterwards nothing is.
            let at = [3_000, 7_000, 11_000, 15_000, 19_000].map(|at| at + chance.within(0, 1_500));
            let holds = |at| Fault { from: at, until: at + 1_500, kind: Kind::Holds };
            let restart = |at| Fault { from: at + 1_400, until: at + 1_450, kind: Kind::TargetRestart };
            return at.iter().flat_map(|at| [holds(*at), restart(*at)]).collect();
        }
        Some(Planted::RestartForgets) => {
            [(Kind::TargetRestart, 300), (Kind::TargetRestart, 300), (Kind::Isolate(node), 9_000)]
        }
        Some(Planted::HeldTooLong) => {
            [(Kind::Holds, 8_000), (Kind::Isolate(node), 9_000), (Kind::FreezeMachine(node), 9_000)]
        }
        Some(Planted::WordFalse) => {
            [(Kind::FreezeMachine(node), 9_000), (Kind::Isolate(node), 9_000), (Kind::Holds, 8_000)]
        }
        Some(Planted::LockIgnored) => {
            let freeze = Kind::Freeze(Program::Controller, AtItsEnd::GoesOn);
            [(freeze, 6_000), (freeze, 6_000), (Kind::Isolate(node), 9_000)]
        }
        _ => return Vec::new(),
    };
    kinds.into_iter().map(|(kind, longest)| fault(chance, kind, longest)).collect()
}

/// Whether two faults would undo each other.
fn clash(one: Kind, other: Kind) -> bool {
    let touches = |kind| match kind {
        Kind::Cut(node) | Kind::Hold(node) => (Some(node), 1),
        Kind::Isolate(node) => (Some(node), 3),
        Kind::Unlink(node, _) => (Some(node), 2),
        Kind::Kill(Program::Agent(node)) | Kind::Freeze(Program::Agent(node), _) | Kind::Reboot(node) => {
            (Some(node), 4)
        }
        // What is held while a machine stands still is held already.
        Kind::FreezeMachine(node) => (Some(node), 5),
        Kind::Destroy(node) => (Some(node), 15),
        Kind::DeletionsHang(node) => (Some(node), 8),
        Kind::Kill(Program::Controller)
        | Kind::Freeze(Program::Controller, _)
        | Kind::SetBack
        | Kind::KillMidRequest(_) => (None, 16),
        Kind::RdsAway | Kind::RdsSlow | Kind::RdsLoses | Kind::RdsLags => (None, 32),
        Kind::TargetRestart => (None, 64),
        Kind::Holds => (None, 128),
    };
    let ((node, what), (other_node, other_what)) = (touches(one), touches(other));
    node == other_node && what & other_what != 0
}

/// Begins or ends what a scene has asked for.
pub(crate) fn carry_out_orders(
    now: u64,
    universe: &Universe,
    machines: &mut Machines,
    sim: &mut Sim<'_>,
) -> io::Result<()> {
    let orders = std::mem::take(&mut universe.lock().orders);
    let mut scene = Scene { now, universe, machines, sim };
    orders.into_iter().try_for_each(|(kind, begins)| scene.set(kind, begins))
}

/// Where faults are set.
struct Scene<'a, 's> {
    now: u64,
    universe: &'a Universe,
    machines: &'a mut Machines,
    sim: &'a mut Sim<'s>,
}

impl Scene<'_, '_> {
    /// Begins or ends a fault.
    fn set(&mut self, kind: Kind, begins: bool) -> io::Result<()> {
        let mut world = self.universe.lock();
        world.note(format_args!("{} {kind:?}", if begins { "fault:" } else { "over:" }));
        if begins {
            world.count(format!("fault: {}", name(kind)));
        }
        let sim = &mut *self.sim;
        match kind {
            Kind::Cut(node) => cut(sim, node, begins),
            Kind::Hold(node) => hold(sim, node, begins),
            Kind::Unlink(node, links) => {
                world.nodes[node].links = if begins { links } else { [true; PORTALS] }
            }
            Kind::Isolate(node) => {
                world.nodes[node].links = [!begins; PORTALS];
                cut(sim, node, begins);
            }
            Kind::RdsAway => world.rds.away = begins,
            Kind::RdsSlow => world.rds.slow_ms = if begins { world.chance.within(100, 1_200) } else { 0 },
            Kind::RdsLoses => world.rds.loses = if begins { world.chance.within(10, 60) } else { 0 },
            Kind::RdsLags => world.rds.lags = if begins { world.chance.within(20, 80) } else { 0 },
            Kind::TargetRestart if begins => world.target.go_down(),
            Kind::TargetRestart => world.target.up = true,
            Kind::DeletionsHang(node) => world.nodes[node].kernel.deletions_hang = begins,
            Kind::Holds => {
                world.target.holds_ms = if begins { world.longest_hold_ms } else { world.usual_hold_ms }
            }
            Kind::Kill(_)
            | Kind::KillMidRequest(_)
            | Kind::SetBack
            | Kind::Freeze(..)
            | Kind::FreezeMachine(_)
            | Kind::Reboot(_)
            | Kind::Destroy(_) => {
                drop(world);
                return self.run(kind, begins);
            }
        }
        Ok(())
    }

    /// What happens to programs, and to whole machines. Nobody holds the world here.
    fn run(&mut self, kind: Kind, begins: bool) -> io::Result<()> {
        let (now, universe) = (self.now, self.universe);
        match (kind, begins) {
            (Kind::Kill(program), true) => self.machines.kill(program),
            (Kind::KillMidRequest(which), true) => {
                self.machines.kill(Program::Controller);
                universe.lock().forsaken(which);
            }
            (Kind::Kill(program), false) => self.machines.start(program, now)?,
            (Kind::SetBack, true) => self.machines.kill(Program::Controller),
            (Kind::SetBack, false) => {
                let mut world = universe.lock();
                let World { disk, chance, probed, .. } = &mut *world;
                if disk.set_back(chance, probed.target().acl) {
                    world.count("store set back");
                }
                drop(world);
                self.machines.start(Program::Controller, now)?;
            }
            (Kind::KillMidRequest(_), false) => self.machines.start(Program::Controller, now)?,
            (Kind::Freeze(program, _), true) => self.machines.freeze(program, now)?,
            (Kind::Freeze(program, AtItsEnd::GoesOn), false) => self.machines.thaw(program, now),
            (Kind::Freeze(program, AtItsEnd::IsKilled), false) => self.machines.start(program, now)?,
            (Kind::FreezeMachine(node), _) => {
                universe.lock().nodes[node].stands_still = begins;
                hold(self.sim, node, begins);
                match begins {
                    true => self.machines.freeze(Program::Agent(node), now)?,
                    false => self.machines.thaw(Program::Agent(node), now),
                }
            }
            (Kind::Reboot(node) | Kind::Destroy(node), true) => {
                self.machines.kill(Program::Agent(node));
                self.sim.crash(NODES[node]);
                let mut world = universe.lock();
                world.reboot(node);
                world.nodes[node].gone = matches!(kind, Kind::Destroy(_));
            }
            (Kind::Reboot(node) | Kind::Destroy(node), false) => {
                if matches!(kind, Kind::Destroy(_)) {
                    self.machines.replace(node)?;
                    universe.lock().nodes[node].gone = false;
                }
                self.sim.bounce(NODES[node]);
                self.machines.start(Program::Agent(node), now)?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Cut(_) => "cut",
        Kind::Hold(_) => "hold",
        Kind::Unlink(..) => "unlink",
        Kind::Isolate(_) => "isolate",
        Kind::Kill(Program::Controller) => "kill controller",
        Kind::Kill(Program::Agent(_)) => "kill agent",
        Kind::KillMidRequest(Which::LetsInBeside) => "kill mid awaited request",
        Kind::KillMidRequest(_) => "kill mid request",
        Kind::SetBack => "set back",
        Kind::Freeze(Program::Controller, _) => "freeze controller",
        Kind::Freeze(Program::Agent(_), _) => "freeze agent",
        Kind::FreezeMachine(_) => "freeze machine",
        Kind::Reboot(_) => "reboot",
        Kind::Destroy(_) => "destroy",
        Kind::RdsAway => "rds away",
        Kind::RdsSlow => "rds slow",
        Kind::RdsLoses => "rds loses",
        Kind::RdsLags => "rds lags",
        Kind::TargetRestart => "target restart",
        Kind::DeletionsHang(_) => "deletions hang",
        Kind::Holds => "holds",
    }
}

fn cut(sim: &Sim<'_>, node: NodeIx, begins: bool) {
    if begins {
        sim.partition(CONTROLLER, NODES[node]);
    } else {
        sim.repair(CONTROLLER, NODES[node]);
    }
}

fn hold(sim: &Sim<'_>, node: NodeIx, begins: bool) {
    if begins {
        sim.hold(CONTROLLER, NODES[node]);
    } else {
        sim.release(CONTROLLER, NODES[node]);
    }
}
