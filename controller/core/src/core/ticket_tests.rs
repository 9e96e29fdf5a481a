//! Tickets in the core, a sentence of what was asked for each, and what they must never do.

use super::testing::*;
use crate::*;
use TicketType::{Api, Backup, Clone, Restore, Snapshot};

const GRACE_MS: u64 = 30_000;

fn three() -> Harness {
    Harness::hearing(&["a", "bb", "ccc"])
}

/// A backup has the volume on node a, and a Publish for bb waits.
fn interrupted(access: Access) -> (Harness, RequestId) {
    let mut b = three();
    b.backup_on("a", access);
    let request = b.publish_waits("bb", access);
    (b, request)
}

/// The workload has the volume on node a, and a backup as well.
fn backup_beside_csi() -> Harness {
    let mut b = three();
    b.attach("a", Access::Rwo);
    b.wants("backup", (Backup, 1), None, Access::Rwo);
    b
}

fn detach_sent(b: &Harness) -> bool {
    matches!(b.directed(), Some((_, _, Directive::Detach { .. } | Directive::Revoke { .. })))
}

#[test]
fn the_holder_is_told_for_whom_and_until_when() {
    for access in [Access::Rwo, Access::RwxBlock] {
        let (b, _) = interrupted(access);
        let until = UnixMillis(b.now + GRACE_MS);
        let by = InterruptedBy::Workload { ticket: ticket_id("csi.bb"), node: n("bb") };
        let told = TicketStanding::Interrupt { node: n("a"), by: by.clone(), until };
        assert_eq!(b.stands("backup"), told, "{access:?}");
        let effect =
            Effect::Ticket { volume: v(), ticket: ticket_id("backup"), standing: Some(Box::new(told)) };
        assert!(b.effects.contains(&effect), "{:?}", b.effects);
        let kept = b.stored[&v()].attachments[0].interrupted.clone();
        assert_eq!(kept, Some(Interruption { by, until }), "it is durable");
    }
}

#[test]
fn the_interrupted_is_cut_after_its_time_and_not_before() {
    let (mut b, _) = interrupted(Access::Rwo);
    b.pass(GRACE_MS - 3);
    assert_eq!((b.phase("a"), detach_sent(&b)), (Some("Ready"), false));
    b.pass(2);
    assert_eq!((b.phase("a"), detach_sent(&b)), (Some("Draining"), true));
}

/// Whether the detach that was sent ends who uses the device for a ticket; `None` where none was sent.
fn cuts(b: &Harness) -> Option<bool> {
    match b.directed() {
        Some((_, _, Directive::Detach { cut_tickets, .. })) => Some(cut_tickets),
        _ => None,
    }
}

#[test]
fn only_the_detach_of_who_had_its_time_cuts_tickets() {
    let (mut b, _) = interrupted(Access::Rwo);
    b.pass(GRACE_MS + 1);
    assert_eq!(cuts(&b), Some(true), "interrupted");
    let mut b = three();
    b.attach("a", Access::Rwo);
    b.unpublish("a");
    assert_eq!(cuts(&b), Some(false), "a caller has asked, and no ticket had it");
    let mut b = three();
    b.backup_on("a", Access::Rwo);
    b.ticket_goes("backup");
    assert_eq!(cuts(&b), Some(false), "it was withdrawn, and nobody was asked to let go");
}

#[test]
fn a_publish_elsewhere_waits_until_the_interrupted_is_proven_gone() {
    for access in [Access::Rwo, Access::RwxBlock] {
        let (mut b, request) = interrupted(access);
        let waits_until = UnixMillis(b.now + GRACE_MS);
        let (node, ticket, holder) = (n("a"), ticket_id("backup"), "holder of backup".to_owned());
        assert_eq!(b.request_waits(), Wait::Ticket { node, ticket, holder, until: Some(waits_until) });
        b.pass(GRACE_MS);
        assert_eq!((b.reply(request), b.phase("bb")), (None, None), "{access:?}: it may write still");
        let wait = b.request_waits();
        assert_eq!(detached(&wait).0.node, n("a"));
        b.agent(absent("live"));
        assert_eq!((b.reply(request), b.phase("bb")), (None, None), "{access:?}: it is on the list still");
        b.rds(Ok(()));
        assert_eq!((b.phase("a"), b.phase("bb")), (None, Some("Granting")), "{access:?}");
        b.rds(Ok(()));
        b.agent(ready());
        assert!(matches!(b.reply(request), Some(Ok(Reply::Published(_)))), "{access:?}");
    }
}

