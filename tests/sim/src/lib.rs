//! Deterministic simulation of whole controller and agents.
//!
//! Owns: a world made of memory (one storage target, three nodes with their kernels, an RDS, a disk), the network
//! between them ([turmoil]), faults in all of it, and clients that publish and unpublish as Kubernetes would. Comes
//! in: a seed. Goes out: whether the invariants of the design held at every moment of the world, and a trace.
//!
//! What runs in it is the code that ships: the controller from its listeners to its store, the agent from its session
//! to its ledger, and their gRPC. What is simulated: time, network, kernels (the agent's `Host`), the RDS and its
//! target (the controller's `Rds`), the disk under the controller's store.
//!
//! Not simulated, and proven elsewhere or not at all: two controllers at once, and the store in Kubernetes (one
//! controller is killed and started again); TLS; the RDS's own language and its login (the controller's `Rds` is
//! replaced whole); creating, growing and deleting volumes; ghosts; the node's CSI service and mounts; people's own
//! words (fence, declare-gone, the out-of-service taint) and `minFence`; frozen processes and clocks that jump; a
//! ledger that is lost or torn (it is a real file, written where it stands); the order and content of blocks (a write is
//! on its way or has landed); more than one thread, so races within a program.
//!
//! Always holds:
//! - One thread runs everything, and every chance comes from the seed: the same seed gives the same trace, in a
//!   process of its own (see [`entropy`]).
//! - The invariants are read off the world ([`world::rules`]), never off the controller's or an agent's own opinion.
//!
//! | module | owns |
//! | --- | --- |
//! | [`world`] | the world and its time |
//! | [`host`], `reservations` | the agent's view of its machine |
//! | [`rds`] | the controller's view of the RDS |
//! | [`disk`] | the controller's store |
//! | [`net`] | gRPC over the simulated network |
//! | [`programs`] | controller and agents, put together |
//! | [`attacher`] | the clients |
//! | [`faults`] | what goes wrong, and when |
//! | [`run`](mod@run) | one seed from begin to end |
//! | [`chance`], [`entropy`] | where randomness comes from |

// A part of the world that is not as it was built ends the simulation: that is what it is for.
#![allow(clippy::unwrap_used)]

pub mod attacher;
pub mod chance;
pub mod disk;
pub mod entropy;
pub mod faults;
pub mod host;
pub mod net;
pub mod programs;
pub mod rds;
mod reservations;
pub mod run;
pub mod world;
