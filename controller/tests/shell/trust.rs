//! Who may say what: nobody's word reaches further than who said it, and that is what a certificate says.

use std::path::Path;
use std::time::Duration;

use cleat_proto::cleat::v1 as proto;
use cleat_runtime::grpc::{Connector as _, Renewing};
use cleat_runtime::tls::{ClientTlsArgs, ClientTransport, ServerTlsArgs};
use proto::operator_client::OperatorClient;
use tonic::Code;

use crate::agent::{Agent, Host};
use crate::certificates::{Certificates, SERVER, uri};
use crate::operators::cleatctl_of;
use crate::world::{RWO, World, dial, eventually};

async fn world() -> World {
    let mut world = World::new();
    world.secure();
    world.start().await;
    world
}

fn made(world: &World) -> &Certificates {
    world.certificates.as_ref().unwrap()
}

#[tokio::test]
async fn a_full_copy_of_a_nodes_identity_does_not_get_its_session() {
    let world = world().await;
    let [(_, agent)] = world.nodes(["node-a"]).await;
    let csi = world.csi().await;
    csi.create("pvc-1").await.unwrap();
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();

    let thief = Host::new("node-a", 1);
    let channel = dial(world.agents_at(), &made(&world).node("node-b")).await;
    let refused = Agent::dial(channel, &thief).await.ended().await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    for words in ["cleat://node/node-b", "node-a", "--node-id"] {
        assert!(refused.message().contains(words), "{words} is not in {refused:?}");
    }
    assert_eq!(world.node("node-a").await.session, "connected");
    csi.unpublish("pvc-1", "node-a").await.unwrap();
    assert!(thief.attaches().is_empty());
    drop(agent);
}

