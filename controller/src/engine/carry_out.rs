//! The task that owns the store: makes records durable, and carries out what was decided, volume by volume.
//!
//! In come steps; out go writes of records, and effects. What always holds is what the core asks for (`cleat_core::Effect`):
//! no effect begins before what it rests on is durable, and those of a volume begin in their order ([`Lanes`]). A record that
//! is not stored now, or is for long, holds up what rests on it and nothing else; one that somebody else has written sets its
//! volume aside (a node's is written over it, a few times); after any other failure nothing is carried out any more.

use std::collections::HashMap;
use std::sync::Arc;

use cleat_core::{
    Directive, Effect, Event, HostNqn, NodeId, OperationId, Outcome, RdsRequest, Reply, RequestId, SessionId,
    UnixMillis, VolumeId, VolumeRecord,
};
use tokio::sync::{broadcast, mpsc};

use super::fences::Fences;
use super::handle::unanswered;
use super::input::{Deliver, RequestResult, Waiter};
use super::lanes::Lanes;
use super::overdue::Overdue;
use super::ports::Agents;
use super::rds_in_doubt::RdsInDoubt;
use super::rds_queue::RdsQueue;
use super::records::{Book, Deciding, Wanted};
use super::storing::{Answer, Storing};
use super::ticket_board::TicketBoard;
use super::{Decision, EngineError, RequestError, WatchedChange, notices};
use crate::clock::Clock;
use crate::explain;
use crate::metrics;
use crate::store::{CommitError, Key, RecordKind};

/// A node's record that somebody else writes as often as we do is left to them.
const NODE_TRIES: u32 = 5;
/// A record that takes no grant is written again without it. The core decides that in one step; a few others may come before.
const GRANT_TRIES: u32 = 100;
/// Steps that are taken before what they decide is handed to the store, so that it becomes durable together.
const GROUP: usize = 256;

pub(super) struct Executor {
    storing: Storing,
    book: Book,
    lanes: Lanes<Work>,
    rds_queue: RdsQueue,
    agents: Arc<dyn Agents>,
    changes: broadcast::Sender<WatchedChange>,
    clock: Clock,
    waiters: HashMap<RequestId, Waiter>,
    fences: Fences,
    overdue: Overdue,
    unsettled: RdsInDoubt,
    tickets: TicketBoard,
    /// Hosts of nodes whose record is not durable.
    hosts: HashMap<Key, Vec<HostNqn>>,
    /// How often in a row each record was not written.
    conflicts: HashMap<Key, u32>,
    /// What was decided, and given up at a stop.
    given_up: Option<CommitError>,
}

/// Something to be done, once what it rests on is durable.
enum Work {
    /// A record has become durable; `None`: it has gone.
    Recorded {
        now: UnixMillis,
        volume: VolumeId,
        record: Option<Arc<VolumeRecord>>,
    },
    /// An effect that is no record.
    Effect {
        now: UnixMillis,
        effect: Effect,
    },
    Tell(WatchedChange),
    Show(Deliver),
}

impl Executor {
    pub(super) fn new(
        (storing, book): (Storing, Book),
        rds_queue: RdsQueue,
        agents: Arc<dyn Agents>,
        changes: broadcast::Sender<WatchedChange>,
        clock: Clock,
        ((fences, overdue), unsettled, tickets): ((Fences, Overdue), RdsInDoubt, TicketBoard),
    ) -> Self {
        Self {
            storing,
            book,
            lanes: Lanes::default(),
            rds_queue,
            agents,
            changes,
            clock,
            waiters: HashMap::new(),
            fences,
            overdue,
            unsettled,
            tickets,
            hosts: HashMap::new(),
            conflicts: HashMap::new(),
            given_up: None,
        }
    }

