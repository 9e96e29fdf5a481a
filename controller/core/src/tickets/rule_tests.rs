//! The rules of tickets, one at a time: rank, nodes, silence, changed wishes, what nothing is known of.

use super::decide::LetGo;
use super::testing::*;
use super::{CsiUse, Holding, HoldingState, InterruptedBy, TicketStanding, TicketType, TicketWait};
use crate::{Access, Role, UnixMillis};
use TicketType::{Api, Backup, Csi, Expansion, Restore, Snapshot};

#[test]
fn the_device_stays_until_the_last_ticket_has_gone() {
    let mut b = Bench::new(Access::Rwo);
    b.comes("backup", Backup, Some("x"));
    b.comes("snapshot", Snapshot, None);
    b.settle();
    b.goes("backup");
    b.rest();
    assert_eq!((b.stands("snapshot"), b.nodes()), (satisfied("x", 1), vec![n("x")]));
    b.goes("snapshot");
    b.settle();
    assert_eq!(b.let_go, [(n("x"), LetGo::Unwanted, b.now)]);
}

#[test]
fn priority_picks_only_while_nobody_has_the_volume() {
    let mut b = Bench::new(Access::Rwo);
    b.comes("backup", Backup, Some("x"));
    b.comes("csi-y", Csi, Some("y"));
    b.comes("restore", Restore, Some("z"));
    assert_eq!(b.stands("restore"), TicketStanding::AttachOn(n("z")));
    assert_eq!(b.waits("csi-y"), TicketWait::Queue { behind: id("restore") });
    assert_eq!(b.waits("backup"), TicketWait::Queue { behind: id("restore") });
    b.rest();
    assert_eq!(b.waits("csi-y"), TicketWait::Elsewhere { nodes: vec![n("z")] }, "it is not interruptible");
    assert_eq!(b.stands("backup"), satisfied("z", 1));

    let mut b = csi_on_a(Access::Rwo);
    b.comes("restore", Restore, Some("z"));
    b.comes("api-y", Api, Some("y"));
    b.rest();
    assert_eq!(b.stands("restore"), satisfied("a", 1), "nothing moves for it");
    assert_eq!(
        b.waits("api-y"),
        TicketWait::Elsewhere { nodes: vec![n("a")] },
        "nor for one that ranks higher"
    );
}

#[test]
fn of_equals_the_oldest_comes_first_and_then_the_id() {
    let mut b = Bench::new(Access::Rwo);
    b.comes("second", Backup, Some("y"));
    b.comes("first", TicketType::Clone, Some("x"));
    b.ticket("first").since = UnixMillis(1);
    assert_eq!(b.stands("first"), TicketStanding::AttachOn(n("x")));
    let since = b.ticket("second").since;
    b.ticket("first").since = since;
    b.tickets.reverse();
    assert_eq!(b.stands("first"), TicketStanding::AttachOn(n("x")), "`first` is before `second`");
}

#[test]
fn a_ticket_without_a_node_goes_nowhere_and_keeps_nobody_waiting() {
    let mut b = Bench::new(Access::Rwo);
    b.comes("grow", Expansion, None);
    assert_eq!(b.waits("grow"), TicketWait::AnyNode);
    b.comes("backup", Backup, Some("x"));
    b.settle();
    assert_eq!([b.stands("grow"), b.stands("backup")], [satisfied("x", 1), satisfied("x", 1)]);
    b.comes("csi-y", Csi, Some("y"));
    b.rest();
    assert_eq!(b.waits("csi-y"), TicketWait::Elsewhere { nodes: vec![n("x")] }, "growing is not interrupted");
}

#[test]
fn a_workload_on_the_backups_own_node_interrupts_nobody() {
    let mut b = backup_on_x(Access::Rwo);
    b.comes("csi-x", Csi, Some("x"));
    b.comes("csi-y", Csi, Some("y"));
    b.rest();
    assert_eq!([b.stands("backup"), b.stands("csi-x")], [satisfied("x", 1), satisfied("x", 1)]);
    assert_eq!(b.waits("csi-y"), TicketWait::Elsewhere { nodes: vec![n("x")] });
    assert!(b.let_go.is_empty(), "{:?}", b.let_go);
}

