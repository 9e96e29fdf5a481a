//! What becomes of tickets: who wants what, held against who has it, and what `tickets::decide` says carried out.
//!
//! In come wishes, renewals and ends; out go grants, interruptions and detaches like any other, and how each ticket stands.
//! What always holds:
//! - a ticket's grant passes the same gates as a caller's, and its detach ends by the same evidence;
//! - a volume that no ticket has to do with is not looked at here;
//! - nothing but what an attachment says of itself ([`Wanted`]) says for whom it is there; a ticket in it that nothing is
//!   known of keeps the node, and after a start is given the time in which its holder has to come back.

use std::collections::{BTreeMap, BTreeSet};

use super::admission::{Admission, Room, admission};
use super::requests::RequestKind;
use super::{Core, Transition};
use crate::tickets::decide::{LetGo, TicketDecision, TicketFacts, decide};
use crate::tickets::{CsiUse, Holding, HoldingState};
use crate::{
    Access, Attachment, DrainCause, Effect, NodeId, ObservedPhase, Phase, Refusal, SessionState, Ticket,
    TicketId, TicketStanding, TicketType, TicketWait, UnixMillis, VolumeId, VolumeRecord, VolumeSpec, Wait,
    Wanted,
};

/// Of one volume no more are kept: what a peer makes us hold is bounded.
const TICKETS_PER_VOLUME: usize = 32;
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

/// How a Publish stands beside the tickets of its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BesideTickets {
    /// There are none.
    None,
    /// They are not in its way.
    Goes,
    /// Who is in its way lets go, or comes first.
    Waits,
    /// Who is in its way stays.
    Kept,
}

/// One volume as its tickets see it, with what the decision is made of.
struct Look {
    tickets: Vec<Ticket>,
    holdings: Vec<Holding>,
    barred: BTreeMap<NodeId, Refusal>,
    access: Access,
    /// When a ticket that is not known counts as lost.
    lapses_at: Option<UnixMillis>,
}

impl Look {
    fn decide(&self, grace_ms: u64, now: UnixMillis) -> TicketDecision {
        let Self { tickets, holdings, barred, access, .. } = self;
        decide(&TicketFacts { tickets, holdings, barred, access: *access, grace_ms, now })
    }
}

/// The name by which the orchestrator's own ticket for a node goes.
fn of_workload(node: &NodeId) -> Option<TicketId> {
    // FNV-1a: a name that is too long for a ticket is made short.
    let hash = node
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let named = TicketId::new(format!("{OF_WORKLOADS}{node}"));
    named.or_else(|_| TicketId::new(format!("{OF_WORKLOADS}{hash:016x}"))).ok()
}

impl Core {
    /// Whether anything about the volume is a matter of tickets.
    fn has_tickets(&self, volume: &VolumeId) -> bool {
        let held = |record: &VolumeRecord| record.attachments.iter().any(|a| !a.wanted.is_csi_alone());
        self.tickets.of.contains_key(volume) || self.volumes.get(volume).is_some_and(held)
    }

