//! Notices of the core, for people: one log line, one count, one message for watchers.
//!
//! In come [`Notice`]s, after what they report has become durable; out goes [`NoticeText`]. The reasons are stable
//! names.

use std::time::Duration;

use cleat_core::{
    Evidence, Migration, MigrationResult, MigrationStep, NodeId, Notice, ObservedPhase, Refusal, UnixMillis,
    VmMigration, VolumeId,
};

use crate::events::{self, ClusterEvent};
use crate::{explain, metrics};

/// The reason of a notice of late writes.
pub(crate) const LATE_WRITE: &str = "late_write";

/// Something that happened, as text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoticeText {
    /// When.
    pub at: UnixMillis,
    /// A stable name, such as `volume_degraded`.
    pub reason: &'static str,
    /// About which volume; `None`: about the node.
    pub volume: Option<VolumeId>,
    /// On which node; `None`: no certain one.
    pub node: Option<NodeId>,
    /// What happened, as text for people.
    pub message: String,
    /// The migration that it belongs to.
    pub migration: Option<Box<Migration>>,
    /// As what it is shown beside the cluster's objects.
    pub events: Vec<ClusterEvent>,
}

/// Logs and counts a notice; gives it as text for people.
pub(super) fn tell(at: UnixMillis, notice: &Notice) -> NoticeText {
    let text = NoticeText { events: events::of(notice), ..render(at, notice) };
    metrics::notice(text.reason);
    match notice {
        Notice::Granted { volume, node, epoch } => {
            tracing::info!(%volume, %node, %epoch, reason = text.reason, "{}", text.message);
        }
        Notice::Phase { volume, node, epoch, phase, after_ms } => {
            metrics::phase_entered(phase, Duration::from_millis(*after_ms));
            tracing::info!(%volume, %node, %epoch, phase, after_ms, reason = text.reason, "{}", text.message);
        }
        Notice::Health { volume, node, to, live_paths, .. } => {
            let bad = matches!(to, ObservedPhase::Degraded | ObservedPhase::Lost);
            if bad {
                tracing::warn!(%volume, %node, live_paths, reason = text.reason, "{}", text.message);
            } else {
                tracing::info!(%volume, %node, live_paths, reason = text.reason, "{}", text.message);
            }
        }
        Notice::Detached { volume, evidence } => {
            let (node, epoch, source) = (&evidence.node, evidence.epoch, evidence.source.name());
            tracing::info!(%volume, %node, %epoch, source, reason = text.reason, "{}", text.message);
        }
        Notice::Migration { volume, migration, step } => {
            measure(migration, *step);
            let (node, epoch) = (&migration.target, migration.target_epoch);
            tracing::info!(
                %volume, %node, %epoch, source = %migration.source, step = step.name(), reason = text.reason,
                "{}", text.message
            );
        }
        Notice::MigrationReported { volume, migration } => {
            let (node, epoch) = (&migration.target, migration.target_epoch);
            tracing::info!(
                %volume, %node, %epoch, source = %migration.source, reason = text.reason, "{}", text.message
            );
        }
        Notice::Readmitted { volume, node } => {
            tracing::info!(%volume, %node, reason = text.reason, "{}", text.message);
        }
        Notice::Fence { volume, node, .. }
        | Notice::LateWrite { volume, node, .. }
        | Notice::FenceBegun { volume, node }
        | Notice::Quarantined { volume, node }
        | Notice::Trouble { volume, node, .. }
        | Notice::StrayFound { volume, node } => {
            tracing::warn!(%volume, %node, reason = text.reason, "{}", text.message);
        }
        Notice::DesiredUnclear { node } => {
            tracing::warn!(%node, reason = text.reason, "{}", text.message);
        }
        Notice::TooManyDesired { volume, .. } => {
            tracing::warn!(%volume, reason = text.reason, "{}", text.message);
        }
        Notice::Unsettled { volume } => {
            tracing::error!(%volume, reason = text.reason, "{}", text.message);
        }
    }
    text
}

