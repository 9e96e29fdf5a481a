//! Which right of the cluster each question and each command of an operator needs.

use cleat_kubernetes::reviews::Right;

/// The resources of volumes.
pub(super) const VOLUMES: &str = "cleatvolumes";
/// The resources of nodes.
pub(super) const NODES: &str = "cleatnodes";

pub(super) fn list(resource: &'static str) -> Right {
    Right { verb: "list", resource, name: None }
}

pub(super) fn get(resource: &'static str, name: &str) -> Right {
    Right { verb: "get", resource, name: Some(name.to_owned()) }
}

pub(super) fn watch(resource: &'static str) -> Right {
    Right { verb: "watch", resource, name: None }
}

/// A node is fenced from this volume.
pub(super) fn fence(volume: &str) -> Right {
    Right { verb: "fence", resource: VOLUMES, name: Some(volume.to_owned()) }
}

/// This node is said to be off for good.
pub(super) fn declare_gone(node: &str) -> Right {
    Right { verb: "declaregone", resource: NODES, name: Some(node.to_owned()) }
}
