//! One volume whose tickets' decisions are carried out, for tests: a node that is asked to attach does, one that is asked
//! to let go does, and time passes only if nothing else is left to do.

use std::collections::BTreeMap;

use super::decide::{LetGo, TicketDecision, TicketFacts, decide};
use super::{
    CsiUse, Holding, HoldingState, InterruptedBy, Interruption, Ticket, TicketStanding, TicketType,
    TicketWait,
};
use crate::{Access, NodeId, Refusal, Role, TicketId, UnixMillis};

pub(super) const GRACE_MS: u64 = 30_000;

pub(super) fn n(name: &str) -> NodeId {
    NodeId::new(name).expect("a node id")
}

pub(super) fn id(name: &str) -> TicketId {
    TicketId::new(name).expect("a ticket id")
}

/// A ticket that is as old as its place among those of a test, and need not be renewed.
pub(super) fn ticket(name: &str, kind: TicketType, node: Option<&str>) -> Ticket {
    Ticket {
        id: id(name),
        kind,
        node: node.map(n),
        holder: format!("holder of {name}"),
        generation: 1,
        since: UnixMillis(0),
        renewed: UnixMillis(0),
        renew_ms: None,
        waits_since: UnixMillis(0),
    }
}

pub(super) fn silent(node: &str) -> (NodeId, Refusal) {
    (n(node), Refusal::Silent { node: n(node), since: UnixMillis(7) })
}

/// A volume, its tickets and its nodes.
#[derive(Debug, Clone)]
pub(super) struct Bench {
    pub(super) tickets: Vec<Ticket>,
    pub(super) holdings: Vec<Holding>,
    pub(super) barred: BTreeMap<NodeId, Refusal>,
    pub(super) access: Access,
    pub(super) now: UnixMillis,
    /// Which nodes let go, why and when.
    pub(super) let_go: Vec<(NodeId, LetGo, UnixMillis)>,
}

impl Bench {
    pub(super) fn new(access: Access) -> Self {
        let (tickets, holdings, barred) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { tickets, holdings, barred, access, now: UnixMillis(1_000), let_go: Vec::new() }
    }

