//! What deploy/ deploys: a cluster takes all of it as it is, and the controller does its work under exactly its rights.
//!
//! Each right is used here by what it is for, so that one that is taken out of deploy/chart/templates/rbac.yaml is missed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use cleat_kubernetes::api::ApiServer;
use cleat_kubernetes::attachments::{Attachments, Live, SaysWho};
use cleat_kubernetes::events::{Events, Happening, ObjectOfCluster};
use cleat_kubernetes::in_use::in_use;
use cleat_kubernetes::kubevirt::KubeVirt;
use cleat_kubernetes::kubevirt::live::{MoverNow, mover_now};
use cleat_kubernetes::kubevirt::mover::MoverSeen;
use cleat_kubernetes::lease::{Candidate, LeaseClaim, Standby};
use cleat_kubernetes::notes::Notes;
use cleat_kubernetes::records::{Before, ClusterRecords, Kind, RecordWrite, Written};
use cleat_kubernetes::references::References;
use cleat_kubernetes::reviews::{ClusterUser, Reviewed, Reviews, Right};
use cleat_kubernetes::serving_ca::{CaTimes, ServingCa};
use cleat_kubernetes::tickets::{ClusterTickets, TicketStatus};
use cleat_kubernetes::watch::Presence;
use cleat_kubernetes::{client_ca, definitions, nodes};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::records::record;
use cleat_api_server::{Cluster, DRIVER, PATIENCE, connect, shared};

const NAMESPACE: &str = "cleat-system";
const DAY: Duration = Duration::from_secs(86_400);

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn the_controller_does_its_work_under_the_rights_that_are_deployed() {
    let (log, cluster) = (Log::default(), Cluster::own());
    let writer = log.clone();
    let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _logging = tracing::subscriber::set_default(lines);
    // Twice: an upgrade is the same once more.
    let _ = cluster.deployed();
    let server = connect(&cluster.deployed(), Duration::from_secs(20)).await;
    assert_eq!(in_use(&server, DRIVER).await, Ok(Vec::new()), "no controller has led yet");
    definitions::install(&server).await.unwrap();
    let definitions = ["crd/cleatvolumes.cleat.io", "crd/cleatnodes.cleat.io", "crd/tickets.cleat.io"];
    cluster.kubectl(&[&["wait", "--for=condition=Established"][..], &definitions].concat());
    definitions::install(&server).await.unwrap();
    // What is watched from here on is looked at in the end: where a watch is refused, the log says so, and all that it would
    // have brought is listed a moment later.
    let attachments = Attachments::watch(server.clone(), DRIVER);
    let kubevirt = sees_who_migrates(&cluster, &server, &attachments).await;
    let tickets = ClusterTickets::watch(server.clone());

    let claim = leads(&server).await;
    keeps_records(&cluster, &server, claim.term()).await;
    assert_eq!(nodes::uid(&server, "node-a").await, Ok(None));
    assert_eq!(nodes::out_of_service(&server).await, Ok(Vec::new()));
    claim.release().await;
    sees_who_is_to_have_what(&cluster, &attachments).await;
    sees_who_migrates_now(&cluster, &attachments).await;
    knows_who_asks(&cluster, &server).await;
    tells_people(&cluster, &server).await;
    answers_tickets(&cluster, &tickets, &attachments).await;
    drop((kubevirt, tickets));
    // A kind that has just been defined is not served yet for a moment, and the log says that, too.
    let refused = |line: &str| line.contains("cannot watch") && line.contains("forbidden");
    assert!(!log.text().lines().any(refused), "{}", log.text());
}

async fn leads(server: &ApiServer) -> LeaseClaim {
    let ((standby, _), stop) = (watch::channel(Standby::default()), CancellationToken::new());
    let candidate = Candidate {
        namespace: NAMESPACE.into(),
        name: "cleat-controller".into(),
        identity: "one".into(),
        duration: Duration::from_secs(5),
    };
    let acquired = candidate.acquire(server.clone(), &standby, &stop);
    let claim = tokio::time::timeout(PATIENCE, acquired).await.unwrap().unwrap().unwrap();
    claim.raise(claim.term() + 1).await.unwrap();
    claim
}

