//! The worlds that are checked, and how far.

use std::time::Duration;

use cleat_core::Access;

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
    Setup { name, access: access.to_vec(), nodes, truth, budget, persons: false, atomic_hello: true }
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

/// What is gone through exhaustively, or as far as the limits allow.
#[must_use]
pub fn exhaustive(full: bool) -> Vec<Exhaustive> {
    use Access::{Rwo, RwxBlock};
    let none = Truth::default();
    let acl = Truth { acl: true, ..none };
    let (states, seconds) = if full { (20_000_000, 120) } else { (200_000, 12) };
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
    all.into_iter().map(|setup| Exhaustive { setup, limits: limits(states, seconds) }).collect()
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
    targets().into_iter().map(walk).collect()
}
