//! Fencing, one event at a time: which steps in which order, what proves, what is refused in which words.

use super::tests::*;
use super::*;
use crate::*;

/// What the RDS was asked last.
pub(super) fn asked(b: &Harness) -> &'static str {
    match b.rds_asked() {
        None => "nothing",
        Some((_, RdsRequest::Allow { .. })) => "allow",
        Some((_, RdsRequest::Deny { .. })) => "deny",
        Some((_, RdsRequest::Close { .. })) => "close",
        Some((_, RdsRequest::Hide { .. })) => "hide",
        Some((_, RdsRequest::Show { .. })) => "show",
        Some((_, RdsRequest::SetSecret { .. })) => "set secret",
    }
}

/// The node falls silent, is unpublished, and the time after which it is fenced passes.
pub(super) fn overdue(b: &mut Harness, name: &str) -> RequestId {
    b.silent(name);
    let request = b.unpublish(name);
    assert_eq!(asked(b), "nothing", "it gets its time first");
    b.pass(Config::default().fence_after_ms);
    request
}

pub(super) fn revoked(b: &Harness) -> bool {
    matches!(b.directed(), Some((_, _, Directive::Revoke { .. })))
}

pub(super) fn fenced(b: &Harness) -> Vec<&'static str> {
    b.core.volumes[&v()].fenced.iter().map(|f| f.evidence.source.name()).collect()
}

#[test]
fn a_silent_node_is_cut_and_drained_and_the_export_comes_back() {
    let mut b = shared(able());
    let request = overdue(&mut b, "a");
    assert_eq!(asked(&b), "deny");
    assert!(matches!(b.effects.first(), Some(Effect::Persist(_))), "durable before anything is asked");
    b.rds(Ok(()));
    assert_eq!(asked(&b), "hide", "only after the list was read back");
    assert!(b.core.volumes[&v()].hidden && b.stored[&v()].hidden, "that it may be off outlives a crash");
    assert!(b.reply(request).is_none());
    b.rds(Ok(()));
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
    assert_eq!(asked(&b), "show", "the survivor waits for it");
    let evidence = &b.core.volumes[&v()].past_evidence[0];
    assert_eq!(evidence.source, Source::TargetCut { acl: true, secret: None });
    assert_eq!(evidence.drained, Drained::Barrier);
    b.rds(Ok(()));
    assert!(!b.core.volumes[&v()].hidden);
    assert_eq!(b.phase("bb"), Some("Ready"));
}

#[test]
fn a_target_not_known_to_drain_waits_the_bound_from_the_cut_on() {
    let mut b = alone(TargetAbilities { export_drains: false, ..able() });
    let request = overdue(&mut b, "a");
    b.rds(Ok(()));
    b.rds(Ok(()));
    assert_eq!(asked(&b), "nothing", "nobody needs the export");
    assert!(b.reply(request).is_none(), "cut is not drained");
    b.pass(Config::default().drain_bound_ms);
    assert_eq!(fenced(&b), ["TargetCut"]);
    assert!(matches!(b.core.volumes[&v()].past_evidence[0].drained, Drained::Bound { .. }));
}

#[test]
fn every_step_is_repeated_after_a_restart_and_the_export_comes_back() {
    let mut b = shared(able());
    overdue(&mut b, "a");
    b.restart();
    assert_eq!(asked(&b), "deny");
    b.rds(Ok(()));
    assert_eq!(asked(&b), "hide");
    b.restart();
    assert_eq!(asked(&b), "hide");
    b.rds(Ok(()));
    assert_eq!(asked(&b), "show");
    let evidence = b.core.volumes[&v()].attachments[0].evidence().cloned();
    let drained = evidence.expect("a proof").drained;
    assert!(
        matches!(drained, Drained::Bound { .. }),
        "the first Hide may be at it still, so no barrier: {drained:?}"
    );
    b.restart();
    assert_eq!(asked(&b), "show");
    b.rds(Ok(()));
    assert!(!b.stored[&v()].hidden);
}

