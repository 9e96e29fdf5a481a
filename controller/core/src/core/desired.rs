//! Who is to have which volume, as whoever uses volumes has it written down, held against the records. Records may be lost
//! while that is not: so after a start whoever is to have a volume, and is on no record, counts as able to write until it is
//! proven that it cannot.
//!
//! In comes what is [`Desired`], once, at a start; out go attachments like those of hosts that are found on a list
//! (`rds_lists`), as soon as it is known which host the node is. Until then whoever else wants the volume waits for the node,
//! or for a person who declares it gone, which the volume's record keeps.

use std::collections::{BTreeMap, BTreeSet};

use super::requests::RequestKind;
use super::{Core, Transition};
use crate::{
    Access, Attachment, DrainCause, Drained, Epoch, Evidence, HostNqn, ListDoubt, Migration, MinFence,
    NodeId, Notice, Phase, Rung, Source, Trouble, UnixMillis, VolumeId, VolumeRecord, VolumeSpec, Wait,
};

/// A node that is to have a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Desired {
    /// The volume.
    pub volume: VolumeId,
    /// The node.
    pub node: NodeId,
    /// How many nodes may have the volume, on any doubt one.
    pub access: Access,
    /// The weakest fence that suffices.
    pub min_fence: MinFence,
    /// How long a live migration of the volume is to take at most.
    pub migration_timeout_ms: u64,
    /// A second node is to get the volume only for a live migration that is known.
    pub require_migration: bool,
    /// Since when.
    pub since: UnixMillis,
    /// It was answered as attached: there was a grant. Else there may have been one.
    pub attached: bool,
    /// The grant that was answered.
    pub epoch: Option<Epoch>,
}

/// What of it no record has, and no host is known for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Unheard {
    of: BTreeMap<VolumeId, BTreeMap<NodeId, Desired>>,
    /// Since when who is to have such a volume, known or not.
    since: BTreeMap<VolumeId, BTreeMap<NodeId, UnixMillis>>,
    /// What such a node wrote before a person declared it gone may land until then.
    bounds: BTreeMap<VolumeId, UnixMillis>,
}

impl Unheard {
    /// Nodes other than this one that may write to a volume.
    fn beside<'a>(&'a self, volume: &VolumeId, node: Option<&'a NodeId>) -> impl Iterator<Item = &'a NodeId> {
        self.of.get(volume).into_iter().flat_map(|nodes| nodes.keys()).filter(move |n| node != Some(*n))
    }
}

/// What its owner demands of a volume that nobody has described.
fn demand(spec: &mut VolumeSpec, desired: &Desired) {
    spec.min_fence = spec.min_fence.max(desired.min_fence);
    spec.migration_timeout_ms = desired.migration_timeout_ms;
    spec.require_migration |= desired.require_migration;
}

/// Whether a record says all that is to be said of it: the node is on it, or what it was granted is over.
fn is_told_by(desired: &Desired, record: Option<&VolumeRecord>) -> bool {
    let Some(record) = record else { return false };
    // Who was cut off may have been let in again since, and the record be older than that.
    let fenced = |epoch| record.fenced.iter().any(|f| f.node == desired.node && f.epoch >= epoch);
    let mut past = record.past_evidence.iter().filter(|e| e.node == desired.node);
    let over = match desired.epoch {
        Some(epoch) => fenced(epoch) || past.any(|e| e.epoch >= epoch),
        // Nobody knows which grant that was: what counts is a person's declaration since, with or without a fence.
        None => {
            let declared = |e: &Evidence, gone| {
                let by_a_person =
                    matches!(e.source, Source::NodeGone { .. }) || e.statement.is_some() || gone;
                by_a_person && e.at >= desired.since
            };
            let mut fenced = record.fenced.iter().filter(|f| f.node == desired.node);
            past.any(|e| declared(e, false)) || fenced.any(|f| declared(&f.evidence, f.gone))
        }
    };
    // A grant is on record before anything is asked for it, so without an answer there was none.
    !desired.attached || record.attachment(&desired.node).is_some() || over
}