    /// Everything that is decided by; `None`: there is nothing to decide.
    fn look_at_tickets(
        &self,
        volume: &VolumeId,
        now: UnixMillis,
        unindexed: &BTreeSet<VolumeId>,
    ) -> Option<Look> {
        if !self.has_tickets(volume) {
            return None;
        }
        let record = self.volumes.get(volume);
        let of = self.tickets.of.get(volume);
        let mut tickets: Vec<Ticket> = of.iter().flat_map(|of| of.tickets.values().cloned()).collect();
        let mut lapses_at = None;
        let attachments = || record.into_iter().flat_map(|record| &record.attachments);
        for a in attachments() {
            for wanted in &a.wanted.tickets {
                if tickets.iter().any(|known| known.id == wanted.id) {
                    continue;
                }
                let Some(at) = wanted.lapses().map(|ms| self.began.plus(ms)) else { continue };
                if at <= now {
                    tickets.push(wanted.ticket(&a.node, self.began));
                } else {
                    lapses_at = lapses_at.map_or(Some(at), |first: UnixMillis| Some(first.min(at)));
                }
            }
        }
        let publishes = self.publishes(volume);
        let published = attachments().filter(|a| a.wanted.is_published() && !is_over(a)).map(|a| &a.node);
        let published: BTreeSet<&NodeId> = published.collect();
        let csi = published.iter().map(|node| (*node, UnixMillis(0)));
        let waiting = publishes.iter().filter(|(node, _)| !published.contains(*node));
        let csi = csi.chain(waiting.map(|(node, (_, since))| (*node, *since)));
        tickets.extend(csi.filter_map(|(node, since)| {
            Some(Ticket {
                id: of_workload(node)?,
                kind: TicketType::Csi,
                node: Some(node.clone()),
                holder: String::new(),
                generation: 1,
                since,
                renewed: since,
                renew_ms: None,
                waits_since: since,
            })
        }));
        let spec = of.map(|of| &of.spec).or_else(|| publishes.values().next().map(|(spec, _)| *spec));
        let access = match record.filter(|record| !record.attachments.is_empty()) {
            Some(record) => record.spec.access,
            None => spec.map_or(Access::Rwo, |spec| spec.access),
        };
        let holdings: Vec<Holding> = attachments().map(|a| self.holding(volume, a, now)).collect();
        let named = tickets.iter().filter_map(|ticket| ticket.node.as_ref());
        let nodes: BTreeSet<&NodeId> = named.chain(holdings.iter().map(|holding| &holding.node)).collect();
        let bars = |node: &NodeId| {
            let of_call = publishes.get(node).map(|(spec, _)| *spec).or(spec);
            let unknown = || VolumeSpec { access, ..VolumeRecord::unknown(volume.clone()).spec };
            let spec = of_call.or_else(|| record.map(|record| &record.spec)).cloned().unwrap_or_else(unknown);
            Some((node.clone(), self.bar(node, spec, now, unindexed)?))
        };
        let barred = nodes.into_iter().filter_map(bars).collect();
        Some(Look { tickets, holdings, barred, access, lapses_at })
    }

    /// The nodes for which callers wait to have the volume, each with what they want and since when.
    fn publishes(&self, volume: &VolumeId) -> BTreeMap<&NodeId, (&VolumeSpec, UnixMillis)> {
        let mut publishes = BTreeMap::new();
        for waiter in self.waiters.get(volume).into_iter().flat_map(|waiters| waiters.values()) {
            if let RequestKind::Publish { node, spec, .. } = &waiter.kind {
                publishes.entry(node).or_insert((spec, waiter.since));
            }
        }
        publishes
    }

    fn holding(&self, volume: &VolumeId, a: &Attachment, now: UnixMillis) -> Holding {
        let known = self.nodes.get(&a.node);
        let observed = known.and_then(|known| known.observed.get(volume)).map(|observed| observed.phase);
        let usable = matches!(observed, Some(ObservedPhase::Ready | ObservedPhase::Degraded));
        let state = match &a.phase {
            Phase::Granting | Phase::Connecting if !a.may_have_written() => HoldingState::Coming,
            Phase::Ready if usable => HoldingState::Ready,
            Phase::Granting | Phase::Connecting | Phase::Ready => HoldingState::Again,
            Phase::Stray => HoldingState::Unknown,
            Phase::Draining { .. } => HoldingState::Leaving,
        };
        let csi = match (a.wanted.unpublishing, a.wanted.csi) {
            (true, _) => CsiUse::Unpublishing,
            (false, true) => CsiUse::Published,
            (false, false) => CsiUse::Nothing,
        };
        let heard =
            known.is_some_and(|known| !matches!(known.session, SessionState::Up { inventoried: false, .. }));
        Holding {
            node: a.node.clone(),
            state,
            role: a.role,
            csi,
            tickets: a.wanted.tickets.iter().map(|ticket| (ticket.id.clone(), ticket.generation)).collect(),
            interrupted: a.interrupted.clone(),
            unheard: !heard && now.since(self.began) < self.config.fence_after_ms,
        }
    }

