//! The export while nobody has the volume: it goes off with the last node, and comes back with the next one.

use super::fence_tests::{asked, overdue};
use super::tests::*;
use crate::*;

fn unreachable() -> Result<(), RdsFailure> {
    Err(RdsFailure::Unreachable("no answer".into()))
}

#[test]
fn the_export_goes_with_the_last_node_and_comes_with_the_next_grant() {
    let mut b = alone(able());
    let request = b.detach("a", "live");
    assert_eq!(asked(&b), "close");
    assert!(b.stored[&v()].hidden && b.reply(request).is_none(), "that it may be off outlives a crash");
    b.rds(Ok(()));
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
    b.pass(3_600_000);
    assert_eq!((asked(&b), b.stored[&v()].hidden), ("nothing", true), "nobody has it");
    let request = b.publish("bb", Access::Rwo);
    assert_eq!(asked(&b), "allow", "which brings it back");
    b.rds(Ok(()));
    assert!(!b.stored[&v()].hidden);
    b.agent(ready());
    assert!(matches!(b.reply(request), Some(Ok(Reply::Published(_)))));
}

#[test]
fn after_a_restart_nobody_attaches_before_the_export_is_heard_to_be_on() {
    let mut b = alone(able());
    b.detach("a", "live");
    b.rds(Ok(()));
    b.restart();
    b.up("a", "boot", vec![]);
    b.publish("a", Access::Rwo);
    assert_eq!(asked(&b), "allow");
    b.rds(Ok(()));
    assert_eq!(
        (asked(&b), b.directed()),
        ("show", None),
        "what the process before has asked for may still come"
    );
    b.rds(Ok(()));
    assert!(matches!(b.directed(), Some((_, _, Directive::Attach { .. }))));
    assert!(!b.stored[&v()].hidden);
}

#[test]
fn of_two_nodes_that_go_at_once_the_last_takes_the_export_with_it() {
    let mut b = shared(able());
    let mut denies = Vec::new();
    for name in ["a", "bb"] {
        b.detach(name, "live");
        assert_eq!(asked(&b), "deny", "the other one has it still");
        denies.extend(b.rds_asked().map(|(operation, _)| operation));
    }
    b.event(Event::RdsDone { operation: denies[0], result: Ok(()) });
    assert_eq!((b.phase("a"), asked(&b)), (None, "nothing"));
    b.event(Event::RdsDone { operation: denies[1], result: Ok(()) });
    assert_eq!((b.phase("bb"), asked(&b)), (Some("Draining"), "close"));
    b.rds(Ok(()));
    assert_eq!((b.phase("bb"), b.stored[&v()].hidden), (None, true));
}

#[test]
fn a_close_without_answer_is_repeated_and_proves_nothing() {
    let mut b = alone(able());
    b.detach("a", "live");
    b.rds(unreachable());
    assert_eq!(b.phase("a"), Some("Draining"));
    b.pass(Config::default().retry_ms);
    assert_eq!(asked(&b), "close");
    b.rds(Ok(()));
    assert_eq!(b.phase("a"), None);
    // The first one may come late: the next node attaches only once the export is heard to be on.
    b.publish("a", Access::Rwo);
    b.rds(Ok(()));
    assert_eq!((asked(&b), b.directed()), ("show", None));
}

#[test]
fn a_detach_that_somebody_waits_for_is_drained_by_the_export_going_off() {
    let mut b = alone(able());
    let request = b.detach("a", "connecting");
    assert_eq!(asked(&b), "hide", "its own word leaves the drain bound to be waited for");
    b.rds(Ok(()));
    assert_eq!(asked(&b), "close");
    b.rds(Ok(()));
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
    assert_eq!(b.core.volumes[&v()].past_evidence[0].drained, Drained::Barrier);
    assert_eq!(asked(&b), "nothing");
}

#[test]
fn beside_a_survivor_the_export_comes_back_before_another_is_let_in() {
    let mut b = shared(able());
    overdue(&mut b, "a");
    b.rds(Ok(()));
    b.rds(Ok(()));
    assert_eq!(asked(&b), "show");
    let show = b.rds_asked().expect("asked").0;
    b.publish("ccc", Access::RwxBlock);
    assert_eq!((b.phase("ccc"), asked(&b)), (Some("Granting"), "nothing"));
    b.event(Event::RdsDone { operation: show, result: Ok(()) });
    assert_eq!(asked(&b), "allow");
}

#[test]
fn time_wakes_only_volumes_about_which_something_waits_for_it() {
    let mut b = alone(able());
    let awake = |b: &Harness| b.core.index.awake(UnixMillis(u64::MAX)).count();
    assert_eq!(awake(&b), 0, "it is attached, and nothing is to come of time");
    b.silent("a");
    assert_eq!(awake(&b), 0);
    b.unpublish("a");
    assert_eq!(awake(&b), 1, "a fence will be due");
    b.pass(Config::default().fence_after_ms);
    b.rds(unreachable());
    assert_eq!(awake(&b), 1, "it is tried again after a while");
    b.pass(Config::default().retry_ms);
    b.rds(Ok(()));
    b.rds(Ok(()));
    assert_eq!((awake(&b), b.phase("a")), (0, None));
    assert_eq!(b.core.index.of_node(&n("a")).count(), 1, "it is quarantined");
}

#[test]
fn before_its_moment_a_volume_is_not_looked_at_and_then_it_is() {
    let mut b = alone(able());
    b.silent("a");
    let bound = Config::default().drain_bound_ms;
    let seen = Observed { unbroken: false, ..b.observed(ObservedPhase::Ready) };
    b.up("a", "boot", vec![seen]);
    let until = b.core.volumes[&v()].attachments[0].may_land_until.expect("it may have broken");
    let awake = |b: &Harness, at: UnixMillis| b.core.index.awake(at).count();
    assert_eq!((awake(&b, UnixMillis(until.0 - 1)), awake(&b, until)), (0, 1));
    b.pass(bound);
    assert_eq!(b.core.volumes[&v()].attachments[0].may_land_until, None, "the bound has passed");
    assert_eq!(awake(&b, UnixMillis(u64::MAX)), 0);
}
