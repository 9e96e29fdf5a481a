#![allow(clippy::unwrap_used)]

use cleat_core::{Event, MinFence, VolumeSpec};
use cleat_kubernetes::tickets::{RENEWED, TicketObject};
use serde_json::json;

use super::*;

const UID: &str = "0b7c1d1e-9f59-4c3a-8a43-6c0a3a3a4c5d";
const AT: UnixMillis = UnixMillis(1_000_000);

fn id(uid: &str) -> TicketId {
    TicketId::new(uid).unwrap()
}

fn volume(name: &str) -> VolumeId {
    VolumeId::new(name).unwrap()
}

/// A backup of the namespace `shop`, as the watch has it.
fn seen(uid: &str, generation: u64, renewed: &str) -> Arc<TicketSeen> {
    of_node(uid, generation, renewed, "worker-1")
}

fn of_node(uid: &str, generation: u64, renewed: &str, node: &str) -> Arc<TicketSeen> {
    let object = json!({
        "apiVersion": "cleat.io/v1alpha1", "kind": "Ticket",
        "metadata": {
            "namespace": "shop", "name": format!("of-{uid}"), "uid": uid, "generation": generation,
            "annotations": {RENEWED: renewed},
        },
        "spec": {"type": "backup", "claim": "database", "holder": "velero", "node": node},
    });
    let read = TicketObject::read(&serde_json::from_value(object).unwrap());
    Arc::new(TicketSeen {
        namespace: "shop".into(),
        name: format!("of-{uid}"),
        uid: id(uid),
        generation,
        read,
        status: None,
        version: None,
    })
}

fn found(name: &str) -> Subject {
    Subject::Volume(Box::new(VolumeSpec {
        id: volume(name),
        access: Access::Rwo,
        subsystem_nqn: None,
        portals: Vec::new(),
        size_bytes: 4096,
        min_fence: MinFence::default(),
        migration_timeout_ms: VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS,
        require_migration: false,
    }))
}

fn unknown() -> Subject {
    Subject::Unknown { why: "it took too long".into() }
}

fn none() -> Subject {
    Subject::None { reason: "ClaimNotFound", why: "claim database: namespace shop has no such claim".into() }
}

/// Each event in a word.
fn words(events: Vec<Event>) -> Vec<String> {
    let word = |event| match event {
        Event::TicketWanted { spec, ticket } => format!("wanted {} {}", spec.id, ticket.generation),
        Event::TicketRenewed { volume, .. } => format!("renewed {volume}"),
        Event::TicketGone { volume, .. } => format!("gone {volume}"),
        other => format!("{other:?}"),
    };
    events.into_iter().map(word).collect()
}

/// A book with that ticket, of which the core has been given that it is about `v`.
fn given(all: &[Arc<TicketSeen>]) -> Book {
    let mut book = Book::default();
    book.see(all, AT);
    assert_eq!(book.due(all, AT).len(), all.len());
    for seen in all {
        book.looked_up(&seen.uid, found("v"), AT);
    }
    assert_eq!(words(book.events(AT)), vec!["wanted v 1"; all.len()]);
    assert!(book.due(all, AT).is_empty() && book.events(AT).is_empty(), "nothing is said twice");
    book
}

#[test]
fn a_renewal_is_handed_over_by_our_clock_and_is_no_other_wish() {
    let mut book = given(&[seen(UID, 1, "a")]);
    book.see(&[seen(UID, 1, "b")], AT.plus(10));
    assert_eq!(words(book.events(AT.plus(10))), ["renewed v"]);
    book.see(&[seen(UID, 1, "b")], AT.plus(20));
    assert!(book.events(AT.plus(20)).is_empty());
}

#[test]
fn another_generation_is_looked_up_and_handed_over_again() {
    let (mut book, changed) = (given(&[seen(UID, 1, "a")]), [seen(UID, 2, "a")]);
    book.see(&changed, AT);
    assert_eq!(book.due(&changed, AT).len(), 1);
    book.looked_up(&id(UID), found("v"), AT);
    assert_eq!(words(book.events(AT)), ["wanted v 2"]);
}

#[test]
fn what_could_not_be_found_out_takes_no_ticket_away() {
    let all = [seen(UID, 1, "a")];
    let mut book = given(&all);
    let later = AT.plus(60_000);
    assert_eq!(book.due(&all, later).len(), 1, "it is asked again from time to time");
    book.looked_up(&id(UID), unknown(), later);
    assert!(book.events(later).is_empty());
    book.looked_up(&id(UID), none(), later);
    assert_eq!(words(book.events(later)), ["gone v"], "its claim was deleted");
    book.looked_up(&id(UID), found("w"), later);
    assert_eq!(words(book.events(later)), ["wanted w 1"], "another claim of that name");
    book.looked_up(&id(UID), found("x"), later);
    assert_eq!(words(book.events(later)), ["gone w", "wanted x 1"]);
    book.see(&[], later);
    assert_eq!(words(book.events(later)), ["gone x"], "its object was deleted");
}

