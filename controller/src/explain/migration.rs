//! What is wrong with a migration that people have to look into.

use cleat_core::{NodeId, VolumeId};

/// The source has written after the VM had moved.
pub(crate) fn late_write(volume: &VolumeId, node: &NodeId, target: &NodeId) -> String {
    format!(
        "node {node} has written to volume {volume} after the VM had moved to node {target}: see what has the device open on \
         node {node}, and stop it; what both have written may not fit together, so check the guest's file system"
    )
}
