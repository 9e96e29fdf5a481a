use super::*;
use crate::{MigrationUid, VmRef, VmStage};

fn n(name: &str) -> NodeId {
    NodeId::new(name).expect("a node id")
}

fn epoch(seq: u64) -> Epoch {
    Epoch { term: 1, seq }
}

/// From a to b, as KubeVirt reports it.
fn seen(stage: VmStage) -> VmMigration {
    VmMigration {
        uid: MigrationUid::new("uid-1").expect("a UID"),
        name: "move-1".into(),
        vm: VmRef { namespace: "vms".into(), name: "vm".into(), uid: "vm-uid".into() },
        source: n("a"),
        target: Some(n("b")),
        stage,
        switched_at: None,
        target_pod: None,
    }
}

/// From a to b, with a second to go.
fn begun() -> Migration {
    Migration::begin((n("a"), epoch(1)), (n("b"), epoch(2)), UnixMillis(100), 1_000)
}

fn attributed(stage: VmStage) -> Migration {
    Migration { vm: Some(Box::new(seen(stage))), ..begun() }
}

#[test]
fn the_result_follows_from_who_has_gone_and_where_the_vm_was() {
    use MigrationResult::{Completed, Failed, RolledBack};
    use VmStage::{Aborted, Preparing, Running};
    for (stage, ready, gone, result) in [
        (VmStage::Completed, true, "a", Completed),
        (Preparing, true, "a", Failed),
        (Running, true, "a", Failed),
        (VmStage::Failed, true, "a", Failed),
        (Aborted, true, "a", Failed),
        (VmStage::Completed, true, "b", Failed),
        (Preparing, false, "b", Failed),
        (Preparing, true, "b", RolledBack),
        (Running, true, "b", RolledBack),
        (VmStage::Failed, true, "b", RolledBack),
        (Aborted, true, "b", RolledBack),
        (Aborted, false, "b", Failed),
    ] {
        let mut migration = attributed(stage);
        if ready {
            migration.record(MigrationStep::TargetReady, UnixMillis(200));
        }
        migration.end(&n(gone), UnixMillis(300));
        let left = if gone == "a" { Side::Source } else { Side::Target };
        let ended = (migration.result, migration.left, migration.is_over());
        assert_eq!(ended, (result, Some(left), true), "{stage:?}, ready: {ready}, without {gone}");
        assert_eq!(migration.steps.last().map(|taken| taken.step), Some(MigrationStep::Done));
    }
}

#[test]
fn a_source_that_goes_after_the_switchover_has_completed_it() {
    let mut migration = attributed(VmStage::Running);
    migration.record(MigrationStep::TargetReady, UnixMillis(200));
    migration.record(MigrationStep::Switchover, UnixMillis(250));
    migration.end(&n("a"), UnixMillis(300));
    assert_eq!(migration.result, MigrationResult::Completed);
}

#[test]
fn without_a_report_it_ends_unattributed_and_says_who_left() {
    for (gone, left) in [("a", Side::Source), ("b", Side::Target)] {
        let mut migration = begun();
        migration.record(MigrationStep::TargetReady, UnixMillis(200));
        migration.end(&n(gone), UnixMillis(300));
        assert_eq!((migration.result, migration.left), (MigrationResult::Unattributed, Some(left)));
    }
}

#[test]
fn the_end_of_the_other_side_changes_nothing() {
    let mut migration = attributed(VmStage::Running);
    migration.end(&n("a"), UnixMillis(300));
    let before = migration.clone();
    migration.end(&n("b"), UnixMillis(400));
    assert_eq!(migration, before);
    assert!(!migration.concerns(&n("b"), epoch(2)));
}

#[test]
fn what_is_seen_too_late_is_not_put_among_the_steps() {
    let mut migration = begun();
    assert!(!migration.record(MigrationStep::Switchover, UnixMillis(150)), "the target is not ready");
    assert!(migration.record(MigrationStep::TargetReady, UnixMillis(200)));
    assert!(!migration.record(MigrationStep::TargetConnected, UnixMillis(210)));
    assert!(!migration.record(MigrationStep::TargetReady, UnixMillis(220)), "once");
    assert!(migration.record(MigrationStep::Releasing, UnixMillis(300)));
    assert!(!migration.record(MigrationStep::Switchover, UnixMillis(310)));
}

#[test]
fn a_record_of_before_is_read_and_its_time_counts_from_its_grant() {
    let before = r#"{
        "source": "a", "sourceEpoch": "17.1", "target": "b", "targetEpoch": "17.3", "result": "running",
        "steps": [{"step": "granted", "at": 5}, {"step": "target-connecting", "at": 6}]
    }"#;
    let mut migration: Migration = serde_json::from_str(before).expect("a record of before");
    migration.begin_again(UnixMillis(1_000), 300_000);
    let Migration { granted_at, timeout_ms, vm, left, .. } = &migration;
    assert_eq!((granted_at, timeout_ms, vm, left), (&UnixMillis(5), &300_000, &None, &None));
    migration.begin_again(UnixMillis(3), 7);
    assert_eq!((migration.granted_at, migration.timeout_ms), (UnixMillis(3), 300_000), "set back since");
    let ended = before.replace("running", "rolled_back");
    let ended: Migration = serde_json::from_str(&ended).expect("a record of before");
    assert!(ended.is_over() && !ended.is_overdue());
}

