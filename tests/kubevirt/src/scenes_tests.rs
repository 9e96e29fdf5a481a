//! What is seen of each scene, from its first write to its last.

use crate::joined_testing::{Play, vm};
use crate::patch::Kind;
use crate::scenes::Scene;
use crate::script::Step;

/// Until the memory is copied, and until it is over.
const BEGUN: [&str; 5] = ["nobody", "stays", "a>? Preparing", "a>b Preparing", "a>b Running"];
const DONE: [&str; 2] = ["a>b Running, switched", "a>b Completed, switched"];

fn begun<'a>(then: &[&'a str]) -> Vec<&'a str> {
    [&BEGUN[..], then].concat()
}

fn goes_on(to: &str) -> Vec<String> {
    let stages = ["Preparing", "Running", "Running, switched", "Completed, switched"];
    let after = stages.map(|stage| format!("b>{to} {stage}"));
    ["b>? Preparing".to_owned()].into_iter().chain(after).collect()
}

#[test]
fn each_scene_is_seen_as_what_happens_in_it() {
    let one = [vm("web", &[("root", false)])];
    let course = |scene: Scene| Play::scene(scene, &one).course("root");
    assert_eq!(course(Scene::Completes), begun(&DONE));
    assert_eq!(course(Scene::AbortedHalfWay), begun(&["a>b Aborted"]));
    assert_eq!(course(Scene::TargetFails), begun(&["a>b Failed"]));
    for (scene, to) in [(Scene::SecondAtOnce, "c"), (Scene::ThereAndBack, "a")] {
        let on = goes_on(to);
        let on: Vec<_> = on.iter().map(String::as_str).collect();
        assert_eq!(course(scene), [&begun(&DONE)[..], &on].concat(), "{scene:?}");
    }
}

#[test]
fn a_hotplugged_disk_moves_with_its_vm() {
    let play = Play::scene(Scene::Hotplugged, &[vm("web", &[("root", false), ("data", true)])]);
    let expected = [&BEGUN[..], &DONE].concat();
    assert_eq!(play.course("root"), expected);
    assert_eq!(play.course("data"), expected);
}

#[test]
fn two_vms_that_are_drained_twice_move_twice_beside_each_other() {
    let vms = [vm("web", &[("root", false)]), vm("db", &[("root-2", false)])];
    let play = Play::scene(Scene::TwoDrains, &vms);
    let expected: Vec<String> =
        BEGUN.iter().chain(&DONE).map(|&one| one.to_owned()).chain(goes_on("c")).collect();
    assert_eq!(play.course("root"), expected);
    assert_eq!(play.course("root-2"), expected);
    assert_eq!(play.sides.len(), 4);
}

#[test]
fn twenty_in_a_row_leave_what_kubevirt_keeps_of_five() {
    let mut play = Play::running(&[("root", false), ("data", true)]);
    for number in 0..20 {
        let (from, to) = if number % 2 == 0 { ("a", "b") } else { ("b", "a") };
        play.moves(to);
        assert_eq!(play.shown("root"), format!("{from}>{to} Completed, switched"), "{number}");
        assert_eq!(play.shown("data"), play.shown("root"), "{number}");
    }
    let count = |kind| play.stored.all(kind).count();
    assert_eq!((play.sides.len(), count(Kind::VirtualMachineInstanceMigration)), (20, 5));
    // The VM's own with its disks', and what it has left.
    assert_eq!(count(Kind::Pod), 2 + 5);
}

#[test]
fn nobody_is_asked_for_a_target_while_another_pod_is_there() {
    let mut play = Play::running(&[("root", false)]);
    play.migrate("b", &Step::Completed);
    play.steps(&[Step::Asked { to: "c".into() }, Step::Accepted]);
    let refused = play.scripts[0].next(&Step::TargetMade, "2026-11-30T09:59:00Z").expect_err("refused");
    assert!(refused.to_string().contains("there is no end of the VM's other pods"), "{refused}");
    play.steps(&[Step::SourceEnds, Step::TargetMade]);
    assert_eq!(play.shown("root"), "b>? Preparing");
    let again =
        play.scripts[0].next(&Step::Asked { to: "a".into() }, "2026-11-30T09:59:00Z").expect_err("refused");
    assert!(again.to_string().contains("end of the migration before"), "{again}");
}
