//! What tickets wait for. Each text goes after "waits for".

use cleat_core::{InterruptedBy, TicketWait};

use super::{nodes, refusal, when};

/// What a ticket waits for that a former controller has attached the volume for, and nobody has renewed since.
pub(crate) const TICKET_OF_BEFORE: &str =
    "its holder to renew it: the volume was attached for it before this controller started";

/// What a ticket waits for.
pub(crate) fn ticket_wait(wait: &TicketWait) -> String {
    match wait {
        TicketWait::Detaches { node } => format!("node {node} to be proven off the volume"),
        TicketWait::Yielding { node, ticket, until } => {
            format!("ticket {ticket} to let go of the volume on node {node}, until {}", when(*until))
        }
        TicketWait::YieldsTo { ticket, node } => {
            format!("ticket {ticket}, which comes first, to have the volume on node {node}")
        }
        TicketWait::Elsewhere { nodes: those } => format!("{}, which keeps the volume", nodes(those)),
        TicketWait::Queue { behind } => format!("ticket {behind}, which comes first"),
        TicketWait::Node(why) => format!("its node: {}", refusal(why)),
        TicketWait::AnyNode => "any node to have the volume: it names none".to_owned(),
        TicketWait::Room { limit } => {
            format!("another ticket of the volume to go: it has {limit}, and may have no more")
        }
        TicketWait::RoomOfAll { limit } => {
            format!("another ticket to go: the controller keeps {limit} in all, and no more")
        }
        TicketWait::Renewal { since } => {
            format!("its holder to renew it, who did so last at {}", when(*since))
        }
    }
}

/// For whom a ticket waits, as a thing with a name; empty where nobody is to be named.
pub(crate) fn ticket_waits_on(wait: &TicketWait) -> String {
    match wait {
        TicketWait::Detaches { node } => format!("node {node}"),
        TicketWait::Yielding { ticket, .. }
        | TicketWait::YieldsTo { ticket, .. }
        | TicketWait::Queue { behind: ticket } => format!("ticket {ticket}"),
        TicketWait::Elsewhere { nodes } => {
            nodes.first().map(|node| format!("node {node}")).unwrap_or_default()
        }
        TicketWait::Node(_)
        | TicketWait::AnyNode
        | TicketWait::Room { .. }
        | TicketWait::RoomOfAll { .. }
        | TicketWait::Renewal { .. } => String::new(),
    }
}

/// For whom a ticket is interrupted, as a thing with a name.
pub(crate) fn interrupted_for(by: &InterruptedBy) -> String {
    match by {
        InterruptedBy::Workload { ticket, .. } => format!("ticket {ticket}"),
        InterruptedBy::Unpublish | InterruptedBy::Silence => String::new(),
    }
}