#[test]
fn a_record_reads_back_as_it_was_written() {
    let mut migration = attributed(VmStage::Aborted);
    migration.record(MigrationStep::TargetReady, UnixMillis(200));
    migration.end(&n("b"), UnixMillis(300));
    let written = serde_json::to_string(&migration).expect("JSON");
    assert_eq!(serde_json::from_str::<Migration>(&written).expect("a record"), migration);
    for word in ["\"rolled_back\"", "\"target\"", "\"aborted\"", "\"grantedAt\"", "\"timeoutMs\""] {
        assert!(written.contains(word), "{word} in {written}");
    }
}

#[test]
fn a_switchover_says_by_what_it_was_seen() {
    let mut migration = attributed(VmStage::Running);
    migration.record(MigrationStep::TargetReady, UnixMillis(200));
    assert!(migration.switch_over(UnixMillis(150), SwitchoverBy::Counters));
    assert!(!migration.switch_over(UnixMillis(300), SwitchoverBy::KubeVirt), "once");
    let written = serde_json::to_value(&migration.steps).expect("JSON");
    assert_eq!(written[2], serde_json::json!({"step": "switchover", "at": 200, "by": "counters"}));
    assert_eq!(written[1], serde_json::json!({"step": "target-ready", "at": 200}));
    let read: Vec<StepTaken> = serde_json::from_value(written).expect("steps");
    assert_eq!(read, migration.steps);
}

#[test]
fn a_report_is_taken_for_what_it_is() {
    use VmStage::{Completed, Preparing, Running};
    let of = |source: &str, target: &str, stage| VmMigration {
        source: n(source),
        target: Some(n(target)),
        ..seen(stage)
    };
    let other = |seen: VmMigration| VmMigration { uid: MigrationUid::new("uid-2").expect("a UID"), ..seen };
    for (known, report, taken) in [
        (None, of("a", "b", Preparing), Taken::Attributed),
        (None, of("a", "b", Completed), Taken::Attributed),
        (None, of("b", "a", Running), Taken::Swapped),
        (None, of("b", "a", Completed), Taken::Other),
        (None, of("a", "c", Running), Taken::Other),
        (Some(Running), of("a", "b", Running), Taken::Same),
        (Some(Running), of("a", "b", Preparing), Taken::Same),
        (Some(Running), of("a", "b", Completed), Taken::Advanced),
        (Some(Running), of("b", "a", Completed), Taken::Other),
        (Some(Running), other(of("a", "b", Preparing)), Taken::Successor),
        (Some(Running), other(of("b", "a", Running)), Taken::Successor),
        (Some(Running), other(of("b", "a", Completed)), Taken::Other),
        (Some(Running), other(of("a", "c", Running)), Taken::Other),
    ] {
        let mut migration = Migration { vm: known.map(|stage| Box::new(seen(stage))), ..begun() };
        assert_eq!(migration.take(&report, UnixMillis(200)), taken, "{known:?} {report:?}");
        assert!(!migration.is_over(), "whoever asks ends it");
    }
}

#[test]
fn one_that_is_over_takes_in_its_own_end_and_gives_way_to_what_goes_on() {
    let other = |stage| VmMigration { uid: MigrationUid::new("uid-2").expect("a UID"), ..seen(stage) };
    for gone in ["a", "b"] {
        let mut migration = attributed(VmStage::Running);
        migration.record(MigrationStep::TargetReady, UnixMillis(200));
        migration.end(&n(gone), UnixMillis(300));
        let ended = migration.clone();
        assert_eq!(migration.take(&other(VmStage::Running), UnixMillis(400)), Taken::Successor);
        assert_eq!(migration.take(&other(VmStage::Completed), UnixMillis(400)), Taken::Other);
        migration.give_way(&other(VmStage::Running), UnixMillis(400));
        assert_eq!(migration, ended, "its result is counted already");
        assert_eq!(migration.take(&seen(VmStage::Completed), UnixMillis(400)), Taken::Advanced);
        let result = if gone == "a" { MigrationResult::Completed } else { MigrationResult::RolledBack };
        assert_eq!(migration.result, result);
    }
}

#[test]
fn time_ends_what_kubevirt_has_reported_and_no_more() {
    let mut unattributed = begun();
    assert_eq!(unattributed.due(), None, "it may be no migration");
    assert!(!unattributed.time_out(UnixMillis(u64::MAX)));
    let mut migration = attributed(VmStage::Running);
    migration.record(MigrationStep::TargetReady, UnixMillis(200));
    assert_eq!(migration.due(), Some(UnixMillis(1_100)));
    assert!(!migration.time_out(UnixMillis(1_099)));
    assert!(migration.time_out(UnixMillis(1_100)));
    assert_eq!((migration.result, migration.is_overdue()), (MigrationResult::TimedOut, true));
    assert!(!migration.time_out(UnixMillis(1_200)), "once");
    assert_eq!(migration.take(&seen(VmStage::Completed), UnixMillis(1_300)), Taken::Advanced);
    migration.end(&n("a"), UnixMillis(1_400));
    assert_eq!((migration.result, migration.left), (MigrationResult::TimedOut, Some(Side::Source)));
    assert!(migration.is_over() && !migration.is_overdue());
    let steps: Vec<_> = migration.steps.iter().map(|taken| taken.step.name()).collect();
    assert_eq!(steps, ["granted", "target_ready", "timed_out", "switchover", "done"]);
}
