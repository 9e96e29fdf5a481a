//! The tables: volumes, nodes, migrations, and what the doctor found.
//!
//! Comes in: the controller's answers and a terminal's width. Goes out: texts with marked state words.

use cleat_proto::cleat::v1::volume_state::Phase;
use cleat_proto::cleat::v1::{AttachmentInfo, DriftInfo, FencedInfo, MigrationInfo, NodeInfo, VolumeInfo};
use cleat_runtime::date::rfc3339;

use crate::format::{bytes, epoch, paths, timeline, vm};
use crate::table::{Cell, Table};

pub(crate) fn volumes(volumes: &[VolumeInfo], width: Option<usize>) -> String {
    if volumes.is_empty() {
        return "No volumes are tracked.".to_owned();
    }
    let columns = [
        ("VOLUME", 0),
        ("ACCESS", 3),
        ("SIZE", 4),
        ("NODE", 0),
        ("ROLE", 5),
        ("PHASE", 0),
        ("FENCE", 1),
        ("EPOCH", 6),
        ("PATHS", 2),
    ];
    let mut table = Table::new(columns, "WAITS FOR");
    for volume in volumes {
        let size = volume.identity.as_ref().map(|i| bytes(i.size_bytes)).unwrap_or_default();
        let mut row = |[node, role, phase, fence, epoch, paths]: [&str; 6], waits_for: &str| {
            let [id, access, size] = [&volume.volume_id, &volume.access, &size].map(Cell::from);
            let [node, role, fence, epoch, paths] = [node, role, fence, epoch, paths].map(Cell::from);
            table.row([id, access, size, node, role, Cell::state(phase), fence, epoch, paths], waits_for);
        };
        for FencedInfo { node_id, evidence, epoch: of, .. } in &volume.fenced {
            let source = evidence.as_ref().map(|evidence| evidence.source.as_str()).unwrap_or_default();
            let until = if volume.deleted {
                "node's agent to report it absent; the volume is deleted"
            } else {
                "node's agent to report it absent"
            };
            row([node_id, "", "fenced", source, &epoch(of.as_ref()), ""], until);
        }
        for a in &volume.attachments {
            let fence = match &a.fence {
                Some(fence) if fence.step == "refused" => "failed".to_owned(),
                Some(fence) => format!("{}, {}", fence.rung, fence.step),
                None => String::new(),
            };
            let paths = a.reported.as_ref().map(paths).unwrap_or_default();
            row([&a.node_id, &a.role, phase(a), &fence, &epoch(a.epoch.as_ref()), &paths], &a.waits_for);
        }
        if volume.attachments.is_empty() && volume.fenced.is_empty() {
            row(["", "", if volume.deleted { "deleted" } else { "detached" }, "", "", ""], "");
        }
    }
    table.render(width)
}

/// The controller's phase; for a ready attachment, whether its agent reports missing paths.
fn phase(attachment: &AttachmentInfo) -> &str {
    let degraded = attachment.reported.as_ref().is_some_and(|state| state.phase() == Phase::Degraded);
    if attachment.phase == "Ready" && degraded { "Degraded" } else { &attachment.phase }
}

pub(crate) fn nodes(nodes: &[NodeInfo], width: Option<usize>) -> String {
    if nodes.is_empty() {
        return "No agent has connected since this controller started.".to_owned();
    }
    let columns = [
        ("NODE", 0),
        ("AGENT", 0),
        ("SINCE", 2),
        ("STANDING", 0),
        ("VOLUMES", 1),
        ("STORAGE ADDRESSES", 3),
        ("KERNEL", 4),
        ("FABRICS", 6),
        ("VERSION", 5),
    ];
    let mut table = Table::new(columns, "REASON");
    for node in nodes {
        let held = node.volumes.iter().filter(|volume| volume.phase() != Phase::Absent).count();
        let addresses = node.identity.as_ref().map(|i| i.storage_addresses.join(",")).unwrap_or_default();
        let capabilities = node.capabilities.clone().unwrap_or_default();
        let cells = [
            Cell::from(&node.node_id),
            Cell::state(&node.session),
            rfc3339(node.session_since_unix_ms).into(),
            Cell::state(&node.standing),
            held.to_string().into(),
            addresses.into(),
            capabilities.kernel_release.into(),
            capabilities.fabrics.into(),
            Cell::from(&node.agent_version),
        ];
        table.row(cells, &node.standing_reason);
    }
    table.render(width)
}

pub(crate) fn migrations(migrations: &[MigrationInfo], width: Option<usize>) -> String {
    if migrations.is_empty() {
        return "No migrations are recorded.".to_owned();
    }
    let columns = [("VOLUME", 0), ("FROM", 0), ("TO", 0), ("RESULT", 0), ("BEGAN", 1), ("VM", 2)];
    let mut table = Table::new(columns, "TIMELINE");
    for migration in migrations {
        let began = migration.steps.first().map(|step| rfc3339(step.at_unix_ms)).unwrap_or_default();
        let MigrationInfo { volume_id, source_node_id, target_node_id, result, overdue, .. } = migration;
        let result = Cell::state(if *overdue { "overdue" } else { result });
        let [volume, from, to, began, vm] =
            [volume_id, source_node_id, target_node_id, &began, &vm(migration)].map(Cell::from);
        table.row([volume, from, to, result, began, vm], timeline(migration));
    }
    table.render(width)
}

pub(crate) fn problems(problems: &[DriftInfo], width: Option<usize>) -> String {
    if problems.is_empty() {
        return "No problems found.".to_owned();
    }
    let mut table = Table::new([("PROBLEM", 0), ("NODE", 0), ("VOLUME", 0)], "DETAILS AND ACTION");
    for DriftInfo { kind, node_id, volume_id, message } in problems {
        table.row([kind, node_id, volume_id].map(Cell::from), message);
    }
    table.render(width)
}
