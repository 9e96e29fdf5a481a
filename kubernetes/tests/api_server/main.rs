//! Records and the Lease on a real API server, with a real etcd behind it.
//!
//! Needs `CLEAT_KUBERNETES`: the folder that hack/kubernetes-programs prints. Without, nothing runs and nothing is shown.

#![allow(clippy::unwrap_used)]

mod fixture;
mod lease;
mod records;
