//! What is wrong with who is to have a volume, by what the cluster asks for.

use cleat_core::{NodeId, VolumeId};

use super::nodes;

/// A node is to have a volume which nobody can name.
pub(crate) fn desired_unclear(node: &NodeId) -> String {
    format!(
        "a VolumeAttachment of node {node} does not say which volume it is about, for its PersistentVolume is not there: \
         nobody is let in to a volume without a record until the agent of node {node} has reported what it holds; bring \
         that agent back, or, if the node is known to be off, declare it gone (cleatctl node declare-gone {node})"
    )
}

/// More nodes are to have a volume than may.
pub(crate) fn too_many_desired(volume: &VolumeId, of: &[NodeId]) -> String {
    format!(
        "VolumeAttachments ask for volume {volume} on {} nodes: {}; nobody is let in until at most two are left",
        of.len(),
        nodes(of)
    )
}
