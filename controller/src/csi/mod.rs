//! CSI Identity and Controller, as the usual sidecars call them over a Unix socket.
//!
//! In come requests; out go answers, each after: validate, begin or join the operation, wait for it, map the error
//! once. What holds: an operation once begun goes on when its caller gives up, and a repeated call joins it; success
//! is said only on proof; a volume is called absent only if the RDS has said so.

mod controller;
mod identity;
mod in_progress;
mod overtaking;
mod provision;
mod publish;
mod request;
mod status;

pub use controller::{CsiController, Serving};
pub use identity::CsiIdentity;
pub use status::refusal_code;

/// In a PublishContext: the epoch of the grant, `TERM.SEQ`.
pub const EPOCH_KEY: &str = "cleat.io/epoch";
/// In a PublishContext: the NQN of the volume's subsystem.
pub const SUBSYSTEM_KEY: &str = "cleat.io/subsystem-nqn";
/// In a PublishContext: the UUID of the volume's namespace.
pub const NAMESPACE_KEY: &str = "cleat.io/namespace-uuid";
/// In a volume's context: the weakest fence that suffices for it, as CreateVolume was told by [`MIN_FENCE`].
pub const MIN_FENCE_KEY: &str = "cleat.io/min-fence";
/// The CreateVolume parameter: the weakest fence that suffices.
pub const MIN_FENCE: &str = "minFence";
