//! What each ticket of a volume gets, and which nodes let go of the volume for it.
//!
//! In come the tickets and who has the volume; out go standings, in which order they came in changing nothing. The caller
//! carries out: [`TicketStanding::AttachOn`] becomes a part of the attachment before anything is asked of the world, an
//! interruption is kept with the attachment until it is not decided any more, and `again_at` is when time alone decides
//! something else.
//!
//! While nobody has the volume, the ticket that ranks first and whose node can be granted something has its node. As soon
//! as somebody has it, tickets that are no workload's are attached there, and rank moves nothing any more.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{
    CsiUse, Holding, HoldingState, InterruptedBy, Interruption, Ticket, TicketStanding, TicketType,
    TicketWait,
};
use crate::{Access, NodeId, Refusal, Role, TicketId, UnixMillis};

/// One volume, as its tickets see it.
#[derive(Debug, Clone)]
pub(crate) struct TicketFacts<'a> {
    /// All tickets of the volume, each once.
    pub(crate) tickets: &'a [Ticket],
    /// All nodes that have it, or may; each once.
    pub(crate) holdings: &'a [Holding],
    /// Nodes that can be granted nothing now, and why.
    pub(crate) barred: &'a BTreeMap<NodeId, Refusal>,
    /// How many nodes may have it.
    pub(crate) access: Access,
    /// How long the interrupted have.
    pub(crate) grace_ms: u64,
    /// The time.
    pub(crate) now: UnixMillis,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TicketDecision {
    /// How each ticket stands.
    pub(crate) standings: BTreeMap<TicketId, TicketStanding>,
    /// The nodes whose tickets are to let go. One that is not here is not interrupted, or is not any more.
    pub(crate) interrupted: BTreeMap<NodeId, Interruption>,
    /// The nodes from which the volume is to be taken, now.
    pub(crate) detach: BTreeMap<NodeId, LetGo>,
    /// When time alone decides something else.
    pub(crate) again_at: Option<UnixMillis>,
}

/// Why the volume is to be taken from a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LetGo {
    /// Nobody wants it there.
    Unwanted,
    /// The time of those who have it there is over.
    Interrupted(InterruptedBy),
}

impl Ticket {
    /// Which comes first: the highest priority, the oldest, the id.
    pub(super) fn rank(&self) -> (Reverse<u32>, UnixMillis, &TicketId) {
        (Reverse(self.kind.priority()), self.since, &self.id)
    }

    /// The one node that it is of use on, where there is one.
    pub(crate) fn demands(&self) -> Option<&NodeId> {
        self.node.as_ref().filter(|_| self.kind.is_workload())
    }

    /// Whether it is of use on that node.
    pub(super) fn may_be_on(&self, node: &NodeId) -> bool {
        self.demands().is_none_or(|demanded| demanded == node)
    }

    /// When it is lost, if it is not renewed before.
    fn lost_at(&self) -> Option<UnixMillis> {
        self.renew_ms.filter(|_| self.kind.is_interruptible()).map(|every| self.renewed.plus(every))
    }

    /// Whether its holder is silent for too long.
    pub(super) fn is_lost(&self, now: UnixMillis) -> bool {
        self.lost_at().is_some_and(|at| at <= now)
    }
}

impl Holding {
    /// Whether the node has the volume under a grant that is not being ended.
    pub(super) fn is_there(&self) -> bool {
        matches!(self.state, HoldingState::Coming | HoldingState::Again | HoldingState::Ready)
    }
}

/// The facts, in an order that does not depend on theirs.
pub(super) struct Look<'a> {
    pub(super) facts: &'a TicketFacts<'a>,
    /// Who comes first is first.
    pub(super) ranked: Vec<&'a Ticket>,
    /// The one that had the volume first is first.
    pub(super) holdings: Vec<&'a Holding>,
}

impl<'a> Look<'a> {
    fn new(facts: &'a TicketFacts<'a>) -> Self {
        let mut ranked: Vec<&Ticket> = facts.tickets.iter().collect();
        ranked.sort_by(|a, b| a.rank().cmp(&b.rank()));
        let mut holdings: Vec<&Holding> = facts.holdings.iter().collect();
        let place = |holding: &Holding| holding.role != Role::Primary;
        holdings.sort_by(|a, b| (place(a), &a.node).cmp(&(place(b), &b.node)));
        Self { facts, ranked, holdings }
    }

    pub(super) fn ticket(&self, id: &TicketId) -> Option<&'a Ticket> {
        self.ranked.iter().copied().find(|ticket| ticket.id == *id)
    }

    pub(super) fn at(&self, node: &NodeId) -> Option<&'a Holding> {
        self.holdings.iter().copied().find(|holding| holding.node == *node)
    }

    /// Why the node can be granted nothing.
    pub(super) fn barred(&self, node: &NodeId) -> Option<TicketWait> {
        self.facts.barred.get(node).map(|why| TicketWait::Node(Box::new(why.clone())))
    }

    /// Whether the node has the volume for this ticket, among others.
    fn is_for(&self, holding: &Holding, ticket: &Ticket) -> bool {
        if !holding.is_there() || !ticket.may_be_on(&holding.node) {
            return false;
        }
        if ticket.kind == TicketType::Csi {
            return holding.csi == CsiUse::Published && ticket.node.as_ref() == Some(&holding.node);
        }
        holding.tickets.contains_key(&ticket.id)
    }
}

