//! A writing node is fenced by Cleat, comes back with what it had queued, and lands none of it: on each rung of the
//! ladder, however the node fell silent.
//!
//! In each test node-a writes through its paths, stops being heard, and is taken off by an Unpublish that is repeated
//! until it succeeds. What is looked at is the target's content at the moment of that success, and ever after.

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, Rung, World};
use tonic::Code;

use crate::scene::{SOON, Silence, Survivor, Target, Writing};

/// What was fenced, in words.
fn what(target: &Target, silence: Silence) -> String {
    let portals = if target.view.portals == 1 { ", one portal" } else { "" };
    format!("{}, {}{portals}", target.rung.name(), silence.name())
}

/// Beside a survivor on node-b (RWX), which stalls once and sees no error; afterwards node-a gets the volume again.
pub(crate) async fn beside_a_survivor(
    world: &World,
    rung: Rung,
    silence: Silence,
    portals: usize,
) -> anyhow::Result<()> {
    let target = Target::of(world, rung, portals);
    let what = what(&target, silence);
    let name = format!("fence-{}-{}", rung.name(), silence.name());
    let mut writing = Writing::begin(world, &name, Access::RwxBlock, target).await?;
    let mut survivor = Survivor::begin(&writing).await?;
    writing.silence(silence).await?;
    let then = writing.fenced(&what).await?;
    survivor.goes_on().await?;
    silence.end(world).await?;
    writing.readmitted().await?;
    writing.nothing_landed_since(&then).await?;
    survivor.end(&what).await?;
    writing.again().await?;
    writing.end().await
}

/// With the volume going to node-b (RWO), as a failover does.
pub(crate) async fn with_a_successor(world: &World, rung: Rung, silence: Silence) -> anyhow::Result<()> {
    let target = Target::of(world, rung, 2);
    let what = format!("{}, to a successor", what(&target, silence));
    let writing = Writing::begin(world, "fence-successor", Access::RwoBlock, target).await?;
    writing.silence(silence).await?;
    let then = writing.fenced(&what).await?;
    let attached = world.attach(&writing.volume, world.b()).await?;
    let mut successor = world.b().write_on(&attached, 1, 1).await?;
    successor.wait_writes(20, SOON).await?;
    let refused = world.publish_within(&writing.volume, world.a(), SOON).await;
    ensure!(refused.is_err(), "a fenced node was granted a volume");
    silence.end(world).await?;
    writing.readmitted().await?;
    successor.wait_progress(20, SOON).await?;
    writing.nothing_landed_since(&then).await?;
    let stopped = successor.stop().await?;
    ensure!(stopped.counts.errors == 0, "writes of node-b failed: {:?}", stopped.errors);
    writing.end().await
}

/// A target without lists: the export stays off, and nobody gets the volume, until node-a holds nothing any more.
pub(crate) async fn with_the_export_off(
    world: &World,
    silence: Silence,
    portals: usize,
) -> anyhow::Result<()> {
    let target = Target::of(world, Rung::ExportOff, portals);
    let what = what(&target, silence);
    let writing = Writing::begin(world, "fence-export", Access::RwoBlock, target).await?;
    writing.silence(silence).await?;
    let then = writing.fenced(&what).await?;
    let status = world.publish_within(&writing.volume, world.b(), SOON).await.err();
    let status = status.context("node-b was let in while node-a could come back")?;
    ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
    ensure!(status.message().contains("node-a"), "the refusal does not name the node: {status:?}");
    silence.end(world).await?;
    writing.readmitted().await?;
    writing.nothing_landed_since(&then).await?;
    let attached = world.attach(&writing.volume, world.b()).await?;
    let mut successor = world.b().write_on(&attached, 1, 1).await?;
    successor.wait_writes(20, SOON).await?;
    successor.stop().await?;
    writing.end().await
}
