//! The machine: its state, its one entry, and what it shows of itself.
//!
//! [`Core::step`] hands the event to one of the parts below, each of which changes the state of some volumes;
//! then every volume that was touched is *settled*: whatever can go on now goes on (`progress`), and whatever request
//! can be answered now is answered (`requests`). So a request is never answered by the part that happens to bring
//! its last condition about, but by one rule that reads the state.
//!
//! - `requests`: Publish, Unpublish, Delete; who waits for what; `admission`: who may have a volume
//! - `progress`: the next thing to ask of the RDS or an agent for an attachment
//! - `outcomes`: what the RDS and the agents answered
//! - `same_device`: whether what a node has proven is the volume's device
//! - `sessions`: agents that come, go and say what they hold
//! - `pins`: which host a node is, and who may change that
//! - `ladder`: when a node is fenced, and which rung is taken; `fencing`: a rung's steps, and its proof
//! - `export`: what is asked of the RDS for a volume as a whole
//! - `quarantine`: nodes that were cut off, until they show that they hold nothing; what a person declares
//! - `rds_lists`: what the RDS lists, held against the records
//! - `desired`: who is to have what, held against the records; `unclear`: nodes that are to have what nobody can name
//! - `index`: which volumes a node, a host or the time is about
//! - `migrations`: the record of a live migration, and what KubeVirt reports of it
//! - `switchover`: when a VM has moved, and late writes of its source, by what agents count
//! - `verify`: whether a VM that has moved holds the volume's own device
//! - `tickets`: what becomes of what `tickets::decide` says, beside `requests`
//! - `waiting`: what waits for what

#[cfg(test)]
mod absent_tests;
mod admission;
#[cfg(test)]
mod alone_tests;
#[cfg(test)]
mod delete_tests;
mod desired;
mod export;
#[cfg(test)]
mod export_tests;
#[cfg(test)]
mod fence_tests;
mod fencing;
#[cfg(test)]
mod gone_tests;
mod index;
mod ladder;
mod migrations;
#[cfg(test)]
mod operator_tests;
#[cfg(test)]
mod out_of_service_tests;
mod outcomes;
mod pins;
#[cfg(test)]
mod pins_tests;
mod progress;
mod quarantine;
mod rds_lists;
mod requests;
#[cfg(test)]
mod rest_tests;
#[cfg(test)]
mod room_tests;
#[cfg(test)]
mod rung_tests;
mod same_device;
#[cfg(test)]
mod scale_tests;
#[cfg(test)]
mod secret_tests;
mod sessions;
mod switchover;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod third_node_tests;
#[cfg(test)]
mod ticket_restart_tests;
#[cfg(test)]
mod ticket_tests;
mod tickets;
#[cfg(test)]
mod unbroken_tests;
mod unclear;
mod verify;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};

pub use desired::Desired;
use desired::Unheard;
use index::Index;
use rds_lists::RdsLists;
pub use rds_lists::Remembered;
use requests::Waiter;
use tickets::Tickets;
use unclear::Unclear;
pub(crate) use verify::Verified;
pub use waiting::Waiting;

use crate::volume::Pending;
use crate::{
    Drained, Effect, Epoch, Event, Migration, Node, NodeId, NodeRecord, Notice, OperationId, Phase,
    RdsRequest, RequestId, TargetAbilities, UnixMillis, VolumeId, VolumeRecord,
};

/// Times that decide, all in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Config {
    /// How long a Publish waits for a detach elsewhere that is under way (`--detach-grace-period`).
    pub detach_grace_ms: u64,
    /// How long any request may wait before it is refused naming what it waits for.
    pub request_limit_ms: u64,
    /// The longest that the target's backing store may hold a write it has received.
    pub drain_bound_ms: u64,
    /// Between two tries of something that failed.
    pub retry_ms: u64,
    /// How long a node that is being detached may be silent, or not get it done, before it is fenced.
    pub fence_after_ms: u64,
    /// The same for a node whose agent is heard and is at it: a kernel that is slow to let go of a dead path is none
    /// that has to be fenced.
    pub fence_heard_after_ms: u64,
    /// How long those have who are to let go of a volume for somebody else (`--interrupt-grace`).
    pub interrupt_grace_ms: u64,
    /// What the target can do.
    pub target: TargetAbilities,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            detach_grace_ms: 30_000,
            request_limit_ms: 60_000,
            drain_bound_ms: 60_000,
            retry_ms: 2_000,
            fence_after_ms: 20_000,
            fence_heard_after_ms: 180_000,
            interrupt_grace_ms: 30_000,
            target: TargetAbilities::default(),
        }
    }
}

