//! What the script writes, joined by what reads it: each checks the other.

use std::collections::BTreeMap;

use cleat_kubernetes::kubevirt::mover::{MoveStage, MoverSeen};

use crate::joined_testing::{Play, View, look, show, vm};
use crate::patch::Kind;
use crate::scenes::Scene;
use crate::script::Step;

#[test]
fn each_step_of_a_migration_is_seen_as_what_it_is() {
    let mut play = Play::of(&[vm("web", &[("root", false), ("data", true)])]);
    let on_a = Step::LauncherRuns { on: "a".into() };
    for (step, root, data) in [
        (Step::VmMade, "nobody", "nobody"),
        (Step::LauncherMade, "stays", "nobody"),
        (on_a, "stays", "nobody"),
        (Step::Plugged, "stays", "stays"),
        (Step::Asked { to: "b".into() }, "stays", "stays"),
        (Step::Accepted, "stays", "stays"),
        (Step::TargetMade, "a>? Preparing", "a>? Preparing"),
        // Here its Publish comes: the VM's status does not speak of it.
        (Step::TargetPlaced, "a>b Preparing", "a>b Preparing"),
        (Step::TargetRuns, "a>b Preparing", "a>b Preparing"),
        (Step::TargetPlugs, "a>b Preparing", "a>b Preparing"),
        (Step::TargetPlugged, "a>b Preparing", "a>b Preparing"),
        (Step::Scheduled, "a>b Preparing", "a>b Preparing"),
        (Step::HandedOver, "a>b Preparing", "a>b Preparing"),
        (Step::Preparing, "a>b Preparing", "a>b Preparing"),
        (Step::TargetReady, "a>b Preparing", "a>b Preparing"),
        (Step::Began, "a>b Running", "a>b Running"),
        (Step::Detected, "a>b Running", "a>b Running"),
        (Step::Switched, "a>b Running, switched", "a>b Running, switched"),
        (Step::Acknowledged, "a>b Running, switched", "a>b Running, switched"),
        (Step::Completed, "a>b Completed, switched", "a>b Completed, switched"),
        (Step::Asked { to: "a".into() }, "a>b Completed, switched", "a>b Completed, switched"),
        (Step::Accepted, "a>b Completed, switched", "a>b Completed, switched"),
        (Step::SourceEnds, "a>b Completed, switched", "a>b Completed, switched"),
        (Step::TargetMade, "b>? Preparing", "b>? Preparing"),
        (Step::TargetPlaced, "b>a Preparing", "b>a Preparing"),
    ] {
        play.step(&step);
        let shown = (play.shown("root"), play.shown("data"));
        assert_eq!((shown.0.as_str(), shown.1.as_str()), (root, data), "{step:?}");
    }
}

#[test]
fn however_it_ends_it_is_seen_as_that() {
    let (early, running) = (Step::TargetPlaced, Step::Began);
    let (ready, deleted) = (Step::HandedOver, Step::AbortAsked);
    let too_late = [&deleted, &Step::Detected, &Step::Switched, &Step::Acknowledged, &Step::Completed];
    let not_yet = [&deleted, &Step::Preparing, &Step::TargetReady, &running, &Step::Aborted];
    for (last, ends, shown) in [
        (&Step::TargetMade, &[&deleted][..], "stays"),
        (&early, &[&deleted], "a>b Aborted"),
        (&early, &[&deleted, &Step::TargetEnds], "stays"),
        (&early, &[&Step::TargetDied], "a>b Failed"),
        (&early, &[&Step::SourceDied], "a>b Failed"),
        (&early, &[&Step::VmDeleted], "nobody"),
        (&ready, &[&Step::TargetDied], "a>b Failed"),
        (&ready, &[&deleted], "a>b Preparing"),
        (&ready, &not_yet, "a>b Aborted"),
        (&Step::TargetReady, &[&Step::TargetDied], "a>b Failed"),
        (&running, &[&deleted], "a>b Running"),
        (&running, &[&deleted, &Step::Aborted], "a>b Aborted"),
        (&running, &[&deleted, &Step::AbortSeenAtTarget], "a>b Aborted"),
        (&running, &[&deleted, &Step::Failed], "a>b Aborted"),
        (&running, &too_late, "a>b Completed, switched"),
        // KubeVirt calls its own time-out an abort that has succeeded.
        (&running, &[&Step::GivenUp], "a>b Failed"),
        (&running, &[&Step::Failed], "a>b Failed"),
        (&running, &[&Step::TargetDied], "a>b Failed"),
        (&running, &[&Step::SourceDied], "a>b Failed"),
        (&running, &[&Step::SourceDied, &Step::VmDeleted], "nobody"),
        (&running, &[&Step::VmDeleted], "nobody"),
        (&Step::Switched, &[&Step::SourceDied], "a>b Failed, switched"),
        (&Step::Completed, &[&Step::VmDeleted], "nobody"),
    ] {
        let mut play = Play::running(&[("root", false)]);
        play.migrate("b", last);
        ends.iter().for_each(|step| play.step(step));
        assert_eq!(play.shown("root"), shown, "{last:?}, {ends:?}");
        let course = play.course("root");
        let is_over =
            |shown: &&String| ["Completed", "Failed", "Aborted"].iter().any(|end| shown.contains(end));
        assert!(course.iter().filter(is_over).count() <= 1, "{last:?}, {ends:?}: {course:?}");
    }
}