/// Says what each ticket of a volume gets.
pub(crate) fn decide(facts: &TicketFacts<'_>) -> TicketDecision {
    let look = Look::new(facts);
    let (joined, interrupted) = look.interruptions();
    let mut places = Places { look: &look, joined: &joined, interrupted: &interrupted, taken: None };
    let standings: BTreeMap<TicketId, TicketStanding> =
        look.ranked.iter().map(|&ticket| (ticket.id.clone(), places.standing(ticket))).collect();
    let wanted: BTreeSet<&NodeId> = standings.values().filter_map(kept).collect();
    let detach = look.holdings.iter().filter(|holding| holding.is_there()).filter_map(|holding| {
        let why = match interrupted.get(&holding.node) {
            Some(interruption) if interruption.until > facts.now => return None,
            Some(interruption) => LetGo::Interrupted(interruption.by.clone()),
            None if look.is_unwanted(holding) && !wanted.contains(&holding.node) => LetGo::Unwanted,
            None => return None,
        };
        Some((holding.node.clone(), why))
    });
    let detach = detach.collect();
    let ends = interrupted.values().map(|interruption| interruption.until);
    let later = ends.chain(facts.tickets.iter().filter_map(Ticket::lost_at)).filter(|at| *at > facts.now);
    let again_at = later.min();
    TicketDecision { standings, interrupted, detach, again_at }
}

/// The node that is to have the volume, or to keep it, for a ticket.
fn kept(standing: &TicketStanding) -> Option<&NodeId> {
    match standing {
        TicketStanding::Satisfied { node, .. } | TicketStanding::AttachOn(node) => Some(node),
        TicketStanding::Interrupt { .. } | TicketStanding::Waits { .. } => None,
    }
}

/// Gives nodes to tickets, who comes first first.
struct Places<'a> {
    look: &'a Look<'a>,
    /// The nodes that workloads' tickets have, or join now.
    joined: &'a BTreeSet<&'a NodeId>,
    interrupted: &'a BTreeMap<NodeId, Interruption>,
    /// The node that has nothing of the volume yet and was given to a ticket: there is one at most.
    taken: Option<(&'a NodeId, &'a TicketId)>,
}

impl<'a> Places<'a> {
    fn standing(&mut self, ticket: &'a Ticket) -> TicketStanding {
        let wait = match self.held(ticket) {
            Some(Ok(standing)) => return standing,
            Some(Err(wait)) => wait,
            None if ticket.is_lost(self.look.facts.now) => TicketWait::Renewal { since: ticket.renewed },
            None => {
                let place = match ticket.demands() {
                    Some(node) => self.there(ticket, node),
                    None => self.where_it_is(ticket),
                };
                match place {
                    Ok(node) => return TicketStanding::AttachOn(node.clone()),
                    Err(wait) => wait,
                }
            }
        };
        TicketStanding::Waits { wait, since: ticket.waits_since }
    }

    /// How a ticket stands that a node has the volume for.
    fn held(&self, ticket: &Ticket) -> Option<Result<TicketStanding, TicketWait>> {
        let of_it = self.look.holdings.iter().filter(|holding| self.look.is_for(holding, ticket));
        let holding = of_it.min_by_key(|holding| self.interrupted.contains_key(&holding.node))?;
        let (node, now) = (holding.node.clone(), self.look.facts.now);
        let lost = TicketWait::Renewal { since: ticket.renewed };
        if let Some(Interruption { by, until }) = self.interrupted.get(&node) {
            return Some(match by {
                by if *until > now => Ok(TicketStanding::Interrupt { node, by: by.clone(), until: *until }),
                InterruptedBy::Workload { ticket, node } => {
                    Err(TicketWait::YieldsTo { ticket: ticket.clone(), node: node.clone() })
                }
                InterruptedBy::Unpublish => Err(TicketWait::Detaches { node }),
                InterruptedBy::Silence => Err(lost),
            });
        }
        if ticket.is_lost(now) {
            return Some(Err(lost));
        }
        let generation = ticket.generation;
        let current = ticket.kind == TicketType::Csi || holding.tickets.get(&ticket.id) == Some(&generation);
        Some(Ok(if current && holding.state == HoldingState::Ready {
            TicketStanding::Satisfied { node, generation }
        } else {
            TicketStanding::AttachOn(node)
        }))
    }

