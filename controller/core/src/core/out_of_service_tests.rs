//! Nodes that the orchestrator says are out of service: a fence begins, and it proves nothing by itself.

use super::fence_tests::{asked, fenced};
use super::tests::*;
use super::*;
use crate::*;

fn marked(b: &mut Harness) {
    b.event(Event::OutOfService { node: n("a"), by: "the taint".into(), reason: "out of service".into() });
}

/// It was probed, and does no fence.
fn powerless() -> TargetAbilities {
    TargetAbilities { probed: true, ..TargetAbilities::default() }
}

fn patience() -> u64 {
    Config::default().fence_after_ms
}

#[test]
fn a_marked_node_is_fenced_and_only_the_proof_ends_it() {
    let mut b = alone(able());
    marked(&mut b);
    assert_eq!((b.phase("a"), asked(&b)), (Some("Draining"), "deny"), "though its agent is heard");
    b.rds(Ok(()));
    let request = b.publish("bb", Access::Rwo);
    assert_eq!(b.reply(request), None, "it may still write");
    marked(&mut b);
    assert!(b.effects.is_empty(), "said again it is nothing new: {:?}", b.effects);
}

#[test]
fn a_marked_node_that_goes_on_where_no_fence_is_possible_stays_a_writer() {
    let mut b = alone(powerless());
    for _ in 0..3 {
        marked(&mut b);
        b.pass(patience());
    }
    assert_eq!((b.phase("a"), fenced(&b)), (Some("Draining"), vec![]));
    let request = b.publish("bb", Access::Rwo);
    b.pass(Config::default().detach_grace_ms);
    assert!(b.phase("bb").is_none() && !matches!(b.reply(request), Some(Ok(_))), "{:?}", b.effects);
}

#[test]
fn a_mark_is_a_statement_about_a_silent_node_where_no_fence_is_possible() {
    let mut b = alone(powerless());
    b.silent("a");
    marked(&mut b);
    assert_eq!(b.phase("a"), Some("Draining"));
    assert!(b.core.volumes[&v()].attachment(&n("a")).is_some_and(|a| a.evidence().is_none()), "not at once");
    b.pass(patience());
    marked(&mut b);
    let evidence = b.core.volumes[&v()].attachment(&n("a")).and_then(|a| a.evidence()).cloned();
    let source = evidence.map(|evidence| evidence.source);
    let by = Source::NodeGone { by: "the taint".into(), reason: "out of service".into() };
    assert_eq!(source, Some(by), "and then the bound has to pass");
}

#[test]
fn after_a_start_agents_get_their_time_to_be_heard_first() {
    let mut b = alone(powerless());
    b.pass(patience());
    b.restart();
    marked(&mut b);
    let evidence =
        |b: &Harness| b.core.volumes[&v()].attachment(&n("a")).and_then(|a| a.evidence()).is_some();
    assert!(!evidence(&b));
    b.up("a", "boot", vec![observed_of(ObservedPhase::Ready)]);
    b.pass(patience());
    marked(&mut b);
    assert!(!evidence(&b), "it is heard");
}

#[test]
fn a_mark_is_no_statement_where_the_target_could_fence_and_does_not() {
    let mut b = alone(able());
    b.silent("a");
    b.pass(patience());
    for _ in 0..3 {
        marked(&mut b);
        while b.rds_asked().is_some() {
            b.rds(Err(RdsFailure::Refused("no".into())));
        }
        b.pass(patience());
    }
    assert_eq!((b.phase("a"), fenced(&b)), (Some("Draining"), vec![]));
    assert!(b.core.volumes[&v()].attachment(&n("a")).is_some_and(|a| a.evidence().is_none()));
}

#[test]
fn a_mark_is_no_statement_where_the_volume_demands_a_fence() {
    let mut b = bench(powerless());
    b.min_fence = MinFence::Acl;
    b.attach("a", Access::Rwo);
    b.silent("a");
    b.pass(patience());
    marked(&mut b);
    b.pass(Config::default().drain_bound_ms);
    assert_eq!((b.phase("a"), fenced(&b)), (Some("Draining"), vec![]));
}

#[test]
fn a_mark_on_a_node_that_has_nothing_changes_nothing() {
    let mut b = bench(able());
    marked(&mut b);
    assert!(b.effects.is_empty(), "{:?}", b.effects);
}

#[test]
fn a_mark_is_no_statement_where_nobody_knows_what_the_target_does() {
    let mut b = alone(TargetAbilities::default());
    b.silent("a");
    for _ in 0..3 {
        marked(&mut b);
        b.pass(patience());
    }
    assert!(b.core.volumes[&v()].attachment(&n("a")).is_some_and(|a| a.evidence().is_none()));
}
