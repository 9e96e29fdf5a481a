//! A live migration in the order in which libvirt has QEMU do it.
//!
//! In: the monitors of both ends. Out: how it ended, with the times. What always holds: the target node's guest is let run only
//! after the source's QEMU has said `completed`, which it says with its guest halted; a source that did not complete is left
//! as QEMU leaves it, which is running.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::qmp::{Qmp, QmpEvent};

/// From one look at a status that QEMU sends no event for to the next.
const LOOK: Duration = Duration::from_millis(10);
/// What follows the source's end takes no longer than its own I/O.
const SOON: Duration = Duration::from_secs(60);
const OVER: [&str; 3] = ["completed", "failed", "cancelled"];

/// How a migration is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrateSettings {
    /// The longest pause that QEMU may plan for. A guest that writes all the time never gets below a few milliseconds
    /// over a slow network: with too little of both it never ends.
    pub downtime_limit: Duration,
    /// Bytes a second; none: as fast as it goes.
    pub bandwidth: Option<u64>,
    /// Halt before the switchover and go on at once, as a controller that prepares disks would have it.
    pub pause_before_switchover: bool,
    /// That it takes longer is an error.
    pub limit: Duration,
}

impl Default for MigrateSettings {
    /// QEMU's and libvirt's own: a pause of 300 ms, no limit of bandwidth.
    fn default() -> Self {
        Self {
            downtime_limit: Duration::from_millis(300),
            bandwidth: None,
            pause_before_switchover: false,
            limit: Duration::from_secs(120),
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigrateEnd {
    /// The guest runs on the target node.
    Completed,
    /// It goes on at the source, for this reason.
    Failed(String),
    /// It goes on at the source, as somebody wished.
    Cancelled,
}

/// What came of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// How it ended.
    pub end: MigrateEnd,
    /// When it was asked for.
    pub began: Instant,
    /// When the source's guest was halted, if it was.
    pub stopped: Option<Instant>,
    /// When the target node's guest went on, if it did.
    pub resumed: Option<Instant>,
    /// The pause as QEMU counts it, without what comes after its own end.
    pub downtime: Option<Duration>,
}

impl Migrated {
    /// From the one's halt to the other's go.
    #[must_use]
    pub fn pause(&self) -> Option<Duration> {
        Some(self.resumed?.saturating_duration_since(self.stopped?))
    }
}

/// Migrates the guest of `source` to `target`, which waits for one; the stream goes to `listen`, an address of the target
/// node. Blocks until it is over.
///
/// # Errors
/// If a QEMU refuses a step or says nothing more. That the migration failed is no error: see [`MigrateEnd`].
pub fn migrate(
    source: &Qmp,
    target: &Qmp,
    listen: SocketAddr,
    settings: &MigrateSettings,
) -> anyhow::Result<Migrated> {
    migrate_with(source, target, listen, settings, || Ok(()))
}

/// The same; `meanwhile` is done once, as soon as the guest's memory is on its way.
///
/// # Errors
/// As [`migrate`], and those of `meanwhile`.
pub fn migrate_with(
    source: &Qmp,
    target: &Qmp,
    listen: SocketAddr,
    settings: &MigrateSettings,
    meanwhile: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Migrated> {
    let status = target.status()?;
    ensure!(status == "inmigrate", "the target node's QEMU is {status} and waits for no migration");
    for side in [source, target] {
        prepare(side, settings)?;
    }
    let uri = format!("tcp:{listen}");
    target.execute("migrate-incoming", json!({ "uri": uri }))?;
    let mut mark = source.mark();
    let (from_source, from_target) = (mark, target.mark());
    let began = Instant::now();
    source.execute("migrate", json!({ "uri": uri }))?;
    let on_its_way = |event: &QmpEvent| event.is_migration(&["active"]) || event.is_migration(&OVER);
    source.wait_event(mark, "the beginning of the migration", settings.limit, on_its_way)?;
    meanwhile()?;
    let last = loop {
        let left = settings.limit.saturating_sub(began.elapsed());
        let wanted = |event: &QmpEvent| event.is_migration(&OVER) || event.is_migration(&["pre-switchover"]);
        let event = source.wait_event(mark, "the end of the migration", left, wanted)?;
        if event.is_migration(&OVER) {
            break event.data["status"].as_str().unwrap_or_default().to_owned();
        }
        mark = event.place + 1;
        source.execute("migrate-continue", json!({ "state": "pre-switchover" }))?;
    };
    let figures = figures(source)?;
    let end = match last.as_str() {
        "completed" => MigrateEnd::Completed,
        "cancelled" => MigrateEnd::Cancelled,
        _ => MigrateEnd::Failed(figures["error-desc"].as_str().unwrap_or("it does not say why").to_owned()),
    };
    let stopped = source.wait_event(from_source, "the stop", Duration::ZERO, |event| event.name == "STOP");
    let mut migrated = Migrated {
        end,
        began,
        stopped: stopped.ok().map(|event| event.at),
        resumed: None,
        downtime: figures["downtime"].as_u64().map(Duration::from_millis),
    };
    if migrated.end == MigrateEnd::Completed {
        wait_loaded(target)?;
        target.execute("cont", json!({}))?;
        let resumed = target.wait_event(from_target, "the resume", SOON, |event| event.name == "RESUME")?;
        migrated.resumed = Some(resumed.at);
    }
    Ok(migrated)
}

fn prepare(side: &Qmp, settings: &MigrateSettings) -> anyhow::Result<()> {
    let mut capabilities = vec!["events", "late-block-activate"];
    capabilities.extend(settings.pause_before_switchover.then_some("pause-before-switchover"));
    let capabilities: Vec<Value> =
        capabilities.into_iter().map(|name| json!({ "capability": name, "state": true })).collect();
    side.execute("migrate-set-capabilities", json!({ "capabilities": capabilities }))?;
    let downtime = u64::try_from(settings.downtime_limit.as_millis()).unwrap_or(u64::MAX);
    // QEMU takes no figure for "no limit" but one that no network reaches.
    let bandwidth = settings.bandwidth.unwrap_or(1 << 40);
    let parameters = json!({ "downtime-limit": downtime, "max-bandwidth": bandwidth });
    side.execute("migrate-set-parameters", parameters).map(drop)
}

/// What QEMU says of a migration that is over. It may say so a moment before it has its own figures.
fn figures(source: &Qmp) -> anyhow::Result<Value> {
    let begun = Instant::now();
    loop {
        let answer = source.execute("query-migrate", json!({}))?;
        let complete = answer["status"] != "completed" || answer["total-time"].as_u64().unwrap_or(0) > 0;
        if complete || begun.elapsed() > Duration::from_secs(1) {
            return Ok(answer);
        }
        std::thread::park_timeout(LOOK);
    }
}

/// Waits until the target node's QEMU has all of the guest, and holds it halted.
fn wait_loaded(target: &Qmp) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let status = target.status().context("the source has given the guest away")?;
        match status.as_str() {
            "paused" => return Ok(()),
            "inmigrate" if begun.elapsed() < SOON => std::thread::park_timeout(LOOK),
            _ => bail!("the source has given the guest away, and the target node's QEMU is {status}"),
        }
    }
}

#[cfg(test)]
#[path = "migrate_tests.rs"]
mod tests;