/// All that the controller knows and decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Core {
    config: Config,
    term: u64,
    last_seq: u64,
    last_operation: u64,
    began: UnixMillis,
    nodes: BTreeMap<NodeId, Node>,
    /// Every node that was ever heard, and who it is: kept, so that it is known on a list when it is silent.
    registry: BTreeMap<NodeId, NodeRecord>,
    lists: RdsLists,
    /// Who is to have a volume, is on no record, and was not heard yet.
    unheard: Unheard,
    /// Who is to have a volume which nobody can name, and was not heard yet.
    unclear: Unclear,
    volumes: BTreeMap<VolumeId, VolumeRecord>,
    /// Volumes for which a deletion is under way in this process. That one was begun is kept with the volume.
    deleting: BTreeSet<VolumeId>,
    waiters: BTreeMap<VolumeId, BTreeMap<RequestId, Waiter>>,
    /// What each request to the RDS that is not answered yet is about; `None`: the volume as a whole. Each is answered,
    /// so none stays. An agent may never answer, and what it is to answer stands with the attachment alone.
    operations: BTreeMap<OperationId, (VolumeId, Option<NodeId>)>,
    tickets: Tickets,
    index: Index,
}

/// One step's work: the state, the time, and what comes of it.
struct Transition<'a> {
    core: &'a mut Core,
    now: UnixMillis,
    effects: Vec<Effect>,
    /// Volumes whose record has to be durable before any effect of this step.
    dirty: BTreeSet<VolumeId>,
    forgotten: BTreeSet<VolumeId>,
    dirty_nodes: BTreeSet<NodeId>,
    forgotten_nodes: BTreeSet<NodeId>,
    /// Volumes to settle.
    touched: BTreeSet<VolumeId>,
}

impl Core {
    /// Begins from what was stored. All that was granted stays granted; nobody is admitted, nobody forgotten.
    ///
    /// `term` has been stored, and is higher than that of any controller before and of any record
    /// ([`VolumeRecord::highest_term`]); where it is not, it is raised, and nobody has stored what it is raised to.
    #[must_use]
    pub fn rebuild(
        config: Config,
        term: u64,
        remembered: impl Into<Remembered>,
        now: UnixMillis,
    ) -> (Self, Vec<Effect>) {
        let Remembered { volumes: records, nodes, desired, lists_first } = remembered.into();
        let stored = records.iter().map(VolumeRecord::highest_term).max().unwrap_or(0);
        let mut core = Self {
            term: term.max(stored.saturating_add(1)),
            last_seq: 0,
            last_operation: 0,
            began: now,
            nodes: BTreeMap::new(),
            registry: nodes.into_iter().map(|n| (n.node.clone(), n)).collect(),
            lists: RdsLists::new(lists_first),
            unheard: Unheard::default(),
            unclear: Unclear::default(),
            volumes: records.into_iter().map(|r| (r.spec.id.clone(), r)).collect(),
            deleting: BTreeSet::new(),
            waiters: BTreeMap::new(),
            operations: BTreeMap::new(),
            tickets: Tickets::default(),
            index: Index::default(),
            config,
        };
        let bound = now.plus(core.config.drain_bound_ms);
        for record in core.volumes.values_mut() {
            (record.asked, record.hidden_heard, record.retry_at) = (None, false, None);
            for entry in &mut record.fenced {
                (entry.pending, entry.retry_at) = (None, None);
                entry.since = entry.since.min(now);
            }
            desired::declared_bound_again(record, bound);
            if let Some(migration) = record.migration.as_mut().filter(|m| !m.is_over()) {
                migration.begin_again(now, record.spec.migration_timeout_ms);
            }
        }
        for attachment in core.volumes.values_mut().flat_map(|v| &mut v.attachments) {
            // What the process before had asked for, and whether it was done, cannot be known any more.
            attachment.directed = true;
            attachment.unasked = lists_first && attachment.phase == Phase::Granting;
            attachment.old_proof = lists_first && attachment.evidence().is_some();
            attachment.used_since = lists_first && !attachment.proven;
            attachment.pending = Pending::Nothing;
            attachment.trouble = None;
            attachment.retry_at = None;
            // Who was asked to let go has the whole time again: this process has another clock.
            attachment.interrupted = attachment.interrupted.take().filter(|_| attachment.phase.is_draining());
            // The wall clock may have been set since: a bound starts again from here, on this process's clock.
            attachment.may_land_until = attachment.may_land_until.map(|_| bound);
            // Likewise what counts from a time that has not come yet: it would not count before the clock has caught up.
            attachment.since = attachment.since.min(now);
            (attachment.counting, attachment.verified) = (None, None);
            if let Phase::Draining { fence: Some(fence), .. } = &mut attachment.phase {
                (fence.pending, fence.retry_at, fence.old) = (None, None, lists_first);
                fence.since = fence.since.min(now);
            }
            if let Phase::Draining { evidence: Some(evidence), .. } = &mut attachment.phase
                && let Drained::Bound { until } = &mut evidence.drained
            {
                *until = bound;
            }
        }
        let mut step = Transition::new(&mut core, now);
        step.touched = step.core.volumes.keys().cloned().collect();
        step.desired(desired);
        let effects = step.finish();
        (core, effects)
    }