    /// Runs until no more steps can come, and what they have decided was carried out.
    pub(super) async fn run(mut self, mut steps: mpsc::Receiver<Decision>) -> Result<(), EngineError> {
        let mut group = Vec::with_capacity(GROUP);
        let (mut more, mut finished) = (true, false);
        loop {
            self.carry_out_what_may_be()?;
            self.write(steps.is_empty())?;
            for (key, error) in self.storing.give_up() {
                self.set_aside(&key, &error, false);
                self.given_up = Some(error);
            }
            // Whatever waits still waits for a record that nobody decides any more.
            if !more && !self.storing.is_busy() {
                if std::mem::replace(&mut finished, true) {
                    break;
                }
                self.rds_queue.finish().await;
                // Marks that nothing is behind any more are taken off: nobody then has to wait for what they stand for.
                continue;
            }
            let look = self.storing.next_look();
            tokio::select! {
                biased;
                answers = self.storing.answers(), if self.storing.is_asking() => {
                    for answer in answers {
                        self.stored(answer)?;
                    }
                }
                taken = steps.recv_many(&mut group, GROUP), if more => {
                    more = taken > 0;
                    for step in group.drain(..) {
                        self.take(step);
                    }
                }
                () = tokio::time::sleep_until(look), if self.storing.is_busy() => {}
            }
            self.storing.look();
        }
        match self.given_up {
            None => Ok(()),
            Some(error) => Err(EngineError::Store(error)),
        }
    }

    /// Lines up what a step has decided.
    fn take(&mut self, step: Decision) {
        let Decision { now, waiter, effects, changed, view } = step;
        if let Some(waiter) = waiter {
            self.waiters.insert(waiter.request, waiter);
        }
        let mut records = Vec::new();
        for effect in effects {
            self.line_up(now, effect, &mut records);
        }
        match changed {
            Some(WatchedChange::Volume(volume)) => {
                self.line_up_for(&volume.clone(), &[], Work::Tell(WatchedChange::Volume(volume)));
            }
            Some(change) => self.lanes.line_up_after(&records, Work::Tell(change)),
            None => {}
        }
        match view {
            Some((Some(volume), deliver)) => self.line_up_for(&volume, &[], Work::Show(deliver)),
            Some((None, deliver)) => self.lanes.line_up_after([], Work::Show(deliver)),
            None => {}
        }
        metrics::waiting_requests(self.waiters.len());
    }

    fn line_up(&mut self, now: UnixMillis, effect: Effect, records: &mut Vec<Key>) {
        match effect {
            Effect::Persist(record) => {
                let record: Arc<VolumeRecord> = Arc::from(record);
                self.change_volume(now, record.spec.id.clone(), Some(record), records);
            }
            Effect::Forget(volume) => self.change_volume(now, volume, None, records),
            Effect::PersistNode(record) => {
                let host = record.identity.host_nqn.clone();
                let key = self.change_node(&record.node.clone(), |wanted| wanted.node(Some(record)));
                if let Some(key) = key {
                    self.hosts.entry(key.clone()).or_default().push(host);
                    records.push(key);
                }
            }
            Effect::ForgetNode(node) => records.extend(self.change_node(&node, |wanted| wanted.node(None))),
            Effect::Rds { ref request, .. } => {
                let volume = request.volume().clone();
                let nodes = self.nodes_let_in(request);
                if self.book.is_set_aside(&volume).is_none() && self.unsettled.asking(&volume) {
                    self.lanes.change(&of(&volume), |wanted| wanted.unsettled = Some(true));
                }
                self.line_up_for(&volume, &nodes, Work::Effect { now, effect });
            }
            Effect::Direct { ref node, ref directive, .. } => {
                let nodes = [Key::node(node.as_str())];
                self.line_up_for(&directive.volume().clone(), &nodes, Work::Effect { now, effect });
            }
            Effect::Reply { request, .. } => {
                let work = Work::Effect { now, effect };
                let waiter = self.waiters.get(&request);
                let node =
                    waiter.and_then(|waiter| waiter.node.as_ref()).map(|node| Key::node(node.as_str()));
                match waiter.and_then(|waiter| waiter.volume.clone()) {
                    Some(volume) => self.line_up_for(&volume, &[], work),
                    // It says that what rests on a declaration is recorded, whichever volume that is, and the node forgotten.
                    None => self.lanes.line_up_after_volumes(node.as_ref(), work),
                }
            }
            Effect::Notice(ref notice) => match notice.volume().cloned() {
                Some(volume) => self.line_up_for(&volume, &[], Work::Effect { now, effect }),
                None => self.lanes.line_up_after([], Work::Effect { now, effect }),
            },
            Effect::Ticket { ref volume, .. } => {
                self.line_up_for(&volume.clone(), &[], Work::Effect { now, effect });
            }
            Effect::RefuseSession { .. } => self.lanes.line_up_after([], Work::Effect { now, effect }),
        }
    }

