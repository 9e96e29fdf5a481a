//! How many volumes a node may have, and what callers are to see as published.

use std::num::NonZeroU32;

use super::tests::*;
use super::*;
use crate::*;

fn other() -> VolumeId {
    VolumeId::new("other").expect("a volume id")
}

/// `a` may have one volume, and has it.
fn full() -> Harness {
    let mut b = Harness::new();
    b.max_volumes = NonZeroU32::new(1);
    b.up("a", "boot", vec![]);
    b.attach("a", Access::Rwo);
    b
}

fn publish_other(b: &mut Harness, request: u64) -> RequestId {
    let request = RequestId(request);
    let spec = VolumeSpec { id: other(), ..spec(Access::Rwo) };
    b.event(Event::Publish { request, node: n("a"), spec, read_only: false });
    request
}

#[test]
fn a_node_that_has_all_it_may_is_refused_naming_its_limit() {
    let mut b = full();
    let request = publish_other(&mut b, 90);
    assert_eq!(b.refusal(request), Refusal::NodeFull { volume: other(), node: n("a"), limit: 1 });
    assert!(!b.core.volumes().contains_key(&other()), "nothing was granted");
    let repeat = b.publish("a", Access::Rwo);
    assert!(matches!(b.reply(repeat), Some(Ok(Reply::Published(_)))), "what it has it has");
}

#[test]
fn a_volume_on_its_way_off_counts_and_is_waited_for() {
    let mut b = full();
    b.unpublish_waits("a");
    let detach = b.effects.clone();
    let request = publish_other(&mut b, 90);
    assert_eq!(b.reply(request), None);
    let waiting = b.core.waiting(&other(), UnixMillis(b.now));
    assert_eq!(waiting[0].wait, Wait::Room { node: n("a"), limit: 1 });
    b.effects = detach;
    b.agent(absent("live"));
    assert!(!b.core.volumes().contains_key(&other()), "the RDS still lets its host in");
    b.rds(Ok(()));
    assert!(b.core.volumes()[&other()].attachment(&n("a")).is_some(), "{:?}", b.effects);
}

/// `a` may have one volume, and has it for a ticket that is not interruptible.
fn full_of_tickets() -> Harness {
    let mut b = Harness::new();
    b.max_volumes = NonZeroU32::new(1);
    b.up("a", "boot", vec![]);
    b.wants("api", (TicketType::Api, 1), Some("a"), Access::Rwo);
    b.rds(Ok(()));
    b.agent(ready());
    assert_eq!(b.stands("api"), satisfied("a", 1));
    b
}

#[test]
fn what_tickets_have_on_a_node_takes_no_room_from_a_publish() {
    let mut b = full_of_tickets();
    publish_other(&mut b, 90);
    assert!(b.core.volumes()[&other()].attachment(&n("a")).is_some(), "{:?}", b.effects);
    let joins = b.publish("a", Access::Rwo);
    assert_eq!(b.refusal(joins), Refusal::NodeFull { volume: v(), node: n("a"), limit: 1 });
}

#[test]
fn a_publish_takes_room_from_tickets() {
    let mut b = Harness::new();
    b.max_volumes = NonZeroU32::new(1);
    b.up("a", "boot", vec![]);
    publish_other(&mut b, 90);
    b.wants("api", (TicketType::Api, 1), Some("a"), Access::Rwo);
    assert!(
        matches!(b.ticket_waits("api"), TicketWait::Node(why) if matches!(*why, Refusal::NodeFull { .. }))
    );
}

#[test]
fn without_a_limit_a_node_gets_any_number() {
    let mut b = Harness::hearing(&["a"]);
    b.attach("a", Access::Rwo);
    publish_other(&mut b, 90);
    assert!(b.core.volumes()[&other()].attachment(&n("a")).is_some());
}

fn is_published(b: &Harness) -> bool {
    let record = &b.core.volumes()[&v()];
    record.attachment(&n("a")).is_some_and(|a| a.is_published(UnixMillis(b.now)))
}

#[test]
fn published_is_shown_from_the_proof_to_the_evidence() {
    let mut b = Harness::hearing(&["a"]);
    b.publish("a", Access::Rwo);
    assert!(!is_published(&b), "the RDS was not asked yet");
    b.rds(Ok(()));
    assert!(!is_published(&b), "nothing is proven");
    b.agent(ready());
    assert!(is_published(&b));
    b.unpublish_waits("a");
    assert!(is_published(&b), "it may still write");
    let detach = b.effects.clone();
    b.restart();
    assert!(is_published(&b), "also after a restart");
    b.up("a", "boot", vec![]);
    b.effects = if b.directed().is_some() { b.effects.clone() } else { detach };
    b.agent(absent("live"));
    b.pass(Config::default().drain_bound_ms);
    b.rds_does_all();
    assert!(!is_published(&b));
}

#[test]
fn what_a_node_only_holds_is_not_shown_as_published() {
    let mut b = Harness::new();
    b.up("a", "boot", vec![observed_of(ObservedPhase::Ready)]);
    assert_eq!((b.phase("a"), is_published(&b)), (Some("Stray"), false));
}
