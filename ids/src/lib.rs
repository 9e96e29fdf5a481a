//! Identifiers that all of Cleat's programs share, checked once when they come in.
//!
//! Comes in: text and numbers from a message, a file, the command line or the kernel. Goes out: a type that
//! cannot contain an invalid value, or [`IdError`] with the value, the rule that it breaks and what to use
//! instead.
//!
//! Always holds:
//! - What is written is read back as the same value, both as text and by serde (which writes the text).
//! - A volume id and a node id can be part of a file name, a URI, a certificate, a metric's label and a log
//!   line without a change of meaning; a volume id also of an NQN.
//! - An NQN or a portal can be put unchanged into the kernel's comma-separated option string.
//! - No I/O, no clock, no randomness.

mod context;
mod epoch;
mod error;
mod migration;
mod namespace;
mod node;
mod nqn;
mod operation;
mod portal;
mod text;
mod ticket;
mod volume;

pub use context::{
    DEFAULT_DRIVER_NAME, DriverName, EPOCH_KEY, MIGRATION_TIMEOUT_KEY, MIGRATION_TIMEOUT_PARAMETER,
    MIN_FENCE_KEY, MIN_FENCE_PARAMETER, NAMESPACE_KEY, REQUIRE_MIGRATION_KEY, REQUIRE_MIGRATION_PARAMETER,
    SUBSYSTEM_KEY, VOLUME_KEY,
};
pub use epoch::Epoch;
pub use error::IdError;
pub use migration::MigrationUid;
pub use namespace::{NamespaceIdentity, NamespaceUuid, Nguid};
pub use node::{BootId, NodeId, NodeUid, SessionId};
pub use nqn::{HostId, HostNqn, NqnPrefix, SubsystemNqn};
pub use operation::{OperationId, RequestId};
pub use portal::{Portal, StorageAddress};
pub use ticket::TicketId;
pub use volume::VolumeId;
