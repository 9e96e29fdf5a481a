//! `minFence=reservation` with nobody else attached, one event at a time: docs/decisions/0005.

use super::fence_tests::{asked, overdue};
use super::tests::*;
use super::*;
use crate::*;

fn reserving() -> TargetAbilities {
    TargetAbilities { reservations: ReservationAbility::AbortWaits, ..able() }
}

#[test]
fn with_nobody_else_attached_the_next_rung_runs_and_the_first_is_named() {
    let mut b = alone(reserving());
    overdue(&mut b, "a");
    assert_eq!(asked(&b), "deny");
    let fence = b.core.volumes[&v()].fence(&n("a")).expect("a fence").clone();
    assert_eq!((fence.rung, fence.tried[0].rung), (Rung::Acl, Rung::Reservation));
    assert_eq!(fence.tried[0].result, "no other node that has the volume is connected to preempt it");
    b.rds(Ok(()));
    b.rds(Ok(()));
    let source = b.core.volumes[&v()].past_evidence[0].source.clone();
    assert_eq!(source, Source::TargetCut { acl: true, secret: None }, "and it is not called a reservation");
}

#[test]
fn where_only_a_reservation_suffices_nobody_else_attached_is_a_refusal() {
    let mut b = bench(reserving());
    b.min_fence = MinFence::Reservation;
    b.attach("a", Access::Rwo);
    let request = overdue(&mut b, "a");
    assert_eq!(asked(&b), "nothing");
    let Refusal::CannotFence { agent, tried, min_fence, .. } = b.refusal(request) else {
        panic!("{:?}", b.effects)
    };
    assert_eq!((agent.node, min_fence), (n("a"), MinFence::Reservation));
    let because = |rung, result: &str| Tried { rung, result: result.into() };
    let weaker = "weaker than the volume's minFence, reservation";
    assert_eq!(
        tried,
        [
            because(Rung::Reservation, "no other node that has the volume is connected to preempt it"),
            because(Rung::Acl, weaker),
            because(Rung::Secret, weaker),
            because(Rung::ExportOff, weaker),
            because(Rung::NodeGone, weaker),
        ]
    );
    b.declare_gone(90, "a");
    b.pass(24 * 3_600_000);
    assert_eq!((b.phase("a"), asked(&b)), (Some("Draining"), "nothing"), "no word and no time weakens it");
    let elsewhere = b.publish("bb", Access::Rwo);
    assert!(matches!(b.refusal(elsewhere), Refusal::CannotFence { .. }));
    // Its own proof always does.
    b.up("a", "boot", vec![b.observed(ObservedPhase::Ready)]);
    b.agent(absent("live"));
    b.pass(Config::default().drain_bound_ms);
    b.rds(Ok(()));
    assert_eq!(b.phase("a"), None);
}

#[test]
fn a_second_rwx_node_enters_beside_an_unfenceable_one_and_preempts_it() {
    let mut b = bench(reserving());
    b.min_fence = MinFence::Reservation;
    b.attach("a", Access::RwxBlock);
    let request = overdue(&mut b, "a");
    assert!(matches!(b.refusal(request), Refusal::CannotFence { .. }));
    let second = b.publish("bb", Access::RwxBlock);
    assert!(b.reply(second).is_none(), "it does not wait for node a: {:?}", b.effects);
    b.rds(Ok(()));
    b.agent(ready());
    assert!(matches!(b.reply(second), Some(Ok(Reply::Published(_)))));
    b.pass(Config::default().fence_after_ms);
    assert_eq!(asked(&b), "deny");
    b.rds(Ok(()));
    let Some((node, _, Directive::Preempt { .. })) = b.directed() else { panic!("{:?}", b.effects) };
    assert_eq!(node, n("bb"));
    let left = b.core.volumes[&v()].attachments[1].epoch.reservation_key();
    b.agent(Outcome::Preempted { left: vec![left], aborted: vec![] });
    b.rds(Ok(()));
    assert_eq!(b.core.volumes[&v()].past_evidence[0].source, Source::Reservation { by: n("bb") });
}
