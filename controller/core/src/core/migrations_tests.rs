//! What KubeVirt reports, event by event.

use super::super::testing::*;
use crate::*;

fn record(b: &Harness) -> &Migration {
    b.core.volumes[&v()].migration.as_ref().expect("a record")
}

/// Which migration of the VM it is.
fn uid(b: &Harness) -> Option<&str> {
    record(b).vm.as_ref().map(|vm| vm.uid.as_str())
}

fn roles(b: &Harness) -> Vec<(&str, Role)> {
    b.core.volumes[&v()].attachments.iter().map(|a| (a.node.as_str(), a.role)).collect()
}

/// Results by the notices that are counted.
fn counted(b: &Harness) -> Vec<MigrationResult> {
    let counted = |effect: &Effect| match effect {
        Effect::Notice(Notice::Migration { migration, step, .. }) => match step {
            MigrationStep::TimedOut => Some(migration.result),
            MigrationStep::Done => {
                Some(migration.result).filter(|result| *result != MigrationResult::TimedOut)
            }
            _ => None,
        },
        _ => None,
    };
    b.effects.iter().filter_map(counted).collect()
}

const STAGES: [VmStage; 5] =
    [VmStage::Preparing, VmStage::Running, VmStage::Completed, VmStage::Failed, VmStage::Aborted];

/// Nothing of it but what people are shown.
fn but_for_people(b: &Harness) -> Vec<Attachment> {
    let attachments = b.core.volumes[&v()].attachments.iter().cloned();
    attachments.map(|a| Attachment { role: Role::Primary, counting: None, ..a }).collect()
}

#[test]
fn a_report_of_kubevirt_releases_nobody() {
    let ready = shared(able());
    let mut draining = shared(able());
    draining.unpublish("a");
    let mut waiting = bench(able());
    waiting.attach("a", Access::RwxBlock);
    waiting.publish("bb", Access::RwxBlock);
    for before in [ready, draining, waiting] {
        for (source, target) in
            [("a", "bb"), ("bb", "a"), ("a", "ccc"), ("ccc", "bb"), ("a", "a"), ("zzzz", "yyyy")]
        {
            let mut b = before.clone();
            for stage in STAGES {
                report(&mut b, seen(1, source, target, stage));
                let for_people = |e: &Effect| {
                    matches!(
                        e,
                        Effect::Persist(_)
                            | Effect::Direct { directive: Directive::Count { .. }, .. }
                            | Effect::Notice(Notice::Migration { .. } | Notice::MigrationReported { .. })
                    )
                };
                assert!(b.effects.iter().all(for_people), "{source} {target} {stage:?}: {:?}", b.effects);
                assert_eq!(but_for_people(&b), but_for_people(&before), "{source} {target} {stage:?}");
                let third = b.publish("ccc", Access::RwxBlock);
                assert!(
                    !matches!(b.reply(third), Some(Ok(_))) && b.rds_asked().is_none(),
                    "{source} {target} {stage:?}: {:?}",
                    b.effects
                );
            }
        }
    }
}

#[test]
fn the_result_is_that_of_the_vm() {
    for (stage, leaves, result) in [
        (VmStage::Completed, "a", MigrationResult::Completed),
        (VmStage::Failed, "bb", MigrationResult::RolledBack),
        (VmStage::Aborted, "bb", MigrationResult::RolledBack),
    ] {
        let mut b = shared(able());
        report(&mut b, seen(1, "a", "bb", VmStage::Preparing));
        report(&mut b, seen(1, "a", "bb", stage));
        b.detach(leaves, "live");
        b.rds_does_all();
        assert_eq!(record(&b).result, result);
        assert_eq!(counted(&b), [result]);
        let left = if leaves == "a" { Side::Source } else { Side::Target };
        assert_eq!(record(&b).left, Some(left));
        assert_eq!(b.core.volumes[&v()].attachments[0].role, Role::Primary);
    }
}

