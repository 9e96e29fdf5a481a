//! The definition as the API server gets it, objects as it gives them back, and what a renewal is.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;

const UID: &str = "0b7c1d1e-9f59-4c3a-8a43-6c0a3a3a4c5d";

fn whole() -> Value {
    serde_json::to_value(definition().expect("a definition")).expect("JSON")
}

fn schema() -> Value {
    whole()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

fn object(spec: Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "cleat.io/v1alpha1", "kind": "Ticket",
        "metadata": {
            "namespace": "shop", "name": "nightly", "uid": UID, "generation": 3,
            "creationTimestamp": "2026-01-02T03:04:05Z", "annotations": {RENEWED: "2026-01-02T04:00:00Z"},
        },
        "spec": spec,
    }))
    .expect("an object")
}

fn backup() -> Value {
    json!({"claim": "database", "type": "backup", "node": "worker-1", "holder": "velero", "renewSeconds": 30})
}

fn keys(properties: &Value) -> BTreeSet<&str> {
    properties.as_object().expect("properties").keys().map(String::as_str).collect()
}

/// Every schema within one, itself included.
fn all_within<'a>(schema: &'a Value, found: &mut Vec<&'a Value>) {
    found.push(schema);
    for inner in schema["properties"].as_object().into_iter().flatten().map(|(_, inner)| inner) {
        all_within(inner, found);
    }
}

#[test]
fn the_definition_is_namespaced_and_structural() {
    let whole = whole();
    assert_eq!(whole["metadata"]["name"], "tickets.cleat.io");
    assert_eq!(whole["spec"]["scope"], "Namespaced");
    let text = whole.to_string();
    for left in ["oneOf", "anyOf", "allOf", "$ref", "\"const\"", "$schema"] {
        assert!(!text.contains(left), "{left} in {text}");
    }
    let (schema, mut found) = (schema(), Vec::new());
    all_within(&schema, &mut found);
    for inner in found {
        assert!(inner["type"].is_string(), "{inner:#}");
        assert_eq!((&inner["nullable"], &inner["default"]), (&Value::Null, &Value::Null), "{inner:#}");
    }
}

