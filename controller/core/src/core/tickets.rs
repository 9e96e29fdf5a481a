//! What becomes of tickets: who wants what, held against who has it (`facts`), and what `tickets::decide` says carried out.
//! `known` says which there are.
//!
//! In come wishes, renewals and ends; out go grants, interruptions and detaches like any other, and how each ticket stands.
//! What always holds:
//! - a ticket's grant passes the same gates as a caller's, and its detach ends by the same evidence;
//! - a volume that no ticket has to do with is not looked at here;
//! - nothing but what an attachment says of itself ([`Wanted`]) says for whom it is there; a ticket in it that nothing is
//!   known of keeps the node, and after a start is given the time in which its holder has to come back.

mod facts;
mod known;

use std::collections::BTreeMap;

pub(super) use facts::BesideTickets;

use super::Transition;
use super::admission::{Admission, Counted, Room, admission};
use crate::tickets::decide::{LetGo, TicketDecision};
use crate::{
    Attachment, DrainCause, Effect, NodeId, Phase, Ticket, TicketId, TicketStanding, TicketType, UnixMillis,
    VolumeId, VolumeSpec, Wanted,
};

/// Of one volume no more are kept: what a peer makes us hold is bounded.
const TICKETS_PER_VOLUME: usize = 32;
/// Nor of all volumes together.
const TICKETS: usize = 4096;
/// What precedes the name by which a workload's own ticket goes here. No other ticket may be called so.
const OF_WORKLOADS: &str = "csi.";

/// All tickets that somebody has asked for in this process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Tickets {
    of: BTreeMap<VolumeId, VolumeTickets>,
    /// When time alone decides something else about a volume.
    again_at: BTreeMap<VolumeId, UnixMillis>,
}

/// Those of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct VolumeTickets {
    /// As it was described last.
    spec: VolumeSpec,
    tickets: BTreeMap<TicketId, Ticket>,
    /// What was said of each last.
    said: BTreeMap<TicketId, TicketStanding>,
    /// The last grant for them was taken back: not before then is there another one.
    not_before: Option<UnixMillis>,
}

impl Tickets {
    /// Volumes that time decides something about, or whose tickets wait for something.
    pub(super) fn awake(&self, now: UnixMillis) -> impl Iterator<Item = &VolumeId> {
        let due = self.again_at.iter().filter(move |(_, at)| **at <= now).map(|(volume, _)| volume);
        let waits = |of: &VolumeTickets| {
            !of.said.values().all(|standing| matches!(standing, TicketStanding::Satisfied { .. }))
        };
        due.chain(self.of.iter().filter(move |(_, of)| waits(of)).map(|(volume, _)| volume))
    }

    /// Volumes that a ticket wants on that node.
    pub(super) fn about<'a>(&'a self, node: &'a NodeId) -> impl Iterator<Item = &'a VolumeId> {
        let wants = |of: &VolumeTickets| of.tickets.values().any(|ticket| ticket.node.as_ref() == Some(node));
        self.of.iter().filter(move |(_, of)| wants(of)).map(|(volume, _)| volume)
    }

    /// Whether a workload's ticket waits for this node to be done with the volume.
    pub(super) fn is_waited_for(&self, volume: &VolumeId, node: &NodeId) -> bool {
        let mut tickets = self.of.get(volume).into_iter().flat_map(|of| of.tickets.values());
        tickets.any(|ticket| ticket.demands().is_some_and(|demanded| demanded != node))
    }

    /// A grant for tickets alone is taken back: the next one comes after a pause.
    pub(super) fn not_before(&mut self, volume: &VolumeId, at: UnixMillis) {
        if let Some(of) = self.of.get_mut(volume) {
            of.not_before = Some(at);
        }
    }
}

fn is_over(a: &Attachment) -> bool {
    matches!(a.phase, Phase::Draining { .. } | Phase::Stray)
}

