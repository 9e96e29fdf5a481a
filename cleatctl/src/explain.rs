//! One volume in plain words: who may write to it, on what evidence, and what each request waits for.

use std::fmt::Write as _;

use cleat_proto::cleat::v1 as wire;
use wire::volume_state::Phase;

use crate::table::{bytes, epoch, time, timeline};

pub(crate) fn volume(volume: &wire::VolumeInfo) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_volume(&mut text, volume);
    text
}

fn write_volume(text: &mut String, volume: &wire::VolumeInfo) -> std::fmt::Result {
    writeln!(text, "Volume {} ({})", volume.volume_id, volume.access)?;
    match &volume.identity {
        Some(identity) => {
            writeln!(text, "  namespace {}, {}", identity.namespace_uuid, bytes(identity.size_bytes))?
        }
        None => writeln!(text, "  namespace not known yet: learned at the first attach")?,
    }
    if !volume.min_fence.is_empty() {
        writeln!(text, "  a node is fenced from it by nothing weaker than: {}", volume.min_fence)?;
    }
    let writers: Vec<&str> =
        volume.attachments.iter().filter(|a| a.may_write).map(|a| a.node_id.as_str()).collect();
    match writers[..] {
        [] => writeln!(text, "  No node can write to it.")?,
        [one] => writeln!(text, "  Node {one} may write to it, and nobody else.")?,
        _ => writeln!(text, "  Nodes {} may write to it, and nobody else.", writers.join(" and "))?,
    }
    for attachment in &volume.attachments {
        writeln!(text)?;
        write_attachment(text, attachment)?;
    }
    write_fenced(text, &volume.fenced)?;
    write_waiting(text, &volume.waiting)?;
    if let Some(migration) = &volume.migration {
        writeln!(
            text,
            "\nMigration from {} to {}: {}",
            migration.source_node_id, migration.target_node_id, migration.result
        )?;
        writeln!(text, "  {}", timeline(migration))?;
    }
    if !volume.past_evidence.is_empty() {
        writeln!(text, "\nEarlier attachments, and what proves that they are over")?;
        for evidence in &volume.past_evidence {
            writeln!(text, "  node {}, epoch {}", evidence.node_id, epoch(evidence.epoch.as_ref()))?;
            write_evidence(text, "    ", evidence)?;
        }
    }
    Ok(())
}

fn write_attachment(text: &mut String, attachment: &wire::AttachmentInfo) -> std::fmt::Result {
    let wire::AttachmentInfo { node_id, role, phase, since_unix_ms, .. } = attachment;
    writeln!(text, "On node {node_id} ({role}): {phase} since {}", time(*since_unix_ms))?;
    writeln!(text, "  epoch {}", epoch(attachment.epoch.as_ref()))?;
    if !attachment.cause.is_empty() {
        writeln!(text, "  being taken down: {}", attachment.cause)?;
    }
    if let Some(fence) = &attachment.fence {
        write_fence(text, fence)?;
    }
    if attachment.waits_for.is_empty() {
        writeln!(text, "  waits for nothing")?;
    } else {
        writeln!(text, "  waits for {}", attachment.waits_for)?;
    }
    if let Some(evidence) = &attachment.evidence {
        write_evidence(text, "  ", evidence)?;
    }
    match &attachment.reported {
        Some(state) => write_state(text, state),
        None => writeln!(text, "  its agent has said nothing of it"),
    }
}

fn write_evidence(text: &mut String, indent: &str, evidence: &wire::EvidenceInfo) -> std::fmt::Result {
    let wire::EvidenceInfo { source, verdict, drained_by, assumption, at_unix_ms, .. } = evidence;
    writeln!(text, "{indent}evidence {source} at {}: {verdict}", time(*at_unix_ms))?;
    if drained_by.is_empty() {
        writeln!(text, "{indent}not proven yet that nothing it wrote is still on its way")?;
    } else {
        writeln!(text, "{indent}nothing it wrote is still on its way: {drained_by}")?;
    }
    if !assumption.is_empty() {
        writeln!(text, "{indent}taken for granted: {assumption}")?;
    }
    if !evidence.by.is_empty() {
        writeln!(text, "{indent}on the word of {}: {}", evidence.by, evidence.reason)?;
    }
    // Who declared a node gone has said so in the line above.
    if !evidence.wanted_by.is_empty() && evidence.by.is_empty() {
        writeln!(text, "{indent}forced by {}: {}", evidence.wanted_by, evidence.wanted_because)?;
    }
    Ok(())
}

fn write_fence(text: &mut String, fence: &wire::FenceInfo) -> std::fmt::Result {
    let wire::FenceInfo { rung, step, tried, since_unix_ms } = fence;
    if step == "refused" {
        writeln!(text, "  fence since {}: no way is left, it is tried again", time(*since_unix_ms))?;
    } else {
        writeln!(text, "  fence since {}: by {rung}, step {step}", time(*since_unix_ms))?;
    }
    for tried in tried {
        writeln!(text, "    tried {}: {}", tried.rung, tried.result)?;
    }
    Ok(())
}

fn write_fenced(text: &mut String, fenced: &[wire::FencedInfo]) -> std::fmt::Result {
    if fenced.is_empty() {
        return Ok(());
    }
    writeln!(text, "\nFenced, and quarantined until their own inventory shows nothing of it")?;
    for fenced in fenced {
        let (node, epoch, since) =
            (&fenced.node_id, epoch(fenced.epoch.as_ref()), time(fenced.since_unix_ms));
        writeln!(text, "  node {node} ({}), epoch {epoch}, since {since}", fenced.host_nqn)?;
        if let Some(evidence) = &fenced.evidence {
            write_evidence(text, "    ", evidence)?;
        }
    }
    Ok(())
}

