//! Which host a node is, and who may change that.

use super::tests::*;
use super::*;
use crate::*;

fn uid(text: &str) -> NodeUid {
    NodeUid::new(text).expect("a UID")
}

/// Node a is known as host a, its Node is `u1`, and it is not heard any more.
fn pinned() -> Harness {
    let mut b = Harness::new();
    b.seen.uid = Some(uid("u1"));
    b.up("a", "boot", vec![]);
    b.silent("a");
    b
}

/// Another host says that it is node a, of a Node with that UID.
fn other_comes(b: &mut Harness, of: Option<&str>) {
    b.seen.uid = of.map(uid);
    b.hello("a", identity("zzzz", "boot-9"));
}

fn refused(b: &Harness) -> Option<SessionRefusal> {
    b.effects.iter().find_map(|effect| match effect {
        Effect::RefuseSession { refusal, .. } => Some((**refusal).clone()),
        _ => None,
    })
}

fn pin(b: &Harness) -> (HostNqn, Option<NodeUid>) {
    let record = &b.core.registry()[&n("a")];
    (record.identity.host_nqn.clone(), record.uid.clone())
}

fn why(b: &Harness) -> PinHolds {
    match refused(b) {
        Some(SessionRefusal::Pinned { node, pinned, new, holds }) => {
            assert_eq!((node, pinned), (n("a"), (nqn("a"), host_id("a"))));
            assert_eq!(new, (nqn("zzzz"), host_id("zzzz")));
            holds
        }
        other => panic!("{other:?}"),
    }
}

/// A person has made the node's record that of another host.
fn edited(host: &str) -> Option<StoredNode> {
    let identity = identity(host, "boot");
    Some(StoredNode::Record(Box::new(NodeRecord { node: n("a"), identity, uid: None })))
}

#[test]
fn another_host_of_the_same_node_is_refused_with_both_names() {
    let mut b = pinned();
    other_comes(&mut b, Some("u1"));
    assert_eq!(why(&b), PinHolds::SameNode(uid("u1")));
    assert_eq!(pin(&b), (nqn("a"), Some(uid("u1"))));
    b.up("a", "boot-2", vec![]);
    assert_eq!((refused(&b), pin(&b).0), (None, nqn("a")), "the one that is pinned goes on");
}

#[test]
fn another_host_id_alone_is_another_host() {
    let mut b = pinned();
    b.hello("a", NodeIdentity { host_id: host_id("zzzz"), ..identity("a", "boot-9") });
    assert!(matches!(refused(&b), Some(SessionRefusal::Pinned { .. })), "{:?}", b.effects);
}

#[test]
fn a_pin_lets_go_where_the_node_is_another_one_and_has_nothing() {
    let mut b = pinned();
    other_comes(&mut b, Some("u2"));
    assert_eq!((refused(&b), pin(&b)), (None, (nqn("zzzz"), Some(uid("u2")))));
    assert!(b.effects.iter().any(|e| matches!(e, Effect::PersistNode(_))), "{:?}", b.effects);
    b.silent("a");
    b.hello("a", identity("a", "boot"));
    assert!(matches!(refused(&b), Some(SessionRefusal::Pinned { .. })), "the one before is another one now");
}

#[test]
fn a_pin_holds_while_nobody_knows_which_node_it_is() {
    let mut b = pinned();
    other_comes(&mut b, None);
    assert_eq!(why(&b), PinHolds::NodeUnknown);
    let mut b = Harness::hearing(&["a"]);
    b.silent("a");
    other_comes(&mut b, Some("u2"));
    assert_eq!(why(&b), PinHolds::NodeUnknown, "no UID is on record");
}

#[test]
fn a_pin_holds_while_the_host_before_may_write_to_anything() {
    let mut b = bench(able());
    b.seen.uid = Some(uid("u1"));
    b.up("a", "boot", vec![]);
    b.attach("a", Access::Rwo);
    b.silent("a");
    other_comes(&mut b, Some("u2"));
    let both = SessionRefusal::OtherHostMayHold { node: n("a"), host_nqn: nqn("zzzz"), holder: nqn("a") };
    assert_eq!(refused(&b), Some(both.clone()));
    // It is fenced: cut off, and not seen to hold nothing.
    b.fence(90, "a");
    b.rds(Ok(()));
    b.rds(Ok(()));
    assert_eq!(b.phase("a"), None);
    other_comes(&mut b, Some("u2"));
    assert_eq!(refused(&b), Some(both), "it is quarantined");
    assert_eq!(pin(&b).0, nqn("a"));
}

