//! Tickets of this world: what holders wish for, what they were said, and what must not be done to them.
//!
//! In comes what holders do; out go wishes and renewals to the newest leader, and the first standing, directive or request
//! that breaks what a ticket may rely on. What a ticket may rely on is what its holder was said, never what a core makes of
//! it: a holder that was said to be satisfied has the device until it was said to let go and had its time, until its wish is
//! another one, or until a person has the node cut off.

use cleat_core::{
    Directive, Epoch, Event, RdsRequest, Ticket, TicketId, TicketStanding, TicketType, UnixMillis,
};

use crate::check::Violation;
use crate::kinds::Action;
use crate::names::{N, V, host_of, node_id, node_of, volume_id, volume_of};
use crate::records::attachment_of;
use crate::world::{Ask, QUANTUM_MS, World};

/// The kinds of tickets of this world: of each volume one of each, at most. No two have the same priority.
pub const KINDS_OF_TICKETS: [TicketType; 3] = [TicketType::Backup, TicketType::Api, TicketType::Restore];
/// How long a ticket lasts without being renewed.
const RENEW_MS: u64 = 2 * QUANTUM_MS;

/// A ticket, by its kind's index.
pub type T = usize;

/// A ticket, as its holder has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldTicket {
    /// Where its holder wants the volume.
    pub node: Option<N>,
    /// Which wish it is.
    pub generation: u64,
    /// Its holder does not renew it any more.
    pub silent: bool,
    /// The process of a leader that knows this wish.
    pub known_by: Option<u64>,
    /// It was said to be satisfied: where, under which grant.
    pub satisfied: Option<(N, Epoch)>,
    /// It was said to let go there, then.
    pub told: Option<(N, UnixMillis)>,
    /// A person has the node cut off.
    pub forced: bool,
}

fn ticket_id(v: V, t: T) -> TicketId {
    TicketId::new(format!("{}-{v}", KINDS_OF_TICKETS[t].name())).expect("a ticket id")
}

fn ticket_of(id: &TicketId) -> T {
    let name = id.as_str();
    KINDS_OF_TICKETS.iter().position(|kind| name.starts_with(kind.name())).expect("a ticket of this world")
}

impl World {
    /// What can happen to tickets.
    pub(crate) fn of_tickets(&self, all: &mut Vec<Action>) {
        for v in 0..self.setup.access.len() {
            for (t, kind) in KINDS_OF_TICKETS.iter().enumerate() {
                let ticket = self.tickets[v][t].as_ref();
                if ticket.is_some_and(|ticket| ticket.known_by != Some(self.leaders[0].process)) {
                    all.push(Action::TicketSeen(v, t));
                }
                if ticket.is_some_and(|ticket| !ticket.silent) && self.budget.faults > 0 {
                    all.push(Action::TicketSilent(v, t));
                }
                if self.budget.requests == 0 {
                    continue;
                }
                if ticket.is_some() {
                    all.push(Action::TicketGoes(v, t));
                }
                let wishes = self.nodes().map(Some).chain((!kind.is_workload()).then_some(None));
                let new = |node: &Option<N>| ticket.is_none_or(|old| old.node != *node && old.generation < 2);
                all.extend(wishes.filter(new).map(|node| Action::TicketComes(v, t, node)));
            }
        }
    }

    /// A holder wishes for a volume, or wishes for it elsewhere. It is the shell's to hand that to a leader.
    pub(crate) fn ticket_comes(&mut self, v: V, t: T, node: Option<N>) {
        let ticket = &mut self.tickets_mut()[v][t];
        match ticket {
            Some(ticket) => {
                (ticket.node, ticket.known_by) = (node, None);
                ticket.generation += 1;
            }
            None => {
                *ticket = Some(HeldTicket {
                    node,
                    generation: 1,
                    silent: false,
                    known_by: None,
                    satisfied: None,
                    told: None,
                    forced: false,
                });
            }
        }
        self.ticket_seen(v, t);
    }

    /// The newest leader's shell hands a wish over.
    pub(crate) fn ticket_seen(&mut self, v: V, t: T) {
        let process = self.leaders[0].process;
        let renewed = self.now_of(0);
        let Some(held) = self.tickets_mut()[v][t].as_mut() else { return };
        held.known_by = Some(process);
        let ticket = Ticket {
            id: ticket_id(v, t),
            kind: KINDS_OF_TICKETS[t],
            node: held.node.map(node_id),
            holder: String::new(),
            generation: held.generation,
            since: UnixMillis(0),
            renewed,
            renew_ms: Some(RENEW_MS),
            waits_since: renewed,
        };
        self.event(0, Event::TicketWanted { spec: self.setup.spec(v), ticket: Box::new(ticket) });
    }

