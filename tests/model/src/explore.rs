//! Goes through worlds: all of them within a budget, or many at random, and makes what it finds short.
//!
//! In comes a [`Setup`]; out goes a [`Report`] of what was reached, and the first [`Finding`]. Why not a library: the
//! states are whole cores (ten kilobytes each), so a breadth-first frontier does not fit into memory, and stateright's
//! depth-first search, when it is given a bound of depth, forgets at which depth it has seen a state, so that it would
//! not be exhaustive; its fingerprints cannot leave out what decides nothing; and a finding of a depth-first search is
//! long, so it has to be made short by taking actions out again. What always holds: `complete` is said only if every
//! state within the budget was visited and every one of them was checked.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::canon::{Print, print};
use cleat_world::check::Violation;
use cleat_world::kinds::{Action, Manner};
use cleat_world::names::{N, V, VOLUMES};
use cleat_world::world::{Setup, World};

/// An invariant that was broken, and how.
#[derive(Debug, Clone)]
pub struct Finding {
    /// In which world.
    pub setup: Arc<Setup>,
    /// Which.
    pub violation: Violation,
    /// The way to it, from the beginning.
    pub trace: Vec<Action>,
    /// Everything worked again after the last action, and the violation came then.
    pub healed: bool,
}

/// What was reached.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Different states, by fingerprint.
    pub states: usize,
    /// Actions that were carried out.
    pub steps: u64,
    /// The longest history.
    pub depth: usize,
    /// States from which it was tried whether all ends well.
    pub healed: usize,
    /// Everything within the budget was visited.
    pub complete: bool,
    /// The first violation.
    pub finding: Option<Finding>,
    /// What was seen on the way, and while everything was made to work again at its end.
    pub seen: std::collections::BTreeMap<&'static str, u64>,
    /// What was seen on the way alone.
    pub seen_before_healing: std::collections::BTreeMap<&'static str, u64>,
    /// How long it took.
    pub took: Duration,
}

/// How far to go.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Different states at most.
    pub states: usize,
    /// Time at most.
    pub time: Duration,
    /// Of so many states, one is tried for whether all ends well.
    pub heal_one_in: u128,
}

/// The way to a state: the last action, and the way before.
type Way = Option<Arc<Link>>;
struct Link {
    action: Action,
    before: Way,
    length: usize,
}

fn actions_of(way: &Way) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut at = way.as_ref();
    while let Some(link) = at {
        actions.push(link.action);
        at = link.before.as_ref();
    }
    actions.reverse();
    actions
}

/// The world after an action; a panic of the core is a violation, too.
fn after(world: &World, action: Action) -> World {
    catch_unwind(AssertUnwindSafe(|| world.after(action))).unwrap_or_else(|panic| {
        let mut broken = world.clone();
        broken.broken = Some(Violation::Panicked { message: words_of(panic.as_ref()) });
        broken
    })
}

