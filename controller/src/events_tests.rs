#![allow(clippy::unwrap_used)]

use cleat_core::{Drained, Epoch, UnixMillis, VolumeId};

use super::*;

fn v() -> VolumeId {
    VolumeId::new("v").unwrap()
}

fn n(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn reasons(notice: &Notice) -> Vec<&'static str> {
    of(notice).into_iter().map(|event| event.reason.name()).collect()
}

fn evidence(source: Source) -> Notice {
    let (node, epoch, at) = (n("a"), Epoch { term: 1, seq: 1 }, UnixMillis(0));
    let evidence = Evidence { node, epoch, source, drained: Drained::Barrier, at, statement: None };
    Notice::Detached { volume: v(), evidence: Box::new(evidence) }
}

fn health(from: ObservedPhase, to: ObservedPhase) -> Notice {
    Notice::Health { volume: v(), node: n("a"), from, to, live_paths: 1, unready: String::new() }
}

fn migration(result: &str, left: &str, step: MigrationStep) -> Notice {
    let migration = serde_json::json!({
        "source": "a", "sourceEpoch": "1.1", "target": "b", "targetEpoch": "1.2", "result": result, "steps": [],
        "timeoutMs": 30_000, "left": left,
    });
    let migration = Box::new(serde_json::from_value(migration).unwrap());
    Notice::Migration { volume: v(), migration, step }
}

/// What leads to each reason. The compiler asks for the row of a new one.
macro_rules! led_to {
    ($($reason:ident: $events:expr,)*) => {
        const REASONS: &[EventReason] = &[$(EventReason::$reason),*];

        fn led_to(reason: EventReason) -> Vec<ClusterEvent> {
            match reason { $(EventReason::$reason => $events),* }
        }
    };
}

led_to! {
    VolumeAttached: of(&Notice::Phase {
        volume: v(), node: n("a"), epoch: Epoch { term: 1, seq: 1 }, phase: "Ready", after_ms: 1,
    }),
    VolumeDetached: of(&evidence(Source::NeverAllowed)),
    AttachmentConflict: of_refusal(&Refusal::AttachedElsewhere { volume: v(), node: n("a") }),
    MigrationStarted: of(&migration("running", "source", MigrationStep::Granted)),
    MigrationCompleted: of(&migration("completed", "source", MigrationStep::Done)),
    MigrationRolledBack: of(&migration("rolled_back", "target", MigrationStep::Done)),
    MigrationFailed: of(&migration("failed", "target", MigrationStep::Done)),
    MigrationTimedOut: of(&migration("timed_out", "source", MigrationStep::TimedOut)),
    LateWrite: of(&Notice::LateWrite { volume: v(), node: n("a"), target: n("b") }),
    FenceStarted: of(&Notice::FenceBegun { volume: v(), node: n("a") }),
    FenceProven: of(&evidence(Source::ExportOff)),
    FenceUnknown: of(&Notice::Fence {
        volume: v(), node: n("a"), rung: Rung::ExportOff, step: FenceStep::Refused,
    }),
    NodeQuarantined: of(&Notice::Quarantined { volume: v(), node: n("a") }),
    NodeReadmitted: of(&Notice::Readmitted { volume: v(), node: n("a") }),
    DriftFound: of(&Notice::StrayFound { volume: v(), node: n("a") }),
    PathDegraded: of(&health(ObservedPhase::Ready, ObservedPhase::Degraded)),
    PathRecovered: of(&health(ObservedPhase::Degraded, ObservedPhase::Ready)),
}

#[test]
fn each_reason_is_led_to_and_has_its_row_in_the_documentation() {
    let document = include_str!("../../docs/operating.md");
    for &reason in REASONS {
        let name = reason.name();
        let found = led_to(reason);
        let event = found.iter().find(|event| event.reason == reason);
        assert!(
            event.is_some_and(|event| event.note.to_lowercase().contains("volume v")),
            "{name}: {found:?}"
        );
        let shown = if reason.warns() { format!("`{name}` (warning)") } else { format!("`{name}`") };
        let row = document.lines().find(|line| line.starts_with("| ") && line.contains(&shown));
        let beside = row.and_then(|row| row.split('|').nth(2)).map(str::trim);
        let about = match reason.about() {
            About::Volume => "volume",
            About::Node => "node",
            About::Both => "volume, node",
        };
        assert_eq!(beside, Some(about), "{shown}");
    }
}

#[test]
fn an_end_by_a_cut_is_a_proven_fence_and_one_by_a_statement_is_not() {
    let cut = Source::TargetCut { acl: true, secret: None };
    assert_eq!(reasons(&evidence(cut)), ["VolumeDetached", "FenceProven"]);
    let gone = Source::NodeGone { by: "ann".into(), reason: "unplugged".into() };
    assert_eq!(reasons(&evidence(gone)), ["VolumeDetached"]);
    assert_eq!(reasons(&evidence(Source::NeverAllowed)), ["VolumeDetached"]);
}

#[test]
fn the_same_thing_later_has_the_same_note() {
    let phase = |seq, after_ms, phase| Notice::Phase {
        volume: v(),
        node: n("a"),
        epoch: Epoch { term: 1, seq },
        phase,
        after_ms,
    };
    assert_eq!(of(&phase(1, 7, "Ready")), of(&phase(2, 9, "Ready")));
    assert_eq!(reasons(&phase(1, 7, "Ready")), ["VolumeAttached"]);
    assert!(of(&phase(1, 7, "Connecting")).is_empty());
}