#[test]
fn roles_follow_the_report_and_not_the_age() {
    let mut b = shared(able());
    assert_eq!(roles(&b), [("a", Role::Primary), ("bb", Role::MigrationTarget)]);
    report(&mut b, seen(1, "bb", "a", VmStage::Preparing));
    assert_eq!(roles(&b), [("a", Role::MigrationTarget), ("bb", Role::Primary)]);
    assert_eq!((&record(&b).source, &record(&b).target), (&n("bb"), &n("a")));
    assert!(b.core.volumes[&v()].past_migrations.is_empty(), "a wrong guess was no migration");
    assert_eq!(counted(&b), []);
    report(&mut b, seen(1, "bb", "a", VmStage::Completed));
    b.detach("bb", "live");
    b.rds_does_all();
    assert_eq!(record(&b).result, MigrationResult::Completed);
    assert_eq!(roles(&b), [("a", Role::Primary)]);
}

#[test]
fn a_to_b_to_a_without_a_publish_is_two_records() {
    let mut b = shared(able());
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    report(&mut b, seen(1, "a", "bb", VmStage::Completed));
    // The VM comes back before anybody has asked for a to be off.
    report(&mut b, seen(2, "bb", "a", VmStage::Preparing));
    assert_eq!(counted(&b), [MigrationResult::Completed]);
    assert_eq!((&record(&b).source, &record(&b).target), (&n("bb"), &n("a")));
    assert_eq!(roles(&b), [("a", Role::MigrationTarget), ("bb", Role::Primary)]);
    report(&mut b, seen(2, "bb", "a", VmStage::Completed));
    b.detach("bb", "live");
    b.rds_does_all();
    assert_eq!(counted(&b), [MigrationResult::Completed]);
    let record = &b.core.volumes[&v()];
    let uids = |m: &Migration| m.vm.as_ref().map(|vm| vm.uid.to_string());
    assert_eq!(record.migration.as_ref().and_then(uids).as_deref(), Some("uid-2"));
    assert_eq!(record.past_migrations.iter().filter_map(uids).collect::<Vec<_>>(), ["uid-1"]);
}

#[test]
fn a_next_migration_says_how_the_one_before_went_by_where_it_begins() {
    for (source, target, result) in
        [("a", "bb", MigrationResult::RolledBack), ("bb", "a", MigrationResult::Completed)]
    {
        let mut b = shared(able());
        report(&mut b, seen(1, "a", "bb", VmStage::Running));
        report(&mut b, seen(2, source, target, VmStage::Running));
        assert_eq!(counted(&b), [result]);
        assert_eq!(b.core.volumes[&v()].past_migrations[0].left, None);
    }
}

#[test]
fn an_older_migrations_report_changes_nothing() {
    let mut b = shared(able());
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    report(&mut b, seen(2, "bb", "a", VmStage::Running));
    let before = b.core.volumes.clone();
    for stage in STAGES {
        report(&mut b, seen(1, "a", "bb", stage));
        assert_eq!((b.effects.len(), &b.core.volumes), (0, &before), "{stage:?} of what has ended");
    }
    for stage in [VmStage::Preparing, VmStage::Running] {
        report(&mut b, seen(2, "bb", "a", stage));
        assert_eq!((b.effects.len(), &b.core.volumes), (0, &before), "{stage:?} again");
    }
    report(&mut b, seen(2, "a", "bb", VmStage::Completed));
    assert_eq!((b.effects.len(), &b.core.volumes), (0, &before), "one migration does not turn round");
    b.event(Event::MigrationSeen { volume: v(), vm: None });
    assert_eq!((b.effects.len(), &b.core.volumes), (0, &before), "its object is gone");
}

/// The target is let in, cannot use the device, and is off again.
fn target_fails(b: &mut Harness) {
    b.publish("bb", Access::RwxBlock);
    b.rds(Ok(()));
    b.agent(Outcome::Failed { clause: "paths".into(), message: "none is live".into(), nothing_left: true });
    b.agent(Outcome::Absent(Absence::default()));
    b.rds_does_all();
}

