//! Cleat on real kernels: the sequence that shows what a handoff did to the data, and the tools that tests, demo
//! and benchmarks share.
//!
//! * [`sequence`] is pure: records, where they lie, and the judge of what a device holds.
//! * [`writer`] writes such a sequence; it runs in guests as `cleat-writer`.
//! * [`mod@bench`] is what `hack/bench` measures.
//! * [`demo`] is what `hack/demo` shows.
//! * [`vm`] is a virtual machine of a real QEMU on a node, and what judges its live migration.
//! * [`suite`] runs tests that share a booted world.
//! * [`world`] boots an RDS and nodes, starts every part of Cleat, and has typed clients for all of them.

pub mod bench;
pub mod demo;
pub mod sequence;
pub mod suite;
pub mod vm;
pub mod world;
pub mod writer;