    /// Takes in one event; says what is to be done, in order.
    pub fn step(&mut self, now: UnixMillis, event: Event) -> Vec<Effect> {
        let mut step = Transition::new(self, now);
        match event {
            Event::Publish { request, node, spec, read_only } => step.publish(request, node, spec, read_only),
            Event::Unpublish { request, volume, node } => step.unpublish(request, volume, node),
            Event::DeleteBegins { request, volume } => step.delete_begins(request, volume),
            Event::DeleteEnded { volume, deletion } => step.delete_ended(volume, deletion),
            Event::RdsListed { volumes, whole } => step.rds_listed(volumes, whole),
            Event::RdsMade { volume } => {
                step.unclear_made(&volume);
                step.rds_made(volume);
            }
            Event::DesiredUnclear { nodes } => step.desired_unclear(nodes),
            Event::RdsNotListed { error } => step.rds_not_listed(error),
            Event::GrantsRefused { volume, grants } => step.grants_refused(&volume, &grants),
            Event::RdsDone { operation, result } => step.rds_done(operation, result),
            Event::SessionUp { node, session, identity, max_volumes, seen } => {
                step.session_up(node, session, identity, max_volumes, seen);
            }
            Event::Inventory { node, session, volumes } => step.inventory(&node, &session, volumes),
            Event::Delta { node, session, observed } => step.delta(&node, &session, observed),
            Event::AgentDone { node, session, operation, volume, epoch, outcome } => {
                step.agent_done(&node, &session, operation, &volume, epoch, outcome);
            }
            Event::Counted { node, session, operation, volume, epoch, writes, age_ms, open } => {
                let count = switchover::Count { writes, age_ms, open };
                step.counted(&node, &session, operation, &volume, epoch, count);
            }
            Event::SessionLost { node, session } => step.session_lost(&node, &session),
            Event::Fence { request, volume, node, by, reason } => {
                step.fence_asked(request, volume, node, by, reason);
            }
            Event::DeclareGone { request, node, by, reason } => step.declare_gone(request, node, by, reason),
            Event::OutOfService { node, by, reason } => step.out_of_service(&node, &by, &reason),
            Event::MigrationSeen { volume, vm } => step.migration_seen(volume, vm),
            Event::TicketWanted { spec, ticket } => step.ticket_wanted(spec, *ticket),
            Event::TicketRenewed { volume, ticket } => step.ticket_renewed(&volume, &ticket),
            Event::TicketGone { volume, ticket } => step.ticket_gone(&volume, &ticket),
            Event::Tick => step.tick(),
        }
        step.finish()
    }

    /// The term under which this core grants.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// What the target was probed to do.
    #[must_use]
    pub fn target(&self) -> &TargetAbilities {
        &self.config.target
    }

    /// Every node that was heard in this term.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<NodeId, Node> {
        &self.nodes
    }

    /// Every node that was ever heard, and who it is.
    #[must_use]
    pub fn registry(&self) -> &BTreeMap<NodeId, NodeRecord> {
        &self.registry
    }

    /// Every volume that is tracked.
    #[must_use]
    pub fn volumes(&self) -> &BTreeMap<VolumeId, VolumeRecord> {
        &self.volumes
    }

    /// How many volumes two nodes have for longer than a migration may take.
    #[must_use]
    pub fn overdue(&self) -> usize {
        let overdue = |record: &&VolumeRecord| record.migration.as_ref().is_some_and(Migration::is_overdue);
        self.volumes.values().filter(overdue).count()
    }

    /// Shows itself as if these volumes had these records (`None`: none), and is as before afterwards. For who may be shown
    /// only what is durable.
    pub fn with_records<T>(
        &mut self,
        records: Vec<(VolumeId, Option<VolumeRecord>)>,
        look: impl FnOnce(&Self) -> T,
    ) -> T {
        let are = self.exchange(records);
        let seen = look(self);
        self.exchange(are);
        seen
    }

    /// Puts records in the place of others; gives those. Nothing is decided here, so nothing that waits for a time falls
    /// asleep, even if that time has come since the last step.
    fn exchange(
        &mut self,
        records: Vec<(VolumeId, Option<VolumeRecord>)>,
    ) -> Vec<(VolumeId, Option<VolumeRecord>)> {
        let mut before = Vec::with_capacity(records.len());
        for (volume, record) in records {
            self.index.update(&volume, record.as_ref(), UnixMillis(0));
            let was = match record {
                Some(record) => self.volumes.insert(volume.clone(), record),
                None => self.volumes.remove(&volume),
            };
            before.push((volume, was));
        }
        before
    }

    /// The volumes that a node has, or was cut off from; no other volume is read.
    pub fn volumes_of(&self, node: &NodeId) -> impl Iterator<Item = &VolumeRecord> {
        self.index.of_node(node).filter_map(|volume| self.volumes.get(volume))
    }
}

