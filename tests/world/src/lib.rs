//! One model of what stands around Cleat's decisions: kernels, agents, a target, an RDS and the network between them.
//!
//! Everything that checks Cleat without machines drives this: the exhaustive search and its walks (`tests/model`), and,
//! of it the target's rules alone, the simulation (`tests/sim`) and the agent's own tests (`agent/src/testing`). So they
//! cannot disagree about what a target does.
//!
//! [`reservations`] and [`target`] know nothing of controllers. The rest (feature `core`) is a [`world::World`] with
//! one or two leaders that run the shipped `cleat-core`: a plain value, cloned for each step, so that it can be walked
//! through at random as well as gone through to the end. [`check`] says for every state what must hold, over the world
//! ("who could write") and never over the core's opinion, and `cut` and `tickets` for every step whom a leader may cut; [`heal`] says
//! that nothing gets stuck, and `patience` that whoever waits is told for what.

pub mod reservations;
pub mod target;

#[cfg(feature = "core")]
pub mod act;
#[cfg(feature = "core")]
pub mod action;
#[cfg(feature = "core")]
mod agents;
#[cfg(feature = "core")]
pub mod check;
#[cfg(feature = "core")]
pub mod cluster;
#[cfg(feature = "core")]
mod cut;
#[cfg(feature = "core")]
pub mod export;
#[cfg(feature = "core")]
pub mod heal;
#[cfg(feature = "core")]
pub mod host;
#[cfg(feature = "core")]
pub mod kinds;
#[cfg(feature = "core")]
pub mod names;
#[cfg(feature = "core")]
mod patience;
#[cfg(feature = "core")]
mod rds;
#[cfg(feature = "core")]
mod records;
#[cfg(feature = "core")]
mod reports;
#[cfg(feature = "core")]
mod shell;
#[cfg(feature = "core")]
pub mod tickets;
#[cfg(feature = "core")]
pub mod world;
