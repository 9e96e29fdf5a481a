//! The worlds that are checked, and how far.

use std::num::NonZeroU32;
use std::time::Duration;

use cleat_core::{Access, MinFence};

use crate::explore::{Limits, Numbers};
use cleat_world::target::Abilities;
use cleat_world::world::{Budget, Dangers, Setup};

/// A world to go through exhaustively.
#[derive(Debug, Clone)]
pub struct Exhaustive {
    /// The world.
    pub setup: Setup,
    /// How far.
    pub limits: Limits,
}

fn limits(states: usize, seconds: u64) -> Limits {
    Limits { states, time: Duration::from_secs(seconds), heal_one_in: 61 }
}

fn setup(name: &'static str, access: &[Access], nodes: usize, budget: [u8; 3], truth: Abilities) -> Setup {
    let [requests, faults, ticks] = budget;
    let budget = Budget { requests, faults, ticks };
    let (portals, min_fence, strays, persons, atomic_hello) = (1, MinFence::default(), false, false, true);
    let access = access.to_vec();
    Setup {
        name,
        access,
        nodes,
        truth,
        portals,
        min_fence,
        max_volumes: None,
        strays,
        budget,
        persons,
        dangers: Dangers::default(),
        uneven: false,
        atomic_hello,
        only: None,
    }
}

/// The targets on which everything is tried, by what they can do.
#[must_use]
pub fn targets() -> Vec<(&'static str, Abilities)> {
    let none = Abilities::default();
    let toggles = Abilities { cuts: true, drains: true, ..none };
    vec![
        ("nothing probed", none),
        ("list, cut, drain", Abilities { acl: true, ..toggles }),
        ("list, cut", Abilities { acl: true, cuts: true, ..none }),
        ("list alone", Abilities { acl: true, ..none }),
        ("secret, cut, drain", Abilities { secret: true, ..toggles }),
        ("list, secret, cut, drain", Abilities { acl: true, secret: true, ..toggles }),
        ("cut, drain", toggles),
        ("cut", Abilities { cuts: true, ..none }),
        (
            "list, reservations that wait",
            Abilities { acl: true, reservations: true, abort_waits: true, ..none },
        ),
        (
            "list, reservations that wait, cut",
            Abilities { acl: true, reservations: true, abort_waits: true, cuts: true, ..none },
        ),
        ("reservations that wait", Abilities { reservations: true, abort_waits: true, ..none }),
        ("list, reservations, cut, drain", Abilities { acl: true, reservations: true, ..toggles }),
    ]
}

/// Targets whose volumes demand more of a fence than a person's word, each on a target that has weaker ones, too.
#[must_use]
pub fn demands() -> Vec<(&'static str, Abilities, MinFence)> {
    let toggles = Abilities { cuts: true, drains: true, ..Abilities::default() };
    let list = Abilities { acl: true, ..toggles };
    vec![
        ("export off demanded", toggles, MinFence::ExportOff),
        ("a list demanded, and there is none", toggles, MinFence::Acl),
        ("a list demanded", list, MinFence::Acl),
        ("a secret demanded", Abilities { secret: true, ..list }, MinFence::Secret),
        ("a reservation demanded", Abilities { reservations: true, ..list }, MinFence::Reservation),
    ]
}

