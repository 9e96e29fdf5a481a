//! Who is who as a real API server says it: real tokens, real RBAC, and a CA that replicas share.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cleat_api_server::{Cluster, Identities, Shared, shared};
use cleat_controller::trust::{ClusterTrustSettings, ServingTimes};
use cleat_kubernetes::serving_ca::CaTimes;
use cleat_proto::cleat::v1 as proto;
use cleat_runtime::tls::ClientTransport;
use proto::from_agent::Kind as Say;
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::agent::{Agent, Host};
use crate::operators::cleatctl_with;
use crate::world::{World, dial, eventually};

const AUDIENCE: &str = "cleat.io";
const AGENT: &str = "cleat-agent";
const SERVER: &str = "cleat-controller.test";

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> serde_json::Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn named_rule(group: &str, resource: &str, name: &str, verbs: &[&str]) -> serde_json::Value {
    json!({"apiGroups": [group], "resources": [resource], "resourceNames": [name], "verbs": verbs})
}

fn role(kind: &str, name: &str, namespace: Option<&str>, rules: &serde_json::Value) -> serde_json::Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace}, "rules": rules,
    })
}

fn binding(
    of: (&str, &str),
    name: &str,
    namespace: Option<&str>,
    subject: &serde_json::Value,
) -> serde_json::Value {
    let kind = if namespace.is_some() { "RoleBinding" } else { "ClusterRoleBinding" };
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": of.0, "name": of.1}, "subjects": [subject],
    })
}

fn account(namespace: &str, name: &str) -> serde_json::Value {
    json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
}

/// A controller's account with the rights that docs/operating.md lists, and no other ones.
fn controller(identities: &Identities, namespace: &str) -> PathBuf {
    let me = account(namespace, "cleat-controller");
    let (here, cluster) = (Some(namespace), format!("cleat-controller-{namespace}"));
    identities.apply(&json!([
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "cleat-controller", "namespace": namespace}},
    ]));
    identities.apply(&json!([
        role(
            "Role",
            "cleat-controller",
            here,
            &json!([
                named_rule("", "secrets", "cleat-ca", &["get", "update"]),
                named_rule("", "configmaps", "cleat-ca", &["get", "update"]),
                rule(&[""], &["secrets", "configmaps"], &["create"]),
            ])
        ),
        binding(("Role", "cleat-controller"), "cleat-controller", here, &me),
        binding(("Role", "extension-apiserver-authentication-reader"), &cluster, Some("kube-system"), &me,),
        role(
            "ClusterRole",
            &cluster,
            None,
            &json!([
                rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
                rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
            ])
        ),
        binding(("ClusterRole", &cluster), &cluster, None, &me),
    ]));
    identities.with_token(&identities.account_token(namespace, "cleat-controller"))
}

fn settings(kubeconfig: &Path, namespace: &str, times: ServingTimes) -> ClusterTrustSettings {
    ClusterTrustSettings {
        kubeconfig: Some(kubeconfig.to_owned()),
        api_timeout: Duration::from_secs(3),
        namespace: namespace.to_owned(),
        ca_secret: "cleat-ca".into(),
        ca_configmap: "cleat-ca".into(),
        serving_names: vec![SERVER.into()],
        token_audience: AUDIENCE.into(),
        agent_service_account: AGENT.into(),
        times,
    }
}

async fn started(identities: &Identities, namespace: &str, times: ServingTimes) -> World {
    let mut world = World::new();
    world.trust = Some(settings(&controller(identities, namespace), namespace, times));
    world.start().await;
    world
}

fn quick() -> ServingTimes {
    ServingTimes { read_every: Duration::from_millis(500), ..ServingTimes::default() }
}

/// What is published, as a node that mounts it would see it.
fn published(cluster: &Shared, namespace: &str) -> String {
    let get = ["get", "configmap", "cleat-ca", "--namespace", namespace, "-o", r"jsonpath={.data.ca\.crt}"];
    cluster.kubectl(&get)
}

async fn channel(world: &World, ca: &str) -> Channel {
    dial(world.agents_at(), &ClientTransport::of(ca, None, Some(SERVER)).unwrap()).await
}

async fn agent(world: &World, ca: &str, host: &std::sync::Arc<Host>, token: Option<&str>) -> Agent {
    Agent::dial_as(channel(world, ca).await, host, token).await
}

