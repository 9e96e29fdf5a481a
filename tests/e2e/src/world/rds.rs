//! The RDS machine: rds-sim in it, its test control, and the judge of what its files hold.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use cleat_rig::{Command, Daemon, Machine, Network};
use rds_sim::control::{DiskReport, NewUuid, StateReport};
use rds_sim::faults::Fault;
use rds_sim::rds::Hold;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::certificates::Certificates;
use super::{Look, START, TargetView, Volume, WorldOptions, blocking, record_name, wait_for};
use crate::sequence::{Census, Report, RunFacts};

/// rds-sim's log in its machine.
pub(super) const LOG: &str = "/run/rds-sim.log";
/// The account that the controller uses.
pub(super) const USER: &str = "cleat";
/// Its password, which protects nothing.
pub(super) const PASSWORD: &str = "demo-only";
/// Whose the volumes are.
pub(super) const CLUSTER: &str = "machines";
/// Where volumes' files lie, as RouterOS says it.
pub(super) const BASE_PATH: &str = "storage-pool/cleat";
/// Where rds-sim keeps them in its machine.
const FILES: &str = "/data/rds";
const CONTROL_PORT: u16 = 8081;
/// An answer that waits until writes have landed comes late.
pub(super) const SLOW_ANSWER: Duration = Duration::from_secs(90);
/// Reading a volume back takes seconds under emulation, and a minute on a bad day.
const VERIFY: Duration = Duration::from_secs(120);

/// The RDS: its machine and the simulated control plane in it.
#[derive(Debug)]
pub struct Rds {
    machine: Arc<Machine>,
    pub(super) certificates: Certificates,
    view: Mutex<TargetView>,
    daemon: Mutex<Option<Daemon>>,
    pub(super) http: reqwest::Client,
}

impl Rds {
    pub(super) fn new(machine: Arc<Machine>, certificates: &Certificates, options: &WorldOptions) -> Self {
        Self {
            machine,
            certificates: certificates.clone(),
            view: Mutex::new(options.target.clone()),
            daemon: Mutex::new(None),
            http: reqwest::Client::new(),
        }
    }

