//! What a node's agent has found out about a volume's device, and in what two findings differ.
//!
//! What always holds: what one side does not know differs in nothing.

use serde::{Deserialize, Serialize};

use crate::{NamespaceUuid, Nguid};

/// What the namespace says of itself; learned at the first attach, then pinned.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DeviceIdentity {
    /// Namespace UUID.
    pub namespace_uuid: NamespaceUuid,
    /// NGUID, where the target has one.
    pub nguid: Option<Nguid>,
}

impl DeviceIdentity {
    /// Nothing that both say speaks against the two being one.
    pub(crate) fn may_be(&self, other: &Self) -> bool {
        let other_nguid = self.nguid.zip(other.nguid).is_some_and(|(one, other)| one != other);
        self.namespace_uuid == other.namespace_uuid && !other_nguid
    }

    /// The same, with what was known before and is not said now.
    pub(crate) fn with(self, pinned: Option<Self>) -> Self {
        Self { nguid: self.nguid.or(pinned.and_then(|pinned| pinned.nguid)), ..self }
    }
}

/// What a device is like on its node, whatever a mount or a pod makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DeviceShown {
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// The size of its logical blocks, in bytes, where that could be read.
    #[serde(default)]
    pub block_size_bytes: Option<u32>,
    /// The kernel refuses writes to it.
    pub read_only: bool,
}

/// In what a device differs from that of another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceDifference {
    /// Its size.
    Size {
        /// Its own, in bytes.
        found: u64,
        /// The other node's.
        other: u64,
    },
    /// One of them is read-only.
    ReadOnly {
        /// This one is.
        found: bool,
    },
    /// The size of its logical blocks.
    BlockSize {
        /// Its own, in bytes.
        found: u32,
        /// The other node's.
        other: u32,
    },
}

impl DeviceDifference {
    /// The clause of readiness that fails by it.
    #[must_use]
    pub fn clause(self) -> &'static str {
        match self {
            Self::Size { .. } => "size",
            Self::ReadOnly { .. } => "read-only",
            Self::BlockSize { .. } => "block-size",
        }
    }
}

impl DeviceShown {
    /// The first thing in which it differs.
    pub(crate) fn difference(&self, other: &Self) -> Option<DeviceDifference> {
        if self.size_bytes != other.size_bytes {
            return Some(DeviceDifference::Size { found: self.size_bytes, other: other.size_bytes });
        }
        if self.read_only != other.read_only {
            return Some(DeviceDifference::ReadOnly { found: self.read_only });
        }
        let blocks =
            self.block_size_bytes.zip(other.block_size_bytes).filter(|(found, other)| found != other);
        blocks.map(|(found, other)| DeviceDifference::BlockSize { found, other })
    }
}