#[test]
fn a_node_back_in_mid_fence_may_prove_it_and_the_export_comes_back() {
    let mut b = shared(able());
    overdue(&mut b, "a");
    b.rds(Ok(()));
    let hide = b.rds_asked().expect("the export is to go off").0;
    b.up("a", "boot", vec![b.observed(ObservedPhase::Lost)]);
    assert!(revoked(&b), "its user gets errors already: {:?}", b.effects);
    b.agent(absent("live"));
    let evidence = b.core.volumes[&v()].attachments[0].evidence().cloned().expect("its own proof");
    assert!(matches!(evidence.source, Source::AgentAbsent { .. }));
    assert_ne!(evidence.verdict(UnixMillis(b.now)), Verdict::Fenced, "it may have been cut in mid-deletion");
    b.event(Event::RdsDone { operation: hide, result: Ok(()) });
    assert_eq!(asked(&b), "show");
}

#[test]
fn an_unreached_rds_proves_nothing_and_is_called_again() {
    let mut b = alone(able());
    let request = overdue(&mut b, "a");
    for step in ["deny", "hide"] {
        assert_eq!(asked(&b), step);
        b.rds(Err(RdsFailure::Unreachable("timed out".into())));
        assert!(b.reply(request).is_none() && asked(&b) == "nothing", "{:?}", b.effects);
        b.pass(Config::default().retry_ms);
        assert_eq!(asked(&b), step);
        b.rds(Ok(()));
    }
    let evidence = b.core.volumes[&v()].attachments[0].evidence().cloned().expect("a proof");
    assert!(matches!(evidence.drained, Drained::Bound { .. }), "nobody knows what the first Hide waited for");
}

#[test]
fn no_rung_left_is_refused_naming_node_time_rungs_and_remedy() {
    let mut b = alone(TargetAbilities::default());
    let request = overdue(&mut b, "a");
    let refusal = b.refusal(request);
    let Refusal::CannotFence { volume, agent, tried, min_fence, .. } = refusal else { panic!("{refusal:?}") };
    assert_eq!((volume, agent.node, min_fence), (v(), n("a"), MinFence::NodeGone));
    assert!(matches!(agent.heard, Heard::SilentSince(_)), "{:?}", agent.heard);
    let because = |rung, result: &str| Tried { rung, result: result.into() };
    assert_eq!(
        tried,
        [
            because(Rung::Reservation, "the target has no reservations"),
            because(Rung::Acl, "the target has no list of hosts that it keeps to"),
            because(Rung::Secret, "the target asks for no secret"),
            because(Rung::ExportOff, "taking the export off is not known to end sessions"),
            because(Rung::NodeGone, "nobody has declared the node gone"),
        ]
    );
    assert_eq!(b.phase("a"), Some("Draining"));
    // Nothing was touched, so a device in use that comes back goes on as it was.
    b.up("a", "boot", vec![b.observed(ObservedPhase::Ready)]);
    b.agent(Outcome::Busy { holders: vec!["pid 312 (qemu)".into()] });
    assert_eq!(b.phase("a"), Some("Ready"));
}

