//! Which right of the cluster each question and each command of an operator needs.

use cleat_core::TicketType;
use cleat_kubernetes::reviews::Right;

/// The resources of volumes.
pub(super) const VOLUMES: &str = "cleatvolumes";
/// The resources of nodes.
pub(super) const NODES: &str = "cleatnodes";
/// The resources of tickets.
pub(super) const TICKETS: &str = "tickets";

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

/// A ticket of this type is made or changed, for a volume of whatever namespace.
pub(super) fn put_ticket(kind: TicketType) -> [Right; 2] {
    let use_type = match kind {
        TicketType::Restore => "use-restore",
        TicketType::Expansion => "use-expansion",
        TicketType::Api => "use-api",
        TicketType::Csi => "use-csi",
        TicketType::Snapshot => "use-snapshot",
        TicketType::Backup => "use-backup",
        TicketType::Clone => "use-clone",
    };
    ["create", use_type].map(|verb| Right { verb, resource: TICKETS, name: None })
}

/// Its holder is there still.
pub(super) fn renew_ticket(id: &str) -> Right {
    Right { verb: "update", resource: TICKETS, name: Some(id.to_owned()) }
}

/// It ends.
pub(super) fn delete_ticket(id: &str) -> Right {
    Right { verb: "delete", resource: TICKETS, name: Some(id.to_owned()) }
}