/// What is gone through exhaustively, or as far as the limits allow.
#[must_use]
pub fn exhaustive(full: bool) -> Vec<Exhaustive> {
    use Access::{Rwo, RwxBlock};
    let none = Abilities::default();
    let acl = Abilities { acl: true, ..none };
    // In the longer run so long that all of them, with the walks, are done in about twenty minutes.
    let (states, seconds) = if full { (20_000_000, 30) } else { (200_000, 25) };
    let mut all = vec![
        setup("rwo", &[Rwo], 2, if full { [4, 0, 3] } else { [3, 0, 1] }, none),
        setup("rwx, three nodes", &[RwxBlock], 3, if full { [4, 0, 1] } else { [3, 0, 0] }, none),
        setup("rwo, faults", &[Rwo], 2, if full { [2, 2, 1] } else { [2, 1, 0] }, none),
        // Two volumes, three nodes, and, as one of the faults, a second leader beside the first.
        setup(
            "rwo and rwx, three nodes, two leaders",
            &[Rwo, RwxBlock],
            3,
            if full { [3, 1, 0] } else { [2, 1, 0] },
            acl,
        ),
    ];
    for (name, truth) in targets() {
        let budget = if full { [2, 1, 2] } else { [2, 0, 2] };
        all.push(Setup { persons: true, ..setup(name, &[RwxBlock], 2, budget, truth) });
    }
    // Agents whose inventory comes some time after they have said Hello.
    let hello = setup("rwx, slow inventories", &[RwxBlock], 2, if full { [3, 1, 1] } else { [2, 1, 0] }, acl);
    all.push(Setup { atomic_hello: false, ..hello });
    // As many volumes as nodes, and one to each.
    let full_node =
        setup("one volume a node", &[Rwo, Rwo], 2, if full { [3, 1, 1] } else { [3, 0, 1] }, none);
    all.push(Setup { max_volumes: NonZeroU32::new(1), ..full_node });
    all.extend(two_portals(full));
    all.extend(strays(full));
    for (name, truth, min_fence) in demands() {
        let budget = if full { [2, 1, 2] } else { [2, 0, 2] };
        all.push(Setup { persons: true, min_fence, ..setup(name, &[RwxBlock], 2, budget, truth) });
    }
    // Two volumes, three nodes and two leaders are gone through to the end.
    let time = |setup: &Setup| if setup.access.len() > 1 { 10 * seconds } else { seconds };
    all.into_iter().map(|setup| Exhaustive { limits: limits(states, time(&setup)), setup }).collect()
}

/// Two paths to a volume: one breaks and the other does not, one is cut and the other is not (yet).
fn two_portals(full: bool) -> Vec<Setup> {
    use Access::{Rwo, RwxBlock};
    let toggles = Abilities { cuts: true, drains: true, ..Abilities::default() };
    let acl = Abilities { acl: true, ..toggles };
    let more = u8::from(full);
    [
        ("two portals", Rwo, [2, 1 + more, 1], Abilities::default()),
        ("two portals: list, cut, drain", RwxBlock, [2, 1, 1], acl),
        ("two portals: list, cut", RwxBlock, [2, 1, 1], Abilities { drains: false, ..acl }),
        ("two portals: cut, drain", Rwo, [2, 1, 1], toggles),
    ]
    .map(|(name, access, budget, truth)| Setup { portals: 2, ..setup(name, &[access], 2, budget, truth) })
    .to_vec()
}

/// Volumes that somebody connects by hand.
fn strays(full: bool) -> Vec<Setup> {
    use Access::{Rwo, RwxBlock};
    let toggles = Abilities { cuts: true, drains: true, ..Abilities::default() };
    let more = u8::from(full);
    [
        ("strays", Rwo, [2, 1 + more, 1], Abilities::default()),
        ("strays: rwx", RwxBlock, [2, 1 + more, 0], Abilities::default()),
        ("strays: cut, drain", Rwo, [1 + more, 1, 1 + more], toggles),
        ("strays: list, cut, drain", Rwo, [2, 1 + more, 0], Abilities { acl: true, ..toggles }),
    ]
    .map(|(name, access, budget, truth)| Setup { strays: true, ..setup(name, &[access], 2, budget, truth) })
    .to_vec()
}