#[test]
fn the_interrupted_is_satisfied_again_where_the_workload_is() {
    let (mut b, _) = interrupted(Access::Rwo);
    b.pass(GRACE_MS);
    b.lets_go();
    b.rds(Ok(()));
    b.agent(ready());
    assert_eq!(b.stands("backup"), satisfied("bb", 1));
    let record = &b.stored[&v()];
    assert_eq!(record.attachments.len(), 1);
    assert!(record.attachments[0].wanted.csi);
    assert_eq!(record.attachments[0].wanted.tickets[0].id, ticket_id("backup"));
}

#[test]
fn a_holder_that_ends_in_its_time_lets_the_workload_in_sooner() {
    let (mut b, _) = interrupted(Access::Rwo);
    b.ticket_goes("backup");
    assert!(detach_sent(&b), "{:?}", b.effects);
    b.lets_go();
    assert_eq!((b.phase("a"), b.phase("bb")), (None, Some("Granting")));
}

#[test]
fn a_backup_that_comes_second_attaches_where_the_volume_is() {
    for named in [None, Some("ccc")] {
        let mut b = three();
        b.attach("a", Access::RwxBlock);
        b.wants("backup", (Backup, 1), named, Access::RwxBlock);
        assert_eq!(b.stands("backup"), satisfied("a", 1), "{named:?}");
        assert!(b.all_rds_asked().is_empty() && b.directed().is_none(), "nothing moves: {:?}", b.effects);
    }
}

#[test]
fn the_device_stays_until_the_last_ticket_has_gone() {
    let mut b = three();
    b.backup_on("a", Access::Rwo);
    b.wants("snapshot", (Snapshot, 1), None, Access::Rwo);
    assert_eq!(b.stands("snapshot"), satisfied("a", 1));
    b.ticket_goes("backup");
    assert_eq!(b.phase("a"), Some("Ready"));
    b.ticket_goes("snapshot");
    assert!(detach_sent(&b), "{:?}", b.effects);
    b.lets_go();
    assert_eq!(b.phase("a"), None);
}

#[test]
fn the_workloads_own_device_stays_when_its_backup_has_gone() {
    let mut b = backup_beside_csi();
    b.ticket_goes("backup");
    b.pass(120_000);
    assert_eq!((b.phase("a"), detach_sent(&b)), (Some("Ready"), false));
    assert!(b.stored[&v()].attachments[0].wanted.is_csi_alone());
}

#[test]
fn an_unpublish_interrupts_the_backup_and_is_answered_after_it() {
    let mut b = backup_beside_csi();
    let request = b.unpublish_waits("a");
    let until = UnixMillis(b.now + GRACE_MS);
    let by = InterruptedBy::Unpublish;
    assert_eq!(b.stands("backup"), TicketStanding::Interrupt { node: n("a"), by, until });
    assert!(!detach_sent(&b));
    assert!(matches!(b.request_waits(), Wait::Ticket { until: Some(at), .. } if at == until));
    b.pass(GRACE_MS);
    assert!(detach_sent(&b));
    b.agent(absent("live"));
    assert_eq!(b.reply(request), None, "the device is on the list still");
    b.rds(Ok(()));
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
    assert_eq!(b.ticket_waits("backup"), TicketWait::AnyNode);
}

#[test]
fn an_unpublish_ends_with_the_backup_that_ends_in_its_time() {
    let mut b = backup_beside_csi();
    let request = b.unpublish_waits("a");
    b.ticket_goes("backup");
    b.lets_go();
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
}

#[test]
fn an_unpublish_too_early_is_refused_and_changes_nothing() {
    let mut b = backup_beside_csi();
    let request = b.unpublish_waits("a");
    b.pass(GRACE_MS);
    b.agent(Outcome::Busy { holders: vec!["the VM".into()] });
    assert!(matches!(b.refusal(request), Refusal::InUse { .. }));
    assert_eq!((b.phase("a"), b.stands("backup")), (Some("Ready"), satisfied("a", 1)));
    let kept = &b.stored[&v()].attachments[0];
    assert_eq!((kept.wanted.csi, kept.wanted.unpublishing, &kept.interrupted), (true, false, &None));
    b.pass(600_000);
    assert_eq!(b.phase("a"), Some("Ready"), "no timer cuts it");
}