/// Counts a refused request; gives it as text for people.
pub(super) fn refused(
    at: UnixMillis,
    volume: Option<&VolumeId>,
    node: Option<&NodeId>,
    refusal: &Refusal,
) -> NoticeText {
    let text = NoticeText {
        at,
        reason: "refused",
        volume: volume.cloned(),
        node: node.cloned(),
        message: explain::refusal(refusal),
        migration: None,
        events: events::of_refusal(refusal),
    };
    metrics::notice(text.reason);
    let (node, volume) = (node.map_or("all", NodeId::as_str), volume.map_or("all", VolumeId::as_str));
    // The edge that answers the caller logs it; this line is for the case that the caller has gone.
    tracing::debug!(volume, node, reason = text.reason, "{}", text.message);
    text
}

fn measure(migration: &Migration, step: MigrationStep) {
    let place = migration.steps.iter().position(|taken| taken.step == step);
    if let Some([before, after]) =
        place.and_then(|place| Some(place.checked_sub(1)?..=place)).and_then(|pair| migration.steps.get(pair))
    {
        metrics::migration_step(step.name(), Duration::from_millis(after.at.since(before.at)));
    }
    if counts_result(migration, step) {
        metrics::migration_ended(migration.result.name());
    }
}

/// A result is counted once: as soon as it is final. One that ran out of time goes on to its end.
fn counts_result(migration: &Migration, step: MigrationStep) -> bool {
    match step {
        MigrationStep::TimedOut => true,
        MigrationStep::Done => migration.result != MigrationResult::TimedOut,
        _ => false,
    }
}

fn render(at: UnixMillis, notice: &Notice) -> NoticeText {
    let about = |reason, volume: Option<&VolumeId>, node: Option<&NodeId>, message: String| NoticeText {
        at,
        reason,
        volume: volume.cloned(),
        node: node.cloned(),
        message,
        migration: None,
        events: Vec::new(),
    };
    let text = |reason, volume: &VolumeId, node: &NodeId, message: String| {
        about(reason, Some(volume), Some(node), message)
    };
    match notice {
        Notice::Granted { volume, node, epoch } => {
            text("granted", volume, node, format!("granted under epoch {epoch}"))
        }
        Notice::Phase { volume, node, epoch, phase, after_ms } => {
            let message = format!("epoch {epoch}: {phase} after {after_ms} ms");
            text("attachment_phase", volume, node, message)
        }
        Notice::Health { volume, node, from, to, live_paths, unready } => {
            let mut message = format!("{from:?} -> {to:?}, live paths: {live_paths}");
            if !unready.is_empty() {
                message.push_str("; ");
                message.push_str(unready);
            }
            text(health_reason(*to), volume, node, message)
        }
        Notice::Detached { volume, evidence } => text("detached", volume, &evidence.node, proof(evidence)),
        Notice::Migration { volume, migration, step } => {
            let message = format!(
                "migration from {} to {}: {} ({})",
                migration.source,
                migration.target,
                step.name(),
                migration.result.name()
            );
            let mut text = text("migration", volume, &migration.target, message);
            text.migration = Some(migration.clone());
            text
        }
        Notice::MigrationReported { volume, migration } => {
            let message = format!(
                "migration from {} to {}: {} ({})",
                migration.source,
                migration.target,
                as_reported(migration),
                migration.result.name()
            );
            let mut text = text("migration_reported", volume, &migration.target, message);
            text.migration = Some(migration.clone());
            text
        }
        Notice::LateWrite { volume, node, target } => {
            text(LATE_WRITE, volume, node, explain::late_write(volume, node, target))
        }
        Notice::Fence { volume, node, rung, step } => {
            let message = format!("fence by {}: {}", rung.name(), step.name());
            text("fence", volume, node, message)
        }
        Notice::FenceBegun { volume, node } => {
            text("fence_begun", volume, node, "the node is being cut off".to_owned())
        }
        Notice::Quarantined { volume, node } => {
            let message =
                "the node is granted nothing until it has shown that it holds none of it".to_owned();
            text("quarantined", volume, node, message)
        }
        Notice::Readmitted { volume, node } => {
            text("readmitted", volume, node, "the node has shown that it holds none of it".to_owned())
        }
        Notice::Trouble { volume, node, trouble } => text("trouble", volume, node, explain::trouble(trouble)),
        Notice::StrayFound { volume, node } => {
            let message = "the node's kernel holds the volume, and it was not granted to it".to_owned();
            text("stray_found", volume, node, message)
        }
        Notice::DesiredUnclear { node } => {
            about("desired_unclear", None, Some(node), explain::desired_unclear(node))
        }
        Notice::TooManyDesired { volume, nodes } => {
            about("too_many_desired", Some(volume), None, explain::too_many_desired(volume, nodes))
        }
        Notice::Unsettled { volume } => {
            let message = "cannot bring the volume to rest: a mistake of Cleat; it goes on with the next event; report \
                           this with the controller's log";
            about("unsettled", Some(volume), None, message.to_owned())
        }
    }
}

