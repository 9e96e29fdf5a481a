//! People's words, one event at a time: what they bring about, and that who and why stay with what came of it.

use super::fence_tests::{able, asked, bench};
use super::tests::*;
use super::*;
use crate::*;

fn fence(request: u64, name: &str, by: &str, reason: &str) -> Event {
    let (request, volume, node) = (RequestId(request), v(), n(name));
    Event::Fence { request, volume, node, by: by.into(), reason: reason.into() }
}

fn word(by: &str, reason: &str) -> Option<Box<Word>> {
    Some(Box::new(Word { by: by.into(), reason: reason.into() }))
}

#[test]
fn who_forced_a_fence_and_why_stays_with_its_proof_and_with_the_quarantine() {
    let mut b = bench(able());
    b.attach("a", Access::RwxBlock);
    b.event(fence(90, "a", "ann", "it writes nonsense"));
    b.rds(Ok(()));
    b.rds(Ok(()));
    let record = &b.stored[&v()];
    assert_eq!(record.past_evidence[0].word, word("ann", "it writes nonsense"));
    assert_eq!(record.fenced[0].evidence.word, word("ann", "it writes nonsense"));
    let json = serde_json::to_string(record).expect("a record is JSON");
    let read: VolumeRecord = serde_json::from_str(&json).expect("and reads back");
    assert_eq!(read.past_evidence, record.past_evidence, "and after a restart");
}

#[test]
fn a_forced_fence_that_the_node_proves_itself_is_recorded_as_forced_all_the_same() {
    let mut b = bench(Target::default());
    b.attach("a", Access::Rwo);
    b.event(fence(90, "a", "ann", "it writes nonsense"));
    b.agent(absent("live"));
    b.rds(Ok(()));
    let evidence = &b.core.volumes[&v()].past_evidence[0];
    assert!(matches!(evidence.source, Source::AgentAbsent { .. }), "{evidence:?}");
    assert_eq!(evidence.word, word("ann", "it writes nonsense"));
}

#[test]
fn a_word_that_comes_when_a_proof_waits_for_its_bound_is_kept_too_and_the_first_one_stays() {
    let mut b = bench(Target::default());
    b.attach("a", Access::Rwo);
    b.unpublish("a");
    b.agent(absent("connecting"));
    b.event(fence(90, "a", "ann", "now"));
    b.event(fence(91, "a", "bob", "at last"));
    b.pass(Config::default().drain_bound_ms);
    b.rds(Ok(()));
    assert_eq!(b.core.volumes[&v()].past_evidence[0].word, word("ann", "now"));
}

#[test]
fn a_detach_that_nobody_forced_has_no_word_with_it() {
    let mut b = bench(able());
    b.attach("a", Access::Rwo);
    b.unpublish("a");
    b.agent(absent("live"));
    b.rds(Ok(()));
    assert_eq!(b.core.volumes[&v()].past_evidence[0].word, None);
}

#[test]
fn what_the_target_proves_of_a_node_that_was_declared_gone_says_who_did() {
    let mut b = bench(able());
    b.attach("a", Access::Rwo);
    b.silent("a");
    let (by, reason) = ("ann".into(), "unplugged".into());
    b.event(Event::DeclareGone { request: RequestId(90), node: n("a"), by, reason });
    assert_eq!(asked(&b), "deny");
    b.rds(Ok(()));
    b.rds(Ok(()));
    let evidence = &b.core.volumes[&v()].past_evidence[0];
    assert_eq!((evidence.source.name(), evidence.word.clone()), ("TargetCut", word("ann", "unplugged")));
}
