//! When a VM has moved, by the writes that both nodes count; and what the source writes after that.
//!
//! In come counts; out go directives to count, the step Switchover, and notices of late writes. What always holds: nobody is
//! let in, cut off or believed by what is counted. A report counts for the reporter's own grant, on the session on which it
//! was asked for, and only as an answer to what was asked last. When something was, is the moment of the receipt minus an
//! age: an agent's clock says nothing here.

use super::Transition;
use crate::counting::{CountGoal, Counting};
use crate::{
    Attachment, Directive, Effect, Epoch, Migration, MigrationStep, NodeId, Notice, OperationId, Phase,
    SessionId, SwitchoverBy, UnixMillis, VolumeId, VolumeRecord,
};

/// What an agent has counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Count {
    pub(super) writes: u64,
    pub(super) age_ms: u64,
    pub(super) open: bool,
}

impl VolumeRecord {
    /// Whose writes are to be counted now, and for what. Both sides from when the target is ready; after the switchover the
    /// source alone, if it is certain which of the two that is.
    fn count_goals(&self) -> Vec<(NodeId, CountGoal)> {
        let under_way = |m: &&Migration| !m.is_over() && m.took(MigrationStep::TargetReady);
        let Some(migration) = self.migration.as_ref().filter(under_way) else {
            return Vec::new();
        };
        let side = |node: &NodeId| {
            self.attachment(node).filter(|a| a.phase == Phase::Ready && migration.concerns(node, a.epoch))
        };
        let (source, target) = (side(&migration.source), side(&migration.target));
        let switched = migration.took(MigrationStep::Switchover);
        let of_source = match switched {
            false => Some(CountGoal::Switchover),
            true => migration.vm.is_some().then_some(CountGoal::LateWrites),
        };
        let let_go = source.and_then(|a| a.counting.as_ref()).is_some_and(Counting::was_let_go);
        let of_target = match (switched, let_go) {
            (true, _) => None,
            (false, true) => Some(CountGoal::TargetHasIt),
            (false, false) => Some(CountGoal::Switchover),
        };
        let goals = [source.zip(of_source), target.zip(of_target)];
        goals.into_iter().flatten().map(|(a, goal)| (a.node.clone(), goal)).collect()
    }
}

impl Transition<'_> {
    /// Has what is to be counted counted: asked once on a session for each goal. Says whether anything was asked.
    pub(super) fn drive_counts(&mut self, volume: &VolumeId) -> bool {
        let goals = self.core.volumes.get(volume).map(VolumeRecord::count_goals).unwrap_or_default();
        let mut asked = false;
        for (node, goal) in goals {
            asked |= self.ask_to_count(volume, &node, goal);
        }
        asked
    }

    fn ask_to_count(&mut self, volume: &VolumeId, node: &NodeId, goal: CountGoal) -> bool {
        let Some(session) = self.core.nodes.get(node).and_then(|n| n.ready_session()).cloned() else {
            return false;
        };
        let is_asked = |a: &Attachment| {
            a.counting.as_ref().is_some_and(|counting| counting.session == session && counting.goal == goal)
        };
        let record = self.core.volumes.get(volume);
        if record.and_then(|record| record.attachment(node)).is_none_or(is_asked) {
            return false;
        }
        let for_ms = record.and_then(|record| record.migration.as_ref()).map_or(0, |m| m.timeout_ms);
        let operation = self.next_operation();
        let Some(a) = self.attachment_mut(volume, node) else {
            return false;
        };
        a.counting = Some(Counting::begin(operation, session.clone(), goal));
        let directive = Directive::Count { volume: volume.clone(), epoch: a.epoch, for_ms };
        self.effects.push(Effect::Direct { node: node.clone(), session, operation, directive });
        true
    }

    /// An agent has counted.
    pub(super) fn counted(
        &mut self,
        node: &NodeId,
        session: &SessionId,
        operation: OperationId,
        volume: &VolumeId,
        epoch: Epoch,
        count: Count,
    ) {
        if !self.core.nodes.get(node).is_some_and(|n| n.is_session(session)) {
            return;
        }
        let when = UnixMillis(self.now.0.saturating_sub(count.age_ms));
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        let Some(a) = record.attachment_mut(node).filter(|a| a.epoch == epoch) else {
            return;
        };
        let is_answer = |c: &&mut Counting| c.operation == operation && c.session == *session;
        let Some(counting) = a.counting.as_mut().filter(is_answer) else {
            return;
        };
        let first_write = counting.take(count.writes, count.open);
        let goal = counting.goal;
        self.touched.insert(volume.clone());
        let Some(migration) = record.migration.as_ref().filter(|m| m.concerns(node, epoch)) else {
            return;
        };
        let (is_source, is_target) = (*node == migration.source, *node == migration.target);
        match goal {
            CountGoal::Switchover | CountGoal::TargetHasIt if is_target && first_write => {
                self.switched_over(volume, when, SwitchoverBy::Counters);
            }
            CountGoal::TargetHasIt if is_target && count.open => {
                self.switched_over(volume, self.now, SwitchoverBy::Openers);
            }
            CountGoal::LateWrites if is_source && first_write => {
                let target = migration.target.clone();
                self.notice(Notice::LateWrite { volume: volume.clone(), node: node.clone(), target });
            }
            CountGoal::Switchover | CountGoal::TargetHasIt | CountGoal::LateWrites => {}
        }
    }

    fn switched_over(&mut self, volume: &VolumeId, when: UnixMillis, by: SwitchoverBy) {
        let migration = self.core.volumes.get_mut(volume).and_then(|record| record.migration.as_mut());
        let Some(migration) = migration else {
            return;
        };
        if !migration.switch_over(when, by) {
            return;
        }
        let migration = migration.clone();
        self.dirty.insert(volume.clone());
        self.migration_notice(volume, migration, MigrationStep::Switchover);
    }
}

#[cfg(test)]
#[path = "switchover_tests.rs"]
mod tests;
