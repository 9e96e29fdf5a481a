//! After a handoff, event by event.

use super::super::testing::*;
use crate::*;

fn seen(stage: VmStage, pod: Option<&str>) -> VmMigration {
    let target_pod = pod.map(str::to_owned);
    VmMigration { target_pod, ..super::super::testing::seen(1, "a", "bb", stage) }
}

fn report(b: &mut Harness, stage: VmStage, pod: Option<&str>) {
    b.event(Event::MigrationSeen { volume: v(), vm: Some(Box::new(seen(stage, pod))) });
}

/// Whom an agent was asked to look for in the last step, as `NODE PODS`.
fn asked(b: &Harness) -> Vec<String> {
    let asked = b.effects.iter().filter_map(|effect| match effect {
        Effect::Direct { node, directive: Directive::Verify { pods, others, .. }, .. } => {
            assert!(others.is_empty(), "there is one volume: {others:?}");
            Some(format!("{node} {}", pods.join(" ")))
        }
        _ => None,
    });
    asked.collect()
}

#[test]
fn the_target_is_looked_at_once_the_vm_has_moved() {
    let mut b = shared(able());
    report(&mut b, VmStage::Running, Some("pod-b"));
    assert!(asked(&b).is_empty(), "it has not moved");
    report(&mut b, VmStage::Completed, Some("pod-b"));
    assert_eq!(asked(&b), ["bb pod-b"]);
    report(&mut b, VmStage::Completed, Some("pod-b"));
    b.pass(10_000);
    assert!(asked(&b).is_empty(), "once");
    // A pod that was not known before, or another one.
    report(&mut b, VmStage::Completed, Some("pod-c"));
    assert_eq!(asked(&b), ["bb pod-c"]);
    report(&mut b, VmStage::Completed, None);
    assert!(asked(&b).is_empty(), "what is not known any more");
    b.up("bb", "boot", vec![b.observed(ObservedPhase::Ready)]);
    assert_eq!(asked(&b), ["bb pod-c"], "a new session is asked again");
}

#[test]
fn without_a_pod_or_a_report_nobody_is_asked() {
    let mut b = shared(able());
    report(&mut b, VmStage::Completed, None);
    assert!(asked(&b).is_empty());
    let mut b = shared(able());
    report(&mut b, VmStage::Failed, Some("pod-b"));
    assert!(asked(&b).is_empty(), "the VM is where it was");
}

#[test]
fn it_is_asked_again_after_a_restart_as_soon_as_the_pod_is_known() {
    let mut b = shared(able());
    report(&mut b, VmStage::Completed, Some("pod-b"));
    for vm in b.stored.values_mut().filter_map(|record| record.migration.as_mut()?.vm.as_mut()) {
        vm.target_pod = None;
    }
    b.restart();
    for name in ["a", "bb"] {
        b.up(name, "boot", vec![b.observed(ObservedPhase::Ready)]);
    }
    assert!(asked(&b).is_empty(), "pods are not kept");
    report(&mut b, VmStage::Completed, Some("pod-b"));
    assert_eq!(asked(&b), ["bb pod-b"]);
}

#[test]
fn the_answer_of_a_look_changes_nothing() {
    let mut b = shared(able());
    report(&mut b, VmStage::Completed, Some("pod-b"));
    let before = b.core.volumes.clone();
    for outcome in [ready(), absent("live"), Outcome::Busy { holders: Vec::new() }] {
        let mut b = b.clone();
        let (node, operation, directive) = b.directed().expect("a Verify");
        let (session, epoch) = (b.session(node.as_str()), directive.epoch());
        b.event(Event::AgentDone { node, session, operation, volume: v(), epoch, outcome });
        assert_eq!((b.effects.len(), &b.core.volumes), (0, &before));
    }
}
