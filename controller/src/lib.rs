//! The controller of Cleat: attachment tracking for NVMe/TCP volumes of a MikroTik ROSE Data Server.
//!
//! Everything that decides is in `cleat-core`; this crate is the world around it: it turns RPCs, sessions and answers
//! of the RDS into events, and carries out the effects.
//!
//! | module | owns |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`app`] | the parts put together, from listeners to shutdown |
//! | [`maintenance`] | what the program does instead of running: `migrate-store`, `uninstall-check` |
//! | [`engine`] | the core's task, durable records, effects in order |
//! | [`agents`] | agent sessions |
//! | [`csi`] | CSI Identity and Controller |
//! | [`operator`] | the operators' service |
//! | `events` | what happens, as Events beside the cluster's objects |
//! | `explain` | the core's reasons as text |
//! | `rpc_status` | the gRPC status of what the engine did not grant |
//! | [`stored`] | from `--store` to records and a term |
//! | `cluster` | who is to have a volume, as the cluster says it |
//! | [`clients`] | who may call what |
//! | [`trust`] | who is who, where the cluster says it |
//! | [`leadership`] | whether this process may act |
//! | [`store`] | what must not be forgotten |
//! | [`metrics`] | names, labels and buckets |
//! | `nodes` | Nodes that the cluster says are out of service |
//! | [`clock`] | time that never goes back |

pub mod agents;
pub mod app;
pub mod cli;
pub mod clients;
pub mod clock;
mod cluster;
pub mod csi;
pub mod engine;
mod events;
mod explain;
pub mod leadership;
pub mod maintenance;
pub mod metrics;
mod nodes;
pub mod operator;
mod pins;
mod rpc_status;
pub mod store;
pub mod stored;
pub mod trust;
