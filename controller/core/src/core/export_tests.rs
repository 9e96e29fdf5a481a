//! The export, one event at a time: nothing brings it back that is asked for while a fence has it off.

use super::fence_tests::{able, asked, bench, overdue};
use super::tests::*;
use super::*;
use crate::*;

#[test]
fn a_second_node_is_not_let_in_while_the_export_is_off_for_it_would_bring_it_back() {
    let mut b = bench(able());
    b.attach("a", Access::RwxBlock);
    overdue(&mut b, "a");
    b.rds(Ok(()));
    assert_eq!(asked(&b), "hide");
    let hide = b.rds_asked().expect("asked").0;
    let second = b.publish("bb", Access::RwxBlock);
    assert_eq!((b.phase("bb"), asked(&b)), (Some("Granting"), "nothing"));
    let words = b.core.waits_for(&v(), &n("bb")).expect("it waits");
    for part in
        ["the RDS to bring the export of volume vol back", "fence of node a", "rung acl", "since 1970"]
    {
        assert!(words.contains(part), "{part:?} is not in: {words}");
    }
    b.event(Event::RdsDone { operation: hide, result: Ok(()) });
    assert_eq!(b.all_rds_asked().len(), 1, "{:?}", b.effects);
    assert_eq!(asked(&b), "allow", "nobody else needs the export, and this brings it back");
    b.rds(Ok(()));
    b.agent(ready());
    assert!(matches!(b.reply(second), Some(Ok(Reply::Published(_)))));
}

#[test]
fn a_second_node_waits_by_name_for_a_fence_by_the_export_alone_and_is_refused_once_that_is_proven() {
    let mut b = bench(Target { acl: false, ..able() });
    b.attach("a", Access::RwxBlock);
    overdue(&mut b, "a");
    let hide = b.rds_asked().expect("asked").0;
    let early = b.publish("bb", Access::RwxBlock);
    assert_eq!((b.phase("bb"), asked(&b)), (None, "nothing"));
    b.pass(Config::default().detach_grace_ms);
    let words = b.refusal(early).to_string();
    for part in ["volume vol", "node a", "rung export-off", "the RDS to take the export off"] {
        assert!(words.contains(part), "{part:?} is not in: {words}");
    }
    b.event(Event::RdsDone { operation: hide, result: Ok(()) });
    assert_eq!(asked(&b), "close");
    let deny = b.rds_asked().expect("asked").0;
    let meanwhile = b.publish("bb", Access::RwxBlock);
    assert_eq!((b.phase("bb"), asked(&b)), (None, "nothing"), "node a would connect again");
    b.event(Event::RdsDone { operation: deny, result: Ok(()) });
    assert!(matches!(b.refusal(meanwhile), Refusal::ExportOff { node, .. } if node == n("a")));
    let late = b.publish("bb", Access::RwxBlock);
    assert!(matches!(b.refusal(late), Refusal::ExportOff { node, .. } if node == n("a")));
}
