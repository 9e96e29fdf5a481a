//! The next thing to ask of the RDS or of an agent, for each attachment, read off its state alone. Asking is
//! idempotent: what is asked for already and not answered is not asked again, unless the agent has a new session.

use super::Step;
use super::requests::grant_of;
use crate::volume::Pending;
use crate::{
    Directive, DrainCause, Drained, Effect, Evidence, MigrationStep, NodeId, Notice, OperationId, Phase,
    RdsRequest, Role, SessionId, Source, Verdict, VolumeId,
};

/// What an attachment needs next.
enum Next {
    Allow,
    Attach,
    NeverAllowed,
    Detach,
    Deny,
}

impl Step<'_> {
    /// Lets every attachment of a volume go on. Says whether any did.
    pub(super) fn drive(&mut self, volume: &VolumeId) -> bool {
        let holders = self.core.volumes.get(volume).map(crate::VolumeRecord::holders).unwrap_or_default();
        // Every one of them has to be driven: no short circuit.
        holders.iter().filter(|node| self.drive_one(volume, node)).count() > 0
    }

    fn drive_one(&mut self, volume: &VolumeId, node: &NodeId) -> bool {
        let Some(next) = self.next(volume, node) else {
            return false;
        };
        match next {
            Next::Allow => self.ask_rds(volume, node, true),
            Next::Deny => self.ask_rds(volume, node, false),
            Next::Attach | Next::Detach => return self.ask_agent(volume, node, matches!(next, Next::Attach)),
            Next::NeverAllowed => self.never_allowed(volume, node),
        }
        true
    }

    fn next(&self, volume: &VolumeId, node: &NodeId) -> Option<Next> {
        let attachment = self.core.volumes.get(volume)?.attachment(node)?;
        if attachment.pending.is_rds() || attachment.retry_at.is_some_and(|at| self.now < at) {
            return None;
        }
        match &attachment.phase {
            Phase::Granting => Some(Next::Allow),
            Phase::Connecting => Some(Next::Attach),
            Phase::Ready | Phase::Ghost => None,
            Phase::Draining { evidence: None, .. } if !attachment.directed => Some(Next::NeverAllowed),
            Phase::Draining { evidence: None, .. } => Some(Next::Detach),
            Phase::Draining { evidence: Some(e), .. } => {
                (e.verdict(self.now) == Verdict::Fenced).then_some(Next::Deny)
            }
        }
    }

    fn ask_rds(&mut self, volume: &VolumeId, node: &NodeId, allow: bool) {
        let operation = self.next_operation(volume, node);
        let Some(a) = self.core.volumes.get_mut(volume).and_then(|v| v.attachment_mut(node)) else {
            return;
        };
        let (volume, host_nqn) = (volume.clone(), a.host_nqn.clone());
        let request = if allow {
            a.pending = Pending::Allow(operation);
            RdsRequest::Allow { volume, host_nqn }
        } else {
            a.pending = Pending::Deny(operation);
            RdsRequest::Deny { volume, host_nqn }
        };
        self.effects.push(Effect::Rds { operation, request });
    }

    /// Tells the agent, unless it was told on this very session. The operation keeps its number over sessions, so
    /// that an agent which is still at it joins the two.
    fn ask_agent(&mut self, volume: &VolumeId, node: &NodeId, attach: bool) -> bool {
        let Some(session) = self.core.nodes.get(node).and_then(|n| n.ready_session()).cloned() else {
            return false;
        };
        let pending =
            self.core.volumes.get(volume).and_then(|v| v.attachment(node)).map(|a| a.pending.clone());
        let operation = match pending {
            Some(Pending::Agent(_, told)) if told == session => return false,
            Some(Pending::Agent(operation, _)) => operation,
            _ => self.next_operation(volume, node),
        };
        self.direct(volume, node, session, operation, attach);
        true
    }

    fn direct(
        &mut self,
        volume: &VolumeId,
        node: &NodeId,
        session: SessionId,
        operation: OperationId,
        attach: bool,
    ) {
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        let Some(a) = record.attachment_mut(node) else {
            return;
        };
        a.pending = Pending::Agent(operation, session.clone());
        a.directed |= attach;
        let epoch = a.epoch;
        let directive = match record.attachment(node) {
            Some(a) if attach => Directive::Attach { grant: Box::new(grant_of(record, a)) },
            _ => Directive::Detach { volume: volume.clone(), epoch },
        };
        self.effects.push(Effect::Direct { node: node.clone(), session, operation, directive });
    }

    fn never_allowed(&mut self, volume: &VolumeId, node: &NodeId) {
        self.prove(volume, node, Source::NeverAllowed, Drained::NeverHandedOut);
    }

    /// Takes note of a proof about an attachment that is being taken down.
    pub(super) fn prove(&mut self, volume: &VolumeId, node: &NodeId, source: Source, drained: Drained) {
        let now = self.now;
        let Some(a) = self.core.volumes.get_mut(volume).and_then(|v| v.attachment_mut(node)) else {
            return;
        };
        let epoch = a.epoch;
        if let Phase::Draining { evidence, .. } = &mut a.phase {
            *evidence = Some(Evidence { node: node.clone(), epoch, source, drained, at: now });
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
        if a.phase.is_draining() {
            a.retry_at = None;
            return;
        }
        // An answer of the RDS has to be waited for, so that the next request to it comes after; one of the agent
        // does not: its directives are carried out in order, and the answer to the older one changes nothing.
        let abandoned = if a.pending.is_rds() { Pending::Nothing } else { std::mem::take(&mut a.pending) };
        self.forget_operation(&abandoned);
        self.enter(volume, node, Phase::Draining { cause, evidence: None, fence: None });
        self.dirty.insert(volume.clone());
        self.migration_step(volume, node, MigrationStep::Releasing);
    }

    /// Moves an attachment to a phase, and tells people.
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
    pub(super) fn finish_attachment(&mut self, volume: &VolumeId, node: &NodeId, evidence: Evidence) {
        self.migration_step(volume, node, MigrationStep::Evidence);
        let now = self.now;
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        record.attachments.retain(|a| a.node != *node);
        if let Some(first) = record.attachments.first_mut() {
            first.role = Role::Primary;
        }
        record.past_evidence.insert(0, evidence.clone());
        record.past_evidence.truncate(crate::VolumeRecord::PAST_EVIDENCE);
        let ended = record.migration.as_mut().filter(|m| m.concerns(node, evidence.epoch)).map(|m| {
            m.end(node, now);
            m.clone()
        });
        self.dirty.insert(volume.clone());
        self.touched.insert(volume.clone());
        self.notice(Notice::Detached { volume: volume.clone(), evidence: Box::new(evidence) });
        if let Some(migration) = ended {
            self.notice(Notice::Migration {
                volume: volume.clone(),
                migration: Box::new(migration),
                step: MigrationStep::Done,
            });
        }
    }

    /// Records a step of the running migration, if the node is a side of it.
    pub(super) fn migration_step(&mut self, volume: &VolumeId, node: &NodeId, step: MigrationStep) {
        let now = self.now;
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        let Some(epoch) = record.attachment(node).map(|a| a.epoch) else {
            return;
        };
        let Some(migration) = record.migration.as_mut().filter(|m| m.concerns(node, epoch)) else {
            return;
        };
        let of_target = matches!(step, MigrationStep::TargetConnecting | MigrationStep::TargetReady);
        if (of_target && *node != migration.target) || !migration.record(step, now) {
            return;
        }
        let migration = Box::new(migration.clone());
        self.dirty.insert(volume.clone());
        self.notice(Notice::Migration { volume: volume.clone(), migration, step });
    }
}
