//! How each ticket stands, as the core has said it last: what holders and people are shown.
//!
//! In come standings, in the order in which what they rest on has become durable; out go they again, each with its time. What
//! holds: nothing is shown of a ticket that the core does not know, nor anything that could not be carried out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cleat_core::{TicketId, TicketStanding, UnixMillis, VolumeId};

/// How a ticket stands, and since when it was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stands {
    /// How.
    pub(crate) standing: TicketStanding,
    /// Since when.
    pub(crate) since: UnixMillis,
}

type ByTicket = BTreeMap<(VolumeId, TicketId), Stands>;

/// The standings of all tickets. Cheap to clone: all clones are one board.
#[derive(Debug, Clone, Default)]
pub(crate) struct TicketBoard(Arc<Mutex<ByTicket>>);

impl TicketBoard {
    /// A ticket stands otherwise; `None`: it is not known any more, or how it stands could not be said.
    pub(crate) fn post(
        &self,
        now: UnixMillis,
        volume: VolumeId,
        ticket: TicketId,
        standing: Option<TicketStanding>,
    ) {
        tracing::debug!(%volume, %ticket, ?standing, "a ticket stands otherwise");
        let mut by_ticket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match standing {
            Some(standing) => drop(by_ticket.insert((volume, ticket), Stands { standing, since: now })),
            None => drop(by_ticket.remove(&(volume, ticket))),
        }
    }

    /// All of them, by volume.
    pub(crate) fn all(&self) -> BTreeMap<(VolumeId, TicketId), Stands> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_last_of_a_ticket_is_what_is_shown() {
        let board = TicketBoard::default();
        let (volume, ticket) = (VolumeId::new("v").unwrap(), TicketId::new("t").unwrap());
        let node = cleat_core::NodeId::new("a").unwrap();
        let satisfied = TicketStanding::Satisfied { node: node.clone(), generation: 1 };
        let post = |at, standing| board.post(UnixMillis(at), volume.clone(), ticket.clone(), standing);
        post(1, Some(TicketStanding::AttachOn(node)));
        post(2, Some(satisfied.clone()));
        let stands = Stands { standing: satisfied, since: UnixMillis(2) };
        assert_eq!(board.clone().all(), BTreeMap::from([((volume.clone(), ticket.clone()), stands)]));
        post(3, None);
        assert!(board.all().is_empty());
    }
}