#[test]
fn nothing_of_a_vm_is_left_when_it_was_deleted() {
    let last = [Step::Accepted, Step::TargetMade, Step::TargetPlaced, Step::HandedOver, Step::Began];
    let ends = [None, Some(Step::TargetDied), Some(Step::SourceDied), Some(Step::AbortAsked)];
    for last in &last {
        for ends in &ends {
            // What is not there does not die.
            if *ends == Some(Step::TargetDied) && [Step::Accepted, Step::TargetMade].contains(last) {
                continue;
            }
            let mut play = Play::running(&[("root", false), ("data", true)]);
            play.moves("b");
            play.migrate("a", last);
            play.steps(ends.as_slice());
            play.step(&Step::VmDeleted);
            for kind in [Kind::Pod, Kind::VirtualMachineInstance, Kind::VirtualMachineInstanceMigration] {
                let left: Vec<_> = play.stored.all(kind).collect();
                assert!(left.is_empty(), "{last:?}, {ends:?}: {left:?}");
            }
        }
    }
}

/// A long life of a VM: there and back, on at once, an abort at each end, a failure, a third node.
fn long_life() -> Play {
    let mut play = Play::running(&[("root", false), ("data", true)]);
    play.moves("b");
    play.migrate("a", &Step::Completed);
    play.steps(&[Step::Asked { to: "b".into() }, Step::Accepted, Step::SourceEnds]);
    play.steps(&[Step::TargetMade, Step::TargetPlaced, Step::AbortAsked, Step::TargetEnds]);
    play.migrate("c", &Step::Began);
    play.steps(&[Step::AbortAsked, Step::AbortSeenAtTarget]);
    play.migrate("b", &Step::Detected);
    play.step(&Step::Failed);
    play.moves("c");
    play.migrate("a", &Step::TargetRuns);
    play.step(&Step::TargetDied);
    play.moves("b");
    play
}

#[test]
fn no_write_in_between_takes_a_migration_back_or_contradicts() {
    let play = long_life();
    let mut stages: BTreeMap<String, MoveStage> = BTreeMap::new();
    let mut newest = Vec::new();
    for stored in &play.history {
        let view = View::of(stored);
        let mover = look(&view, &view, &view).remove("root").expect("it has a VolumeAttachment");
        let MoverSeen::Vm { migration, .. } = mover else {
            assert_eq!(mover, MoverSeen::Nobody, "{}", show(&mover));
            continue;
        };
        let Some(seen) = migration else { continue };
        let before = stages.insert(seen.uid.clone(), seen.stage);
        assert!(before.is_none_or(|before| before <= seen.stage), "{before:?}, then {seen:?}");
        assert!(
            before.is_none_or(|before| !before.is_over() || before == seen.stage),
            "{before:?}, then {seen:?}"
        );
        if newest.last() != Some(&seen.uid) {
            newest.push(seen.uid);
        }
    }
    // One that was aborted before its target was handed over leaves nothing, so the one before it is the newest again.
    let ended: Vec<_> = play.sides.keys().map(|uid| stages[uid]).collect();
    let (done, failed, aborted) = (MoveStage::Completed, MoveStage::Failed, MoveStage::Aborted);
    assert_eq!(ended, [done, done, aborted, aborted, failed, done, failed, done]);
    let order: Vec<_> = play.sides.keys().collect();
    let mut expected = order.clone();
    expected.insert(3, order[1]);
    assert_eq!(newest.iter().collect::<Vec<_>>(), expected);
}

/// At each moment at which watches may be behind each other by any number of writes: how many, and how many that saw somebody
/// move.
fn never_swaps_sides(play: &Play) -> (usize, usize) {
    let mut views: [Vec<View>; 3] = Default::default();
    for stored in &play.history {
        let view = View::of(stored);
        let [pods, vms, migrations] = &mut views;
        let differs =
            |last: Option<&View>, same: fn(&View, &View) -> bool| !last.is_some_and(|last| same(last, &view));
        if differs(pods.last(), |a, b| a.pods == b.pods) {
            pods.push(view.clone());
        }
        if differs(vms.last(), |a, b| a.vms == b.vms) {
            vms.push(view.clone());
        }
        if differs(migrations.last(), |a, b| a.migrations == b.migrations) {
            migrations.push(view.clone());
        }
    }
    let [pods, vms, migrations] = &views;
    let (mut looks, mut moving) = (0, 0);
    for pods in pods {
        for vms in vms {
            for migrations in migrations {
                looks += 1;
                for mover in look(pods, vms, migrations).into_values() {
                    let MoverSeen::Vm { migration, .. } = mover else {
                        assert_eq!(mover, MoverSeen::Nobody, "{}", show(&mover));
                        continue;
                    };
                    let Some(seen) = migration else { continue };
                    moving += 1;
                    let (source, target) = &play.sides[&seen.uid];
                    assert_eq!(&seen.source, source, "{seen:?}");
                    assert!(seen.target.as_ref().is_none_or(|to| to == target), "{seen:?}");
                }
            }
        }
    }
    (looks, moving)
}

#[test]
fn watches_that_are_behind_each_other_never_swap_sides() {
    let (looks, moving) = never_swaps_sides(&long_life());
    assert!(looks > 10_000 && moving > looks, "{looks} looks, {moving} migrations");
}

#[test]
fn nor_do_they_while_two_vms_are_drained_twice() {
    let vms = [vm("web", &[("root", false)]), vm("db", &[("root-2", false)])];
    let (looks, moving) = never_swaps_sides(&Play::scene(Scene::TwoDrains, &vms));
    assert!(looks > 10_000 && moving > looks, "{looks} looks, {moving} migrations");
}
