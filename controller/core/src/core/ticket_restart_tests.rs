//! What a start makes of tickets: nobody is interrupted again for nothing, and nothing is forgotten.

use super::testing::*;
use crate::*;
use TicketType::Backup;

const RENEW_MS: u64 = 60_000;
const FENCE_AFTER_MS: u64 = 20_000;

/// A backup had the volume on node a when the controller ended.
fn restarted() -> Harness {
    let mut b = Harness::hearing(&["a", "bb", "ccc"]);
    b.backup_on("a", Access::Rwo);
    b.restart();
    b
}

fn held(b: &Harness) -> Vec<Observed> {
    vec![b.observed(ObservedPhase::Ready)]
}

#[test]
fn after_a_start_nobody_is_interrupted_before_the_holder_had_its_time() {
    let mut b = restarted();
    let holds = held(&b);
    b.up("a", "boot", holds);
    b.up("bb", "boot", vec![]);
    let request = b.publish("bb", Access::Rwo);
    assert!(matches!(b.refusal(request), Refusal::AttachedElsewhere { .. }), "{:?}", b.effects);
    b.pass(RENEW_MS - 1_000);
    let request = b.publish("bb", Access::Rwo);
    assert!(b.reply(request).is_some_and(|result| result.is_err()));
    assert_eq!(b.core.volumes()[&v()].attachments[0].interrupted, None);
    b.pass(1_000);
    let interrupted = &b.core.volumes()[&v()].attachments[0].interrupted;
    assert!(interrupted.as_ref().is_some_and(|i| i.by == InterruptedBy::Silence), "{interrupted:?}");
    b.pass(30_000);
    assert_eq!(b.phase("a"), Some("Draining"));
}

#[test]
fn after_a_start_a_renewal_brings_the_ticket_back() {
    let mut b = restarted();
    let holds = held(&b);
    b.up("a", "boot", holds);
    assert_eq!(b.core.tickets().count(), 0);
    b.renews("backup");
    assert_eq!(b.stands("backup"), satisfied("a", 1));
    let (_, ticket, _) = b.core.tickets().next().expect("a ticket");
    assert_eq!((ticket.kind, &*ticket.holder, ticket.renew_ms), (Backup, "holder of backup", Some(RENEW_MS)));
    b.up("bb", "boot", vec![]);
    b.publish_waits("bb", Access::Rwo);
    assert!(matches!(b.stands("backup"), TicketStanding::Interrupt { .. }), "it can be told again");
}

#[test]
fn after_a_start_a_ticket_that_nobody_has_renewed_is_known_by_its_volume() {
    let mut b = restarted();
    assert_eq!(b.core.volume_of_ticket(&ticket_id("backup")), Some(v()));
    let (volume, node, ticket) = b.core.kept_tickets().next().expect("a ticket");
    assert_eq!((volume, node, ticket.kind), (&v(), &n("a"), Backup));
    b.renews("backup");
    assert_eq!(b.core.kept_tickets().count(), 0);
    assert_eq!(b.core.volume_of_ticket(&ticket_id("backup")), Some(v()));
    b.ticket_goes("backup");
    assert_eq!(b.core.volume_of_ticket(&ticket_id("backup")), None);
}

#[test]
fn after_a_start_nobody_is_interrupted_on_a_node_that_was_not_heard() {
    let mut b = restarted();
    b.up("bb", "boot", vec![]);
    b.wants("backup", (Backup, 1), Some("a"), Access::Rwo);
    let request = b.publish("bb", Access::Rwo);
    assert!(b.reply(request).is_some_and(|result| result.is_err()), "{:?}", b.effects);
    assert_eq!(b.core.volumes()[&v()].attachments[0].interrupted, None);
    b.pass(FENCE_AFTER_MS);
    b.publish_waits("bb", Access::Rwo);
    assert!(b.core.volumes()[&v()].attachments[0].interrupted.is_some(), "it has had its time to be heard");
}