fn write_state(text: &mut String, state: &wire::VolumeState) -> std::fmt::Result {
    let phase = phase(state.phase());
    let device = if state.device.is_empty() { String::new() } else { format!(", device {}", state.device) };
    writeln!(text, "  its agent's last word: {phase}{device}, {} writes completed", state.writes)?;
    for path in &state.paths {
        let ana = if path.ana_state.is_empty() { String::new() } else { format!(", {}", path.ana_state) };
        writeln!(text, "    path {} by {}: {}{ana}", path.portal, path.controller, path.state)?;
    }
    if let Some(unready) = &state.unready {
        writeln!(text, "    not ready: {}: {}", unready.clause, unready.message)?;
    }
    for staging in state.staging.iter().filter(|staging| !staging.same) {
        writeln!(text, "    staged at {} is ANOTHER device: {}", staging.path, staging.device)?;
    }
    for opener in &state.openers {
        writeln!(text, "    used by {opener}")?;
    }
    Ok(())
}

fn write_waiting(text: &mut String, waiting: &[wire::WaitInfo]) -> std::fmt::Result {
    if waiting.is_empty() {
        return writeln!(text, "\nNo request waits.");
    }
    writeln!(text, "\nRequests that wait")?;
    for wait in waiting {
        let node =
            if wait.node_id.is_empty() { "all nodes".to_owned() } else { format!("node {}", wait.node_id) };
        writeln!(
            text,
            "  {} for {node}, since {}: {}",
            wait.request,
            time(wait.since_unix_ms),
            wait.waits_for
        )?;
    }
    Ok(())
}

pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "unknown",
        Phase::Absent => "absent",
        Phase::Connecting => "connecting",
        Phase::Ready => "ready",
        Phase::Degraded => "degraded",
        Phase::Lost => "lost",
        Phase::Detaching => "detaching",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_in_handoff_is_told_in_plain_words() {
        let attachment = |node: &str, phase: &str, waits_for: &str| wire::AttachmentInfo {
            node_id: node.into(),
            epoch: Some(wire::Epoch { term: 5, seq: 2 }),
            role: "primary".into(),
            phase: phase.into(),
            since_unix_ms: 951_782_400_000,
            may_write: true,
            waits_for: waits_for.into(),
            ..Default::default()
        };
        let mut draining = attachment("a", "Draining", "the drain bound");
        draining.evidence = Some(wire::EvidenceInfo {
            source: "AgentAbsent".into(),
            verdict: "Unknown".into(),
            assumption: "the target lands what it has".into(),
            ..Default::default()
        });
        let info = wire::VolumeInfo {
            volume_id: "vm-1".into(),
            access: "RWX block".into(),
            attachments: vec![draining, attachment("b", "Ready", "")],
            waiting: vec![wire::WaitInfo {
                request: "unpublish".into(),
                node_id: "a".into(),
                since_unix_ms: 951_782_400_000,
                waits_for: "the drain bound".into(),
            }],
            ..Default::default()
        };
        let text = volume(&info);
        for line in [
            "Volume vm-1 (RWX block)",
            "Nodes a and b may write to it, and nobody else.",
            "On node a (primary): Draining since 2000-02-29T00:00:00Z",
            "waits for the drain bound",
            "evidence AgentAbsent at 1970-01-01T00:00:00Z: Unknown",
            "not proven yet that nothing it wrote is still on its way",
            "taken for granted: the target lands what it has",
            "waits for nothing",
            "unpublish for node a, since 2000-02-29T00:00:00Z: the drain bound",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
    }

    #[test]
    fn a_fence_is_told_with_what_was_tried_and_a_word_with_whose_it_is() {
        let evidence = wire::EvidenceInfo {
            source: "NodeGone".into(),
            verdict: "Fenced".into(),
            drained_by: "the drain bound has passed".into(),
            by: "alice".into(),
            reason: "rack 4 burnt".into(),
            ..Default::default()
        };
        let forced = wire::EvidenceInfo {
            node_id: "c".into(),
            source: "TargetCut".into(),
            wanted_by: "bob".into(),
            wanted_because: "its guest hangs".into(),
            ..Default::default()
        };
        let fencing = wire::AttachmentInfo {
            node_id: "b".into(),
            phase: "Draining".into(),
            may_write: true,
            cause: "forced by alice: hangs".into(),
            fence: Some(wire::FenceInfo {
                rung: "acl".into(),
                step: "hide".into(),
                tried: vec![wire::TriedRung { rung: "reservation".into(), result: "no other node".into() }],
                since_unix_ms: 951_782_400_000,
            }),
            ..Default::default()
        };
        let info = wire::VolumeInfo {
            volume_id: "vm-1".into(),
            access: "RWO".into(),
            attachments: vec![fencing],
            fenced: vec![wire::FencedInfo {
                node_id: "a".into(),
                host_nqn: "nqn.2026-01.test:a".into(),
                evidence: Some(evidence),
                ..Default::default()
            }],
            min_fence: "acl".into(),
            past_evidence: vec![forced],
            ..Default::default()
        };
        let text = volume(&info);
        for line in [
            "a node is fenced from it by nothing weaker than: acl",
            "being taken down: forced by alice: hangs",
            "fence since 2000-02-29T00:00:00Z: by acl, step hide",
            "tried reservation: no other node",
            "node a (nqn.2026-01.test:a)",
            "on the word of alice: rack 4 burnt",
            "forced by bob: its guest hangs",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
    }
}
