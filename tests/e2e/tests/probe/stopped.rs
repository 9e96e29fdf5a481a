//! Probes that do not come to their end.

use anyhow::ensure;
use cleat_e2e::world::World;

use crate::probing::Probe;

const SIGINT: i32 = 2;

pub(crate) async fn an_interrupted_probe_removes_everything_and_writes_nothing(
    world: &World,
) -> anyhow::Result<()> {
    let probe = Probe::start(world, &[], &[]).await?;
    // In the midst of it: a host is connected and writes.
    probe.wait_said("Asking about taking the export off").await?;
    probe.signal(SIGINT).await?;
    let probed = probe.ended().await?;
    ensure!(probed.exit == "exit code 1" && probed.file.is_none(), "{}: {}", probed.exit, probed.said);
    ensure!(probed.said.contains("stopped by an interrupt"), "{}", probed.said);
    Ok(())
}

pub(crate) async fn an_rds_that_goes_away_is_reported_with_what_is_left(world: &World) -> anyhow::Result<()> {
    let probe = Probe::start(world, &[], &[]).await?;
    let scratch = probe.scratch().await?;
    world.rds.kill().await?;
    probe.signal(SIGINT).await?;
    let probed = probe.ended().await?;
    ensure!(probed.exit == "exit code 1" && probed.file.is_none(), "{}: {}", probed.exit, probed.said);
    let left = format!("LEFT BEHIND: scratch disk {}", scratch.slot);
    let remedy = format!("/disk/remove [find slot={}]", scratch.slot);
    ensure!(probed.said.contains(&left) && probed.said.contains(&remedy), "{}", probed.said);
    world.rds.start().await?;
    world.rds.remove_disk(&scratch.slot).await
}