#[test]
fn paths_that_come_and_go_are_degraded_and_recovered() {
    let health = |from, to| reasons(&health(from, to));
    use ObservedPhase::{Absent, Connecting, Degraded, Lost, Ready};
    assert_eq!(health(Ready, Degraded), ["PathDegraded"]);
    assert_eq!(health(Degraded, Lost), ["PathDegraded"]);
    assert_eq!(health(Lost, Ready), ["PathRecovered"]);
    assert!(health(Connecting, Ready).is_empty() && health(Ready, Absent).is_empty());
}

/// The Events of the end of a migration with this result, in which this side has gone.
fn end(result: &str, left: Option<&str>, more: serde_json::Value) -> Vec<ClusterEvent> {
    let mut migration = serde_json::json!({
        "source": "a", "sourceEpoch": "1.1", "target": "b", "targetEpoch": "1.2", "result": result, "steps": [],
        "left": left,
    });
    migration.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    let migration = Box::new(serde_json::from_value(migration).unwrap());
    of(&Notice::Migration { volume: v(), migration, step: MigrationStep::Done })
}

#[test]
fn a_migration_ends_for_people_by_who_has_left() {
    for (result, left, reason) in [
        ("completed", "source", "MigrationCompleted"),
        ("rolled_back", "target", "MigrationRolledBack"),
        ("unattributed", "source", "MigrationCompleted"),
        ("unattributed", "target", "MigrationRolledBack"),
        ("failed", "source", "MigrationFailed"),
        ("failed", "target", "MigrationFailed"),
    ] {
        let events = end(result, Some(left), serde_json::Value::Null);
        assert_eq!(
            events.iter().map(|event| event.reason.name()).collect::<Vec<_>>(),
            [reason],
            "{result} {left}"
        );
        assert!(events[0].note.starts_with("volume v: migration from node a to node b"), "{events:?}");
    }
}

#[test]
fn an_end_in_which_nobody_has_left_is_no_event() {
    for result in ["completed", "rolled_back", "failed", "unattributed", "timed_out"] {
        assert_eq!(end(result, None, serde_json::Value::Null), [], "{result}");
    }
}

#[test]
fn a_target_that_is_gone_after_the_switchover_took_the_vm_along() {
    let vm = |stage: &str| {
        serde_json::json!({ "vm": {
            "uid": "uid-1", "name": "m", "vm": {"namespace": "n", "name": "vm", "uid": "u"}, "source": "a", "target": "b",
            "stage": stage,
        } })
    };
    let switchover = serde_json::json!({ "steps": [{"step": "switchover", "at": 7}] });
    for (more, moved) in [(vm("completed"), true), (switchover, true), (vm("failed"), false)] {
        let events = end("failed", Some("target"), more.clone());
        let [event] = &events[..] else { panic!("{events:?}") };
        assert!(event.reason == EventReason::MigrationFailed && event.reason.warns());
        assert_eq!(event.note.contains("the VM had moved to node b"), moved, "{event:?}");
        assert_eq!(event.note.contains("was not seen to become ready"), !moved, "{event:?}");
    }
}

#[test]
fn what_is_wrong_with_who_is_to_have_a_volume_is_drift_by_name() {
    let events = of(&Notice::TooManyDesired { volume: v(), nodes: ["a", "b", "c"].map(n).to_vec() });
    let note = "VolumeAttachments ask for volume v on 3 nodes: a, b, c; nobody is let in until at most two \
                are left";
    assert_eq!(events, ClusterEvent::new(EventReason::DriftFound, note.to_owned()));
    let events = of(&Notice::DesiredUnclear { node: n("a") });
    assert_eq!(events[0].reason, EventReason::DriftFound);
    assert!(events[0].note.starts_with("a VolumeAttachment of node a does not say"), "{events:?}");
}

#[test]
fn a_migration_that_runs_out_of_time_is_one_warning_and_its_end_none() {
    let at = |step| of(&migration("timed_out", "source", step));
    let events = at(MigrationStep::TimedOut);
    let [event] = &events[..] else { panic!("{events:?}") };
    assert!(event.reason == EventReason::MigrationTimedOut && event.reason.warns());
    assert!(event.note.contains("longer than the 30 s"), "{event:?}");
    assert!(at(MigrationStep::Done).is_empty());
}

#[test]
fn a_fence_without_a_rung_left_is_unknown_and_its_steps_are_no_events() {
    let fence = |rung, step| reasons(&Notice::Fence { volume: v(), node: n("a"), rung, step });
    assert_eq!(fence(Rung::NodeGone, FenceStep::Refused), ["FenceUnknown"]);
    assert!(fence(Rung::Acl, FenceStep::Deny).is_empty());
    assert!(fence(Rung::Barrier, FenceStep::Refused).is_empty());
    assert_eq!(reasons(&Notice::FenceBegun { volume: v(), node: n("a") }), ["FenceStarted"]);
}

#[test]
fn a_refusal_for_who_has_the_volume_is_a_conflict_and_no_other() {
    let conflict = Refusal::AttachedElsewhere { volume: v(), node: n("a") };
    let events = of_refusal(&conflict);
    assert_eq!(events[0].reason, EventReason::AttachmentConflict);
    assert!(events[0].note.contains("node a"), "{events:?}");
    assert!(of_refusal(&Refusal::UnknownNode { node: n("a") }).is_empty());
}
