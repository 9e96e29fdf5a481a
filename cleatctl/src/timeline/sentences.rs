//! What a migration comes to, in sentences: the terminal and the page say the same.
//!
//! Goes out: texts as their parts came in; who shows them makes others' words harmless.

use cleat_runtime::date::rfc3339;

use super::{MovedVm, Other, Phase, Timeline, VolumeLine, Waiting, Who};
use crate::format::lasting;

/// Who moves, from where to where.
pub(super) fn title(timeline: &Timeline) -> String {
    let Timeline { source, target, .. } = timeline;
    let who = match (&timeline.vm, &timeline.volumes[..]) {
        (Some(MovedVm { namespace, name, .. }), _) if !name.is_empty() => format!("VM {namespace}/{name}"),
        (Some(MovedVm { uid, .. }), _) => format!("VM {uid}"),
        (None, [one]) => format!("Volume {}", one.volume),
        (None, _) => "Volumes".to_owned(),
    };
    format!("{who} from node {source} to node {target}")
}

/// What there is to say of all of it, the most important first.
pub(super) fn summary(timeline: &Timeline) -> Vec<String> {
    let mut all = Vec::new();
    if timeline.result() == "mixed" {
        all.push(format!("The volumes ended differently: {}.", counted(timeline)));
    }
    all.extend(shared_outcome(timeline));
    all.push(times(timeline));
    if let Some(MovedVm { uid, migration_uid, migration, .. }) = &timeline.vm {
        let named = if migration.is_empty() { String::new() } else { format!(" {migration}") };
        all.push(format!(
            "Migration object{named}, UID {}; VM UID {}.",
            or_unknown(migration_uid),
            or_unknown(uid)
        ));
    }
    if timeline.vm.is_none() {
        all.push(UNATTRIBUTED.to_owned());
    }
    all.extend(slowest(timeline));
    all
}

const UNATTRIBUTED: &str = "Unattributed: no migration object of KubeVirt names this move, so the node that had the volume \
                            first counts as the source, and no time limit applies.";

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

fn times(timeline: &Timeline) -> String {
    let Timeline { began, until, timeout_ms, due, .. } = timeline;
    let so_far = lasting(until.saturating_sub(*began));
    let began = rfc3339(*began);
    let mut text = if timeline.goes_on() {
        format!("It began at {began} and has lasted {so_far}")
    } else {
        format!("It began at {began} and lasted {so_far}")
    };
    if let Some(limit) = timeout_ms.map(lasting) {
        let ends = if timeline.result() == "overdue" { "ended" } else { "ends" };
        text.push_str(&match (due, timeline.goes_on()) {
            (Some(due), true) => format!("; its time limit of {limit} {ends} at {}", rfc3339(*due)),
            _ => format!("; its time limit was {limit}"),
        });
    }
    text + "."
}

fn counted(timeline: &Timeline) -> String {
    let mut results: Vec<&str> = timeline.volumes.iter().map(VolumeLine::result).collect();
    results.sort_unstable();
    let parts = results.chunk_by(|a, b| a == b).map(|same| format!("{} {}", same.len(), same[0]));
    parts.collect::<Vec<_>>().join(", ")
}

/// The slowest of several volumes, and in what.
fn slowest(timeline: &Timeline) -> Option<String> {
    let Timeline { volumes, until, slowest, .. } = timeline;
    let line = volumes.get((*slowest)?)?;
    let took = lasting(line.handoff_ms(*until));
    let most = line
        .longest_of_handoff(*until)
        .map(|phase| format!(", most of it in {} ({})", phase.name(), lasting(phase.lasts(*until))));
    Some(format!(
        "{} volumes side by side; the slowest is {}: {took} of handoff{}.",
        volumes.len(),
        line.volume,
        most.unwrap_or_default()
    ))
}

/// What became of all volumes, where that is one sentence.
fn shared_outcome(timeline: &Timeline) -> Option<String> {
    let mut all = timeline.volumes.iter().map(outcome);
    let first = all.next()?;
    all.all(|other| other == first).then_some(first)
}

/// What became of this volume, where not all have come to the same.
pub(super) fn own_outcome(timeline: &Timeline, line: &VolumeLine) -> Option<String> {
    shared_outcome(timeline).is_none().then(|| outcome(line))
}