#[test]
fn a_target_that_is_tried_again_is_of_the_same_migration() {
    let tried_again = || {
        let mut b = bench(able());
        b.attach("a", Access::RwxBlock);
        // KubeVirt's report does not change meanwhile, so there is one.
        report(&mut b, seen(1, "a", "bb", VmStage::Preparing));
        for _ in 0..2 {
            target_fails(&mut b);
            assert_eq!((counted(&b), record(&b).left), (vec![MigrationResult::Failed], Some(Side::Target)));
        }
        b.attach("bb", Access::RwxBlock);
        assert_eq!(uid(&b), Some("uid-1"));
        b
    };
    let mut b = tried_again();
    report(&mut b, seen(1, "a", "bb", VmStage::Completed));
    b.detach("a", "live");
    b.rds_does_all();
    assert_eq!(counted(&b), [MigrationResult::Completed]);
    let mut b = tried_again();
    b.pass(timeout());
    assert_eq!((counted(&b), b.core.overdue()), (vec![MigrationResult::TimedOut], 1));
}

#[test]
fn a_try_after_the_migrations_end_or_elsewhere_is_of_none() {
    let failed = || {
        let mut b = bench(able());
        b.attach("a", Access::RwxBlock);
        report(&mut b, seen(1, "a", "bb", VmStage::Preparing));
        target_fails(&mut b);
        b
    };
    for stage in [VmStage::Failed, VmStage::Aborted] {
        let mut b = failed();
        report(&mut b, seen(1, "a", "bb", stage));
        b.attach("bb", Access::RwxBlock);
        report(&mut b, seen(1, "a", "bb", stage));
        assert_eq!(uid(&b), None, "{stage:?}: KubeVirt goes on with none");
        report(&mut b, seen(2, "a", "bb", VmStage::Preparing));
        assert_eq!((uid(&b), counted(&b)), (Some("uid-2"), vec![]), "{stage:?}: this is the next one");
    }
    let mut b = failed();
    b.attach("ccc", Access::RwxBlock);
    assert_eq!(uid(&b), None, "it goes to bb");
}

#[test]
fn a_report_of_an_older_migration_ends_none_that_runs() {
    let mut b = shared(able());
    report(&mut b, seen(3, "a", "bb", VmStage::Preparing));
    let before = b.core.volumes.clone();
    for (source, target) in [("bb", "a"), ("a", "bb")] {
        for stage in [VmStage::Completed, VmStage::Failed] {
            report(&mut b, seen(2, source, target, stage));
            assert_eq!((b.effects.len(), &b.core.volumes), (0, &before), "{source} {stage:?}");
        }
    }
    b.detach("bb", "live");
    b.rds_does_all();
    assert_eq!(counted(&b), [MigrationResult::RolledBack]);
}

#[test]
fn who_is_on_its_way_out_is_a_side_once_it_was_let_in_again() {
    for (stage, leaves, result) in [
        (VmStage::Completed, "a", MigrationResult::Completed),
        (VmStage::Failed, "bb", MigrationResult::RolledBack),
    ] {
        let mut b = shared(able());
        report(&mut b, seen(1, "a", "bb", stage));
        let source = if leaves == "a" { "bb" } else { "a" };
        b.unpublish(leaves);
        let sent = b.effects.clone();
        report(&mut b, seen(2, source, leaves, VmStage::Preparing));
        assert_eq!((counted(&b), uid(&b)), (vec![], Some("uid-1")));
        b.effects = sent;
        b.agent(absent("live"));
        b.rds_does_all();
        assert_eq!(counted(&b), [result]);
        b.attach(leaves, Access::RwxBlock);
        assert_eq!(uid(&b), Some("uid-2"));
        assert_eq!((&record(&b).source, &record(&b).target), (&n(source), &n(leaves)));
    }
}

#[test]
fn a_look_at_what_is_durable_takes_no_time_out_away() {
    let mut b = shared(able());
    let before = b.core.volumes[&v()].clone();
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    b.now += timeout();
    b.core.with_records(vec![(v(), Some(before))], |_| ());
    b.pass(1);
    assert_eq!(counted(&b), [MigrationResult::TimedOut]);
}

