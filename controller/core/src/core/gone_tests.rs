//! Nodes that were declared gone, and are heard after all: what a person declares keeps nobody from writing.

use super::fence_tests::{asked, fenced, overdue, revoked};
use super::tests::*;
use super::*;
use crate::*;

/// On a target that can do nothing: the declaration, the bound, the list.
fn taken_for_gone(b: &mut Harness) {
    b.attach("a", Access::Rwo);
    b.silent("a");
    b.declare_gone(90, "a");
    b.pass(Config::default().drain_bound_ms);
    b.rds(Ok(()));
    assert_eq!((b.phase("a"), fenced(b)), (None, vec!["NodeGone"]));
}

#[test]
fn a_node_declared_gone_and_heard_counts_as_a_writer_at_once() {
    let mut b = bench(TargetAbilities::default());
    taken_for_gone(&mut b);
    b.hello("a", identity("a", "boot"));
    assert_eq!(b.phase("a"), Some("Draining"));
    assert_eq!(b.stored[&v()].attachments.len(), 1, "also after a restart");
    let publish = b.publish("bb", Access::Rwo);
    assert!(
        matches!(b.refusal(publish), Refusal::CannotFence { agent, .. } if agent.node == n("a")),
        "{:?}",
        b.effects
    );
    let unpublish = b.unpublish("a");
    assert!(matches!(b.refusal(unpublish), Refusal::CannotFence { .. }));
    let session = b.session("a");
    b.event(Event::Inventory { node: n("a"), session, volumes: vec![observed_of(ObservedPhase::Ready)] });
    let publish = b.publish("bb", Access::Rwo);
    b.pass(1_000);
    assert!(b.reply(publish).is_none() && b.phase("bb").is_none());
}

#[test]
fn a_node_declared_gone_is_let_in_by_its_own_report_once_drained() {
    let mut b = bench(TargetAbilities::default());
    taken_for_gone(&mut b);
    b.up("a", "boot", vec![observed_of(ObservedPhase::Ready)]);
    assert!(revoked(&b), "{:?}", b.effects);
    b.agent(absent("live"));
    assert_eq!(
        (b.phase("a"), asked(&b)),
        (Some("Draining"), "nothing"),
        "nobody heard of its paths meanwhile"
    );
    b.pass(Config::default().drain_bound_ms);
    b.rds(Ok(()));
    assert_eq!((b.phase("a"), fenced(&b)), (None, vec![]));
}

#[test]
fn beside_a_node_let_in_meanwhile_nobody_else_enters_and_both_are_named() {
    let mut b = bench(TargetAbilities::default());
    taken_for_gone(&mut b);
    b.attach("bb", Access::Rwo);
    b.up("a", "boot", vec![observed_of(ObservedPhase::Ready)]);
    assert_eq!((b.phase("a"), b.phase("bb")), (Some("Draining"), Some("Ready")));
    assert_eq!(b.core.volumes[&v()].holders(), [n("bb"), n("a")]);
    let third = b.publish("ccc", Access::Rwo);
    assert_eq!(b.refusal(third), Refusal::AttachedElsewhere { volume: v(), node: n("bb") });
    b.detach("bb", "live");
    b.rds(Ok(()));
    assert_eq!(b.core.volumes[&v()].holders(), [n("a")]);
    let third = b.publish("ccc", Access::Rwo);
    b.pass(1_000);
    assert!(b.reply(third).is_none() && b.phase("ccc").is_none());
}

#[test]
fn a_declaration_about_a_node_kept_out_does_not_weaken_the_proof() {
    let mut b = alone(able());
    overdue(&mut b, "a");
    b.rds(Ok(()));
    b.rds(Ok(()));
    b.declare_gone(90, "a");
    assert_eq!(fenced(&b), ["TargetCut"]);
    b.hello("a", identity("zzzz", "boot-9"));
    assert!(fenced(&b).is_empty(), "another host may take over the name, and inherits nothing");
}

#[test]
fn a_node_declared_gone_before_its_fence_is_waited_for_once_it_is_heard() {
    let mut b = alone(able());
    b.silent("a");
    b.declare_gone(90, "a");
    assert_eq!(asked(&b), "deny");
    b.rds(Ok(()));
    b.rds(Ok(()));
    let entry = &b.core.volumes[&v()].fenced[0];
    assert_eq!((entry.evidence.source.name(), entry.is_gone()), ("TargetCut", true));
    b.hello("a", identity("a", "boot-2"));
    assert!(!b.stored[&v()].fenced[0].is_gone(), "also after a restart");
    assert!(matches!(b.core.nodes[&n("a")].standing, Standing::Quarantined { .. }));
}

#[test]
fn a_node_declared_gone_before_its_volume_was_deleted_is_waited_for_again() {
    let mut b = alone(able());
    b.silent("a");
    b.declare_gone(90, "a");
    b.rds_does_all();
    assert!(b.stored[&v()].fenced[0].is_gone());
    b.event(Event::DeleteBegins { request: RequestId(91), volume: v() });
    b.event(Event::DeleteEnded { volume: v(), deletion: VolumeDeletion::Done });
    b.hello("a", identity("a", "boot-2"));
    let kept = b.stored.get(&v());
    assert!(kept.is_some_and(|record| record.deleted && !record.fenced[0].is_gone()), "{kept:?}");
}
