//! The worlds that are checked, and how far.

use std::time::Duration;

use cleat_core::{Access, MinFence};

use crate::explore::Limits;
use crate::target::Truth;
use crate::world::{Budget, Setup};

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

fn setup(name: &'static str, access: &[Access], nodes: usize, budget: [u8; 3], truth: Truth) -> Setup {
    let [requests, faults, ticks] = budget;
    let budget = Budget { requests, faults, ticks };
    let (portals, min_fence, ghosts, persons, atomic_hello) = (1, MinFence::default(), false, false, true);
    let access = access.to_vec();
    Setup {
        name,
        access,
        nodes,
        truth,
        portals,
        min_fence,
        ghosts,
        budget,
        persons,
        atomic_hello,
        only: None,
    }
}

/// The targets on which everything is tried, by what they can do.
#[must_use]
pub fn targets() -> Vec<(&'static str, Truth)> {
    let none = Truth::default();
    let toggles = Truth { cuts: true, drains: true, ..none };
    vec![
        ("nothing probed", none),
        ("list, cut, drain", Truth { acl: true, ..toggles }),
        ("list, cut", Truth { acl: true, cuts: true, ..none }),
        ("list alone", Truth { acl: true, ..none }),
        ("secret, cut, drain", Truth { secret: true, ..toggles }),
        ("list, secret, cut, drain", Truth { acl: true, secret: true, ..toggles }),
        ("cut, drain", toggles),
        ("cut", Truth { cuts: true, ..none }),
        ("list, reservations that wait", Truth { acl: true, reservations: true, abort_waits: true, ..none }),
        (
            "list, reservations that wait, cut",
            Truth { acl: true, reservations: true, abort_waits: true, cuts: true, ..none },
        ),
        ("reservations that wait", Truth { reservations: true, abort_waits: true, ..none }),
        ("list, reservations, cut, drain", Truth { acl: true, reservations: true, ..toggles }),
    ]
}

/// Targets whose volumes demand more of a fence than a person's word, each on a target that has weaker ones, too.
#[must_use]
pub fn demands() -> Vec<(&'static str, Truth, MinFence)> {
    let toggles = Truth { cuts: true, drains: true, ..Truth::default() };
    let list = Truth { acl: true, ..toggles };
    vec![
        ("export off demanded", toggles, MinFence::ExportOff),
        ("a list demanded, and there is none", toggles, MinFence::Acl),
        ("a list demanded", list, MinFence::Acl),
        ("a secret demanded", Truth { secret: true, ..list }, MinFence::Secret),
        ("a reservation demanded", Truth { reservations: true, ..list }, MinFence::Reservation),
    ]
}

/// What is gone through exhaustively, or as far as the limits allow.
#[must_use]
pub fn exhaustive(full: bool) -> Vec<Exhaustive> {
    use Access::{Rwo, RwxBlock};
    let none = Truth::default();
    let acl = Truth { acl: true, ..none };
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
    all.extend(two_portals(full));
    all.extend(ghosts(full));
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
    let toggles = Truth { cuts: true, drains: true, ..Truth::default() };
    let acl = Truth { acl: true, ..toggles };
    let more = u8::from(full);
    [
        ("two portals", Rwo, [2, 1 + more, 1], Truth::default()),
        ("two portals: list, cut, drain", RwxBlock, [2, 1, 1], acl),
        ("two portals: list, cut", RwxBlock, [2, 1, 1], Truth { drains: false, ..acl }),
        ("two portals: cut, drain", Rwo, [2, 1, 1], toggles),
    ]
    .map(|(name, access, budget, truth)| Setup { portals: 2, ..setup(name, &[access], 2, budget, truth) })
    .to_vec()
}

/// Volumes that somebody connects by hand.
fn ghosts(full: bool) -> Vec<Setup> {
    use Access::{Rwo, RwxBlock};
    let toggles = Truth { cuts: true, drains: true, ..Truth::default() };
    let more = u8::from(full);
    [
        ("ghosts", Rwo, [2, 1 + more, 1], Truth::default()),
        ("ghosts: rwx", RwxBlock, [2, 1 + more, 0], Truth::default()),
        ("ghosts: cut, drain", Rwo, [1 + more, 1, 1 + more], toggles),
        ("ghosts: list, cut, drain", Rwo, [2, 1 + more, 0], Truth { acl: true, ..toggles }),
    ]
    .map(|(name, access, budget, truth)| Setup { ghosts: true, ..setup(name, &[access], 2, budget, truth) })
    .to_vec()
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
    let two_paths = |setup: Setup, name| Setup { name, portals: 2, ghosts: true, ..setup };
    let named = |of: &str| targets().into_iter().find(|(name, _)| *name == of);
    let twice = [
        ("two portals, ghosts: nothing probed", "nothing probed"),
        ("two portals, ghosts: list, cut, drain", "list, cut, drain"),
        ("two portals, ghosts: secret, cut, drain", "secret, cut, drain"),
        ("two portals, ghosts: cut", "cut"),
        ("two portals, ghosts: list, reservations, cut, drain", "list, reservations, cut, drain"),
        ("two portals, ghosts: list, reservations that wait, cut", "list, reservations that wait, cut"),
    ];
    let twice = twice.into_iter().filter_map(|(name, of)| Some(two_paths(walk(named(of)?), name)));
    let demands = demands();
    let demanding =
        demands.into_iter().map(|(name, truth, min_fence)| Setup { min_fence, ..walk((name, truth)) });
    targets().into_iter().map(walk).chain(twice).chain(demanding).collect()
}
