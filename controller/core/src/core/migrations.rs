//! The record of a volume's live migration: when one begins, its steps, and which of two nodes is which by it.
//!
//! In come grants and what becomes of them, and what KubeVirt reports of the VM; out go [`Migration`]s, roles and notices.
//! What always holds: nothing here lets anybody in, takes anybody down, or proves anything. A report that is late, doubled
//! or false changes the record at most, and a report of what has ended changes nothing.

use super::Transition;
use crate::{
    Access, Attachment, Epoch, Migration, MigrationStep, NodeId, Notice, Phase, Role, Side, Taken,
    VmMigration, VolumeId, VolumeRecord,
};

impl VolumeRecord {
    /// Another migration begins; the one before is kept for a while. Where only the target of that was off, and KubeVirt goes
    /// on with it, this is another try of the same: what was reported then is not reported again.
    pub(super) fn migrates(&mut self, mut migration: Migration) {
        if let Some(before) = self.migration.take() {
            let same_way = (&before.source, &before.target) == (&migration.source, &migration.target);
            if migration.vm.is_none() && same_way && before.left == Some(Side::Target) {
                migration.vm = before.vm.clone().filter(|vm| !vm.stage.is_final());
            }
            self.past_migrations.insert(0, before);
            self.past_migrations.truncate(Self::PAST_MIGRATIONS);
        }
        self.migration = Some(migration);
        // What was counted was about the one before.
        self.attachments.iter_mut().for_each(|a| (a.counting, a.verified) = (None, None));
        self.set_roles();
    }

    /// Source and target by a report, if both have the volume.
    fn sides(&self, seen: &VmMigration) -> Option<(&Attachment, &Attachment)> {
        let target = seen.target.as_ref().filter(|target| **target != seen.source)?;
        // Who is on its way out has to be let in again first: that is another grant.
        let target = self.attachment(target).filter(|a| !a.phase.is_draining())?;
        let sides = (self.attachment(&seen.source)?, target);
        (self.spec.access == Access::RwxBlock).then_some(sides)
    }

    /// Whether this migration of a VM was followed by another one.
    fn is_past(&self, seen: &VmMigration) -> bool {
        let is = |m: &Migration| m.vm.as_ref().is_some_and(|vm| vm.uid == seen.uid);
        self.past_migrations.iter().any(is) && !self.migration.as_ref().is_some_and(is)
    }

    /// Who is the source by the migration under way, where one is; else who had it first.
    pub(crate) fn set_roles(&mut self) {
        let source = self.migration.as_ref().filter(|m| !m.is_over()).map(|m| &m.source);
        let source = source.and_then(|source| self.attachments.iter().position(|a| a.node == *source));
        for (at, attachment) in self.attachments.iter_mut().enumerate() {
            attachment.role = if at == source.unwrap_or(0) { Role::Primary } else { Role::MigrationTarget };
        }
    }
}

