//! Which nodes' tickets give way, for whom, and until when.
//!
//! What holds: only a node that nobody but interruptible tickets has the volume for gives way. It does for an Unpublish of
//! that node, for a workload on another node that could have the volume then, and if none of its tickets is renewed.

use std::collections::{BTreeMap, BTreeSet};

use super::decide::Look;
use super::{CsiUse, Holding, HoldingState, InterruptedBy, Interruption, Ticket, TicketType};
use crate::{NodeId, TicketId};

/// Who a node has the volume for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// Somebody who keeps it, or nobody knows who.
    Firm,
    /// Interruptible tickets, and nobody else.
    Interruptible,
    /// Nobody.
    Nobody,
}

impl<'a> Look<'a> {
    fn hold(&self, holding: &Holding) -> Hold {
        if holding.state == HoldingState::Unknown || holding.csi == CsiUse::Published {
            return Hold::Firm;
        }
        let mut hold = Hold::Nobody;
        for id in holding.tickets.keys() {
            match self.ticket(id) {
                // Its wish has changed.
                Some(ticket) if !ticket.may_be_on(&holding.node) => {}
                Some(ticket) if ticket.kind.is_interruptible() && !holding.unheard => {
                    hold = Hold::Interruptible
                }
                Some(_) | None => return Hold::Firm,
            }
        }
        hold
    }

    /// Whether nobody wants the volume where it is.
    pub(super) fn is_unwanted(&self, holding: &Holding) -> bool {
        holding.is_there() && self.hold(holding) == Hold::Nobody
    }

    /// Whether somebody keeps the volume there.
    pub(super) fn is_firm(&self, holding: &Holding) -> bool {
        holding.state != HoldingState::Leaving && self.hold(holding) == Hold::Firm
    }

    /// Whether a ticket's node, which has nothing of the volume, may have it beside these.
    pub(super) fn admits_beside(&self, ticket: &Ticket, others: &[&Holding]) -> bool {
        match others {
            [] => true,
            [one] => self.facts.access.limit() > 1 && ticket.kind == TicketType::Csi && one.takes_a_second(),
            _ => false,
        }
    }

    /// The nodes that workloads' tickets have or join, and those whose tickets are to let go, whether their time is over or
    /// not.
    pub(super) fn interruptions(&self) -> (BTreeSet<&'a NodeId>, BTreeMap<NodeId, Interruption>) {
        let (joined, mover) = self.mover();
        let mut interrupted = BTreeMap::new();
        for holding in &self.holdings {
            if !holding.is_there() || self.hold(holding) != Hold::Interruptible {
                continue;
            }
            let by = match mover {
                _ if holding.csi == CsiUse::Unpublishing => InterruptedBy::Unpublish,
                _ if joined.contains(&holding.node) => continue,
                Some((ticket, node)) if *node != holding.node => {
                    InterruptedBy::Workload { ticket: ticket.clone(), node: node.clone() }
                }
                _ if self.is_silent(holding) => InterruptedBy::Silence,
                _ => continue,
            };
            let now = self.facts.now;
            let before = holding.interrupted.as_ref().map(|interruption| interruption.until);
            let until = match (before, holding.state) {
                // Nobody was given the device: there is nothing to finish.
                (before, HoldingState::Coming) => before.map_or(now, |until| until.min(now)),
                (Some(until), _) => until,
                (None, _) => now.plus(self.facts.grace_ms),
            };
            interrupted.insert(holding.node.clone(), Interruption { by, until });
        }
        (joined, interrupted)
    }

    /// Whether none of its tickets is renewed any more.
    fn is_silent(&self, holding: &Holding) -> bool {
        let mut tickets = holding.tickets.keys().filter_map(|id| self.ticket(id));
        tickets.all(|ticket| ticket.is_lost(self.facts.now) || !ticket.may_be_on(&holding.node))
    }

    /// The nodes that workloads' tickets join or have, and the first ticket that could have the volume on another node if
    /// those that are interruptible let go of it.
    fn mover(&self) -> (BTreeSet<&'a NodeId>, Option<(&'a TicketId, &'a NodeId)>) {
        let mut joined = BTreeSet::new();
        for ticket in &self.ranked {
            let Some(node) = ticket.demands().filter(|node| !self.facts.barred.contains_key(*node)) else {
                continue;
            };
            if let Some(holding) = self.at(node)
                && holding.state != HoldingState::Leaving
            {
                // To a node that it is being taken from it comes back later, and until then it moves nobody.
                if holding.csi != CsiUse::Unpublishing {
                    joined.insert(node);
                }
                continue;
            }
            let others = self.holdings.iter().copied();
            let others = others.filter(|h| h.node != *node && h.state != HoldingState::Leaving);
            let (gives_way, stays): (Vec<_>, Vec<_>) = others
                .filter(|holding| self.hold(holding) != Hold::Nobody || joined.contains(&holding.node))
                .partition(|h| self.hold(h) == Hold::Interruptible && !joined.contains(&h.node));
            if !gives_way.is_empty() && self.admits_beside(ticket, &stays) {
                return (joined, Some((&ticket.id, node)));
            }
        }
        (joined, None)
    }
}

impl Holding {
    /// Whether a second node may have the volume beside it: the orchestrator has it there for a workload, or had it and
    /// it is being taken from there for nobody else's sake.
    fn takes_a_second(&self) -> bool {
        match self.state {
            HoldingState::Coming | HoldingState::Again | HoldingState::Ready => self.csi == CsiUse::Published,
            HoldingState::Leaving => self.csi != CsiUse::Nothing && self.interrupted.is_none(),
            HoldingState::Unknown => false,
        }
    }
}
