//! A fence, step by step. Which rung of the ladder it takes is `ladder`'s.
//!
//! A fence runs beside the agent's own detach, and whichever proves first ends the attachment. Each step is an effect
//! that is asked for again until it is answered; the next one begins only after that, and is durable before it is
//! asked for. A proof is given only after the last step of its rung. Where the RDS is not reached nothing is
//! concluded: the step stays. Where it refuses, the next rung is tried; after the last one the fence is `Refused`,
//! and the requests that wait for it get every rung with its result.

use super::Transition;
use super::export::unknown;
use super::ladder::survivors;
use crate::rung_result::{HelperProblem, RungResult};
use crate::volume::Pending;
use crate::{
    Attachment, DrainCause, Drained, Fence, FenceStep, NodeId, Notice, Phase, RdsFailure, RdsRequest,
    RdsTask, ReservationAbility, Rung, SecretState, Source, Trouble, VolumeId, VolumeRecord,
};

impl Transition<'_> {
    /// Begins, or lets go on, the fence against one node. Says whether anything came of it.
    pub(super) fn drive_fence(&mut self, volume: &VolumeId, node: &NodeId) -> bool {
        let Some(record) = self.core.volumes.get(volume) else {
            return false;
        };
        let Some(a) = record.attachment(node) else {
            return false;
        };
        // A grant that the RDS may still be carrying out would undo what the fence does. And whom the fence would cut
        // besides is not known before the lists were read.
        if matches!(a.pending, Pending::Allow(_)) || !self.was_looked_up(volume) {
            return false;
        }
        let Some(fence) = record.fence(node) else {
            return self.begin_fence(volume, node);
        };
        if fence.pending.is_some() || fence.retry_at.is_some_and(|at| self.now < at) {
            return false;
        }
        match fence.step {
            FenceStep::Deny => self.fence_denies(volume, node),
            FenceStep::Preempt => self.await_preempt(volume, node),
            FenceStep::SetSecret => self.await_secret(volume, node),
            FenceStep::Rekey => self.await_rekey(volume, node),
            FenceStep::Hide => self.holds_no_more(volume, node),
            FenceStep::Refused => self.wants(volume, a).is_some_and(|first| self.climb(volume, node, first)),
        }
    }

    /// Goes on to the step after `done` (`None`: to the first), or gives the proof if that was the last.
    pub(super) fn next_step(&mut self, volume: &VolumeId, node: &NodeId, done: Option<FenceStep>) {
        let Some(rung) = self.fence_mut(volume, node).map(|f| f.rung) else {
            return;
        };
        let mut steps = rung.steps(&self.core.config.target).into_iter();
        if let Some(done) = done {
            // One that is not in the rung any more, after a change of settings, has nothing after it: start over.
            if !steps.any(|step| step == done) {
                self.refuse_fence(volume, node);
                return;
            }
        }
        let Some(step) = steps.next() else {
            let bound = self.drain_bound();
            self.fence_proven(volume, node, bound);
            return;
        };
        if let Some(fence) = self.fence_mut(volume, node) {
            fence.step = step;
            fence.touched = true;
            (fence.pending, fence.retry_at) = (None, None);
        }
        if step == FenceStep::SetSecret {
            self.next_secret(volume);
        }
        self.dirty.insert(volume.clone());
        self.touched.insert(volume.clone());
        self.notice(Notice::Fence { volume: volume.clone(), node: node.clone(), rung, step });
    }

    /// Before the last step, which `drive_export` asks for: whether the rung still proves anything. The target may have
    /// been probed again since its first step, and a proof rests on what its own steps did.
    fn holds_no_more(&mut self, volume: &VolumeId, node: &NodeId) -> bool {
        let target = &self.core.config.target;
        let Some(fence) = self.core.volumes.get(volume).and_then(|record| record.fence(node)) else {
            return false;
        };
        let lack = fence.rung.lacks(target).or_else(|| {
            let unread = fence.rung.needs_the_list() && !fence.denied;
            unread.then_some(RungResult::ListNotRead)
        });
        let Some(lack) = lack else {
            return false;
        };
        self.rung_failed(volume, node, FenceStep::Hide, &lack);
        true
    }

    fn next_secret(&mut self, volume: &VolumeId) {
        let generation = self.next_epoch();
        if let Some(record) = self.core.volumes.get_mut(volume) {
            record.secret = Some(SecretState { generation, in_force: false });
        }
    }

    fn fence_denies(&mut self, volume: &VolumeId, node: &NodeId) -> bool {
        let Some(host_nqn) = self.attachment_mut(volume, node).map(|a| a.host_nqn.clone()) else {
            return false;
        };
        let request = |volume| RdsRequest::Deny { volume, host_nqn, fence: true };
        let operation = self.ask_rds(Some(node), request, volume);
        if let Some(fence) = self.fence_mut(volume, node) {
            fence.pending = Some(operation);
        }
        true
    }

    /// The RDS's answer to the fence's own Deny.
    pub(super) fn fence_denied(&mut self, volume: &VolumeId, node: &NodeId, result: Result<(), RdsFailure>) {
        let retry_at = self.now.plus(self.core.config.retry_ms);
        match result {
            Ok(()) => {
                if let Some(fence) = self.fence_mut(volume, node) {
                    fence.denied = true;
                }
                self.next_step(volume, node, Some(FenceStep::Deny));
            }
            Err(error) => {
                if unknown(&error) {
                    if let Some(fence) = self.fence_mut(volume, node) {
                        fence.retry_at = Some(retry_at);
                    }
                    self.trouble(volume, node, Trouble::Rds { task: RdsTask::Deny, error });
                } else {
                    self.rung_failed(volume, node, FenceStep::Deny, &RungResult::Rds(FenceStep::Deny, error));
                }
            }
        }
    }

    /// Whether the rung has failed, for there is no node left that can preempt; else `progress` directs one.
    fn await_preempt(&mut self, volume: &VolumeId, node: &NodeId) -> bool {
        let helped = self.core.volumes.get(volume).is_some_and(|r| self.helper(r, node).is_some());
        if !helped {
            self.rung_failed(volume, node, FenceStep::Preempt, &RungResult::NoHelper);
        }
        !helped
    }

    /// Whose registrations this node is to preempt now.
    pub(super) fn victims(&self, record: &VolumeRecord, by: &NodeId) -> Vec<crate::Epoch> {
        let due = |a: &&Attachment| {
            record.fence(&a.node).is_some_and(|f| f.step == FenceStep::Preempt)
                && self.helper(record, &a.node).is_some_and(|helper| helper.node == *by)
        };
        record.others(by).filter(due).map(|a| a.epoch).collect()
    }

    /// A helper's report after the preemption. It proves something only if every key in it is one that we know to
    /// belong to a node that may stay.
    pub(super) fn preempted(&mut self, volume: &VolumeId, by: &NodeId, left: &[u64], aborted: &[u64]) {
        let waits = self.core.config.target.reservations == ReservationAbility::AbortWaits;
        let Some(record) = self.core.volumes.get(volume) else {
            return;
        };
        let known: Vec<u64> = record
            .attachments
            .iter()
            .filter(|a| !a.phase.is_draining())
            .map(|a| a.epoch.reservation_key())
            .collect();
        let strange: Vec<u64> = left.iter().copied().filter(|key| !known.contains(key)).collect();
        let victims: Vec<NodeId> = self.at_step(volume, FenceStep::Preempt);
        for node in victims {
            if strange.is_empty() {
                let key = self.attachment_mut(volume, &node).map(|a| a.epoch.reservation_key());
                if let Some(fence) = self.fence_mut(volume, &node) {
                    fence.preempted_by = Some(by.clone());
                    // One that was not registered had nothing aborted: what it sent before it took its key off, or
                    // before the target forgot it, may still land.
                    fence.aborted = waits && key.is_some_and(|key| aborted.contains(&key));
                }
                self.next_step(volume, &node, Some(FenceStep::Preempt));
            } else {
                let why = RungResult::StillRegistered { by: by.clone(), keys: strange.clone() };
                self.rung_failed(volume, &node, FenceStep::Preempt, &why);
            }
        }
    }

    /// A helper could not do what a fence needed of it.
    pub(super) fn helper_failed(
        &mut self,
        volume: &VolumeId,
        by: &NodeId,
        step: FenceStep,
        problem: &HelperProblem,
    ) {
        for node in self.at_step(volume, step) {
            let why = RungResult::Helper { by: by.clone(), problem: problem.clone() };
            self.rung_failed(volume, &node, step, &why);
        }
    }

    fn at_step(&self, volume: &VolumeId, step: FenceStep) -> Vec<NodeId> {
        let Some(record) = self.core.volumes.get(volume) else {
            return Vec::new();
        };
        let there = |n: &NodeId| record.fence(n).is_some_and(|f| f.step == step);
        record.holders().into_iter().filter(there).collect()
    }

    fn await_secret(&mut self, volume: &VolumeId, node: &NodeId) -> bool {
        let in_force = self.core.volumes.get(volume).is_some_and(|r| !r.secret_unsettled());
        if in_force {
            self.next_step(volume, node, Some(FenceStep::SetSecret));
        }
        in_force
    }

    /// Whether all others have the secret, or one cannot get it; `progress` directs them.
    fn await_rekey(&mut self, volume: &VolumeId, node: &NodeId) -> bool {
        let Some(record) = self.core.volumes.get(volume) else {
            return false;
        };
        let generation = record.secret.as_ref().map(|s| s.generation);
        let behind: Vec<(NodeId, bool)> = survivors(record, node)
            .filter(|a| a.secret != generation)
            .map(|a| (a.node.clone(), a.phase == Phase::Stray))
            .collect();
        if let Some((stray, _)) = behind.iter().find(|(_, stray)| *stray) {
            self.rung_failed(volume, node, FenceStep::Rekey, &RungResult::StrayNotRekeyed(stray.clone()));
            return true;
        }
        let Some((behind, _)) = behind.into_iter().next() else {
            self.next_step(volume, node, Some(FenceStep::Rekey));
            return true;
        };
        if self.core.nodes.get(&behind).is_some_and(|n| n.ready_session().is_some()) {
            return false;
        }
        self.rung_failed(volume, node, FenceStep::Rekey, &RungResult::SilentForRekey(behind));
        true
    }

    /// The export was taken off after every step before it: the last step of each rung that has it.
    pub(super) fn fence_cut(&mut self, volume: &VolumeId, node: &NodeId, drained: bool) {
        if self.fence_mut(volume, node).is_none_or(|f| f.step != FenceStep::Hide) {
            return;
        }
        let barrier = drained && self.core.config.target.export_drains;
        // An abort waits for what the registrant's own sessions have in flight. What was on a session that broke before,
        // or of a registrant that had taken its key off itself, it may not know of.
        let now = self.now;
        let lands = |a: &mut Attachment| a.may_land_until.is_some_and(|until| until > now);
        let aborted = self.is_aborted(volume, node) && !self.attachment_mut(volume, node).is_some_and(lands);
        let drained = match (barrier, aborted) {
            (true, _) => Drained::Barrier,
            (false, true) => Drained::Abort,
            (false, false) => self.drain_bound(),
        };
        self.fence_proven(volume, node, drained);
    }

    /// What it had in flight was waited for when its registration was preempted, and nothing of it was taken since.
    pub(super) fn is_aborted(&mut self, volume: &VolumeId, node: &NodeId) -> bool {
        self.core.config.target.reservations == ReservationAbility::AbortWaits
            && self.fence_mut(volume, node).is_some_and(|f| f.aborted)
            && self.helper_stays(volume, node)
    }

    /// Who preempted is still registered: nothing of the loser's was taken since.
    fn helper_stays(&self, volume: &VolumeId, node: &NodeId) -> bool {
        self.core.volumes.get(volume).is_some_and(|record| {
            let by = record.fence(node).and_then(|f| f.preempted_by.as_ref());
            by.and_then(|by| record.attachment(by)).is_some_and(|a| !a.phase.is_draining())
        })
    }

    fn drain_bound(&self) -> Drained {
        Drained::Bound { until: self.now.plus(self.core.config.drain_bound_ms) }
    }

    fn fence_proven(&mut self, volume: &VolumeId, node: &NodeId, drained: Drained) {
        let keeps_to_list = self.core.config.target.acl;
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        let secret = record.secret.as_ref().map(|s| s.generation);
        let Some(a) = record.attachment_mut(node) else {
            return;
        };
        let drained = if a.may_have_written() { drained } else { Drained::NeverHandedOut };
        let Phase::Draining { cause, evidence, fence } = &mut a.phase else {
            return;
        };
        let Some(ended) = fence.take() else {
            return;
        };
        let acl = ended.denied && keeps_to_list;
        let source = match (ended.rung, cause) {
            (Rung::Reservation, _) => ended
                .preempted_by
                .map_or(Source::TargetCut { acl, secret: None }, |by| Source::Reservation { by }),
            (Rung::Acl, _) => Source::TargetCut { acl, secret: None },
            (Rung::Secret, _) => Source::TargetCut { acl, secret },
            (Rung::ExportOff, _) => Source::ExportOff,
            (Rung::NodeGone, DrainCause::Gone { by, reason }) => {
                Source::NodeGone { by: by.clone(), reason: reason.clone() }
            }
            // What proves that it holds nothing is known already; this proves that it is drained.
            (Rung::Barrier, _) => match evidence.as_ref() {
                Some(evidence) => evidence.source.clone(),
                None => return,
            },
            (Rung::NodeGone, _) => return,
        };
        self.prove(volume, node, source, drained);
    }

    pub(super) fn fence_mut(&mut self, volume: &VolumeId, node: &NodeId) -> Option<&mut Fence> {
        self.core.volumes.get_mut(volume)?.fence_mut(node)
    }
}

#[cfg(test)]
#[path = "abort_tests.rs"]
mod tests;
