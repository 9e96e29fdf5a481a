//! What callers ask for: Publish, Unpublish, Delete.
//!
//! A request becomes a waiter; `answer_waiters` reads the state and either answers it, grants it or leaves it. So
//! a request that joins one under way, one that waits for a detach elsewhere and one that is granted at once go the
//! same way.

use std::collections::{BTreeMap, BTreeSet};

use super::admission::{Admission, Counted, Room, admission, difference, grant_of, room};
use super::tickets::BesideTickets;
use super::{Core, Transition};
use crate::volume::Pending;
use crate::{
    Attachment, Difference, DrainCause, Effect, Epoch, FenceStep, Node, NodeId, NodeTrouble, Notice,
    ObservedPhase, Overtaking, Phase, Refusal, Reply, RequestId, ReservationAbility, Role, SecretState,
    SessionState, Standing, UnixMillis, Verdict, VolumeDeletion, VolumeId, VolumeRecord, VolumeSpec, Wanted,
};

/// A request that is not answered yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Waiter {
    pub(super) kind: RequestKind,
    pub(super) since: UnixMillis,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum RequestKind {
    Publish { node: NodeId, spec: VolumeSpec, read_only: bool },
    Unpublish { node: Option<NodeId> },
    Fence { node: NodeId },
}

impl Waiter {
    pub(super) fn is_about(&self, about: &NodeId) -> bool {
        match &self.kind {
            RequestKind::Publish { node, .. } | RequestKind::Fence { node } => node == about,
            RequestKind::Unpublish { node } => node.as_ref().is_none_or(|n| n == about),
        }
    }
}

impl Core {
    /// Volumes about which a request waits that concerns this node.
    pub(super) fn requested_on<'a>(&'a self, node: &'a NodeId) -> impl Iterator<Item = &'a VolumeId> {
        let concerns = |(_, waiters): &(_, &BTreeMap<_, Waiter>)| waiters.values().any(|w| w.is_about(node));
        self.waiters.iter().filter(concerns).map(|(volume, _)| volume).chain(self.tickets.about(node))
    }

    /// Whether the node can be sent an Attach: `Ok(false)` as soon as its inventory is in. `unindexed`: volumes that the index
    /// may not show yet.
    pub(super) fn may_be_granted(
        &self,
        node: &NodeId,
        unindexed: &BTreeSet<VolumeId>,
    ) -> Result<bool, Refusal> {
        let silent = |since| Refusal::Silent { node: node.clone(), since };
        let Some(known) = self.nodes.get(node) else {
            // Known from records, it may come back; of any other, most likely the name is not right.
            let on_record = |v: &VolumeId| self.volumes.get(v).is_some_and(|record| record.knows(node));
            let is_known = self.knows_of(node) || self.index.of_node(node).chain(unindexed).any(on_record);
            return Err(if is_known {
                silent(self.began)
            } else {
                Refusal::UnknownNode { node: node.clone() }
            });
        };
        if let Standing::Quarantined { causes } = &known.standing {
            return Err(Refusal::Quarantined { node: node.clone(), causes: causes.clone() });
        }
        match &known.session {
            SessionState::Silent { since } => Err(silent(*since)),
            SessionState::Up { inventoried, .. } => Ok(*inventoried),
        }
    }

    /// Whether the node may have this volume beside what counts of all that it has. `unindexed`: volumes that the index may not
    /// show yet.
    pub(super) fn room_on(
        &self,
        node: &NodeId,
        volume: &VolumeId,
        counted: Counted,
        unindexed: &BTreeSet<VolumeId>,
    ) -> Room {
        let max_volumes = self.nodes.get(node).and_then(|known| known.max_volumes);
        if max_volumes.is_none() {
            return Room::Free;
        }
        let others: BTreeSet<&VolumeId> =
            self.index.of_node(node).chain(unindexed).filter(|other| *other != volume).collect();
        let others = others.into_iter().filter_map(|other| self.volumes.get(other)?.attachment(node));
        room(max_volumes, others.filter(|a| counted == Counted::All || a.wanted.csi))
    }
}

/// What the state says to a waiter.
enum Ruling {
    Reply(Result<Reply, Refusal>),
    Grant,
    /// The node has the volume for tickets alone: from now on for the caller, too.
    Join,
    Wait,
}