#[test]
fn a_pin_holds_while_a_stray_of_the_host_is_on_record() {
    let mut b = Harness::new();
    b.seen.uid = Some(uid("u1"));
    b.up("a", "boot", vec![observed_of(ObservedPhase::Ready)]);
    assert_eq!(b.phase("a"), Some("Stray"));
    b.silent("a");
    other_comes(&mut b, Some("u2"));
    assert!(matches!(refused(&b), Some(SessionRefusal::OtherHostMayHold { .. })), "{:?}", b.effects);
}

#[test]
fn publish_to_a_node_on_record_not_heard_since_the_start_is_silent() {
    let mut b = pinned();
    let nodes = b.core.registry().values().cloned().collect();
    let remembered = Remembered { nodes, ..Remembered::default() };
    let since = UnixMillis(b.now);
    (b.core, _) = Core::rebuild(b.config.clone(), 8, remembered, since);
    let request = b.publish("a", Access::Rwo);
    assert_eq!(b.refusal(request), Refusal::Silent { node: n("a"), since });
}

#[test]
fn a_pin_holds_until_the_lists_of_the_rds_were_read() {
    let mut b = pinned();
    let nodes = b.core.registry().values().cloned().collect();
    let remembered = Remembered { nodes, lists_first: true, ..Remembered::default() };
    (b.core, _) = Core::rebuild(b.config.clone(), 8, remembered, UnixMillis(b.now));
    other_comes(&mut b, Some("u2"));
    assert_eq!(why(&b), PinHolds::InDoubt { volume: None });
    b.seen.stored = edited("zzzz");
    other_comes(&mut b, Some("u2"));
    assert_eq!(why(&b), PinHolds::InDoubt { volume: None }, "nor by a person");
    b.event(Event::RdsListed { volumes: vec![], whole: true });
    other_comes(&mut b, Some("u2"));
    assert_eq!((refused(&b), pin(&b).0), (None, nqn("zzzz")));
}

#[test]
fn a_host_that_is_heard_keeps_its_name_whatever_the_node_is() {
    let mut b = pinned();
    b.up("a", "boot", vec![]);
    for stored in [None, edited("zzzz")] {
        b.seen.stored = stored;
        other_comes(&mut b, Some("u2"));
        assert!(matches!(refused(&b), Some(SessionRefusal::TwoHosts { .. })), "{:?}", b.effects);
    }
}

#[test]
fn a_node_made_again_for_the_same_machine_is_noted() {
    let mut b = pinned();
    b.seen.uid = Some(uid("u2"));
    b.up("a", "boot", vec![]);
    assert_eq!(pin(&b), (nqn("a"), Some(uid("u2"))));
    b.silent("a");
    b.seen.uid = None;
    b.up("a", "boot-2", vec![]);
    assert_eq!(pin(&b).1, Some(uid("u2")), "what is not known now is still on record");
}

#[test]
fn a_person_changes_a_pin_and_the_host_before_is_refused() {
    let mut b = pinned();
    b.seen.stored = edited("zzzz");
    b.hello("a", identity("a", "boot-2"));
    let refusal = refused(&b);
    assert!(
        matches!(&refusal, Some(SessionRefusal::Pinned { pinned, .. }) if pinned.0 == nqn("zzzz")),
        "{refusal:?}"
    );
    assert!(!b.effects.iter().any(|e| matches!(e, Effect::PersistNode(_))), "{:?}", b.effects);
    assert_eq!(pin(&b).0, nqn("a"), "who is refused changes nothing");
    // Within one boot, too: a person says so, and it holds nothing.
    b.seen.uid = Some(uid("u1"));
    b.hello("a", identity("zzzz", "boot"));
    assert_eq!((refused(&b), pin(&b)), (None, (nqn("zzzz"), Some(uid("u1")))));
}

