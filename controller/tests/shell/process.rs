//! The binary itself: exit codes, signals, and a store that outlives `kill -9`; against the simulated RDS, over TLS.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cleat_rds::NOBODY as NOBODY_HOST;
use cleat_runtime::grpc::{Keepalive, endpoint};
use cleat_runtime::tls::ClientTransport;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rds_sim::AclMode;
use rds_sim::faults::{Action, Fault};
use rds_sim::testing::{Sim, start_with};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use crate::agent::{Agent, Host, OnAttach};
use crate::world::{Csi, RWO, RWX, eventually, probe};

/// A controller in a process of its own. Ended with the test, whatever happens.
pub struct Process {
    pub child: Child,
    pub log: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What every controller here is told, but for TLS.
pub fn arguments(dir: &Path) -> Vec<String> {
    let path = |name: &str| dir.join(name).display().to_string();
    let words = [
        ["--csi-socket", &path("csi.sock")],
        ["--agent-listen", "127.0.0.1:0"],
        ["--operator-listen", "127.0.0.1:0"],
        ["--store", &format!("file:{}", path("records"))],
        ["--rds-password-file", &path("password")],
        ["--rds-files", "/pool/cleat"],
        ["--host-acl", "list"],
        ["--cluster-id", "one"],
        ["--rds-portal", "10.77.1.1:4420"],
        ["--rds-portal", "10.77.2.1:4420"],
    ];
    words.as_flattened().iter().map(ToString::to_string).collect()
}

fn command(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cleat-controller"));
    command
        .args(arguments(dir))
        .arg("--plaintext")
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// An RDS that nobody answers for: nothing listens on the port of discard.
const NOBODY: [&str; 4] = [
    "--rds-url=https://127.0.0.1:9",
    "--rds-fingerprint=0000000000000000000000000000000000000000000000000000000000000000",
    "--heartbeat-interval=200ms",
    "--drain-bound=500ms",
];

/// Starts it, and waits until it serves.
async fn started(dir: &Path, more: &[&str]) -> Process {
    let log = dir.join("log");
    let file = std::fs::File::create(&log).unwrap();
    let process = Process { child: command(dir, more).stderr(file).spawn().unwrap(), log };
    eventually("serving", async || process.said().contains("serving ")).await;
    process
}

impl Process {
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// What the log says of a field.
    pub fn field(&self, name: &str) -> String {
        let said = self.said();
        let (_, rest) = said.split_once(&format!(" {name}=")).expect("the field in the log");
        rest.split_whitespace().next().unwrap().trim_matches('"').to_owned()
    }

    fn term(&self) -> u64 {
        self.field("term").parse().unwrap()
    }

    async fn agent(&self, host: &std::sync::Arc<Host>) -> Agent {
        let address: SocketAddr = self.field("agents").parse().unwrap();
        let endpoint = endpoint(&address.to_string(), &ClientTransport::Plaintext, Keepalive::default());
        Agent::dial(endpoint.unwrap().connect().await.unwrap(), host).await.up().await
    }

    async fn exit(mut self, signal: Signal) -> (ExitStatus, String) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, self.said());
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[test]
fn a_wrong_option_exits_64_by_name_and_value_before_anything_is_bound() {
    for (words, says) in [
        (&["--silence-deadline", "300ms"][..], "--silence-deadline 300ms"),
        (&["--rds-portal", "0.0.0.0:4420"], "'0.0.0.0:4420' for '--rds-portal"),
        (&["--drain-bound", "soon"], "--drain-bound"),
        (&["--nqn-prefix", "iqn.x:"], "iqn.x:"),
        (&[], "password"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        if !words.is_empty() {
            std::fs::write(dir.path().join("password"), "secret").unwrap();
        }
        // An option that is given twice counts by its last.
        let given: Vec<&str> = NOBODY[..3].iter().chain(words).copied().collect();
        let output = command(dir.path(), &given).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{words:?}: {said}");
        assert!(said.contains(says), "{said} should say {says}");
        assert!(!dir.path().join("csi.sock").exists());
    }
}

#[tokio::test]
async fn sigterm_ends_it_cleanly_and_a_killed_one_is_followed_by_a_higher_term() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("password"), "secret").unwrap();
    let first = started(dir.path(), &NOBODY).await;
    assert!(!probe(&dir.path().join("csi.sock")).await, "the RDS was not reached");
    let before = first.term();
    assert_eq!(first.exit(Signal::SIGKILL).await.0.signal(), Some(9));

    let second = started(dir.path(), &NOBODY).await;
    assert!(second.term() > before, "{}", second.said());
    let twice = command(dir.path(), &NOBODY).output().unwrap();
    assert_eq!(twice.status.code(), Some(1), "a second one on the same store");
    assert!(String::from_utf8_lossy(&twice.stderr).contains("records"));

    let began = Instant::now();
    let (status, said) = second.exit(Signal::SIGTERM).await;
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!dir.path().join("csi.sock").exists());
}

/// What an address answers to a GET of that path over plain HTTP.
async fn got(address: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn with_the_rds_away_at_the_start_agents_are_served_and_csi_waits() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("password"), "secret").unwrap();
    let words = [&NOBODY[..], &["--metrics-listen=127.0.0.1:0"]].concat();
    let process = started(dir.path(), &words).await;
    let agent = process.agent(&Host::new("node-a", 1)).await;
    let address: SocketAddr = process.field("addr").parse().unwrap();
    let ready = async || got(address, "/readyz").await.starts_with("HTTP/1.1 200");
    eventually("ready for agents and operators", ready).await;
    let asked = async || process.said().matches("RDS not reached yet").count() > 1;
    eventually("the RDS was asked again", asked).await;
    assert!(!probe(&dir.path().join("csi.sock")).await, "sidecars wait");
    assert!(agent.stands() && ready().await, "{}", process.said());
}

