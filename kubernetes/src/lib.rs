//! The Kubernetes API as Cleat uses it. Nothing else of Cleat knows `kube`.
//!
//! | module | owns |
//! | --- | --- |
//! | [`api`] | a client that asks once, within a time of its own, and what an answer means |
//! | [`attachments`] | VolumeAttachments and PersistentVolumes: who is to have a volume |
//! | [`definitions`] | the custom resources, as the cluster has to know them |
//! | [`records`] | the records of volumes and nodes, written against a version |
//! | [`notes`] | a few lines beside the records, in a ConfigMap |
//! | [`kubevirt`] | which VM has a volume, and whether it is migrating |
//! | [`tickets`] | why a volume should be attached somewhere, as objects of a namespace |
//! | [`own_tickets`] | those that a person makes |
//! | [`watch`] | what there is of one kind of object, kept up to date |
//! | [`reviews`] | who somebody is and what he may do |
//! | [`serving_ca`] | the CA of the controller's own certificate |
//! | [`client_ca`] | the CA of the cluster's client certificates |
//! | [`identity`] | who a person is, by their kubeconfig |
//! | [`in_use`] | what keeps Cleat from being uninstalled |
//! | [`events`] | what happened, as Events of the objects that it happened to |
//! | [`references`] | which objects those are |
//! | [`nodes`] | which Nodes are marked out of service |
//! | [`lease`] | the one leader: its claim, its term, and how long both hold |

pub mod api;
pub mod attachments;
pub mod client_ca;
pub mod definitions;
pub mod events;
pub mod identity;
pub mod in_use;
pub mod kubevirt;
pub mod lease;
pub mod nodes;
pub mod notes;
pub mod own_tickets;
pub mod records;
pub mod references;
pub mod reviews;
mod schema;
pub mod serving_ca;
pub mod tickets;
pub mod watch;
