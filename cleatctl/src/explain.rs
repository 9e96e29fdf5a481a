//! One volume in plain words: who may write to it, on what evidence, and what each request waits for.

use cleat_proto::cleat::v1::{
    AttachmentInfo, EvidenceInfo, FenceInfo, FencedInfo, VolumeInfo, VolumeState, WaitInfo,
};
use cleat_runtime::date::rfc3339;

use crate::format::{bytes, epoch, phase, timeline, vm};
use crate::page::Page;

pub(crate) fn volume(volume: &VolumeInfo, width: Option<usize>) -> String {
    let mut page = Page::new(width);
    let VolumeInfo { volume_id, access, min_fence, attachments, fenced, waiting, .. } = volume;
    page.line(0, format!("Volume {volume_id} ({access})"));
    match &volume.identity {
        Some(identity) => {
            let size = bytes(identity.size_bytes);
            page.line(2, format!("namespace {}, {size}", identity.namespace_uuid));
        }
        None if volume.deleted => {}
        None => page.line(2, "namespace unknown until the first attach"),
    }
    if !min_fence.is_empty() {
        page.line(2, format!("minimum fence: {min_fence}"));
    }
    if volume.deleted {
        page.state(2, "", "deleted", "; kept until the fenced nodes' agents report it absent");
    }
    let writers: Vec<&str> = attachments.iter().filter(|a| a.may_write).map(|a| a.node_id.as_str()).collect();
    page.line(
        2,
        match writers[..] {
            [] => "No node can write to it.".to_owned(),
            [one] => format!("Only node {one} may write to it."),
            _ => format!("Only nodes {} may write to it.", writers.join(" and ")),
        },
    );
    attachments.iter().for_each(|a| attachment(&mut page, a));
    if !fenced.is_empty() {
        page.blank();
        page.line(0, "Fenced nodes, quarantined until their agents report the volume absent");
        fenced.iter().for_each(|f| fenced_node(&mut page, f));
    }
    page.blank();
    if waiting.is_empty() {
        page.line(0, "No request waits.");
    } else {
        page.line(0, "Waiting requests");
        waiting.iter().for_each(|wait| request(&mut page, wait));
    }
    if let Some(migration) = &volume.migration {
        let (from, to) = (&migration.source_node_id, &migration.target_node_id);
        let result = if migration.overdue { "overdue" } else { &migration.result };
        let of = Some(vm(migration)).filter(|vm| !vm.is_empty()).map(|vm| format!(" of VM {vm}"));
        page.blank();
        page.state(0, &format!("Migration{} from {from} to {to}: ", of.unwrap_or_default()), result, "");
        page.line(2, timeline(migration));
    }
    if !volume.past_evidence.is_empty() {
        page.blank();
        page.line(0, "Past attachments, and the evidence that ended them");
        for past in &volume.past_evidence {
            page.line(2, format!("node {}, epoch {}", past.node_id, epoch(past.epoch.as_ref())));
            evidence(&mut page, 4, past);
        }
    }
    page.text()
}

fn attachment(page: &mut Page, attachment: &AttachmentInfo) {
    let AttachmentInfo { node_id, role, phase, since_unix_ms, cause, waits_for, .. } = attachment;
    page.blank();
    let since = format!(" since {}", rfc3339(*since_unix_ms));
    page.state(0, &format!("Node {node_id} ({role}): "), phase, &since);
    page.line(2, format!("epoch {}", epoch(attachment.epoch.as_ref())));
    if !cause.is_empty() {
        page.line(2, format!("cause: {cause}"));
    }
    if let Some(under_way) = &attachment.fence {
        fence(page, under_way);
    }
    page.line(2, format!("waits for {}", if waits_for.is_empty() { "nothing" } else { waits_for }));
    if let Some(proof) = &attachment.evidence {
        evidence(page, 2, proof);
    }
    match &attachment.reported {
        Some(state) => report(page, state),
        None => page.line(2, "agent reports nothing"),
    }
}

fn evidence(page: &mut Page, indent: usize, evidence: &EvidenceInfo) {
    let EvidenceInfo { source, verdict, drained_by, assumption, by, reason, wanted_by, .. } = evidence;
    page.line(indent, format!("evidence {source} at {}: {verdict}", rfc3339(evidence.at_unix_ms)));
    if drained_by.is_empty() {
        page.line(indent, "not drained: its writes may still arrive");
    } else {
        page.line(indent, format!("drained: {drained_by}"));
    }
    if !assumption.is_empty() {
        page.line(indent, format!("assumes: {assumption}"));
    }
    if !by.is_empty() {
        page.line(indent, format!("declared gone by {by}: {reason}"));
    }
    // Who declared a node gone is in the line above.
    if !wanted_by.is_empty() && by.is_empty() {
        page.line(indent, format!("forced by {wanted_by}: {}", evidence.wanted_because));
    }
}

fn fence(page: &mut Page, fence: &FenceInfo) {
    let FenceInfo { rung, step, tried, since_unix_ms } = fence;
    let since = rfc3339(*since_unix_ms);
    if step == "refused" {
        page.line(2, format!("fence since {since}: all fencing methods failed; will retry"));
    } else {
        page.line(2, format!("fence since {since}: {rung}, step {step}"));
    }
    for tried in tried {
        page.line(4, format!("tried {}: {}", tried.rung, tried.result));
    }
}

fn fenced_node(page: &mut Page, fenced: &FencedInfo) {
    let (epoch, since) = (epoch(fenced.epoch.as_ref()), rfc3339(fenced.since_unix_ms));
    page.line(2, format!("node {} ({}), epoch {epoch}, since {since}", fenced.node_id, fenced.host_nqn));
    if let Some(proof) = &fenced.evidence {
        evidence(page, 4, proof);
    }
}

fn report(page: &mut Page, state: &VolumeState) {
    let device = if state.device.is_empty() { String::new() } else { format!(", device {}", state.device) };
    let rest = format!("{device}, {} writes completed", state.writes);
    page.state(2, "agent reports ", phase(state.phase()), &rest);
    for path in &state.paths {
        let ana = if path.ana_state.is_empty() { String::new() } else { format!(", {}", path.ana_state) };
        page.line(4, format!("path {} ({}): {}{ana}", path.portal, path.controller, path.state));
    }
    if let Some(unready) = &state.unready {
        page.line(4, format!("not ready: {}: {}", unready.clause, unready.message));
    }
    for staging in state.staging.iter().filter(|staging| !staging.same) {
        page.line(4, format!("WRONG DEVICE staged at {}: {}", staging.path, staging.device));
    }
    for opener in &state.openers {
        page.line(4, format!("used by {opener}"));
    }
}

fn request(page: &mut Page, wait: &WaitInfo) {
    let WaitInfo { request, node_id, since_unix_ms, waits_for } = wait;
    let node = if node_id.is_empty() { "all nodes".to_owned() } else { format!("node {node_id}") };
    page.line(2, format!("{request} for {node} since {}: waits for {waits_for}", rfc3339(*since_unix_ms)));
}
