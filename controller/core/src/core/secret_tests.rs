//! Secrets, one event at a time: an answer counts for the generation that was asked about, and for no other.

use super::fence_tests::{asked, overdue};
use super::tests::*;
use super::*;
use crate::*;

fn generation(b: &Harness) -> Epoch {
    b.core.volumes[&v()].secret.as_ref().expect("a secret").generation
}

fn told(b: &Harness) -> (NodeId, OperationId, Epoch) {
    match b.directed() {
        Some((node, operation, Directive::Rekey { generation, .. })) => (node, operation, generation),
        _ => panic!("nobody is told another secret: {:?}", b.effects),
    }
}

/// Nodes a and bb have the volume; a is being fenced, and its fence has begun to change the secret.
fn changing() -> Harness {
    let mut b = bench(TargetAbilities { acl: false, secret: true, ..able() });
    b.attach_with_secret("a", Access::RwxBlock);
    b.attach("bb", Access::RwxBlock);
    overdue(&mut b, "a");
    assert_eq!(asked(&b), "set secret");
    b
}

#[test]
fn a_survivor_with_an_older_secret_is_sent_the_one_in_force() {
    let mut b = changing();
    b.rds(Ok(()));
    let (_, first, older) = told(&b);
    // The fence gives up on a survivor that is not heard, and tries again with a secret of its own.
    b.silent("bb");
    b.up("bb", "boot", vec![b.observed(ObservedPhase::Ready)]);
    assert_eq!(told(&b), (n("bb"), first, older), "the same, on its new session");
    b.pass(Config::default().fence_after_ms);
    assert_eq!(asked(&b), "set secret");
    b.rds(Ok(()));
    let (node, operation, newer) = told(&b);
    assert!(node == n("bb") && newer == generation(&b) && newer > older && operation != first);
    // The answer to the older one, late, is not taken for one to this.
    let (session, epoch) = (b.session("bb"), b.core.volumes[&v()].attachments[1].epoch);
    let rekeyed = Outcome::Rekeyed;
    b.event(Event::AgentDone { node, session, operation: first, volume: v(), epoch, outcome: rekeyed });
    assert_ne!(asked(&b), "hide", "bb would lose the volume");
}

#[test]
fn a_node_that_gave_the_volume_back_does_not_know_its_next_secret() {
    let mut b = bench(TargetAbilities { acl: false, secret: true, ..able() });
    b.attach_with_secret("a", Access::RwxBlock);
    let first = generation(&b);
    b.detach("a", "live");
    b.rds(Ok(()));
    assert_eq!(b.phase("a"), None, "{:?}", b.effects);
    b.publish("bb", Access::RwxBlock);
    let Some((_, RdsRequest::SetSecret { generation: asked_for, .. })) = b.rds_asked() else {
        panic!("node bb is let in under the secret that node a knows: {:?}", b.effects)
    };
    assert!(asked_for > first && asked_for == generation(&b));
    assert!(!b.core.volumes[&v()].secret.as_ref().expect("a secret").in_force);
}

#[test]
fn an_rds_with_an_older_secret_is_given_the_newer_one() {
    let mut b = changing();
    let older = b.rds_asked().expect("asked").0;
    let first = generation(&b);
    // bb is to be cut off as well, and its fence chooses another secret before the first is answered.
    b.fence(90, "bb");
    assert!(generation(&b) > first, "{:?}", b.core.volumes[&v()]);
    b.event(Event::RdsDone { operation: older, result: Ok(()) });
    let Some((_, RdsRequest::SetSecret { generation: asked_for, .. })) = b.rds_asked() else {
        panic!("what is in force is not what was chosen: {:?}", b.effects)
    };
    assert_eq!(asked_for, generation(&b));
    assert!(!b.core.volumes[&v()].secret.as_ref().expect("a secret").in_force);
}

#[test]
fn a_stray_that_appears_during_a_rekey_does_not_delay_the_fence() {
    let mut b = bench(TargetAbilities { acl: false, secret: true, ..able() });
    b.attach_with_secret("a", Access::RwxBlock);
    b.attach("bb", Access::RwxBlock);
    overdue(&mut b, "a");
    b.rds(Ok(()));
    let fence = b.core.volumes[&v()].fence(&n("a")).expect("a fence");
    assert_eq!(fence.step, FenceStep::Rekey);
    b.says("ccc", observed_of(ObservedPhase::Ready));
    let fence = b.core.volumes[&v()].fence(&n("a")).expect("a fence");
    let secret = fence.tried.iter().find(|t| t.rung == Rung::Secret).expect("it is told why");
    assert!(secret.result.contains("node ccc"), "{secret:?}");
}