#[test]
fn a_report_before_the_grant_is_taken_in_with_it() {
    let mut b = bench(able());
    b.attach("a", Access::RwxBlock);
    report(&mut b, seen(1, "a", "bb", VmStage::Preparing));
    assert_eq!((b.effects.len(), &b.core.volumes[&v()].migration), (0, &None));
    b.attach("bb", Access::RwxBlock);
    assert_eq!(uid(&b), Some("uid-1"));
    assert!(b.core.volumes[&v()].past_migrations.is_empty());
    // What is called off before it is granted was none.
    let mut b = bench(able());
    b.attach("a", Access::RwxBlock);
    report(&mut b, seen(1, "a", "bb", VmStage::Preparing));
    b.event(Event::MigrationSeen { volume: v(), vm: None });
    b.attach("bb", Access::RwxBlock);
    assert_eq!(record(&b).vm, None);
}

#[test]
fn a_report_of_the_next_target_waits_for_who_leaves() {
    let mut b = shared(able());
    report(&mut b, seen(1, "a", "bb", VmStage::Failed));
    report(&mut b, seen(2, "a", "ccc", VmStage::Preparing));
    assert_eq!(uid(&b), Some("uid-1"), "ccc does not have it");
    b.detach("bb", "live");
    b.rds_does_all();
    b.attach("ccc", Access::RwxBlock);
    assert_eq!(uid(&b), Some("uid-2"));
    assert_eq!((&record(&b).source, &record(&b).target), (&n("a"), &n("ccc")));
}

#[test]
fn a_restart_keeps_the_attribution() {
    let mut b = shared(able());
    report(&mut b, seen(1, "bb", "a", VmStage::Running));
    let before = b.core.volumes[&v()].clone();
    b.restart();
    let after = &b.core.volumes[&v()];
    assert_eq!((&after.migration, &after.past_migrations), (&before.migration, &before.past_migrations));
    assert_eq!(roles(&b), [("a", Role::MigrationTarget), ("bb", Role::Primary)]);
    report(&mut b, seen(1, "bb", "a", VmStage::Running));
    assert!(!b.effects.iter().any(|e| matches!(e, Effect::Notice(_))), "it is known: {:?}", b.effects);
}

#[test]
fn a_report_after_the_end_corrects_the_result_and_counts_nothing() {
    let mut b = shared(able());
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    b.detach("a", "live");
    b.rds_does_all();
    assert_eq!(counted(&b), [MigrationResult::Failed]);
    report(&mut b, seen(1, "a", "bb", VmStage::Completed));
    assert_eq!((record(&b).result, counted(&b)), (MigrationResult::Completed, Vec::new()));
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    assert_eq!(record(&b).result, MigrationResult::Completed, "it does not go back");
}

#[test]
fn the_switchover_is_a_step_of_a_pair_that_is_ready() {
    let switched =
        |at: u64| VmMigration { switched_at: Some(UnixMillis(at)), ..seen(1, "a", "bb", VmStage::Running) };
    let mut b = shared(able());
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    report(&mut b, switched(7));
    let steps: Vec<_> = record(&b).steps.iter().map(|taken| taken.step.name()).collect();
    assert_eq!(steps, ["granted", "target_connecting", "target_ready", "switchover"]);
    let noticed =
        |e: &Effect| matches!(e, Effect::Notice(Notice::Migration { step: MigrationStep::Switchover, .. }));
    assert!(b.effects.iter().any(noticed), "{:?}", b.effects);
    report(&mut b, switched(9));
    assert!(b.effects.is_empty(), "once: {:?}", b.effects);
    // The source freezes: what fences it says that the VM had left.
    b.silent("a");
    b.fence(50, "a");
    b.rds_does_all();
    assert_eq!((record(&b).result, record(&b).left), (MigrationResult::Completed, Some(Side::Source)));
}

#[test]
fn both_sides_die_and_one_result_is_counted() {
    let mut b = shared(able());
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    let mut all = Vec::new();
    for (request, node) in [(50, "a"), (51, "bb")] {
        b.silent(node);
        b.fence(request, node);
        while b.rds_asked().is_some() {
            b.rds(Ok(()));
            all.extend(counted(&b));
        }
    }
    assert_eq!(all, [MigrationResult::Failed]);
    assert_eq!((record(&b).left, b.core.volumes[&v()].holders().len()), (Some(Side::Source), 0));
}