#[test]
fn an_unpublish_waits_for_a_ticket_that_is_not_interruptible() {
    let mut b = three();
    b.attach("a", Access::Rwo);
    b.wants("clone", (Clone, 1), None, Access::Rwo);
    let request = b.unpublish_waits("a");
    assert!(matches!(b.request_waits(), Wait::Ticket { until: None, .. }));
    b.pass(60_000);
    assert!(matches!(b.refusal(request), Refusal::StillWaiting { .. }));
    assert_eq!((b.phase("a"), b.stands("clone")), (Some("Ready"), satisfied("a", 1)));
    let again = b.unpublish_waits("a");
    b.ticket_goes("clone");
    b.lets_go();
    assert_eq!(b.reply(again), Some(Ok(Reply::Unpublished)));
}

#[test]
fn a_second_workload_is_a_migration_of_rwx_block_and_refused_for_rwo() {
    let mut b = three();
    b.attach("a", Access::RwxBlock);
    b.wants("backup", (Backup, 1), None, Access::RwxBlock);
    b.attach("bb", Access::RwxBlock);
    let migration = b.core.volumes()[&v()].migration.clone().expect("a migration");
    assert_eq!((migration.source, migration.target), (n("a"), n("bb")));
    assert_eq!(b.stands("backup"), satisfied("a", 1));

    let mut b = backup_beside_csi();
    let request = b.publish("bb", Access::Rwo);
    assert!(matches!(b.refusal(request), Refusal::AttachedElsewhere { node, .. } if node == n("a")));
    assert_eq!(b.stands("backup"), satisfied("a", 1));
}

#[test]
fn the_source_of_a_migration_keeps_its_backup_until_it_is_unpublished() {
    let mut b = three();
    b.attach("a", Access::RwxBlock);
    b.wants("backup", (Backup, 1), None, Access::RwxBlock);
    b.attach("bb", Access::RwxBlock);
    let request = b.unpublish_waits("a");
    b.pass(GRACE_MS);
    b.lets_go();
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
    assert_eq!(b.stands("backup"), satisfied("bb", 1));
}

#[test]
fn a_workload_joins_a_backup_on_its_own_node_without_another_grant() {
    let mut b = three();
    b.backup_on("a", Access::Rwo);
    let epoch = b.core.volumes()[&v()].attachments[0].epoch;
    assert!(!b.core.volumes()[&v()].attachments[0].is_published(UnixMillis(b.now)), "nobody was answered so");
    let request = b.publish("a", Access::Rwo);
    assert!(matches!(b.reply(request), Some(Ok(Reply::Published(grant))) if grant.epoch == epoch));
    assert!(b.stored[&v()].attachments[0].wanted.csi, "durable before the answer");
    b.ticket_goes("backup");
    assert_eq!(b.phase("a"), Some("Ready"));
}

#[test]
fn a_workloads_ticket_is_never_interrupted() {
    for kind in [Api, Restore, Clone] {
        let mut b = three();
        b.wants("t", (kind, 1), Some("a"), Access::Rwo);
        b.rds(Ok(()));
        b.agent(ready());
        let request = b.publish("bb", Access::Rwo);
        assert!(matches!(b.refusal(request), Refusal::AttachedElsewhere { .. }), "{kind:?}");
        b.pass(600_000);
        assert_eq!((b.phase("a"), b.stands("t")), (Some("Ready"), satisfied("a", 1)), "{kind:?}");
    }
}

#[test]
fn nothing_moves_for_a_ticket_that_is_no_workloads() {
    let mut b = three();
    b.backup_on("a", Access::Rwo);
    b.wants("restore", (Restore, 1), Some("bb"), Access::Rwo);
    assert_eq!(b.stands("restore"), satisfied("a", 1));
    b.pass(600_000);
    assert_eq!((b.phase("a"), b.phase("bb")), (Some("Ready"), None));
}

