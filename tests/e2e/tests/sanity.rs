//! `csi-sanity`, the CSI project's own conformance suite, against controller and agent as they ship: block volumes of an
//! RDS machine, attached on a real kernel.
//!
//! One RDS machine and one node are booted. The suite runs inside the node, because it makes the folders that the
//! kubelet makes; it reaches the agent by its socket and the controller through a relay on the management network.
//!
//! Boots machines, so it runs only with `CLEAT_MACHINES=1`, and says so when it does not. `CLEAT_CSI_SANITY` is the
//! program, which `hack/csi-sanity` builds (`hack/test` does both). `CLEAT_KERNEL` chooses the kernel (6.1 without it).
//! What fails because it is not built yet is listed in `tests/csi-sanity/not-built-yet`; a line there whose spec passes
//! or does not exist is an error.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cleat_e2e::world::{Node, World, WorldOptions};
use cleat_rig::{Command, Namespace, Network};
use serde::Deserialize;
use tokio::net::{TcpListener, UnixStream};

/// Where the kubelet would have the volumes.
const FOLDER: &str = "/var/lib/kubelet/plugins/kubernetes.io/csi/sanity";
const REPORT: &str = "/tmp/csi-sanity.json";
/// It took 14 s of a quiet machine; a spec that hangs is ended by the suite itself before this.
const LIMIT: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let say = |line: &str| drop(writeln!(std::io::stderr(), "sanity: {line}"));
    if std::env::args().any(|word| word == "--list") {
        let _ = writeln!(std::io::stdout(), "csi_sanity: test");
        return ExitCode::SUCCESS;
    }
    if std::env::var_os("CLEAT_MACHINES").is_none_or(|value| value != "1") {
        say("NOT RUN: it boots virtual machines; run it with CLEAT_MACHINES=1 (hack/test does)");
        return ExitCode::SUCCESS;
    }
    match check() {
        Ok(told) => {
            say(&told);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn check() -> anyhow::Result<String> {
    let program = std::env::var_os("CLEAT_CSI_SANITY").map(PathBuf::from);
    let program = program.context("CLEAT_CSI_SANITY is not set; build the program by hack/csi-sanity")?;
    let program = std::fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let listed = listed(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../csi-sanity/not-built-yet")))?;
    // Before any thread is started.
    let run = Namespace::enter("sanity")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let world = World::boot(&run, WorldOptions::from_env()?.nodes(1)).await?;
        let begun = Instant::now();
        let outcome = sanity(&world, program).await.and_then(|specs| judge(specs, listed));
        match outcome {
            Ok(told) => Ok(format!("{told} in {:.1} s", begun.elapsed().as_secs_f32())),
            Err(error) => {
                let logs = world.collect_logs("sanity").await;
                Err(error.context(format!("logs are in {}", logs.display())))
            }
        }
    })
}

/// One spec's outcome, as Ginkgo reports it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    #[serde(default)]
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
    #[serde(default)]
    failure: Option<Failure>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Vec<Spec>,
}

impl Spec {
    fn name(&self) -> String {
        let containers = self.container_hierarchy_texts.iter().flatten().map(String::as_str);
        containers.chain([self.leaf_node_text.as_str()]).collect::<Vec<_>>().join(" ")
    }
}

async fn sanity(world: &World, program: Vec<u8>) -> anyhow::Result<Vec<Spec>> {
    let node = world.a();
    let relay = TcpListener::bind((Network::Management.host_address(), 0)).await.context("the relay")?;
    let controller = relay.local_addr()?;
    let socket = world.controller.socket().to_owned();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = relay.accept().await {
            let socket = socket.clone();
            tokio::spawn(async move {
                let mut server = UnixStream::connect(socket).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    let machine = node.shared_machine();
    let command = Command::new("/tmp/csi-sanity")
        .args(["--csi.endpoint".to_owned(), format!("unix://{}", Node::CSI_SOCKET)])
        .args(["--csi.controllerendpoint".to_owned(), format!("dns:///{controller}")])
        .args([
            "--csi.mountdir",
            &format!("{FOLDER}/publish"),
            "--csi.stagingdir",
            &format!("{FOLDER}/staging"),
        ])
        .args(["--csi.testvolumeaccesstype", "block", "--csi.testvolumesize", "67108864"])
        .args(["--ginkgo.no-color", "--ginkgo.timeout", "9m", "--ginkgo.json-report", REPORT])
        .deadline(LIMIT);
    let (output, report) = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        machine.sh(&format!("mkdir -p {FOLDER}"))?;
        machine.upload("/tmp/csi-sanity", &program, 0o755)?;
        // Specs that fail make it end with 1: what counts is the report.
        let output = machine.exec(&command)?;
        let said = output.stdout_text() + &output.stderr_text();
        let report = machine.download(REPORT).with_context(|| format!("no report; it said: {said}"))?;
        Ok((said, report))
    })
    .await
    .context("csi-sanity's task")??;
    if std::env::var_os("CLEAT_SAID").is_some() {
        let _ = writeln!(std::io::stderr(), "{output}");
    }
    let suites: Vec<Suite> = serde_json::from_slice(&report).context("csi-sanity's report")?;
    let mut specs: Vec<Spec> = suites.into_iter().flat_map(|suite| suite.spec_reports).collect();
    specs.retain(|spec| spec.leaf_node_type == "It" || spec.state != "passed");
    Ok(specs)
}

/// The list of what is not built yet: name and reason.
fn listed(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, reason) = line.rsplit_once(": ").with_context(|| format!("no reason in {line:?}"))?;
            Ok((name.trim().to_owned(), reason.trim().to_owned()))
        })
        .collect()
}

fn judge(specs: Vec<Spec>, mut listed: BTreeMap<String, String>) -> anyhow::Result<String> {
    let (mut passed, mut skipped, mut known, mut wrong) = (0, 0, Vec::new(), Vec::new());
    for spec in specs {
        let name = spec.name();
        match spec.state.as_str() {
            "passed" => {
                passed += 1;
                if listed.remove(&name).is_some() {
                    wrong.push(format!("passes, but is listed as not built yet: {name}"));
                }
            }
            // What the plug-in does not claim to be able to do.
            "skipped" | "pending" => skipped += 1,
            state => match listed.remove(&name) {
                Some(reason) => known.push(format!("not built yet: {name}: {reason}")),
                None => {
                    let message = spec.failure.map(|failure| failure.message).unwrap_or_default();
                    // Go's whole value follows in braces: the words are before it.
                    let words: Vec<&str> =
                        message.lines().map(str::trim).take_while(|line| *line != "{").collect();
                    wrong.push(format!("{state}: {name}: {}", words.join(" ")));
                }
            },
        }
    }
    wrong.extend(
        listed.into_keys().map(|name| format!("listed as not built yet, but no spec failed: {name}")),
    );
    for line in &known {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
    if !wrong.is_empty() {
        bail!("{passed} specs passed, and {} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
    ensure!(passed > 20, "only {passed} specs ran: that is not the suite");
    Ok(format!("{passed} specs passed, {} not built yet, {skipped} skipped by the suite", known.len()))
}