impl<'a> Transition<'a> {
    fn new(core: &'a mut Core, now: UnixMillis) -> Self {
        Self {
            core,
            now,
            effects: Vec::new(),
            dirty: BTreeSet::new(),
            forgotten: BTreeSet::new(),
            dirty_nodes: BTreeSet::new(),
            forgotten_nodes: BTreeSet::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Settles what was touched, and puts what has to be durable before everything else.
    fn finish(mut self) -> Vec<Effect> {
        while let Some(volume) = self.touched.pop_first() {
            self.lands_no_more(&volume);
            self.settle(&volume);
            self.core.index.update(&volume, self.core.volumes.get(&volume), self.now);
        }
        // What is asked for a node later goes by the index alone.
        debug_assert!(
            self.dirty.iter().all(|id| {
                self.core.volumes.get(id).is_none_or(|record| self.core.index.knows(id, record))
            })
        );
        let nodes = self.dirty_nodes.iter().filter_map(|id| self.core.registry.get(id));
        let nodes = nodes.map(|record| Effect::PersistNode(Box::new(record.clone())));
        let forget = self.forgotten.iter().cloned().map(Effect::Forget);
        let forget = forget.chain(self.forgotten_nodes.iter().cloned().map(Effect::ForgetNode)).chain(nodes);
        let persist = self.dirty.iter().filter_map(|id| self.core.volumes.get(id));
        let mut effects: Vec<Effect> =
            forget.chain(persist.map(|record| Effect::Persist(Box::new(record.clone())))).collect();
        effects.append(&mut self.effects);
        effects
    }

    /// Lets everything about a volume go on that can. Each round takes a step that cannot be taken twice (a phase,
    /// an operation, an answer), so it ends; the bound is there for a mistake in that reasoning.
    fn settle(&mut self, volume: &VolumeId) {
        for _ in 0..64 {
            if !(self.drive(volume) | self.drive_tickets(volume) | self.answer_waiters(volume)) {
                return;
            }
        }
        debug_assert!(false, "volume {volume} does not settle");
        self.notice(Notice::Unsettled { volume: volume.clone() });
    }

    fn next_epoch(&mut self) -> Epoch {
        self.core.last_seq += 1;
        Epoch { term: self.core.term, seq: self.core.last_seq }
    }

    fn next_operation(&mut self) -> OperationId {
        self.core.last_operation += 1;
        OperationId { term: self.core.term, number: self.core.last_operation }
    }

    /// Asks the RDS, for an attachment or (`None`) for the volume as a whole.
    fn ask_rds(
        &mut self,
        node: Option<&NodeId>,
        request: impl FnOnce(VolumeId) -> RdsRequest,
        volume: &VolumeId,
    ) -> OperationId {
        let operation = self.next_operation();
        self.core.operations.insert(operation, (volume.clone(), node.cloned()));
        self.effects.push(Effect::Rds { operation, request: request(volume.clone()) });
        operation
    }

    fn notice(&mut self, notice: Notice) {
        self.effects.push(Effect::Notice(notice));
    }

    /// Volumes that have an attachment on a node or a request about it, or from which it was cut off.
    fn volumes_about(&self, node: &NodeId) -> BTreeSet<VolumeId> {
        let mut about = self.on_record(node);
        about.extend(self.core.requested_on(node).cloned());
        about
    }

    /// Volumes that have an attachment on a node, or from which it was cut off; no other volume is read.
    fn on_record(&self, node: &NodeId) -> BTreeSet<VolumeId> {
        let known = |v: &&VolumeId| self.core.volumes.get(*v).is_some_and(|record| record.knows(node));
        // What this step has changed is not in the index yet.
        self.core.index.of_node(node).chain(&self.touched).filter(known).cloned().collect()
    }

    fn tick(&mut self) {
        // Only what is due, or waits for an answer, is looked at.
        let waiting = self.core.waiters.keys().chain(self.core.tickets.awake(self.now));
        self.touched = self.core.index.awake(self.now).chain(waiting).cloned().collect();
    }
}