    pub(crate) fn ticket_goes(&mut self, v: V, t: T) {
        if self.tickets_mut()[v][t].take().is_some() {
            self.withdraw(v, t);
        }
    }

    pub(crate) fn ticket_falls_silent(&mut self, v: V, t: T) {
        if let Some(ticket) = &mut self.tickets_mut()[v][t] {
            ticket.silent = true;
        }
    }

    /// Holders that are there renew what a leader knows.
    pub(crate) fn renew_tickets(&mut self) {
        for v in 0..self.setup.access.len() {
            for t in 0..KINDS_OF_TICKETS.len() {
                let process = self.leaders[0].process;
                let renewed =
                    self.tickets[v][t].as_ref().is_some_and(|t| !t.silent && t.known_by == Some(process));
                if renewed {
                    self.event(0, Event::TicketRenewed { volume: volume_id(v), ticket: ticket_id(v, t) });
                }
            }
        }
    }

    /// All that is wished for is with the newest leader.
    pub(crate) fn all_tickets_seen(&mut self) {
        let process = self.leaders[0].process;
        for v in 0..self.setup.access.len() {
            for t in 0..KINDS_OF_TICKETS.len() {
                match &self.tickets[v][t] {
                    Some(ticket) if ticket.known_by != Some(process) => self.ticket_seen(v, t),
                    // It went while nobody led, and a record has it still: the shell withdraws that.
                    None if self.is_on_record(v, t) => self.withdraw(v, t),
                    Some(_) | None => {}
                }
            }
        }
    }

    fn is_on_record(&self, v: V, t: T) -> bool {
        let id = ticket_id(v, t);
        let attachments = self.stored.get(&volume_id(v)).into_iter().flat_map(|record| &record.attachments);
        attachments.flat_map(|a| &a.wanted.tickets).any(|ticket| ticket.id == id)
    }

    fn withdraw(&mut self, v: V, t: T) {
        self.event(0, Event::TicketGone { volume: volume_id(v), ticket: ticket_id(v, t) });
    }

    /// Those whose holders are there end. Whoever is silent loses what may be taken from it, and goes later.
    pub(crate) fn tickets_end(&mut self, silent: bool) {
        for v in 0..self.setup.access.len() {
            for (t, kind) in KINDS_OF_TICKETS.into_iter().enumerate() {
                let lapses = self.tickets[v][t].as_ref().is_some_and(|t| t.silent) && kind.is_interruptible();
                if silent || !lapses {
                    self.ticket_goes(v, t);
                }
            }
        }
    }

    /// The newest leader says how a ticket stands.
    pub(crate) fn ticket_stands(&mut self, id: &TicketId, v: V, standing: Option<&TicketStanding>) {
        let (t, now) = (ticket_of(id), UnixMillis(self.now));
        let Some(held) = self.tickets[v][t].clone() else { return };
        let kind = KINDS_OF_TICKETS[t];
        match standing {
            Some(TicketStanding::Satisfied { node, generation }) => {
                let n = node_of(node);
                let on_record = self.stored.get(&volume_id(v)).and_then(|record| attachment_of(record, n));
                let for_it = on_record.filter(|a| {
                    a.wanted.tickets.iter().any(|ticket| ticket.id == *id && ticket.generation == *generation)
                });
                let Some(epoch) = for_it.map(|a| a.epoch).filter(|_| *generation <= held.generation) else {
                    return self.breaks(Violation::StaleSatisfied { v, n });
                };
                let host = &self.hosts[n];
                let heard = host.stream.as_ref().is_some_and(|s| s.process == self.leaders[0].process);
                let counts = |(of, boot)| of == epoch && (boot == host.boot || !heard);
                if !host.proven[v].is_some_and(counts) && !self.told.by_hand[v][n] {
                    return self.breaks(Violation::SatisfiedWithoutProof { v, n });
                }
                self.saw("satisfied");
                if let Some(device) = &mut self.host(n).held[v] {
                    device.used = true;
                }
                let current = *generation == held.generation;
                if let Some(held) = &mut self.tickets_mut()[v][t] {
                    (held.satisfied, held.told) = (current.then_some((n, epoch)), None);
                }
            }
            Some(TicketStanding::Interrupt { node, .. }) => {
                let n = node_of(node);
                if !kind.is_interruptible() {
                    return self.breaks(Violation::WorkloadInterrupted { v, n });
                }
                self.saw("interrupted");
                if let Some(held) = &mut self.tickets_mut()[v][t]
                    && held.told.is_none_or(|(at, _)| at != n)
                {
                    held.told = Some((n, now));
                }
            }
            Some(TicketStanding::AttachOn(_) | TicketStanding::Waits { .. }) | None => {
                if let Some(held) = &mut self.tickets_mut()[v][t] {
                    (held.satisfied, held.told, held.forced) = (None, None, false);
                }
            }
        }
    }