impl Transition<'_> {
    pub(super) fn ticket_wanted(&mut self, spec: VolumeSpec, ticket: Ticket) {
        let (volume, now) = (spec.id.clone(), self.now);
        let ours = ticket.kind == TicketType::Csi || ticket.id.as_str().starts_with(OF_WORKLOADS);
        if ours {
            return self.say(&volume, &ticket.id, None);
        }
        if let Some(wait) = self.core.no_room(&volume, &ticket.id) {
            return self.say(&volume, &ticket.id, Some(TicketStanding::Waits { wait, since: now }));
        }
        let new = || VolumeTickets {
            spec: spec.clone(),
            tickets: BTreeMap::new(),
            said: BTreeMap::new(),
            not_before: None,
        };
        let of = self.core.tickets.of.entry(volume.clone()).or_insert_with(new);
        match of.tickets.get_mut(&ticket.id) {
            // What is late, or comes again.
            Some(known) if ticket.generation <= known.generation => {
                known.renewed = known.renewed.max(ticket.renewed.min(now));
            }
            Some(known) => {
                let since = known.since;
                *known = Ticket { since, renewed: now, waits_since: now, ..ticket };
            }
            None => {
                drop(
                    of.tickets.insert(ticket.id.clone(), Ticket { renewed: now, waits_since: now, ..ticket }),
                );
            }
        }
        of.spec = spec;
        self.touched.insert(volume);
    }

    pub(super) fn ticket_renewed(&mut self, volume: &VolumeId, ticket: &TicketId) {
        let now = self.now;
        let known = self.core.tickets.of.get_mut(volume).and_then(|of| of.tickets.get_mut(ticket));
        if let Some(known) = known {
            known.renewed = now;
            self.touched.insert(volume.clone());
            return;
        }
        // The process before knew it.
        let Some(record) = self.core.volumes.get(volume) else { return };
        let mut kept =
            record.attachments.iter().flat_map(|a| a.wanted.tickets.iter().map(move |t| (t, &a.node)));
        if let Some((kept, node)) = kept.find(|(kept, _)| kept.id == *ticket) {
            let (spec, ticket) = (record.spec.clone(), kept.ticket(node, now));
            self.ticket_wanted(spec, ticket);
        }
    }

    pub(super) fn ticket_gone(&mut self, volume: &VolumeId, ticket: &TicketId) {
        if let Some(of) = self.core.tickets.of.get_mut(volume) {
            of.tickets.remove(ticket);
            of.said.remove(ticket);
            if of.tickets.is_empty() {
                self.core.tickets.of.remove(volume);
            }
        }
        let attachments =
            self.core.volumes.get_mut(volume).into_iter().flat_map(|record| &mut record.attachments);
        let mut left = false;
        for attachment in attachments {
            left |= attachment.wanted.leave(ticket);
        }
        if left {
            self.dirty.insert(volume.clone());
        }
        self.touched.insert(volume.clone());
        self.say(volume, ticket, None);
    }

    /// The volume is gone, and so is what was wanted of it.
    pub(super) fn tickets_of_nothing(&mut self, volume: &VolumeId) {
        let of = self.core.tickets.of.remove(volume);
        for ticket in of.into_iter().flat_map(|of| of.tickets.into_keys()) {
            self.say(volume, &ticket, None);
        }
    }

    fn say(&mut self, volume: &VolumeId, ticket: &TicketId, standing: Option<TicketStanding>) {
        let (volume, ticket, standing) = (volume.clone(), ticket.clone(), standing.map(Box::new));
        self.effects.push(Effect::Ticket { volume, ticket, standing });
    }

    /// The orchestrator wants the volume off a node where tickets have it: they are asked to let go first, and the caller is
    /// answered once the node is proven to be off. Whether that is so.
    pub(super) fn tickets_first(&mut self, volume: &VolumeId, node: &NodeId) -> bool {
        let Some(a) = self.attachment_mut(volume, node) else {
            return false;
        };
        if is_over(a) || a.wanted.tickets.is_empty() {
            return false;
        }
        if !a.wanted.unpublishing {
            a.wanted.unpublishing = true;
            self.dirty.insert(volume.clone());
        }
        self.touched.insert(volume.clone());
        true
    }

    /// A node that has the volume for tickets alone has it for the orchestrator as well from now on, which says what the volume
    /// is and what is demanded of it.
    pub(super) fn publish_beside_tickets(&mut self, node: &NodeId, spec: VolumeSpec) -> bool {
        let volume = spec.id.clone();
        let Some(a) = self.attachment_mut(&volume, node).filter(|a| !a.wanted.csi) else {
            return false;
        };
        a.wanted.csi = true;
        if let Some(record) = self.core.volumes.get_mut(&volume) {
            record.spec = spec;
        }
        self.dirty.insert(volume);
        true
    }

    /// Lets everything about a volume go on that its tickets say. Says whether anything came of it.
    pub(super) fn drive_tickets(&mut self, volume: &VolumeId) -> bool {
        let now = self.now;
        let Some(look) = self.core.look_at_tickets(volume, now, &self.touched) else {
            self.core.tickets.again_at.remove(volume);
            return false;
        };
        let decision = look.decide(self.core.config.interrupt_grace_ms, now);
        let mut moved = self.interrupt(volume, &decision);
        for (node, why) in &decision.detach {
            let cause = match why {
                LetGo::Unwanted => DrainCause::Unwanted,
                LetGo::Interrupted(by) => DrainCause::Interrupted { by: by.clone() },
            };
            self.begin_drain(volume, node, cause);
            moved = true;
        }
        for (id, standing) in &decision.standings {
            if let TicketStanding::AttachOn(node) = standing {
                moved |= self.attach_for(volume, id, node);
            }
        }
        if !moved {
            self.say_changes(volume, decision.standings);
        }
        let pause = self.core.tickets.of.get(volume).and_then(|of| of.not_before);
        let later = [decision.again_at, look.lapses_at, pause].into_iter().flatten().filter(|at| *at > now);
        match later.min() {
            Some(at) => drop(self.core.tickets.again_at.insert(volume.clone(), at)),
            None => drop(self.core.tickets.again_at.remove(volume)),
        }
        moved
    }

    /// Keeps with each attachment whether its tickets are to let go.
    fn interrupt(&mut self, volume: &VolumeId, decision: &TicketDecision) -> bool {
        let attachments =
            self.core.volumes.get_mut(volume).into_iter().flat_map(|record| &mut record.attachments);
        let mut changed = false;
        for a in attachments.filter(|a| !is_over(a)) {
            let interruption = decision.interrupted.get(&a.node);
            if a.interrupted.as_ref() != interruption {
                a.interrupted = interruption.cloned();
                changed = true;
            }
        }
        if changed {
            self.dirty.insert(volume.clone());
        }
        changed
    }

    /// Attaches a volume for a ticket, or notes that it is attached for this one as well.
    fn attach_for(&mut self, volume: &VolumeId, id: &TicketId, node: &NodeId) -> bool {
        let Some(of) = self.core.tickets.of.get(volume) else {
            return false;
        };
        // Those of workloads are requests, which the same gate answers.
        let Some(ticket) = of.tickets.get(id).cloned() else {
            return false;
        };
        let (asked, paused) = (of.spec.clone(), of.not_before.is_some_and(|at| self.now < at));
        let record = self.core.volumes.get_mut(volume);
        // As long as somebody has the volume, a ticket changes nothing of what it is and of what is demanded of it.
        let in_use = record.as_ref().filter(|record| !record.attachments.is_empty());
        let spec = in_use.map_or(asked, |record| record.spec.clone());
        let there = record.and_then(|record| record.attachment_mut(node)).filter(|a| a.phase != Phase::Stray);
        if let Some(a) = there {
            let joins = !a.phase.is_draining() && a.wanted.join(&ticket);
            if joins {
                self.dirty.insert(volume.clone());
            }
            return joins;
        }
        if paused || self.core.bar(node, spec.clone(), Counted::All, (self.now, &self.touched)).is_some() {
            return false;
        }
        let admitted = admission(self.core.volumes.get(volume), node, &spec);
        let free = self.core.room_on(node, volume, Counted::All, &self.touched) == Room::Free;
        if !matches!(admitted, Admission::Admit) || !free {
            return false;
        }
        self.grant(node, spec, false, Wanted::by(&ticket));
        true
    }

    /// Says how tickets stand that were not said to stand so.
    fn say_changes(&mut self, volume: &VolumeId, mut standings: BTreeMap<TicketId, TicketStanding>) {
        let now = self.now;
        let Some(of) = self.core.tickets.of.get_mut(volume) else {
            return;
        };
        let mut changed = Vec::new();
        for (id, ticket) in &mut of.tickets {
            let Some(mut standing) = standings.remove(id) else { continue };
            let had = matches!(
                of.said.get(id),
                Some(TicketStanding::Satisfied { .. } | TicketStanding::Interrupt { .. })
            );
            if let TicketStanding::Waits { since, .. } = &mut standing
                && had
            {
                (ticket.waits_since, *since) = (now, now);
            }
            if of.said.get(id) != Some(&standing) {
                of.said.insert(id.clone(), standing.clone());
                changed.push((id.clone(), standing));
            }
        }
        for (id, standing) in changed {
            self.say(volume, &id, Some(standing));
        }
    }
}