    fn change_volume(
        &mut self,
        now: UnixMillis,
        volume: VolumeId,
        record: Option<Arc<VolumeRecord>>,
        records: &mut Vec<Key>,
    ) {
        if self.book.is_set_aside(&volume).is_some() {
            return;
        }
        let key = of(&volume);
        self.lanes.change(&key, |wanted| wanted.volume(record.clone()));
        let recorded = Work::Recorded { now, volume, record };
        self.lanes.line_up_record(&key, recorded, |last| matches!(last, Work::Recorded { .. }));
        records.push(key);
    }

    fn change_node(&mut self, node: &NodeId, change: impl FnOnce(&mut Wanted)) -> Option<Key> {
        if self.book.is_node_set_aside(node).is_some() {
            self.book.committed().node_settled(node, 1);
            return None;
        }
        let key = Key::node(node.as_str());
        self.lanes.change(&key, change);
        Some(key)
    }

    /// Nodes whose record is not durable, and which a request lets in.
    fn nodes_let_in(&self, request: &RdsRequest) -> Vec<Key> {
        let RdsRequest::Allow { host_nqn, .. } = request else { return Vec::new() };
        let nodes = self.hosts.iter().filter(|(_, hosts)| hosts.contains(host_nqn));
        nodes.map(|(key, _)| key.clone()).collect()
    }

    fn line_up_for(&mut self, volume: &VolumeId, nodes: &[Key], work: Work) {
        if let Some(reason) = self.book.is_set_aside(volume) {
            // What was decided rests on a record that is not ours any more.
            let failed = RequestError::SetAside { volume: volume.clone(), reason };
            self.leave(work, failed);
        } else if let Err(work) = self.lanes.line_up(&of(volume), nodes, work) {
            self.turn_away(volume, work);
        }
    }

    /// Too much waits for the record: what does not fit is not done.
    fn turn_away(&mut self, volume: &VolumeId, work: Work) {
        let waits = "too much waits for the volume's record to be stored";
        match work {
            Work::Effect { effect: Effect::Reply { .. }, .. } => {
                self.leave(work, RequestError::Stalled { reason: waits.into() });
            }
            // It rests on no record.
            Work::Effect { now, effect: effect @ Effect::Notice(_) } => self.carry_out(now, effect),
            Work::Effect { now, effect: Effect::Ticket { volume, ticket, .. } } => {
                self.tickets.post(now, volume, ticket, None);
            }
            work => {
                if let Some(event) = self.not_done(volume, work, waits) {
                    self.rds_queue.tell(event);
                }
            }
        }
    }

    /// What the core hears of something that is not done: as of what was tried and did not work, which holds; it asks again
    /// later.
    fn not_done(&self, volume: &VolumeId, work: Work, why: &str) -> Option<Event> {
        match work {
            Work::Effect { effect: Effect::Rds { operation, .. }, .. } => {
                self.unsettled.answered(volume, true);
                Some(Event::RdsDone { operation, result: Err(unanswered(format!("not asked: {why}"))) })
            }
            Work::Effect { effect: Effect::Direct { node, session, operation, directive }, .. } => {
                Some(not_sent(node, session, operation, &directive, "store", why.to_owned()))
            }
            _ => None,
        }
    }

    fn carry_out_what_may_be(&mut self) -> Result<(), EngineError> {
        while let Some(work) = self.lanes.next() {
            self.storing.still_leads()?;
            self.begin(work);
        }
        Ok(())
    }

    fn begin(&mut self, work: Work) {
        match work {
            Work::Recorded { now, volume, record } => {
                self.overdue.recorded(&volume, record.as_deref());
                let nodes = match &record {
                    Some(record) => self.fences.recorded(now, record),
                    None => self.fences.forgotten(&volume),
                };
                self.tell(WatchedChange::Volume(volume));
                for node in nodes {
                    self.tell(WatchedChange::Node(node));
                }
            }
            Work::Effect { now, effect } => self.carry_out(now, effect),
            Work::Tell(change) => self.tell(change),
            Work::Show(deliver) => deliver(),
        }
    }