#[test]
fn a_node_that_is_heard_and_is_at_it_is_not_fenced_for_being_slow() {
    let mut b = alone(able());
    let config = Config::default();
    let request = b.unpublish("a");
    let (node, operation, directive) = b.directed().expect("a detach");
    let Directive::Detach { epoch, .. } = directive else { panic!("{directive:?}") };
    let session = b.session("a");
    let done = |outcome| Event::AgentDone {
        node: node.clone(),
        session: session.clone(),
        operation,
        volume: v(),
        epoch,
        outcome,
    };
    b.pass(config.fence_after_ms);
    assert_eq!(asked(&b), "nothing");
    b.event(done(Outcome::Pending { message: "the kernel has been deleting nvme0 for 20.0 s".into() }));
    b.pass(config.request_limit_ms - config.fence_after_ms);
    let Refusal::StillWaiting { wait, .. } = b.refusal(request) else { panic!("{:?}", b.effects) };
    let Wait::Holders(holders) = *wait else { panic!("{wait:?}") };
    let last = holders[0].wait.as_ref().and_then(|wait| wait.last.clone());
    assert_eq!(last, Some(Trouble::Progress("the kernel has been deleting nvme0 for 20.0 s".into())));
    assert_eq!(asked(&b), "nothing", "the caller is told what it waits for, and the node is let finish");
    let again = b.unpublish("a");
    b.event(done(absent("live")));
    b.rds(Ok(()));
    assert_eq!(b.reply(again), Some(Ok(Reply::Unpublished)));
    assert!(fenced(&b).iter().all(|source| *source == "AgentAbsent"), "{:?}", fenced(&b));
}

#[test]
fn a_heard_node_is_fenced_once_it_is_silent_or_takes_far_too_long() {
    let config = Config::default();
    for silent in [true, false] {
        let mut b = alone(able());
        b.unpublish("a");
        b.pass(config.fence_after_ms);
        assert_eq!(asked(&b), "nothing");
        if silent {
            b.silent("a");
        } else {
            b.pass(config.fence_heard_after_ms - config.fence_after_ms);
        }
        assert_eq!(asked(&b), "deny", "silent: {silent}");
    }
}

#[test]
fn a_heard_node_that_does_not_detach_is_refused_with_its_last_report() {
    let mut b = alone(TargetAbilities::default());
    b.unpublish("a");
    b.agent(Outcome::Pending { message: "the kernel has been deleting nvme0 for 12.0 s".into() });
    b.pass(Config::default().fence_heard_after_ms);
    let request = b.unpublish("a");
    b.pass(Config::default().fence_after_ms);
    let Refusal::CannotFence { agent, last, .. } = b.refusal(request) else { panic!("{:?}", b.effects) };
    assert_eq!(agent, Agent { node: n("a"), heard: Heard::Ready });
    let progress = Trouble::Progress("the kernel has been deleting nvme0 for 12.0 s".into());
    assert_eq!(last.as_deref(), Some(&progress));
}

#[test]
fn a_device_in_use_on_a_node_off_the_list_does_not_simply_go_on() {
    let mut b = alone(able());
    overdue(&mut b, "a");
    b.rds(Err(RdsFailure::Unreachable("timed out".into())));
    b.up("a", "boot", vec![b.observed(ObservedPhase::Ready)]);
    b.agent(Outcome::Busy { holders: vec!["pid 312 (qemu)".into()] });
    assert_eq!(b.phase("a"), Some("Draining"));
}

#[test]
fn a_waiting_publish_is_granted_on_the_proof_and_attaches_with_the_export() {
    let mut b = alone(able());
    b.silent("a");
    b.unpublish("a");
    let elsewhere = b.publish("bb", Access::Rwo);
    b.pass(Config::default().fence_after_ms);
    b.rds(Ok(()));
    b.rds(Ok(()));
    assert_eq!((asked(&b), b.all_rds_asked().len()), ("allow", 1), "which brings the export back, too");
    b.rds(Ok(()));
    b.agent(ready());
    assert!(matches!(b.reply(elsewhere), Some(Ok(Reply::Published(_)))));
}

