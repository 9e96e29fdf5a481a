//! An RDS that says it has no such volume: its list may lack one for a moment, so that is never a proof.

use super::fence_tests::{asked, fenced, overdue};
use super::tests::*;
use super::*;
use crate::*;

fn no_such_volume() -> Result<(), RdsFailure> {
    Err(RdsFailure::NotFound("volume vol".into()))
}

#[test]
fn a_fence_stays_at_a_step_that_the_rds_says_it_has_no_volume_for() {
    let mut b = alone(able());
    let request = overdue(&mut b, "a");
    for step in ["deny", "hide"] {
        for _ in 0..3 {
            assert_eq!(asked(&b), step);
            b.rds(no_such_volume());
            assert_eq!((b.phase("a"), b.reply(request)), (Some("Draining"), None));
            let last = b.core.waits_for(&v(), &n("a")).expect("it waits").last;
            let error = no_such_volume().expect_err("it is one");
            let task = if step == "deny" { RdsTask::Deny } else { RdsTask::ExportOff };
            assert_eq!(last, Some(Trouble::Rds { task, error }));
            b.pass(Config::default().retry_ms);
        }
        b.rds(Ok(()));
    }
    let evidence = b.core.volumes[&v()].attachments[0].evidence().expect("a proof");
    assert_eq!(evidence.source, Source::TargetCut { acl: true, secret: None });
    assert!(
        matches!(evidence.drained, Drained::Bound { .. }),
        "an earlier Hide may be at it still: {evidence:?}"
    );
    assert!(b.reply(request).is_none());
}

#[test]
fn an_export_that_may_be_off_stays_so_where_the_rds_has_no_such_volume() {
    let mut b = shared(able());
    overdue(&mut b, "a");
    b.rds(Ok(()));
    b.rds(Ok(()));
    assert_eq!(asked(&b), "show");
    b.rds(no_such_volume());
    assert!(b.stored[&v()].hidden);
    b.pass(Config::default().retry_ms);
    assert_eq!(asked(&b), "show");
}

#[test]
fn a_node_done_by_its_own_report_leaves_and_nobody_enters_before_the_list() {
    let mut b = alone(able());
    let request = b.detach("a", "live");
    b.rds(no_such_volume());
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)), "{:?}", b.effects);
    assert_eq!(b.phase("a"), Some("Draining"), "it may be on the list when the volume is back");
    b.publish("bb", Access::Rwo);
    assert_eq!(b.phase("bb"), None);
    b.pass(Config::default().retry_ms);
    b.rds(Ok(()));
    assert_eq!((b.phase("a"), b.phase("bb")), (None, Some("Granting")));
}

#[test]
fn a_persons_word_does_not_stand_in_for_a_list_that_was_not_read() {
    let mut b = alone(TargetAbilities::default());
    b.silent("a");
    b.declare_gone(90, "a");
    b.pass(Config::default().drain_bound_ms);
    let operation = b.rds_asked().expect("the host is to be taken off the list").0;
    let request = b.unpublish("a");
    b.event(Event::RdsDone { operation, result: no_such_volume() });
    assert!(matches!(b.refusal(request), Refusal::Rds { .. }), "{:?}", b.effects);
    assert_eq!(b.phase("a"), Some("Draining"));
    // Nobody can write to what was deleted for good.
    b.event(Event::DeleteBegins { request: RequestId(91), volume: v() });
    assert_eq!(b.reply(RequestId(91)), Some(Ok(Reply::MayDelete)));
    b.event(Event::DeleteEnded { volume: v(), deletion: VolumeDeletion::Done });
    assert!(b.core.volumes.is_empty() && b.stored.is_empty());
}

#[test]
fn a_fence_rests_on_its_own_steps_not_on_later_probing() {
    // Without a list the rung of the secret has no such step; the target is said to keep to one only later.
    let mut b = bench(TargetAbilities { acl: false, secret: true, ..able() });
    b.attach_with_secret("a", Access::Rwo);
    overdue(&mut b, "a");
    b.rds(Ok(()));
    assert_eq!(asked(&b), "hide");
    b.config.target.acl = true;
    b.restart();
    b.rds(Ok(()));
    let record = &b.core.volumes[&v()];
    let evidence = record.attachments[0].evidence().expect("a proof");
    assert!(matches!(evidence.source, Source::TargetCut { acl: false, .. }), "{evidence:?}");
}

#[test]
fn a_fence_whose_target_turns_out_not_to_cut_takes_another_rung() {
    let mut b = alone(able());
    overdue(&mut b, "a");
    b.rds(Ok(()));
    assert_eq!(asked(&b), "hide");
    (b.config.target.export_cuts, b.config.target.export_drains) = (false, false);
    b.restart();
    assert!(b.all_rds_asked().iter().all(|r| !matches!(r, RdsRequest::Hide { .. })), "{:?}", b.effects);
    let fence = b.core.volumes[&v()].fence(&n("a")).expect("a fence");
    assert_eq!(fence.step, FenceStep::Refused);
    assert!(fence.tried.iter().any(|t| t.result.contains("not known to end sessions")), "{fence:?}");
    assert!(fenced(&b).is_empty());
}
