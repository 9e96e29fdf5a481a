//! Tickets as a real API server takes them: what their definition refuses, and what raises their generation.

use cleat_api_server::{Shared, shared};
use cleat_kubernetes::tickets::{RENEWED, TicketStatus, definition};
use serde_json::{Value, json};

/// A namespace of that name in a cluster that knows tickets.
fn namespace(name: &str) -> &'static Shared {
    let cluster = shared();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    cluster.identities().apply(&json!([definition().unwrap(), namespace]));
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/tickets.cleat.io"]);
    cluster
}

fn ticket(namespace: &str, name: &str, spec: Value) -> Value {
    json!([{
        "apiVersion": "cleat.io/v1alpha1", "kind": "Ticket",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    }])
}

fn generation(cluster: &Shared, namespace: &str) -> String {
    cluster.kubectl(&["-n", namespace, "get", "ticket", "t", "-o", "jsonpath={.metadata.generation}"])
}

#[test]
#[ignore = "needs an API server: hack/test --only api-server"]
fn what_no_ticket_can_say_is_refused_with_its_reason() {
    let cluster = namespace("no-tickets");
    for (spec, why) in [
        (json!({"type": "backup", "holder": "h"}), "either a claim of its namespace or a volume"),
        (
            json!({"type": "backup", "holder": "h", "claim": "c", "volume": "v"}),
            "either a claim of its namespace",
        ),
        (json!({"type": "csi", "holder": "h", "claim": "c"}), "spec.type"),
        (json!({"type": "backup", "claim": "c"}), "holder"),
        (json!({"type": "backup", "holder": "h", "claim": ""}), "spec.claim"),
        (json!({"type": "backup", "holder": "h", "claim": "c", "renewSeconds": 1}), "spec.renewSeconds"),
        (json!({"type": "backup", "holder": "h", "volume": "v".repeat(64)}), "spec.volume"),
    ] {
        let refused = cluster.identities().try_apply(&ticket("no-tickets", "t", spec.clone())).unwrap_err();
        assert!(refused.contains(why), "{spec}: {refused}");
    }
}

#[test]
#[ignore = "needs an API server: hack/test --only api-server"]
fn neither_a_renewal_nor_an_answer_raises_the_generation() {
    let cluster = namespace("renewed");
    let spec = json!({"type": "backup", "holder": "h", "claim": "c", "node": "worker-1"});
    cluster.identities().apply(&ticket("renewed", "t", spec));
    for time in ["2026-01-02T03:04:05Z", "2026-01-02T03:05:05Z"] {
        cluster.kubectl(&[
            "-n",
            "renewed",
            "annotate",
            "--overwrite",
            "ticket",
            "t",
            &format!("{RENEWED}={time}"),
        ]);
    }
    let answered = |status: &TicketStatus| {
        let patch = status.patch().to_string();
        cluster.kubectl(&[
            "-n",
            "renewed",
            "patch",
            "ticket",
            "t",
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ]);
        let there = cluster.kubectl(&["-n", "renewed", "get", "ticket", "t", "-o", "json"]);
        let there: Value = serde_json::from_str(&there).unwrap();
        assert_eq!(serde_json::from_value::<TicketStatus>(there["status"].clone()).unwrap(), *status);
    };
    let satisfied = TicketStatus {
        observed_generation: 1,
        satisfied: true,
        satisfied_generation: Some(1),
        node: Some("worker-1".into()),
        device: Some("/run/cleat/tickets/t/device".into()),
        since: Some("2026-01-02T03:04:05Z".into()),
        ..TicketStatus::default()
    };
    answered(&satisfied);
    answered(&TicketStatus {
        observed_generation: 1,
        waits_for: Some("a detach".into()),
        ..TicketStatus::default()
    });
    assert_eq!(generation(cluster, "renewed"), "1");
    let table = cluster.kubectl(&["-n", "renewed", "get", "tickets"]);
    assert!(table.contains("WAITS FOR") && table.contains("a detach"), "{table}");

    cluster.kubectl(&[
        "-n",
        "renewed",
        "patch",
        "ticket",
        "t",
        "--type=merge",
        "-p",
        r#"{"spec":{"node":null}}"#,
    ]);
    assert_eq!(generation(cluster, "renewed"), "2");
}

#[test]
#[ignore = "needs an API server: hack/test --only api-server"]
fn a_ticket_does_not_become_one_for_something_else() {
    let cluster = namespace("same");
    let of = |kind: &str, subject: &str| json!({"type": kind, "holder": "h", subject: "one"});
    cluster.identities().apply(&ticket("same", "t", of("backup", "claim")));
    let mut another = of("backup", "claim");
    another["claim"] = json!("two");
    for spec in [of("snapshot", "claim"), of("backup", "volume"), another] {
        let replaced = format!(r#"[{{"op": "replace", "path": "/spec", "value": {spec}}}]"#);
        let change = ["-n", "same", "patch", "ticket", "t", "--type=json", "-p", &replaced];
        let refused = cluster.try_kubectl(&change).unwrap_err();
        assert!(refused.contains("make another one"), "{spec}: {refused}");
    }
    assert_eq!(generation(cluster, "same"), "1");
}