#[test]
fn quarantine_outlives_a_restart_and_ends_by_the_nodes_report_alone() {
    let mut b = alone(able());
    overdue(&mut b, "a");
    b.rds(Ok(()));
    b.rds(Ok(()));
    b.restart();
    b.pass(24 * 3_600_000);
    assert_eq!(fenced(&b), ["TargetCut"], "no time lifts it");
    let held = Observed { epoch: Some(Epoch { term: 7, seq: 1 }), ..observed_of(ObservedPhase::Lost) };
    b.up("a", "boot", vec![held]);
    assert!(revoked(&b), "{:?}", b.effects);
    let told = b.effects.clone();
    let request = b.publish("a", Access::Rwo);
    let Refusal::Quarantined { causes, .. } = b.refusal(request) else { panic!("{:?}", b.effects) };
    assert!(
        matches!(&causes[..], [QuarantineCause::Fenced { volume, source: "TargetCut", .. }] if *volume == v()),
        "{causes:?}"
    );
    let session = b.session("a");
    let absent_for_now =
        Observed { epoch: Some(Epoch { term: 7, seq: 1 }), ..observed_of(ObservedPhase::Absent) };
    b.event(Event::Delta { node: n("a"), session, observed: absent_for_now });
    assert_eq!(
        fenced(&b),
        ["TargetCut"],
        "gone for now: what it was told before could make it connect again"
    );
    b.effects = told;
    b.agent(absent("connecting"));
    assert!(fenced(&b).is_empty());
    let request = b.publish("a", Access::Rwo);
    for step in ["allow", "show"] {
        assert_eq!(asked(&b), step);
        b.rds(Ok(()));
    }
    b.agent(ready());
    assert!(matches!(b.reply(request), Some(Ok(Reply::Published(_)))), "{:?}", b.effects);
}

#[test]
fn export_off_alone_keeps_everybody_out_until_the_node_shows_it_is_clean() {
    let mut b = alone(TargetAbilities { acl: false, ..able() });
    let request = overdue(&mut b, "a");
    assert_eq!(asked(&b), "hide");
    b.rds(Ok(()));
    assert_eq!(asked(&b), "close", "and it stays off");
    b.rds(Ok(()));
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
    let elsewhere = b.publish("bb", Access::Rwo);
    let refusal = b.refusal(elsewhere);
    assert!(matches!(&refusal, Refusal::ExportOff { node, .. } if *node == n("a")), "{refusal:?}");
    b.restart();
    assert_eq!(asked(&b), "nothing", "also after a restart");
    b.up("a", "boot", vec![observed_of(ObservedPhase::Lost)]);
    b.agent(absent("connecting"));
    b.publish("bb", Access::Rwo);
    assert_eq!(asked(&b), "nothing", "not heard since the restart");
    b.up("bb", "boot", vec![]);
    b.publish("bb", Access::Rwo);
    assert_eq!(asked(&b), "allow");
}

#[test]
fn export_off_is_not_taken_while_another_node_may_use_the_volume() {
    let mut b = shared(TargetAbilities { acl: false, ..able() });
    let request = overdue(&mut b, "a");
    assert_eq!(result_of(&b.refusal(request), Rung::ExportOff), "node bb may be using the volume");
    assert_eq!(asked(&b), "nothing");
}

#[test]
fn min_fence_leaves_out_what_is_weaker() {
    let mut b = bench(able());
    b.min_fence = MinFence::Secret;
    b.attach("a", Access::Rwo);
    let request = overdue(&mut b, "a");
    assert_eq!(result_of(&b.refusal(request), Rung::Acl), "weaker than the volume's minFence, secret");
    b.declare_gone(90, "a");
    assert_eq!(b.reply(RequestId(90)), Some(Ok(Reply::Declared)));
    assert!(b.core.volumes[&v()].attachments[0].evidence().is_none(), "a word is weaker than that, too");
}

#[test]
fn a_fence_begins_only_once_the_rds_said_whether_it_lets_the_node_in() {
    let mut b = bench(able());
    b.publish("a", Access::Rwo);
    b.restart();
    assert_eq!(asked(&b), "allow", "it may have been told to attach by the process before");
    let allow = b.rds_asked().expect("asked").0;
    b.fence(90, "a");
    assert_eq!(asked(&b), "nothing", "what lets it in could come after what keeps it out");
    b.event(Event::RdsDone { operation: allow, result: Ok(()) });
    assert_eq!(asked(&b), "deny");
}