async fn keeps_records(cluster: &Cluster, server: &ApiServer, term: u64) {
    let notes = Notes::new(server.clone(), NAMESPACE, "cleat-secret-keys");
    for line in ["a", "b"] {
        notes.change(|_| Ok(Some([("0".to_owned(), line.to_owned())].into()))).await.unwrap();
    }
    let (records, value) = (ClusterRecords::new(server.clone()), record("pvc-1", 1 << 30));
    let made =
        RecordWrite { kind: Kind::Volume, name: "pvc-1", before: None, value: Some(&value), lets_in: true };
    let Written { version, .. } = records.write(term, &made, || true).await.unwrap();
    let status = json!({"nodes": "a (Ready)", "evidence": "b: TargetCut"});
    let version = records.describe(Kind::Volume, "pvc-1", version, &status).await.unwrap();
    assert!(cluster.kubectl(&["get", "cleatvolumes"]).contains("a (Ready)"));
    assert_eq!(records.list().await.unwrap().len(), 1);
    let used = in_use(server, DRIVER).await.unwrap();
    assert!(
        used.len() == 1 && used[0].starts_with("volume pvc-1: attached to a, b; c was fenced"),
        "{used:?}"
    );
    // Less by one, which is a patch.
    let mut less = value.clone();
    less["record"]["attachments"].as_array_mut().unwrap().pop();
    let before = |version, value| Some(Before { version, value, deleting: false, unguarded: None });
    let changed = RecordWrite { before: before(version, &value), value: Some(&less), lets_in: false, ..made };
    let Written { version, .. } = records.write(term, &changed, || true).await.unwrap();
    let gone = RecordWrite { before: before(version, &less), value: None, ..changed };
    records.write(term, &gone, || true).await.unwrap();
    assert_eq!(in_use(server, DRIVER).await, Ok(Vec::new()));
    assert_eq!(records.get(Kind::Node, "node-a").await, Ok(None));
}

async fn sees_who_is_to_have_what(cluster: &Cluster, attachments: &Attachments) {
    tokio::time::timeout(PATIENCE, attachments.whole()).await.unwrap();
    cluster.wants("pvc-1", "node-a", false);
    until("the watches bring it", async || attachments.wanting("pvc-1") == Some(vec!["node-a".to_owned()]))
        .await;
    assert_eq!(attachments.all_now().await.unwrap().attachments.len(), 1);
    assert_eq!(attachments.live("pvc-1", "node-a").await, Ok(Live::Wanted));
    assert_eq!(attachments.live("pvc-1", "node-b").await, Ok(Live::Nobody));
    attachments.annotate("pv-pvc-1", &SaysWho::of(&["node-a".to_owned()], None)).await.unwrap();
    let says = r"jsonpath={.metadata.annotations.cleat\.io/attached-nodes}";
    assert_eq!(cluster.kubectl(&["get", "pv", "pv-pvc-1", "-o", says]), "node-a");
}

async fn sees_who_migrates(cluster: &Cluster, server: &ApiServer, attachments: &Attachments) -> KubeVirt {
    cluster.identities().apply(&cleat_kubevirt::definitions::definitions()["items"]);
    let kinds =
        ["crd/virtualmachineinstances.kubevirt.io", "crd/virtualmachineinstancemigrations.kubevirt.io"];
    cluster.kubectl(&[&["wait", "--for=condition=Established"][..], &kinds].concat());
    let all = attachments.all_now().await.unwrap();
    let kubevirt = KubeVirt::watch(server);
    let listed = async || kubevirt.presence() == Presence::There && kubevirt.movers(&all).is_some();
    until("claims, pods of VMs, VMs and migrations are listed", listed).await;
    kubevirt
}

/// For a volume whose owner demands a live migration for a second node.
async fn sees_who_migrates_now(cluster: &Cluster, attachments: &Attachments) {
    claimed(cluster, "pv-pvc-3", "pvc-3");
    cluster.wants("pvc-3", "node-b", true);
    let nobody = MoverNow { answered: false, mover: Some(MoverSeen::Nobody) };
    assert_eq!(mover_now(attachments, "pvc-3", "node-b").await, Ok(nobody));
}

async fn answers_tickets(cluster: &Cluster, tickets: &ClusterTickets, attachments: &Attachments) {
    cluster.identities().apply(&json!([{
        "apiVersion": "cleat.io/v1alpha1", "kind": "Ticket",
        "metadata": {"namespace": "default", "name": "nightly"},
        "spec": {"type": "backup", "claim": "none", "holder": "h"},
    }]));
    until("the watch brings it", async || tickets.all().is_some_and(|all| all.len() == 1)).await;
    let seen = tickets.all().unwrap().remove(0);
    let volume = tickets.volume_of(seen.read.as_ref().unwrap(), attachments).await.unwrap();
    assert_eq!(volume.map_err(|none| none.reason()), Err("ClaimNotFound"));
    assert!(tickets.now(&seen).await.unwrap().is_some());
    let status = TicketStatus { observed_generation: 1, ..TicketStatus::default() };
    tickets.answer(&seen, &status).await.unwrap();
}

