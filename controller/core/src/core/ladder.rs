//! Which rung of the ladder: when a node that is being detached is fenced, what the target and the other nodes can do
//! for it, and what comes after a rung that did not hold. Its steps are `fencing`'s.

use super::Transition;
use super::requests::RequestKind;
use crate::rung_result::RungResult;
use crate::volume::{DirectiveKind, Pending};
use crate::{
    Attachment, DrainCause, Fence, FenceStep, NodeId, Notice, Phase, Rung, Source, Trouble, Verdict,
    VolumeId, VolumeRecord,
};

impl Transition<'_> {
    /// Which rung this attachment asks for now.
    pub(super) fn wants(&self, volume: &VolumeId, a: &Attachment) -> Option<Rung> {
        let Phase::Draining { cause, evidence, .. } = &a.phase else {
            return None;
        };
        let waited_for = self.is_waited_for(volume, &a.node);
        match (evidence, cause) {
            (Some(e), _) if e.verdict(self.now) == Verdict::Fenced => None,
            // It holds nothing any more. What it sent can be drained without waiting for the bound, if that costs
            // nobody anything.
            (Some(e), _) if !matches!(e.source, Source::AgentAbsent { .. }) => None,
            (Some(_), _) => {
                let target = &self.core.config.target;
                let alone = self.core.volumes.get(volume).is_some_and(|r| {
                    // An export that may be off already comes back first: only one that was on is seen to drain.
                    r.others(&a.node).next().is_none() && self.core.is_seen_to_drain(volume)
                });
                (waited_for && alone && target.export_cuts && target.export_drains).then_some(Rung::Barrier)
            }
            // Never sent an Attach: that is proof enough, and given at once.
            (None, _) if !a.directed => None,
            (None, DrainCause::Forced { .. } | DrainCause::Gone { .. }) => Some(Rung::Reservation),
            (None, DrainCause::Rollback | DrainCause::Unwanted | DrainCause::Interrupted { .. })
                if !waited_for =>
            {
                None
            }
            (
                None,
                DrainCause::Requested
                | DrainCause::Rollback
                | DrainCause::Unwanted
                | DrainCause::Interrupted { .. },
            ) => {
                // After a restart agents need a moment to be heard again.
                let waited_ms = self.now.since(a.since.max(self.core.began));
                (waited_ms >= self.patience_with(a)).then_some(Rung::Reservation)
            }
        }
    }

    /// How long a node may take to be done with a detach before it is fenced. One whose agent is heard, has been sent
    /// and has not given it up gets longer: its kernel may be slow to let go of a path that is dead.
    fn patience_with(&self, a: &Attachment) -> u64 {
        let config = &self.core.config;
        let session = self.core.nodes.get(&a.node).and_then(|node| node.ready_session());
        let at_it = session.is_some_and(
            |session| matches!(&a.pending, Pending::Agent(_, on, DirectiveKind::Detach) if on == session),
        );
        if at_it { config.fence_heard_after_ms.max(config.fence_after_ms) } else { config.fence_after_ms }
    }

    /// Whether a request waits for this node to be done with the volume.
    fn is_waited_for(&self, volume: &VolumeId, about: &NodeId) -> bool {
        self.core.waiters.get(volume).into_iter().flat_map(|w| w.values()).any(|w| match &w.kind {
            RequestKind::Publish { node, .. } => node != about,
            RequestKind::Fence { node } => node == about,
            RequestKind::Unpublish { node } => node.as_ref().is_none_or(|n| self.core.may_be(about, n)),
        }) || self.core.tickets.is_waited_for(volume, about)
    }

    pub(super) fn begin_fence(&mut self, volume: &VolumeId, node: &NodeId) -> bool {
        let Some(a) = self.core.volumes.get(volume).and_then(|v| v.attachment(node)) else {
            return false;
        };
        let Some(first) = self.wants(volume, a) else {
            return false;
        };
        let now = self.now;
        if let Some(Attachment { phase: Phase::Draining { fence, .. }, .. }) =
            self.attachment_mut(volume, node)
        {
            *fence = Some(Box::new(Fence::new(first, now)));
        }
        if first != Rung::Barrier {
            self.notice(Notice::FenceBegun { volume: volume.clone(), node: node.clone() });
        }
        self.climb(volume, node, first)
    }

    /// Takes the first rung from `first` on that there is; notes why those before it are not there.
    pub(super) fn climb(&mut self, volume: &VolumeId, node: &NodeId, first: Rung) -> bool {
        let rungs: Vec<Rung> = match first {
            Rung::Barrier => vec![Rung::Barrier],
            first => Rung::LADDER.into_iter().filter(|rung| *rung >= first).collect(),
        };
        let mut missing = Vec::new();
        let found = rungs.into_iter().find(|rung| match self.unavailable(volume, node, *rung) {
            Some(why) => {
                missing.push((*rung, why));
                false
            }
            None => true,
        });
        let Some(fence) = self.fence_mut(volume, node) else {
            return false;
        };
        for (rung, why) in missing {
            fence.note(rung, &why);
        }
        let Some(rung) = found else {
            self.refuse_fence(volume, node);
            return true;
        };
        fence.rung = rung;
        (fence.preempted_by, fence.aborted) = (None, false);
        self.next_step(volume, node, None);
        true
    }

    /// Why a rung cannot be taken; `None`: it can.
    fn unavailable(&self, volume: &VolumeId, node: &NodeId, rung: Rung) -> Option<RungResult> {
        let target = &self.core.config.target;
        let record = self.core.volumes.get(volume)?;
        let min = record.spec.min_fence;
        if !rung.suffices_for(min) {
            return Some(RungResult::WeakerThan(min));
        }
        if let Some(lack) = rung.lacks(target) {
            return Some(lack);
        }
        match rung {
            Rung::Reservation => self.helper(record, node).is_none().then_some(RungResult::NoHelper),
            Rung::Acl | Rung::Barrier => None,
            Rung::Secret => {
                let heard = |a: &&Attachment| {
                    self.core.nodes.get(&a.node).is_some_and(|n| n.ready_session().is_some())
                };
                let lost = survivors(record, node).find(|a| a.secret.is_none() || !heard(a))?;
                Some(RungResult::NotRekeyed(lost.node.clone()))
            }
            Rung::ExportOff => {
                let uses = |a: &&Attachment| a.evidence().is_none() && self.wants(volume, a).is_none();
                let user = record.others(node).find(uses)?;
                Some(RungResult::InUseBy(user.node.clone()))
            }
            Rung::NodeGone => match &record.attachment(node)?.phase {
                Phase::Draining { cause: DrainCause::Gone { .. }, .. } => None,
                _ => Some(RungResult::NotDeclaredGone),
            },
        }
    }

    /// A node that can preempt the registration of another: it has the volume, and its agent is heard.
    pub(super) fn helper<'r>(&self, record: &'r VolumeRecord, victim: &'r NodeId) -> Option<&'r Attachment> {
        let heard =
            |a: &&Attachment| self.core.nodes.get(&a.node).is_some_and(|n| n.ready_session().is_some());
        record.others(victim).filter(|a| a.phase == Phase::Ready).find(heard)
    }

    /// A rung did not hold at one of its steps: on to the next one.
    pub(super) fn rung_failed(&mut self, volume: &VolumeId, node: &NodeId, at: FenceStep, why: &RungResult) {
        let Some(fence) = self.fence_mut(volume, node).filter(|f| f.step == at) else {
            return;
        };
        let rung = fence.rung;
        fence.note(rung, why);
        self.trouble(volume, node, Trouble::RungFailed { rung, result: why.to_string() });
        let next = Rung::LADDER.into_iter().find(|next| *next > rung && rung != Rung::Barrier);
        match next {
            Some(next) => drop(self.climb(volume, node, next)),
            None => self.refuse_fence(volume, node),
        }
    }

    /// No rung is left. Tried again after a while: what a target or an agent refuses it may do later.
    pub(super) fn refuse_fence(&mut self, volume: &VolumeId, node: &NodeId) {
        let again = self.now.plus(self.core.config.fence_after_ms.max(self.core.config.retry_ms));
        let Some(fence) = self.fence_mut(volume, node) else {
            return;
        };
        (fence.step, fence.pending, fence.retry_at) = (FenceStep::Refused, None, Some(again));
        let rung = fence.rung;
        self.dirty.insert(volume.clone());
        self.touched.insert(volume.clone());
        let step = FenceStep::Refused;
        self.notice(Notice::Fence { volume: volume.clone(), node: node.clone(), rung, step });
    }
}

/// Nodes that go on using the volume when this one is fenced.
pub(super) fn survivors<'r>(
    record: &'r VolumeRecord,
    node: &'r NodeId,
) -> impl Iterator<Item = &'r Attachment> {
    record.others(node).filter(|a| match &a.phase {
        Phase::Ready | Phase::Stray => true,
        Phase::Connecting => a.may_have_written(),
        // In use, it would go on; fenced itself, it would not.
        Phase::Draining { cause, evidence: None, fence: None } => cause.is_undone_by_use(),
        Phase::Granting | Phase::Draining { .. } => false,
    })
}