    /// The machine, for commands and trouble.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(super) fn into_machine(self) -> anyhow::Result<Machine> {
        Arc::try_unwrap(self.machine).map_err(|_| anyhow::anyhow!("the RDS machine is still in use"))
    }

    /// The portals, `ADDRESS:PORT`.
    #[must_use]
    pub fn portals(&self) -> Vec<String> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).portal_names().collect()
    }

    /// The account for the REST API: name and password.
    #[must_use]
    pub fn account(&self) -> (&'static str, &'static str) {
        (USER, PASSWORD)
    }

    /// The CA of its certificate, PEM.
    #[must_use]
    pub fn ca(&self) -> &Path {
        &self.certificates.ca
    }

    /// The address of the REST API.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.machine.address(Network::Management))
    }

    /// Starts rds-sim over what its disk and its kernel hold, and waits until it serves.
    ///
    /// # Errors
    /// With the end of its log if it does not.
    pub async fn start(&self) -> anyhow::Result<()> {
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
        let (cert, key) = (read(&self.certificates.rds.cert)?, read(&self.certificates.rds.key)?);
        let (machine, command) = (Arc::clone(&self.machine), self.command());
        let daemon = blocking(move || {
            // The modules after the first two are for stores that hold writes.
            machine.sh(&format!("modprobe -a nvmet nvmet-tcp loop dm-mod dm-delay && mkdir -p {FILES}"))?;
            machine.upload("/etc/rds/cert.pem", &cert, 0o644)?;
            machine.upload("/etc/rds/key.pem", &key, 0o600)?;
            machine.upload("/etc/rds/password", PASSWORD.as_bytes(), 0o600)?;
            machine.daemon(&command, LOG)
        })
        .await?;
        *self.daemon.lock().unwrap_or_else(PoisonError::into_inner) = Some(daemon);
        let up = wait_for("rds-sim to serve", START, async || {
            self.state().await?;
            Ok(Look::Yes(()))
        })
        .await;
        match up {
            Ok(()) => Ok(()),
            Err(error) => Err(anyhow::Error::from(error).context(self.log_end().await)),
        }
    }

    fn command(&self) -> Command {
        let management = self.machine.address(Network::Management);
        let mut command = Command::new("rds-sim")
            .args(["--listen", &format!("{management}:443")])
            .args(["--control", &format!("{management}:{CONTROL_PORT}")])
            .args(["--files", FILES, "--user", USER, "--password-file", "/etc/rds/password"])
            .args(["--tls-cert", "/etc/rds/cert.pem", "--tls-key", "/etc/rds/key.pem"]);
        for portal in self.portals() {
            command = command.args(["--portal".to_owned(), portal]);
        }
        let arguments = self.view.lock().unwrap_or_else(PoisonError::into_inner).rds_args.clone();
        if !arguments.iter().any(|word| word == "--acl") {
            // Hosts are let in one by one, and an empty list lets nobody in: as far as RouterOS may go.
            command = command.args(["--acl", "list", "--acl-empty-denies"]);
        }
        command.args(arguments)
    }

    async fn log_end(&self) -> String {
        let machine = Arc::clone(&self.machine);
        let tail = blocking(move || machine.sh(&format!("tail -n 5 {LOG}"))).await;
        format!("rds-sim said last: {}", tail.unwrap_or_else(|error| format!("{error:#}")))
    }

    /// Kills rds-sim at once. Exports and sessions stay: they are the kernel's.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn kill(&self) -> anyhow::Result<()> {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).take();
        let daemon = daemon.context("rds-sim was not started")?;
        blocking(move || {
            daemon.kill(9)?;
            daemon.wait(Duration::from_secs(10)).map(drop)
        })
        .await
    }

    /// Kills rds-sim and starts it again as another kind of device. It should have no disks.
    ///
    /// # Errors
    /// As [`Rds::kill`] and [`Rds::start`].
    pub async fn view(&self, view: &TargetView) -> anyhow::Result<()> {
        self.kill().await?;
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = view.clone();
        self.start().await
    }

    // ---- the test control ----

    /// What rds-sim has recorded, and what its kernel's target really does.
    ///
    /// # Errors
    /// If rds-sim does not answer.
    pub async fn state(&self) -> anyhow::Result<StateReport> {
        let url = self.control("state");
        let answer = self.http.get(&url).timeout(Duration::from_secs(10)).send().await;
        let answer =
            answer.and_then(reqwest::Response::error_for_status).context("ask rds-sim for its state")?;
        answer.json().await.context("understand rds-sim's state")
    }

    /// The disk of a volume, as recorded and as the kernel has it.
    ///
    /// # Errors
    /// If rds-sim does not answer, or has no such disk.
    pub async fn disk(&self, volume_id: &str) -> anyhow::Result<DiskReport> {
        let state = self.state().await?;
        let names: Vec<String> = state.disks.iter().map(|disk| disk.slot.clone()).collect();
        let found =
            state.disks.into_iter().find(|disk| disk.slot == volume_id || disk.nqn.ends_with(volume_id));
        found.with_context(|| format!("the RDS has no disk for {volume_id}; it has {}", names.join(", ")))
    }

    /// The host NQNs that the kernel's target lets connect to a volume.
    ///
    /// # Errors
    /// As [`Rds::disk`]; also if any host may connect.
    pub async fn allowed_hosts(&self, volume_id: &str) -> anyhow::Result<Vec<String>> {
        let subsystem = self.disk(volume_id).await?.subsystem;
        match subsystem {
            Some(subsystem) if subsystem.any_host => bail!("any host may connect to {volume_id}"),
            Some(subsystem) => {
                // The controller keeps a host NQN that nobody has on every list.
                let nobody = |host: &String| host.starts_with("nqn.2026-01.io.cleat:nobody.");
                Ok(subsystem.hosts.into_iter().filter(|host| !nobody(host)).collect())
            }
            None => Ok(Vec::new()),
        }
    }

    /// Makes the next requests to the REST API go wrong.
    ///
    /// # Errors
    /// If rds-sim does not answer.
    pub async fn add_fault(&self, fault: &Fault) -> anyhow::Result<()> {
        self.post("faults", fault).await
    }

    /// Takes all faults back.
    ///
    /// # Errors
    /// If rds-sim does not answer.
    pub async fn clear_faults(&self) -> anyhow::Result<()> {
        let answer = self.http.delete(self.control("faults")).timeout(Duration::from_secs(10)).send().await;
        answer.and_then(reqwest::Response::error_for_status).context("clear rds-sim's faults").map(drop)
    }

    /// Holds portals down: of one disk or all, one portal or all.
    ///
    /// # Errors
    /// If rds-sim or its kernel refuses.
    pub async fn portals_down(&self, hold: &Hold) -> anyhow::Result<()> {
        self.post("portals/down", hold).await
    }

    /// Lets portals go that were held down.
    ///
    /// # Errors
    /// If rds-sim or its kernel refuses.
    pub async fn portals_up(&self, hold: &Hold) -> anyhow::Result<()> {
        self.post("portals/up", hold).await
    }

    /// Gives a disk's namespace another UUID, or its own again: an identity that is not the expected one.
    ///
    /// # Errors
    /// If rds-sim or its kernel refuses.
    pub async fn set_uuid(&self, new: &NewUuid) -> anyhow::Result<()> {
        self.post("uuid", new).await
    }

    pub(super) async fn post(&self, path: &str, body: &impl Serialize) -> anyhow::Result<()> {
        let request = self.http.post(self.control(path)).timeout(SLOW_ANSWER).json(body);
        let answer = request.send().await.with_context(|| format!("ask rds-sim for {path}"))?;
        if !answer.status().is_success() {
            let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
            bail!("rds-sim refuses {path}: {status} {text}");
        }
        Ok(())
    }

    pub(super) fn control(&self, path: &str) -> String {
        format!("http://{}:{CONTROL_PORT}/{path}", self.machine.address(Network::Management))
    }

    // ---- what the files hold ----

    /// See [`super::World::verify`]; with regions of another size.
    ///
    /// # Errors
    /// If the file cannot be read or the runs make no sense.
    pub async fn verify(
        &self,
        volume: &Volume,
        runs: &[RunFacts],
        region_bytes: u64,
    ) -> anyhow::Result<Report> {
        let disk = self.disk(&volume.id).await?;
        let file = disk.file;
        let mut command = Command::new("cleat-writer")
            .args([
                "verify",
                "--file",
                &file.to_string_lossy(),
                "--volume",
                record_name(&volume.id)?.as_str(),
            ])
            .args(["--region-bytes", &region_bytes.to_string()])
            .deadline(VERIFY);
        for run in runs {
            command = command.args(["--run".to_owned(), serde_json::to_string(run)?]);
        }
        self.asked(command).await
    }

    /// What a volume's backing file holds at this moment, run by run.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub async fn census(&self, file: &Path) -> anyhow::Result<Census> {
        let words = ["census", "--file", &file.to_string_lossy()];
        self.asked(Command::new("cleat-writer").args(words).deadline(VERIFY)).await
    }

    /// Runs something in the machine that prints one JSON object.
    async fn asked<T: DeserializeOwned>(&self, command: Command) -> anyhow::Result<T> {
        let (machine, label) = (Arc::clone(&self.machine), command.to_string());
        let output = blocking(move || machine.exec(&command)).await?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!("{label} on the RDS machine: {}: {}", output.exit, output.stderr_text().trim())
        })
    }

    /// Runs a shell script in the machine that must succeed; what it printed.
    ///
    /// # Errors
    /// If it fails.
    pub async fn sh(&self, script: &str) -> anyhow::Result<String> {
        let (machine, script) = (Arc::clone(&self.machine), script.to_owned());
        blocking(move || machine.sh(&script)).await
    }
}
