//! What the RDS and the agents answered. An answer counts only if it is to the operation that the attachment waits
//! for, from the session that speaks for the node, about the epoch that is granted; any other changes nothing.

use super::Transition;
use crate::rung_result::HelperProblem;
use crate::volume::{DirectiveKind, Pending};
use crate::{
    Absence, Attachment, BootId, DeviceIdentity, DeviceShown, DrainCause, Drained, Epoch, FenceStep,
    LaterTerm, MigrationStep, NodeId, NodeTrouble, Notice, Observed, ObservedPhase, OperationId, Outcome,
    Phase, RdsFailure, RdsTask, Refusal, ReservationAbility, SessionId, Source, Trouble, UnixMillis, Verdict,
    VolumeId,
};

impl Transition<'_> {
    pub(super) fn rds_done(&mut self, operation: OperationId, result: Result<(), RdsFailure>) {
        let Some((volume, node)) = self.core.operations.remove(&operation) else {
            return;
        };
        let Some(node) = node else {
            return self.export_done(&volume, operation, result);
        };
        if let Some(fence) = self.fence_mut(&volume, &node).filter(|f| f.pending == Some(operation)) {
            fence.pending = None;
            self.touched.insert(volume.clone());
            return self.fence_denied(&volume, &node, result);
        }
        let Some(a) = self.attachment_mut(&volume, &node) else {
            return;
        };
        let pending = a.pending.clone();
        let (Pending::Allow(op) | Pending::Deny(op) | Pending::Close(op, _)) = pending else {
            return;
        };
        if op != operation {
            return;
        }
        a.pending = Pending::Nothing;
        self.touched.insert(volume.clone());
        match pending {
            Pending::Allow(_) => self.allow_done(&volume, &node, result),
            Pending::Close(_, fresh) => {
                self.closed(&volume, fresh && result.is_ok());
                self.deny_done(&volume, &node, true, result);
            }
            _ => self.deny_done(&volume, &node, false, result),
        }
    }

    fn allow_done(&mut self, volume: &VolumeId, node: &NodeId, result: Result<(), RdsFailure>) {
        let granting = self.attachment_mut(volume, node).is_some_and(|a| a.phase == Phase::Granting);
        if let Some(record) = self.core.volumes.get_mut(volume).filter(|r| r.hidden && result.is_ok()) {
            // What this process has heard to be off is on now. What another one has asked for may still come: then
            // the export is asked for by itself, whose answer speaks for that, too.
            record.hidden = !record.hidden_heard;
            record.hidden_heard = false;
            self.dirty.insert(volume.clone());
        }
        if result.is_err() {
            self.may_be_on_in_part(volume);
        }
        match result {
            // A detach was asked for meanwhile; it goes on now that the RDS has answered.
            _ if !granting => {}
            Ok(()) => {
                self.enter(volume, node, Phase::Connecting);
                self.migration_step(volume, node, MigrationStep::TargetConnecting);
            }
            Err(error) => {
                self.trouble(volume, node, Trouble::Rds { task: RdsTask::Allow, error: error.clone() });
                self.refuse_publishes(volume, Some(node), |volume, node| Refusal::Rds {
                    volume,
                    node,
                    error: error.clone(),
                });
                // Whether it was done or not: it has to be undone.
                self.begin_drain(volume, node, DrainCause::Rollback);
            }
        }
    }

    fn deny_done(&mut self, volume: &VolumeId, node: &NodeId, close: bool, result: Result<(), RdsFailure>) {
        let now = self.now;
        let retry_at = now.plus(self.core.config.retry_ms);
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        // Somebody else was proven to be done meanwhile, and nobody has it any more: the export has to go off, too.
        let stays_on = !close && record.others(node).next().is_none();
        let Some(a) = record.attachment_mut(node) else {
            return;
        };
        let proof = a.evidence().filter(|e| e.verdict(now) == Verdict::Fenced).cloned();
        match (result, proof) {
            (Ok(()), Some(_)) if stays_on => {}
            (Ok(()), Some(evidence)) => self.finish_attachment(volume, node, evidence),
            // The proof was taken back while the RDS was asked.
            (_, None) => {}
            (Err(error), Some(_)) => {
                a.retry_at = Some(retry_at);
                a.unlisted = matches!(error, RdsFailure::NotFound(_));
                self.trouble(volume, node, Trouble::Rds { task: RdsTask::Deny, error: error.clone() });
                if !self.attachment_mut(volume, node).is_some_and(|a| a.is_over_but_for_the_list(now)) {
                    let refusal = Refusal::Rds { volume: volume.clone(), node: node.clone(), error };
                    self.refuse_unpublishes(volume, node, &refusal);
                }
            }
        }
    }

    pub(super) fn agent_done(
        &mut self,
        node: &NodeId,
        session: &SessionId,
        operation: OperationId,
        volume: &VolumeId,
        epoch: Epoch,
        outcome: Outcome,
    ) {
        if !self.core.nodes.get(node).is_some_and(|n| n.is_session(session))
            || self.revoke_done(volume, node, operation, &outcome)
        {
            return;
        }
        let Some(a) = self.attachment_mut(volume, node) else {
            return;
        };
        if a.epoch != epoch || a.pending.agent() != Some(&operation) {
            return;
        }
        if let Outcome::Pending { message } = outcome {
            self.trouble(volume, node, Trouble::Progress(message));
            return;
        }
        let pending = std::mem::take(&mut a.pending);
        let draining = a.phase.is_draining();
        self.touched.insert(volume.clone());
        match pending {
            Pending::Agent(_, _, DirectiveKind::Preempt) => {
                return self.preempt_answered(volume, node, outcome);
            }
            Pending::Agent(_, _, DirectiveKind::Rekey(generation)) => {
                return self.rekey_answered(volume, node, generation, outcome);
            }
            _ => {}
        }
        match outcome {
            Outcome::Ready { identity, shown } if !draining => self.ready(volume, node, identity, shown),
            Outcome::Absent(absence) if draining => self.absent(volume, node, &absence),
            Outcome::Busy { holders } if draining => self.busy(volume, node, holders),
            Outcome::Failed { clause, message, .. } if draining => {
                self.detach_failed(volume, node, NodeTrouble::Clause { clause, message });
            }
            Outcome::Failed { clause, message, .. } => {
                self.attach_failed(volume, node, NodeTrouble::Clause { clause, message });
            }
            Outcome::Stale { highest, ended } => self.stale(volume, node, highest, ended),
            other => self.later(volume, node, Trouble::UnexpectedOutcome(Box::new(other))),
        }
    }

    /// The outcome of a Preempt.
    fn preempt_answered(&mut self, volume: &VolumeId, by: &NodeId, outcome: Outcome) {
        match outcome {
            Outcome::Preempted { left, aborted } => self.preempted(volume, by, &left, &aborted),
            outcome => self.not_helped(volume, by, FenceStep::Preempt, outcome),
        }
    }

    /// The outcome of a Rekey.
    fn rekey_answered(&mut self, volume: &VolumeId, node: &NodeId, generation: Epoch, outcome: Outcome) {
        match outcome {
            Outcome::Rekeyed => {
                if let Some(a) = self.attachment_mut(volume, node) {
                    a.secret = Some(generation);
                    self.dirty.insert(volume.clone());
                }
            }
            outcome => self.not_helped(volume, node, FenceStep::Rekey, outcome),
        }
    }

    /// A node could not do what a fence against another needed of it.
    fn not_helped(&mut self, volume: &VolumeId, by: &NodeId, step: FenceStep, outcome: Outcome) {
        let (trouble, problem) = match outcome {
            Outcome::Stale { highest, .. } if highest.term > self.core.term => {
                let later = self.is_ahead(volume, by, highest);
                (Trouble::Unready(NodeTrouble::LaterTerm(later.clone())), HelperProblem::LaterTerm(later))
            }
            Outcome::Failed { clause, message, .. } => (
                Trouble::Unready(NodeTrouble::Clause { clause: clause.clone(), message: message.clone() }),
                HelperProblem::Failed { clause, message },
            ),
            other => (Trouble::UnexpectedOutcome(Box::new(other.clone())), HelperProblem::Unexpected(other)),
        };
        self.later(volume, by, trouble);
        self.helper_failed(volume, by, step, &problem);
    }

    /// A node says that it has seen an epoch of a later term. Who leads is decided by the store alone, so this is
    /// about the node: it carries out nothing of this term, and is granted nothing.
    pub(super) fn is_ahead(&mut self, volume: &VolumeId, node: &NodeId, highest: Epoch) -> LaterTerm {
        if let Some(known) = self.core.nodes.get_mut(node) {
            known.ahead.insert(volume.clone(), highest);
        }
        self.refresh_standing(node);
        LaterTerm { volume: volume.clone(), highest, term: self.core.term }
    }

    fn ready(
        &mut self,
        volume: &VolumeId,
        node: &NodeId,
        identity: DeviceIdentity,
        shown: Option<DeviceShown>,
    ) {
        let Some(boot_id) = self.boot_id(node) else {
            return;
        };
        if let Some(another) = self.core.other_device(volume, node, &identity, shown) {
            self.attach_failed(volume, node, another);
            return;
        }
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        record.identity = Some(identity.with(record.identity.take()));
        let mut rebooted = false;
        if let Some(a) = record.attachment_mut(node) {
            (a.proven, a.shown) = (true, shown);
            rebooted = a.boot_id.replace(boot_id.clone()).is_some_and(|before| before != boot_id);
            let observed = Observed {
                volume: volume.clone(),
                epoch: Some(a.epoch),
                ended: false,
                phase: ObservedPhase::Ready,
                live_paths: 0,
                unready: String::new(),
                shown: None,
            };
            if let Some(known) = self.core.nodes.get_mut(node) {
                let fresh = known.observed.entry(volume.clone()).or_insert_with(|| observed.clone());
                // The agent reports its paths with its delta; here only what the answer itself says.
                if !matches!(fresh.phase, ObservedPhase::Ready | ObservedPhase::Degraded) {
                    *fresh = observed;
                }
            }
        }
        self.dirty.insert(volume.clone());
        if rebooted {
            self.may_still_land(volume, node);
        }
        self.enter(volume, node, Phase::Ready);
        self.migration_step(volume, node, MigrationStep::TargetReady);
    }

    fn attach_failed(&mut self, volume: &VolumeId, node: &NodeId, unready: NodeTrouble) {
        self.refuse_publishes(volume, Some(node), |volume, node| Refusal::NotReady {
            volume,
            node,
            unready: unready.clone(),
        });
        let trouble = Trouble::Unready(unready);
        if self.attachment_mut(volume, node).is_some_and(|a| a.proven) {
            // Somebody may be using it, or wants it back after a reboot: it stays granted, and is tried again.
            self.later(volume, node, trouble);
            return;
        }
        self.trouble(volume, node, trouble);
        self.begin_drain(volume, node, DrainCause::Rollback);
        // That nothing is left now proves nothing: the end is not recorded on the node, so an older directive could
        // still make it connect, also between now and the Deny. A Detach follows, which records it.
    }

    fn absent(&mut self, volume: &VolumeId, node: &NodeId, absence: &Absence) {
        // Nothing is concluded from a node that is not known.
        let Some(boot_id) = self.boot_id(node) else {
            return;
        };
        let now = self.now;
        let bound = now.plus(self.core.config.drain_bound_ms);
        let Some(record) = self.core.volumes.get(volume) else {
            return;
        };
        let Some(a) = record.attachment(node) else {
            return;
        };
        // A session may have been cut, or its commands aborted, after the agent had noted that it was live.
        let aborts = self.core.config.target.reservations != ReservationAbility::None;
        let shaken = record.hidden || (aborts && record.fence(node).is_some_and(|f| f.touched));
        let drained = match drained(a, absence, now, bound, &boot_id) {
            Drained::NeverHandedOut => Drained::NeverHandedOut,
            _ if shaken => Drained::Bound { until: bound },
            drained => drained,
        };
        self.prove(volume, node, Source::AgentAbsent { boot_id }, drained);
    }

    fn busy(&mut self, volume: &VolumeId, node: &NodeId, holders: Vec<String>) {
        let Some(a) = self.attachment_mut(volume, node) else {
            return;
        };
        let (proven, stray) = (a.proven, a.stray);
        let trouble = Trouble::InUse { holders: holders.clone() };
        let untouched = match &a.phase {
            Phase::Draining { cause, fence, .. } if cause.is_undone_by_use() => {
                fence.as_ref().is_none_or(|f| !f.touched)
            }
            _ => false,
        };
        if untouched {
            // The agent refused before touching anything: what was granted goes on as it was, and what never was
            // stays so.
            a.wanted.unpublishing = false;
            let before = match (stray, proven) {
                (true, _) => Phase::Stray,
                (false, true) => Phase::Ready,
                (false, false) => Phase::Connecting,
            };
            self.enter(volume, node, before);
            self.dirty.insert(volume.clone());
            self.trouble(volume, node, trouble);
        } else {
            self.later(volume, node, trouble);
        }
        let refusal = Refusal::InUse { volume: volume.clone(), node: node.clone(), holders };
        self.refuse_unpublishes(volume, node, &refusal);
    }

    fn detach_failed(&mut self, volume: &VolumeId, node: &NodeId, unready: NodeTrouble) {
        self.later(volume, node, Trouble::Unready(unready.clone()));
        let refusal = Refusal::NotReady { volume: volume.clone(), node: node.clone(), unready };
        self.refuse_unpublishes(volume, node, &refusal);
    }

    /// The node knows a higher epoch, or the end of this one.
    fn stale(&mut self, volume: &VolumeId, node: &NodeId, highest: Epoch, ended: bool) {
        let ahead = (highest.term > self.core.term).then(|| self.is_ahead(volume, node, highest));
        let draining = self.attachment_mut(volume, node).is_some_and(|a| a.phase.is_draining());
        if let Some(later) = ahead.clone().filter(|_| draining) {
            // It ends nothing for this term: a fence has to.
            self.later(volume, node, Trouble::Unready(NodeTrouble::LaterTerm(later)));
            return;
        }
        let epoch = self.next_epoch();
        let Some(a) = self.attachment_mut(volume, node) else {
            return;
        };
        let unready = match ahead {
            Some(later) => NodeTrouble::LaterTerm(later),
            None => NodeTrouble::OtherEpoch { highest, ended, granted: a.epoch },
        };
        if draining {
            // Ours is the highest term, so we may end what it holds: under an epoch that it will accept.
            a.epoch = epoch;
            self.dirty.insert(volume.clone());
            return;
        }
        self.refuse_publishes(volume, Some(node), |volume, node| Refusal::NotReady {
            volume,
            node,
            unready: unready.clone(),
        });
        self.trouble(volume, node, Trouble::Unready(unready));
        self.begin_drain(volume, node, DrainCause::Rollback);
    }

    /// Notes what went wrong, and tries again after a while.
    fn later(&mut self, volume: &VolumeId, node: &NodeId, trouble: Trouble) {
        let retry_at = self.now.plus(self.core.config.retry_ms);
        if let Some(a) = self.attachment_mut(volume, node) {
            a.retry_at = Some(retry_at);
        }
        self.trouble(volume, node, trouble);
    }

    /// Keeps what went wrong with the attachment, and notifies people.
    pub(super) fn trouble(&mut self, volume: &VolumeId, node: &NodeId, trouble: Trouble) {
        if let Some(a) = self.attachment_mut(volume, node) {
            a.trouble = Some(trouble.clone());
        }
        self.tell_trouble(volume, node, trouble);
    }

    /// Tells people alone.
    pub(super) fn tell_trouble(&mut self, volume: &VolumeId, node: &NodeId, trouble: Trouble) {
        let trouble = Box::new(trouble);
        self.notice(Notice::Trouble { volume: volume.clone(), node: node.clone(), trouble });
    }

    pub(super) fn attachment_mut(&mut self, volume: &VolumeId, node: &NodeId) -> Option<&mut Attachment> {
        self.core.volumes.get_mut(volume)?.attachment_mut(node)
    }

    fn boot_id(&self, node: &NodeId) -> Option<BootId> {
        self.core.nodes.get(node).map(|n| n.identity.boot_id.clone())
    }
}

/// By what it is known that nothing this attachment wrote is still on its way, given what its node deleted.
fn drained(
    a: &Attachment,
    absence: &Absence,
    now: UnixMillis,
    bound: UnixMillis,
    boot_id: &BootId,
) -> Drained {
    let earlier = a.may_land_until.filter(|until| *until > now);
    let other_boot = a.boot_id.as_ref().is_some_and(|proven| proven != boot_id);
    match &absence.deleted[..] {
        // Nobody was sent an Attach.
        [] if !a.may_have_written() => Drained::NeverHandedOut,
        // It was there once, and is gone without a deletion that this boot knows of: the kernel that held it died.
        [] => Drained::Bound { until: bound },
        _ if other_boot => Drained::Bound { until: bound },
        deleted if deleted.iter().any(|d| d.state != "live") => Drained::Bound { until: bound },
        _ => earlier.map_or(Drained::LiveDeletion, |until| Drained::Bound { until }),
    }
}