#[test]
fn after_a_start_a_ticket_is_satisfied_once_its_node_says_so() {
    let mut b = restarted();
    b.wants("backup", (Backup, 1), Some("a"), Access::Rwo);
    assert_eq!(b.stands("backup"), TicketStanding::AttachOn(n("a")));
    let holds = held(&b);
    b.up("a", "boot", holds);
    assert_eq!(b.stands("backup"), satisfied("a", 1));
}

#[test]
fn a_ticket_that_went_while_nobody_led_lets_the_volume_go() {
    let mut b = restarted();
    let holds = held(&b);
    b.up("a", "boot", holds);
    b.ticket_goes("backup");
    b.agent(absent("live"));
    assert_eq!(b.phase("a"), Some("Draining"), "nobody has heard of its paths for a while");
    b.pass(60_000);
    b.rds(Ok(()));
    assert_eq!(b.phase("a"), None);
}

#[test]
fn what_was_being_taken_down_for_a_workload_goes_on_after_a_start() {
    let mut b = Harness::hearing(&["a", "bb", "ccc"]);
    b.backup_on("a", Access::Rwo);
    b.publish_waits("bb", Access::Rwo);
    b.pass(30_000);
    assert_eq!(b.phase("a"), Some("Draining"));
    b.restart();
    let holds = held(&b);
    b.up("a", "boot", holds);
    b.agent(absent("live"));
    b.pass(60_000);
    b.rds(Ok(()));
    assert_eq!(b.phase("a"), None);
}

#[test]
fn an_interruption_that_was_not_over_begins_from_its_start_again() {
    let mut b = Harness::hearing(&["a", "bb", "ccc"]);
    b.backup_on("a", Access::Rwo);
    b.publish_waits("bb", Access::Rwo);
    b.pass(29_000);
    b.restart();
    let holds = held(&b);
    b.up("a", "boot", holds);
    b.up("bb", "boot", vec![]);
    b.renews("backup");
    b.publish_waits("bb", Access::Rwo);
    let until = UnixMillis(b.now + 30_000);
    assert!(matches!(b.stands("backup"), TicketStanding::Interrupt { until: at, .. } if at == until));
}

#[test]
fn a_record_that_is_older_than_a_publish_takes_no_vm_for_a_backup() {
    let mut b = Harness::hearing(&["a", "bb"]);
    b.backup_on("a", Access::Rwo);
    let records: Vec<VolumeRecord> = b.stored.values().cloned().collect();
    let desired = Desired {
        volume: v(),
        node: n("a"),
        access: Access::Rwo,
        min_fence: MinFence::default(),
        migration_timeout_ms: 300_000,
        require_migration: false,
        since: UnixMillis(0),
        attached: true,
        epoch: None,
    };
    let remembered = Remembered { volumes: records, desired: vec![desired], ..Remembered::default() };
    let (core, effects) = Core::rebuild(b.config.clone(), 8, remembered, UnixMillis(b.now));
    assert!(core.volumes()[&v()].attachments[0].wanted.csi);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Persist(_))), "{effects:?}");
}

#[test]
fn an_attachment_from_before_there_were_tickets_is_never_interrupted() {
    let mut b = Harness::hearing(&["a", "bb"]);
    b.attach("a", Access::Rwo);
    let mut record = serde_json::to_value(&b.stored[&v()]).expect("a record");
    let attachment = record["attachments"][0].as_object_mut().expect("an attachment");
    assert!(attachment.remove("wanted").is_some() && attachment.remove("interrupted").is_some());
    let older: VolumeRecord = serde_json::from_value(record).expect("an older record");
    drop(b.stored.insert(v(), older));
    b.restart();
    let holds = held(&b);
    b.up("a", "boot", holds);
    b.up("bb", "boot", vec![]);
    let request = b.publish("bb", Access::Rwo);
    assert!(matches!(b.refusal(request), Refusal::AttachedElsewhere { .. }));
    b.pass(600_000);
    assert_eq!(b.phase("a"), Some("Ready"));
}