#[test]
fn a_ticket_is_lost_only_if_the_api_server_says_that_it_was_not_renewed() {
    let all = [seen(UID, 1, "a")];
    let mut book = given(&all);
    let at = |seconds: u64| AT.plus(seconds * 1000);
    assert!(book.about_to_be_lost(&all, at(39)).is_empty());
    assert_eq!(book.about_to_be_lost(&all, at(40)).len(), 1);
    book.looked_at(&all[0], Some(Some(&all[0])), at(40));
    assert!(book.events(at(40)).is_empty(), "nobody has renewed it");
    assert!(book.about_to_be_lost(&all, at(45)).is_empty(), "not at each look");
    assert_eq!(book.about_to_be_lost(&all, at(46)).len(), 1);

    let renewed = seen(UID, 1, "b");
    book.looked_at(&all[0], Some(Some(&renewed)), at(46));
    assert_eq!(words(book.events(at(46))), ["renewed v"], "the watch was behind");
    book.see(&[Arc::clone(&renewed)], at(50));
    assert!(book.events(at(50)).is_empty(), "and brings it later");

    assert_eq!(book.about_to_be_lost(&all, at(86)).len(), 1);
    book.looked_at(&renewed, None, at(86));
    assert_eq!(words(book.events(at(86))), ["renewed v"], "nobody knows");
}

#[test]
fn after_a_start_what_has_no_object_is_withdrawn_and_the_rest_is_kept() {
    let all = [seen(UID, 1, "a")];
    let mut book = Book::default();
    book.see(&all, AT);
    let of = |name: &str, uid: &str| (volume(name), id(uid));
    let kept = Kept { known: BTreeSet::new(), attached: [of("v", UID), of("v", "gone")].into() };
    let mut said = words(book.differences(&kept));
    said.sort();
    assert_eq!(said, ["gone v", "renewed v"], "its volume was not asked for yet");
    book.looked_up(&id(UID), found("v"), AT);
    assert_eq!(words(book.events(AT)), ["wanted v 1"]);

    let known = || Kept { known: [of("v", UID)].into(), attached: [of("v", UID), of("w", UID)].into() };
    assert_eq!(words(book.differences(&known())), ["gone w"], "it is about another volume now");
    assert!(book.events(AT).is_empty());
    assert!(book.differences(&Kept::default()).is_empty());
    assert_eq!(words(book.events(AT)), ["wanted v 1"], "the core has not kept it");
    assert!(book.events(AT).is_empty(), "it is given once");
}

#[test]
fn what_the_core_has_not_kept_is_taken_back_with_its_object() {
    let mut book = given(&[seen(UID, 1, "a")]);
    assert!(book.differences(&Kept::default()).is_empty());
    book.see(&[], AT);
    assert_eq!(words(book.events(AT)), ["gone v"], "how it stands was said");
}

#[test]
fn of_one_namespace_only_so_many_tickets_are_handed_over() {
    let mut all: Vec<_> =
        (0..book::TICKETS_PER_NAMESPACE).map(|number| seen(&format!("t{number:03}"), 1, "a")).collect();
    let mut book = given(&all);
    all.push(seen("t999", 1, "a"));
    book.see(&all, AT);
    assert!(book.due(&all, AT).is_empty() && book.events(AT).is_empty());
    let Some((Subject::None { reason, .. }, None)) = book.about(&id("t999")) else { panic!("it waits") };
    assert_eq!(*reason, "TooManyTickets");
    all.remove(0);
    book.see(&all, AT);
    assert_eq!(book.due(&all, AT).len(), 1, "there is room");
    book.looked_up(&id("t999"), found("v"), AT);
    assert_eq!(words(book.events(AT)), ["gone v", "wanted v 1"]);
}

#[test]
fn a_ticket_that_says_nothing_usable_says_why() {
    let all = [of_node(UID, 1, "a", "no node")];
    let mut book = Book::default();
    book.see(&all, AT);
    book.looked_up(&id(UID), found("v"), AT);
    assert!(book.events(AT).is_empty());
    let Some((Subject::None { reason, why }, None)) = book.about(&id(UID)) else { panic!("it is not given") };
    assert!(*reason == "Unusable" && why.contains("its node"), "{why}");
}

#[test]
fn a_kind_that_goes_for_a_moment_takes_no_ticket_away() {
    let (mut absent, at) = (Absent::default(), |seconds: u64| AT.plus(seconds * 1000));
    assert!(!absent.is_in_doubt(Presence::There, at(0)));
    assert!(absent.is_in_doubt(Presence::Absent, at(1)) && absent.is_in_doubt(Presence::Absent, at(60)));
    assert!(!absent.is_in_doubt(Presence::Absent, at(61)), "then there are none");
    assert!(!absent.is_in_doubt(Presence::There, at(62)));
    assert!(absent.is_in_doubt(Presence::Absent, at(63)));

    let mut book = given(&[seen(UID, 1, "a")]);
    assert!(book.excused(at(10)).is_empty());
    assert_eq!(words(book.excused(at(30))), ["renewed v"]);
}
