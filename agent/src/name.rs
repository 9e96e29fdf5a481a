//! The agent's names, all from `cleat-ids`.

pub use cleat_ids::{BootId, Epoch, IdError as NameError, NodeId, NqnPrefix, OperationId, VolumeId};
