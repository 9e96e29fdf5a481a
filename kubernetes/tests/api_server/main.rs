//! ClusterRecords, the Lease, Events and tickets on a real API server, with a real etcd behind it.

#![allow(clippy::unwrap_used)]

mod definitions;
mod deployed;
mod events;
mod kubevirt;
mod lease;
mod own_tickets;
mod records;
mod serving_ca;
mod tickets;