/// What real worlds do besides, each in a small world of its own.
#[must_use]
pub fn dangers(full: bool) -> Vec<Exhaustive> {
    use Access::{Rwo, RwxBlock};
    let none = Dangers::default();
    let cut = Abilities { acl: true, cuts: true, ..Abilities::default() };
    let drains = Abilities { drains: true, ..cut };
    let aborts = Abilities { reservations: true, abort_waits: true, ..cut };
    let more = u8::from(full);
    let lists = Dangers { lists_lack: true, ..none };
    let unregisters = Dangers { unregisters_first: true, ..none };
    let words = Dangers { wrong_words: true, ..none };
    let clocks = Dangers { clocks_jump: true, ..none };
    let deletes = Dangers { deletes: true, ..none };
    let late = Dangers { requests_land_late: true, ..none };
    let secret = Abilities { secret: true, ..drains };
    [
        ("lists that lack a volume for a while", Rwo, [2, 1, more], drains, lists),
        ("a fence beside a survivor", RwxBlock, [3, more, 0], aborts, unregisters),
        ("a fence beside a survivor: list, cut, drain", RwxBlock, [3, more, 0], drains, unregisters),
        ("a node that was declared gone and lives", Rwo, [3, more, 2], Abilities::default(), words),
        ("clocks that jump", Rwo, [2, 1, 1 + more], cut, clocks),
        ("deletes", Rwo, [3, more, 0], drains, deletes),
        ("requests that land late", RwxBlock, [2, 1, more], drains, late),
        ("requests that land late: secret, cut, drain", RwxBlock, [2, 1, more], secret, late),
    ]
    .map(|(name, access, budget, truth, dangers)| Exhaustive {
        setup: Setup { persons: true, dangers, ..setup(name, &[access], 2, budget, truth) },
        limits: limits(if full { 20_000_000 } else { 200_000 }, if full { 240 } else { 25 }),
    })
    .into_iter()
    .chain(any_order(full))
    .chain(clusters(full))
    .chain(reports(full))
    .chain(tickets(full))
    .collect()
}

/// Holders of tickets beside callers: who is interrupted has its time, and nothing moves for what is no workload's.
fn tickets(full: bool) -> Vec<Exhaustive> {
    use Access::{Rwo, RwxBlock};
    let dangers = Dangers { tickets: true, ..Dangers::default() };
    let drains = Abilities { acl: true, cuts: true, drains: true, ..Abilities::default() };
    let more = u8::from(full);
    [
        ("tickets: rwo", Rwo, 2, [3, 0, 2 + more], Abilities::default()),
        ("tickets: rwx, three nodes", RwxBlock, 3, [3, 0, 1 + more], drains),
        ("tickets: rwo, faults", Rwo, 2, [2, 1, 2 + more], drains),
    ]
    .map(|(name, access, nodes, budget, truth)| Exhaustive {
        setup: Setup { dangers, ..setup(name, &[access], nodes, budget, truth) },
        limits: limits(if full { 20_000_000 } else { 200_000 }, if full { 60 } else { 15 }),
    })
    .into()
}

/// What KubeVirt reports, rightly or not: nothing of who may write follows from it.
fn reports(full: bool) -> Vec<Exhaustive> {
    let dangers = Dangers { kubevirt_errs: true, ..Dangers::default() };
    let drains = Abilities { acl: true, cuts: true, drains: true, ..Abilities::default() };
    let more = u8::from(full);
    [
        ("reports that are false", 2, [2, 0, 3], drains),
        ("reports that are false, faults", 2, [2, 1, more], drains),
        ("reports that are false, three nodes", 3, [3, 0, more], Abilities::default()),
    ]
    .map(|(name, nodes, budget, truth)| Exhaustive {
        setup: Setup { dangers, ..setup(name, &[Access::RwxBlock], nodes, budget, truth) },
        limits: limits(if full { 20_000_000 } else { 200_000 }, if full { 60 } else { 15 }),
    })
    .into()
}

/// What of a cluster stays while records are lost: VolumeAttachments, marks on nodes, and nodes that write.
fn clusters(full: bool) -> Vec<Exhaustive> {
    use Access::{Rwo, RwxBlock};
    let none = Abilities::default();
    let drains = Abilities { acl: true, cuts: true, drains: true, ..none };
    let more = u8::from(full);
    let lost = Dangers { records_lost: true, ..Dangers::default() };
    let nothing_else = Dangers { nothing_else: !full, ..lost };
    let vanish = Dangers { attachments_vanish: true, ..nothing_else };
    let nameless = Dangers { names_lost: true, ..nothing_else };
    let older = Dangers { records_lost: false, records_older: true, ..nothing_else };
    let marks = Dangers { marks: true, ..nothing_else };
    let both = [Rwo, RwxBlock];
    [
        ("records lost", &both[..1], 2, [2, 1, 1 + more], none, lost),
        ("records lost: list, cut, drain", &both[1..], 2, [2, 1, more], drains, lost),
        ("records lost, two volumes, three nodes", &both, 3, [2, 1, 0], drains, nothing_else),
        ("records lost, attachments gone", &both[..1], 2, [2, 2, more], none, vanish),
        ("records lost, attachments gone: list, cut, drain", &both[..1], 2, [2, 2, more], drains, vanish),
        ("records lost, names gone", &both[..1], 2, [2, 2, more], none, nameless),
        ("records lost, names gone: list, cut, drain", &both[..1], 2, [2, 2, more], drains, nameless),
        ("records set back: list, cut, drain", &both[..1], 2, [4, 1, more], drains, older),
        ("records lost, nodes out of service", &both[..1], 2, [3, 1, 3], none, marks),
        ("records lost, nodes out of service: list, cut, drain", &both[..1], 2, [3, 1, more], drains, marks),
    ]
    .map(|(name, access, nodes, budget, truth, dangers)| Exhaustive {
        setup: Setup { dangers, ..setup(name, access, nodes, budget, truth) },
        limits: limits(if full { 20_000_000 } else { 200_000 }, if full { 60 } else { 15 }),
    })
    .into()
}