    pub(super) fn facts(&self) -> TicketFacts<'_> {
        TicketFacts {
            tickets: &self.tickets,
            holdings: &self.holdings,
            barred: &self.barred,
            access: self.access,
            grace_ms: GRACE_MS,
            now: self.now,
        }
    }

    pub(super) fn decide(&self) -> TicketDecision {
        decide(&self.facts())
    }

    /// Somebody wants the volume.
    pub(super) fn comes(&mut self, name: &str, kind: TicketType, node: Option<&str>) {
        self.now = self.now.plus(1);
        let (since, renewed, waits_since) = (self.now, self.now, self.now);
        self.tickets.push(Ticket { since, renewed, waits_since, ..ticket(name, kind, node) });
    }

    /// The holder of a ticket that is no csi one has deleted it.
    pub(super) fn goes(&mut self, name: &str) {
        self.tickets.retain(|ticket| ticket.id != id(name));
        for holding in &mut self.holdings {
            holding.tickets.remove(&id(name));
        }
    }

    /// An Unpublish has come, for the node of that csi ticket.
    pub(super) fn unpublish(&mut self, name: &str) {
        let gone = self.ticket(name).node.clone();
        self.tickets.retain(|ticket| ticket.id != id(name));
        for holding in self.holdings.iter_mut().filter(|holding| Some(&holding.node) == gone.as_ref()) {
            holding.csi = CsiUse::Unpublishing;
        }
    }

    pub(super) fn ticket(&mut self, name: &str) -> &mut Ticket {
        self.tickets.iter_mut().find(|ticket| ticket.id == id(name)).expect("a ticket")
    }

    pub(super) fn stands(&self, name: &str) -> TicketStanding {
        self.decide().standings[&id(name)].clone()
    }

    /// What a ticket waits for.
    pub(super) fn waits(&self, name: &str) -> TicketWait {
        match self.stands(name) {
            TicketStanding::Waits { wait, .. } => wait,
            other => panic!("{name} does not wait: {other:?}"),
        }
    }

    /// Writes down what is decided now, as the core does before it asks anything of the world.
    pub(super) fn take_down(&mut self) -> TicketDecision {
        let decision = self.decide();
        for holding in self.holdings.iter_mut().filter(|holding| holding.is_there()) {
            holding.interrupted = decision.interrupted.get(&holding.node).cloned();
        }
        for (id, standing) in &decision.standings {
            if let TicketStanding::AttachOn(node) = standing {
                self.grant(node, id);
            }
        }
        for (node, why) in &decision.detach {
            let holding = self.holdings.iter_mut().find(|holding| holding.node == *node).expect("a holding");
            holding.state = HoldingState::Leaving;
            self.let_go.push((node.clone(), why.clone(), self.now));
        }
        decision
    }

    fn grant(&mut self, node: &NodeId, id: &TicketId) {
        let ticket = self.tickets.iter().find(|ticket| ticket.id == *id).expect("a ticket");
        let (kind, generation) = (ticket.kind, ticket.generation);
        if !self.holdings.iter().any(|holding| holding.node == *node) {
            let role = if self.holdings.is_empty() { Role::Primary } else { Role::MigrationTarget };
            self.holdings.push(Holding {
                node: node.clone(),
                state: HoldingState::Coming,
                role,
                csi: CsiUse::Nothing,
                tickets: BTreeMap::new(),
                interrupted: None,
                unheard: false,
            });
        }
        let holding = self.holdings.iter_mut().find(|holding| holding.node == *node).expect("a holding");
        if holding.state == HoldingState::Unknown {
            holding.state = HoldingState::Coming;
        }
        match kind {
            TicketType::Csi => holding.csi = CsiUse::Published,
            _ => drop(holding.tickets.insert(id.clone(), generation)),
        }
    }

    /// What the world has been asked for comes about; says whether there was anything.
    pub(super) fn world_moves(&mut self) -> bool {
        let before = self.holdings.clone();
        self.holdings.retain(|holding| holding.state != HoldingState::Leaving);
        let alone = self.holdings.len() == 1;
        for holding in &mut self.holdings {
            if holding.state == HoldingState::Coming {
                holding.state = HoldingState::Ready;
            }
            if alone {
                holding.role = Role::Primary;
            }
        }
        self.holdings != before
    }

    /// Everything that comes about without time passing.
    pub(super) fn settle(&mut self) {
        for _ in 0..30 {
            let before = self.holdings.clone();
            self.take_down();
            if !self.world_moves() && self.holdings == before {
                return;
            }
        }
        panic!("it does not come to rest: {self:?}");
    }

    /// Everything that comes about as time passes.
    pub(super) fn rest(&mut self) {
        for _ in 0..30 {
            self.settle();
            match self.decide().again_at {
                Some(at) => self.now = at,
                None => return,
            }
        }
        panic!("time never comes to rest: {self:?}");
    }

    /// Until the next moment at which time decides something.
    pub(super) fn until_again(&mut self) {
        self.now = self.decide().again_at.expect("a moment");
        self.settle();
    }

    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.holdings.iter().map(|holding| holding.node.clone()).collect()
    }
}

pub(super) fn satisfied(node: &str, generation: u64) -> TicketStanding {
    TicketStanding::Satisfied { node: n(node), generation }
}

pub(super) fn interrupted_by(ticket: &str, node: &str) -> InterruptedBy {
    InterruptedBy::Workload { ticket: id(ticket), node: n(node) }
}

pub(super) fn interruption(by: InterruptedBy, until: UnixMillis) -> Interruption {
    Interruption { by, until }
}

/// A backup has the volume on node x.
pub(super) fn backup_on_x(access: Access) -> Bench {
    let mut b = Bench::new(access);
    b.comes("backup", TicketType::Backup, Some("x"));
    b.settle();
    assert_eq!(b.stands("backup"), satisfied("x", 1));
    b
}

/// A workload has the volume on node a.
pub(super) fn csi_on_a(access: Access) -> Bench {
    let mut b = Bench::new(access);
    b.comes("csi-a", TicketType::Csi, Some("a"));
    b.settle();
    assert_eq!(b.stands("csi-a"), satisfied("a", 1));
    b
}
