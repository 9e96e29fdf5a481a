//! Deletions whose answers are lost: they may take effect at any time, so nobody is granted the volume.

use super::fence_tests::{asked, overdue, revoked};
use super::tests::*;
use crate::*;

fn begins(b: &mut Harness, request: u64) -> Option<Result<Reply, Refusal>> {
    b.event(Event::DeleteBegins { request: RequestId(request), volume: v() });
    b.reply(RequestId(request))
}

#[test]
fn a_volume_with_an_unheard_deletion_is_granted_only_after_a_repeat() {
    let mut b = bench(able());
    assert_eq!(begins(&mut b, 90), Some(Ok(Reply::MayDelete)));
    assert!(matches!(b.effects.first(), Some(Effect::Persist(_))), "durable before the RDS is asked");
    b.event(Event::DeleteEnded { volume: v(), deletion: VolumeDeletion::Unknown });
    for restarted in [false, true] {
        if restarted {
            b.restart();
            b.up("a", "boot", vec![]);
        }
        let publish = b.publish("a", Access::Rwo);
        assert_eq!(b.refusal(publish), Refusal::Deleting { volume: v() });
    }
    assert_eq!(begins(&mut b, 91), Some(Ok(Reply::MayDelete)));
    assert!(matches!(begins(&mut b, 92), Some(Err(Refusal::Deleting { .. }))), "one at a time");
    b.event(Event::DeleteEnded { volume: v(), deletion: VolumeDeletion::Done });
    assert!(b.stored.is_empty());
    b.attach("a", Access::Rwo);
}

#[test]
fn a_deletion_that_the_rds_refused_leaves_the_volume_as_it_was() {
    let mut b = bench(able());
    begins(&mut b, 90);
    b.event(Event::DeleteEnded { volume: v(), deletion: VolumeDeletion::NotDone });
    assert!(!b.stored[&v()].deleting);
    b.attach("a", Access::Rwo);
}

/// Node a is fenced from the volume, which is deleted before it is heard again.
fn deleted_behind_a_fence(target: TargetAbilities) -> Harness {
    let mut b = alone(target);
    overdue(&mut b, "a");
    b.rds_does_all();
    assert_eq!(b.phase("a"), None);
    assert_eq!(begins(&mut b, 90), Some(Ok(Reply::MayDelete)));
    b.event(Event::DeleteEnded { volume: v(), deletion: VolumeDeletion::Done });
    b
}

fn held() -> Observed {
    Observed { epoch: Some(Epoch { term: 7, seq: 1 }), ..observed_of(ObservedPhase::Lost) }
}

#[test]
fn a_fenced_node_takes_down_what_was_deleted_and_is_then_forgotten() {
    let mut b = deleted_behind_a_fence(able());
    assert!(b.stored[&v()].deleted, "the node has not shown that it holds nothing of it");
    b.restart();
    b.up("a", "boot", vec![held()]);
    assert_eq!(b.phase("a"), None, "it cannot write, so it is no stray");
    assert!(revoked(&b), "{:?}", b.effects);
    assert!(matches!(b.core.nodes[&n("a")].standing, Standing::Quarantined { .. }));
    b.agent(absent("connecting"));
    assert_eq!(b.core.nodes[&n("a")].standing, Standing::Admitted);
    assert!(b.stored.is_empty() && b.core.volumes.is_empty(), "{:?}", b.stored);
}

#[test]
fn a_volume_made_again_is_kept_from_whoever_may_hold_old_writes() {
    // Nothing but the export keeps the node out.
    let mut b = deleted_behind_a_fence(TargetAbilities { acl: false, ..able() });
    let publish = b.publish("bb", Access::Rwo);
    assert!(matches!(b.refusal(publish), Refusal::ExportOff { .. }));
    b.up("a", "boot", vec![held()]);
    b.agent(absent("connecting"));
    assert!(b.stored.is_empty());
    b.publish("bb", Access::Rwo);
    assert_eq!(asked(&b), "allow");
}

