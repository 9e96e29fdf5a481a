//! The identifiers that the core speaks of (all from `cleat-ids`), and its measure of time.

use serde::{Deserialize, Serialize};

pub use cleat_ids::{
    BootId, Epoch, HostId, HostNqn, IdError, MigrationUid, NamespaceUuid, Nguid, NodeId, NodeUid,
    OperationId, Portal, RequestId, SessionId, StorageAddress, SubsystemNqn, TicketId, VolumeId,
};

/// Milliseconds since 1970, on a clock that never goes back: the shell takes the wall clock once at its start and
/// adds the monotonic time that has passed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// This time plus so many milliseconds.
    #[must_use]
    pub fn plus(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` until this; 0 if that is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
