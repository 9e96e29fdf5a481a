//! The next thing to ask of the RDS or of an agent, for each attachment, read off its state alone. Asking is
//! idempotent: what is asked for already and not answered is not asked again, unless the agent has a new session.

use super::Transition;
use super::admission::grant_of;
use crate::volume::{DirectiveKind, Pending};
use crate::{
    Attachment, Directive, DrainCause, Drained, Effect, Epoch, Evidence, FenceStep, Fenced, MigrationStep,
    NodeId, Notice, OperationId, Phase, RdsRequest, ReservationAbility, SessionId, Source, Verdict, VolumeId,
    VolumeRecord,
};

/// What an attachment needs next.
enum Next {
    Allow,
    Tell(DirectiveKind),
    NeverAllowed,
    Deny,
    /// Nobody else has it: the export goes off with it.
    Close,
    /// The fence that proved it has taken the host off the list already.
    Finish(Box<Evidence>),
}

impl Transition<'_> {
    /// Lets every attachment of a volume go on. Says whether any did.
    pub(super) fn drive(&mut self, volume: &VolumeId) -> bool {
        let holders = self.core.volumes.get(volume).map(VolumeRecord::holders).unwrap_or_default();
        // Every one of them has to be driven: no short circuit.
        let mut moved = false;
        for node in &holders {
            moved |= self.drive_one(volume, node);
            moved |= self.drive_fence(volume, node);
        }
        let fenced = self.core.volumes.get(volume).into_iter().flat_map(|v| &v.fenced);
        for node in fenced.map(|f| f.node.clone()).collect::<Vec<_>>() {
            moved |= self.drive_revoke(volume, &node);
        }
        moved |= self.drive_migration(volume);
        moved |= self.drive_counts(volume);
        moved |= self.drive_verify(volume);
        moved | self.drive_export(volume)
    }

    fn drive_one(&mut self, volume: &VolumeId, node: &NodeId) -> bool {
        let Some(next) = self.next(volume, node) else {
            return false;
        };
        match next {
            Next::Allow => self.allow(volume, node),
            Next::Deny => self.deny(volume, node, false),
            Next::Close => self.deny(volume, node, true),
            Next::Tell(what) => return self.ask_agent(volume, node, what),
            Next::Finish(evidence) => self.finish_attachment(volume, node, *evidence),
            Next::NeverAllowed => self.never_allowed(volume, node),
        }
        true
    }

    fn next(&self, volume: &VolumeId, node: &NodeId) -> Option<Next> {
        let record = self.core.volumes.get(volume)?;
        let attachment = record.attachment(node)?;
        if attachment.pending.is_rds() || attachment.retry_at.is_some_and(|at| self.now < at) {
            return None;
        }
        match &attachment.phase {
            // Somebody else may still write, or nobody has looked yet.
            Phase::Granting | Phase::Connecting if !self.may_go_on(record) => None,
            // To let a host in brings the export back, also for one that only the export keeps out.
            Phase::Granting if attachment.unasked => None,
            Phase::Granting if record.shut() || record.secret_unsettled() => None,
            Phase::Granting => Some(Next::Allow),
            Phase::Connecting if record.hidden || record.secret_unsettled() => None,
            Phase::Connecting => {
                Some(Next::Tell(DirectiveKind::Attach(record.secret.as_ref().map(|s| s.generation))))
            }
            Phase::Ready => match another_secret(record, attachment) {
                Some(generation) => Some(Next::Tell(DirectiveKind::Rekey(generation))),
                None => {
                    (!self.victims(record, node).is_empty()).then_some(Next::Tell(DirectiveKind::Preempt))
                }
            },
            Phase::Stray => None,
            // It may prove the end of an earlier grant than the one that the RDS's list shows.
            Phase::Draining { evidence: Some(_), .. }
                if attachment.old_proof && !self.was_looked_up(volume) =>
            {
                None
            }
            Phase::Draining { evidence: Some(e), .. } if e.verdict(self.now) == Verdict::Fenced => {
                let last = record.others(node).next().is_none();
                if last && record.asked.is_some() {
                    return None;
                }
                Some(if last && !(record.hidden && record.hidden_heard) {
                    Next::Close
                } else if e.source.took_the_host_off_the_list() {
                    Next::Finish(Box::new(e.clone()))
                } else if last {
                    Next::Close
                } else {
                    Next::Deny
                })
            }
            Phase::Draining { evidence: Some(_), .. } => None,
            Phase::Draining { .. } if !attachment.directed => Some(Next::NeverAllowed),
            Phase::Draining { cause, fence, .. } => {
                let forced = matches!(cause, DrainCause::Forced { .. } | DrainCause::Gone { .. });
                let revoke = forced || fence.as_ref().is_some_and(|f| f.touched);
                Some(Next::Tell(if revoke { DirectiveKind::Revoke } else { DirectiveKind::Detach }))
            }
        }
    }

    pub(super) fn allow(&mut self, volume: &VolumeId, node: &NodeId) {
        let Some(host_nqn) = self.attachment_mut(volume, node).map(|a| a.host_nqn.clone()) else {
            return;
        };
        if let Some(let_in) = self.core.volumes.get_mut(volume).and_then(|record| record.let_in.as_mut()) {
            let_in.insert(host_nqn.clone());
        }
        let request = |volume| RdsRequest::Allow { volume, host_nqn };
        let operation = self.ask_rds(Some(node), request, volume);
        if let Some(a) = self.attachment_mut(volume, node) {
            a.pending = Pending::Allow(operation);
        }
    }

    fn deny(&mut self, volume: &VolumeId, node: &NodeId, close: bool) {
        let Some(host_nqn) = self.attachment_mut(volume, node).map(|a| a.host_nqn.clone()) else {
            return;
        };
        let request = |volume| match close {
            true => RdsRequest::Close { volume, host_nqn },
            false => RdsRequest::Deny { volume, host_nqn, fence: false },
        };
        let operation = self.ask_rds(Some(node), request, volume);
        let fresh = self.core.is_seen_to_drain(volume);
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        if close {
            // Durable before it is asked: whoever comes after this process knows that it may be off.
            (record.hidden, record.hidden_heard) = (true, false);
            self.dirty.insert(volume.clone());
        }
        if let Some(a) = record.attachment_mut(node) {
            a.pending = if close { Pending::Close(operation, fresh) } else { Pending::Deny(operation) };
        }
    }

    /// Sends the agent a directive, unless it was sent on this very session. The operation keeps its number over
    /// sessions, so that an agent which is still at it joins the two.
    fn ask_agent(&mut self, volume: &VolumeId, node: &NodeId, what: DirectiveKind) -> bool {
        let Some(session) = self.core.nodes.get(node).and_then(|n| n.ready_session()).cloned() else {
            return false;
        };
        let pending =
            self.core.volumes.get(volume).and_then(|v| v.attachment(node)).map(|a| a.pending.clone());
        let operation = match pending {
            Some(Pending::Agent(_, on, sent)) if on == session && sent == what => return false,
            Some(Pending::Agent(operation, _, sent)) if sent == what => operation,
            _ => self.next_operation(),
        };
        self.direct(volume, node, session, operation, what);
        true
    }

    fn direct(
        &mut self,
        volume: &VolumeId,
        node: &NodeId,
        session: SessionId,
        operation: OperationId,
        what: DirectiveKind,
    ) {
        let reserve = self.core.config.target.reservations != ReservationAbility::None;
        let victims = self.core.volumes.get(volume).map(|r| self.victims(r, node)).unwrap_or_default();
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        let Some(a) = record.attachment_mut(node) else {
            return;
        };
        a.pending = Pending::Agent(operation, session.clone(), what);
        if let DirectiveKind::Attach(generation) = what {
            a.directed = true;
            if a.secret != generation {
                a.secret = generation;
                self.dirty.insert(volume.clone());
            }
        }
        let (epoch, id) = (a.epoch, volume.clone());
        let cut_tickets = matches!(&a.phase, Phase::Draining { cause, .. } if cause.cuts_tickets());
        let directive = match (what, record.attachment(node)) {
            (DirectiveKind::Attach(_), Some(a)) => {
                Directive::Attach { grant: Box::new(grant_of(record, a, reserve)) }
            }
            (DirectiveKind::Preempt, _) => Directive::Preempt { volume: id, epoch, victims },
            (DirectiveKind::Rekey(generation), _) => Directive::Rekey { volume: id, epoch, generation },
            (DirectiveKind::Revoke, _) => Directive::Revoke { volume: id, epoch },
            (DirectiveKind::Detach, _) | (DirectiveKind::Attach(_), None) => {
                Directive::Detach { volume: id, epoch, cut_tickets }
            }
        };
        self.effects.push(Effect::Direct { node: node.clone(), session, operation, directive });
    }

    fn never_allowed(&mut self, volume: &VolumeId, node: &NodeId) {
        self.prove(volume, node, Source::NeverAllowed, Drained::NeverHandedOut);
    }

    /// Takes note of a proof about an attachment that is being taken down. The better proof stays: one that is
    /// drained, else the one whose bound passes first.
    pub(super) fn prove(&mut self, volume: &VolumeId, node: &NodeId, source: Source, drained: Drained) {
        let now = self.now;
        let Some(a) = self.core.volumes.get_mut(volume).and_then(|v| v.attachment_mut(node)) else {
            return;
        };
        let epoch = a.epoch;
        if let Phase::Draining { evidence, fence, .. } = &mut a.phase {
            let new = Evidence { node: node.clone(), epoch, source, drained, at: now, statement: None };
            match evidence {
                Some(old) if !a.old_proof && !new.is_better_than(old, now) => {}
                _ => *evidence = Some(new),
            }
            a.old_proof = false;
            if evidence.as_ref().is_some_and(|e| e.verdict(now) == Verdict::Fenced) {
                // Whatever it had changed for the volume is put right by `export`.
                *fence = None;
            }
            a.trouble = None;
            a.retry_at = None;
            self.dirty.insert(volume.clone());
            self.migration_step(volume, node, MigrationStep::Released);
        }
    }

    /// Begins to take an attachment down; where that is under way already, tries again now.
    pub(super) fn begin_drain(&mut self, volume: &VolumeId, node: &NodeId, cause: DrainCause) {
        self.touched.insert(volume.clone());
        let Some(a) = self.core.volumes.get_mut(volume).and_then(|v| v.attachment_mut(node)) else {
            return;
        };
        if let Phase::Draining { cause: before, fence, .. } = &mut a.phase {
            a.retry_at = None;
            if let Some(fence) = fence.as_mut().filter(|f| f.step == FenceStep::Refused) {
                fence.retry_at = None;
            }
            if cause.outweighs(before) {
                *before = cause;
                self.dirty.insert(volume.clone());
            }
            return;
        }
        // An answer of the RDS has to be waited for, so that the next request to it comes after; one of the agent
        // does not: its directives are carried out in order, and the answer to the older one changes nothing.
        if !a.pending.is_rds() {
            a.pending = Pending::Nothing;
        }
        if cause == DrainCause::Rollback && !a.wanted.csi {
            let again_at = self.now.plus(self.core.config.retry_ms);
            self.core.tickets.not_before(volume, again_at);
        }
        self.enter(volume, node, Phase::Draining { cause, evidence: None, fence: None });
        self.dirty.insert(volume.clone());
        self.migration_step(volume, node, MigrationStep::Releasing);
    }

    /// Moves an attachment to a phase, and notifies people.
    pub(super) fn enter(&mut self, volume: &VolumeId, node: &NodeId, phase: Phase) {
        let now = self.now;
        let Some(a) = self.core.volumes.get_mut(volume).and_then(|v| v.attachment_mut(node)) else {
            return;
        };
        let after_ms = now.since(a.since);
        let (epoch, name) = (a.epoch, phase.name());
        a.enter(phase, now);
        self.touched.insert(volume.clone());
        self.notice(Notice::Phase {
            volume: volume.clone(),
            node: node.clone(),
            epoch,
            phase: name,
            after_ms,
        });
    }

    /// The RDS no longer allows the host and the proof holds: the attachment is over.
    pub(super) fn finish_attachment(&mut self, volume: &VolumeId, node: &NodeId, mut evidence: Evidence) {
        self.migration_step(volume, node, MigrationStep::Evidence);
        let now = self.now;
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        let Some(at) = record.attachments.iter().position(|a| a.node == *node) else {
            return;
        };
        let Attachment { host_nqn, phase, .. } = record.attachments.remove(at);
        let mut declared = false;
        if let Phase::Draining { cause, .. } = phase {
            declared = matches!(cause, DrainCause::Gone { .. });
            evidence.statement = cause.statement().map(Box::new);
        }
        let mut entry = Fenced::new(node.clone(), host_nqn, evidence.clone(), now);
        // What holds only while the export is off waits for a declaration that takes its place.
        entry.gone = declared && !entry.blocks();
        record.past_evidence.insert(0, evidence.clone());
        record.past_evidence.truncate(VolumeRecord::PAST_EVIDENCE);
        let ended = record.migration.as_mut().filter(|m| m.concerns(node, evidence.epoch)).map(|m| {
            m.end(node, now);
            m.clone()
        });
        record.set_roles();
        self.dirty.insert(volume.clone());
        self.touched.insert(volume.clone());
        // Another volume may wait for room on this node.
        self.touched.extend(self.core.requested_on(node).cloned());
        self.quarantine(volume, entry);
        self.notice(Notice::Detached { volume: volume.clone(), evidence: Box::new(evidence) });
        if let Some(migration) = ended {
            self.migration_notice(volume, migration, MigrationStep::Done);
        }
    }
}

/// The generation of the volume's secret, where it was changed under this attachment.
fn another_secret(record: &VolumeRecord, a: &Attachment) -> Option<Epoch> {
    let secret = record.secret.as_ref().filter(|secret| secret.in_force)?;
    (a.secret? != secret.generation).then_some(secret.generation)
}
