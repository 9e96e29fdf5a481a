//! ClusterRecords and the Lease on a real API server, with a real etcd behind it.

#![allow(clippy::unwrap_used)]

mod lease;
mod records;
mod serving_ca;