/// What a node wrote before it was declared gone may land until then, as the record has it.
fn declared_bound(record: Option<&VolumeRecord>) -> Option<UnixMillis> {
    let bounds = record?.past_evidence.iter().filter(|e| is_declared(e)).filter_map(|e| match e.drained {
        Drained::Bound { until } => Some(until),
        _ => None,
    });
    bounds.max()
}

/// Whether a person's declaration stands there by itself: what ended an attachment names the person beside it, and was
/// drained before.
fn is_declared(evidence: &Evidence) -> bool {
    matches!(evidence.source, Source::NodeGone { .. }) && evidence.statement.is_none()
}

/// What a declared node wrote counts as landed by this process's clock: from its start on, for the one before may have had
/// another.
pub(super) fn declared_bound_again(record: &mut VolumeRecord, bound: UnixMillis) {
    for evidence in record.past_evidence.iter_mut().filter(|e| is_declared(e)) {
        if let Drained::Bound { until } = &mut evidence.drained {
            *until = bound;
        }
    }
}

impl Core {
    /// What a request waits for because a node that may write is not known yet.
    pub(super) fn awaits_unheard(
        &self,
        volume: &VolumeId,
        kind: &RequestKind,
        now: UnixMillis,
    ) -> Option<Wait> {
        let nodes: Vec<NodeId> = match kind {
            RequestKind::Publish { node, spec, .. } => {
                let record = self.volumes.get(volume);
                let others = record.map_or(0, |r| r.others(node).count());
                let limit = record.map_or(spec.access, |r| r.spec.access).limit();
                let unheard: Vec<_> = self.unheard.beside(volume, Some(node)).cloned().collect();
                if others + unheard.len() < limit || others >= limit { Vec::new() } else { unheard }
            }
            RequestKind::Unpublish { node: Some(node) } | RequestKind::Fence { node } => {
                self.unheard.beside(volume, None).filter(|n| *n == node).cloned().collect()
            }
            RequestKind::Unpublish { node: None } => self.unheard.beside(volume, None).cloned().collect(),
        };
        let doubt = ListDoubt::Desired;
        if !nodes.is_empty() {
            return Some(Wait::Reports { volume: volume.clone(), nodes, doubt });
        }
        let until = self.unheard.bounds.get(volume).copied().max(declared_bound(self.volumes.get(volume)));
        let until = until.filter(|until| now < *until);
        let bound = until.map(|until| Wait::ListDrainBound { volume: volume.clone(), until, doubt });
        bound.or_else(|| self.awaits_unclear(volume, kind, now))
    }

    /// The record of a volume that is only found. What its owner demands is known if somebody is to have it.
    pub(super) fn found_volume(&self, volume: &VolumeId) -> VolumeRecord {
        let mut record = VolumeRecord::unknown(volume.clone());
        let desired = self.unheard.of.get(volume).into_iter().flat_map(BTreeMap::values);
        desired.for_each(|desired| demand(&mut record.spec, desired));
        record
    }

    /// Nodes that are to have a volume and are on no record of it: which hosts they are, nobody knows yet.
    #[must_use]
    pub fn unheard_holders(&self, volume: &VolumeId) -> BTreeSet<NodeId> {
        self.unheard.beside(volume, None).cloned().collect()
    }

    /// How many nodes may write to a volume beside those on its record.
    pub(super) fn unheard_of(&self, volume: &VolumeId) -> usize {
        self.unheard.beside(volume, None).count()
    }

    /// What a node is to have, and is known by.
    pub(super) fn is_to_have(&self, node: &NodeId) -> Option<&VolumeId> {
        self.unheard.of.iter().find(|(_, nodes)| nodes.contains_key(node)).map(|(volume, _)| volume)
    }
}