#[tokio::test]
async fn a_result_about_a_volume_that_the_node_was_not_granted_is_refused() {
    let world = world().await;
    let [(a, _one), (b, two)] = world.nodes(["node-a", "node-b"]).await;
    let csi = world.csi().await;
    for volume in ["pvc-1", "pvc-2"] {
        csi.create(volume).await.unwrap();
    }
    csi.publish("pvc-1", "node-a", RWO).await.unwrap();
    let granted = a.attaches()[0].clone();
    let staging = proto::Staging { path: "/elsewhere".into(), ..Default::default() };
    let said = |volume: &str| proto::VolumeState {
        staging: vec![staging.clone()],
        ..b.hold(volume, granted.epoch.unwrap(), proto::volume_state::Phase::Ready)
    };
    let ready = proto::ReadyOutcome { state: Some(said("pvc-1")), ..Default::default() };
    two.say(proto::from_agent::Kind::Result(proto::DirectiveResult {
        operation_id: granted.operation_id.clone(),
        volume_id: "pvc-1".into(),
        epoch: granted.epoch,
        outcome: Some(proto::directive_result::Outcome::Ready(ready)),
    }))
    .await;
    // What its kernel holds is for it to say, and is heard; by then the result has been, too.
    two.say(proto::from_agent::Kind::Delta(said("pvc-2"))).await;
    let mut operator = world.operator().await;
    let elsewhere = |drift: &[proto::DriftInfo]| -> Vec<String> {
        let of_b =
            drift.iter().filter(|drift| drift.kind == "staging-elsewhere" && drift.node_id == "node-b");
        of_b.map(|drift| drift.volume_id.clone()).collect()
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let told = loop {
        let drift = operator.list_drift(proto::ListDriftRequest {}).await.unwrap().into_inner().drift;
        let told = elsewhere(&drift);
        if !told.is_empty() || tokio::time::Instant::now() > deadline {
            break told;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(told, ["pvc-2"]);
    assert_eq!(
        world.node("node-b").await.session,
        "connected",
        "a late result is no reason to end a session"
    );
}

#[tokio::test]
async fn a_certificate_at_the_wrong_door_is_refused_by_name() {
    let world = world().await;
    let node = made(&world).node("node-a");
    let mut operator = OperatorClient::new(dial(world.operators_at(), &node).await);
    let refused = operator.list_nodes(proto::ListNodesRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    for words in ["cleat://node/node-a", "--agent-listen", "cleat://operator/NAME"] {
        assert!(refused.message().contains(words), "{words} is not in {refused:?}");
    }
    let channel = dial(world.agents_at(), &made(&world).operator("alice")).await;
    let refused = Agent::dial(channel, &Host::new("alice", 1)).await.ended().await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    for words in ["cleat://operator/alice", "--operator-listen", "cleat://node/NAME"] {
        assert!(refused.message().contains(words), "{words} is not in {refused:?}");
    }
    // And neither service is at the other's door.
    let mut other = OperatorClient::new(dial(world.agents_at(), &node).await);
    let none = other.list_nodes(proto::ListNodesRequest {}).await.unwrap_err();
    assert_eq!(none.code(), Code::Unimplemented, "{none:?}");
}

#[tokio::test]
async fn a_name_counts_only_by_the_ca_of_its_kind() {
    let world = world().await;
    let made = made(&world);
    for (ca, names, words) in [
        (&made.operators, uri("cleat://node/node-a"), "--operator-client-ca"),
        (&made.agents, uri("https://node-a.test"), "has no URI"),
        (&made.agents, [uri("cleat://node/node-a"), uri("cleat://node/node-b")].concat(), "node-b"),
    ] {
        let channel = dial(world.agents_at(), &made.odd(ca, names)).await;
        let refused = Agent::dial(channel, &Host::new("node-a", 1)).await.ended().await;
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
        assert!(refused.message().contains(words), "{words} is not in {refused:?}");
    }
}

#[tokio::test]
async fn without_a_certificate_of_ours_nobody_is_served() {
    let world = world().await;
    let made = made(&world);
    let foreign = made.odd(&made.servers, uri("cleat://operator/alice"));
    for stranger in [made.stranger(), foreign, ClientTransport::Plaintext] {
        let address = world.operators_at().to_string();
        let endpoint = cleat_runtime::grpc::endpoint(&address, &stranger, Default::default()).unwrap();
        let Ok(channel) = endpoint.connect().await else { continue };
        assert!(OperatorClient::new(channel).list_nodes(proto::ListNodesRequest {}).await.is_err());
    }
    let (code, nodes, complaint) = cleatctl_of(&world, "alice", &["nodes"]).await;
    assert_eq!(code, 0, "{nodes}{complaint}");
}

#[tokio::test]
async fn a_session_ends_no_later_than_its_certificate() {
    let world = world().await;
    let made = made(&world);
    let pair = made.agents.sign(
        &made.folder,
        "short",
        uri("cleat://node/node-a"),
        // Certificates count whole seconds.
        Duration::from_secs(4),
    );
    let transport = made.options(Some(pair)).load().unwrap();
    let agent = Agent::dial(dial(world.agents_at(), &transport).await, &Host::new("node-a", 1)).await;
    let ended = agent.up().await.ended().await;
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    assert!(ended.message().contains("cleat://node/node-a"), "{ended:?}");
    eventually("silent", async || world.node("node-a").await.session == "silent").await;
    // Neither anew, nor by what is left of the old session.
    let endpoint =
        cleat_runtime::grpc::endpoint(&world.agents_at().to_string(), &transport, Default::default());
    if let Ok(channel) = endpoint.unwrap().connect().await {
        let refused = Agent::dial(channel, &Host::new("node-a", 1)).await.ended().await;
        assert_ne!(refused.code(), Code::Ok);
    }
    assert_eq!(world.node("node-a").await.session, "silent");
}

/// What docs/operating.md says about openssl is what is run here.
#[tokio::test]
async fn certificates_made_as_the_documentation_says_are_accepted() {
    let docs = include_str!("../../../docs/operating.md");
    let (_, rest) = docs.split_once("ca() {").expect("the example");
    let (example, _) = rest.split_once("\n```").expect("its end");
    let script = format!("set -e\nca() {{{example}").replace("controller.example.org", SERVER);
    let dir = tempfile::tempdir().unwrap();
    let made = tokio::process::Command::new("bash").args(["-c", &script]).current_dir(dir.path()).output();
    let made = made.await.expect("bash and openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let path = |name: &str| Some(dir.path().join(name));
    let server = ServerTlsArgs {
        tls_cert: path("controller.pem"),
        tls_key: path("controller.key"),
        agent_client_ca: path("agent-ca.pem"),
        operator_client_ca: path("operator-ca.pem"),
        ..Default::default()
    };
    let client = |name: &str| ClientTlsArgs {
        tls_ca: path("server-ca.pem"),
        tls_cert: path(&format!("{name}.pem")),
        tls_key: path(&format!("{name}.key")),
        tls_server_name: Some(SERVER.into()),
        plaintext: false,
    };
    let mut world = World::new();
    world.server = Some(server);
    world.start().await;
    let channel = dial(world.agents_at(), &client("worker-1").load().unwrap()).await;
    let _agent = Agent::dial(channel, &Host::new("worker-1", 1)).await.up().await;
    let mut operator =
        OperatorClient::new(dial(world.operators_at(), &client("alice").load().unwrap()).await);
    let nodes = operator.list_nodes(proto::ListNodesRequest {}).await.unwrap().into_inner().nodes;
    assert_eq!(nodes[0].node_id, "worker-1");
}

/// Renews as the kubelet does: new files in a new folder, and a symlink that is swapped.
fn swap(folder: &Path, new: &Path) {
    let fresh = folder.join("..fresh");
    std::os::unix::fs::symlink(new, &fresh).unwrap();
    std::fs::rename(fresh, folder.join("..data")).unwrap();
}

#[tokio::test]
async fn certificates_replaced_by_a_symlink_swap_are_used_and_the_old_end() {
    let dir = tempfile::tempdir().unwrap();
    let made = Certificates::make(dir.path());
    let mount = dir.path().join("mount");
    let renewed = |name: &str, valid: Duration| {
        let folder = mount.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let server = vec![rcgen::SanType::DnsName(SERVER.try_into().unwrap())];
        made.servers.sign(&folder, "controller", server, valid);
        made.agents.sign(&folder, "node-a", uri("cleat://node/node-a"), valid);
        swap(&mount, &folder);
    };
    let short = Duration::from_secs(10);
    renewed("1", short);
    let path = |name: &str| Some(mount.join("..data").join(name));
    let mut world = World::new();
    world.server = Some(ServerTlsArgs {
        tls_cert: path("controller.pem"),
        tls_key: path("controller.key"),
        ..made.server()
    });
    world.start().await;
    let options =
        ClientTlsArgs { tls_cert: path("node-a.pem"), tls_key: path("node-a.key"), ..made.options(None) };
    let renewing = Renewing::new(&world.agents_at().to_string(), &options, Default::default()).unwrap();
    let old = options.load().unwrap();
    let host = Host::new("node-a", 1);
    let first = Agent::dial(renewing.open_channel().await.unwrap(), &host).await.up().await;
    let doctor = OperatorClient::new(dial(world.operators_at(), &made.operator("alice")).await)
        .list_drift(proto::ListDriftRequest {})
        .await
        .unwrap()
        .into_inner()
        .drift;
    let told = |words: &str| doctor.iter().any(|drift| drift.message.contains(words));
    assert!(told("--tls-cert") && told("node node-a"), "{doctor:?}");

    renewed("2", Duration::from_secs(30 * 86_400));
    let ended = first.ended().await;
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended:?}");
    let again = Agent::dial(renewing.open_channel().await.unwrap(), &host).await.up().await;
    // What has expired is nobody's any more.
    let endpoint = cleat_runtime::grpc::endpoint(&world.agents_at().to_string(), &old, Default::default());
    if let Ok(channel) = endpoint.unwrap().connect().await {
        let refused = Agent::dial(channel, &host).await.ended().await;
        assert_ne!(refused.code(), Code::Ok, "{refused:?}");
    }
    assert!(again.welcome.borrow().is_some());
    let mut operator = OperatorClient::new(dial(world.operators_at(), &made.operator("alice")).await);
    let node =
        operator.get_node(proto::GetNodeRequest { node_id: "node-a".into() }).await.unwrap().into_inner();
    assert_eq!(node.session, "connected");
    let drift = operator.list_drift(proto::ListDriftRequest {}).await.unwrap().into_inner().drift;
    assert_eq!(drift, [], "renewed");
}
