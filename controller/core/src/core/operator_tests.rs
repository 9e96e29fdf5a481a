//! What people declare, one event at a time: what it brings about, and that who and why are kept with it.

use super::fence_tests::{asked, fenced, overdue, revoked};
use super::tests::*;
use super::*;
use crate::*;

fn fence(request: u64, name: &str, by: &str, reason: &str) -> Event {
    let (request, volume, node) = (RequestId(request), v(), n(name));
    Event::Fence { request, volume, node, by: by.into(), reason: reason.into() }
}

fn statement(by: &str, reason: &str) -> Option<Box<Statement>> {
    Some(Box::new(Statement { by: by.into(), reason: reason.into() }))
}

#[test]
fn who_forced_a_fence_and_why_stays_with_proof_and_quarantine() {
    let mut b = bench(able());
    b.attach("a", Access::RwxBlock);
    b.fence(90, "a");
    b.rds(Ok(()));
    b.rds(Ok(()));
    let record = &b.stored[&v()];
    assert_eq!(record.past_evidence[0].statement, statement("ann", "it writes nonsense"));
    assert_eq!(record.fenced[0].evidence.statement, statement("ann", "it writes nonsense"));
    let json = serde_json::to_string(record).expect("a record is JSON");
    let read: VolumeRecord = serde_json::from_str(&json).expect("and reads back");
    assert_eq!(read.past_evidence, record.past_evidence, "and after a restart");
}

#[test]
fn a_forced_fence_that_the_node_proves_is_recorded_as_forced() {
    let mut b = alone(TargetAbilities::default());
    b.fence(90, "a");
    b.agent(absent("live"));
    b.rds(Ok(()));
    let evidence = &b.core.volumes[&v()].past_evidence[0];
    assert!(matches!(evidence.source, Source::AgentAbsent { .. }), "{evidence:?}");
    assert_eq!(evidence.statement, statement("ann", "it writes nonsense"));
}

#[test]
fn a_declaration_while_a_proof_waits_is_kept_and_the_first_one_stays() {
    let mut b = alone(TargetAbilities::default());
    b.detach("a", "connecting");
    b.event(fence(90, "a", "ann", "now"));
    b.event(fence(91, "a", "bob", "at last"));
    b.pass(Config::default().drain_bound_ms);
    b.rds(Ok(()));
    assert_eq!(b.core.volumes[&v()].past_evidence[0].statement, statement("ann", "now"));
}

#[test]
fn a_detach_that_nobody_forced_has_no_word_with_it() {
    let mut b = alone(able());
    b.detach("a", "live");
    b.rds(Ok(()));
    assert_eq!(b.core.volumes[&v()].past_evidence[0].statement, None);
}

#[test]
fn what_the_target_proves_of_a_node_that_was_declared_gone_says_who_did() {
    let mut b = alone(able());
    b.silent("a");
    b.declare_gone(90, "a");
    assert_eq!(asked(&b), "deny");
    b.rds(Ok(()));
    b.rds(Ok(()));
    let evidence = &b.core.volumes[&v()].past_evidence[0];
    assert_eq!(
        (evidence.source.name(), evidence.statement.clone()),
        ("TargetCut", statement("ann", "unplugged"))
    );
}

#[test]
fn export_off_ends_by_a_declaration_or_the_nodes_report_also_if_deleted() {
    for deleted in [false, true] {
        let mut b = alone(TargetAbilities { acl: false, ..able() });
        overdue(&mut b, "a");
        b.rds(Ok(()));
        b.rds(Ok(()));
        if deleted {
            b.event(Event::DeleteBegins { request: RequestId(90), volume: v() });
            assert_eq!(b.reply(RequestId(90)), Some(Ok(Reply::MayDelete)));
            b.event(Event::DeleteEnded { volume: v(), deletion: VolumeDeletion::Done });
            assert!(matches!(b.core.nodes[&n("a")].standing, Standing::Quarantined { .. }));
            b.up("a", "boot", vec![observed_of(ObservedPhase::Lost)]);
            b.agent(absent("connecting"));
            assert_eq!(b.core.nodes[&n("a")].standing, Standing::Admitted);
        } else {
            b.declare_gone(90, "a");
            assert_eq!(asked(&b), "nothing", "nobody needs the export");
            b.publish("bb", Access::Rwo);
            assert_eq!(asked(&b), "allow", "nothing keeps it off any more");
            assert_eq!(fenced(&b), ["NodeGone"], "and it stays quarantined");
        }
    }
}

#[test]
fn a_persons_declaration_has_name_and_reason_until_the_node_is_heard() {
    let mut b = alone(TargetAbilities::default());
    b.declare_gone(90, "a");
    assert!(matches!(b.refusal(RequestId(90)), Refusal::NotGone { .. }), "it is heard");
    b.declare_gone(95, "aa");
    assert!(matches!(b.refusal(RequestId(95)), Refusal::UnknownNode { .. }), "nobody knows it");
    b.silent("a");
    b.declare_gone(91, "a");
    assert_eq!(b.reply(RequestId(91)), Some(Ok(Reply::Declared)));
    let evidence = b.core.volumes[&v()].attachments[0].evidence().cloned().expect("a word");
    assert_eq!(evidence.source, Source::NodeGone { by: "ann".into(), reason: "unplugged".into() });
    assert_ne!(evidence.verdict(UnixMillis(b.now)), Verdict::Fenced, "what it wrote may still land");
    b.up("a", "boot", vec![b.observed(ObservedPhase::Ready)]);
    assert!(b.core.volumes[&v()].attachments[0].evidence().is_none());
    assert!(revoked(&b), "{:?}", b.effects);
    b.silent("a");
    b.declare_gone(92, "a");
    b.pass(Config::default().drain_bound_ms);
    b.rds(Ok(()));
    assert_eq!(fenced(&b), ["NodeGone"]);
}

#[test]
fn an_operators_fence_begins_at_once_and_answers_when_it_is_proven() {
    let mut b = shared(able());
    b.fence(90, "ccc");
    assert!(matches!(b.refusal(RequestId(90)), Refusal::NotAttached { .. }));
    b.fence(91, "a");
    assert_eq!(asked(&b), "deny");
    assert!(b.directed().is_some_and(|(node, _, d)| node == n("a") && matches!(d, Directive::Revoke { .. })));
    b.rds(Ok(()));
    assert!(b.reply(RequestId(91)).is_none());
    b.rds(Ok(()));
    assert_eq!(b.reply(RequestId(91)), Some(Ok(Reply::Fenced)));
}

#[test]
fn a_host_that_takes_over_a_writers_name_waits_for_a_persons_decision() {
    let mut b = alone(TargetAbilities::default());
    b.silent("a");
    b.restart();
    b.hello("a", identity("zzzz", "boot-9"));
    let Some(Effect::RefuseSession { refusal, .. }) = b.effects.first() else { panic!("{:?}", b.effects) };
    let (host_nqn, holder) = (nqn("zzzz"), nqn("a"));
    assert_eq!(**refusal, SessionRefusal::OtherHostMayHold { node: n("a"), host_nqn, holder });
    b.declare_gone(90, "a");
    b.pass(Config::default().drain_bound_ms);
    b.rds(Ok(()));
    assert_eq!(fenced(&b), ["NodeGone"]);
    b.hello("a", identity("zzzz", "boot-9"));
    assert!(fenced(&b).is_empty(), "the other host inherits nothing");
}