/// What it comes to if nothing is mended, and, where that is as it should be, if everything is.
fn healed(world: &World) -> World {
    catch_unwind(AssertUnwindSafe(|| {
        let waited = world.left_alone();
        if waited.broken.is_some() { waited } else { world.healed() }
    }))
    .unwrap_or_else(|panic| {
        let mut broken = world.clone();
        broken.broken = Some(Violation::Panicked { message: words_of(panic.as_ref()) });
        broken
    })
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// Visits every state within the budget, or as many as the limits allow.
#[must_use]
pub fn exhaustively(setup: Setup, limits: Limits) -> Report {
    let began = Instant::now();
    let setup = Arc::new(setup);
    let mut report = Report::default();
    let mut visited: HashSet<Print> = HashSet::new();
    let first = World::new(&setup);
    visited.insert(print(&first));
    let mut open: Vec<(World, Way)> = vec![(first, None)];
    while let Some((world, way)) = open.pop() {
        if visited.len() >= limits.states || began.elapsed() >= limits.time {
            open.push((world, way));
            break;
        }
        let length = way.as_ref().map_or(0, |l| l.length) + 1;
        for action in world.actions() {
            let next = after(&world, action);
            report.steps += 1;
            if let Some(violation) = next.broken.clone() {
                let way = Some(Arc::new(Link { action, before: way.clone(), length }));
                report.finding = Some(found(&setup, actions_of(&way), violation, false));
                report.states = visited.len();
                report.took = began.elapsed();
                return report;
            }
            let fingerprint = print(&next);
            if !visited.insert(fingerprint) {
                continue;
            }
            report.depth = report.depth.max(length);
            let way = Some(Arc::new(Link { action, before: way.clone(), length }));
            if fingerprint.is_multiple_of(limits.heal_one_in) {
                report.healed += 1;
                let end = healed(&next);
                count(&mut report.seen, &end);
                if let Some(violation) = end.broken {
                    report.finding = Some(found(&setup, actions_of(&way), violation, true));
                    report.states = visited.len();
                    report.took = began.elapsed();
                    return report;
                }
            }
            open.push((next, way));
        }
    }
    report.complete = open.is_empty();
    report.states = visited.len();
    report.took = began.elapsed();
    report
}

fn count(seen: &mut std::collections::BTreeMap<&'static str, u64>, world: &World) {
    for (kind, times) in world.seen.iter() {
        *seen.entry(kind).or_default() += u64::from(*times);
    }
}

/// A small generator of numbers: the same seed gives the same walk, on every machine (SplitMix64).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

fn pick<T: Copy>(numbers: &mut Numbers, from: [T; 4]) -> T {
    from[numbers.below(4) as usize]
}

/// How often each kind of action is taken in one walk. Every walk has a taste of its own: it leaves some kinds of
/// faults out, takes others often, and may keep to one volume, because histories get deep only if few things happen
/// much, and not everything a little.
struct Taste {
    of_kind: Vec<u64>,
    only_volume: Option<V>,
    /// While something is on its way, little else happens: histories get deep only if things succeed.
    patient: bool,
    /// How it begins: random walks seldom come to a fence by themselves.
    begins: Vec<Action>,
    /// Its agent opens no stream before the walk has so many steps.
    silent: Option<(N, usize)>,
}

impl Taste {
    /// For a walk of this length.
    fn new(setup: &Setup, numbers: &mut Numbers, length: usize) -> Self {
        let of_kind = (0..Action::KINDS)
            .map(|kind| match Action::manner(kind) {
                _ if kind >= Action::OF_TICKETS && !setup.dangers.tickets => 0,
                _ if (Action::OF_CLUSTER..Action::OF_TICKETS).contains(&kind) && !setup.in_cluster() => 0,
                _ if kind == Action::OF_KUBEVIRT && !setup.dangers.kubevirt_errs => 0,
                Manner::Message => 24,
                Manner::Mending => pick(numbers, [3, 6, 12, 24]),
                Manner::Caller => pick(numbers, [2, 4, 8, 16]),
                Manner::Clock => pick(numbers, [1, 3, 6, 12]),
                Manner::Fault => pick(numbers, [0, 0, 2, 8]),
            })
            .collect();
        let only_volume = (numbers.below(2) == 0).then(|| numbers.below(VOLUMES as u64) as V);
        if !setup.uneven {
            return Self { of_kind, only_volume, patient: false, begins: Vec::new(), silent: None };
        }
        let patient = numbers.below(3) > 0;
        let (v, holders) = pick(numbers, [(0, 0), (0, 1), (1, 2), (1, 2)]);
        let mut begins: Vec<Action> = (0..holders).map(|n| Action::Publish(v, n)).collect();
        if holders > 0 {
            begins.push(Action::Drop(0));
            begins.extend((numbers.below(2) == 0).then_some(Action::Cut(0)));
            begins.extend([Action::Unpublish(v, 0), Action::Pass(2_000)]);
        }
        // Most come back within the walk: a node that was fenced is let in again, and may be fenced again.
        let until = pick(numbers, [length / 4, length / 3, length / 2, length]);
        let silent = (holders > 0).then_some((0, until));
        Self { of_kind, only_volume, patient, begins, silent }
    }

    fn weight(&self, world: &World, action: Action, at: usize, is_something_on_its_way: bool) -> u64 {
        let arrives = matches!(Action::manner(action.kind()), Manner::Message | Manner::Mending);
        let waits = self.patient && is_something_on_its_way && !arrives;
        let weight = if waits { 1 } else { 8 } * self.of_kind[action.kind()];
        let rather = |condition: bool, otherwise: u64| if condition { weight } else { weight / otherwise };
        let other = |v: V| self.only_volume.is_some_and(|only| only != v);
        match action {
            Action::Publish(v, _) | Action::Unpublish(v, _) | Action::Fence(v, _) | Action::Stray(v, _)
                if other(v) =>
            {
                0
            }
            // What would only be refused, or changes nothing, is tried as well, but not most of the time.
            Action::Publish(v, n) => {
                rather(world.hosts[n].stream.is_some() && world.told.handed_out[v][n].is_none(), 8)
            }
            Action::Unpublish(v, n) | Action::Fence(v, n) => {
                rather(world.told.handed_out[v][n].is_some() || world.hosts[n].held[v].is_some(), 8)
            }
            Action::UnpublishAll(_) => weight / 8,
            // There are many of them at any moment.
            Action::Reported(..) => weight.div_ceil(16),
            Action::TicketComes(v, _, _) | Action::TicketGoes(v, _) if other(v) => 0,
            Action::TicketComes(..) => weight.div_ceil(8),
            Action::TicketGoes(..) => weight.div_ceil(4),
            Action::Connect(n, _) if self.silent.is_some_and(|(silent, until)| silent == n && at < until) => {
                0
            }
            _ => weight,
        }
    }
}

/// Walks at random, one for each seed, of a length. Each walk ends with everything working again.
#[must_use]
pub fn at_random(
    setup: impl Fn(u64) -> Setup,
    seeds: std::ops::Range<u64>,
    length: usize,
    time: Duration,
) -> Report {
    let began = Instant::now();
    let mut report = Report::default();
    for seed in seeds {
        if began.elapsed() >= time {
            break;
        }
        let setup = Arc::new(setup(seed));
        let (world, way) = walk(&setup, seed, length);
        report.steps += way.len() as u64;
        report.depth = report.depth.max(way.len());
        report.states += 1;
        count(&mut report.seen_before_healing, &world);
        let (end, was_healed) = if world.broken.is_some() { (world, false) } else { (healed(&world), true) };
        report.healed += usize::from(was_healed);
        count(&mut report.seen, &end);
        if let Some(violation) = end.broken {
            report.finding = Some(found(&setup, way, violation, was_healed));
            break;
        }
    }
    report.took = began.elapsed();
    report
}

fn walk(setup: &Arc<Setup>, seed: u64, length: usize) -> (World, Vec<Action>) {
    let mut numbers = Numbers(seed);
    let mut world = World::new(setup);
    let mut way = Vec::new();
    let taste = Taste::new(setup, &mut numbers, length);
    let arrives = |action: &Action| Action::manner(action.kind()) == Manner::Message;
    let mut begins = taste.begins.iter().copied();
    while way.len() < length && world.broken.is_none() {
        let mut actions = world.actions();
        let on_its_way = actions.iter().any(arrives);
        // At the beginning everything arrives.
        let begun = if begins.len() == 0 {
            None
        } else if let Some(action) = actions.iter().copied().find(arrives) {
            Some(action)
        } else {
            begins.find(|action| world.can_happen(*action))
        };
        if setup.uneven {
            actions.push(Action::Pass(1 + numbers.below(4_000) as u16));
            actions.push(Action::UnpublishAll(numbers.below(setup.access.len() as u64) as V));
        }
        let total: u64 = actions.iter().map(|a| taste.weight(&world, *a, way.len(), on_its_way)).sum();
        let mut pick = numbers.below(total);
        let at_random = || {
            actions.into_iter().find(|a| {
                let weight = taste.weight(&world, *a, way.len(), on_its_way);
                let here = pick < weight;
                pick = pick.saturating_sub(weight);
                here
            })
        };
        let Some(action) = begun.or_else(at_random) else { break };
        way.push(action);
        world = after(&world, action);
    }
    (world, way)
}

/// Follows a way as far as it is one, and says what it ends in.
fn follow(setup: &Arc<Setup>, way: &[Action], heal: bool) -> Option<(Violation, usize)> {
    let mut world = World::new(setup);
    for (at, action) in way.iter().enumerate() {
        if !world.can_happen(*action) {
            return None;
        }
        world = after(&world, *action);
        if let Some(violation) = world.broken {
            return (!heal).then_some((violation, at + 1));
        }
    }
    heal.then(|| healed(&world).broken.map(|violation| (violation, way.len()))).flatten()
}

/// The way to a finding, with every event and effect of the leaders, for people.
#[must_use]
pub fn narrated(finding: &Finding) -> Vec<String> {
    let mut world = World::new(&finding.setup);
    let mut lines = Vec::new();
    for (at, action) in finding.trace.iter().enumerate() {
        lines.push(format!("{:3}  {action:?}", at + 1));
        world.told_in_words = Some(Vec::new());
        world = after(&world, *action);
        lines.extend(world.told_in_words.take().into_iter().flatten());
    }
    if finding.healed && world.broken.is_none() {
        lines.push("     then everything works again, and all is unpublished".into());
        world.told_in_words = Some(Vec::new());
        lines.extend(healed(&world).told_in_words.into_iter().flatten());
    }
    lines
}

fn found(setup: &Arc<Setup>, trace: Vec<Action>, violation: Violation, healed: bool) -> Finding {
    Finding { setup: Arc::clone(setup), violation, trace, healed }
}

impl Finding {
    /// Takes actions out as long as the same kind of violation comes.
    #[must_use]
    pub fn shortened(self) -> Self {
        let Self { setup, violation, trace: mut way, healed: heal } = self;
        let same = |found: &Violation| std::mem::discriminant(found) == std::mem::discriminant(&violation);
        let mut shorter = true;
        let mut last = violation.clone();
        while shorter {
            shorter = false;
            for size in [8, 4, 2, 1] {
                let mut at = 0;
                while at + size <= way.len() {
                    let mut without = way.clone();
                    without.drain(at..at + size);
                    match follow(&setup, &without, heal) {
                        Some((found, length)) if same(&found) => {
                            without.truncate(length);
                            (way, last, shorter) = (without, found, true);
                        }
                        _ => at += 1,
                    }
                }
            }
        }
        found(&setup, way, last, heal)
    }
}
