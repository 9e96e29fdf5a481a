//! ClusterRecords and the Lease on a real API server, with a real etcd behind it.

#![allow(clippy::unwrap_used)]

mod deployed;
mod lease;
mod records;
mod serving_ca;