#[test]
fn a_person_who_changes_a_pin_takes_no_volume_from_the_host_before() {
    let mut b = bench(able());
    b.attach("a", Access::Rwo);
    b.silent("a");
    b.seen.stored = edited("zzzz");
    b.hello("a", identity("zzzz", "boot-9"));
    assert!(matches!(refused(&b), Some(SessionRefusal::OtherHostMayHold { .. })), "{:?}", b.effects);
    let held = Observed { epoch: Some(Epoch { term: 7, seq: 1 }), ..observed_of(ObservedPhase::Ready) };
    b.up("a", "boot-2", vec![held]);
    assert_eq!((refused(&b), b.phase("a")), (None, Some("Ready")), "it has to be heard");
    assert!(!b.effects.iter().any(|e| matches!(e, Effect::PersistNode(_))), "{:?}", b.effects);
    assert_eq!(pin(&b).0, nqn("zzzz"), "and is pinned no more");
}

#[test]
fn a_host_id_that_a_person_changes_alone_waits_for_what_the_host_has() {
    let mut b = bench(able());
    b.attach("a", Access::Rwo);
    b.silent("a");
    let other = NodeIdentity { host_id: host_id("zzzz"), ..identity("a", "boot-9") };
    let record = NodeRecord { node: n("a"), identity: other.clone(), uid: None };
    b.seen.stored = Some(StoredNode::Record(Box::new(record)));
    b.hello("a", other.clone());
    let held = |refused: Option<SessionRefusal>| match refused {
        Some(SessionRefusal::Pinned { holds, .. }) => holds,
        other => panic!("{other:?}"),
    };
    assert_eq!(held(refused(&b)), PinHolds::Holds { volume: v() });
    let mine = Observed { epoch: Some(Epoch { term: 7, seq: 1 }), ..observed_of(ObservedPhase::Ready) };
    b.up("a", "boot", vec![mine]);
    assert_eq!((refused(&b), b.phase("a")), (None, Some("Ready")), "who may write is heard");
    // Neither by way of a third one.
    b.silent("a");
    let by_a_person = std::mem::replace(&mut b.seen.stored, edited("zzzz"));
    b.up("a", "boot", vec![]);
    assert_eq!(pin(&b).0, nqn("zzzz"));
    b.silent("a");
    b.seen.stored = by_a_person;
    b.hello("a", other.clone());
    assert_eq!(held(refused(&b)), PinHolds::Holds { volume: v() });
    b.seen.stored = None;
    b.hello("a", identity("a", "boot"));
    assert_eq!(refused(&b), None);
}

#[test]
fn a_record_that_a_person_deletes_lets_go_of_a_host_that_has_nothing() {
    let mut b = pinned();
    b.seen.stored = Some(StoredNode::Nothing);
    other_comes(&mut b, Some("u1"));
    assert_eq!((refused(&b), pin(&b).0), (None, nqn("zzzz")));
    let mut b = bench(able());
    b.attach("a", Access::Rwo);
    b.silent("a");
    b.seen.stored = Some(StoredNode::Nothing);
    other_comes(&mut b, Some("u1"));
    assert!(matches!(refused(&b), Some(SessionRefusal::OtherHostMayHold { .. })), "{:?}", b.effects);
    assert_eq!(pin(&b).0, nqn("a"));
}

#[test]
fn a_node_that_was_declared_gone_is_whoever_comes_next() {
    let mut b = pinned();
    b.declare_gone(90, "a");
    other_comes(&mut b, None);
    assert_eq!((refused(&b), pin(&b).0), (None, nqn("zzzz")));
}

/// As [`pinned`], after a start at which the RDS lists a volume of which there is no record, off and with nobody on its list.
fn pinned_beside_a_disk_at_rest() -> Harness {
    let mut b = pinned();
    b.config.target = able();
    let nodes = b.core.registry().values().cloned().collect();
    let remembered = Remembered { nodes, lists_first: true, ..Remembered::default() };
    (b.core, _) = Core::rebuild(b.config.clone(), 8, remembered, UnixMillis(b.now));
    let at_rest = ListedVolume {
        volume: v(),
        hosts: Vec::new(),
        exported: false,
        keeps_list: true,
        problem: None,
        at_rest: false,
    };
    b.event(Event::RdsListed { volumes: vec![at_rest], whole: true });
    b
}