    /// Why a node can be granted nothing of the volume now, whoever else has it.
    fn bar(
        &self,
        node: &NodeId,
        spec: VolumeSpec,
        now: UnixMillis,
        unindexed: &BTreeSet<VolumeId>,
    ) -> Option<Refusal> {
        let volume = spec.id.clone();
        let record = self.volumes.get(&volume);
        let waits =
            |wait| Refusal::StillWaiting { volume: volume.clone(), wait: Box::new(wait), waited_ms: 0 };
        if record.is_some_and(|record| record.deleting) {
            return Some(Refusal::Deleting { volume });
        }
        match self.may_be_granted(node) {
            Ok(true) => {}
            Ok(false) => return Some(waits(Wait::Inventory { node: node.clone() })),
            Err(refusal) => return Some(refusal),
        }
        let kind = RequestKind::Publish { node: node.clone(), spec, read_only: false };
        if let Some(wait) = self.awaits_lists(&volume, &kind, now) {
            return Some(waits(wait));
        }
        if let Some(entry) = record.and_then(|record| record.fenced.iter().find(|entry| entry.blocks())) {
            let (node, since) = (entry.node.clone(), entry.since);
            return Some(Refusal::ExportOff { volume, node, since });
        }
        if record.is_some_and(|record| record.attachment(node).is_some()) {
            return None;
        }
        match self.room_on(node, &volume, unindexed) {
            Room::Free => None,
            Room::WaitForDetach { limit } => Some(waits(Wait::Room { node: node.clone(), limit })),
            Room::Full { limit } => Some(Refusal::NodeFull { volume, node: node.clone(), limit }),
        }
    }

    /// How the ticket of a Publish stands.
    fn workload_stands(
        &self,
        volume: &VolumeId,
        node: &NodeId,
        now: UnixMillis,
        unindexed: &BTreeSet<VolumeId>,
    ) -> Option<(TicketStanding, Look)> {
        let look = self.look_at_tickets(volume, now, unindexed)?;
        let mut decision = look.decide(self.config.interrupt_grace_ms, now);
        let standing = decision.standings.remove(&of_workload(node)?)?;
        Some((standing, look))
    }

    /// Whether the tickets of a volume are in the way of a Publish.
    pub(super) fn beside_tickets(
        &self,
        volume: &VolumeId,
        node: &NodeId,
        now: UnixMillis,
        unindexed: &BTreeSet<VolumeId>,
    ) -> BesideTickets {
        if !self.has_tickets(volume) {
            return BesideTickets::None;
        }
        match self.workload_stands(volume, node, now, unindexed) {
            Some((TicketStanding::Satisfied { .. } | TicketStanding::AttachOn(_), _)) => BesideTickets::Goes,
            Some((TicketStanding::Waits { wait, .. }, _)) => match wait {
                TicketWait::Yielding { .. } | TicketWait::Detaches { .. } | TicketWait::Queue { .. } => {
                    BesideTickets::Waits
                }
                _ => BesideTickets::Kept,
            },
            Some((TicketStanding::Interrupt { .. }, _)) | None => BesideTickets::Kept,
        }
    }

