//! Answers as tables. Columns as wide as they need, two blanks between; an empty field is a dash.

use cleat_proto::cleat::v1 as wire;
use wire::volume_state::Phase;

/// Rows under a head.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let head = head.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&head).chain(rows) {
        let cells = row.iter().zip(&widths).map(|(cell, width)| {
            let cell = if cell.is_empty() { "-" } else { cell };
            format!("{cell:<width$}")
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

pub(crate) fn volumes(volumes: &[wire::VolumeInfo]) -> String {
    if volumes.is_empty() {
        return "No volumes are tracked.".to_owned();
    }
    let mut rows = Vec::new();
    for volume in volumes {
        let size = volume.identity.as_ref().map(|i| bytes(i.size_bytes)).unwrap_or_default();
        let head = vec![volume.volume_id.clone(), volume.access.clone(), size];
        for fenced in &volume.fenced {
            let mut row = head.clone();
            let source = fenced.evidence.as_ref().map(|evidence| evidence.source.clone()).unwrap_or_default();
            let until = "its inventory to show nothing of it".to_owned();
            let phase = format!("fenced ({source})");
            let epoch = epoch(fenced.epoch.as_ref());
            row.extend([fenced.node_id.clone(), String::new(), phase, epoch, String::new(), until]);
            rows.push(row);
        }
        if volume.attachments.is_empty() && volume.fenced.is_empty() {
            let mut row = head.clone();
            row.extend(["", "", "detached", "", "", ""].map(String::from));
            rows.push(row);
        }
        for attachment in &volume.attachments {
            let mut row = head.clone();
            row.extend([
                attachment.node_id.clone(),
                attachment.role.clone(),
                phase(attachment),
                epoch(attachment.epoch.as_ref()),
                attachment.reported.as_ref().map(paths).unwrap_or_default(),
                attachment.waits_for.clone(),
            ]);
            rows.push(row);
        }
    }
    table(&["VOLUME", "ACCESS", "SIZE", "NODE", "ROLE", "PHASE", "EPOCH", "PATHS", "WAITS FOR"], &rows)
}

/// The phase, and the fence within it: `Draining (fence: acl, hide)`.
fn phase(attachment: &wire::AttachmentInfo) -> String {
    match &attachment.fence {
        None => attachment.phase.clone(),
        Some(fence) if fence.step == "refused" => format!("{} (fence: refused)", attachment.phase),
        Some(fence) => format!("{} (fence: {}, {})", attachment.phase, fence.rung, fence.step),
    }
}

pub(crate) fn ghosts(ghosts: &[wire::GhostInfo]) -> String {
    if ghosts.is_empty() {
        return "Nothing is where it should not be.".to_owned();
    }
    let rows: Vec<Vec<String>> = ghosts
        .iter()
        .map(|ghost| {
            let wire::GhostInfo { kind, node_id, volume_id, message } = ghost.clone();
            vec![kind, node_id, volume_id, message]
        })
        .collect();
    table(&["WHAT", "NODE", "VOLUME", "AND WHAT TO DO"], &rows)
}

pub(crate) fn nodes(nodes: &[wire::NodeInfo]) -> String {
    if nodes.is_empty() {
        return "No agent has been heard since this controller started.".to_owned();
    }
    let rows: Vec<Vec<String>> = nodes
        .iter()
        .map(|node| {
            let held = node.volumes.iter().filter(|v| v.phase() != Phase::Absent);
            let addresses = node.identity.as_ref().map(|i| i.storage_addresses.join(",")).unwrap_or_default();
            let kernel = node.capabilities.as_ref().map(|c| c.kernel_release.clone()).unwrap_or_default();
            let fabrics = node.capabilities.as_ref().map(|c| c.fabrics.clone()).unwrap_or_default();
            vec![
                node.node_id.clone(),
                node.session.clone(),
                time(node.session_since_unix_ms),
                standing(node),
                held.count().to_string(),
                addresses,
                kernel,
                fabrics,
                node.agent_version.clone(),
            ]
        })
        .collect();
    table(
        &[
            "NODE",
            "AGENT",
            "SINCE",
            "STANDING",
            "VOLUMES",
            "STORAGE ADDRESSES",
            "KERNEL",
            "FABRICS",
            "VERSION",
        ],
        &rows,
    )
}

fn standing(node: &wire::NodeInfo) -> String {
    if node.standing_reason.is_empty() {
        node.standing.clone()
    } else {
        format!("{}: {}", node.standing, node.standing_reason)
    }
}

pub(crate) fn migrations(migrations: &[wire::MigrationInfo]) -> String {
    if migrations.is_empty() {
        return "No migrations are recorded.".to_owned();
    }
    let rows: Vec<Vec<String>> = migrations
        .iter()
        .map(|migration| {
            vec![
                migration.volume_id.clone(),
                migration.source_node_id.clone(),
                migration.target_node_id.clone(),
                migration.result.clone(),
                migration.steps.first().map(|step| time(step.at_unix_ms)).unwrap_or_default(),
                timeline(migration),
            ]
        })
        .collect();
    table(&["VOLUME", "FROM", "TO", "RESULT", "BEGAN", "TIMELINE"], &rows)
}

/// Each step with the time since the first: `granted, target_ready +0.412s, ...`.
pub(crate) fn timeline(migration: &wire::MigrationInfo) -> String {
    let Some(first) = migration.steps.first() else { return String::new() };
    let steps = migration.steps.iter().map(|step| {
        let after = step.at_unix_ms.saturating_sub(first.at_unix_ms);
        if after == 0 {
            step.name.clone()
        } else {
            format!("{} +{}.{:03}s", step.name, after / 1000, after % 1000)
        }
    });
    steps.collect::<Vec<_>>().join(", ")
}

/// Live paths of all: `2/2`.
pub(crate) fn paths(state: &wire::VolumeState) -> String {
    if state.paths.is_empty() {
        return String::new();
    }
    let live = state.paths.iter().filter(|path| path.state == "live").count();
    format!("{live}/{}", state.paths.len())
}

pub(crate) fn epoch(epoch: Option<&wire::Epoch>) -> String {
    epoch.map(|e| format!("{}.{}", e.term, e.seq)).unwrap_or_default()
}

pub(crate) fn time(unix_ms: u64) -> String {
    cleat_runtime::date::rfc3339(unix_ms)
}

/// A size exactly where it is a round one, else to two places.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if bytes >= unit {
            let hundredths = u128::from(bytes) * 100 / u128::from(unit);
            return match (bytes % unit, hundredths) {
                (0, _) => format!("{} {name}", bytes / unit),
                (_, hundredths) => format!("{}.{:02} {name}", hundredths / 100, hundredths % 100),
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let rows = vec![
            vec!["a".to_owned(), "long cell".to_owned(), String::new()],
            vec!["longer".to_owned(), "b".to_owned(), "c".to_owned()],
        ];
        let text = table(&["X", "Y", "Z"], &rows);
        assert_eq!(text, "X       Y          Z\na       long cell  -\nlonger  b          c\n");
    }

    #[test]
    fn sizes_are_not_rounded_up() {
        assert_eq!(bytes(1 << 30), "1 GiB");
        assert_eq!(bytes((2 << 30) - 1), "1.99 GiB");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(u64::MAX), "16777215.99 TiB");
    }

    #[test]
    fn a_timeline_counts_from_its_first_step() {
        let step = |name: &str, at_unix_ms| wire::MigrationStep { name: name.into(), at_unix_ms };
        let migration = wire::MigrationInfo {
            steps: vec![step("granted", 1000), step("target_ready", 1412), step("done", 3500)],
            ..Default::default()
        };
        assert_eq!(timeline(&migration), "granted, target_ready +0.412s, done +2.500s");
    }
}