#[test]
fn a_report_of_a_pair_without_a_record_begins_one() {
    let mut b = Harness::hearing(&["a", "bb"]);
    b.attach("a", Access::RwxBlock);
    b.unpublish("a");
    b.publish("bb", Access::RwxBlock);
    assert_eq!(b.core.volumes[&v()].migration, None, "it stops there and starts here");
    report(&mut b, seen(1, "a", "bb", VmStage::Completed));
    assert_eq!(b.core.volumes[&v()].migration, None, "what is over already may be long past");
    report(&mut b, seen(2, "a", "bb", VmStage::Running));
    assert_eq!((&record(&b).source, &record(&b).target), (&n("a"), &n("bb")));
}

#[test]
fn a_report_about_no_pair_or_of_no_bounds_is_none() {
    let mut b = alone(able());
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    assert_eq!(b.core.volumes[&v()].migration, None);
    let volume = VolumeId::new("other").expect("a volume id");
    let vm = Some(Box::new(seen(1, "a", "bb", VmStage::Running)));
    b.event(Event::MigrationSeen { volume: volume.clone(), vm });
    assert!(!b.core.volumes.contains_key(&volume) && b.effects.is_empty());
    let mut b = shared(able());
    report(&mut b, VmMigration { name: "x".repeat(254), ..seen(1, "a", "bb", VmStage::Running) });
    assert_eq!(record(&b).vm, None);
    report(&mut b, VmMigration { target: None, ..seen(1, "a", "bb", VmStage::Running) });
    assert_eq!(record(&b).vm, None, "nobody knows yet where it goes");
}

fn timeout() -> u64 {
    VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS
}

/// A pair whose migration KubeVirt has reported, and that is overdue.
fn overdue() -> Harness {
    let mut b = shared(able());
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    b.pass(timeout());
    b
}

#[test]
fn its_time_is_that_of_the_volume() {
    let mut b = Harness::hearing(&["a", "bb"]);
    let spec = || VolumeSpec { migration_timeout_ms: 30_000, ..spec(Access::RwxBlock) };
    for node in ["a", "bb"] {
        b.requests += 1;
        let (request, node) = (RequestId(b.requests), n(node));
        b.event(Event::Publish { request, node, spec: spec(), read_only: false });
        b.rds(Ok(()));
        b.agent(ready());
    }
    assert_eq!(record(&b).timeout_ms, 30_000);
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    b.pass(29_000);
    assert!(!record(&b).is_overdue());
    b.restart();
    assert_eq!((record(&b).timeout_ms, record(&b).is_overdue()), (30_000, false));
    b.pass(1_000);
    assert!(record(&b).is_overdue());
}

#[test]
fn past_its_time_it_is_timed_out_once_and_nobody_is_cut() {
    let mut b = shared(able());
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    b.pass(timeout() - 1_000);
    assert!(b.effects.is_empty(), "{:?}", b.effects);
    b.pass(1_000);
    assert_eq!(counted(&b), [MigrationResult::TimedOut]);
    let for_people = |e: &Effect| matches!(e, Effect::Persist(_) | Effect::Notice(Notice::Migration { .. }));
    assert!(b.effects.iter().all(for_people), "{:?}", b.effects);
    assert_eq!((b.phase("a"), b.phase("bb"), b.core.overdue()), (Some("Ready"), Some("Ready"), 1));
    for _ in 0..10 {
        b.pass(timeout());
        assert!(b.effects.is_empty(), "{:?}", b.effects);
    }
    b.restart();
    assert_eq!((counted(&b), b.core.overdue()), (Vec::new(), 1));
    assert_eq!((b.phase("a"), b.phase("bb")), (Some("Ready"), Some("Ready")));
}

