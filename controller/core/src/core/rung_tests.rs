//! The rungs beyond list and cut, one event at a time: reservations, secrets, the barrier; and what a fence leaves of the
//! node's own report.

use super::fence_tests::{asked, fenced, overdue};
use super::tests::*;
use super::*;
use crate::*;

#[test]
fn a_survivor_preempts_after_the_list_and_before_the_cut() {
    let target =
        TargetAbilities { reservations: ReservationAbility::AbortWaits, export_drains: false, ..able() };
    let mut b = shared(target);
    let request = overdue(&mut b, "a");
    assert_eq!(asked(&b), "deny", "a target that restarts forgets registrations, not its list");
    b.rds(Ok(()));
    let Some((node, _, Directive::Preempt { victims, .. })) = b.directed() else { panic!("{:?}", b.effects) };
    let epochs: Vec<Epoch> = b.core.volumes[&v()].attachments.iter().map(|a| a.epoch).collect();
    assert_eq!((node, victims), (n("bb"), vec![epochs[0]]));
    b.agent(Outcome::Preempted {
        left: vec![epochs[1].reservation_key()],
        aborted: vec![epochs[0].reservation_key()],
    });
    assert!(b.reply(request).is_none(), "it would write again when the last registrant has gone");
    assert_eq!(asked(&b), "hide");
    b.rds(Ok(()));
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
    let evidence = &b.core.volumes[&v()].past_evidence[0];
    assert_eq!(
        (&evidence.source, &evidence.drained),
        (&Source::Reservation { by: n("bb") }, &Drained::Abort)
    );
}

#[test]
fn a_report_that_still_shows_a_key_proves_nothing_so_the_next_rung_runs() {
    let mut b = shared(TargetAbilities { reservations: ReservationAbility::Held, ..able() });
    overdue(&mut b, "a");
    b.rds(Ok(()));
    let victim = b.core.volumes[&v()].attachments[0].epoch.reservation_key();
    b.agent(Outcome::Preempted { left: vec![victim], aborted: vec![] });
    let fence = b.core.volumes[&v()].fence(&n("a")).expect("a fence");
    assert_eq!((fence.rung, fence.step), (Rung::Acl, FenceStep::Deny));
    assert!(fence.tried[0].result.contains(&format!("{victim:#x}")), "{:?}", fence.tried);
}

#[test]
fn a_secret_changes_reaches_survivors_and_only_then_all_are_cut() {
    let mut b = bench(TargetAbilities { acl: false, secret: true, ..able() });
    b.publish("a", Access::RwxBlock);
    assert_eq!(asked(&b), "set secret", "before anybody connects");
    b.rds(Ok(()));
    assert_eq!(asked(&b), "allow");
    b.rds(Ok(()));
    b.agent(ready());
    b.attach("bb", Access::RwxBlock);
    let first = b.core.volumes[&v()].secret.as_ref().expect("a secret").generation;
    overdue(&mut b, "a");
    assert_eq!(asked(&b), "set secret");
    b.rds(Ok(()));
    let Some((node, _, Directive::Rekey { generation, .. })) = b.directed() else {
        panic!("{:?}", b.effects)
    };
    assert!(node == n("bb") && generation > first);
    assert_eq!(asked(&b), "nothing", "the survivor would be lost");
    b.agent(Outcome::Rekeyed);
    assert_eq!(asked(&b), "hide");
    b.rds(Ok(()));
    let evidence = b.core.volumes[&v()].attachments[0].evidence().cloned().expect("a proof");
    assert_eq!(evidence.source, Source::TargetCut { acl: false, secret: Some(generation) });
}

#[test]
fn a_secret_that_cannot_reach_a_silent_survivor_stays() {
    let mut b = bench(TargetAbilities { acl: false, secret: true, ..able() });
    b.attach_with_secret("a", Access::RwxBlock);
    b.attach("bb", Access::RwxBlock);
    b.silent("bb");
    let request = overdue(&mut b, "a");
    let refusal = b.refusal(request);
    assert_eq!(
        result_of(&refusal, Rung::Secret),
        "node bb uses the volume and cannot be sent another secret"
    );
}

