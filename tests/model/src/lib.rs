//! Model checking of the shipped `cleat-core`.
//!
//! The core that runs here is the crate that the controller links, with no switch in it. Around it stands the world of
//! `tests/world`. [`explore`] goes through all that can happen in it within a budget of requests, faults and time, and
//! through much more at random; [`setups`] says in which worlds; [`canon`] says when two of their states count as one.
//!
//! The reductions that make it small, each of them sound for what is checked or said in the report: an abstract clock
//! whose unit is a third of the bounds; one path in most worlds, and two in the others; nodes are alike; what decides
//! nothing does not tell states apart ([`canon`]); at most so many requests, faults and ticks.
//!
//! `hack/mutations` puts known mistakes into a copy of the core, one at a time, and demands that this, the core's tests
//! or the simulation finds each.

pub mod canon;
pub mod explore;
pub mod setups;