    fn carry_out(&mut self, now: UnixMillis, effect: Effect) {
        match effect {
            // They are durable already, and watchers hear of a node by its session.
            Effect::Persist(_) | Effect::Forget(_) | Effect::PersistNode(_) | Effect::ForgetNode(_) => {}
            Effect::Rds { operation, request } => self.rds_queue.begin(operation, request),
            Effect::Direct { node, session, operation, directive } => {
                if let Err(missing) = self.agents.direct(&node, &session, operation, &directive) {
                    // Its agent was sent nothing; to the core that is an agent that could not do it.
                    let event = not_sent(node, session, operation, &directive, "secret", missing.to_string());
                    self.rds_queue.tell(event);
                }
            }
            Effect::Reply { request, result } => self.reply(now, request, result),
            Effect::RefuseSession { session, refusal } => {
                self.agents.refuse(&session, explain::session_refusal(&refusal));
            }
            Effect::Ticket { volume, ticket, standing } => {
                self.tickets.post(now, volume, ticket, standing.map(|standing| *standing));
            }
            Effect::Notice(notice) => {
                let notice = notices::tell(now, &notice);
                self.tell(WatchedChange::Notice(notice.into()));
            }
        }
    }

    fn leave(&mut self, work: Work, failed: RequestError) {
        match work {
            Work::Effect { effect: Effect::Reply { request, .. }, .. } => {
                if let Some(waiter) = self.waiters.remove(&request) {
                    // The caller may have gone.
                    let _ = waiter.answer.send(Err(failed));
                }
            }
            // It rests on no record.
            Work::Effect { now, effect: effect @ Effect::Notice(_) } => self.carry_out(now, effect),
            Work::Effect { now, effect: Effect::Ticket { volume, ticket, .. } } => {
                self.tickets.post(now, volume, ticket, None);
            }
            Work::Tell(change) => self.tell(change),
            // Who is shown a volume that was set aside is shown what was known of it.
            Work::Show(deliver) => deliver(),
            Work::Effect { .. } | Work::Recorded { .. } => {}
        }
    }

    fn reply(&mut self, now: UnixMillis, request: RequestId, result: RequestResult) {
        let Some(waiter) = self.waiters.remove(&request) else {
            // One answer for each request is the core's promise; a second one has nobody left to hear it.
            tracing::error!(request = request.0, ?result, "answered a request that nobody waits for");
            return;
        };
        if let Err(refusal) = &result {
            let notice = notices::refused(now, waiter.volume.as_ref(), waiter.node.as_ref(), refusal);
            self.tell(WatchedChange::Notice(notice.into()));
        }
        let mut result = result.map_err(RequestError::Refused);
        if let (Ok(Reply::Declared), Some(node)) = (&result, &waiter.node)
            && let Some(reason) = self.book.is_node_set_aside(node)
        {
            result = Err(RequestError::NodeSetAside { node: node.clone(), reason });
        }
        // The caller may have gone at its deadline. What was asked stands, and a repeat is answered from it.
        if waiter.answer.send(result).is_err() {
            let age_ms = self.clock.now().since(now);
            let volume = waiter.volume.as_ref().map(VolumeId::as_str);
            tracing::debug!(volume, age_ms, "the caller did not wait for its answer");
        }
    }

    fn tell(&self, change: WatchedChange) {
        // An error means that nobody watches.
        let _ = self.changes.send(change);
    }

    /// Hands to the store what is to be written. Marks that nothing is behind any more go with it, and by themselves when
    /// nothing else is to be done: nobody waits for them.
    fn write(&mut self, idle: bool) -> Result<(), EngineError> {
        if self.lanes.is_to_write() || (idle && !self.storing.is_busy()) {
            for volume in self.unsettled.settled() {
                if self.book.is_set_aside(&volume).is_none() {
                    self.lanes.change(&of(&volume), |wanted| wanted.unsettled = Some(false));
                }
            }
        }
        let mut writes = Vec::new();
        for (key, wanted) in self.lanes.take_due() {
            match self.book.write(&key, wanted)? {
                Some(write) => writes.push(write),
                None => self.durable(&key),
            }
        }
        self.storing.begin(writes);
        self.carry_out_what_may_be()
    }

    fn durable(&mut self, key: &Key) {
        self.lanes.durable(key);
        if !self.lanes.is_changing(key) {
            self.hosts.remove(key);
        }
    }

