//! What happens, as Events beside the objects of the cluster: the claim and the record of a volume, the Node and its record.
//!
//! In come notices of the engine; out go Events by `cleat-kubernetes`. What holds: only a leader writes any; they go through a
//! queue of their own, so nothing waits for them and nothing fails by them; what does not fit in the queue, or is not taken
//! by the API server, is counted and left out. The reasons are stable names, and the notes say nothing that changes from
//! one time to the next, so that what happens again raises the count of the Event that is there.

use std::sync::Arc;
use std::time::Duration;

use cleat_core::{
    Evidence, FenceStep, Migration, MigrationResult, MigrationStep, NodeId, Notice, ObservedPhase, Refusal,
    Rung, Side, Source, VmStage,
};
use cleat_kubernetes::events::{Events, Happening, ObjectOfCluster};
use cleat_kubernetes::references::References;
use cleat_runtime::hush::Hush;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::engine::{NoticeText, WatchedChange};
use crate::leadership::Leadership;
use crate::{explain, metrics};

/// Notices that may wait for the API server. Those after them are left out.
const QUEUE: usize = 1024;
/// Between two looks at counts that are to be written.
const COUNTS: Duration = Duration::from_secs(5);

/// Why there is an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventReason {
    /// A node has proven that it can use a volume.
    VolumeAttached,
    /// It is proven that a node cannot write to a volume any more.
    VolumeDetached,
    /// A node wants a volume that others have.
    AttachmentConflict,
    /// A second node was granted a volume.
    MigrationStarted,
    /// The source has given the volume up.
    MigrationCompleted,
    /// The target has given the volume up.
    MigrationRolledBack,
    /// The side that the VM was on has given the volume up, or a target that was never ready.
    MigrationFailed,
    /// Two nodes have a volume for longer than a migration may take. Nobody is cut off by it.
    MigrationTimedOut,
    /// The source of a migration has written after the VM had moved.
    LateWrite,
    /// A node is being cut off from a volume.
    FenceStarted,
    /// The target keeps a node out of a volume.
    FenceProven,
    /// No fence was possible: a node may still write.
    FenceUnknown,
    /// A node is granted nothing.
    NodeQuarantined,
    /// A node has shown that it holds nothing of what it was fenced from.
    NodeReadmitted,
    /// Something is where it should not be, or is not where it should be.
    DriftFound,
    /// A node has lost a path to a volume, or all.
    PathDegraded,
    /// All paths are back.
    PathRecovered,
}

/// Beside which objects an Event is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Volume,
    Node,
    Both,
}

impl EventReason {
    fn name(self) -> &'static str {
        match self {
            Self::VolumeAttached => "VolumeAttached",
            Self::VolumeDetached => "VolumeDetached",
            Self::AttachmentConflict => "AttachmentConflict",
            Self::MigrationStarted => "MigrationStarted",
            Self::MigrationCompleted => "MigrationCompleted",
            Self::MigrationRolledBack => "MigrationRolledBack",
            Self::MigrationFailed => "MigrationFailed",
            Self::MigrationTimedOut => "MigrationTimedOut",
            Self::LateWrite => "LateWrite",
            Self::FenceStarted => "FenceStarted",
            Self::FenceProven => "FenceProven",
            Self::FenceUnknown => "FenceUnknown",
            Self::NodeQuarantined => "NodeQuarantined",
            Self::NodeReadmitted => "NodeReadmitted",
            Self::DriftFound => "DriftFound",
            Self::PathDegraded => "PathDegraded",
            Self::PathRecovered => "PathRecovered",
        }
    }

    fn warns(self) -> bool {
        match self {
            Self::AttachmentConflict
            | Self::MigrationRolledBack
            | Self::MigrationFailed
            | Self::MigrationTimedOut
            | Self::LateWrite
            | Self::FenceStarted
            | Self::FenceUnknown
            | Self::NodeQuarantined
            | Self::DriftFound
            | Self::PathDegraded => true,
            Self::VolumeAttached
            | Self::VolumeDetached
            | Self::MigrationStarted
            | Self::MigrationCompleted
            | Self::FenceProven
            | Self::NodeReadmitted
            | Self::PathRecovered => false,
        }
    }

    fn about(self) -> About {
        match self {
            Self::VolumeAttached
            | Self::VolumeDetached
            | Self::AttachmentConflict
            | Self::MigrationStarted
            | Self::MigrationCompleted
            | Self::MigrationRolledBack
            | Self::MigrationFailed
            | Self::MigrationTimedOut
            | Self::PathDegraded
            | Self::PathRecovered => About::Volume,
            Self::NodeQuarantined | Self::NodeReadmitted => About::Node,
            Self::LateWrite
            | Self::FenceStarted
            | Self::FenceProven
            | Self::FenceUnknown
            | Self::DriftFound => About::Both,
        }
    }
}

/// What is shown beside the cluster's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterEvent {
    /// Its stable name.
    pub reason: EventReason,
    /// What happened, for people.
    pub note: String,
}

impl ClusterEvent {
    fn new(reason: EventReason, note: String) -> Vec<Self> {
        vec![Self { reason, note }]
    }
}