impl Transition<'_> {
    /// Takes in who is to have what, oldest first.
    pub(super) fn desired(&mut self, mut all: Vec<Desired>) {
        all.sort_by(|a, b| (a.since, &a.node).cmp(&(b.since, &b.node)));
        self.say_where_too_many(&all);
        for Desired { volume, node, .. } in &all {
            self.is_published_by(volume, node);
        }
        let untold = |d: &&Desired| !is_told_by(d, self.core.volumes.get(&d.volume));
        let untold: Vec<Desired> = all.iter().filter(untold).cloned().collect();
        let volumes: BTreeSet<&VolumeId> = untold.iter().map(|d| &d.volume).collect();
        for desired in all.iter().filter(|d| volumes.contains(&d.volume)) {
            let nodes = self.core.unheard.since.entry(desired.volume.clone()).or_default();
            nodes.insert(desired.node.clone(), desired.since);
        }
        for desired in untold {
            let host = self.core.registry.get(&desired.node).map(|kept| kept.identity.host_nqn.clone());
            match host {
                Some(host_nqn) => self.adopt_desired(desired, host_nqn),
                None => {
                    self.touched.insert(desired.volume.clone());
                    let nodes = self.core.unheard.of.entry(desired.volume.clone()).or_default();
                    nodes.insert(desired.node.clone(), desired);
                }
            }
        }
        self.forget_since();
    }

    /// The orchestrator has it there, even if a record that is older says that it is there for tickets alone.
    fn is_published_by(&mut self, volume: &VolumeId, node: &NodeId) {
        if let Some(a) = self.attachment_mut(volume, node).filter(|a| !a.wanted.csi) {
            a.wanted.csi = true;
            self.dirty.insert(volume.clone());
        }
    }

    /// Whoever is to have a volume stays; of more than may have any nobody is let in until somebody takes one away.
    fn say_where_too_many(&mut self, all: &[Desired]) {
        let mut wanted: BTreeMap<&VolumeId, BTreeSet<&NodeId>> = BTreeMap::new();
        for Desired { volume, node, .. } in all {
            wanted.entry(volume).or_default().insert(node);
        }
        for (volume, nodes) in wanted.into_iter().filter(|(_, n)| n.len() > Access::RwxBlock.limit()) {
            let nodes = nodes.into_iter().cloned().collect();
            self.notice(Notice::TooManyDesired { volume: volume.clone(), nodes });
        }
    }

    /// A node is heard: it is known which host it is.
    pub(super) fn desired_heard(&mut self, node: &NodeId, host_nqn: &HostNqn) {
        for desired in self.take_unheard(node, |_| true) {
            self.adopt_desired(desired, host_nqn.clone());
        }
        self.forget_since();
    }

    /// What nobody of is waited for any more has its record.
    fn forget_since(&mut self) {
        let Unheard { of, since, .. } = &mut self.core.unheard;
        since.retain(|volume, _| of.contains_key(volume));
    }

    /// A person has declared the node gone: what it wrote before may still land for a while. The record says so, and is
    /// durable before the person is answered: at the next start the node is to have the volume as before.
    pub(super) fn desired_gone(&mut self, node: &NodeId, by: &str, reason: &str) {
        let (now, until) = (self.now, self.now.plus(self.core.config.drain_bound_ms));
        // Where the volume demands a fence, it is no proof.
        let suffices = |desired: &Desired| Rung::NodeGone.suffices_for(desired.min_fence);
        for desired in self.take_unheard(node, suffices) {
            let epoch = desired.epoch.unwrap_or_else(|| self.next_epoch());
            let source = Source::NodeGone { by: by.to_owned(), reason: reason.to_owned() };
            let drained = Drained::Bound { until };
            let evidence = Evidence { node: node.clone(), epoch, source, drained, at: now, statement: None };
            let record = self.record_of(&desired);
            record.past_evidence.insert(0, evidence);
            record.past_evidence.truncate(VolumeRecord::PAST_EVIDENCE);
            self.dirty.insert(desired.volume.clone());
            self.touched.insert(desired.volume.clone());
            self.core.unheard.bounds.insert(desired.volume, until);
        }
        self.forget_since();
    }

    fn take_unheard(&mut self, node: &NodeId, which: impl Fn(&Desired) -> bool) -> Vec<Desired> {
        let of = &mut self.core.unheard.of;
        let chosen = |nodes: &mut BTreeMap<NodeId, Desired>| {
            if nodes.get(node).is_some_and(&which) { nodes.remove(node) } else { None }
        };
        let taken = of.values_mut().filter_map(chosen).collect();
        of.retain(|_, nodes| !nodes.is_empty());
        taken
    }

    /// The record of a volume that a node is to have.
    fn record_of(&mut self, desired: &Desired) -> &mut VolumeRecord {
        let Desired { volume, node, access, .. } = desired;
        let unknown = || VolumeRecord::unknown(volume.clone());
        let record = self.core.volumes.entry(volume.clone()).or_insert_with(unknown);
        if record.spec.subsystem_nqn.is_none() {
            let before = record.spec.clone();
            demand(&mut record.spec, desired);
            if record.spec != before {
                self.dirty.insert(volume.clone());
            }
        }
        // What the holders were granted under counts; of a volume that was only found nobody has said it.
        // Of two that contradict each other the narrower.
        let narrower = record.attachments.is_empty() || *access == Access::Rwo;
        if record.spec.subsystem_nqn.is_none() && narrower && record.attachment(node).is_none() {
            record.spec.access = *access;
        }
        record
    }

    /// From now on the node counts as able to write.
    fn adopt_desired(&mut self, desired: Desired, host_nqn: HostNqn) {
        let (epoch, now) = (self.next_epoch(), self.now);
        let lands_until = now.plus(self.core.config.drain_bound_ms);
        let record = self.record_of(&desired);
        let Desired { volume, node, .. } = desired;
        if record.attachment(&node).is_some() {
            // A list has shown its host before.
            return self.begin_desired_migration(&volume);
        }
        // That it was cut off before is over: it was let in again since. A Revoke would take what it rightly has.
        record.fenced.retain(|f| f.node != node || f.host_nqn != host_nqn);
        let mut stray = Attachment::found(node.clone(), host_nqn, epoch, Phase::Stray, now);
        stray.may_land_until = Some(lands_until);
        (stray.stray, stray.trouble) = (true, Some(Trouble::DesiredWithoutRecord));
        record.join(stray);
        self.begin_desired_migration(&volume);
        self.dirty.insert(volume.clone());
        self.touched.insert(volume.clone());
        self.notice(Notice::StrayFound { volume: volume.clone(), node: node.clone() });
        self.drain_if_wanted_off(&volume, &node);
    }

    /// Two nodes that are to have a volume are a migration, from the one that was to have it first, which began when the
    /// other one was to: whichever of them is heard first.
    fn begin_desired_migration(&mut self, volume: &VolumeId) {
        let now = self.now;
        let Some(since) = self.core.unheard.since.get(volume) else {
            return;
        };
        let Some(record) = self.core.volumes.get_mut(volume) else {
            return;
        };
        let running = record.migration.as_ref().is_some_and(|m| !m.is_over());
        if running || record.spec.access != Access::RwxBlock {
            return;
        }
        let since = |a: &Attachment| since.get(&a.node).copied().filter(|_| !a.phase.is_draining());
        let [first, second] = &record.attachments[..] else {
            return;
        };
        let (Some(since_first), Some(since_second)) = (since(first), since(second)) else {
            return;
        };
        if (since_second, &second.node) < (since_first, &first.node) {
            record.attachments.reverse();
        }
        let began = since_first.max(since_second);
        let [source, target] = &record.attachments[..] else {
            return;
        };
        let side = |a: &Attachment| (a.node.clone(), a.epoch);
        let timeout_ms = record.spec.migration_timeout_ms;
        let mut migration = Migration::begin(side(source), side(target), began, timeout_ms);
        migration.begin_again(now, timeout_ms);
        record.migrates(migration);
        self.dirty.insert(volume.clone());
    }

    /// Somebody waits for the node to be off the volume, and it was not known that it may have it.
    pub(super) fn drain_if_wanted_off(&mut self, volume: &VolumeId, node: &NodeId) {
        let waiting = self.core.waiters.get(volume).into_iter().flat_map(|w| w.values());
        let about: BTreeSet<Option<NodeId>> = waiting
            .filter_map(|w| match &w.kind {
                RequestKind::Unpublish { node } => Some(node.clone()),
                RequestKind::Publish { .. } | RequestKind::Fence { .. } => None,
            })
            .collect();
        let wanted_off = |n: &Option<NodeId>| n.as_ref().is_none_or(|n| self.core.may_be(node, n));
        if about.iter().any(wanted_off) {
            self.begin_drain(volume, node, DrainCause::Requested);
        }
    }
}

#[cfg(test)]
#[path = "desired_tests.rs"]
mod tests;