#[test]
fn no_third_until_one_side_is_gone_then_granted() {
    let mut b = overdue();
    let since = record(&b).granted_at;
    let third = b.publish("ccc", Access::RwxBlock);
    let nodes = vec![n("a"), n("bb")];
    let refusal = Refusal::MigrationOverdue { volume: v(), nodes, since, timeout_ms: timeout() };
    assert_eq!(b.refusal(third), refusal);
    b.unpublish("a");
    let asked = b.effects.clone();
    let third = b.publish_waits("ccc", Access::RwxBlock);
    b.effects = asked;
    b.agent(absent("live"));
    b.rds(Ok(()));
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Allow { host_nqn, .. })) if host_nqn == nqn("ccc")));
    assert_eq!((b.reply(third), b.core.overdue()), (None, 0));
    assert_eq!((&record(&b).source, &record(&b).target), (&n("bb"), &n("ccc")));
}

#[test]
fn late_completion_stays_timed_out_and_says_who_left() {
    let mut b = overdue();
    report(&mut b, seen(1, "a", "bb", VmStage::Completed));
    assert_eq!(record(&b).result, MigrationResult::TimedOut);
    b.detach("a", "live");
    b.rds_does_all();
    assert_eq!((record(&b).result, record(&b).left), (MigrationResult::TimedOut, Some(Side::Source)));
    assert_eq!((counted(&b), b.core.overdue()), (Vec::new(), 0), "it was counted when its time was over");
    let steps: Vec<_> = record(&b).steps.iter().map(|taken| taken.step.name()).collect();
    assert_eq!(steps.last(), Some(&"done"));
    assert!(steps.contains(&"releasing") && steps.contains(&"evidence"), "{steps:?}");
}

#[test]
fn an_unattributed_pair_is_never_overdue() {
    let mut b = shared(able());
    b.pass(100 * timeout());
    assert_eq!((record(&b).result, b.core.overdue()), (MigrationResult::Running, 0));
    let third = b.publish("ccc", Access::RwxBlock);
    assert!(matches!(b.refusal(third), Refusal::MigrationLimit { .. }));
    // One that is reported late has had its time.
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    assert_eq!((counted(&b), b.core.overdue()), (vec![MigrationResult::TimedOut], 1));
}

#[test]
fn a_clock_set_back_over_a_restart_starts_the_time_again() {
    let mut b = shared(able());
    b.pass(1_000_000);
    report(&mut b, seen(1, "bb", "a", VmStage::Running));
    let began = record(&b).granted_at;
    b.now -= 900_000;
    b.restart();
    assert!(record(&b).granted_at < began);
    assert_eq!(record(&b).granted_at, UnixMillis(b.now));
    b.pass(timeout() - 1_000);
    assert_eq!(b.core.overdue(), 0);
    b.pass(1_000);
    assert_eq!((counted(&b), b.core.overdue()), (vec![MigrationResult::TimedOut], 1));
}

#[test]
fn what_ran_out_of_time_without_a_controller_is_said_by_the_next_one() {
    let mut b = shared(able());
    report(&mut b, seen(1, "a", "bb", VmStage::Running));
    b.now += timeout();
    b.restart();
    assert_eq!((counted(&b), b.core.overdue()), (vec![MigrationResult::TimedOut], 1));
    let persist = |e: &Effect| matches!(e, Effect::Persist(record) if record.migration.as_ref().is_some_and(Migration::is_overdue));
    assert!(b.effects.iter().any(persist), "the one after that does not say it again: {:?}", b.effects);
}

#[test]
fn twenty_in_a_row_are_twenty_results_and_a_record_of_its_bounds() {
    let mut b = bench(able());
    b.attach("a", Access::RwxBlock);
    let mut results = Vec::new();
    let mut longest = 0;
    for number in 0..20 {
        let (source, target) = if number % 2 == 0 { ("a", "bb") } else { ("bb", "a") };
        b.attach(target, Access::RwxBlock);
        report(&mut b, seen(number, source, target, VmStage::Running));
        report(&mut b, seen(number, source, target, VmStage::Completed));
        b.unpublish(source);
        b.agent(absent("live"));
        b.rds(Ok(()));
        results.extend(counted(&b));
        let record = &b.core.volumes[&v()];
        assert!(record.past_migrations.len() <= VolumeRecord::PAST_MIGRATIONS);
        longest = longest.max(serde_json::to_string(record).expect("a record").len());
    }
    assert_eq!(results, [MigrationResult::Completed; 20]);
    assert!(longest < 16 << 10, "{longest} bytes");
}
