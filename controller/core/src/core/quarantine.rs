//! Nodes that were cut off, and what a person or the orchestrator declares: durable, per volume, lifted by the node's own report alone.
//!
//! A node that was fenced by something else than its own proof stays on the volume's list until its agent shows that
//! the volume is absent there *and* that the grant's end is recorded on the node, so that no earlier directive
//! can make it connect again. It is sent a Revoke of what it holds as soon as it is heard. No time lifts it, and
//! no deletion of the volume: it may hold writes for whatever comes next under that name.

use std::collections::BTreeSet;

use super::requests::RequestKind;
use super::{Core, Transition};
use crate::volume::Pending;
use crate::{
    Attachment, Directive, DrainCause, Effect, Fenced, LaterTerm, NodeId, NodeTrouble, Notice, Observed,
    ObservedPhase, OperationId, Outcome, Overtaking, Phase, QuarantineCause, Refusal, Reply, RequestId, Rung,
    SessionId, SessionState, Source, Standing, Trouble, UnixMillis, VolumeId,
};

impl Core {
    /// Whether the target may be able to do any fence: one that was not probed may.
    fn target_can_fence(&self) -> bool {
        if !self.config.target.probed {
            return true;
        }
        let by_target = Rung::LADDER.into_iter().filter(|rung| *rung != Rung::NodeGone);
        by_target.into_iter().any(|rung| rung.lacks(&self.config.target).is_none())
    }

    /// Its agent was not heard for as long as a silent node gets before it is fenced. After a start agents need a moment to
    /// be heard again.
    fn is_silent_for_long(&self, node: &NodeId, now: UnixMillis) -> bool {
        let since = match self.nodes.get(node).map(|known| &known.session) {
            Some(SessionState::Up { .. }) => return false,
            Some(SessionState::Silent { since }) => *since,
            None => self.began,
        };
        now.since(since.max(self.began)) >= self.config.fence_after_ms
    }
}