#[test]
fn a_workload_that_comes_to_an_interrupted_node_later_is_behind_the_first() {
    let mut b = backup_on_x(Access::Rwo);
    b.comes("csi-y", Csi, Some("y"));
    b.settle();
    b.comes("csi-x", Csi, Some("x"));
    b.settle();
    assert_eq!(b.waits("csi-x"), TicketWait::Queue { behind: id("csi-y") });
    b.rest();
    assert_eq!(b.stands("csi-y"), satisfied("y", 1));
    assert_eq!(b.waits("csi-x"), TicketWait::Elsewhere { nodes: vec![n("y")] });
}

#[test]
fn nobody_joins_a_node_that_is_to_let_go() {
    let mut b = backup_on_x(Access::Rwo);
    b.comes("csi-y", Csi, Some("y"));
    b.settle();
    b.comes("clone", TicketType::Clone, Some("x"));
    b.settle();
    assert_eq!(b.waits("clone"), TicketWait::YieldsTo { ticket: id("csi-y"), node: n("y") });
    b.rest();
    assert_eq!(b.stands("clone"), satisfied("y", 1));
}

#[test]
fn a_workload_whose_node_can_be_granted_nothing_interrupts_nobody() {
    let mut b = backup_on_x(Access::Rwo);
    b.comes("csi-y", Csi, Some("y"));
    b.barred.extend([silent("y")]);
    b.rest();
    assert_eq!(b.stands("backup"), satisfied("x", 1));
    assert_eq!(b.waits("csi-y"), TicketWait::Node(Box::new(silent("y").1)));

    let mut b = Bench::new(Access::Rwo);
    b.barred.extend([silent("z")]);
    b.comes("restore", Restore, Some("z"));
    b.comes("csi-y", Csi, Some("y"));
    b.settle();
    assert_eq!(b.stands("csi-y"), satisfied("y", 1), "one that cannot go anywhere keeps nobody waiting");
}

#[test]
fn a_backup_is_not_interrupted_where_that_would_let_nobody_in() {
    let mut b = csi_on_a(Access::RwxBlock);
    b.comes("backup", Backup, Some("x"));
    let (role, tickets) = (Role::MigrationTarget, [(id("backup"), 1)].into());
    let (state, csi, interrupted) = (HoldingState::Ready, CsiUse::Nothing, None);
    b.holdings.push(Holding { node: n("x"), state, role, csi, tickets, interrupted, unheard: false });
    b.comes("api-y", Api, Some("y"));
    b.rest();
    assert_eq!(b.waits("api-y"), TicketWait::Elsewhere { nodes: vec![n("a")] }, "it is no migration");
    assert_eq!(b.stands("backup"), satisfied("x", 1));
    b.comes("csi-y", Csi, Some("y"));
    b.rest();
    assert_eq!([b.stands("csi-y"), b.stands("backup")], [satisfied("y", 1), satisfied("a", 1)]);
}

#[test]
fn a_holder_that_is_silent_loses_an_interruptible_ticket_after_its_time() {
    let mut b = backup_on_x(Access::Rwo);
    b.ticket("backup").renew_ms = Some(60_000);
    let lost = b.ticket("backup").renewed.plus(60_000);
    b.until_again();
    assert_eq!(b.now, lost);
    let (by, until) = (InterruptedBy::Silence, lost.plus(GRACE_MS));
    assert_eq!(b.stands("backup"), TicketStanding::Interrupt { node: n("x"), by: by.clone(), until });
    assert_eq!(b.holdings[0].interrupted, Some(interruption(by.clone(), until)));
    let mut heard = b.clone();
    b.until_again();
    assert_eq!(b.let_go, [(n("x"), LetGo::Interrupted(by), until)]);
    let renewed = b.ticket("backup").renewed;
    assert_eq!((b.nodes(), b.waits("backup")), (vec![], TicketWait::Renewal { since: renewed }));
    b.ticket("backup").renewed = b.now;
    b.settle();
    assert_eq!(b.stands("backup"), satisfied("x", 1), "one that comes back is as good as before");

    heard.ticket("backup").renewed = heard.now;
    heard.settle();
    assert_eq!((heard.stands("backup"), heard.let_go), (satisfied("x", 1), vec![]), "in its time");
}

