//! A controller that is started over a store which was lost: who may write is read from the RDS's lists.

use anyhow::{bail, ensure};
use cleat_e2e::world::{Access, World};
use tonic::Code;

use crate::fixture::{
    self, LATER, SOON, attached, holds_nothing, remove, stop_unharmed, unpublish_until_done, verified,
};

/// The node is not heard, and goes on writing: nobody is let in beside it, and its detach is not answered as done.
pub(crate) async fn a_silent_writer_keeps_others_out(world: &World) -> anyhow::Result<()> {
    let (volume, attached) = attached(world, "store-lost", Access::RwoBlock, world.a()).await?;
    let mut writer = fixture::writing(world.a(), &attached, 0, Some(1), 5).await?;

    world.a().freeze_agent().await?;
    world.controller.kill().await?;
    for file in ["controller-state", "controller-state-wal"] {
        let path = world.folder().join(file);
        if path.exists() {
            std::fs::rename(&path, path.with_extension("lost"))?;
        }
    }
    world.controller.start().await?;
    world.wait_session(world.b(), LATER).await?;

    let Err(published) = world.publish(&volume, world.b()).await else {
        bail!("node-b was let in beside a node that writes")
    };
    ensure!(published.code() == Code::FailedPrecondition, "{published:?}");
    let Err(unpublished) = world.unpublish(&volume, world.a()).await else {
        bail!("the detach of a node that writes was answered as done")
    };
    // It waits for the agent, and then cannot be fenced: this target is not known to cut.
    ensure!(matches!(unpublished.code(), Code::Aborted | Code::Unavailable), "{unpublished:?}");
    one_host_is_on_the_list(world, &volume).await?;
    writer.wait_progress(5, SOON).await?;
    let run = stop_unharmed(&mut writer).await?;

    // Heard again, it is known by its host NQN, and says itself what it holds.
    world.a().thaw_agent().await?;
    world.wait_session(world.a(), LATER).await?;
    world.a().unpublish(&volume).await?;
    world.a().unstage(&volume).await?;
    unpublish_until_done(world, &volume, world.a()).await?;
    holds_nothing(world, &volume, world.a()).await?;
    verified(world, &volume, &[&run]).await?;
    world.attach(&volume, world.b()).await?;
    remove(world, &volume, world.b()).await
}

/// Nobody was put on the RDS's list beside the one who was there.
async fn one_host_is_on_the_list(world: &World, volume: &cleat_e2e::world::Volume) -> anyhow::Result<()> {
    let allowed = world.rds.allowed_hosts(&volume.id).await?;
    ensure!(allowed.len() == 1, "on the list: {allowed:?}");
    Ok(())
}
