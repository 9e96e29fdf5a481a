//! Deterministic simulation of whole controller and agents.
//!
//! Owns: a world made of memory (one storage target, three nodes with their kernels, an RDS, a disk), the network
//! between them ([turmoil]), faults in all of it, and clients that publish and unpublish as Kubernetes would. Comes
//! in: a seed. Goes out: whether the invariants of the design held at every moment of the world, and a trace.
//!
//! What runs in it is the code that ships: the controller from its listeners to its store and its client to the RDS, the
//! agent from its session to its ledger, and their gRPC. What is simulated: time, network, kernels (the agent's
//! `Host`), the RDS and its target (under the controller's REST client, which has somebody else for HTTP), the disk
//! under the controller's store. Programs die, stand still and go on (also a whole machine); machines burn down, and
//! others take their place; a person fences, and says that a node is gone where it is.
//!
//! Not simulated, and proven elsewhere or not at all: two controllers at once, but as a planted fault (what protects
//! is the lock on the store, and one that stands still keeps it); the store in Kubernetes; TLS and HTTP; creating,
//! growing and deleting volumes; the node's CSI service and mounts; the out-of-service taint; wall clocks that jump; a
//! ledger that is torn (it is a real file; it is lost with its machine); the order and content of blocks (a write is on
//! its way or has landed); more than one thread, so races within a program, and a program that stands still between
//! two calls to its kernel that are one step here.
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
//! | [`rds`] | the RDS under the controller's client to it |
//! | [`disk`] | the controller's store |
//! | [`net`] | gRPC over the simulated network |
//! | [`process`] | a program that can be killed and stand still |
//! | [`programs`] | controller and agents, put together |
//! | [`machines`] | which program runs where |
//! | [`attacher`] | the clients |
//! | [`operator`] | a person's words |
//! | [`faults`] | what goes wrong, and when |
//! | [`kubevirt`] | KubeVirt, as `tests/kubevirt` plays it |
//! | [`ends`] | how live migrations end: scenes, each with what has to come of it |
//! | [`run`](mod@run) | one seed from begin to end |
//! | [`chance`], [`entropy`] | where randomness comes from |

// A part of the world that is not as it was built ends the simulation: that is what it is for.
#![allow(clippy::unwrap_used)]

pub mod attacher;
pub mod chance;
pub mod disk;
pub mod ends;
pub mod entropy;
pub mod faults;
pub mod host;
pub mod kubevirt;
pub mod machines;
pub mod net;
pub mod operator;
pub mod process;
pub mod programs;
pub mod rds;
mod reservations;
pub mod run;
pub mod world;