/// The hosts that the target itself lets in to its only volume.
fn admitted(sim: &Sim) -> Vec<String> {
    let state = sim.state().unwrap();
    let disk = state.disks.first().expect("a disk");
    let subsystem = disk.subsystem.as_ref().filter(|_| !disk.linked.is_empty());
    // One is on every list from the volume's making on, and no host has it.
    let hosts = |hosts: &std::collections::BTreeSet<String>| {
        assert!(hosts.iter().any(|host| host.starts_with(&format!("{NOBODY_HOST}vm-1."))), "{hosts:?}");
        hosts.iter().filter(|host| !host.starts_with(NOBODY_HOST)).cloned().collect()
    };
    subsystem.map(|subsystem| hosts(&subsystem.hosts)).unwrap_or_default()
}

/// The controller's words for a simulated RDS.
fn words_for(sim: &Sim, dir: &Path) -> Vec<String> {
    std::fs::write(dir.join("password"), &sim.password).unwrap();
    vec![
        format!("--rds-url={}", sim.url),
        format!("--rds-fingerprint={}", sim.fingerprint),
        format!("--rds-user={}", sim.user),
        "--heartbeat-interval=200ms".to_owned(),
        "--drain-bound=500ms".to_owned(),
    ]
}

#[tokio::test]
async fn a_detach_is_not_over_while_the_list_of_disks_lacks_the_volume() {
    let sim = start_with(|options| options.acl = AclMode::List).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let words = words_for(&sim, dir.path());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let process = started(dir.path(), &words).await;
    let socket = dir.path().join("csi.sock");
    eventually("ready", async || probe(&socket).await).await;
    let a = Host::new("node-a", 1);
    let _one = process.agent(&a).await;
    let csi = Csi::dial(&socket).await;
    csi.create("vm-1").await.unwrap();
    let empty = Action::Fail { status: 200, body: serde_json::json!([]) };
    for lies in [empty, Action::Lack { slot: "vm-1".into() }] {
        csi.publish("vm-1", "node-a", RWX).await.unwrap();
        // The disk itself is shown to whoever asks for it by its number.
        sim.fault(Fault::all(Action::Slow { delay_ms: 0 }).only("GET", "/rest/disk/"));
        sim.fault(Fault::all(lies.clone()).only("GET", "/rest/disk"));
        let unproven = csi.unpublish("vm-1", "node-a").await.unwrap_err();
        assert_eq!(unproven.code(), Code::Unavailable, "{lies:?}: {unproven:?}");
        assert_eq!(admitted(&sim), [a.nqn()], "{lies:?}");
        sim.faults.clear();
        eventually("detached", async || csi.unpublish("vm-1", "node-a").await.is_ok()).await;
        assert!(admitted(&sim).is_empty(), "{lies:?}");
    }
}

#[tokio::test]
async fn killed_in_mid_handoff_the_next_process_completes_it_on_the_rds() {
    let sim = start_with(|options| options.acl = AclMode::List).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let words = words_for(&sim, dir.path());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let socket = dir.path().join("csi.sock");
    let process = started(dir.path(), &words).await;
    eventually("ready", async || probe(&socket).await).await;
    let (a, b) = (Host::new("node-a", 1), Host::new("node-b", 2));
    let one = process.agent(&a).await;
    let two = process.agent(&b).await;
    let csi = Csi::dial(&socket).await;
    let absent = csi.publish("vm-1", "node-a", RWX).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound, "{absent:?}");
    csi.create("vm-1").await.unwrap();
    assert!(admitted(&sim).is_empty(), "nobody yet");
    csi.publish("vm-1", "node-a", RWX).await.unwrap();
    assert_eq!(admitted(&sim), [a.nqn()]);
    *b.on_attach.lock().unwrap() = OnAttach::Hold;
    let waiting = tokio::spawn(async move { csi.publish("vm-1", "node-b", RWX).await });
    let told = two.told_to_attach("vm-1").await;
    assert_eq!(admitted(&sim).len(), 2);
    process.exit(Signal::SIGKILL).await;
    assert!(waiting.await.unwrap().is_err());
    drop((one.ended().await, two.ended().await));

    let process = started(dir.path(), &words).await;
    eventually("ready", async || probe(&socket).await).await;
    *b.on_attach.lock().unwrap() = OnAttach::Ready;
    let (_one, _two) = (process.agent(&a).await, process.agent(&b).await);
    let csi = Csi::dial(&socket).await;
    let epoch = csi.publish("vm-1", "node-b", RWX).await.unwrap();
    let granted = told.epoch.unwrap();
    assert_eq!(epoch, format!("{}.{}", granted.term, granted.seq));
    let other = csi.publish("vm-1", "node-b", RWO).await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists, "{other:?}");
    csi.unpublish("vm-1", "node-a").await.unwrap();
    assert_eq!(admitted(&sim), [b.nqn()]);
    csi.unpublish("vm-1", "").await.unwrap();
    assert!(admitted(&sim).is_empty());
    csi.delete("vm-1").await.unwrap();
    assert!(sim.state().unwrap().disks.is_empty());
    assert_eq!(process.exit(Signal::SIGTERM).await.0.code(), Some(0));
}