impl Transition<'_> {
    pub(super) fn publish(&mut self, request: RequestId, node: NodeId, spec: VolumeSpec, read_only: bool) {
        let volume = spec.id.clone();
        if let Some(attachment) = self.core.volumes.get_mut(&volume).and_then(|v| v.attachment_mut(&node)) {
            (attachment.retry_at, attachment.unasked) = (None, false);
        }
        self.wait(request, volume, RequestKind::Publish { node, spec, read_only });
    }

    pub(super) fn unpublish(&mut self, request: RequestId, volume: VolumeId, node: Option<NodeId>) {
        // A Publish that is still queued would bring back what this is about to take away.
        self.refuse_publishes(&volume, node.as_ref(), |volume, node| Refusal::Overtaken {
            volume,
            node,
            by: Overtaking::Detach,
        });
        let holders = self.core.volumes.get(&volume).map(VolumeRecord::holders).unwrap_or_default();
        for holder in &holders {
            if node.as_ref().is_some_and(|n| !self.core.may_be(holder, n))
                || self.tickets_first(&volume, holder)
            {
                continue;
            }
            self.begin_drain(&volume, holder, DrainCause::Requested);
        }
        self.wait(request, volume, RequestKind::Unpublish { node });
    }

    pub(super) fn delete_begins(&mut self, request: RequestId, volume: VolumeId) {
        let all = RequestKind::Unpublish { node: None };
        if let Some(wait) = self.core.awaits_lists(&volume, &all, self.now) {
            let result = Err(Refusal::StillWaiting { volume, wait: Box::new(wait), waited_ms: 0 });
            self.effects.push(Effect::Reply { request, result });
            return;
        }
        let nodes = self.in_the_way_of_deletion(&volume);
        let result = if !nodes.is_empty() {
            Err(Refusal::StillAttached { volume, nodes })
        } else if self.core.deleting.insert(volume.clone()) {
            // Durable before anything is asked of the RDS: what was asked and not heard of may come at any time.
            let unknown = || VolumeRecord::unknown(volume.clone());
            self.core.volumes.entry(volume.clone()).or_insert_with(unknown).deleting = true;
            self.dirty.insert(volume.clone());
            self.touched.insert(volume);
            Ok(Reply::MayDelete)
        } else {
            Err(Refusal::Deleting { volume })
        };
        self.effects.push(Effect::Reply { request, result });
    }

    /// The record takes none of these: they end like any grant that was not carried out.
    pub(super) fn grants_refused(&mut self, volume: &VolumeId, grants: &[(NodeId, Epoch)]) {
        for (node, epoch) in grants {
            let attachment = self.core.volumes.get(volume).and_then(|record| record.attachment(node));
            if !attachment.is_some_and(|a| a.epoch == *epoch && a.phase == Phase::Granting) {
                continue;
            }
            self.refuse_publishes(volume, Some(node), |volume, node| Refusal::RecordDeleted { volume, node });
            self.begin_drain(volume, node, DrainCause::Rollback);
        }
    }

    /// Nodes that may write to it, or whose proof is not complete. What was proven and waits for the RDS's list alone
    /// is not in the way: the RDS has no such volume.
    fn in_the_way_of_deletion(&self, volume: &VolumeId) -> Vec<NodeId> {
        let holders = self.core.volumes.get(volume).into_iter().flat_map(|v| &v.attachments);
        let now = self.now;
        let proven =
            |a: &Attachment| a.unlisted && a.evidence().is_some_and(|e| e.verdict(now) == Verdict::Fenced);
        holders.filter(|a| !proven(a)).map(|a| a.node.clone()).collect()
    }

    pub(super) fn delete_ended(&mut self, volume: VolumeId, deletion: VolumeDeletion) {
        self.core.deleting.remove(&volume);
        let known = self.core.volumes.contains_key(&volume);
        let unused = known && self.in_the_way_of_deletion(&volume).is_empty();
        if deletion == VolumeDeletion::NotDone
            && let Some(record) = self.core.volumes.get_mut(&volume)
        {
            record.deleting = false;
            self.dirty.insert(volume.clone());
        }
        if deletion == VolumeDeletion::Done {
            self.no_doubt(&volume);
            self.tickets_of_nothing(&volume);
        }
        if deletion == VolumeDeletion::Done
            && unused
            && let Some(record) = self.core.volumes.remove(&volume)
        {
            self.core.volumes.insert(volume.clone(), record.after_deletion());
            self.dirty.insert(volume.clone());
            self.forget_if_over(&volume);
        }
        self.touched.insert(volume);
    }

    /// A volume that was deleted is forgotten once nobody that was cut off from it may still hold something of it.
    pub(super) fn forget_if_over(&mut self, volume: &VolumeId) {
        let over = |r: &VolumeRecord| r.deleted && r.fenced.is_empty() && r.attachments.is_empty();
        if self.core.volumes.get(volume).is_some_and(over) {
            self.core.volumes.remove(volume);
            self.forgotten.insert(volume.clone());
        }
    }

    pub(super) fn wait(&mut self, request: RequestId, volume: VolumeId, kind: RequestKind) {
        let waiter = Waiter { kind, since: self.now };
        self.core.waiters.entry(volume.clone()).or_default().insert(request, waiter);
        self.touched.insert(volume);
    }

    /// Answers or grants what can be; oldest first. Says whether anything came of it.
    pub(super) fn answer_waiters(&mut self, volume: &VolumeId) -> bool {
        let waiting: Vec<RequestId> =
            self.core.waiters.get(volume).map(|w| w.keys().copied().collect()).unwrap_or_default();
        let mut changed = false;
        for request in waiting {
            let Some(waiter) = self.core.waiters.get(volume).and_then(|w| w.get(&request)) else {
                continue;
            };
            match self.answer(volume, waiter) {
                Ruling::Wait => {}
                Ruling::Reply(result) => {
                    self.reply(volume, request, result);
                    changed = true;
                }
                Ruling::Grant => {
                    if let RequestKind::Publish { node, spec, read_only } = waiter.kind.clone() {
                        self.grant(&node, spec, read_only, Wanted::default());
                        changed = true;
                    }
                }
                Ruling::Join => {
                    if let RequestKind::Publish { node, spec, .. } = waiter.kind.clone() {
                        changed |= self.publish_beside_tickets(&node, spec);
                    }
                }
            }
        }
        changed
    }

    pub(super) fn reply(&mut self, volume: &VolumeId, request: RequestId, result: Result<Reply, Refusal>) {
        if let Some(waiters) = self.core.waiters.get_mut(volume) {
            waiters.remove(&request);
            if waiters.is_empty() {
                self.core.waiters.remove(volume);
            }
        }
        self.effects.push(Effect::Reply { request, result });
    }

    /// Refuses every Publish of a volume for a node (`None`: any node) that is not answered yet.
    pub(super) fn refuse_publishes(
        &mut self,
        volume: &VolumeId,
        about: Option<&NodeId>,
        refusal: impl Fn(VolumeId, NodeId) -> Refusal,
    ) {
        for (request, node) in self.waiting_nodes(volume, |kind| match kind {
            RequestKind::Publish { node, .. } if about.is_none_or(|a| a == node) => Some(Some(node.clone())),
            _ => None,
        }) {
            if let Some(node) = node {
                let result = Err(refusal(volume.clone(), node));
                self.reply(volume, request, result);
            }
        }
    }

    /// Refuses every Unpublish of a volume that waits for this node.
    pub(super) fn refuse_unpublishes(&mut self, volume: &VolumeId, about: &NodeId, refusal: &Refusal) {
        for (request, _) in self.waiting_nodes(volume, |kind| match kind {
            RequestKind::Unpublish { node } if node.as_ref().is_none_or(|n| self.core.may_be(about, n)) => {
                Some(node.clone())
            }
            _ => None,
        }) {
            self.reply(volume, request, Err(refusal.clone()));
        }
    }

    fn waiting_nodes(
        &self,
        volume: &VolumeId,
        pick: impl Fn(&RequestKind) -> Option<Option<NodeId>>,
    ) -> Vec<(RequestId, Option<NodeId>)> {
        let waiters = self.core.waiters.get(volume).into_iter().flatten();
        waiters.filter_map(|(request, waiter)| pick(&waiter.kind).map(|node| (*request, node))).collect()
    }

    fn answer(&self, volume: &VolumeId, waiter: &Waiter) -> Ruling {
        let (answer, limit_ms) = match &waiter.kind {
            RequestKind::Publish { node, spec, read_only } => self.answer_publish(node, spec, *read_only),
            RequestKind::Unpublish { node } => {
                let answer = self.answer_detach(volume, node.as_ref(), Reply::Unpublished);
                (answer, self.core.config.request_limit_ms)
            }
            RequestKind::Fence { node } => {
                (self.answer_detach(volume, Some(node), Reply::Fenced), self.core.config.request_limit_ms)
            }
        };
        let waited_ms = self.now.since(waiter.since);
        let (answer, limit_ms) = match self.core.awaits_lists(volume, &waiter.kind, self.now) {
            Some(_) => (Ruling::Wait, self.core.config.request_limit_ms),
            None => (answer, limit_ms),
        };
        if let (Ruling::Wait, Some(refusal)) = (&answer, self.cannot_fence(volume, &waiter.kind, waited_ms)) {
            return Ruling::Reply(Err(refusal));
        }
        match answer {
            Ruling::Wait if waited_ms >= limit_ms => Ruling::Reply(Err(Refusal::StillWaiting {
                volume: volume.clone(),
                wait: Box::new(self.core.request_waits_for(volume, &waiter.kind, self.now)),
                waited_ms,
            })),
            answer => answer,
        }
    }

    /// A node that this request waits for may still write, is not heard, and no rung of the ladder was left. One that
    /// is heard gets its time first.
    fn cannot_fence(&self, volume: &VolumeId, kind: &RequestKind, waited_ms: u64) -> Option<Refusal> {
        let record = self.core.volumes.get(volume)?;
        let concerns = |node: &NodeId| match kind {
            // One that is granted already waits for nobody else.
            RequestKind::Publish { node: about, .. } if record.attachment(about).is_some() => about == node,
            RequestKind::Publish { .. } | RequestKind::Unpublish { node: None } => true,
            RequestKind::Unpublish { node: Some(about) } | RequestKind::Fence { node: about } => {
                self.core.may_be(node, about)
            }
        };
        record.attachments.iter().filter(|a| concerns(&a.node) && a.evidence().is_none()).find_map(|a| {
            let fence = record.fence(&a.node).filter(|f| f.step == FenceStep::Refused)?;
            let heard = self.core.nodes.get(&a.node).is_some_and(|n| n.ready_session().is_some());
            (!heard || waited_ms >= self.core.config.fence_after_ms).then(|| Refusal::CannotFence {
                volume: volume.clone(),
                agent: self.core.agent_of(a),
                since: a.since,
                last: a.trouble().cloned().map(Box::new),
                tried: fence.tried.clone(),
                min_fence: record.spec.min_fence,
            })
        })
    }

    fn answer_detach(&self, volume: &VolumeId, node: Option<&NodeId>, proven: Reply) -> Ruling {
        let mut holders = self.core.volumes.get(volume).into_iter().flat_map(|v| &v.attachments);
        let left = holders.any(|a| {
            node.is_none_or(|n| self.core.may_be(&a.node, n)) && !a.is_over_but_for_the_list(self.now)
        });
        if left { Ruling::Wait } else { Ruling::Reply(Ok(proven)) }
    }

    /// The one place that decides whether a node may have a volume; with how long the request may wait for it.
    fn answer_publish(&self, node: &NodeId, spec: &VolumeSpec, read_only: bool) -> (Ruling, u64) {
        let config = &self.core.config;
        let refuse = |refusal| (Ruling::Reply(Err(refusal)), 0);
        if self.core.volumes.get(&spec.id).is_some_and(|record| record.deleting) {
            return refuse(Refusal::Deleting { volume: spec.id.clone() });
        }
        match self.core.may_be_granted(node, &self.touched) {
            Ok(true) => {}
            Ok(false) => return (Ruling::Wait, config.request_limit_ms),
            Err(refusal) => return refuse(refusal),
        }
        let record = self.core.volumes.get(&spec.id);
        let attachment = record.and_then(|r| r.attachment(node));
        let beside = self.core.beside_tickets(&spec.id, node, self.now, &self.touched);
        match (record, attachment) {
            (Some(_), Some(a)) if a.phase.is_draining() && beside == BesideTickets::None => {
                (Ruling::Wait, config.detach_grace_ms)
            }
            (Some(_), Some(a)) if a.phase.is_draining() => (Ruling::Wait, config.request_limit_ms),
            (Some(record), Some(a)) if a.phase != Phase::Stray => {
                (self.answer_attached(record, a, spec, (read_only, beside)), config.request_limit_ms)
            }
            _ => match admission(record, node, spec) {
                // It is a matter of tickets first: with evidence of their end it is looked at again.
                Admission::Refuse(Refusal::AttachedElsewhere { .. } | Refusal::MigrationLimit { .. })
                | Admission::WaitForDetach
                | Admission::Admit
                    if beside == BesideTickets::Waits =>
                {
                    (Ruling::Wait, config.request_limit_ms)
                }
                Admission::Admit => {
                    match self.core.room_on(node, &spec.id, Counted::Published, &self.touched) {
                        Room::Free if matches!(beside, BesideTickets::None | BesideTickets::Goes) => {
                            (Ruling::Grant, 0)
                        }
                        Room::Free => (Ruling::Wait, config.request_limit_ms),
                        Room::WaitForDetach { .. } => (Ruling::Wait, config.detach_grace_ms),
                        Room::Full { limit } => {
                            refuse(Refusal::NodeFull { volume: spec.id.clone(), node: node.clone(), limit })
                        }
                    }
                }
                Admission::WaitForDetach => (Ruling::Wait, config.detach_grace_ms),
                // Its Unpublish is still to come, and then its detach has to be proven.
                Admission::WaitForLeaver(_) => (Ruling::Wait, config.request_limit_ms),
                Admission::Refuse(refusal) => refuse(refusal),
            },
        }
    }

    /// The node has the volume, or is about to: joins, repeats or refuses.
    fn answer_attached(
        &self,
        record: &VolumeRecord,
        a: &Attachment,
        spec: &VolumeSpec,
        (read_only, beside): (bool, BesideTickets),
    ) -> Ruling {
        let refuse = |refusal| Ruling::Reply(Err(refusal));
        // How many may have it, a ticket may not know; who publishes it does.
        let is_open = record.attachments.iter().all(|a| !a.wanted.csi)
            && record.attachments.len() <= spec.access.limit();
        let differs = difference(record, a, spec, read_only);
        if let Some(difference) = differs.filter(|d| !is_open || !matches!(d, Difference::Access { .. })) {
            return refuse(Refusal::Incompatible {
                volume: spec.id.clone(),
                node: a.node.clone(),
                difference,
            });
        }
        if !a.wanted.csi {
            match self.core.room_on(&a.node, &spec.id, Counted::Published, &self.touched) {
                Room::Free => {}
                Room::WaitForDetach { .. } => return Ruling::Wait,
                Room::Full { limit } => {
                    let (volume, node) = (spec.id.clone(), a.node.clone());
                    return refuse(Refusal::NodeFull { volume, node, limit });
                }
            }
        }
        if !a.wanted.is_published() {
            return if beside == BesideTickets::Goes { Ruling::Join } else { Ruling::Wait };
        }
        if a.phase != Phase::Ready {
            return Ruling::Wait;
        }
        let observed = self.core.nodes.get(&a.node).and_then(|n| n.observed.get(&spec.id));
        match observed {
            Some(o) if matches!(o.phase, ObservedPhase::Ready | ObservedPhase::Degraded) => {
                let reserve = self.core.config.target.reservations != ReservationAbility::None;
                Ruling::Reply(Ok(Reply::Published(Box::new(grant_of(record, a, reserve)))))
            }
            // Attached once, but the node says now that it cannot use it: "attached" would not be true.
            other => refuse(Refusal::NotReady {
                volume: spec.id.clone(),
                node: a.node.clone(),
                unready: NodeTrouble::Lost { unready: other.map(|o| o.unready.clone()) },
            }),
        }
    }

    /// Grants a volume to a node that admission admits.
    pub(super) fn grant(&mut self, node: &NodeId, spec: VolumeSpec, read_only: bool, wanted: Wanted) {
        let Some(host_nqn) = self.core.nodes.get(node).map(|n: &Node| n.identity.host_nqn.clone()) else {
            return;
        };
        let volume = spec.id.clone();
        let epoch = self.next_epoch();
        let now = self.now;
        let record =
            self.core.volumes.entry(volume.clone()).or_insert_with(|| VolumeRecord::new(spec.clone()));
        (record.spec, record.deleted) = (spec, false);
        // A stray of this node becomes a grant, and stays known as able to write all the while.
        let stray =
            record.attachments.iter().position(|a| a.node == *node).map(|at| record.attachments.remove(at));
        // A secret of its own for the set of grants that begins here, so that whoever had the volume before does not know
        // it. Those that have it already know theirs.
        if self.core.config.target.secret && record.attachments.is_empty() {
            record.secret = Some(SecretState { generation: epoch, in_force: false });
        }
        // Beside one that is being detached this is no migration: it stops there and starts here.
        let first = record.attachments.first().filter(|a| !a.phase.is_draining());
        let first = first.map(|a| (a.node.clone(), a.epoch));
        record.join(Attachment {
            node: node.clone(),
            host_nqn,
            epoch,
            role: Role::Primary,
            read_only,
            phase: Phase::Granting,
            since: now,
            proven: stray.is_some(),
            directed: stray.is_some(),
            boot_id: None,
            may_land_until: stray.and_then(|g| g.may_land_until),
            secret: None,
            pending: Pending::Nothing,
            trouble: None,
            retry_at: None,
            unlisted: false,
            unasked: false,
            counting: None,
            verified: None,
            old_proof: false,
            used_since: false,
            stray: false,
            shown: None,
            wanted,
            interrupted: None,
        });
        self.dirty.insert(volume.clone());
        self.no_doubt(&volume);
        self.notice(Notice::Granted { volume: volume.clone(), node: node.clone(), epoch });
        if let Some(source) = first {
            self.begin_migration(&volume, source, (node.clone(), epoch));
        }
    }
}