impl Transition<'_> {
    pub(super) fn fence_asked(
        &mut self,
        request: RequestId,
        volume: VolumeId,
        node: NodeId,
        by: String,
        reason: String,
    ) {
        // One that is still queued would bring back what this is about to take away.
        self.refuse_publishes(&volume, Some(&node), |volume, node| Refusal::Overtaken {
            volume,
            node,
            by: Overtaking::Fence,
        });
        let record = self.core.volumes.get(&volume);
        let attached = record.is_some_and(|r| r.attachment(&node).is_some());
        let fenced = record.is_some_and(|r| r.fenced.iter().any(|f| f.node == node));
        if !attached && !fenced {
            let result = Err(Refusal::NotAttached { volume, node });
            self.effects.push(Effect::Reply { request, result });
            return;
        }
        self.tell_trouble(&volume, &node, Trouble::FenceAsked { by: by.clone(), reason: reason.clone() });
        self.begin_drain(&volume, &node, DrainCause::Forced { by, reason });
        self.wait(request, volume, RequestKind::Fence { node });
    }

    /// Records that a person declares a node gone. It counts for what the node has now, and what was cut off
    /// from it; it is taken back where the node is heard after all before its attachment is over.
    pub(super) fn declare_gone(&mut self, request: RequestId, node: NodeId, by: String, reason: String) {
        if let Some(SessionState::Up { since, .. }) = self.core.nodes.get(&node).map(|n| &n.session) {
            let result = Err(Refusal::NotGone { node, since: *since });
            self.effects.push(Effect::Reply { request, result });
            return;
        }
        let volumes = self.volumes_about(&node);
        if volumes.is_empty() && !self.core.knows_of(&node) && !self.core.is_unclear(&node) {
            // Most likely a name that was not typed right: a yes would be taken for one about another node.
            self.effects.push(Effect::Reply { request, result: Err(Refusal::UnknownNode { node }) });
            return;
        }
        self.is_gone(&node, &by, &reason);
        self.effects.push(Effect::Reply { request, result: Ok(Reply::Declared) });
    }

    fn is_gone(&mut self, node: &NodeId, by: &str, reason: &str) {
        for volume in self.volumes_about(node) {
            self.refuse_publishes(&volume, Some(node), |volume, node| Refusal::Overtaken {
                volume,
                node,
                by: Overtaking::DeclaredGone,
            });
            if !self.core.volumes.get(&volume).is_some_and(|v| v.knows(node)) {
                continue;
            }
            let (by, reason) = (by.to_owned(), reason.to_owned());
            self.tell_trouble(
                &volume,
                node,
                Trouble::DeclaredGone { by: by.clone(), reason: reason.clone() },
            );
            self.begin_drain(&volume, node, DrainCause::Gone { by: by.clone(), reason: reason.clone() });
            self.entry_gone(&volume, node, &by, &reason);
            self.touched.insert(volume);
        }
        self.forget_node(node, by, reason);
        self.unclear_gone(node);
    }

    /// The orchestrator says that a node is out of service: it is fenced from all that it has. Where the target can do no
    /// fence at all, and the node's agent was not heard for as long as it takes to fence, it counts as declared gone by
    /// whoever says so. A node that goes on writing, and a target that could fence and does not, end nothing by it.
    pub(super) fn out_of_service(&mut self, node: &NodeId, by: &str, reason: &str) {
        let gone = !self.core.target_can_fence() && self.core.is_silent_for_long(node, self.now);
        let settled = |phase: &Phase| match phase {
            Phase::Draining { cause: DrainCause::Gone { .. }, .. } => true,
            Phase::Draining { cause: DrainCause::Forced { .. }, .. } => !gone,
            _ => false,
        };
        let due: Vec<VolumeId> = self
            .core
            .volumes_of(node)
            .filter_map(|record| {
                let attachment = record.attachment(node)?;
                (!settled(&attachment.phase)).then(|| record.spec.id.clone())
            })
            .collect();
        if due.is_empty() {
            return;
        }
        if gone {
            return self.is_gone(node, by, reason);
        }
        for volume in due {
            self.refuse_publishes(&volume, Some(node), |volume, node| Refusal::Overtaken {
                volume,
                node,
                by: Overtaking::Fence,
            });
            let (by, reason) = (by.to_owned(), reason.to_owned());
            self.tell_trouble(&volume, node, Trouble::FenceAsked { by: by.clone(), reason: reason.clone() });
            self.begin_drain(&volume, node, DrainCause::Forced { by, reason });
        }
    }

    /// A node that is gone needs no export to be kept off. Where the target keeps it out, that stays the proof.
    fn entry_gone(&mut self, volume: &VolumeId, node: &NodeId, by: &str, reason: &str) {
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        if record.deleted {
            record.fenced.retain(|f| f.node != *node);
            self.dirty.insert(volume.clone());
            return self.forget_if_over(volume);
        }
        let allowed = Rung::NodeGone.suffices_for(record.spec.min_fence);
        for entry in record.fenced.iter_mut().filter(|f| f.node == *node && (allowed || !f.blocks())) {
            entry.gone = true;
            if entry.blocks() {
                entry.evidence.source = Source::NodeGone { by: by.to_owned(), reason: reason.to_owned() };
                entry.evidence.at = self.now;
            }
            self.dirty.insert(volume.clone());
        }
    }

    /// The node whose attachment is over goes on the list, unless the proof is its own.
    pub(super) fn quarantine(&mut self, volume: &VolumeId, entry: Fenced) {
        if matches!(entry.evidence.source, Source::AgentAbsent { .. } | Source::NeverAllowed) {
            return;
        }
        let node = entry.node.clone();
        if let Some(record) = self.core.volumes.get_mut(volume) {
            record.fenced.retain(|f| f.node != node);
            record.fenced.push(entry);
            self.notice(Notice::Quarantined { volume: volume.clone(), node: node.clone() });
        }
        self.refresh_standing(&node);
        let said = self.core.nodes.get(&node).filter(|n| n.ready_session().is_some());
        if let Some(observed) = said.and_then(|n| n.observed.get(volume)).cloned() {
            self.entry_observed(volume, &node, &observed);
        }
    }

    /// What the node says of a volume that it was cut off from.
    pub(super) fn entry_observed(&mut self, volume: &VolumeId, node: &NodeId, observed: &Observed) {
        let clean = |entry: &Fenced| {
            observed.phase == ObservedPhase::Absent
                && observed.ended
                && observed.epoch.is_some_and(|highest| highest >= entry.epoch)
        };
        if self.entry_mut(volume, node).is_some_and(|entry| clean(entry)) {
            self.readmit(volume, node);
        }
    }

    fn readmit(&mut self, volume: &VolumeId, node: &NodeId) {
        if let Some(record) = self.core.volumes.get_mut(volume) {
            record.fenced.retain(|f| f.node != *node);
        }
        self.dirty.insert(volume.clone());
        self.touched.insert(volume.clone());
        self.forget_if_over(volume);
        self.refresh_standing(node);
        self.notice(Notice::Readmitted { volume: volume.clone(), node: node.clone() });
    }

    /// Sends a node that is heard a Revoke of what it was cut off from, once on each session.
    pub(super) fn drive_revoke(&mut self, volume: &VolumeId, node: &NodeId) -> bool {
        let Some(session) = self.core.nodes.get(node).and_then(|n| n.ready_session()).cloned() else {
            return false;
        };
        let now = self.now;
        let Some(entry) = self.entry_mut(volume, node) else {
            return false;
        };
        let due = entry.retry_at.is_none_or(|at| now >= at);
        let pending = entry.pending.clone();
        let epoch = entry.epoch;
        let operation = match pending {
            Some((_, on)) if on == session => return false,
            _ if !due => return false,
            Some((operation, _)) => operation,
            None => self.next_operation(),
        };
        if let Some(entry) = self.entry_mut(volume, node) {
            entry.pending = Some((operation, session.clone()));
        }
        let directive = Directive::Revoke { volume: volume.clone(), epoch };
        self.effects.push(Effect::Direct { node: node.clone(), session, operation, directive });
        true
    }

    /// The agent's answer to a Revoke of what it was cut off from; false if it is none.
    pub(super) fn revoke_done(
        &mut self,
        volume: &VolumeId,
        node: &NodeId,
        operation: OperationId,
        outcome: &Outcome,
    ) -> bool {
        let retry_at = self.now.plus(self.core.config.retry_ms);
        let term = self.core.term;
        let next = self.core.last_seq + 1;
        let Some(entry) = self.entry_mut(volume, node) else {
            return false;
        };
        if entry.pending.as_ref().is_none_or(|(op, _)| *op != operation) {
            return false;
        }
        if matches!(outcome, Outcome::Pending { .. }) {
            return true;
        }
        entry.pending = None;
        self.touched.insert(volume.clone());
        match outcome {
            Outcome::Absent(_) => self.readmit(volume, node),
            Outcome::Stale { highest, .. } if highest.term > term => {
                if let Some(entry) = self.entry_mut(volume, node) {
                    entry.retry_at = Some(retry_at);
                }
                let later = self.is_ahead(volume, node, *highest);
                self.tell_trouble(volume, node, Trouble::Unready(NodeTrouble::LaterTerm(later)));
            }
            other => {
                if let Some(entry) = self.entry_mut(volume, node) {
                    entry.retry_at = Some(retry_at);
                    if matches!(other, Outcome::Stale { .. }) {
                        // Ours is the highest term, so we may end what it holds: under an epoch that it will accept.
                        (entry.epoch, entry.retry_at) = (crate::Epoch { term, seq: next }, None);
                        self.core.last_seq = next;
                        self.dirty.insert(volume.clone());
                    }
                }
            }
        }
        true
    }

    fn entry_mut(&mut self, volume: &VolumeId, node: &NodeId) -> Option<&mut Fenced> {
        self.core.volumes.get_mut(volume)?.fenced.iter_mut().find(|f| f.node == *node)
    }

    /// A node is quarantined exactly if some volume lists it, or it carries out nothing of this term.
    pub(super) fn refresh_standing(&mut self, node: &NodeId) {
        let about: BTreeSet<&VolumeId> = self.core.index.of_node(node).chain(&self.touched).collect();
        let entries = about.into_iter().filter_map(|id| Some((id, self.core.volumes.get(id)?)));
        let entries = entries.flat_map(|(id, v)| v.fenced.iter().map(move |f| (id, f)));
        let ahead = self.core.nodes.get(node).into_iter().flat_map(|known| &known.ahead);
        let term = self.core.term;
        let ahead = ahead.map(|(volume, highest)| {
            QuarantineCause::LaterTerm(LaterTerm { volume: volume.clone(), highest: *highest, term })
        });
        let causes: Vec<QuarantineCause> = entries
            .filter(|(_, f)| f.node == *node)
            .map(|(id, f)| match &f.evidence.source {
                Source::NeverAllowed => QuarantineCause::ClaimsTooMuch { volume: id.clone(), since: f.since },
                source => {
                    QuarantineCause::Fenced { volume: id.clone(), since: f.since, source: source.name() }
                }
            })
            .chain(ahead)
            .collect();
        let standing = if causes.is_empty() { Standing::Admitted } else { Standing::Quarantined { causes } };
        if let Some(known) = self.core.nodes.get_mut(node) {
            known.standing = standing;
        }
    }

    /// A node that is heard is not gone: where a proof still waits for its bound on the declaration, that is taken
    /// back.
    pub(super) fn not_gone(&mut self, node: &NodeId, heard: &SessionId) {
        for volume in self.volumes_about(node) {
            let Some(a) = self.attachment_mut(&volume, node) else {
                continue;
            };
            let Phase::Draining { cause, evidence, .. } = &mut a.phase else {
                continue;
            };
            if let DrainCause::Gone { by, reason } = cause {
                *cause = DrainCause::Forced { by: by.clone(), reason: reason.clone() };
                if evidence.as_ref().is_some_and(|e| matches!(e.source, Source::NodeGone { .. })) {
                    *evidence = None;
                }
                self.dirty.insert(volume.clone());
                let session = heard.clone();
                self.trouble(&volume, node, Trouble::HeardThoughGone { session, may_write_again: false });
            }
        }
    }

    /// A node that was cut off by a declaration alone, and is heard, may be writing all the while: it counts as a
    /// holder again, until there is evidence of another kind, and drained. One that the target keeps out is waited for again.
    pub(super) fn not_cut_off(&mut self, node: &NodeId, heard: &SessionId) {
        let until = self.now.plus(self.core.config.drain_bound_ms);
        for volume in self.volumes_about(node) {
            let Some(record) = self.core.volumes.get_mut(&volume) else { continue };
            for entry in record.fenced.iter_mut().filter(|f| f.node == *node && f.gone) {
                entry.gone = false;
                self.dirty.insert(volume.clone());
            }
            // Of what was deleted there is nothing left to write to; it is sent a Revoke.
            if record.deleted {
                continue;
            }
            let statement = |f: &Fenced| match &f.evidence.source {
                Source::NodeGone { by, reason } if f.node == *node => Some((by.clone(), reason.clone())),
                _ => None,
            };
            let Some(at) = record.fenced.iter().position(|f| statement(f).is_some()) else {
                continue;
            };
            let entry = record.fenced.remove(at);
            let Some((by, reason)) = statement(&entry).filter(|_| record.attachment(node).is_none()) else {
                continue;
            };
            let cause = DrainCause::Forced { by, reason };
            let phase = Phase::Draining { cause, evidence: None, fence: None };
            let mut back = Attachment::found(node.clone(), entry.host_nqn, entry.epoch, phase, self.now);
            back.may_land_until = Some(until);
            record.join(back);
            self.dirty.insert(volume.clone());
            self.touched.insert(volume.clone());
            let session = heard.clone();
            self.trouble(&volume, node, Trouble::HeardThoughGone { session, may_write_again: true });
        }
        self.refresh_standing(node);
    }

    /// A host that has taken over the name of one that was declared gone inherits nothing of it.
    pub(super) fn drop_entries_of_other_hosts(&mut self, node: &NodeId, host_nqn: &crate::HostNqn) {
        let of_node: Vec<VolumeId> = self.core.index.of_node(node).cloned().collect();
        for id in &of_node {
            let Some(record) = self.core.volumes.get_mut(id) else {
                continue;
            };
            let before = record.fenced.len();
            record.fenced.retain(|f| f.node != *node || f.host_nqn == *host_nqn);
            if record.fenced.len() != before {
                self.dirty.insert(id.clone());
                self.touched.insert(id.clone());
                self.forget_if_over(id);
            }
        }
    }
}

impl Pending {
    /// The agent's operation, where it is one.
    pub(super) fn agent(&self) -> Option<&OperationId> {
        match self {
            Self::Agent(operation, ..) => Some(operation),
            _ => None,
        }
    }
}
