//! Targets that are another one, not there, or do not want: refused with the clause that fails, and nothing is left.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, Volume, World};
use cleat_rig::Network;
use rds_sim::control::NewUuid;
use rds_sim::rds::Hold;
use tonic::Code;

use crate::fixture::{
    self, holds_nothing, publish_until_done, refused, remove, take_off, unpublish_until_done,
};

/// A disk swapped under its name: whatever it holds, it is not what the VM wrote.
pub(crate) async fn another_namespace_under_the_same_name_is_refused(world: &World) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "swapped", Access::RwoBlock).await?;
    let other = "6e0b7f0c-52a3-4f0e-9c1d-2a648d3571e9";
    // Attached once, so that its identity is known and pinned.
    world.attach(&volume, world.a()).await?;
    take_off(world, &volume, world.a()).await?;
    let own = world.rds.disk(&volume.id).await?.uuid.to_string();

    set_uuid(world, &volume, Some(other)).await?;
    let status = refused(world.publish(&volume, world.b()).await, Code::FailedPrecondition, &[other, &own])?;
    ensure!(status.message().contains("identity"), "the clause is not named: {}", status.message());
    unpublish_until_done(world, &volume, world.b()).await?;
    holds_nothing(world, &volume, world.b()).await?;

    set_uuid(world, &volume, None).await?;
    publish_until_done(world, &volume, world.b()).await?;
    remove(world, &volume, world.b()).await
}

async fn set_uuid(world: &World, volume: &Volume, uuid: Option<&str>) -> anyhow::Result<()> {
    let slot = world.rds.disk(&volume.id).await?.slot;
    let uuid = uuid.map(str::parse).transpose()?;
    world.rds.set_uuid(&NewUuid { slot, uuid }).await.context("change the namespace's UUID")
}

/// A node that cannot reach storage shows it before a VM is sent there, within the deadline.
pub(crate) async fn a_target_that_cannot_be_reached_leaves_nothing_behind(
    world: &World,
) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "unreachable", Access::RwoBlock).await?;
    for network in Network::STORAGE {
        world.b().machine().cut_path(network)?;
    }
    let begun = Instant::now();
    let status = refused(world.publish(&volume, world.b()).await, Code::Unavailable, &["node-b"])?;
    let took = begun.elapsed();
    // --attach-deadline is 8 s; a connect that sits in the kernel is called back for 5 s more.
    ensure!(took < Duration::from_secs(20), "it took {took:?}: {}", status.message());
    let said = status.message();
    ensure!(said.contains("10.77.1.1") || said.contains("connect"), "neither portal nor clause: {said}");
    unpublish_until_done(world, &volume, world.b()).await.context("Unpublish after the failed Publish")?;
    holds_nothing(world, &volume, world.b()).await?;
    ensure!(world.rds.allowed_hosts(&volume.id).await?.is_empty(), "the host list was not cleared");

    for network in Network::STORAGE {
        world.b().machine().restore_path(network)?;
    }
    publish_until_done(world, &volume, world.b()).await?;
    remove(world, &volume, world.b()).await
}

/// The portals answer, and the subsystem is not to be had at them.
pub(crate) async fn a_target_that_refuses_leaves_nothing_behind(world: &World) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "refusing", Access::RwoBlock).await?;
    let hold = Hold { slot: Some(world.rds.disk(&volume.id).await?.slot), portal: None };
    world.rds.portals_down(&hold).await?;
    let status = world.publish(&volume, world.c()).await.err().context("attached without a portal")?;
    ensure!(status.code() == Code::Unavailable, "{status:?}");
    unpublish_until_done(world, &volume, world.c()).await?;
    holds_nothing(world, &volume, world.c()).await?;

    world.rds.portals_up(&hold).await?;
    publish_until_done(world, &volume, world.c()).await?;
    fixture::wait_live(world.c(), &volume, 2).await?;
    remove(world, &volume, world.c()).await
}