/// A notice as Events; most notices are none.
pub(crate) fn of(notice: &Notice) -> Vec<ClusterEvent> {
    use EventReason as Reason;
    match notice {
        Notice::Phase { volume, node, phase: "Ready", .. } => ClusterEvent::new(
            Reason::VolumeAttached,
            format!("volume {volume} is attached to node {node}, which has proven that it can use it"),
        ),
        Notice::Health { volume, node, from, to, live_paths, unready } => {
            let live = format!("volume {volume} on node {node} has {live_paths} live paths");
            let why = if unready.is_empty() { String::new() } else { format!(": {unready}") };
            match (from, to) {
                (_, ObservedPhase::Degraded) => {
                    ClusterEvent::new(Reason::PathDegraded, format!("{live}{why}"))
                }
                (_, ObservedPhase::Lost) => ClusterEvent::new(
                    Reason::PathDegraded,
                    format!("volume {volume} is lost to node {node}{why}"),
                ),
                (ObservedPhase::Degraded | ObservedPhase::Lost, ObservedPhase::Ready) => {
                    ClusterEvent::new(Reason::PathRecovered, live)
                }
                _ => Vec::new(),
            }
        }
        Notice::Detached { volume, evidence } => detached(volume.as_str(), evidence),
        Notice::Migration { volume, migration, step } => migrated(volume.as_str(), migration, *step),
        Notice::LateWrite { volume, node, target } => {
            ClusterEvent::new(Reason::LateWrite, explain::late_write(volume, node, target))
        }
        Notice::FenceBegun { volume, node } => ClusterEvent::new(
            Reason::FenceStarted,
            format!("node {node} is being cut off from volume {volume}"),
        ),
        Notice::Fence { volume, node, rung, step: FenceStep::Refused } if *rung != Rung::Barrier => {
            ClusterEvent::new(
                Reason::FenceUnknown,
                format!(
                    "node {node} may still write to volume {volume}, and no fence was possible; bring its agent back, or, if \
                     it is known to be off, declare it gone (cleatctl node declare-gone {node})"
                ),
            )
        }
        Notice::Quarantined { volume, node } => ClusterEvent::new(
            Reason::NodeQuarantined,
            format!(
                "node {node} is granted no volume until its agent has shown that it holds nothing of volume {volume}"
            ),
        ),
        Notice::Readmitted { volume, node } => ClusterEvent::new(
            Reason::NodeReadmitted,
            format!("node {node} has shown that it holds nothing of volume {volume}"),
        ),
        Notice::StrayFound { volume, node } => ClusterEvent::new(
            Reason::DriftFound,
            format!("node {node} holds volume {volume}, or may, and it was not granted to it"),
        ),
        Notice::DesiredUnclear { node } => {
            ClusterEvent::new(Reason::DriftFound, explain::desired_unclear(node))
        }
        Notice::TooManyDesired { volume, nodes } => {
            ClusterEvent::new(Reason::DriftFound, explain::too_many_desired(volume, nodes))
        }
        Notice::Granted { .. }
        | Notice::Phase { .. }
        | Notice::MigrationReported { .. }
        | Notice::Fence { .. }
        | Notice::Trouble { .. }
        | Notice::Unsettled { .. } => Vec::new(),
    }
}

fn detached(volume: &str, evidence: &Evidence) -> Vec<ClusterEvent> {
    let (node, source) = (&evidence.node, evidence.source.name());
    let mut note =
        format!("volume {volume} is detached from node {node}, which cannot write any more: {source}");
    if let Some(statement) = &evidence.statement {
        note.push_str(&format!("; forced by {}: {}", statement.by, statement.reason));
    }
    let mut events = ClusterEvent::new(EventReason::VolumeDetached, note);
    match &evidence.source {
        Source::TargetCut { .. } | Source::Reservation { .. } | Source::ExportOff => {
            let note = format!("node {node} is cut off from volume {volume}: {source}");
            events.extend(ClusterEvent::new(EventReason::FenceProven, note));
        }
        // A person has said so; nothing has proven it.
        Source::NodeGone { .. } | Source::AgentAbsent { .. } | Source::NeverAllowed => {}
    }
    events
}

fn migrated(volume: &str, migration: &Migration, step: MigrationStep) -> Vec<ClusterEvent> {
    let Migration { source, target, .. } = migration;
    let way = format!("volume {volume}: migration from node {source} to node {target}");
    let seconds = migration.timeout_ms / 1000;
    match step {
        MigrationStep::Granted => ClusterEvent::new(EventReason::MigrationStarted, way),
        MigrationStep::TimedOut => ClusterEvent::new(
            EventReason::MigrationTimedOut,
            format!(
                "{way}: both have had it for longer than the {seconds} s that it may take; nobody is cut off by that, and no \
                 third node gets it before one of the two is off"
            ),
        ),
        MigrationStep::Done => {
            let end = migration.left.and_then(|left| ended(migration, left));
            end.map_or_else(Vec::new, |(reason, how)| ClusterEvent::new(reason, format!("{way}{how}")))
        }
        _ => Vec::new(),
    }
}

