//! CSI Identity and Controller, as the usual sidecars call them over a Unix socket.
//!
//! In come requests; out go answers, each after: validate, begin or join the operation, wait for it, map the error
//! once. What holds: an operation once begun goes on when its caller gives up, and a repeated call joins it; success
//! is said only on proof; a volume is called absent only if the RDS has said so; where a volume is published is read from
//! durable state alone.

mod call_context;
mod controller;
mod demands;
mod for_tickets;
mod health;
mod identity;
mod in_progress;
mod list;
mod name;
mod overtaking;
mod provision;
mod publish;
mod request;
mod status;
mod turns;

pub use call_context::Serving;
pub use controller::CsiController;
pub(crate) use demands::VolumeDemands;
pub use for_tickets::TicketVolumes;
pub use identity::CsiIdentity;

pub use cleat_ids::{
    EPOCH_KEY, MIN_FENCE_KEY, MIN_FENCE_PARAMETER as MIN_FENCE, NAMESPACE_KEY, SUBSYSTEM_KEY, VOLUME_KEY,
};
