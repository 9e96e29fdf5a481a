//! Deletions whose answers are lost: they may take effect at any time, so nobody is granted the volume.

use super::fence_tests::{able, bench};
use super::tests::*;
use crate::*;

fn begins(b: &mut Bench, request: u64) -> Option<Result<Reply, Refusal>> {
    b.event(Event::DeleteBegins { request: RequestId(request), volume: v() });
    b.reply(RequestId(request))
}

#[test]
fn a_volume_whose_deletion_was_not_heard_of_is_granted_to_nobody_until_a_repeat_has_ended() {
    let mut b = bench(able());
    assert_eq!(begins(&mut b, 90), Some(Ok(Reply::MayDelete)));
    assert!(matches!(b.effects.first(), Some(Effect::Persist(_))), "durable before the RDS is asked");
    b.event(Event::DeleteEnded { volume: v(), deletion: Deletion::Unknown });
    for restarted in [false, true] {
        if restarted {
            b.restart();
            b.up("a", "boot", vec![]);
        }
        let publish = b.publish("a", Access::Rwo);
        let words = b.refusal(publish).to_string();
        assert!(words.contains("volume vol is being deleted"), "{words}");
    }
    assert_eq!(begins(&mut b, 91), Some(Ok(Reply::MayDelete)));
    assert!(matches!(begins(&mut b, 92), Some(Err(Refusal::Deleting { .. }))), "one at a time");
    b.event(Event::DeleteEnded { volume: v(), deletion: Deletion::Done });
    assert!(b.stored.is_empty());
    b.attach("a", Access::Rwo);
}

#[test]
fn a_deletion_that_the_rds_refused_leaves_the_volume_as_it_was() {
    let mut b = bench(able());
    begins(&mut b, 90);
    b.event(Event::DeleteEnded { volume: v(), deletion: Deletion::NotDone });
    assert!(!b.stored[&v()].deleting);
    b.attach("a", Access::Rwo);
}