    /// A workload's ticket: that node, and no other.
    fn there(&mut self, ticket: &'a Ticket, node: &'a NodeId) -> Result<&'a NodeId, TicketWait> {
        if let Some(holding) = self.look.at(node) {
            return self.joins(holding).map_or(Ok(node), Err);
        }
        if let Some(wait) = self.look.barred(node) {
            return Err(wait);
        }
        let taken = self.taken.filter(|(taken, _)| *taken != node);
        if taken.is_none() && self.look.admits_beside(ticket, &self.look.holdings) {
            self.taken = Some((node, &ticket.id));
            return Ok(node);
        }
        let firm: Vec<&Holding> = self.look.holdings.iter().copied().filter(|h| self.is_firm(h)).collect();
        if !self.look.admits_beside(ticket, &firm) {
            return Err(TicketWait::Elsewhere { nodes: firm.iter().map(|h| h.node.clone()).collect() });
        }
        if let Some((_, first)) = taken {
            return Err(TicketWait::Queue { behind: first.clone() });
        }
        Err(self.yielding(ticket))
    }

    /// Whether somebody keeps the volume there.
    fn is_firm(&self, holding: &Holding) -> bool {
        self.joined.contains(&holding.node) || self.look.is_firm(holding)
    }

    /// Why a workload's ticket does not join those for whom its node has the volume already.
    fn joins(&self, holding: &Holding) -> Option<TicketWait> {
        let node = holding.node.clone();
        let leaves = holding.state == HoldingState::Leaving
            || (holding.is_there() && holding.csi == CsiUse::Unpublishing);
        match self.interrupted.get(&node).map(|interruption| &interruption.by) {
            Some(InterruptedBy::Workload { ticket, .. }) => {
                Some(TicketWait::Queue { behind: ticket.clone() })
            }
            Some(InterruptedBy::Unpublish | InterruptedBy::Silence) => Some(TicketWait::Detaches { node }),
            None if leaves => Some(TicketWait::Detaches { node }),
            None => self.look.barred(&node),
        }
    }

    /// What a workload's ticket waits for while others let go.
    fn yielding(&self, ticket: &Ticket) -> TicketWait {
        let now = self.look.facts.now;
        for holding in &self.look.holdings {
            let node = holding.node.clone();
            let Some(Interruption { by, until }) = self.interrupted.get(&node) else { continue };
            match by {
                InterruptedBy::Workload { ticket: first, .. } if *first != ticket.id => {
                    return TicketWait::Queue { behind: first.clone() };
                }
                _ if *until <= now => return TicketWait::Detaches { node },
                _ => {}
            }
            let of_it = |other: &&&Ticket| holding.tickets.contains_key(&other.id) && other.may_be_on(&node);
            let first = self.look.ranked.iter().find(of_it);
            if let Some(first) = first {
                return TicketWait::Yielding { node, ticket: first.id.clone(), until: *until };
            }
        }
        // Whoever keeps the volume would admit it: what is left is being taken down, or is about to be.
        let leaving = self.look.holdings.iter().find(|holding| !self.is_firm(holding));
        match leaving {
            Some(holding) => TicketWait::Detaches { node: holding.node.clone() },
            None => {
                let nodes = self.look.holdings.iter().map(|holding| holding.node.clone()).collect();
                TicketWait::Elsewhere { nodes }
            }
        }
    }

    /// Any other ticket: where the volume is; on its own node only if nobody has it.
    fn where_it_is(&mut self, ticket: &'a Ticket) -> Result<&'a NodeId, TicketWait> {
        let open = |holding: &&&Holding| {
            holding.is_there()
                && holding.csi != CsiUse::Unpublishing
                && !self.interrupted.contains_key(&holding.node)
                && self.look.barred(&holding.node).is_none()
        };
        let beside = self.look.holdings.iter().filter(open);
        if let Some(holding) = beside.min_by_key(|holding| ticket.node.as_ref() != Some(&holding.node)) {
            return Ok(&holding.node);
        }
        if !self.look.holdings.is_empty() {
            return Err(self.nowhere_yet());
        }
        match (&ticket.node, self.taken) {
            (Some(node), Some((taken, _))) if taken == node => Ok(node),
            (_, Some((_, first))) => Err(TicketWait::Queue { behind: first.clone() }),
            (None, None) => Err(TicketWait::AnyNode),
            (Some(node), None) => match self.look.barred(node) {
                Some(wait) => Err(wait),
                None => {
                    self.taken = Some((node, &ticket.id));
                    Ok(node)
                }
            },
        }
    }

    /// Why none of the nodes that have the volume will do for a ticket that would take any of them.
    fn nowhere_yet(&self) -> TicketWait {
        for Interruption { by, .. } in self.interrupted.values() {
            if let InterruptedBy::Workload { ticket, node } = by {
                return TicketWait::YieldsTo { ticket: ticket.clone(), node: node.clone() };
            }
        }
        for holding in &self.look.holdings {
            let node = holding.node.clone();
            let kept = holding.is_there()
                && holding.csi != CsiUse::Unpublishing
                && !self.interrupted.contains_key(&node);
            if kept && let Some(wait) = self.look.barred(&node) {
                return wait;
            }
        }
        let leaving = self.look.holdings.iter().find(|holding| holding.state != HoldingState::Unknown);
        match leaving {
            Some(holding) => TicketWait::Detaches { node: holding.node.clone() },
            None => {
                let nodes = self.look.holdings.iter().map(|holding| holding.node.clone()).collect();
                TicketWait::Elsewhere { nodes }
            }
        }
    }
}
