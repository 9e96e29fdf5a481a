//! What is wrong with a volume, in words for people: what CSI calls its condition.
//!
//! In come the core's record and what the agents of its holders said last; out go complaints, none where all is well. A
//! node speaks for its own attachment alone. Nothing decides by it.

use cleat_core::{
    Attachment, Core, FenceStep, Node, ObservedPhase, Phase, SessionState, UnixMillis, VolumeRecord,
};
use cleat_proto::csi::v1 as csi;
use cleat_runtime::date::rfc3339;

/// A condition's message is cut to this: it is one of a thousand in a list.
const SHOWN: usize = 500;

/// All that is wrong with a volume.
pub(super) fn complaints(core: &Core, record: &VolumeRecord) -> Vec<String> {
    let attached = record.attachments.iter().filter_map(|a| of_attachment(core, record, a));
    let blocked = record.fenced.iter().filter(|fenced| fenced.blocks());
    let blocked = blocked.map(|fenced| {
        format!(
            "nobody can use it: its export stays off until node {} has shown that it holds nothing",
            fenced.node
        )
    });
    attached.chain(blocked).chain(overdue(record)).collect()
}

/// Two nodes have it for longer than a migration may take.
fn overdue(record: &VolumeRecord) -> Option<String> {
    let migration = record.migration.as_ref().filter(|migration| migration.is_overdue())?;
    let (source, target, seconds) = (&migration.source, &migration.target, migration.timeout_ms / 1000);
    Some(format!(
        "nodes {source} and {target} have had it for longer than the {seconds} s that a migration may take"
    ))
}

fn of_attachment(core: &Core, record: &VolumeRecord, a: &Attachment) -> Option<String> {
    let node = &a.node;
    match &a.phase {
        Phase::Stray => Some(format!("node {node} holds it, or may, without a grant")),
        Phase::Draining { .. } => {
            let refused = record.fence(node).is_some_and(|fence| fence.step == FenceStep::Refused);
            (refused && a.evidence().is_none())
                .then(|| format!("node {node} may still write to it, and no fence is possible"))
        }
        // Not in use yet.
        Phase::Granting | Phase::Connecting if !a.proven => None,
        Phase::Granting | Phase::Connecting | Phase::Ready => core
            .nodes()
            .get(node)
            .map_or_else(|| Some(unheard(node.as_str(), None)), |known| of_node(record, a, known)),
    }
}

fn of_node(record: &VolumeRecord, a: &Attachment, known: &Node) -> Option<String> {
    let node = &a.node;
    if let SessionState::Silent { since } = &known.session {
        return Some(unheard(node.as_str(), Some(*since)));
    }
    let observed = known.observed.get(&record.spec.id)?;
    let why = || if observed.unready.is_empty() { String::new() } else { format!(" ({})", observed.unready) };
    match observed.phase {
        ObservedPhase::Ready | ObservedPhase::Detaching => None,
        ObservedPhase::Degraded => {
            let paths = if observed.live_paths == 1 { "path" } else { "paths" };
            Some(format!("node {node} has {} live {paths} to it{}", observed.live_paths, why()))
        }
        ObservedPhase::Lost | ObservedPhase::Connecting | ObservedPhase::Absent => {
            Some(format!("node {node} has lost it{}", why()))
        }
    }
}

fn unheard(node: &str, since: Option<UnixMillis>) -> String {
    match since {
        Some(since) => format!("the agent of node {node} is not heard since {}", rfc3339(since.0)),
        None => format!("the agent of node {node} was not heard yet"),
    }
}

/// As CSI says it.
pub(super) fn condition(complaints: &[String]) -> csi::VolumeCondition {
    let abnormal = !complaints.is_empty();
    let message = if abnormal { complaints.join("; ") } else { "nothing is known to be wrong".to_owned() };
    csi::VolumeCondition { abnormal, message: message.chars().take(SHOWN).collect() }
}