    /// What a request waits for, where that is a ticket.
    pub(super) fn waits_for_ticket(
        &self,
        volume: &VolumeId,
        kind: &RequestKind,
        now: UnixMillis,
    ) -> Option<Wait> {
        let record = self.volumes.get(volume);
        let has_it = |a: &&Attachment| !a.phase.is_draining() && !a.wanted.tickets.is_empty();
        let held = |about: &dyn Fn(&Attachment) -> bool| {
            let a = record?.attachments.iter().filter(has_it).find(|a| about(a))?;
            let first = a.wanted.tickets.first()?;
            let until = a.interrupted.as_ref().map(|interruption| interruption.until);
            let (node, ticket, holder) = (a.node.clone(), first.id.clone(), first.holder.clone());
            Some(Wait::Ticket { node, ticket, holder, until })
        };
        match kind {
            RequestKind::Unpublish { node } => held(&|a| {
                a.wanted.unpublishing && node.as_ref().is_none_or(|node| self.may_be(&a.node, node))
            }),
            RequestKind::Fence { .. } => None,
            RequestKind::Publish { node, .. } => {
                let (standing, look) = self.workload_stands(volume, node, now, &BTreeSet::new())?;
                let TicketStanding::Waits { wait, .. } = standing else { return None };
                match wait {
                    TicketWait::Yielding { node, .. } => held(&|a| a.node == node),
                    TicketWait::Elsewhere { nodes } => held(&|a| nodes.contains(&a.node)),
                    TicketWait::Detaches { node } => held(&|a| a.node == node),
                    TicketWait::Queue { behind } => held(&|a| a.interrupted.is_some()).or_else(|| {
                        let first = look.tickets.iter().find(|ticket| ticket.id == behind)?;
                        let (node, holder) = (first.node.clone()?, first.holder.clone());
                        Some(Wait::Ticket { node, ticket: behind.clone(), holder, until: None })
                    }),
                    _ => None,
                }
            }
        }
    }

    /// All tickets that somebody has asked for, by volume, and how each was said to stand last. Those of the orchestrator's own
    /// are not among them.
    pub fn tickets(&self) -> impl Iterator<Item = (&VolumeId, &Ticket, Option<&TicketStanding>)> {
        self.tickets.of.iter().flat_map(|(volume, of)| {
            of.tickets.values().map(move |ticket| (volume, ticket, of.said.get(&ticket.id)))
        })
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
        let new = || VolumeTickets {
            spec: spec.clone(),
            tickets: BTreeMap::new(),
            said: BTreeMap::new(),
            not_before: None,
        };
        let of = self.core.tickets.of.entry(volume.clone()).or_insert_with(new);
        let room = of.tickets.len() < TICKETS_PER_VOLUME;
        match of.tickets.get_mut(&ticket.id) {
            // What is late, or comes again.
            Some(known) if ticket.generation <= known.generation => {
                known.renewed = known.renewed.max(ticket.renewed.min(now));
            }
            Some(known) => {
                let since = known.since;
                *known = Ticket { since, renewed: now, waits_since: now, ..ticket };
            }
            None if room => {
                drop(
                    of.tickets.insert(ticket.id.clone(), Ticket { renewed: now, waits_since: now, ..ticket }),
                );
            }
            None => {
                let wait = TicketWait::Room { limit: TICKETS_PER_VOLUME };
                return self.say(&volume, &ticket.id, Some(TicketStanding::Waits { wait, since: now }));
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

    /// A node that has the volume for tickets alone has it for the orchestrator as well from now on.
    pub(super) fn publish_beside_tickets(&mut self, volume: &VolumeId, node: &NodeId) -> bool {
        let Some(a) = self.attachment_mut(volume, node).filter(|a| !a.wanted.csi) else {
            return false;
        };
        a.wanted.csi = true;
        self.dirty.insert(volume.clone());
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
        let (spec, paused) = (of.spec.clone(), of.not_before.is_some_and(|at| self.now < at));
        let record = self.core.volumes.get_mut(volume);
        let there = record.and_then(|record| record.attachment_mut(node)).filter(|a| a.phase != Phase::Stray);
        if let Some(a) = there {
            let joins = !a.phase.is_draining() && a.wanted.join(&ticket);
            if joins {
                self.dirty.insert(volume.clone());
            }
            return joins;
        }
        if paused || self.core.bar(node, spec.clone(), self.now, &self.touched).is_some() {
            return false;
        }
        let admitted = admission(self.core.volumes.get(volume), node, &spec);
        let free = self.core.room_on(node, volume, &self.touched) == Room::Free;
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
