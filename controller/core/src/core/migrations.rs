//! The record of a volume's live migration: when one begins, its steps, and which of two nodes is which by it.
//!
//! In come grants and what becomes of them; out go [`Migration`]s, roles and notices. What always holds: nothing here
//! lets anybody in, takes anybody down, or proves anything.

use super::Transition;
use crate::{Epoch, Migration, MigrationStep, NodeId, Notice, Phase, Role, VolumeId, VolumeRecord};

impl VolumeRecord {
    /// Another migration begins; the one before is kept for a while.
    pub(super) fn migrates(&mut self, migration: Migration) {
        if let Some(before) = self.migration.replace(migration) {
            self.past_migrations.insert(0, before);
            self.past_migrations.truncate(Self::PAST_MIGRATIONS);
        }
        self.set_roles();
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
        let (now, timeout_ms) = (self.now, self.core.config.migration_timeout_ms);
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        if record.migration.as_ref().is_some_and(|m| !m.is_over()) {
            return;
        }
        let migration = Migration::begin(source, target, now, timeout_ms);
        record.migrates(migration.clone());
        self.migration_notice(volume, migration, MigrationStep::Granted);
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
