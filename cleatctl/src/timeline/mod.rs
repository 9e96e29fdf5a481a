//! One live migration as people look at it: its phases, volume by volume, on one axis of time.
//!
//! Comes in: the controller's records of one migration ([`select()`] chooses them by a name), and its volumes. Goes out: a
//! [`Timeline`], which `text`, `json` and `html` show. Always holds: every moment is one that the controller recorded;
//! our own clock says only for how long something has been going on. Nothing here decides anything: an overdue
//! migration is one that the controller calls so.

mod html;
mod json;
mod phases;
mod select;
mod sentences;
mod text;

#[cfg(test)]
mod sentences_tests;
#[cfg(test)]
mod tests;

use cleat_proto::cleat::v1::{AttachmentInfo, MigrationInfo, VolumeInfo, WaitInfo};

pub(crate) use html::html;
pub(crate) use json::json;
pub(crate) use phases::Phase;
pub(crate) use select::{NoMigration, Selected, is_later, select};
pub(crate) use text::text;

/// The step with which a record ends, and the one that is a moment inside of a phase.
const DONE: &str = "done";
const TIMED_OUT: &str = "timed_out";

/// One migration of one VM, or of a volume of which nobody says whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Timeline {
    /// `None` where no migration object names it.
    pub(crate) vm: Option<MovedVm>,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) began: u64,
    /// Where the axis of time ends: with the last volume, or, as long as one is not done, now.
    pub(crate) until: u64,
    pub(crate) timeout_ms: Option<u64>,
    /// When the time limit ends, or ended.
    pub(crate) due: Option<u64>,
    pub(crate) volumes: Vec<VolumeLine>,
    /// Which of several volumes the storage has worked on longest.
    pub(crate) slowest: Option<usize>,
    /// Other migrations that the same name means, newest first.
    pub(crate) others: Vec<Other>,
}

/// The VM, and the migration object that moves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MovedVm {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// The migration object, as `NAMESPACE/NAME`; empty where the controller does not say.
    pub(crate) migration: String,
    pub(crate) migration_uid: String,
}

/// One volume's part in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeLine {
    pub(crate) volume: String,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) result: String,
    /// "source", "target", or empty.
    pub(crate) left: String,
    pub(crate) overdue: bool,
    pub(crate) began: u64,
    /// `None` as long as both nodes have it.
    pub(crate) ended: Option<u64>,
    pub(crate) timed_out_at: Option<u64>,
    pub(crate) phases: Vec<Phase>,
    /// Who waits for what, as long as both nodes have it.
    pub(crate) waits: Vec<Waiting>,
}

/// The attachment of a node that waits, or a request for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Empty where it is a request for all nodes.
    pub(crate) node: String,
    pub(crate) who: Who,
    pub(crate) waits_for: String,
}

/// What it is that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// The attachment, in this phase.
    Attachment(String),
    /// The request of this name.
    Request(String),
}

/// Another migration that the same name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Other {
    /// Its object, by which it can be asked for; empty where it has none.
    pub(crate) migration: String,
    pub(crate) migration_uid: String,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) began: u64,
    pub(crate) result: String,
}

impl Timeline {
    /// Draws up what was selected. `volumes` are looked through for what is waited for; `now` is the time by our own
    /// clock.
    pub(crate) fn new(selected: &Selected<'_>, volumes: &[VolumeInfo], now: u64) -> Self {
        let mut lines: Vec<VolumeLine> = selected.records.iter().map(|record| line(record)).collect();
        let began = lines.iter().map(|line| line.began).min().unwrap_or_default();
        let recorded = lines.iter().map(VolumeLine::last_moment).max().unwrap_or_default();
        let goes_on = lines.iter().any(|line| line.ended.is_none());
        // A clock of ours that is behind the controller's says nothing.
        let until = if goes_on { recorded.max(now) } else { recorded };
        for line in lines.iter_mut().filter(|line| line.ended.is_none()) {
            let info = volumes.iter().find(|info| info.volume_id == line.volume);
            line.waits = info.map(waits).unwrap_or_default();
        }
        let first = selected.records.first().copied().cloned().unwrap_or_default();
        let vm = select::is_attributed(&first).then(|| MovedVm {
            namespace: first.vm_namespace.clone(),
            name: first.vm_name.clone(),
            migration: select::migration(&first).to_owned(),
            uid: first.vm_uid.clone(),
            migration_uid: first.migration_uid.clone(),
        });
        let limits = selected.records.iter().filter(|record| vm.is_some() && record.timeout_ms > 0);
        // The volume that was granted first is the first to be overdue.
        let limit = limits.min_by_key(|record| record.granted_at_unix_ms.saturating_add(record.timeout_ms));
        Self {
            vm,
            source: first.source_node_id,
            target: first.target_node_id,
            began,
            until,
            timeout_ms: limit.map(|record| record.timeout_ms),
            due: limit
                .filter(|record| record.granted_at_unix_ms > 0)
                .map(|record| record.granted_at_unix_ms.saturating_add(record.timeout_ms)),
            slowest: slowest(&lines, until),
            volumes: lines,
            others: selected.others.iter().map(|record| other(record)).collect(),
        }
    }