#[test]
fn a_persons_change_of_a_pin_waits_for_a_volume_in_doubt() {
    let mut b = pinned_beside_a_disk_at_rest();
    b.seen.stored = edited("zzzz");
    other_comes(&mut b, Some("u1"));
    assert_eq!(why(&b), PinHolds::InDoubt { volume: Some(v()) });
    b.pass(b.config.drain_bound_ms);
    other_comes(&mut b, Some("u1"));
    assert_eq!((refused(&b), pin(&b).0), (None, nqn("zzzz")));
}

#[test]
fn where_there_are_no_lists_a_patched_pin_waits() {
    let mut b = pinned();
    let nodes = b.core.registry().values().cloned().collect();
    let remembered = Remembered { nodes, lists_first: true, ..Remembered::default() };
    (b.core, _) = Core::rebuild(b.config.clone(), 8, remembered, UnixMillis(b.now));
    let list = ListedVolume {
        volume: v(),
        hosts: Vec::new(),
        exported: true,
        keeps_list: false,
        problem: None,
        at_rest: false,
    };
    b.event(Event::RdsListed { volumes: vec![list], whole: true });
    b.pass(b.config.drain_bound_ms);
    b.seen.stored = edited("zzzz");
    other_comes(&mut b, Some("u1"));
    assert_eq!(why(&b), PinHolds::InDoubt { volume: Some(v()) });
}

#[test]
fn a_record_that_is_deleted_beside_a_volume_in_doubt_says_so() {
    let mut b = pinned_beside_a_disk_at_rest();
    b.seen.stored = Some(StoredNode::Nothing);
    for of in [Some("u1"), Some("u2"), None] {
        other_comes(&mut b, of);
        assert_eq!(why(&b), PinHolds::InDoubt { volume: Some(v()) }, "{of:?}");
    }
}

#[test]
fn a_doubt_that_is_over_for_requests_is_over_for_pins() {
    let mut b = pinned_beside_a_disk_at_rest();
    other_comes(&mut b, Some("u2"));
    assert_eq!(why(&b), PinHolds::InDoubt { volume: Some(v()) });
    b.pass(b.config.drain_bound_ms);
    other_comes(&mut b, Some("u2"));
    assert_eq!((refused(&b), pin(&b).0), (None, nqn("zzzz")));
}

#[test]
fn a_doubt_goes_with_its_volume() {
    let mut b = pinned_beside_a_disk_at_rest();
    b.event(Event::DeleteEnded { volume: v(), deletion: VolumeDeletion::Done });
    other_comes(&mut b, Some("u2"));
    assert_eq!((refused(&b), pin(&b).0), (None, nqn("zzzz")));
}

#[test]
fn another_node_with_the_pinned_host_nqn_is_refused_and_the_pin_stays() {
    let mut b = pinned();
    for other in [identity("a", "boot-9"), NodeIdentity { host_id: host_id("bb"), ..identity("a", "boot") }] {
        b.hello("bb", other);
        let claim = Claim::HostNqn(nqn("a"));
        assert_eq!(refused(&b), Some(SessionRefusal::SharedIdentity { node: n("bb"), other: n("a"), claim }));
        assert!(!b.effects.iter().any(|e| matches!(e, Effect::ForgetNode(_))), "{:?}", b.effects);
    }
    assert_eq!(pin(&b), (nqn("a"), Some(uid("u1"))));
    // The same boot of the same kernel has another name now.
    b.hello("bb", identity("a", "boot"));
    assert_eq!(refused(&b), None);
    assert!(b.effects.contains(&Effect::ForgetNode(n("a"))), "{:?}", b.effects);
}

#[test]
fn addresses_change_and_are_shared_and_nobody_is_refused() {
    let mut b = Harness::hearing(&["a", "bb"]);
    b.silent("a");
    let shared = identity("bb", "boot").storage_addresses;
    b.up_as("a", NodeIdentity { storage_addresses: shared.clone(), ..identity("a", "boot") }, vec![]);
    assert_eq!(refused(&b), None, "bb is heard with the same one");
    assert_eq!(b.core.registry()[&n("a")].identity.storage_addresses, shared, "kept up to date");
}