#[test]
fn dead_controllers_drain_by_the_barrier_when_one_waits_and_none_has_it() {
    let mut b = alone(able());
    let request = b.detach("a", "connecting");
    assert_eq!(asked(&b), "hide");
    b.rds(Ok(()));
    assert_eq!(asked(&b), "close");
    assert_eq!(b.all_rds_asked().len(), 1, "and the export stays off: {:?}", b.effects);
    let deny = b.rds_asked().expect("asked").0;
    b.event(Event::RdsDone { operation: deny, result: Ok(()) });
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
    assert_eq!(b.core.volumes[&v()].past_evidence[0].drained, Drained::Barrier);
    assert!(fenced(&b).is_empty(), "its own proof quarantines nobody");
}

#[test]
fn with_a_survivor_dead_controllers_wait_for_the_bound() {
    let mut b = shared(able());
    b.detach("a", "connecting");
    assert_eq!(asked(&b), "nothing");
}

#[test]
fn a_volume_that_a_quarantined_node_holds_is_no_stray_and_is_granted() {
    let mut b = alone(able());
    overdue(&mut b, "a");
    for _ in 0..2 {
        b.rds(Ok(()));
    }
    b.up("a", "boot", vec![observed_of(ObservedPhase::Lost)]);
    assert_eq!(b.phase("a"), None, "it cannot write");
    b.attach("bb", Access::Rwo);
}

#[test]
fn an_abort_that_does_not_wait_is_followed_by_cut_and_drain() {
    let mut b = shared(TargetAbilities { reservations: ReservationAbility::Held, ..able() });
    let request = overdue(&mut b, "a");
    b.rds(Ok(()));
    let survivor = b.core.volumes[&v()].attachments[1].epoch.reservation_key();
    b.agent(Outcome::Preempted { left: vec![survivor], aborted: vec![] });
    assert!(b.reply(request).is_none(), "what it aborted may still land");
    assert_eq!(asked(&b), "hide");
    b.rds(Ok(()));
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
    let evidence = &b.core.volumes[&v()].past_evidence[0];
    assert_eq!(
        (&evidence.source, &evidence.drained),
        (&Source::Reservation { by: n("bb") }, &Drained::Barrier)
    );
}

#[test]
fn a_live_deletion_is_not_drained_where_a_fence_may_have_cut_it() {
    let mut b = shared(TargetAbilities { reservations: ReservationAbility::Held, ..able() });
    overdue(&mut b, "a");
    b.up("a", "boot", vec![b.observed(ObservedPhase::Ready)]);
    b.pass(Config::default().drain_bound_ms);
    assert!(b.core.volumes[&v()].fence(&n("a")).is_some_and(|f| f.touched));
    let session = b.session("a");
    let a = b.core.volumes[&v()].attachments[0].clone();
    let operation = *a.pending.agent().expect("it was told to revoke");
    let outcome = absent("live");
    b.event(Event::AgentDone { node: n("a"), session, operation, volume: v(), epoch: a.epoch, outcome });
    let evidence = b.core.volumes[&v()].attachments[0].evidence().cloned().expect("its own proof");
    assert!(matches!(evidence.drained, Drained::Bound { .. }), "{evidence:?}");
}

#[test]
fn a_proof_of_absence_is_worth_nothing_once_the_node_holds_the_volume() {
    let mut b = alone(TargetAbilities::default());
    b.detach("a", "connecting");
    assert!(b.core.volumes[&v()].attachments[0].evidence().is_some());
    b.says("a", b.observed(ObservedPhase::Ready));
    assert!(b.core.volumes[&v()].attachments[0].evidence().is_none());
    assert!(matches!(b.directed(), Some((_, _, Directive::Detach { .. }))), "{:?}", b.effects);
}