#[test]
fn a_changed_wish_is_satisfied_for_its_new_generation_alone() {
    let mut b = three();
    b.backup_on("a", Access::Rwo);
    b.wants("backup", (Backup, 3), Some("bb"), Access::Rwo);
    assert_eq!(b.stands("backup"), satisfied("a", 3));
    assert_eq!(b.stored[&v()].attachments[0].wanted.tickets[0].generation, 3, "durable before it is said");
    b.wants("backup", (Backup, 2), Some("ccc"), Access::Rwo);
    assert_eq!(b.stands("backup"), satisfied("a", 3), "what comes late changes nothing");
}

#[test]
fn a_ticket_is_not_satisfied_while_the_device_is_away() {
    let mut b = three();
    b.backup_on("a", Access::Rwo);
    let lost = b.observed(ObservedPhase::Lost);
    b.says("a", lost);
    assert_eq!(b.stands("backup"), TicketStanding::AttachOn(n("a")));
    let back = b.observed(ObservedPhase::Ready);
    b.says("a", back);
    assert_eq!(b.stands("backup"), satisfied("a", 1));
}

#[test]
fn a_silent_holder_loses_its_ticket_after_its_time_and_the_grace() {
    let mut b = three();
    b.backup_on("a", Access::Rwo);
    b.pass(50_000);
    b.renews("backup");
    b.pass(59_000);
    assert_eq!(b.stands("backup"), satisfied("a", 1));
    b.pass(1_000);
    assert!(matches!(b.stands("backup"), TicketStanding::Interrupt { by: InterruptedBy::Silence, .. }));
    let mut heard = b.clone();
    heard.renews("backup");
    assert_eq!(heard.stands("backup"), satisfied("a", 1), "in its time it is as before");
    b.pass(GRACE_MS);
    b.lets_go();
    assert!(matches!(b.ticket_waits("backup"), TicketWait::Renewal { .. }));
    assert_eq!(b.phase("a"), None);
}

#[test]
fn an_interrupted_node_that_is_silent_is_fenced_for_who_waits() {
    let mut b = bench(able());
    b.backup_on("a", Access::Rwo);
    b.silent("a");
    let request = b.publish_waits("bb", Access::Rwo);
    b.pass(GRACE_MS);
    assert_eq!((b.phase("a"), b.rds_asked()), (Some("Draining"), None), "it has its time to be done");
    b.pass(20_000);
    b.rds_does_all();
    assert_eq!(b.phase("a"), None, "{:?}", b.core.volumes()[&v()]);
    assert_eq!(b.phase("bb"), Some("Connecting"));
    b.agent(ready());
    assert!(matches!(b.reply(request), Some(Ok(Reply::Published(_)))));
}

#[test]
fn nobody_is_fenced_for_a_ticket_that_has_gone() {
    let mut b = bench(able());
    b.backup_on("a", Access::Rwo);
    b.silent("a");
    b.ticket_goes("backup");
    b.pass(600_000);
    assert_eq!((b.phase("a"), b.rds_asked()), (Some("Draining"), None), "nobody waits for it");
}

#[test]
fn a_grant_that_is_taken_back_is_not_made_again_at_once() {
    let mut b = three();
    b.wants("backup", (Backup, 1), Some("a"), Access::Rwo);
    b.rds(Err(RdsFailure::Refused("no".into())));
    b.rds(Ok(()));
    assert_eq!((b.phase("a"), b.rds_asked()), (None, None), "{:?}", b.effects);
    b.pass(2_000);
    assert_eq!(b.phase("a"), Some("Granting"));
}

#[test]
fn a_ticket_gets_nothing_that_a_publish_would_not_get() {
    let mut b = three();
    b.wants("nowhere", (Backup, 1), Some("d"), Access::Rwo);
    let unknown = Refusal::UnknownNode { node: n("d") };
    assert_eq!(b.ticket_waits("nowhere"), TicketWait::Node(Box::new(unknown)));
    b.silent("a");
    b.wants("silent", (Backup, 1), Some("a"), Access::Rwo);
    assert!(
        matches!(b.ticket_waits("silent"), TicketWait::Node(why) if matches!(*why, Refusal::Silent { .. }))
    );
    assert!(b.all_rds_asked().is_empty() && b.core.volumes().is_empty());
    b.up("a", "boot", vec![]);
    assert_eq!(b.phase("a"), Some("Granting"), "as soon as the node is heard");
}

