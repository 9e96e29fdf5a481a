#![allow(clippy::unwrap_used)]

use cleat_core::{Access, MinFence, VolumeSpec};
use cleat_kubernetes::tickets::{TicketObject, TicketSeen};
use cleat_proto::cleat::v1::VolumeState;
use serde_json::json;

use super::*;

const UID: &str = "0b7c1d1e-9f59-4c3a-8a43-6c0a3a3a4c5d";
const OTHER: &str = "7d3e2b1f-0000-4c3a-8a43-6c0a3a3a4c5d";
const AT: UnixMillis = UnixMillis(1_767_323_045_000);

fn seen(uid: &str, name: &str, generation: u64, status: Option<TicketStatus>) -> Arc<TicketSeen> {
    let object = json!({
        "apiVersion": "cleat.io/v1alpha1", "kind": "Ticket",
        "metadata": {"namespace": "shop", "name": name, "uid": uid, "generation": generation},
        "spec": {"type": "backup", "claim": "database", "holder": "velero"},
    });
    let read = TicketObject::read(&serde_json::from_value(object).unwrap());
    let (namespace, name, uid) = ("shop".into(), name.into(), TicketId::new(uid).unwrap());
    Arc::new(TicketSeen { namespace, name, uid, generation, read, status, version: None })
}

fn volume() -> VolumeId {
    VolumeId::new("v").unwrap()
}

fn node() -> NodeId {
    NodeId::new("worker-1").unwrap()
}

/// What is said of a ticket of that generation, of which the core was given generation 1 and stands like this.
fn said_of(
    generation: u64,
    standing: Option<TicketStanding>,
    before: Option<TicketStatus>,
) -> Option<TicketStatus> {
    let first = seen(UID, "nightly", 1, None);
    let mut book = Book::default();
    book.see(&[first], AT);
    let spec = VolumeSpec {
        id: volume(),
        access: Access::Rwo,
        subsystem_nqn: None,
        portals: Vec::new(),
        size_bytes: 4096,
        min_fence: MinFence::default(),
        migration_timeout_ms: VolumeSpec::DEFAULT_MIGRATION_TIMEOUT_MS,
        require_migration: false,
    };
    let ticket = TicketId::new(UID).unwrap();
    book.looked_up(&ticket, Subject::Volume(Box::new(spec)), AT);
    assert_eq!(book.events(AT).len(), 1);
    let (now, other) = (seen(UID, "nightly", generation, before), seen(OTHER, "weekly", 1, None));
    book.see(&[Arc::clone(&now), Arc::clone(&other)], AT);
    let board = standing.map(|standing| ((volume(), ticket), Stands { standing, since: AT }));
    let names: Naming = [(now.uid.clone(), &now), (other.uid.clone(), &other)].into();
    let reports = Reports::default();
    let state = VolumeState { device: "nvme3n1".into(), ..VolumeState::default() };
    reports.inventory(&node(), [(volume(), state)].into());
    answer(&now, &book, &board.into_iter().collect(), &names, &reports, AT.plus(1000))
}

fn conditions(status: &TicketStatus) -> Vec<String> {
    status.conditions.iter().map(|one| format!("{} {} {}", one.kind, one.status, one.reason)).collect()
}

#[test]
fn a_satisfied_ticket_says_where_its_device_is() {
    assert_eq!(said_of(1, None, None), None, "nothing is known yet");
    let satisfied = || Some(TicketStanding::Satisfied { node: node(), generation: 1 });
    let status = said_of(1, satisfied(), None).unwrap();
    assert!(status.is_satisfied(1) && status.observed_generation == 1);
    assert_eq!((status.node.as_deref(), status.device.as_deref()), (Some("worker-1"), Some("/dev/nvme3n1")));
    assert_eq!(status.since.as_deref(), Some("2026-01-02T03:04:05Z"), "since it was said, not since now");
    assert_eq!(conditions(&status), ["Satisfied True Satisfied", "Lost False Renewed"]);
    assert_eq!(said_of(1, satisfied(), Some(status.clone())), Some(status), "there is nothing to write");
}

#[test]
fn what_was_said_of_an_earlier_generation_satisfies_nobody() {
    let status = said_of(2, Some(TicketStanding::Satisfied { node: node(), generation: 1 }), None).unwrap();
    assert!(!status.satisfied && !status.is_satisfied(2));
    assert_eq!((status.observed_generation, status.satisfied_generation), (1, Some(1)));
    assert_eq!(conditions(&status)[0], "Satisfied False Changed");
}

#[test]
fn who_waits_for_another_ticket_is_shown_its_name() {
    let other = TicketId::new(OTHER).unwrap();
    let wait = TicketWait::Yielding { node: node(), ticket: other, until: AT.plus(30_000) };
    let status = said_of(1, Some(TicketStanding::Waits { wait, since: AT }), None).unwrap();
    assert_eq!(status.waits_on.as_deref(), Some("ticket weekly"));
    let why = status.waits_for.as_deref().unwrap();
    assert!(why.contains("ticket weekly to let go") && !why.contains(OTHER), "{why}");
    assert_eq!(conditions(&status), ["Satisfied False Waits", "Lost False Renewed"]);
}

#[test]
fn an_interrupted_ticket_says_until_when_and_for_whom() {
    let by = InterruptedBy::Workload { ticket: TicketId::new("csi.b").unwrap(), node: node() };
    let interrupted = TicketStanding::Interrupt { node: node(), by, until: AT.plus(30_000) };
    let status = said_of(1, Some(interrupted), None).unwrap();
    assert_eq!(status.interrupted_until.as_deref(), Some("2026-01-02T03:04:35Z"));
    assert_eq!(status.waits_on.as_deref(), Some("ticket csi.b"));
    assert!(status.device.is_some() && !status.satisfied, "it has it still");
    assert_eq!(conditions(&status), ["Satisfied False Interrupted", "Lost False Renewed"]);
}

#[test]
fn a_lost_ticket_says_so_until_it_is_renewed() {
    let silent =
        TicketStanding::Interrupt { node: node(), by: InterruptedBy::Silence, until: AT.plus(30_000) };
    let waits = TicketStanding::Waits { wait: TicketWait::Renewal { since: AT }, since: AT };
    for standing in [silent, waits] {
        let status = said_of(1, Some(standing), None).unwrap();
        assert_eq!(conditions(&status), ["Satisfied False Lost", "Lost True NotRenewed"]);
    }
    let back = said_of(1, Some(TicketStanding::AttachOn(node())), None).unwrap();
    assert_eq!(conditions(&back), ["Satisfied False Attaching", "Lost False Renewed"]);
}

#[test]
fn a_ticket_that_is_about_no_volume_says_why() {
    let now = seen(UID, "nightly", 3, None);
    let mut book = Book::default();
    book.see(&[Arc::clone(&now)], AT);
    let names: Naming = [(now.uid.clone(), &now)].into();
    let said = |book: &Book| {
        answer(&now, book, &BTreeMap::new(), &names, &Reports::default(), AT).map(|status| {
            assert_eq!((status.observed_generation, status.satisfied), (3, false));
            (status.conditions[0].reason.clone(), status.waits_for.unwrap_or_default())
        })
    };
    assert_eq!(said(&book), None);
    book.looked_up(&now.uid, Subject::Unknown { why: "no answer".into() }, AT);
    assert_eq!(said(&book).unwrap().0, "Unknown");
    let why = "claim database: namespace shop has no such claim".to_owned();
    book.looked_up(&now.uid, Subject::None { reason: "ClaimNotFound", why: why.clone() }, AT);
    assert_eq!(said(&book), Some(("ClaimNotFound".into(), why)));
}
