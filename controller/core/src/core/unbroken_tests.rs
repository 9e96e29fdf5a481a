//! What a detach rests on after a time in which nobody heard of the node, one event at a time.

use super::tests::*;
use crate::*;

const BOUND: u64 = 60_000;

/// Node a has the volume.
fn attached() -> Harness {
    let mut b = Harness::hearing(&["a"]);
    b.attach("a", Access::Rwo);
    b
}

fn ready_and(unbroken: bool, b: &Harness) -> Observed {
    Observed { unbroken, ..b.observed(ObservedPhase::Ready) }
}

/// Detaches what was live, and says whether that was proof enough.
fn is_drained_at_once(b: &mut Harness) -> bool {
    let request = b.detach("a", "live");
    if b.rds_asked().is_none() {
        return false;
    }
    b.rds(Ok(()));
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
    b.core.volumes[&v()].past_evidence[0].drained == Drained::LiveDeletion
}

#[test]
fn an_unbroken_grant_is_drained_by_its_detach_after_either_side_restarts() {
    let mut b = attached();
    b.silent("a");
    let seen = ready_and(true, &b);
    b.up("a", "boot", vec![seen]);
    assert!(is_drained_at_once(&mut b), "the agent's restart: {:?}", b.effects);
    let mut b = attached();
    b.restart();
    let seen = ready_and(true, &b);
    b.up("a", "boot", vec![seen]);
    assert!(is_drained_at_once(&mut b), "the controller's restart: {:?}", b.effects);
}

#[test]
fn whoever_shows_nothing_of_the_time_unheard_waits_for_the_bound() {
    let granted = ready_and(true, &attached());
    let earlier = Epoch { term: 1, seq: 1 };
    for (seen, boot) in [
        (Observed { unbroken: false, ..granted.clone() }, "boot"),
        (Observed { phase: ObservedPhase::Connecting, ..granted.clone() }, "boot"),
        (Observed { phase: ObservedPhase::Degraded, ..granted.clone() }, "boot"),
        (Observed { epoch: Some(earlier), ..granted.clone() }, "boot"),
        (Observed { epoch: None, ..granted.clone() }, "boot"),
        (granted.clone(), "boot-2"),
    ] {
        let mut b = attached();
        b.silent("a");
        b.up("a", boot, vec![seen.clone()]);
        assert!(!is_drained_at_once(&mut b), "{boot}: {seen:?}");
        b.pass(BOUND);
        assert!(b.rds_asked().is_some(), "and no longer: {boot}: {seen:?}");
    }
}

#[test]
fn what_broke_before_a_restart_counts_whatever_is_shown_after_it() {
    let mut b = attached();
    let degraded = b.observed(ObservedPhase::Degraded);
    b.says("a", degraded);
    let back = ready_and(true, &b);
    b.says("a", back.clone());
    b.restart();
    b.up("a", "boot", vec![back]);
    assert!(!is_drained_at_once(&mut b));
}

#[test]
fn a_bound_that_has_passed_is_not_counted_again_after_a_restart() {
    let mut b = attached();
    let degraded = b.observed(ObservedPhase::Degraded);
    b.says("a", degraded);
    let back = ready_and(true, &b);
    b.says("a", back.clone());
    b.pass(BOUND);
    assert_eq!(b.stored[&v()].attachments[0].may_land_until, None);
    b.restart();
    b.up("a", "boot", vec![back]);
    assert!(is_drained_at_once(&mut b), "{:?}", b.effects);
}