    /// A person, or a mark, has a node cut off from a volume.
    pub(crate) fn tickets_are_cut(&mut self, v: V, n: N) {
        for t in 0..KINDS_OF_TICKETS.len() {
            let there = |ticket: &HeldTicket| ticket.satisfied.is_some_and(|(at, _)| at == n);
            if self.tickets[v][t].as_ref().is_some_and(there)
                && let Some(ticket) = &mut self.tickets_mut()[v][t]
            {
                ticket.forced = true;
            }
        }
    }

    /// The newest leader is about to take a node off a volume, under this epoch or without saying under which.
    fn check_tickets_at(&mut self, v: V, n: N, under: Option<Epoch>) {
        let grace_ms = self.setup.config().interrupt_grace_ms;
        for (t, kind) in KINDS_OF_TICKETS.into_iter().enumerate() {
            let Some(ticket) = &self.tickets[v][t] else { continue };
            let Some((at, epoch)) = ticket.satisfied else { continue };
            let record = self.stored.get(&volume_id(v)).and_then(|record| attachment_of(record, n));
            let granted =
                record.is_some_and(|a| a.epoch == epoch) && under.is_none_or(|under| under >= epoch);
            let ledger = &self.hosts[n].ledger[v];
            let over = ledger.epoch > Some(epoch) || (ledger.epoch == Some(epoch) && ledger.ended);
            // Whoever wants a workload's volume elsewhere has left this node by that.
            let has_left = kind.is_workload() && ticket.node.is_some_and(|node| node != n);
            if at != n || has_left || ticket.forced || !granted || over || self.told.by_hand[v][n] {
                continue;
            }
            let had_its_time =
                ticket.told.is_some_and(|(at, since)| at == n && self.now >= since.0 + grace_ms);
            if !kind.is_interruptible() {
                return self.breaks(Violation::WorkloadInterrupted { v, n });
            }
            if !had_its_time {
                return self.breaks(Violation::InterruptedTooEarly { v, n });
            }
        }
    }

    /// The newest leader directs an agent.
    pub(crate) fn check_tickets_directive(&mut self, n: N, directive: &Directive) {
        if let Directive::Detach { volume, epoch, .. } | Directive::Revoke { volume, epoch, .. } = directive {
            self.check_tickets_at(volume_of(volume), n, Some(*epoch));
        }
    }

    /// The newest leader asks the RDS.
    pub(crate) fn check_tickets_request(&mut self, request: &RdsRequest) {
        if let RdsRequest::Deny { volume, host_nqn, .. } | RdsRequest::Close { volume, host_nqn } = request {
            self.check_tickets_at(volume_of(volume), host_of(host_nqn), None);
        }
    }

    /// A node is granted a volume. Beside another one it is for a caller alone: nothing moves for a ticket.
    pub(crate) fn check_ticket_grant(&mut self, v: V, n: N) {
        let asked = self.open.values().any(|open| *open == (v, Some(n), Ask::Publish));
        let beside = self.nodes().any(|m| m != n && self.can_write(v, m) && !self.told.by_hand[v][m]);
        if self.setup.dangers.tickets && !asked && beside {
            self.breaks(Violation::MovedForATicket { v, n });
        }
    }

    /// A node that is attached for nobody once every ticket has ended.
    pub(crate) fn attached_for_nobody(&self) -> Option<String> {
        let mut all = self.stored.values().flat_map(|record| &record.attachments);
        let left = all.find(|a| !a.wanted.csi && !a.stray)?;
        Some(format!("attached for nobody: {left:?}"))
    }
}
