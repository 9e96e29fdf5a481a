//! The controller as a whole, in process: a real store in a file, real gRPC over loopback and a Unix socket, an RDS
//! that lives in memory, and agents that follow a script.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod agent;
mod attach;
mod certificates;
mod cluster;
mod cluster_late_calls;
mod cluster_maintenance;
mod cluster_migrations;
mod cluster_nodes;
mod cluster_scale;
mod cluster_tickets;
mod cluster_trust;
mod counts;
mod crowd;
mod export_off;
mod failures;
mod fencing;
mod list;
mod operators;
mod process;
mod rds;
mod restart;
mod sessions;
mod storm;
mod tickets;
mod trust;
mod world;