/// What the end of a migration is, with the side that has given the volume up: without one, nobody has.
fn ended(migration: &Migration, left: Side) -> Option<(EventReason, String)> {
    let Migration { source, target, result, vm, steps, .. } = migration;
    let as_it_ended = format!(": {}", result.name());
    match (result, left) {
        (MigrationResult::Completed, _) => Some((EventReason::MigrationCompleted, String::new())),
        (MigrationResult::RolledBack, _) => Some((EventReason::MigrationRolledBack, as_it_ended)),
        // Nobody has said which of the two the VM was to leave: what is known is which of them has it no more.
        (MigrationResult::Unattributed, Side::Source) => Some((EventReason::MigrationCompleted, as_it_ended)),
        (MigrationResult::Unattributed, Side::Target) => {
            Some((EventReason::MigrationRolledBack, as_it_ended))
        }
        (MigrationResult::Failed, _) => {
            let moved = steps.iter().any(|taken| taken.step == MigrationStep::Switchover)
                || vm.as_ref().is_some_and(|vm| vm.stage == VmStage::Completed || vm.switched_at.is_some());
            let how = match left {
                Side::Source => format!("node {source} has given it up before the VM had moved"),
                Side::Target if moved => {
                    format!(
                        "the VM had moved to node {target}, which has given it up; node {source} still has it, without the VM"
                    )
                }
                Side::Target => format!("node {target} has given it up, and was not seen to become ready"),
            };
            Some((EventReason::MigrationFailed, format!("{as_it_ended}: {how}")))
        }
        // It was said when its time ended.
        (MigrationResult::TimedOut | MigrationResult::Running, _) => None,
    }
}

/// A refusal as Events: one that comes of who has the volume.
pub(crate) fn of_refusal(refusal: &Refusal) -> Vec<ClusterEvent> {
    match refusal {
        Refusal::AttachedElsewhere { .. }
        | Refusal::MigrationLimit { .. }
        | Refusal::MigrationOverdue { .. } => {
            ClusterEvent::new(EventReason::AttachmentConflict, explain::refusal(refusal))
        }
        _ => Vec::new(),
    }
}

/// Writes Events of all that changes, as long as this process leads.
pub(crate) async fn write(
    changes: broadcast::Receiver<WatchedChange>,
    events: Events,
    references: References,
    leadership: Leadership,
    timeout: Duration,
    stop: CancellationToken,
) {
    let (queue, waiting) = mpsc::channel(QUEUE);
    tokio::select! {
        () = stop.cancelled() => {}
        () = take(changes, queue) => {}
        () = say(waiting, events, references, leadership, timeout) => {}
    }
}

/// Never waits: a change that is not taken in time is lost to everybody who is slower.
async fn take(mut changes: broadcast::Receiver<WatchedChange>, queue: mpsc::Sender<Arc<NoticeText>>) {
    loop {
        match changes.recv().await {
            Ok(WatchedChange::Notice(notice)) if !notice.events.is_empty() => {
                if queue.try_send(notice).is_err() {
                    metrics::events_dropped(1);
                }
            }
            Ok(_) => {}
            Err(RecvError::Lagged(missed)) => metrics::events_dropped(missed),
            Err(RecvError::Closed) => return,
        }
    }
}

async fn say(
    mut waiting: mpsc::Receiver<Arc<NoticeText>>,
    mut events: Events,
    mut references: References,
    leadership: Leadership,
    timeout: Duration,
) {
    let hush = Hush::default();
    let failed = |error: &cleat_kubernetes::api::ApiError| {
        metrics::events_dropped(1);
        hush.warn(|skipped| tracing::warn!(skipped, "cannot write an Event: {error}; it is left out"));
    };
    let mut counts = tokio::time::interval(COUNTS);
    counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let notice = tokio::select! {
            notice = waiting.recv() => notice,
            _ = counts.tick() => {
                if leadership.outlives(timeout) && let Err(error) = events.write_counts().await {
                    failed(&error);
                }
                continue;
            }
        };
        let Some(notice) = notice else { return };
        for event in &notice.events {
            for object in objects(&mut references, &notice, event.reason.about()).await {
                // What others do after this process is theirs to say.
                if !leadership.outlives(timeout) {
                    metrics::events_dropped(1);
                    continue;
                }
                let happening = Happening {
                    object,
                    reason: event.reason.name(),
                    warning: event.reason.warns(),
                    note: event.note.clone(),
                };
                match events.say(happening).await {
                    Ok(()) => metrics::event_written(),
                    Err(error) => failed(&error),
                }
            }
        }
    }
}

async fn objects(references: &mut References, notice: &NoticeText, about: About) -> Vec<ObjectOfCluster> {
    let mut objects = Vec::new();
    let node = notice.node.as_ref().map(NodeId::as_str);
    if let (Some(volume), About::Volume | About::Both) = (&notice.volume, about) {
        objects.push(references.volume_record(volume.as_str()).await);
        objects.extend(references.claim(volume.as_str()).await);
    }
    if let (Some(node), About::Node | About::Both) = (node, about) {
        objects.push(references.node_record(node).await);
        objects.push(references.node(node).await);
    }
    objects
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
