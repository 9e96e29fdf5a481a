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

/// The targets on which everything is tried.
#[must_use]
pub fn targets() -> Vec<(&'static str, Truth)> {
    let none = Truth::default();
    vec![("unknown target", none), ("acl", Truth { acl: true, ..none })]
}

/// What is gone through exhaustively, or as far as the limits allow.
#[must_use]
pub fn exhaustive(full: bool) -> Vec<Exhaustive> {
    use Access::{Rwo, RwxBlock};
    let none = Truth::default();
    let acl = Truth { acl: true, ..none };
    let (states, seconds) = if full { (40_000_000, 600) } else { (2_000_000, 8) };
    let all = [
        setup("rwo, calm", &[Rwo], 2, [3, 0, 1], none),
        setup("rwo, one fault", &[Rwo], 2, [2, 1, 1], none),
        setup("rwx, calm", &[RwxBlock], 3, [3, 0, 0], none),
        setup("rwo, two volumes, three nodes", &[Rwo, RwxBlock], 3, [2, 1, 0], acl),
    ];
    all.into_iter().map(|setup| Exhaustive { setup, limits: limits(states, seconds) }).collect()
}

/// What is walked through at random: two volumes, three nodes, two leaders, many requests and faults.
#[must_use]
pub fn walks() -> Vec<Setup> {
    let access = [Access::Rwo, Access::RwxBlock];
    let walk = |(name, truth)| Setup {
        atomic_hello: false,
        persons: true,
        ..setup(name, &access, 3, [40, 14, 60], truth)
    };
    targets().into_iter().map(walk).collect()
}