/// What KubeVirt says of it.
fn as_reported(migration: &Migration) -> String {
    let seen = migration.vm.as_ref();
    let text = seen.map(|seen| {
        let VmMigration { name, vm, stage, .. } = &**seen;
        format!("{name} of VM {}/{} is {}", vm.namespace, vm.name, stage.name())
    });
    text.unwrap_or_default()
}

fn health_reason(to: ObservedPhase) -> &'static str {
    match to {
        ObservedPhase::Degraded => "volume_degraded",
        ObservedPhase::Lost => "volume_lost",
        ObservedPhase::Ready => "volume_recovered",
        ObservedPhase::Absent | ObservedPhase::Connecting | ObservedPhase::Detaching => "volume_changed",
    }
}

fn proof(evidence: &Evidence) -> String {
    let mut message = format!(
        "epoch {} is over: {} proves that the node cannot write",
        evidence.epoch,
        evidence.source.name()
    );
    if let Some(assumption) = explain::assumption(evidence) {
        message.push_str(", taking for granted that ");
        message.push_str(&assumption);
    }
    if let Some(statement) = &evidence.statement {
        message.push_str(&format!("; forced by {}: {}", statement.by, statement.reason));
    }
    message
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_counted_once_and_that_of_a_time_out_at_once() {
        let counted = |result: &str, step| {
            let migration = serde_json::json!({
                "source": "a", "sourceEpoch": "1.1", "target": "b", "targetEpoch": "1.2", "result": result, "steps": [],
            });
            counts_result(&serde_json::from_value(migration).unwrap(), step)
        };
        for result in ["completed", "rolled_back", "failed", "unattributed"] {
            assert!(counted(result, MigrationStep::Done), "{result}");
            assert!(!counted(result, MigrationStep::Evidence), "{result}");
        }
        for (step, counts) in [
            (MigrationStep::TimedOut, true),
            (MigrationStep::Releasing, false),
            (MigrationStep::Evidence, false),
            (MigrationStep::Done, false),
        ] {
            assert_eq!(counted("timed_out", step), counts, "{step:?}");
        }
        assert!(!counted("running", MigrationStep::Granted));
    }

    #[test]
    fn a_lost_path_is_reported_with_its_clause_a_recovery_by_name() {
        let health = |from, to, live_paths, unready: &str| Notice::Health {
            volume: VolumeId::new("v").unwrap(),
            node: NodeId::new("a").unwrap(),
            from,
            to,
            live_paths,
            unready: unready.into(),
        };
        let lost = health(ObservedPhase::Ready, ObservedPhase::Degraded, 1, "paths: 1 of 2 live");
        let text = tell(UnixMillis(7), &lost);
        assert_eq!((text.reason, text.at), ("volume_degraded", UnixMillis(7)));
        assert_eq!(text.message, "Ready -> Degraded, live paths: 1; paths: 1 of 2 live");
        let back = health(ObservedPhase::Degraded, ObservedPhase::Ready, 2, "");
        assert_eq!(tell(UnixMillis(8), &back).reason, "volume_recovered");
    }
}
