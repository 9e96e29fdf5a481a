//! Strangers who hold connections open and say nothing, and a process with few descriptors.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use cleat_proto::cleat::v1 as proto;
use proto::operator_client::OperatorClient;
use rds_sim::AclMode;
use rds_sim::testing::start_with;
use tokio::net::{TcpSocket, TcpStream};

use crate::agent::{Agent, Host};
use crate::certificates::Certificates;
use crate::process::{Process, arguments};
use crate::world::{Csi, dial, eventually, probe};

const DESCRIPTORS: u32 = 100;
const STRANGERS: usize = 200;

/// Connects from another address than everybody else here, and says nothing.
async fn mute(to: SocketAddr) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
    // The kernel's queue may be full: it is a crowd.
    tokio::time::timeout(Duration::from_secs(1), socket.connect(to)).await.ok()?.ok()
}

#[tokio::test]
async fn mute_strangers_keep_nobody_from_being_served() {
    let sim = start_with(|options| options.acl = AclMode::List).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("password"), &sim.password).unwrap();
    let made = Certificates::make(dir.path());
    let server = made.server();
    let file = |path: &Option<std::path::PathBuf>| path.as_ref().unwrap().display().to_string();
    let log = dir.path().join("log");
    let mut command = Command::new("bash");
    command
        .args(["-c", &format!("ulimit -n {DESCRIPTORS}; exec \"$0\" \"$@\"")])
        .arg(env!("CARGO_BIN_EXE_cleat-controller"))
        .args(arguments(dir.path()))
        .args(["--tls-cert", &file(&server.tls_cert), "--tls-key", &file(&server.tls_key)])
        .args(["--agent-client-ca", &file(&server.agent_client_ca)])
        .args(["--operator-client-ca", &file(&server.operator_client_ca)])
        .args([format!("--rds-url={}", sim.url), format!("--rds-fingerprint={}", sim.fingerprint)])
        .arg(format!("--rds-user={}", sim.user))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap());
    let process = Process { child: command.spawn().unwrap(), log };
    eventually("serving", async || process.said().contains("serving ")).await;
    let socket = dir.path().join("csi.sock");
    eventually("ready", async || probe(&socket).await).await;
    let [agents, operators]: [SocketAddr; 2] =
        ["agents", "operators"].map(|name| process.field(name).parse().unwrap());

    let crowd: Vec<_> =
        (0..STRANGERS).flat_map(|_| [agents, operators]).map(|to| tokio::spawn(mute(to))).collect();
    let mut held = Vec::new();
    for stranger in crowd {
        held.extend(stranger.await.unwrap());
    }
    assert!(held.len() > 100, "there is no crowd: {}", held.len());

    // A request to the RDS over a new connection to the CSI socket, an operator, an agent: all while they stand there.
    Csi::dial(&socket).await.create("vm-1").await.unwrap();
    let mut operator = OperatorClient::new(dial(operators, &made.operator("alice")).await);
    operator.list_nodes(proto::ListNodesRequest {}).await.unwrap();
    let channel = dial(agents, &made.node("node-a")).await;
    let _agent = Agent::dial(channel, &Host::new("node-a", 1)).await.up().await;
    let said = process.said();
    assert!(said.contains("connection closed: too many are open from this address"), "{said}");
    assert!(!said.contains("Too many open files"), "{said}");
    drop(held);
}
