//! Tickets as a real API server takes them: what their definition and the deployed policy refuse, what raises their generation,
//! which volumes they reach, and how they are answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cleat_api_server::{Cluster, PATIENCE, Shared, connect, shared};
use cleat_kubernetes::api::ApiError;
use cleat_kubernetes::attachments::Attachments;
use cleat_kubernetes::tickets::{ClusterTickets, RENEWED, TicketSeen, TicketStatus, definition};
use serde_json::{Value, json};

/// A namespace of that name in a cluster that knows tickets.
pub(crate) fn namespace(name: &str) -> &'static Shared {
    let cluster = shared();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    cluster.identities().apply(&json!([definition().unwrap(), namespace]));
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/tickets.cleat.io"]);
    cluster
}

pub(crate) fn ticket(namespace: &str, name: &str, spec: Value) -> Value {
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

const DRIVER: &str = "tickets.cleat.test";

/// A claim of that namespace that names a PersistentVolume; gives its UID.
fn claim(cluster: &Shared, namespace: &str, name: &str, pv: &str) -> String {
    cluster.identities().apply(&json!([{
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "storageClassName": "", "volumeName": pv,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }]));
    cluster.kubectl(&["-n", namespace, "get", "pvc", name, "-o", "jsonpath={.metadata.uid}"])
}

/// A ticket of that namespace, once the watch has it.
pub(crate) async fn watched(tickets: &ClusterTickets, namespace: &str, name: &str) -> Arc<TicketSeen> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let is = |seen: &&Arc<TicketSeen>| seen.namespace == namespace && seen.name == name;
        if let Some(seen) = tickets.all().iter().flatten().find(is) {
            return Arc::clone(seen);
        }
        assert!(Instant::now() < deadline, "the watch does not bring {namespace}/{name}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn a_ticket_reaches_no_volume_of_another_namespace() {
    let cluster = namespace("reaches");
    namespace("foreign");
    let server = connect(cluster.kubeconfig(), Duration::from_secs(20)).await;
    let attachments = Attachments::watch(server.clone(), DRIVER);
    let uid = claim(cluster, "reaches", "own", "pv-reached");
    // Whoever makes a claim may name any PersistentVolume in it.
    claim(cluster, "foreign", "own", "pv-reached");
    cluster.identities().apply(&json!([{
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv-reached"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
            "csi": {"driver": DRIVER, "volumeHandle": "reached"},
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "reaches", "name": "own", "uid": uid,
            },
        },
    }]));
    let tickets = ClusterTickets::watch(server);
    attachments.whole().await;
    let deadline = Instant::now() + PATIENCE;
    while attachments.volumes().is_empty() {
        assert!(Instant::now() < deadline, "the watch does not bring the PersistentVolume");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (namespace, subject, found) in [
        ("reaches", "claim", Ok("reached")),
        ("reaches", "volume", Ok("reached")),
        ("foreign", "claim", Err("ClaimNotBound")),
        ("foreign", "volume", Err("VolumeNotOfNamespace")),
    ] {
        let name = format!("by-{subject}");
        let of = if subject == "claim" { "own" } else { "reached" };
        let spec = json!({"type": "backup", "holder": "h", subject: of});
        cluster.identities().apply(&ticket(namespace, &name, spec));
        let seen = watched(&tickets, namespace, &name).await;
        let volume = tickets.volume_of(seen.read.as_ref().unwrap(), &attachments).await.unwrap();
        let volume = volume.as_ref().map(|volume| volume.handle.as_str()).map_err(|none| none.reason());
        assert_eq!(volume, found, "{namespace} {subject}");
    }
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn an_answer_is_written_to_what_was_seen_and_to_nothing_later() {
    let cluster = namespace("answered");
    let tickets = ClusterTickets::watch(connect(cluster.kubeconfig(), Duration::from_secs(20)).await);
    cluster.identities().apply(&ticket(
        "answered",
        "t",
        json!({"type": "backup", "holder": "h", "claim": "c"}),
    ));
    let seen = watched(&tickets, "answered", "t").await;
    let waits =
        TicketStatus { observed_generation: 1, waits_for: Some("claim c".into()), ..TicketStatus::default() };
    let waits = waits.concluded("ClaimNotFound", false, "2026-01-02T03:04:05Z", None);
    tickets.answer(&seen, &waits).await.unwrap();
    let now = tickets.now(&seen).await.unwrap().unwrap();
    assert_eq!((now.status.as_ref(), now.generation), (Some(&waits), 1), "conditions and all");
    cluster.kubectl(&["-n", "answered", "wait", "--for=condition=Satisfied=False", "ticket/t"]);
    assert_eq!(tickets.answer(&seen, &waits).await, Err(ApiError::Conflict), "it is another version now");

    cluster.kubectl(&["-n", "answered", "delete", "ticket", "t"]);
    assert_eq!(tickets.now(&now).await, Ok(None));
    cluster.identities().apply(&ticket(
        "answered",
        "t",
        json!({"type": "backup", "holder": "h", "claim": "c"}),
    ));
    assert_eq!(tickets.now(&now).await, Ok(None), "one that was made again is another");
    assert_eq!(tickets.answer(&now, &waits).await, Err(ApiError::Conflict));
}

/// What somebody who may edit a namespace is answered.
fn as_editor(cluster: &Cluster, file: &std::path::Path, object: &Value) -> Result<String, String> {
    std::fs::write(file, object.to_string()).unwrap();
    cluster.try_kubectl(&["--as", "editor", "apply", "-f", &file.display().to_string()])
}

#[test]
#[ignore = "needs an API server: hack/test --only api-server"]
fn each_type_is_open_to_who_has_its_verb() {
    let cluster = Cluster::own();
    let _ = cluster.deployed();
    let role = |namespace: &str, of: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"namespace": namespace, "name": format!("editor-{of}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": of},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "editor"}],
        })
    };
    let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    cluster.identities().apply(&json!([definition().unwrap(), shop, role("shop", "cleat-tickets-edit")]));
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/tickets.cleat.io"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ticket.json");
    let of = |kind: &str| {
        json!({
            "apiVersion": "cleat.io/v1alpha1", "kind": "Ticket",
            "metadata": {"namespace": "shop", "name": kind}, "spec": {"type": kind, "holder": "h", "claim": "c"},
        })
    };
    // The API server takes a policy in a moment after it was made.
    let deadline = Instant::now() + PATIENCE;
    let refused = loop {
        match as_editor(&cluster, &file, &of("api")) {
            Err(refused) => break refused,
            Ok(_) => drop(cluster.kubectl(&["-n", "shop", "delete", "ticket", "api"])),
        }
        assert!(Instant::now() < deadline, "the policy refuses nothing");
        std::thread::park_timeout(Duration::from_millis(300));
    };
    assert!(refused.contains("editor does not have the verb use-api"), "{refused}");
    for kind in ["restore", "expansion", "clone"] {
        let refused = as_editor(&cluster, &file, &of(kind)).unwrap_err();
        assert!(refused.contains(&format!("use-{kind}")), "{refused}");
    }
    for kind in ["backup", "snapshot"] {
        as_editor(&cluster, &file, &of(kind)).unwrap();
    }
    // Another's ticket of a type that is not open to him he may renew, and not change.
    cluster.identities().apply(&json!([of("api")]));
    let patch = |patch: &str| {
        cluster.try_kubectl(&[
            "--as",
            "editor",
            "-n",
            "shop",
            "patch",
            "ticket",
            "api",
            "--type=merge",
            "-p",
            patch,
        ])
    };
    patch(r#"{"metadata": {"annotations": {"cleat.io/renewed": "now"}}}"#).unwrap();
    let refused = patch(r#"{"spec": {"node": "node-b"}}"#).unwrap_err();
    assert!(refused.contains("use-api"), "{refused}");

    cluster.identities().apply(&json!([role("shop", "cleat-operator")]));
    patch(r#"{"spec": {"node": "node-b"}}"#).unwrap();
    let csi = as_editor(&cluster, &file, &of("csi")).unwrap_err();
    assert!(csi.contains("csi"), "{csi}");
}
