//! Longhorn's three scenarios: a workload elsewhere interrupts a backup, a backup beside a workload, two workloads.

use super::decide::LetGo;
use super::testing::*;
use super::{CsiUse, InterruptedBy, TicketStanding, TicketType, TicketWait};
use crate::{Access, Role};
use TicketType::{Backup, Csi, Snapshot};

#[test]
fn a_workload_elsewhere_interrupts_a_backup_and_gets_the_volume_after_it() {
    for access in [Access::Rwo, Access::RwxBlock] {
        let mut b = backup_on_x(access);
        b.comes("csi-y", Csi, Some("y"));
        let until = b.now.plus(GRACE_MS);
        b.settle();
        let by = interrupted_by("csi-y", "y");
        assert_eq!(
            b.stands("backup"),
            TicketStanding::Interrupt { node: n("x"), by: by.clone(), until },
            "{access:?}"
        );
        assert_eq!(b.waits("csi-y"), TicketWait::Yielding { node: n("x"), ticket: id("backup"), until });
        assert_eq!(b.nodes(), [n("x")], "nobody is let in before the backup has gone");

        b.now = until;
        b.take_down();
        assert_eq!(b.let_go, [(n("x"), LetGo::Interrupted(by), until)]);
        assert_eq!(b.waits("csi-y"), TicketWait::Detaches { node: n("x") }, "until there is evidence");
        assert_eq!(b.waits("backup"), TicketWait::Detaches { node: n("x") });

        b.settle();
        assert_eq!(b.stands("csi-y"), satisfied("y", 1));
        assert_eq!(b.stands("backup"), satisfied("y", 1), "where the workload is");
        assert_eq!(b.nodes(), [n("y")]);
    }
}

#[test]
fn a_backup_that_comes_second_is_attached_where_the_volume_is() {
    for named in [None, Some("x")] {
        let mut b = csi_on_a(Access::Rwo);
        b.comes("backup", Backup, named);
        b.rest();
        assert_eq!((b.stands("backup"), b.nodes()), (satisfied("a", 1), vec![n("a")]), "nothing moves");
        assert!(b.let_go.is_empty(), "{:?}", b.let_go);
    }
}

#[test]
fn an_unpublish_interrupts_the_backup_that_is_left_on_its_node() {
    let mut b = csi_on_a(Access::Rwo);
    b.comes("backup", Backup, None);
    b.settle();
    b.unpublish("csi-a");
    let until = b.now.plus(GRACE_MS);
    b.settle();
    let by = InterruptedBy::Unpublish;
    assert_eq!(b.stands("backup"), TicketStanding::Interrupt { node: n("a"), by: by.clone(), until });
    assert!(b.let_go.is_empty(), "the Unpublish is not answered before");
    b.until_again();
    assert_eq!(b.let_go, [(n("a"), LetGo::Interrupted(by), until)]);
    assert_eq!((b.nodes(), b.waits("backup")), (vec![], TicketWait::AnyNode));

    b.comes("csi-y", Csi, Some("y"));
    b.settle();
    assert_eq!(b.stands("backup"), satisfied("y", 1));
}

#[test]
fn a_backup_that_ends_in_its_time_lets_the_volume_go_at_once() {
    let mut b = backup_on_x(Access::Rwo);
    b.comes("csi-y", Csi, Some("y"));
    b.settle();
    b.goes("backup");
    b.settle();
    assert_eq!(b.let_go, [(n("x"), LetGo::Unwanted, b.now)]);
    assert_eq!(b.stands("csi-y"), satisfied("y", 1));
}

#[test]
fn an_interruption_for_nobody_any_more_is_taken_back() {
    let mut b = backup_on_x(Access::Rwo);
    b.comes("csi-y", Csi, Some("y"));
    b.settle();
    b.goes("csi-y");
    b.settle();
    assert_eq!(b.stands("backup"), satisfied("x", 1));
    assert_eq!(b.holdings[0].interrupted, None, "the next one has the whole time again");
}

#[test]
fn the_time_of_the_interrupted_is_not_begun_again_for_another_workload() {
    let mut b = backup_on_x(Access::Rwo);
    b.comes("csi-y", Csi, Some("y"));
    b.settle();
    let until = b.now.plus(GRACE_MS);
    b.now = b.now.plus(10_000);
    b.goes("csi-y");
    b.comes("csi-z", Csi, Some("z"));
    b.settle();
    let expected = TicketStanding::Interrupt { node: n("x"), by: interrupted_by("csi-z", "z"), until };
    assert_eq!(b.stands("backup"), expected);
}