/// What the result means for the two nodes.
fn outcome(line: &VolumeLine) -> String {
    let VolumeLine { source, target, result, left, .. } = line;
    let gone = match left.as_str() {
        "source" => format!("node {target} has it, and node {source} cannot write to it any more"),
        "target" => format!("it stays with node {source}, and node {target} cannot write to it any more"),
        _ => String::new(),
    };
    match (result.as_str(), left.as_str()) {
        _ if line.overdue => {
            "Overdue: it is past its time limit, and both nodes still have it. No node is cut off for \
                              that, and no third one is let in until one of the two has given it up."
                .to_owned()
        }
        ("running", _) => match line.current() {
            Some(phase) => format!("Under way, in {}: {}.", phase.name(), phase.words()),
            None => "Under way.".to_owned(),
        },
        ("completed", "source") => {
            format!("Completed: node {target} has it, and node {source} cannot write to it any more.")
        }
        ("completed", _) => {
            format!("Completed: the VM has moved to node {target}; node {source} may have the volume still.")
        }
        ("rolled_back", "target") => {
            format!("Rolled back: it stays with node {source}; node {target} was ready and has given it up.")
        }
        ("rolled_back", _) => {
            format!("Rolled back: the VM stays on node {source}; node {target} may have the volume still.")
        }
        ("failed", "target") if line.has_step("switchover") => format!(
            "Failed: the VM had moved to node {target}, which cannot write to it any more; node {source} still has it, \
             without the VM."
        ),
        ("failed", "target") if line.has_step("target_ready") => format!(
            "Failed: node {target} was ready and cannot write to it any more, and the VM may have been there; node \
             {source} has it."
        ),
        ("failed", "target") => {
            format!("Failed: it stays with node {source}; node {target} was not seen to become ready.")
        }
        ("failed", "source") => {
            format!("Failed: node {source} gave it up before the VM had moved; node {target} has it.")
        }
        ("failed", _) => "Failed: both nodes may have the volume still.".to_owned(),
        ("timed_out", "source" | "target") => {
            format!("Timed out: it took longer than its time limit, and has ended: {gone}.")
        }
        ("unattributed", "source" | "target") => format!("Ended: {gone}."),
        ("timed_out", _) => "Timed out: it took longer than its time limit.".to_owned(),
        ("unattributed", _) => "Ended.".to_owned(),
        (other, "source" | "target") => format!("The controller says: {other}; {gone}."),
        (other, _) => format!("The controller says: {other}."),
    }
}

/// What this volume waits for now; nothing once it has one node.
pub(super) fn waits(timeline: &Timeline, line: &VolumeLine) -> Vec<String> {
    if line.ended.is_some() {
        return Vec::new();
    }
    let waits = line.waits.iter().map(|Waiting { node, who, waits_for }| {
        let node = if node.is_empty() { "all nodes".to_owned() } else { format!("node {node}") };
        match who {
            Who::Attachment(phase) => format!("{node} ({phase}) waits for {waits_for}"),
            Who::Request(request) => format!("{request} for {node} waits for {waits_for}"),
        }
    });
    let waits: Vec<String> = waits.collect();
    if !waits.is_empty() {
        return waits;
    }
    let nothing = match (line.current().is_some_and(Phase::is_the_vms), &timeline.vm) {
        (true, Some(_)) => {
            "waits for nothing of the storage: the VM is moving, or KubeVirt has not let the source go"
        }
        (true, None) => {
            "waits for nothing of the storage: it goes on once one of the two nodes is asked to give it up"
        }
        (false, _) => return Vec::new(),
    };
    vec![nothing.to_owned()]
}

/// The phases with the time that each took. Those of no time are left out.
pub(super) fn phases(line: &VolumeLine, until: u64) -> String {
    let shown = line.phases.iter().filter(|phase| phase.to.is_none() || phase.lasts(until) > 0);
    let shown = shown.map(|phase| {
        let goes_on = if phase.to.is_none() { " so far" } else { "" };
        format!("{} {}{goes_on}", phase.name(), lasting(phase.lasts(until)))
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// How long a volume took, or has taken.
pub(super) fn took(line: &VolumeLine, until: u64) -> String {
    match line.ended {
        Some(ended) => format!(", lasted {}", lasting(ended.saturating_sub(line.began))),
        None => format!(", {} so far", lasting(until.saturating_sub(line.began))),
    }
}

/// Its nodes, where they are not those of the migration as a whole.
pub(super) fn own_nodes(timeline: &Timeline, line: &VolumeLine) -> String {
    let VolumeLine { source, target, .. } = line;
    if (source, target) == (&timeline.source, &timeline.target) {
        String::new()
    } else {
        format!(" from node {source} to node {target}")
    }
}

/// Another migration, in a line.
pub(super) fn other(other: &Other) -> String {
    let Other { migration, migration_uid, source, target, began, result } = other;
    let which = if migration.is_empty() { migration_uid } else { migration };
    let space = if which.is_empty() { "" } else { " " };
    format!(
        "migration{space}{which} from node {source} to node {target}, begun at {}: {result}",
        rfc3339(*began)
    )
}

/// The phases that occur, each once, in their order.
pub(super) fn legend(timeline: &Timeline) -> Vec<&Phase> {
    let all = timeline.volumes.iter().flat_map(|line| &line.phases);
    let mut all: Vec<&Phase> =
        all.filter(|phase| phase.to.is_none() || phase.lasts(timeline.until) > 0).collect();
    all.sort_by_key(|phase| (phase.rank(), phase.name().to_owned()));
    all.dedup_by_key(|phase| phase.name().to_owned());
    all
}