#[test]
fn silence_takes_nothing_from_what_is_not_interruptible() {
    for kind in TicketType::ALL.into_iter().filter(|kind| !kind.is_interruptible()) {
        let mut b = Bench::new(Access::Rwo);
        b.comes("t", kind, Some("x"));
        b.ticket("t").renew_ms = Some(1);
        b.settle();
        b.now = b.now.plus(1_000_000);
        b.rest();
        assert_eq!((b.stands("t"), b.let_go), (satisfied("x", 1), vec![]), "{kind:?}");
    }
}

#[test]
fn a_changed_wish_is_not_satisfied_by_what_was_done_for_the_one_before() {
    let mut b = csi_on_a(Access::Rwo);
    b.comes("backup", Backup, None);
    b.settle();
    b.ticket("backup").generation = 2;
    assert_eq!(b.stands("backup"), TicketStanding::AttachOn(n("a")));
    b.settle();
    assert_eq!(b.stands("backup"), satisfied("a", 2));
}

#[test]
fn a_workloads_ticket_that_names_another_node_lets_go_of_the_first() {
    let mut b = Bench::new(Access::Rwo);
    b.comes("api", Api, Some("x"));
    b.settle();
    let api = b.ticket("api");
    (api.node, api.generation) = (Some(n("y")), 2);
    assert_eq!(b.waits("api"), TicketWait::Detaches { node: n("x") });
    b.settle();
    assert_eq!((b.stands("api"), b.nodes()), (satisfied("y", 2), vec![n("y")]));
    assert_eq!(b.let_go, [(n("x"), LetGo::Unwanted, b.now)]);
}

#[test]
fn a_node_that_has_it_for_a_ticket_that_nobody_knows_keeps_it() {
    let mut b = backup_on_x(Access::Rwo);
    // A controller that has just started has not heard of the ticket yet.
    b.tickets.clear();
    b.comes("csi-y", Csi, Some("y"));
    b.rest();
    assert_eq!(b.waits("csi-y"), TicketWait::Elsewhere { nodes: vec![n("x")] });
    assert_eq!((b.nodes(), b.let_go), (vec![n("x")], vec![]));
}

#[test]
fn what_may_write_without_a_grant_admits_nobody_and_is_no_ones() {
    for access in [Access::Rwo, Access::RwxBlock] {
        let mut b = backup_on_x(access);
        b.holdings[0].state = HoldingState::Unknown;
        b.comes("csi-y", Csi, Some("y"));
        b.rest();
        assert_eq!(b.waits("csi-y"), TicketWait::Elsewhere { nodes: vec![n("x")] }, "{access:?}");
        assert_eq!(b.waits("backup"), TicketWait::Elsewhere { nodes: vec![n("x")] });
        assert!(b.let_go.is_empty(), "{:?}", b.let_go);
    }
}

#[test]
fn priorities_and_kinds_are_those_of_the_design() {
    let table = [
        (Restore, 2000, false, false),
        (Expansion, 2000, false, false),
        (Api, 1000, true, false),
        (Csi, 900, true, false),
        (Snapshot, 800, false, true),
        (Backup, 800, false, true),
        (TicketType::Clone, 800, false, false),
    ];
    assert_eq!(table.map(|(kind, ..)| kind), TicketType::ALL);
    for (kind, priority, workload, interruptible) in table {
        assert_eq!(
            (kind.priority(), kind.is_workload(), kind.is_interruptible()),
            (priority, workload, interruptible)
        );
        let text = serde_json::to_string(&kind).expect("JSON");
        assert_eq!(text, format!("\"{}\"", kind.name()), "what is stored is what people read");
    }
}