/// Records that take their time: those of two volumes become durable in any order.
fn any_order(full: bool) -> Vec<Exhaustive> {
    let dangers = Dangers { records_in_any_order: true, ..Dangers::default() };
    let drains = Abilities { acl: true, cuts: true, drains: true, ..Abilities::default() };
    let more = u8::from(full);
    let of = |name, access: &[Access], nodes, budget| Exhaustive {
        setup: Setup { dangers, ..setup(name, access, nodes, budget, drains) },
        limits: limits(if full { 20_000_000 } else { 200_000 }, if full { 240 } else { 60 }),
    };
    let two = of("records durable in any order", &[Access::Rwo, Access::RwxBlock], 2, [2, 1, more]);
    let rwo = [Access::Rwo; 2];
    let mut fenced = vec![of("records durable in any order: two nodes fenced", &rwo, 2, [3, more, 0])];
    if full {
        fenced.push(of("records durable in any order: one node fenced", &rwo, 1, [3, 1, 1]));
    }
    let persons = |mut world: Exhaustive| {
        world.setup.persons = true;
        world
    };
    [two].into_iter().chain(fenced.into_iter().map(persons)).collect()
}

/// Walks among all that real worlds do besides.
#[must_use]
pub fn dangerous_walks() -> Vec<Setup> {
    let dangers = Dangers {
        lists_lack: true,
        unregisters_first: true,
        wrong_words: true,
        deletes: true,
        clocks_jump: true,
        requests_land_late: true,
        records_in_any_order: true,
        records_lost: true,
        records_older: true,
        attachments_vanish: true,
        names_lost: true,
        marks: true,
        kubevirt_errs: true,
        // What their holders were said counts from when it goes out, which is later here.
        tickets: false,
        nothing_else: false,
    };
    let names =
        ["dangers: list, cut, drain", "dangers: list, cut", "dangers: list, reservations that wait, cut"];
    let of = |name: &'static str| {
        let target = name.trim_start_matches("dangers: ");
        let setup = walks().into_iter().find(|setup| setup.name == target)?;
        Some(Setup { name, dangers, ..setup })
    };
    names.into_iter().filter_map(of).collect()
}