    /// Takes in what came of a write.
    fn stored(&mut self, (mut write, answer): Answer) -> Result<(), EngineError> {
        let key = write.write.key.clone();
        match answer {
            Ok(version) => {
                self.conflicts.remove(&key);
                self.book.written(write, version);
                self.durable(&key);
            }
            // One that a person has made another host's is no conflict, and not written over.
            Err(CommitError::Conflict { found, .. })
                if key.kind == RecordKind::Node && self.is_again(&key, NODE_TRIES) =>
            {
                write.write.expected = found;
                self.storing.begin(vec![write]);
            }
            // Theirs is taken over when an agent says Hello as that node; what comes next is written as usual.
            Err(error @ CommitError::Pinned { .. }) => {
                tracing::warn!(%key, "{error}; it is left as it is");
                self.conflicts.remove(&key);
                self.book.dropped(&write);
                self.durable(&key);
            }
            Err(CommitError::Deleting { .. })
                if key.kind == RecordKind::Volume && self.is_again(&key, GRANT_TRIES) =>
            {
                self.take_back(write);
            }
            Err(
                error @ (CommitError::Conflict { .. }
                | CommitError::Refused { .. }
                | CommitError::Deleting { .. }),
            ) => {
                match key.kind {
                    RecordKind::Volume => {
                        metrics::volume_set_aside();
                        tracing::error!(%key, "{error}; leaving it as it is until a restart");
                    }
                    // What rests on it is only whether the node is known after a restart before it is heard. Who is on
                    // one of the RDS's lists and not known then counts as a writer.
                    RecordKind::Node => {
                        metrics::node_set_aside();
                        let tries = self.conflicts.get(&key).copied().unwrap_or(1);
                        tracing::error!(
                            %key, tries,
                            "cannot write the record of {key}: {error}; it is left as it is until a restart; see whether \
                             something else writes it, and end that"
                        );
                    }
                }
                self.set_aside(&key, &error, true);
            }
            Err(error) => return Err(EngineError::Store(error)),
        }
        Ok(())
    }

    /// Counts what did not work in a row. Whether it may be tried again.
    fn is_again(&mut self, key: &Key, tries: u32) -> bool {
        let before = self.conflicts.entry(key.clone()).or_default();
        *before += 1;
        *before < tries
    }

    /// The record takes no grant: the core takes back those that are new in it, and what was to be done by them is not.
    fn take_back(&mut self, write: Deciding) {
        let Ok(volume) = VolumeId::new(&write.write.key.name) else { return };
        let key = write.write.key.clone();
        let mut events =
            vec![Event::GrantsRefused { volume: volume.clone(), grants: write.new_grants(&self.book) }];
        let asks = |work: &Work| {
            matches!(work, Work::Effect { effect: Effect::Rds { .. } | Effect::Direct { .. }, .. })
        };
        let why = "the volume's record is being deleted, and takes no grant";
        for work in self.lanes.refused(&key, |wanted| wanted.again(write), asks) {
            events.extend(self.not_done(&volume, work, why));
        }
        self.rds_queue.tell_all(events);
    }

    /// Nothing more is done about it; `others`: because somebody else has written the record.
    fn set_aside(&mut self, key: &Key, error: &CommitError, others: bool) {
        self.conflicts.remove(key);
        self.hosts.remove(key);
        let reason = error.to_string();
        self.book.set_aside(key, reason.clone());
        for work in self.lanes.give_up(key) {
            let failed = match VolumeId::new(&key.name) {
                Ok(volume) if others => RequestError::SetAside { volume, reason: reason.clone() },
                _ => RequestError::Stalled { reason: reason.as_str().into() },
            };
            self.leave(work, failed);
        }
    }
}

fn of(volume: &VolumeId) -> Key {
    Key::volume(volume.as_str())
}

/// The answer to a directive that was not sent.
fn not_sent(
    node: NodeId,
    session: SessionId,
    operation: OperationId,
    directive: &Directive,
    clause: &str,
    message: String,
) -> Event {
    let (volume, epoch) = (directive.volume().clone(), directive.epoch());
    let outcome = Outcome::Failed { clause: clause.to_owned(), message, nothing_left: false };
    Event::AgentDone { node, session, operation, volume, epoch, outcome }
}

#[cfg(test)]
#[path = "carry_out_tests.rs"]
mod tests;