async fn refused(world: &World, ca: &str, node: &str, token: Option<&str>) -> Status {
    let status = agent(world, ca, &Host::new(node, 9), token).await.ended().await;
    assert!(token.is_none_or(|token| !status.message().contains(token)), "{status:?}");
    status
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_real_token_speaks_for_the_node_of_its_pod_and_for_no_other() {
    let (cluster, namespace) = (shared(), "who-agents");
    let identities = cluster.identities();
    let world = started(identities, namespace, quick()).await;
    for (account, node) in [(AGENT, "node-a"), (AGENT, "node-b"), ("other", "node-a")] {
        identities.pod(namespace, account, node);
    }
    let ca = published(cluster, namespace);
    let good = identities.token(namespace, AGENT, "node-a", AUDIENCE);
    let _agent = agent(&world, &ca, &Host::new("node-a", 1), Some(&good)).await.up().await;

    let another = identities.token(namespace, AGENT, "node-b", AUDIENCE);
    let status = refused(&world, &ca, "node-a", Some(&another)).await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("node-b") && status.message().contains("--node-id"), "{status:?}");
    let audience = identities.token(namespace, AGENT, "node-a", "elsewhere");
    let other = identities.token(namespace, "other", "node-a", AUDIENCE);
    let expired = identities.lasting(&good, -5);
    let mut forged = good.clone();
    forged.replace_range(good.rfind('.').unwrap() + 1.., "AAAA");
    let podless = identities.account_token(namespace, AGENT);
    for (token, said) in [
        (None, "no token was shown"),
        (Some(&*expired), "it expired at"),
        (Some(&audience), "audience elsewhere"),
        (Some(&other), "it is of system:serviceaccount:who-agents:other"),
        (Some(&podless), "audience"),
        (Some(&forged), "the token is refused"),
        (Some("garbage"), "no service account's"),
    ] {
        let status = refused(&world, &ca, "node-a", token).await;
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert!(status.message().contains(said), "{said}: {status:?}");
    }
    // A pod that is gone takes its tokens with it, once what was answered a moment ago has become old.
    cluster.kubectl(&["delete", "pod", "cleat-agent-node-b", "--namespace", namespace, "--force"]);
    eventually_for(Duration::from_secs(60), "a dead pod's token", async || {
        // As another node, since until then it is good for its own.
        refused(&world, &ca, "node-x", Some(&another)).await.code() == Code::Unauthenticated
    })
    .await;
    assert_eq!(world_node(&world, identities, namespace, "node-a").await, "connected");
}

async fn eventually_for(patience: Duration, what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + patience;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The words that make cleatctl somebody of the cluster.
fn as_user(kubeconfig: &Path, namespace: &str) -> Vec<String> {
    let words = ["--tls-server-name", SERVER, "--namespace", namespace, "--kubeconfig"].map(str::to_owned);
    words.into_iter().chain([kubeconfig.display().to_string()]).collect()
}

fn person(identities: &Identities, namespace: &str, name: &str) -> PathBuf {
    identities.apply(&json!([
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}},
    ]));
    identities.with_token(&identities.account_token(namespace, name))
}

/// Lets somebody look at everything.
fn lets_look(identities: &Identities, namespace: &str, name: &str, subject: &serde_json::Value) {
    let look = format!("look-{namespace}");
    identities.apply(&json!([
        role(
            "ClusterRole",
            &look,
            None,
            &json!([rule(&["cleat.io"], &["cleatvolumes", "cleatnodes"], &["get", "list", "watch"]),])
        ),
        binding(("ClusterRole", &look), &format!("{name}-{look}"), None, subject),
        role("Role", "ca", Some(namespace), &json!([named_rule("", "configmaps", "cleat-ca", &["get"])])),
        binding(("Role", "ca"), &format!("{name}-ca"), Some(namespace), subject),
    ]));
}

