//! What of a ticket's message is taken, and how what is not is refused.

#![allow(clippy::unwrap_used)]

use tonic::Code;

use super::*;

fn request() -> proto::PutTicketRequest {
    proto::PutTicketRequest {
        id: "nightly.1".into(),
        volume_id: "pvc-1".into(),
        kind: "backup".into(),
        holder: " velero ".into(),
        generation: 1,
        ..Default::default()
    }
}

fn refused(request: proto::PutTicketRequest, field: &str) {
    let status = Wish::check(request).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().starts_with(&format!("{field}: ")), "{status}");
}

#[test]
fn what_is_not_said_of_a_ticket_is_as_usual() {
    let wish = Wish::check(request()).unwrap();
    assert_eq!((wish.kind, wish.node, &*wish.holder), (TicketType::Backup, None, "velero"));
    assert_eq!((wish.renew_ms, wish.access), (Some(60_000), None));
}

#[test]
fn what_is_said_of_a_ticket_counts() {
    let said = proto::PutTicketRequest {
        node_id: "node-a".into(),
        access: "RWX block".into(),
        renew_ms: 20_000,
        generation: 7,
        ..request()
    };
    let wish = Wish::check(said).unwrap();
    assert_eq!((wish.node, wish.access), (Some(NodeId::new("node-a").unwrap()), Some(Access::RwxBlock)));
    assert_eq!((wish.renew_ms, wish.generation), (Some(20_000), 7));
}

#[test]
fn a_ticket_that_is_never_lost_is_kept_without_a_time() {
    let clone = proto::PutTicketRequest { kind: "clone".into(), ..request() };
    assert_eq!(Wish::check(clone).unwrap().renew_ms, None);
}

#[test]
fn nobody_asks_under_the_id_of_a_workloads_own_ticket() {
    refused(proto::PutTicketRequest { id: "csi.node-a".into(), ..request() }, "id");
    assert!(Wish::check(proto::PutTicketRequest { id: "csi".into(), ..request() }).is_ok());
}

#[test]
fn what_a_ticket_cannot_be_is_refused_by_its_field() {
    for kind in ["csi", "", "Backup"] {
        refused(proto::PutTicketRequest { kind: kind.into(), ..request() }, "kind");
    }
    for holder in ["", "  ", "a\nb", &*"x".repeat(254)] {
        refused(proto::PutTicketRequest { holder: holder.into(), ..request() }, "holder");
    }
    for renew_ms in [9_999, 3_600_001] {
        refused(proto::PutTicketRequest { renew_ms, ..request() }, "renew_ms");
    }
    refused(proto::PutTicketRequest { id: "../x".into(), ..request() }, "id");
    refused(proto::PutTicketRequest { volume_id: String::new(), ..request() }, "volume_id");
    refused(proto::PutTicketRequest { generation: 0, ..request() }, "generation");
    refused(proto::PutTicketRequest { access: "ROX".into(), ..request() }, "access");
    refused(proto::PutTicketRequest { kind: "api".into(), ..request() }, "node_id");
}
