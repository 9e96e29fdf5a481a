//! What agents count of writes, event by event.

use super::super::testing::*;
use crate::*;

/// The VM migrates from a to bb, which is ready.
fn moving() -> Harness {
    let mut b = shared(able());
    seen(&mut b, VmStage::Running);
    b
}

fn seen(b: &mut Harness, stage: VmStage) {
    report(b, super::super::testing::seen(1, "a", "bb", stage));
}

/// The operation under which an agent was asked last, as its attachment has it.
fn asked(b: &Harness, name: &str) -> OperationId {
    let a = b.core.volumes[&v()].attachment(&n(name)).expect("it has the volume");
    a.counting.as_ref().expect("it was asked").operation
}

/// An agent answers what it was asked last.
fn counts(b: &mut Harness, name: &str, writes: u64, age_ms: u64, open: bool) {
    let operation = asked(b, name);
    answers(b, name, operation, writes, age_ms, open);
}

fn answers(b: &mut Harness, name: &str, operation: OperationId, writes: u64, age_ms: u64, open: bool) {
    let a = b.core.volumes[&v()].attachment(&n(name)).expect("it has the volume");
    let (session, epoch) = (b.session(name), a.epoch);
    b.event(Event::Counted { node: n(name), session, operation, volume: v(), epoch, writes, age_ms, open });
}

/// When and by what the VM has moved, as the record has it.
fn switched(b: &Harness) -> Option<(u64, SwitchoverBy)> {
    let migration = b.core.volumes[&v()].migration.as_ref().expect("a record");
    let taken = migration.steps.iter().find(|taken| taken.step == MigrationStep::Switchover)?;
    Some((taken.at.0, taken.by.expect("by what")))
}

fn late(b: &Harness) -> bool {
    b.effects.iter().any(|e| matches!(e, Effect::Notice(Notice::LateWrite { node, .. }) if *node == n("a")))
}

#[test]
fn both_sides_count_once_the_target_is_ready_and_once_a_session() {
    let mut b = bench(able());
    b.attach("a", Access::RwxBlock);
    assert!(b.asked_to_count().is_empty(), "nobody migrates");
    b.publish("bb", Access::RwxBlock);
    b.rds(Ok(()));
    assert!(b.asked_to_count().is_empty());
    b.agent(ready());
    let nodes = |b: &Harness| b.asked_to_count().iter().map(|(node, _)| node.to_string()).collect::<Vec<_>>();
    assert_eq!(nodes(&b), ["a", "bb"]);
    let lasts = |e: &Effect| match e {
        Effect::Direct { directive: Directive::Count { for_ms, .. }, .. } => Some(*for_ms),
        _ => None,
    };
    let lasts: Vec<u64> = b.effects.iter().filter_map(lasts).collect();
    assert_eq!(lasts, [VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS; 2]);
    b.pass(10_000);
    assert!(b.asked_to_count().is_empty(), "once");
    let before = asked(&b, "bb");
    b.up("bb", "boot", vec![b.observed(ObservedPhase::Ready)]);
    assert_eq!(nodes(&b), ["bb"], "a new session is asked again");
    assert_ne!(asked(&b, "bb"), before, "under a number of its own");
}

#[test]
fn the_targets_first_write_is_the_switchover_at_its_own_moment() {
    let mut b = moving();
    b.pass(5_000);
    counts(&mut b, "bb", 0, 4_000, true);
    assert_eq!(switched(&b), None);
    b.pass(1_000);
    counts(&mut b, "bb", 3, 40, true);
    let at = b.now - 40;
    assert_eq!(switched(&b), Some((at, SwitchoverBy::Counters)));
    let noticed =
        |e: &Effect| matches!(e, Effect::Notice(Notice::Migration { step: MigrationStep::Switchover, .. }));
    assert_eq!(b.effects.iter().filter(|e| noticed(e)).count(), 1);
    assert!(b.effects.iter().any(|e| matches!(e, Effect::Persist(_))));
    // What KubeVirt says later changes nothing of it, and the result is that of a VM that has moved.
    seen(&mut b, VmStage::Completed);
    counts(&mut b, "bb", 9, 0, true);
    assert_eq!(switched(&b), Some((at, SwitchoverBy::Counters)));
    b.detach("a", "live");
    b.rds_does_all();
    let migration = b.core.volumes[&v()].migration.as_ref().expect("a record");
    assert_eq!(migration.result, MigrationResult::Completed);
}

#[test]
fn no_age_puts_the_switchover_before_what_was_known_by_then() {
    for age_ms in [u64::MAX, 1 << 40] {
        let mut b = moving();
        let steps = b.core.volumes[&v()].migration.as_ref().expect("a record").steps.clone();
        b.pass(5_000);
        counts(&mut b, "bb", 1, age_ms, true);
        assert_eq!(switched(&b), Some((steps.last().expect("steps").at.0, SwitchoverBy::Counters)));
    }
}

#[test]
fn an_idle_vm_has_moved_when_the_source_let_go_and_the_target_has_it() {
    let mut b = moving();
    counts(&mut b, "bb", 0, 0, true);
    counts(&mut b, "a", 0, 0, false);
    assert!(b.asked_to_count().is_empty(), "nobody had it open yet");
    counts(&mut b, "a", 0, 100, true);
    let before = asked(&b, "bb");
    counts(&mut b, "a", 0, 200, false);
    assert_eq!(b.asked_to_count().len(), 1, "the target is asked again");
    answers(&mut b, "bb", before, 0, 0, true);
    assert_eq!(switched(&b), None, "that was before");
    counts(&mut b, "bb", 0, 0, false);
    assert_eq!(switched(&b), None, "its VM has died with the source's");
    counts(&mut b, "bb", 0, 300, true);
    assert_eq!(switched(&b), Some((b.now, SwitchoverBy::Openers)));
}