#[test]
fn of_a_node_that_is_gone_and_a_volume_that_was_deleted_nothing_is_kept() {
    let mut b = deleted_behind_a_fence(able());
    b.declare_gone(95, "a");
    assert_eq!(b.reply(RequestId(95)), Some(Ok(Reply::Declared)));
    assert!(b.stored.is_empty(), "{:?}", b.stored);
}

#[test]
fn a_persons_declaration_counts_no_more_for_a_volume_made_again() {
    let mut b = deleted_behind_a_fence(able());
    b.event(Event::RdsMade { volume: v() });
    assert!(!b.stored[&v()].deleted);
    b.declare_gone(95, "a");
    let fenced = &b.stored[&v()].fenced;
    assert!(fenced.len() == 1 && fenced[0].gone, "it is known again should the node live: {fenced:?}");
}

#[test]
fn a_volume_that_is_granted_again_under_the_name_is_an_ordinary_one() {
    let mut b = deleted_behind_a_fence(able());
    b.publish("bb", Access::Rwo);
    b.rds_does_all();
    b.agent(ready());
    assert_eq!(b.phase("bb"), Some("Ready"));
    assert!(!b.stored[&v()].deleted);
    b.up("a", "boot", vec![held()]);
    b.agent(absent("connecting"));
    assert!(b.stored[&v()].fenced.is_empty() && b.phase("bb") == Some("Ready"));
}

#[test]
fn a_grant_that_the_record_does_not_take_is_refused_and_leaves_the_others() {
    let mut b = bench(able());
    b.attach("a", Access::RwxBlock);
    let publish = b.publish_waits("bb", Access::RwxBlock);
    let (operation, request) = b.rds_asked().expect("bb is to be let in");
    assert!(matches!(request, RdsRequest::Allow { .. }), "{request:?}");
    let epoch = b.stored[&v()].attachments[1].epoch;
    let older = Epoch { seq: epoch.seq - 1, ..epoch };
    b.event(Event::GrantsRefused { volume: v(), grants: vec![(n("bb"), older), (n("ccc"), epoch)] });
    assert_eq!(b.effects, [], "those are no grants");
    b.event(Event::GrantsRefused { volume: v(), grants: vec![(n("bb"), epoch)] });
    assert_eq!(b.refusal(publish), Refusal::RecordDeleted { volume: v(), node: n("bb") });
    assert!(matches!(b.effects.first(), Some(Effect::Persist(_))), "a record without the grant");
    b.event(Event::RdsDone { operation, result: Err(RdsFailure::Unreachable("not asked".into())) });
    b.rds_does_all();
    assert_eq!((b.phase("a"), b.phase("bb")), (Some("Ready"), None));
    assert!(!b.stored[&v()].knows(&n("bb")));
    // Who was in before is not touched by any such refusal.
    let epoch = b.stored[&v()].attachments[0].epoch;
    b.event(Event::GrantsRefused { volume: v(), grants: vec![(n("a"), epoch)] });
    assert_eq!(b.phase("a"), Some("Ready"));
}

#[test]
fn a_core_shows_itself_with_other_records_and_is_as_before_afterwards() {
    let mut b = shared(able());
    let before = b.core.clone();
    let mut durable = b.stored[&v()].clone();
    durable.attachments.truncate(1);
    let holds = |core: &Core, name: &str| core.volumes_of(&n(name)).count();
    let seen = b.core.with_records(vec![(v(), Some(durable))], |core| (holds(core, "a"), holds(core, "bb")));
    assert_eq!(seen, (1, 0));
    let none = b.core.with_records(vec![(v(), None)], |core| (holds(core, "a"), core.volumes().len()));
    assert_eq!(none, (0, 0));
    assert_eq!(b.core, before);
    assert_eq!((holds(&b.core, "a"), holds(&b.core, "bb")), (1, 1));
}