#[test]
fn of_one_volume_no_more_tickets_are_kept_than_may_be() {
    let mut b = three();
    for number in 0..33 {
        b.wants(&format!("t{number}"), (Backup, 1), None, Access::Rwo);
    }
    assert_eq!(b.core.tickets().count(), 32);
    let said = b.effects.iter().any(|effect| {
        let Effect::Ticket { standing: Some(standing), .. } = effect else { return false };
        matches!(**standing, TicketStanding::Waits { wait: TicketWait::Room { limit: 32 }, .. })
    });
    assert!(said, "{:?}", b.effects);
}

#[test]
fn of_all_volumes_no_more_tickets_are_kept_than_may_be() {
    let mut b = three();
    let mut put = |volume: u32, ticket: u32| {
        let spec =
            VolumeSpec { id: VolumeId::new(format!("v{volume}")).expect("an id"), ..spec(Access::Rwo) };
        let now = UnixMillis(b.now);
        let ticket = Ticket {
            id: ticket_id(&format!("t{ticket}")),
            kind: Backup,
            node: None,
            holder: "h".into(),
            generation: 1,
            since: now,
            renewed: now,
            renew_ms: None,
            waits_since: now,
        };
        b.event(Event::TicketWanted { spec, ticket: Box::new(ticket) });
        b.core.tickets().count()
    };
    for volume in 0..128 {
        for ticket in 0..32 {
            put(volume, ticket);
        }
    }
    assert_eq!(put(127, 0), 4096, "one that is known already changes nothing");
    assert_eq!(put(128, 0), 4096);
    let said = b.effects.iter().any(|effect| {
        let Effect::Ticket { standing: Some(standing), .. } = effect else { return false };
        matches!(**standing, TicketStanding::Waits { wait: TicketWait::RoomOfAll { limit: 4096 }, .. })
    });
    assert!(said, "{:?}", b.effects);
}

#[test]
fn a_publish_says_what_the_volume_is_where_a_ticket_did_not_know() {
    let mut b = three();
    b.backup_on("a", Access::Rwo);
    let demanding =
        VolumeSpec { min_fence: MinFence::Acl, migration_timeout_ms: 30_000, ..spec(Access::RwxBlock) };
    let request = RequestId(77);
    b.event(Event::Publish { request, node: n("a"), spec: demanding.clone(), read_only: false });
    assert!(matches!(b.reply(request), Some(Ok(Reply::Published(_)))), "{:?}", b.effects);
    assert_eq!(b.stored[&v()].spec, demanding, "its demands count from now on");
}

#[test]
fn a_ticket_changes_nothing_of_what_is_demanded_of_a_volume() {
    let mut b = three();
    let demanding = VolumeSpec { min_fence: MinFence::Acl, ..spec(Access::RwxBlock) };
    let request = RequestId(77);
    b.event(Event::Publish { request, node: n("a"), spec: demanding.clone(), read_only: false });
    b.rds(Ok(()));
    b.agent(ready());
    b.wants("api", (Api, 1), Some("a"), Access::Rwo);
    assert_eq!(b.stands("api"), satisfied("a", 1));
    assert_eq!(b.stored[&v()].spec, demanding);
}

#[test]
fn nobody_makes_a_ticket_of_the_orchestrators() {
    let mut b = three();
    b.wants("t", (TicketType::Csi, 1), Some("a"), Access::Rwo);
    b.wants("csi.bb", (Backup, 1), Some("a"), Access::Rwo);
    assert_eq!(b.core.tickets().count(), 0);
    assert!(b.core.volumes().is_empty());
}

#[test]
fn a_deleted_volume_has_no_tickets_left() {
    let mut b = three();
    b.wants("t", (Backup, 1), None, Access::Rwo);
    b.event(Event::DeleteBegins { request: RequestId(99), volume: v() });
    assert!(matches!(b.reply(RequestId(99)), Some(Ok(Reply::MayDelete))));
    b.event(Event::DeleteEnded { volume: v(), deletion: VolumeDeletion::Done });
    assert_eq!(b.core.tickets().count(), 0);
}
