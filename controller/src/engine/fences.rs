//! What becomes of fences: measured, and sent to those who watch nodes.
//!
//! In come records, in the order in which they have become durable, from those of the process before on; out go
//! counts and durations by rung and result, and the nodes whose quarantine has changed. Nothing decides by it. What
//! always holds: a fence is counted once when it ends, whether it began under this process or under one before.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cleat_core::{
    Drained, Epoch, Evidence, Fence, FenceStep, NodeId, Rung, Source, UnixMillis, VolumeId, VolumeRecord,
};

use crate::metrics::{self, FenceResult};

/// Every fence under way, and everybody who was fenced.
#[derive(Debug, Default)]
pub(super) struct Fences {
    volumes: BTreeMap<VolumeId, Known>,
    /// Fences under way, over all volumes. Counted along, so that one record does not make all be looked at.
    under_way: usize,
    /// From how many volumes each node is cut off.
    cut_off: BTreeMap<NodeId, usize>,
}

/// What was last seen of a volume.
#[derive(Debug, Default)]
struct Known {
    under_way: BTreeMap<NodeId, UnderWay>,
    /// Without those that were declared gone, of which nothing is expected.
    quarantined: BTreeSet<NodeId>,
}

/// A fence that has not ended.
#[derive(Debug, Clone)]
struct UnderWay {
    epoch: Epoch,
    rung: Rung,
    since: UnixMillis,
    refused: bool,
    /// Rungs that did not hold, with what came of them: each counts once.
    failed: Vec<(Rung, String)>,
}

impl Fences {
    /// Begins from what was stored: that has been counted.
    pub(super) fn new(records: &[VolumeRecord]) -> Self {
        let mut fences = Self::default();
        for record in records {
            fences.put(&record.spec.id, Known::of(record));
        }
        fences.show();
        fences
    }

    /// A record has become durable. Gives the nodes whose quarantine it changes.
    pub(super) fn recorded(&mut self, now: UnixMillis, record: &VolumeRecord) -> Vec<NodeId> {
        let is = Known::of(record);
        let was = self.take(&record.spec.id);
        for (node, fence) in &is.under_way {
            fence.count_trouble(was.under_way.get(node).filter(|before| before.epoch == fence.epoch));
        }
        for (node, fence) in &was.under_way {
            if is.under_way.get(node).is_none_or(|still| still.epoch != fence.epoch) {
                let (rung, result) = end(fence, node, record);
                metrics::fence_ended(rung, result, Duration::from_millis(now.since(fence.since)));
            }
        }
        let changed = was.quarantined.symmetric_difference(&is.quarantined).cloned().collect();
        self.put(&record.spec.id, is);
        self.show();
        changed
    }

    /// A record is gone, and whatever was in it.
    pub(super) fn forgotten(&mut self, volume: &VolumeId) -> Vec<NodeId> {
        let was = self.take(volume);
        self.show();
        was.quarantined.into_iter().collect()
    }

    fn put(&mut self, volume: &VolumeId, known: Known) {
        if known.under_way.is_empty() && known.quarantined.is_empty() {
            return;
        }
        self.under_way += known.under_way.len();
        for node in &known.quarantined {
            *self.cut_off.entry(node.clone()).or_default() += 1;
        }
        self.volumes.insert(volume.clone(), known);
    }

    fn take(&mut self, volume: &VolumeId) -> Known {
        let known = self.volumes.remove(volume).unwrap_or_default();
        self.under_way -= known.under_way.len();
        for node in &known.quarantined {
            if let Entry::Occupied(mut volumes) = self.cut_off.entry(node.clone()) {
                *volumes.get_mut() -= 1;
                if *volumes.get() == 0 {
                    volumes.remove();
                }
            }
        }
        known
    }

    fn show(&self) {
        metrics::fences(self.under_way, self.cut_off.len());
    }
}

impl Known {
    fn of(record: &VolumeRecord) -> Self {
        let fences = record.attachments.iter().filter_map(|a| Some((a, record.fence(&a.node)?)));
        Self {
            under_way: fences.map(|(a, fence)| (a.node.clone(), UnderWay::of(a.epoch, fence))).collect(),
            quarantined: record.fenced.iter().filter(|f| !f.is_gone()).map(|f| f.node.clone()).collect(),
        }
    }
}

impl UnderWay {
    fn of(epoch: Epoch, fence: &Fence) -> Self {
        Self {
            epoch,
            rung: fence.rung,
            since: fence.since,
            refused: fence.step == FenceStep::Refused,
            failed: fence.tried.iter().map(|tried| (tried.rung, tried.result.clone())).collect(),
        }
    }

    fn count_trouble(&self, before: Option<&Self>) {
        let known = |failed: &(Rung, String)| before.is_some_and(|before| before.failed.contains(failed));
        for (rung, _) in self.failed.iter().filter(|failed| !known(failed)) {
            metrics::fence(rung.name(), FenceResult::Failed);
        }
        if self.refused && before.is_none_or(|before| !before.refused) {
            metrics::fence(self.rung.name(), FenceResult::Refused);
        }
    }
}

/// How a fence has ended, by the record that it is no longer in.
fn end(fence: &UnderWay, node: &NodeId, record: &VolumeRecord) -> (&'static str, FenceResult) {
    let about = |evidence: &&Evidence| evidence.node == *node && evidence.epoch == fence.epoch;
    let fenced = record.fenced.iter().map(|fenced| &fenced.evidence);
    let Some(evidence) = fenced.chain(&record.past_evidence).find(about) else {
        // The node goes on as before, or a later grant has taken the place of this one.
        return (fence.rung.name(), FenceResult::Overtaken);
    };
    match (&evidence.source, &evidence.drained) {
        (Source::AgentAbsent { .. }, Drained::Barrier) => (Rung::Barrier.name(), FenceResult::Proven),
        (Source::AgentAbsent { .. } | Source::NeverAllowed, _) => (fence.rung.name(), FenceResult::Overtaken),
        (source, _) => (rung(source).unwrap_or(fence.rung).name(), FenceResult::Proven),
    }
}

fn rung(source: &Source) -> Option<Rung> {
    match source {
        Source::TargetCut { secret: Some(_), .. } => Some(Rung::Secret),
        Source::TargetCut { .. } => Some(Rung::Acl),
        Source::Reservation { .. } => Some(Rung::Reservation),
        Source::ExportOff => Some(Rung::ExportOff),
        Source::NodeGone { .. } => Some(Rung::NodeGone),
        Source::AgentAbsent { .. } | Source::NeverAllowed => None,
    }
}

#[cfg(test)]
#[path = "fences_tests.rs"]
mod tests;
