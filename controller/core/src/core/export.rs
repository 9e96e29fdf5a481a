//! What is asked of the RDS for a volume as a whole: the export off and on, the secret in force.
//!
//! While nobody has a volume its export is off: it goes off with the last host (`progress`), and comes back with the next
//! one that is let in. What is asked for here is an obligation that the record holds, so it is met whatever becomes of
//! the fence that brought it about: an export that may be off comes back as soon as somebody needs it and nothing
//! keeps it off, a secret that was chosen is put in force, also
//! by the next controller. One request at a time for each volume.

use super::Transition;
use crate::rung_result::RungResult;
use crate::volume::VolumeRequest;
use crate::{
    DrainCause, Epoch, FenceStep, NodeId, OperationId, Phase, RdsFailure, RdsRequest, RdsTask, Refusal,
    Trouble, VolumeId, VolumeRecord,
};

impl Transition<'_> {
    /// Asks the RDS for the next thing that the volume needs as a whole. Says whether it did.
    pub(super) fn drive_export(&mut self, volume: &VolumeId) -> bool {
        let Some(record) = self.core.volumes.get(volume) else {
            return false;
        };
        let later = record.retry_at.is_some_and(|at| self.now < at);
        if record.asked.is_some() || later || !self.was_looked_up(volume) {
            return false;
        }
        let Some(asked) = next(record, self.core.is_seen_to_drain(volume)) else {
            return false;
        };
        let request = |volume| match &asked {
            VolumeRequest::Hide { .. } => RdsRequest::Hide { volume },
            VolumeRequest::Show => RdsRequest::Show { volume },
            VolumeRequest::SetSecret(generation) => RdsRequest::SetSecret { volume, generation: *generation },
        };
        let operation = self.ask_rds(None, request, volume);
        if let Some(record) = self.core.volumes.get_mut(volume) {
            if matches!(asked, VolumeRequest::Hide { .. }) {
                // Durable before it is asked: whoever comes after this process knows that it may be off.
                (record.hidden, record.hidden_heard) = (true, false);
            }
            record.asked = Some((operation, asked));
        }
        self.dirty.insert(volume.clone());
        true
    }

    /// The RDS's answer about the volume as a whole.
    pub(super) fn export_done(
        &mut self,
        volume: &VolumeId,
        operation: OperationId,
        result: Result<(), RdsFailure>,
    ) {
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        let Some((_, asked)) = record.asked.take_if(|(op, _)| *op == operation) else {
            return;
        };
        record.retry_at = None;
        self.touched.insert(volume.clone());
        match asked {
            VolumeRequest::Hide { of, fresh } => self.hide_done(volume, &of, fresh, result),
            VolumeRequest::Show => self.show_done(volume, result),
            VolumeRequest::SetSecret(generation) => self.set_secret_done(volume, generation, result),
        }
    }

    fn hide_done(&mut self, volume: &VolumeId, of: &[NodeId], fresh: bool, result: Result<(), RdsFailure>) {
        let drained = fresh && result.is_ok();
        if !(drained && self.core.config.target.export_drains) {
            self.cut_without_drain(volume);
        }
        self.off_heard(volume, drained);
        match result {
            Ok(()) => {
                for node in of {
                    self.fence_cut(volume, node, drained);
                }
            }
            Err(error) if unknown(&error) => self.volume_later(volume, of, RdsTask::ExportOff, &error),
            Err(error) => {
                let why = RungResult::Rds(FenceStep::Hide, error);
                for node in of {
                    self.rung_failed(volume, node, FenceStep::Hide, &why);
                }
            }
        }
    }

    /// The export went off with the last host. Who was found to hold the volume meanwhile was cut, too.
    pub(super) fn closed(&mut self, volume: &VolumeId, drained: bool) {
        if !(drained && self.core.config.target.export_drains) {
            self.cut_without_drain(volume);
        }
        self.off_heard(volume, drained);
    }

    /// What is known of the export, after it was asked to go off. `off`: the RDS has said so, of this very request.
    fn off_heard(&mut self, volume: &VolumeId, off: bool) {
        let target = &self.core.config.target;
        let by_the_list = target.acl && target.export_cuts;
        if let Some(record) = self.core.volumes.get_mut(volume) {
            record.hidden_heard = off;
            if off && by_the_list {
                record.nobody_else_is_in();
            }
        }
    }

    /// The sessions of everybody were cut, and nothing has waited for what they had sent.
    fn cut_without_drain(&mut self, volume: &VolumeId) {
        let Some(record) = self.core.volumes.get(volume) else {
            return;
        };
        let used = record.attachments.iter().filter(|a| a.may_have_written()).map(|a| a.node.clone());
        for node in used.collect::<Vec<_>>() {
            if !self.is_aborted(volume, &node) {
                self.may_still_land(volume, &node);
            }
        }
    }

    fn show_done(&mut self, volume: &VolumeId, result: Result<(), RdsFailure>) {
        let everybody = self.core.volumes.get(volume).map(VolumeRecord::holders).unwrap_or_default();
        match result {
            Ok(()) => {
                if let Some(record) = self.core.volumes.get_mut(volume) {
                    (record.hidden, record.hidden_heard) = (false, false);
                    self.dirty.insert(volume.clone());
                }
                self.brought_on(volume);
            }
            Err(error) => {
                self.may_be_on_in_part(volume);
                self.volume_later(volume, &everybody, RdsTask::ExportOn, &error);
            }
        }
    }

    /// The RDS was asked to bring the export on and did not say that it has: it may have done so at one portal and not at
    /// another. What was heard of it before counts no more: to take off what is off in part may wait for nothing.
    pub(super) fn may_be_on_in_part(&mut self, volume: &VolumeId) {
        if let Some(record) = self.core.volumes.get_mut(volume) {
            record.hidden_heard = false;
        }
    }

    fn set_secret_done(&mut self, volume: &VolumeId, generation: Epoch, result: Result<(), RdsFailure>) {
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        // Another one was chosen meanwhile: it is asked for next, and says for itself how that went.
        if record.secret.as_ref().is_none_or(|secret| secret.generation != generation) {
            return;
        }
        let Err(error) = result else {
            if let Some(secret) = &mut record.secret {
                secret.in_force = true;
                self.dirty.insert(volume.clone());
            }
            return;
        };
        let everybody = record.holders();
        let granting: Vec<NodeId> = record
            .attachments
            .iter()
            .filter(|a| a.phase == Phase::Granting)
            .map(|a| a.node.clone())
            .collect();
        self.volume_later(volume, &everybody, RdsTask::SetSecret, &error);
        for node in granting {
            self.refuse_publishes(volume, Some(&node), |volume, node| Refusal::Rds {
                volume,
                node,
                error: error.clone(),
            });
            self.begin_drain(volume, &node, DrainCause::Rollback);
        }
        if !unknown(&error) {
            let why = RungResult::Rds(FenceStep::SetSecret, error);
            for node in everybody {
                self.rung_failed(volume, &node, FenceStep::SetSecret, &why);
            }
        }
    }

    /// Nothing is concluded; it is asked again after a while.
    fn volume_later(&mut self, volume: &VolumeId, about: &[NodeId], task: RdsTask, error: &RdsFailure) {
        let retry_at = self.now.plus(self.core.config.retry_ms);
        if let Some(record) = self.core.volumes.get_mut(volume) {
            record.retry_at = Some(retry_at);
        }
        for node in about {
            self.trouble(volume, node, Trouble::Rds { task, error: error.clone() });
        }
    }
}

/// What the RDS did is not known, or it did not even look at what was asked. That it does not list the volume says
/// nothing of the volume: a list may lack it for a moment, and it comes back with the hosts and the export it had.
pub(super) fn unknown(error: &RdsFailure) -> bool {
    matches!(error, RdsFailure::Unreachable(_) | RdsFailure::Unauthorised(_) | RdsFailure::NotFound(_))
}

fn next(record: &VolumeRecord, fresh: bool) -> Option<VolumeRequest> {
    let of: Vec<NodeId> = record
        .attachments
        .iter()
        .filter(|a| record.fence(&a.node).is_some_and(|f| f.step == FenceStep::Hide))
        .map(|a| a.node.clone())
        .collect();
    if !of.is_empty() {
        return Some(VolumeRequest::Hide { of, fresh });
    }
    if record.hidden && record.needs_the_export() && !record.kept_hidden_by_a_fence() {
        return Some(VolumeRequest::Show);
    }
    let secret =
        record.secret.as_ref().filter(|secret| !secret.in_force && !record.attachments.is_empty())?;
    Some(VolumeRequest::SetSecret(secret.generation))
}
