//! The export, one event at a time: nothing brings it back that is asked for while a fence has it off.

use super::fence_tests::{asked, overdue};
use super::tests::*;
use super::*;
use crate::*;

#[test]
fn a_second_node_waits_while_the_export_is_off_since_it_would_return() {
    let mut b = bench(able());
    b.attach("a", Access::RwxBlock);
    overdue(&mut b, "a");
    b.rds(Ok(()));
    assert_eq!(asked(&b), "hide");
    let hide = b.rds_asked().expect("asked").0;
    let second = b.publish("bb", Access::RwxBlock);
    assert_eq!((b.phase("bb"), asked(&b)), (Some("Granting"), "nothing"));
    let since = b.core.volumes[&v()].fence(&n("a")).expect("a fence").since;
    let fences = vec![ExportFence { node: n("a"), rung: Rung::Acl, since }];
    assert_eq!(
        b.core.waits_for(&v(), &n("bb")).expect("it waits").condition,
        Condition::ExportOn { volume: v(), fences }
    );
    b.event(Event::RdsDone { operation: hide, result: Ok(()) });
    assert_eq!(b.all_rds_asked().len(), 1, "{:?}", b.effects);
    assert_eq!(asked(&b), "allow", "nobody else needs the export, and this brings it back");
    b.rds(Ok(()));
    b.agent(ready());
    assert!(matches!(b.reply(second), Some(Ok(Reply::Published(_)))));
}

#[test]
fn a_second_node_waits_for_an_export_off_fence_and_is_refused_once_proven() {
    let mut b = bench(TargetAbilities { acl: false, ..able() });
    b.attach("a", Access::RwxBlock);
    overdue(&mut b, "a");
    let hide = b.rds_asked().expect("asked").0;
    let early = b.publish("bb", Access::RwxBlock);
    assert_eq!((b.phase("bb"), asked(&b)), (None, "nothing"));
    b.pass(Config::default().detach_grace_ms);
    let Refusal::StillWaiting { volume, wait, .. } = b.refusal(early) else { panic!("{:?}", b.effects) };
    assert_eq!(volume, v());
    let (agent, fence) = detached(&wait);
    let fence = fence.expect("a fence");
    assert_eq!((&agent.node, fence.rung, fence.step), (&n("a"), Rung::ExportOff, FenceStep::Hide));
    b.event(Event::RdsDone { operation: hide, result: Ok(()) });
    assert_eq!(asked(&b), "close");
    let deny = b.rds_asked().expect("asked").0;
    let meanwhile = b.publish("bb", Access::RwxBlock);
    assert_eq!((b.phase("bb"), asked(&b)), (None, "nothing"), "node a would connect again");
    b.event(Event::RdsDone { operation: deny, result: Ok(()) });
    assert!(matches!(b.refusal(meanwhile), Refusal::ExportOff { node, .. } if node == n("a")));
    let late = b.publish("bb", Access::RwxBlock);
    assert!(matches!(b.refusal(late), Refusal::ExportOff { node, .. } if node == n("a")));
}

#[test]
fn an_export_that_the_rds_refuses_is_requested_again() {
    let mut b = shared(able());
    overdue(&mut b, "a");
    b.rds(Ok(()));
    b.rds(Ok(()));
    assert_eq!(asked(&b), "show");
    b.rds(Err(RdsFailure::Refused("no such portal".into())));
    assert!(b.core.volumes[&v()].hidden && b.stored[&v()].hidden, "it is off still");
    b.pass(Config::default().retry_ms);
    assert_eq!(asked(&b), "show");
}

#[test]
fn an_export_that_may_have_been_off_already_has_drained_nobody() {
    let mut b = shared(able());
    overdue(&mut b, "a");
    b.rds(Ok(()));
    b.rds(Err(RdsFailure::Unreachable("timed out".into())));
    b.pass(Config::default().retry_ms);
    let second = b.rds_asked().expect("the export is to go off").0;
    b.fence(90, "bb");
    assert_eq!(asked(&b), "deny");
    b.rds(Ok(()));
    b.event(Event::RdsDone { operation: second, result: Ok(()) });
    assert_eq!(asked(&b), "hide");
    b.rds(Ok(()));
    let record = &b.core.volumes[&v()];
    let proofs = record.attachments.iter().filter_map(Attachment::evidence).chain(&record.past_evidence);
    let drained: Vec<&Drained> = proofs.map(|e| &e.drained).collect();
    let bounds = drained.iter().filter(|d| matches!(d, Drained::Bound { .. })).count();
    assert_eq!(bounds, 2, "the first try cut both, and nobody knows what it waited for: {drained:?}");
}

#[test]
fn a_survivor_that_was_cut_with_a_fenced_node_has_its_writes_waited_for() {
    let drained = |fence: bool| {
        let mut b = shared(TargetAbilities { export_drains: false, ..able() });
        if fence {
            overdue(&mut b, "a");
            for step in ["deny", "hide", "show"] {
                assert_eq!(asked(&b), step);
                b.rds(Ok(()));
            }
        }
        b.detach("bb", "live");
        b.core.volumes[&v()]
            .attachment(&n("bb"))
            .and_then(Attachment::evidence)
            .expect("a proof")
            .drained
            .clone()
    };
    assert!(!matches!(drained(false), Drained::Bound { .. }), "nothing has cut it");
    assert!(matches!(drained(true), Drained::Bound { .. }), "what it sent before the cut may land still");
}

#[test]
fn an_export_that_came_back_in_part_is_not_drained_by_going_off() {
    let drained = |show: Result<(), RdsFailure>| {
        let mut b = shared(able());
        overdue(&mut b, "a");
        for step in ["deny", "hide"] {
            assert_eq!(asked(&b), step);
            b.rds(Ok(()));
        }
        assert_eq!(asked(&b), "show");
        b.rds(show);
        b.fence(90, "bb");
        assert_eq!(asked(&b), "deny");
        b.rds(Ok(()));
        if asked(&b) != "hide" {
            b.pass(Config::default().retry_ms);
        }
        assert_eq!(asked(&b), "hide");
        b.rds(Ok(()));
        let record = &b.core.volumes[&v()];
        let proofs = record.attachments.iter().filter_map(Attachment::evidence).chain(&record.past_evidence);
        proofs.map(|proof| proof.drained.clone()).find(|drained| matches!(drained, Drained::Bound { .. }))
    };
    assert_eq!(drained(Ok(())), None);
    assert!(drained(Err(RdsFailure::Refused("busy".into()))).is_some(), "it may be on at one portal");
}
