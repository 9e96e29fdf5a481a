//! The Kubernetes API as Cleat uses it. Nothing else of Cleat knows `kube`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`api`] | a client that asks once, within a time of its own, and what an answer means |
//! | [`definitions`] | the custom resources, as the cluster has to know them |
//! | [`records`] | the records of volumes and nodes, written against a version |
//! | [`notes`] | a few lines beside the records, in a ConfigMap |
//! | [`lease`] | the one leader: its claim, its term, and how long both hold |

pub mod api;
pub mod definitions;
pub mod lease;
pub mod notes;
pub mod records;
mod schema;
