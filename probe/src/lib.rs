//! Finds out what an RDS can do, by trying it on a scratch disk from one node: `cleatctl rds probe`.
//!
//! Comes in: the address of an RDS and of its portals. Goes out: an account in plain words, and the file that
//! `cleat-controller --rds-abilities` reads. It is a program of its own because it alone needs both the
//! controller's RDS client and the agent's way to the kernel, which never import each other.
//!
//! Always holds:
//! - It touches only one disk with a fresh name, and connections to it under host identities that it has just
//!   made: never the node's own, and no other volume's.
//! - Every question ends within a limited time. "Could not be found out" is an answer of its own, with its
//!   reason, and never counts as a yes.
//! - It removes disk, file and connections at the end, whatever that end is. Where that fails, it says what
//!   is left and how to remove it.
//!
//! | module | owns |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`run`] | the order of the questions, the end, what is written |
//! | [`scratch`] | the disk on the RDS |
//! | [`node`] | this node's connections to it |
//! | [`pulse`], [`volley`] | writes that go on, and writes that are on their way |
//! | `questions` | one file each: what is tried, and what its outcome means |
//! | [`findings`], [`words`] | the answers, and how they are said |

pub mod cli;
pub mod findings;
pub mod node;
pub mod pulse;
mod questions;
pub mod run;
pub mod scratch;
pub mod trouble;
pub mod volley;
pub mod words;