#[test]
fn kubevirt_says_it_where_nothing_is_counted() {
    let mut b = moving();
    seen(&mut b, VmStage::Completed);
    assert_eq!(switched(&b), Some((b.now, SwitchoverBy::KubeVirt)));
}

#[test]
fn a_write_of_the_source_after_the_switchover_is_said_once() {
    let mut b = moving();
    counts(&mut b, "a", 500, 0, true);
    let before = asked(&b, "a");
    counts(&mut b, "bb", 1, 0, true);
    assert_eq!(b.asked_to_count(), [("a", asked(&b, "a"))], "from now on");
    answers(&mut b, "a", before, 600, 0, true);
    assert!(!late(&b), "what was counted before says nothing of what came after");
    counts(&mut b, "a", 0, 50, true);
    assert!(!late(&b));
    counts(&mut b, "a", 2, 0, true);
    assert!(late(&b) && b.core.volumes[&v()].attachments[0].writes_late());
    counts(&mut b, "a", 7, 0, true);
    assert!(!late(&b), "once");
    // Nothing comes of it for anybody.
    assert_eq!((b.phase("a"), b.phase("bb")), (Some("Ready"), Some("Ready")));
    b.up("a", "boot", vec![b.observed(ObservedPhase::Ready)]);
    counts(&mut b, "a", 1, 0, true);
    assert!(late(&b), "on each session, which counts again");
}

#[test]
fn nobody_is_late_of_a_pair_that_nobody_has_attributed() {
    let mut b = shared(able());
    counts(&mut b, "bb", 1, 0, true);
    assert!(switched(&b).is_some() && b.asked_to_count().is_empty());
    counts(&mut b, "a", 5, 0, true);
    assert!(!late(&b), "two machines may share it");
    seen(&mut b, VmStage::Running);
    assert_eq!(b.asked_to_count().len(), 1, "it is a migration after all");
    counts(&mut b, "a", 1, 0, true);
    assert!(late(&b));
}

#[test]
fn a_count_is_of_its_own_grant_session_and_question_alone() {
    let good = moving();
    let (of_a, of_b) = (asked(&good, "a"), asked(&good, "bb"));
    let epoch = |name: &str| good.core.volumes[&v()].attachment(&n(name)).expect("it has it").epoch;
    let other = SessionId::new("other").expect("a session id");
    for (node, session, operation, epoch) in [
        ("bb", other, of_b, epoch("bb")),
        ("bb", good.session("bb"), of_a, epoch("bb")),
        ("bb", good.session("bb"), of_b, epoch("a")),
        ("bb", good.session("a"), of_b, epoch("bb")),
        ("a", good.session("a"), of_b, epoch("bb")),
        ("ccc", good.session("ccc"), of_b, epoch("bb")),
    ] {
        let mut b = good.clone();
        let (writes, age_ms, open) = (7, 0, true);
        b.event(Event::Counted {
            node: n(node),
            session,
            operation,
            volume: v(),
            epoch,
            writes,
            age_ms,
            open,
        });
        assert_eq!((b.effects.len(), &b.core.volumes), (0, &good.core.volumes), "{node} {operation}");
    }
}

#[test]
fn whatever_is_counted_nobody_is_let_in_or_cut_off() {
    for (on_a, on_b) in [((0, false), (0, true)), ((9, true), (9, true)), ((9, false), (0, false))] {
        let mut b = moving();
        for _ in 0..3 {
            for (name, (writes, open)) in [("a", (0, true)), ("a", on_a), ("bb", on_b)] {
                counts(&mut b, name, writes, 0, open);
                let harmless = |e: &Effect| {
                    matches!(
                        e,
                        Effect::Persist(_)
                            | Effect::Notice(_)
                            | Effect::Direct { directive: Directive::Count { .. }, .. }
                    )
                };
                assert!(b.effects.iter().all(harmless), "{:?}", b.effects);
            }
        }
        assert_eq!((b.phase("a"), b.phase("bb")), (Some("Ready"), Some("Ready")));
        let third = b.publish("ccc", Access::RwxBlock);
        assert!(!matches!(b.reply(third), Some(Ok(_))) && b.rds_asked().is_none());
    }
}

#[test]
fn a_next_migration_is_counted_by_itself() {
    let mut b = moving();
    counts(&mut b, "bb", 1, 0, true);
    let before = (asked(&b, "a"), asked(&b, "bb"));
    let back = VmMigration {
        uid: MigrationUid::new("uid-2").expect("a UID"),
        source: n("bb"),
        target: Some(n("a")),
        ..b.core.volumes[&v()].migration.clone().expect("a record").vm.map(|vm| *vm).expect("attributed")
    };
    b.event(Event::MigrationSeen { volume: v(), vm: Some(Box::new(back)) });
    assert_eq!(b.asked_to_count().len(), 2);
    let now = (asked(&b, "a"), asked(&b, "bb"));
    assert!(now.0 != before.0 && now.1 != before.1);
    counts(&mut b, "a", 1, 0, true);
    assert_eq!(switched(&b).map(|(_, by)| by), Some(SwitchoverBy::Counters));
}