async fn knows_who_asks(cluster: &Cluster, server: &ApiServer) {
    let reviews = Reviews::new(server.clone());
    let token = cluster.identities().account_token(NAMESPACE, "cleat-controller");
    let Reviewed::User(me) = reviews.token(&token, None).await.unwrap() else { panic!("it is nobody's") };
    assert_eq!(me.name, "system:serviceaccount:cleat-system:cleat-controller");
    let right = |verb, resource| Right { verb, resource, name: None };
    assert_eq!(reviews.allowed(&me, &right("list", "cleatvolumes")).await, Ok(Ok(())));
    let stranger = ClusterUser { name: "stranger".into(), ..ClusterUser::default() };
    assert!(reviews.allowed(&stranger, &right("list", "cleatvolumes")).await.unwrap().is_err());

    let times = CaTimes { lifetime: DAY * 30, renew_before: DAY * 10, overlap: DAY };
    let ca = ServingCa::new(server.clone(), NAMESPACE, "cleat-ca", "cleat-ca", times);
    let now = SystemTime::now();
    let first = ca.tend(now).await.unwrap();
    // The next one is due: the Secret and what is published are written again.
    assert!(ca.tend(now + DAY * 21).await.unwrap().is(&first));
    let published =
        cluster.kubectl(&["-n", NAMESPACE, "get", "cm", "cleat-ca", "-o", r"jsonpath={.data.ca\.crt}"]);
    assert_eq!(published.matches("BEGIN CERTIFICATE").count(), 2, "{published}");
    let of_clients = client_ca::read(server).await.unwrap();
    assert!(of_clients.is_some_and(|pem| pem.contains("BEGIN CERTIFICATE")));
}

/// A PersistentVolume that has a claim.
fn claimed(cluster: &Cluster, name: &str, volume: &str) {
    cluster.identities().apply(&json!([{
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
            "csi": {"driver": DRIVER, "volumeHandle": volume},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "default", "name": "disk", "uid": "u"},
        },
    }]));
}

async fn tells_people(cluster: &Cluster, server: &ApiServer) {
    let mut references = References::new(server.clone(), DRIVER);
    assert_eq!(references.claim("nothing").await, None);
    // All are not listed again so soon, so it is found by its name.
    claimed(cluster, "pvc-2", "pvc-2");
    assert_eq!(references.claim("pvc-2").await.map(|claim| claim.name).as_deref(), Some("disk"));
    let (api_version, kind) = ("v1".to_owned(), "Node".to_owned());
    let object = ObjectOfCluster { api_version, kind, namespace: None, name: "node-a".into(), uid: None };
    let happening = Happening { object, reason: "FenceStarted", warning: true, note: "it is cut off".into() };
    let mut events = Events::new(server.clone(), "cleat.io/controller", "one_1");
    for _ in 0..2 {
        events.say(happening.clone()).await.unwrap();
    }
    let counted = || {
        let path = "jsonpath={.items[*].series.count}";
        cluster.kubectl(&["get", "events.events.k8s.io", "-n", "default", "-o", path]) == "2"
    };
    // Its count is written after some seconds.
    let deadline = Instant::now() + PATIENCE;
    while !counted() {
        assert!(Instant::now() < deadline, "the count is not written");
        tokio::time::sleep(Duration::from_millis(500)).await;
        events.write_counts().await.unwrap();
    }
}

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/chart");

#[test]
#[ignore = "needs an API server: hack/test --only api-server"]
#[allow(clippy::print_stderr)] // what was not looked at is for whoever runs it
fn a_cluster_takes_all_that_the_chart_renders_with_everything_on() {
    let cluster = shared();
    let version: serde_json::Value =
        serde_json::from_str(&cluster.kubectl(&["get", "--raw", "/version"])).unwrap();
    let version = version["gitVersion"].as_str().unwrap().trim_start_matches('v');
    let rendered = Command::new(CHART)
        .args(["everything", version, "--if-built"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    if rendered.stdout.is_empty() {
        eprintln!("{}", String::from_utf8_lossy(&rendered.stderr));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("everything.yaml");
    std::fs::write(&file, &rendered.stdout).unwrap();
    // The Prometheus operator's kinds are taken as they come: what they may hold, it alone knows.
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let kind = |kind: &str| {
        let (singular, plural) = (kind.to_lowercase(), format!("{}s", kind.to_lowercase()));
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.monitoring.coreos.com")},
            "spec": {
                "group": "monitoring.coreos.com", "scope": "Namespaced",
                "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": singular},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": anything}}],
            },
        })
    };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    cluster.identities().apply(&json!([namespace, kind("PodMonitor"), kind("PrometheusRule")]));
    let kinds = ["crd/podmonitors.monitoring.coreos.com", "crd/prometheusrules.monitoring.coreos.com"];
    cluster.kubectl(&[&["wait", "--for=condition=Established"][..], &kinds].concat());
    let taken = cluster.kubectl(&validation(&file));
    for kind in
        ["job.batch/cleat-uninstall-check", "podmonitor", "prometheusrule", "daemonset.apps/cleat-agent"]
    {
        assert!(taken.contains(kind), "{kind} is not in\n{taken}");
    }
    // And what is wrong is seen.
    let wrong =
        String::from_utf8(rendered.stdout).unwrap().replacen("securityContext:", "securityContexts:", 1);
    std::fs::write(&file, wrong).unwrap();
    let refused = cluster.try_kubectl(&validation(&file)).unwrap_err();
    assert!(refused.contains("securityContexts"), "{refused}");
}

fn validation(file: &Path) -> [&str; 6] {
    let file = file.to_str().unwrap();
    ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", file]
}