async fn world_node(world: &World, identities: &Identities, namespace: &str, node: &str) -> String {
    let me = person(identities, namespace, "looks");
    lets_look(identities, namespace, "looks", &account(namespace, "looks"));
    let (code, out, err) = cleatctl_with(world, as_user(&me, namespace), &["nodes", "-o", "json"]).await;
    assert_eq!(code, 0, "{err}");
    let nodes: serde_json::Value = serde_json::from_str(&out).unwrap();
    let found =
        nodes.as_array().unwrap().iter().find(|found| found["node_id"] == node || found["node"] == node);
    found.unwrap_or_else(|| panic!("{node} is not in {out}"))["session"].as_str().unwrap().to_owned()
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn an_operator_may_what_rbac_says_and_his_name_stays_with_it() {
    let (cluster, namespace) = (shared(), "who-operators");
    let identities = cluster.identities();
    let world = started(identities, namespace, quick()).await;
    let bob = person(identities, namespace, "bob");
    let by_bob = as_user(&bob, namespace);
    let (code, _, err) = cleatctl_with(&world, by_bob.clone(), &["volumes"]).await;
    assert!(code == 1 && err.contains("cleat-ca"), "he cannot even read the CA: {err}");
    lets_look(identities, namespace, "bob", &account(namespace, "bob"));
    let ask = async |who: &[String], words: &[&str]| cleatctl_with(&world, who.to_vec(), words).await;
    for words in [&["volumes"][..], &["nodes"], &["migrations"], &["doctor"]] {
        let (code, _, err) = ask(&by_bob, words).await;
        assert_eq!(code, 0, "{words:?}: {err}");
    }
    let name = "system:serviceaccount:who-operators:bob";
    let gone = ["node", "declare-gone", "node-x", "--reason", "off"];
    for (words, right) in [
        (&["fence", "pvc-1", "node-x", "--reason", "off"][..], "fence cleatvolumes.cleat.io \"pvc-1\""),
        (&gone, "declaregone cleatnodes.cleat.io \"node-x\""),
    ] {
        let (code, _, err) = ask(&by_bob, words).await;
        assert!(code == 1 && err.contains(name) && err.contains(right), "{err}");
    }
    // Of that one node, and of no other.
    let verbs = json!([named_rule("cleat.io", "cleatnodes", "node-x", &["declaregone"])]);
    identities.apply(&json!([
        role("ClusterRole", "bob-declares", None, &verbs),
        binding(("ClusterRole", "bob-declares"), "bob-declares", None, &account(namespace, "bob")),
    ]));
    eventually_for(Duration::from_secs(30), "the right", async || {
        !ask(&by_bob, &gone).await.2.contains("may not")
    })
    .await;
    let (_, _, err) = ask(&by_bob, &["node", "declare-gone", "node-y", "--reason", "off"]).await;
    assert!(err.contains("may not") && err.contains("node-y"), "{err}");

    // Somebody with a client certificate, by his group.
    let carol = identities.with_certificate("carol", "storage-people");
    let by_carol = as_user(&carol, namespace);
    let group = json!({"kind": "Group", "name": "storage-people", "apiGroup": "rbac.authorization.k8s.io"});
    let ca = world.dir.path().join("ca.crt");
    std::fs::write(&ca, published(cluster, namespace)).unwrap();
    let with_file = [by_carol.clone(), vec!["--tls-ca".into(), ca.display().to_string()]].concat();
    let (code, _, err) = ask(&with_file, &["volumes"]).await;
    assert!(code == 1 && err.contains("\"carol\" may not list cleatvolumes"), "{err}");
    lets_look(identities, namespace, "carol", &group);
    eventually_for(Duration::from_secs(30), "her right", async || ask(&by_carol, &["volumes"]).await.0 == 0)
        .await;
    let nobody = identities.with_token("no-such-token");
    let with_file = [as_user(&nobody, namespace), vec!["--tls-ca".into(), ca.display().to_string()]].concat();
    let (code, _, err) = ask(&with_file, &["volumes"]).await;
    assert!(code == 1 && err.contains("the token is refused") && !err.contains("no-such-token"), "{err}");
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_fence_that_a_user_asks_for_is_kept_with_his_name() {
    let (cluster, namespace) = (shared(), "who-fences");
    let identities = cluster.identities();
    let world = started(identities, namespace, quick()).await;
    identities.pod(namespace, AGENT, "node-a");
    let ca = published(cluster, namespace);
    let token = identities.token(namespace, AGENT, "node-a", AUDIENCE);
    let agent = agent(&world, &ca, &Host::new("node-a", 1), Some(&token)).await.up().await;
    let csi = world.csi().await;
    csi.create("pvc-1").await.unwrap();
    csi.publish("pvc-1", "node-a", crate::world::RWO).await.unwrap();
    drop(agent);
    let dave = person(identities, namespace, "dave");
    lets_look(identities, namespace, "dave", &account(namespace, "dave"));
    let verbs = json!([rule(&["cleat.io"], &["cleatnodes"], &["declaregone"])]);
    identities.apply(&json!([
        role("ClusterRole", "dave-declares", None, &verbs),
        binding(("ClusterRole", "dave-declares"), "dave-declares", None, &account(namespace, "dave")),
    ]));
    let by_dave = as_user(&dave, namespace);
    let ask = async |words: &[&str]| cleatctl_with(&world, by_dave.clone(), words).await;
    eventually_for(Duration::from_secs(30), "declared", async || {
        ask(&["node", "declare-gone", "node-a", "--reason", "it burns"]).await.0 == 0
    })
    .await;
    let said = async || ask(&["explain", "pvc-1"]).await.1.contains("system:serviceaccount:who-fences:dave");
    eventually("his name", said).await;
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_session_ends_with_its_token_unless_that_is_renewed_on_it() {
    let (cluster, namespace) = (shared(), "who-renews");
    let identities = cluster.identities();
    let world = started(identities, namespace, quick()).await;
    for node in ["node-a", "node-b", "node-c"] {
        identities.pod(namespace, AGENT, node);
    }
    let ca = published(cluster, namespace);
    let long = ["node-a", "node-b", "node-c"].map(|node| identities.token(namespace, AGENT, node, AUDIENCE));
    let [short_a, short_b, short_c] = [0, 1, 2].map(|n| identities.lasting(&long[n], 8));
    let up = async |node: &str, n: u8, token: &str| {
        agent(&world, &ca, &Host::new(node, n), Some(token)).await.up().await
    };
    let ends = up("node-a", 1, &short_a).await;
    let goes_on = up("node-b", 2, &short_b).await;
    let confused = up("node-c", 3, &short_c).await;
    let renewal = |token: &str| Say::Renewal(proto::TokenRenewal { token: token.to_owned() });
    goes_on.say(renewal(&long[1])).await;
    confused.say(renewal(&long[0])).await;
    let status = confused.ended().await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().contains("node-a") && status.message().contains("node-c"), "{status:?}");
    let status = ends.ended().await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("node-a has expired"), "{status:?}");
    // Twice as long as its first token.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(world_node(&world, identities, namespace, "node-b").await, "connected");
    drop(goes_on);
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn certificates_and_their_ca_are_replaced_while_everybody_connects() {
    let (cluster, namespace) = (shared(), "who-rotates");
    let identities = cluster.identities();
    let times = ServingTimes {
        certificate: Duration::from_secs(6),
        read_every: Duration::from_millis(300),
        ca: CaTimes {
            lifetime: Duration::from_secs(30),
            renew_before: Duration::from_secs(20),
            overlap: Duration::from_secs(4),
        },
    };
    let world = started(identities, namespace, times).await;
    identities.pod(namespace, AGENT, "node-a");
    let token = identities.token(namespace, AGENT, "node-a", AUDIENCE);
    let first = published(cluster, namespace);
    let host = Host::new("node-a", 1);
    let held = agent(&world, &first, &host, Some(&token)).await.up().await;
    let (begun, mut seen, mut connected) = (Instant::now(), vec![first.clone()], 0);
    while begun.elapsed() < Duration::from_secs(40) {
        let now = published(cluster, namespace);
        // As a node whose mount is some seconds old.
        let _ = channel(&world, seen.last().unwrap()).await;
        connected += 1;
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(seen.len() >= 3 && connected > 20, "{} CAs, {connected} connects", seen.len());
    assert!(!seen.last().unwrap().contains(first.trim()), "the first one is gone");
    // Made under it, and in use all the same.
    assert!(held.stands());
    assert_eq!(world_node(&world, identities, namespace, "node-a").await, "connected");
    let csi = world.csi().await;
    csi.create("pvc-1").await.unwrap();
    csi.publish("pvc-1", "node-a", crate::world::RWO).await.unwrap();
    assert!(host.holds("pvc-1"));
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn without_an_answer_of_the_api_server_nobody_is_let_in_and_nobody_falls() {
    let cluster = Cluster::own();
    let (identities, namespace) = (cluster.identities(), "who-waits");
    let world = started(&identities, namespace, quick()).await;
    for node in ["node-a", "node-b"] {
        identities.pod(namespace, AGENT, node);
    }
    let get = ["get", "configmap", "cleat-ca", "--namespace", namespace, "-o", r"jsonpath={.data.ca\.crt}"];
    let ca = cluster.kubectl(&get);
    let [a, b] = ["node-a", "node-b"].map(|node| identities.token(namespace, AGENT, node, AUDIENCE));
    let held = agent(&world, &ca, &Host::new("node-a", 1), Some(&a)).await.up().await;
    cluster.freeze(true);
    let asked = Instant::now();
    let status = refused(&world, &ca, "node-b", Some(&b)).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    let csi = world.csi().await;
    csi.create("pvc-1").await.unwrap();
    csi.publish("pvc-1", "node-a", crate::world::RWO).await.unwrap();
    cluster.freeze(false);
    let host = Host::new("node-b", 2);
    eventually_for(Duration::from_secs(30), "node-b", async || {
        let status = refused(&world, &ca, "node-x", Some(&b)).await;
        status.code() == Code::PermissionDenied
    })
    .await;
    let _agent = agent(&world, &ca, &host, Some(&b)).await.up().await;
    drop(held);
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --full --only api-server"]
async fn a_right_that_the_controller_lacks_is_named_and_lets_nobody_in() {
    let (cluster, namespace) = (shared(), "who-lacks");
    let identities = cluster.identities();
    let kubeconfig = controller(identities, namespace);
    let role = format!("cleat-controller-{namespace}");
    cluster.kubectl(&["delete", "clusterrolebinding", &role]);
    let mut world = World::new();
    world.trust = Some(settings(&kubeconfig, namespace, quick()));
    world.start().await;
    identities.pod(namespace, AGENT, "node-a");
    let token = identities.token(namespace, AGENT, "node-a", AUDIENCE);
    let status = refused(&world, &published(cluster, namespace), "node-a", Some(&token)).await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("tokenreviews"), "{status:?}");
}