/// What is walked through at random: two volumes, three nodes, two leaders, many requests and faults.
#[must_use]
pub fn walks() -> Vec<Setup> {
    let access = [Access::Rwo, Access::RwxBlock];
    let budget = [40, 14, 60];
    let walk = |(name, truth)| Setup {
        atomic_hello: false,
        persons: true,
        ..setup(name, &access, 3, budget, truth)
    };
    let two_paths = |setup: Setup, name| Setup { name, portals: 2, strays: true, ..setup };
    let named = |of: &str| targets().into_iter().find(|(name, _)| *name == of);
    let twice = [
        ("two portals, strays: nothing probed", "nothing probed"),
        ("two portals, strays: list, cut, drain", "list, cut, drain"),
        ("two portals, strays: secret, cut, drain", "secret, cut, drain"),
        ("two portals, strays: cut", "cut"),
        ("two portals, strays: list, reservations, cut, drain", "list, reservations, cut, drain"),
        ("two portals, strays: list, reservations that wait, cut", "list, reservations that wait, cut"),
    ];
    let twice = twice.into_iter().filter_map(|(name, of)| Some(two_paths(walk(named(of)?), name)));
    let demands = demands();
    let demanding =
        demands.into_iter().map(|(name, truth, min_fence)| Setup { min_fence, ..walk((name, truth)) });
    let dangers = Dangers { records_in_any_order: true, ..Dangers::default() };
    let any_order = [
        ("records durable in any order: walks, nothing probed", "nothing probed"),
        ("records durable in any order: walks, list, cut, drain", "list, cut, drain"),
    ];
    let any_order =
        any_order.into_iter().filter_map(|(name, of)| Some(Setup { dangers, ..walk((name, named(of)?.1)) }));
    // Nobody declares a node gone that still holds what it may not have.
    let one_each = |(name, of)| {
        let (persons, max_volumes) = (false, NonZeroU32::new(1));
        Some(Setup { persons, max_volumes, ..walk((name, named(of)?.1)) })
    };
    let one_each =
        [("one volume a node: walks, list, cut, drain", "list, cut, drain")].into_iter().filter_map(one_each);
    let reports = |(name, of)| {
        let dangers = Dangers { kubevirt_errs: true, ..Dangers::default() };
        Some(Setup { dangers, ..walk((name, named(of)?.1)) })
    };
    let reports = [
        ("reports that are false: walks, nothing probed", "nothing probed"),
        ("reports that are false: walks, list, cut, drain", "list, cut, drain"),
    ]
    .into_iter()
    .filter_map(reports);
    let with_tickets = |(name, of)| {
        let dangers = Dangers { tickets: true, ..Dangers::default() };
        Some(Setup { dangers, ..walk((name, named(of)?.1)) })
    };
    let with_tickets = [
        ("tickets: walks, nothing probed", "nothing probed"),
        ("tickets: walks, list, cut, drain", "list, cut, drain"),
    ]
    .into_iter()
    .filter_map(with_tickets);
    let all = targets().into_iter().map(walk).chain(twice).chain(demanding);
    all.chain(any_order).chain(one_each).chain(reports).chain(with_tickets).collect()
}

/// The name of all [`mixture`]s.
pub const MIXTURE: &str = "any mixture";

/// What else is walked through at random: a target of any mixture, demands of any strength, a clock that does not go by
/// whole quanta; another one for each seed.
#[must_use]
pub fn mixture(seed: u64) -> Setup {
    let mut numbers = Numbers::of(seed ^ 0x6d69_7874);
    let cuts = Abilities { cuts: true, drains: true, ..Abilities::default() };
    let acl = Abilities { acl: true, ..cuts };
    // Each rung where it is the first one that there is, as often as all the mixtures.
    let truth = match numbers.below(11) {
        0 => cuts,
        1 => acl,
        2 => Abilities { secret: true, ..cuts },
        3 => Abilities { reservations: true, ..acl },
        4 | 5 => Abilities { reservations: true, abort_waits: true, drains: false, ..acl },
        _ => {
            let reservations = numbers.below(2) == 0;
            Abilities {
                acl: numbers.below(4) > 0,
                cuts: numbers.below(4) > 0,
                drains: numbers.below(4) > 0,
                secret: numbers.below(2) > 0,
                reservations,
                abort_waits: reservations && numbers.below(2) == 0,
            }
        }
    };
    let min_fence = match numbers.below(8) {
        0 => MinFence::ExportOff,
        1 => MinFence::Acl,
        2 => MinFence::Secret,
        3 => MinFence::Reservation,
        _ => MinFence::NodeGone,
    };
    let portals = 1 + usize::from(numbers.below(2) == 0);
    let access = [Access::Rwo, Access::RwxBlock];
    let kubevirt_errs = numbers.below(4) == 0;
    let dangers = Dangers { kubevirt_errs, tickets: numbers.below(3) == 0, ..Dangers::default() };
    Setup {
        dangers,
        min_fence,
        portals,
        persons: true,
        uneven: true,
        atomic_hello: false,
        ..setup(MIXTURE, &access, 3, [u8::MAX; 3], truth)
    }
}
