//! What is decided by: tickets and those who have the volume as `tickets::decide` sees them, and what a Publish makes of it.
//!
//! In comes the state; out goes the decision for one volume. What always holds: nothing is changed here, and a volume that no
//! ticket has to do with is not looked at.

use std::collections::{BTreeMap, BTreeSet};

use super::{OF_WORKLOADS, is_over};
use crate::core::Core;
use crate::core::admission::{Counted, Room};
use crate::core::requests::RequestKind;
use crate::tickets::decide::{TicketDecision, TicketFacts, decide};
use crate::tickets::{CsiUse, Holding, HoldingState};
use crate::{
    Access, Attachment, NodeId, ObservedPhase, Phase, Refusal, SessionState, Ticket, TicketId,
    TicketStanding, TicketType, TicketWait, UnixMillis, VolumeId, VolumeRecord, VolumeSpec, Wait,
};

/// How a Publish stands beside the tickets of its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::core) enum BesideTickets {
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
pub(super) struct Look {
    tickets: Vec<Ticket>,
    holdings: Vec<Holding>,
    barred: BTreeMap<NodeId, Refusal>,
    access: Access,
    /// When a ticket that is not known counts as lost.
    pub(super) lapses_at: Option<UnixMillis>,
}

impl Look {
    pub(super) fn decide(&self, grace_ms: u64, now: UnixMillis) -> TicketDecision {
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
    pub(super) fn look_at_tickets(
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
            let counted = if publishes.contains_key(node) { Counted::Published } else { Counted::All };
            Some((node.clone(), self.bar(node, spec, counted, (now, unindexed))?))
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
    pub(super) fn bar(
        &self,
        node: &NodeId,
        spec: VolumeSpec,
        counted: Counted,
        (now, unindexed): (UnixMillis, &BTreeSet<VolumeId>),
    ) -> Option<Refusal> {
        let volume = spec.id.clone();
        let record = self.volumes.get(&volume);
        let waits =
            |wait| Refusal::StillWaiting { volume: volume.clone(), wait: Box::new(wait), waited_ms: 0 };
        if record.is_some_and(|record| record.deleting) {
            return Some(Refusal::Deleting { volume });
        }
        match self.may_be_granted(node, unindexed) {
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
        match self.room_on(node, &volume, counted, unindexed) {
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
    pub(in crate::core) fn beside_tickets(
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
    pub(in crate::core) fn waits_for_ticket(
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
}
