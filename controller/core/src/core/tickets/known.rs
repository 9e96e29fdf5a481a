//! Which tickets there are, and whether there is room for one more.
//!
//! In comes an id; out goes what is known of it. What always holds: a ticket that an attachment is there for counts as there,
//! also while nobody has asked for it in this process.

use super::{TICKETS, TICKETS_PER_VOLUME};
use crate::core::Core;
use crate::{NodeId, Ticket, TicketId, TicketStanding, TicketWait, VolumeId};

impl Core {
    /// All tickets that somebody has asked for, by volume, and how each was said to stand last. Those of the orchestrator's own
    /// are not among them.
    pub fn tickets(&self) -> impl Iterator<Item = (&VolumeId, &Ticket, Option<&TicketStanding>)> {
        self.tickets.of.iter().flat_map(|(volume, of)| {
            of.tickets.values().map(move |ticket| (volume, ticket, of.said.get(&ticket.id)))
        })
    }

    /// A ticket of this volume that somebody has asked for in this process.
    #[must_use]
    pub fn ticket(&self, volume: &VolumeId, ticket: &TicketId) -> Option<&Ticket> {
        self.tickets.of.get(volume)?.tickets.get(ticket)
    }

    /// Tickets that attachments are there for, each with its node, and that nobody has asked for or renewed in this process.
    pub fn kept_tickets(&self) -> impl Iterator<Item = (&VolumeId, &NodeId, Ticket)> {
        let kept = self.volumes.iter().flat_map(|(volume, record)| {
            record.attachments.iter().flat_map(move |a| a.wanted.tickets.iter().map(move |t| (volume, a, t)))
        });
        let kept = kept.filter(move |(volume, _, wanted)| self.ticket(volume, &wanted.id).is_none());
        kept.map(move |(volume, a, wanted)| (volume, &a.node, wanted.ticket(&a.node, self.began)))
    }

    /// Which volume a ticket is for, whoever has heard of it.
    #[must_use]
    pub fn volume_of_ticket(&self, ticket: &TicketId) -> Option<VolumeId> {
        let asked = self.tickets.of.iter().find(|(_, of)| of.tickets.contains_key(ticket));
        let kept = || self.kept_tickets().find(|(_, _, kept)| kept.id == *ticket).map(|(volume, ..)| volume);
        asked.map(|(volume, _)| volume).or_else(kept).cloned()
    }

    /// Why one more ticket of the volume is not kept.
    pub(super) fn no_room(&self, volume: &VolumeId, ticket: &TicketId) -> Option<TicketWait> {
        if self.ticket(volume, ticket).is_some() {
            return None;
        }
        let kept: Vec<&VolumeId> = self
            .kept_tickets()
            .filter(|(of, _, kept)| *of != volume || kept.id != *ticket)
            .map(|(of, ..)| of)
            .collect();
        let of_volume = self.tickets.of.get(volume).map_or(0, |of| of.tickets.len());
        if of_volume + kept.iter().filter(|of| **of == volume).count() >= TICKETS_PER_VOLUME {
            return Some(TicketWait::Room { limit: TICKETS_PER_VOLUME });
        }
        let all = self.tickets.of.values().map(|of| of.tickets.len()).sum::<usize>() + kept.len();
        (all >= TICKETS).then_some(TicketWait::RoomOfAll { limit: TICKETS })
    }
}
