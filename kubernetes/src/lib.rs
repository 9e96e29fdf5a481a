//! The Kubernetes API as Cleat uses it. Nothing else of Cleat knows `kube`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`api`] | a client that asks once, within a time of its own, and what an answer means |
//! | [`attachments`] | VolumeAttachments and PersistentVolumes: who is to have a volume |
//! | [`definitions`] | the custom resources, as the cluster has to know them |
//! | [`records`] | the records of volumes and nodes, written against a version |
//! | [`notes`] | a few lines beside the records, in a ConfigMap |
//! | [`watch`] | what there is of one kind of object, kept up to date |
//! | [`lease`] | the one leader: its claim, its term, and how long both hold |

pub mod api;
pub mod attachments;
pub mod definitions;
pub mod lease;
pub mod notes;
pub mod records;
mod schema;
pub mod watch;