impl Transition<'_> {
    /// A second node was granted the volume.
    pub(super) fn begin_migration(
        &mut self,
        volume: &VolumeId,
        source: (NodeId, Epoch),
        target: (NodeId, Epoch),
    ) {
        let now = self.now;
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        if record.migration.as_ref().is_some_and(|m| !m.is_over()) {
            return;
        }
        record.migrates(Migration::begin(source, target, now, record.spec.migration_timeout_ms));
        if let Some(migration) = record.migration.clone() {
            self.migration_notice(volume, migration, MigrationStep::Granted);
        }
    }

    /// What KubeVirt reports of a volume's VM. A report replaces the one before it that could not be taken in yet.
    pub(super) fn migration_seen(&mut self, volume: VolumeId, vm: Option<Box<VmMigration>>) {
        if let Some(record) = self.core.volumes.get_mut(&volume) {
            record.reported = vm.filter(|seen| seen.is_bounded());
            self.touched.insert(volume);
        }
    }

    /// Lets the record of a migration go on: by what was reported, and by time. Says whether anything came of it.
    pub(super) fn drive_migration(&mut self, volume: &VolumeId) -> bool {
        self.take_report(volume) | self.time_out(volume)
    }

    /// Both nodes have had the volume for longer than a migration may take. People are notified; nobody is cut.
    fn time_out(&mut self, volume: &VolumeId) -> bool {
        let now = self.now;
        let migration = self.core.volumes.get_mut(volume).and_then(|record| record.migration.as_mut());
        let Some(migration) = migration else {
            return false;
        };
        if !migration.time_out(now) {
            return false;
        }
        let migration = migration.clone();
        self.dirty.insert(volume.clone());
        self.migration_notice(volume, migration, MigrationStep::TimedOut);
        true
    }

    /// Takes in what KubeVirt has reported, as soon as both nodes have the volume. Says whether anything came of it.
    fn take_report(&mut self, volume: &VolumeId) -> bool {
        let now = self.now;
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return false;
        };
        let Some(seen) = record.reported.take().filter(|seen| !record.is_past(seen)) else {
            return false;
        };
        let steps = record.migration.as_ref().map_or(0, |migration| migration.steps.len());
        let taken = match &mut record.migration {
            Some(migration) => migration.take(&seen, now),
            None if seen.stage.is_final() => Taken::Other,
            None => Taken::Successor,
        };
        match taken {
            Taken::Same => false,
            Taken::Attributed | Taken::Advanced => {
                self.report_taken(volume, steps);
                true
            }
            Taken::Swapped | Taken::Successor if record.sides(&seen).is_some() => {
                self.next_migration(volume, &seen);
                true
            }
            Taken::Swapped | Taken::Successor | Taken::Other => {
                // The target may not have it yet, or a side of the migration before may have it still.
                let comes = !seen.stage.is_final() && record.attachment(&seen.source).is_some();
                record.reported = comes.then_some(seen);
                false
            }
        }
    }

    /// The record says what it did not say before; `steps`: how many it had.
    fn report_taken(&mut self, volume: &VolumeId, steps: usize) {
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        record.set_roles();
        let Some(migration) = record.migration.clone() else {
            return;
        };
        self.dirty.insert(volume.clone());
        match migration.steps.get(steps).map(|taken| taken.step) {
            Some(step) => self.migration_notice(volume, migration, step),
            None => {
                let (volume, migration) = (volume.clone(), Box::new(migration));
                self.notice(Notice::MigrationReported { volume, migration });
            }
        }
    }

    /// KubeVirt reports another migration than the record's: that one is over, whoever has the volume still. One of which
    /// it has said nothing was a guess of which node is which, and no migration.
    fn next_migration(&mut self, volume: &VolumeId, seen: &VmMigration) {
        let now = self.now;
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        let Some((source, target)) = record.sides(seen) else {
            return;
        };
        let side = |a: &Attachment| (a.node.clone(), a.epoch);
        let mut next = Migration::begin(side(source), side(target), now, record.spec.migration_timeout_ms);
        if target.phase == Phase::Ready {
            next.record(MigrationStep::TargetReady, now);
        }
        next.take(seen, now);
        record.migration.take_if(|guess| guess.vm.is_none() && !guess.is_over());
        let ended = record.migration.as_mut().filter(|before| !before.is_over()).map(|before| {
            before.give_way(seen, now);
            before.clone()
        });
        record.migrates(next.clone());
        self.dirty.insert(volume.clone());
        if let Some(ended) = ended {
            self.migration_notice(volume, ended, MigrationStep::Done);
        }
        self.migration_notice(volume, next, MigrationStep::Granted);
    }

    /// An agent has said what its kernel has of a volume.
    pub(super) fn observed_for_migration(&mut self, volume: &VolumeId, node: &NodeId) {
        let observed = self.core.nodes.get(node).and_then(|n| n.observed.get(volume));
        let grant = self.core.volumes.get(volume).and_then(|record| record.attachment(node));
        let connected = observed.zip(grant).is_some_and(|(o, a)| {
            a.phase == Phase::Connecting && o.epoch == Some(a.epoch) && !o.ended && o.live_paths > 0
        });
        if connected {
            self.migration_step(volume, node, MigrationStep::TargetConnected);
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
        let of_target = matches!(
            step,
            MigrationStep::TargetConnecting | MigrationStep::TargetConnected | MigrationStep::TargetReady
        );
        if (of_target && *node != migration.target) || !migration.record(step, now) {
            return;
        }
        let migration = migration.clone();
        self.dirty.insert(volume.clone());
        self.migration_notice(volume, migration, step);
    }

    pub(super) fn migration_notice(&mut self, volume: &VolumeId, migration: Migration, step: MigrationStep) {
        let migration = Box::new(migration);
        self.notice(Notice::Migration { volume: volume.clone(), migration, step });
    }
}

#[cfg(test)]
#[path = "migrations_tests.rs"]
mod tests;
