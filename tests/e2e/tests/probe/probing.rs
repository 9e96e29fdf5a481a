//! Running the probe in the node's machine: its options, its end, its file, and that nothing is left.
//!
//! In: further options. Out: a [`Probe`] that runs, then a [`Probed`]. What always holds: the command is the one that
//! docs/operating.md shows, `cleatctl rds probe`.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cleat_e2e::world::{Look, TargetView, World, blocking, wait_for};
use cleat_rig::{Command, Daemon};
use rds_sim::control::DiskReport;
use serde_json::Value;

/// Where the probe writes.
const FILE: &str = "/run/abilities.json";
const LOG: &str = "/run/probe.log";
/// A probe of a target that answers everything slowly.
pub(crate) const END: Duration = Duration::from_secs(330);
/// Until the scratch disk is there.
const MADE: Duration = Duration::from_secs(60);
/// How the scratch disk's name begins.
const SCRATCH: &str = "cleat-probe-";
/// After the probe has ended nothing should be left; the kernel may still be at it for a moment.
const TIDY: Duration = Duration::from_secs(20);

/// A probe that runs.
pub(crate) struct Probe<'w> {
    world: &'w World,
    daemon: Daemon,
}

/// A probe that has ended.
pub(crate) struct Probed {
    /// What it wrote.
    pub(crate) file: Option<Value>,
    /// What it said.
    pub(crate) said: String,
    /// How it ended.
    pub(crate) exit: String,
}

/// Starts rds-sim with these answers.
pub(crate) async fn play(world: &World, answers: &[&str]) -> anyhow::Result<()> {
    let rds_args = answers.iter().map(|word| (*word).to_owned()).collect();
    world.rds.view(&TargetView { rds_args, ..TargetView::default() }).await
}

impl<'w> Probe<'w> {
    /// Starts rds-sim with these answers, and the probe with these options.
    pub(crate) async fn start(world: &'w World, rds: &[&str], options: &[&str]) -> anyhow::Result<Self> {
        world.rds.pretend_nothing().await?;
        play(world, rds).await?;
        Self::again(world, options).await
    }

    /// As [`Probe::start`], against rds-sim as it runs.
    pub(crate) async fn again(world: &'w World, options: &[&str]) -> anyhow::Result<Self> {
        let (user, password) = world.rds.account();
        let ca = std::fs::read(world.rds.ca()).context("read the CA")?;
        let mut command = Command::new("cleatctl")
            .args(["rds", "probe", "--rds", &world.rds.url(), "--user", user])
            .args(["--password-file", "/etc/rds-password", "--ca", "/etc/rds-ca.pem"])
            .args(["--files", "storage-pool/probe", "--out", FILE])
            .args(options.iter().copied());
        for portal in world.rds.portals() {
            command = command.args(["--portal".to_owned(), portal]);
        }
        let machine = world.a().shared_machine();
        let daemon = blocking(move || {
            machine.sh(&format!("rm -f {FILE} {LOG}"))?;
            machine.upload("/etc/rds-password", password.as_bytes(), 0o600)?;
            machine.upload("/etc/rds-ca.pem", &ca, 0o644)?;
            machine.daemon(&command, LOG)
        })
        .await?;
        Ok(Self { world, daemon })
    }

    /// Waits until the scratch disk is there.
    pub(crate) async fn scratch(&self) -> anyhow::Result<DiskReport> {
        let what = "the scratch disk";
        let found = wait_for(what, MADE, async || {
            let disks = self.world.rds.state().await?.disks;
            let found = disks.into_iter().find(|disk| disk.slot.starts_with(SCRATCH));
            Ok(Look::some(found, "none"))
        })
        .await;
        match found {
            Ok(found) => Ok(found),
            Err(error) => bail!("{error}; the probe said: {}", self.said().await?),
        }
    }

    /// Waits until the probe has said this.
    pub(crate) async fn wait_said(&self, words: &str) -> anyhow::Result<()> {
        wait_for(format!("the probe to say {words:?}"), END, async || {
            let said = self.said().await?;
            Ok(Look::holds(said.contains(words), said.lines().last().unwrap_or_default().to_owned()))
        })
        .await
        .map_err(Into::into)
    }

    async fn said(&self) -> anyhow::Result<String> {
        let daemon = self.daemon.clone();
        blocking(move || daemon.log()).await
    }

    /// Sends it a signal.
    pub(crate) async fn signal(&self, number: i32) -> anyhow::Result<()> {
        let daemon = self.daemon.clone();
        blocking(move || daemon.kill(number)).await
    }

    /// Waits for its end.
    pub(crate) async fn ended(self) -> anyhow::Result<Probed> {
        let daemon = self.daemon.clone();
        let exit = blocking(move || daemon.wait(END)).await;
        let said = self.said().await?;
        let exit = exit.with_context(|| format!("it said: {said}"))?.to_string();
        if std::env::var_os("CLEAT_SAID").is_some() {
            let _ = writeln!(std::io::stderr(), "\n{said}");
        }
        let machine = self.world.a().shared_machine();
        let file = blocking(move || machine.sh(&format!("cat {FILE} 2>/dev/null || true"))).await?;
        let file = if file.trim().is_empty() { None } else { Some(serde_json::from_str(&file)?) };
        Ok(Probed { file, said, exit })
    }
}

impl Probed {
    /// That it ended well and found exactly this; whatever is measured only has to be there.
    pub(crate) fn found(&self, expected: &Value) -> anyhow::Result<()> {
        let mut found = self.file.clone().with_context(|| format!("no file; it said: {}", self.said))?;
        ensure!(self.exit == "exit code 0", "{}: {}", self.exit, self.said);
        let fields = found.as_object_mut().context("an object")?;
        for name in ["rds", "probed_at"] {
            let text = fields.remove(name).unwrap_or_default();
            ensure!(text.as_str().is_some_and(|text| !text.is_empty()), "{name}: {text}");
        }
        let cut = fields.remove("export_cut_ms").unwrap_or_default();
        let cuts = fields.get("export_cuts").and_then(Value::as_bool).unwrap_or_default();
        ensure!(cut.is_u64() == cuts, "export_cut_ms: {cut}, export_cuts: {cuts}");
        ensure!(found == *expected, "found {found}\nexpected {expected}\nit said: {}", self.said);
        Ok(())
    }
}

/// That nothing of any probe is left on either machine.
pub(crate) async fn nothing_is_left(world: &World) -> anyhow::Result<()> {
    wait_for("the machines to be as they were", TIDY, async || {
        let mut left = Vec::new();
        let disks = world.rds.state().await?.disks;
        left.extend(disks.iter().filter(|disk| disk.slot.starts_with(SCRATCH)).map(|disk| disk.slot.clone()));
        let files = world.rds.sh(&format!("find /data/rds -name '{SCRATCH}*'")).await?;
        left.extend(files.lines().map(str::to_owned));
        for (name, nqn, ..) in world.a().nvme_controllers().await? {
            if nqn.contains(SCRATCH) {
                left.push(format!("{name} to {nqn}"));
            }
        }
        Ok(Look::holds(left.is_empty(), left.join("; ")))
    })
    .await
    .map_err(Into::into)
}
