//! Model checking of the shipped `cleat-core`.
//!
//! The core that runs here is the crate that the controller links, with no switch in it. Around it stands a
//! [`world`]: one or two leaders over one store, nodes with kernels and agents, a target, and what is on its way
//! between them. [`explore`] goes through all that can happen within a budget of requests, faults and time, and through
//! much more at random; [`check`] says for every state what must hold, over the world ("who could write") and never
//! over the core's opinion; [`heal`] says that nothing gets stuck, and `patience` that whoever waits
//! is told for what.
//!
//! The reductions that make it small, each of them sound for what is checked or said in the report: an abstract clock
//! whose unit is a third of the bounds; one path in most worlds, and two in the others; nodes are alike; what decides
//! nothing does not tell states apart ([`canon`]); at most so many requests, faults and ticks.
//!
//! `hack/mutations` puts known mistakes into a copy of the core, one at a time, and demands that this finds each.

pub mod act;
pub mod action;
mod agents;
pub mod canon;
pub mod check;
pub mod explore;
pub mod heal;
pub mod host;
pub mod kinds;
pub mod names;
mod patience;
mod rds;
pub mod setups;
mod shell;
pub mod target;
pub mod world;