#[test]
fn a_wish_says_who_wants_what_and_the_rest_may_be_left_out() {
    let spec = &schema()["properties"]["spec"];
    let all = ["claim", "holder", "node", "renewSeconds", "type", "volume"];
    assert_eq!(keys(&spec["properties"]), all.into());
    let required: BTreeSet<&str> =
        spec["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert_eq!(required, ["holder", "type"].into());
    for (name, longest) in [("claim", 253), ("volume", 63), ("node", 253), ("holder", 253)] {
        let property = &spec["properties"][name];
        assert_eq!((&property["minLength"], &property["maxLength"]), (&json!(1), &json!(longest)), "{name}");
    }
    let renew = &spec["properties"]["renewSeconds"];
    let number = |field: &str| renew[field].as_f64();
    assert_eq!((number("minimum"), number("maximum")), (Some(10.0), Some(3600.0)), "{renew}");
}

#[test]
fn all_types_are_offered_but_the_orchestrators_own() {
    let schema = schema();
    let offered = &schema["properties"]["spec"]["properties"]["type"]["enum"];
    let offered: BTreeSet<&str> =
        offered.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let all = TicketType::ALL.into_iter().filter(|kind| *kind != TicketType::Csi);
    assert_eq!(offered, all.map(TicketType::name).collect());
}

#[test]
fn a_ticket_is_for_one_volume_and_stays_for_it() {
    let rules = &schema()["properties"]["spec"]["x-kubernetes-validations"];
    assert_eq!(rules[0]["rule"], "has(self.claim) != has(self.volume)");
    let stays = rules[1]["rule"].as_str().unwrap_or_default();
    for field in ["type", "claim", "volume"] {
        assert!(stays.contains(&format!("self.{field} == oldSelf.{field}")), "{stays}");
    }
    for rule in rules.as_array().into_iter().flatten() {
        assert!(rule["message"].is_string(), "{rule}");
    }
}

#[test]
fn every_column_shows_a_field_that_is_there() {
    let (whole, schema) = (whole(), schema());
    let columns = whole["spec"]["versions"][0]["additionalPrinterColumns"].as_array().expect("columns");
    assert!(columns.iter().any(|column| column["jsonPath"] == ".status.waitsFor"));
    for column in columns {
        let path = column["jsonPath"].as_str().expect("a path");
        if path == ".metadata.creationTimestamp" {
            continue;
        }
        let place = path.replace('.', "/properties/");
        let field = schema.pointer(&place).unwrap_or_else(|| panic!("{path} is no field"));
        let kept = if column["type"] == "date" { json!("date-time") } else { field["format"].clone() };
        assert!(column["type"] == "date" || field["type"] == column["type"], "{path}");
        assert_eq!(field["format"], kept, "{path}");
    }
}

#[test]
fn a_ticket_is_read_as_it_was_written() {
    let ticket = TicketObject::read(&object(backup())).expect("a ticket");
    assert_eq!((&*ticket.namespace, &*ticket.name, ticket.uid.as_str()), ("shop", "nightly", UID));
    assert_eq!((ticket.generation, ticket.created_ms, ticket.deleting), (3, 1_767_323_045_000, false));
    assert_eq!(ticket.renewed.as_deref(), Some("2026-01-02T04:00:00Z"));
    assert_eq!((ticket.subject(), &ticket.status), (TicketSubject::Claim("database"), &None));
    assert_eq!(serde_json::to_value(&ticket.spec).expect("JSON"), backup());

    let wish = ticket.wish(UnixMillis(7), UnixMillis(8)).expect("a wish");
    let expected = Ticket {
        id: TicketId::new(UID).expect("an id"),
        kind: TicketType::Backup,
        node: NodeId::new("worker-1").ok(),
        holder: "velero".into(),
        generation: 3,
        since: UnixMillis(1_767_323_045_000),
        renewed: UnixMillis(7),
        renew_ms: Some(30_000),
        waits_since: UnixMillis(8),
    };
    assert_eq!(wish, expected);
}

#[test]
fn what_a_wish_leaves_out_is_the_usual() {
    let spec = json!({"volume": "pvc-1", "type": "api", "holder": "alice"});
    let ticket = TicketObject::read(&object(spec)).expect("a ticket");
    assert_eq!(ticket.subject(), TicketSubject::Volume("pvc-1"));
    let wish = ticket.wish(UnixMillis(0), UnixMillis(0)).expect("a wish");
    assert_eq!((wish.node, wish.renew_ms), (None, Some(60_000)));
}

#[test]
fn what_a_changed_definition_lets_through_is_no_ticket_all_the_same() {
    let long = "x".repeat(254);
    for (spec, why) in [
        (json!(null), "TicketSpec"),
        (json!({"type": "backup", "holder": "h"}), "either a claim"),
        (json!({"type": "backup", "holder": "h", "claim": "c", "volume": "v"}), "either a claim"),
        (json!({"type": "backup", "claim": "c"}), "holder"),
        (json!({"type": "backup", "claim": "c", "holder": long}), "too long"),
        (json!({"type": "backup", "claim": "", "holder": "h"}), "empty"),
        (json!({"type": "csi", "claim": "c", "holder": "h", "node": "n"}), "VolumeAttachments"),
        (json!({"type": "unheard-of", "claim": "c", "holder": "h"}), "unheard-of"),
    ] {
        let refused = TicketObject::read(&object(spec.clone())).expect_err("no ticket");
        assert!(refused.why.contains(why), "{spec}: {refused}");
        assert!(refused.to_string().contains("the ticket shop/nightly"), "{refused}");
    }
    let mut nameless = object(backup());
    nameless.metadata.uid = None;
    assert!(TicketObject::read(&nameless).is_err());
    let strange = json!({"type": "api", "claim": "c", "holder": "h", "node": "no node"});
    let strange = TicketObject::read(&object(strange)).expect("a ticket");
    assert!(strange.wish(UnixMillis(0), UnixMillis(0)).is_err());
}

#[test]
fn a_patch_says_every_field_of_the_status_so_that_old_ones_go() {
    let schema = schema();
    let said = TicketStatus { observed_generation: 3, ..TicketStatus::default() }.patch();
    assert_eq!(keys(&said["status"]), keys(&schema["properties"]["status"]["properties"]));
    assert_eq!((&said["status"]["satisfied"], &said["status"]["device"]), (&json!(false), &Value::Null));

    let status = TicketStatus {
        observed_generation: 3,
        satisfied: true,
        satisfied_generation: Some(3),
        node: Some("worker-1".into()),
        device: Some("/run/cleat/tickets/7/device".into()),
        since: Some("2026-01-02T03:04:05Z".into()),
        ..TicketStatus::default()
    };
    let mut there = object(backup());
    there.data["status"] = status.patch()["status"].clone();
    assert_eq!(TicketObject::read(&there).expect("a ticket").status, Some(status), "nulls are nothing");
}

#[test]
fn what_was_said_already_keeps_its_times() {
    let waits = |on: &str| TicketStatus {
        observed_generation: 1,
        waits_for: Some(on.into()),
        ..TicketStatus::default()
    };
    let first = waits("node a").concluded("Waits", false, "t1", None);
    assert_eq!(first.since.as_deref(), Some("t1"));
    assert_eq!(waits("node a").concluded("Waits", false, "t2", Some(&first)), first, "nothing to write");

    let other = waits("node b").concluded("Waits", false, "t2", Some(&first));
    assert_eq!(other.since.as_deref(), Some("t2"));
    let satisfied = |status: &TicketStatus| {
        let all: Vec<_> = status.conditions.iter().map(|one| (&*one.kind, &*one.status)).collect();
        (all == [(SATISFIED, "False"), (LOST, "False")], status.conditions[0].last_transition_time.clone())
    };
    assert_eq!(satisfied(&other), (true, "t1".into()), "it was not satisfied before either");

    let lost = waits("its holder").concluded("Lost", true, "t3", Some(&other));
    let condition = &lost.conditions[1];
    assert_eq!((&*condition.status, &*condition.reason), ("True", "NotRenewed"));
    assert_eq!((&*condition.last_transition_time, &*condition.message), ("t3", "its holder"));
}

#[test]
fn a_ticket_that_could_not_be_looked_at_counts_as_renewed() {
    let (mut renewals, ticket) =
        (Renewals::default(), TicketObject::read(&object(backup())).expect("a ticket"));
    renewals.see(&ticket, UnixMillis(100));
    renewals.excuse(&ticket, UnixMillis(150));
    assert_eq!(renewals.see(&ticket, UnixMillis(200)), UnixMillis(150));
}

#[test]
fn a_status_of_an_earlier_generation_satisfies_nobody() {
    let satisfied =
        |of| TicketStatus { satisfied: true, satisfied_generation: of, ..TicketStatus::default() };
    assert!(satisfied(Some(3)).is_satisfied(3));
    assert!(!satisfied(Some(2)).is_satisfied(3));
    assert!(!satisfied(None).is_satisfied(3));
    assert!(!TicketStatus { satisfied_generation: Some(3), ..TicketStatus::default() }.is_satisfied(3));
}

#[test]
fn only_a_change_of_the_annotation_renews_a_ticket() {
    let (mut renewals, mut ticket) =
        (Renewals::default(), TicketObject::read(&object(backup())).expect("a ticket"));
    assert_eq!(renewals.see(&ticket, UnixMillis(100)), UnixMillis(100), "it has its whole time");
    assert_eq!(renewals.see(&ticket, UnixMillis(200)), UnixMillis(100));
    // A clock of its holder that is wrong, or stands in the past, does not matter.
    ticket.renewed = Some("1970-01-01T00:00:00Z".into());
    assert_eq!(renewals.see(&ticket, UnixMillis(300)), UnixMillis(300));
    ticket.generation += 1;
    assert_eq!(renewals.see(&ticket, UnixMillis(400)), UnixMillis(300));
    renewals.keep(|_| false);
    assert_eq!(renewals.see(&ticket, UnixMillis(500)), UnixMillis(500), "it was forgotten");
}

#[test]
fn of_a_renewal_no_more_is_kept_than_tells_it_from_another() {
    let mut long = object(backup());
    long.annotations_mut().insert(RENEWED.into(), "é".repeat(100_000));
    let ticket = TicketObject::read(&long).expect("a ticket");
    assert_eq!(ticket.renewed.map(|value| value.chars().count()), Some(RENEWED_LONGEST));
}