#[test]
fn a_backup_that_was_not_there_yet_goes_without_waiting() {
    let mut b = Bench::new(Access::Rwo);
    b.comes("backup", Backup, Some("x"));
    b.take_down();
    b.comes("csi-y", Csi, Some("y"));
    b.take_down();
    assert_eq!(b.let_go, [(n("x"), LetGo::Interrupted(interrupted_by("csi-y", "y")), b.now)]);
}

#[test]
fn a_second_workload_is_a_migration_of_rwx_block_and_waits_for_rwo() {
    let mut b = csi_on_a(Access::RwxBlock);
    b.comes("csi-b", Csi, Some("b"));
    b.settle();
    assert_eq!(b.stands("csi-b"), satisfied("b", 1));
    assert_eq!((b.stands("csi-a"), b.nodes()), (satisfied("a", 1), vec![n("a"), n("b")]));

    let mut b = csi_on_a(Access::Rwo);
    b.comes("csi-b", Csi, Some("b"));
    b.rest();
    assert_eq!(b.waits("csi-b"), TicketWait::Elsewhere { nodes: vec![n("a")] });
    assert_eq!((b.stands("csi-a"), b.let_go), (satisfied("a", 1), vec![]));
}

#[test]
fn a_third_workload_waits_until_one_side_of_a_migration_is_gone() {
    let mut b = csi_on_a(Access::RwxBlock);
    b.comes("csi-b", Csi, Some("b"));
    b.settle();
    b.comes("csi-c", Csi, Some("c"));
    b.rest();
    assert_eq!(b.waits("csi-c"), TicketWait::Elsewhere { nodes: vec![n("a"), n("b")] });
    b.unpublish("csi-a");
    b.take_down();
    assert_eq!(b.waits("csi-c"), TicketWait::Detaches { node: n("a") });
    b.settle();
    assert_eq!(b.stands("csi-c"), satisfied("c", 1));
}

#[test]
fn of_two_that_could_be_second_the_older_is() {
    let mut b = csi_on_a(Access::RwxBlock);
    b.comes("csi-c", Csi, Some("c"));
    b.comes("csi-b", Csi, Some("b"));
    assert_eq!(b.stands("csi-c"), TicketStanding::AttachOn(n("c")));
    assert_eq!(b.waits("csi-b"), TicketWait::Queue { behind: id("csi-c") });
}

#[test]
fn in_a_migration_a_backup_keeps_its_node_until_that_is_unpublished() {
    let mut b = csi_on_a(Access::RwxBlock);
    b.comes("backup", Backup, None);
    b.comes("csi-b", Csi, Some("b"));
    b.comes("later", Snapshot, None);
    b.settle();
    b.comes("there", Backup, Some("b"));
    b.settle();
    assert_eq!([b.stands("backup"), b.stands("later")], [satisfied("a", 1), satisfied("a", 1)]);
    assert_eq!(b.stands("there"), satisfied("b", 1), "of two nodes it has the one that it names");
    b.unpublish("csi-a");
    b.rest();
    for name in ["backup", "later", "there"] {
        assert_eq!(b.stands(name), satisfied("b", 1), "{name}");
    }
    assert_eq!(b.let_go.len(), 1);
    assert_eq!(b.holdings[0].role, Role::Primary);
}

#[test]
fn an_unpublish_waits_for_a_ticket_that_is_not_interruptible() {
    let mut b = csi_on_a(Access::Rwo);
    b.comes("backup", Backup, None);
    b.comes("clone", TicketType::Clone, None);
    b.settle();
    b.unpublish("csi-a");
    b.rest();
    assert_eq!([b.stands("backup"), b.stands("clone")], [satisfied("a", 1), satisfied("a", 1)]);
    assert_eq!((b.holdings[0].csi, b.let_go.len()), (CsiUse::Unpublishing, 0));
    b.goes("clone");
    b.rest();
    assert_eq!((b.nodes(), b.waits("backup")), (vec![], TicketWait::AnyNode));
}