    /// What the controller calls all of it in one word: the same word that all volumes have, or the most pressing one.
    pub(crate) fn result(&self) -> &str {
        let mut results = self.volumes.iter().map(VolumeLine::result);
        let first = results.next().unwrap_or("unknown");
        if results.all(|result| result == first) {
            return first;
        }
        let any = |wanted: &str| self.volumes.iter().any(|line| line.result() == wanted);
        ["overdue", "running"].into_iter().find(|result| any(result)).unwrap_or("mixed")
    }

    /// Whether a volume has two nodes still.
    pub(crate) fn goes_on(&self) -> bool {
        self.volumes.iter().any(|line| line.ended.is_none())
    }
}

impl VolumeLine {
    /// Its result, or that it is overdue, which says more.
    pub(crate) fn result(&self) -> &str {
        if self.overdue { "overdue" } else { &self.result }
    }

    /// For how long the storage has worked on it: without the time in which the VM itself moves.
    pub(crate) fn handoff_ms(&self, until: u64) -> u64 {
        self.phases.iter().filter(|phase| !phase.is_the_vms()).map(|phase| phase.lasts(until)).sum()
    }

    /// The phase that took most of that.
    pub(crate) fn longest_of_handoff(&self, until: u64) -> Option<&Phase> {
        let handoff = self.phases.iter().filter(|phase| !phase.is_the_vms());
        // Of equal ones the first.
        handoff.rev().max_by_key(|phase| phase.lasts(until))
    }

    /// Whether this step is on record.
    pub(crate) fn has_step(&self, step: &str) -> bool {
        self.phases.iter().any(|phase| phase.step == step)
    }

    /// The phase that it is in.
    pub(crate) fn current(&self) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.to.is_none())
    }

    fn last_moment(&self) -> u64 {
        let moments = self.phases.iter().map(|phase| phase.to.unwrap_or(phase.from));
        moments.chain(self.ended).chain(self.timed_out_at).chain([self.began]).max().unwrap_or_default()
    }
}

/// One record as phases. Moments that go back, as where the controller's clock was set back, count as no time.
fn line(record: &MigrationInfo) -> VolumeLine {
    let ongoing = record.overdue || matches!(record.result.as_str(), "running" | "timed_out");
    let last = record.steps.iter().map(|step| step.at_unix_ms).max();
    let done = record.steps.iter().find(|step| step.name == DONE).map(|step| step.at_unix_ms);
    let ended = done.or(last.filter(|_| !ongoing));
    let phases = phases::of(&record.steps, ended);
    let began = record.steps.first().map_or(record.granted_at_unix_ms, |step| step.at_unix_ms);
    let timed_out_at = record.steps.iter().find(|step| step.name == TIMED_OUT).map(|step| step.at_unix_ms);
    let ended =
        ended.map(|ended| phases.iter().filter_map(|phase| phase.to).fold(ended.max(began), u64::max));
    VolumeLine {
        volume: record.volume_id.clone(),
        source: record.source_node_id.clone(),
        target: record.target_node_id.clone(),
        result: record.result.clone(),
        left: record.left.clone(),
        overdue: record.overdue,
        began,
        ended,
        timed_out_at,
        phases,
        waits: Vec::new(),
    }
}

fn other(record: &MigrationInfo) -> Other {
    let VolumeLine { source, target, began, result, .. } = line(record);
    let migration = select::migration(record).to_owned();
    Other { migration, migration_uid: record.migration_uid.clone(), source, target, began, result }
}

fn waits(volume: &VolumeInfo) -> Vec<Waiting> {
    let nodes = volume.attachments.iter().filter(|a| !a.waits_for.is_empty());
    let nodes = nodes.map(|AttachmentInfo { node_id, phase, waits_for, .. }| Waiting {
        node: node_id.clone(),
        who: Who::Attachment(phase.clone()),
        waits_for: waits_for.clone(),
    });
    // What the request for a node waits for is mostly what the node waits for.
    let said = |node: &str| volume.attachments.iter().any(|a| a.node_id == node && !a.waits_for.is_empty());
    let requests = volume.waiting.iter().filter(|request| !said(&request.node_id));
    let requests = requests.map(|WaitInfo { request, node_id, waits_for, .. }| Waiting {
        node: node_id.clone(),
        who: Who::Request(request.clone()),
        waits_for: waits_for.clone(),
    });
    nodes.chain(requests).collect()
}

/// The volume on which the storage has worked longest; of equal ones the first. One alone is not slow.
fn slowest(lines: &[VolumeLine], until: u64) -> Option<usize> {
    let several = (lines.len() > 1).then_some(lines)?;
    let all = several.iter().enumerate().rev();
    all.max_by_key(|(_, line)| line.handoff_ms(until)).map(|(at, _)| at)
}
