//! A storage path that goes and comes back, under a writer.

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, World};
use cleat_proto::cleat::v1::volume_state::Phase;
use cleat_rig::Network;

use crate::fixture::{
    self, LATER, attached, attachment, delete, remove, take_off, unharmed, wait_attachment, wait_live,
};

/// Multipath carries the writer; the controller hears of the loss and of the return, with the path's name.
pub(crate) async fn a_lost_path_degrades_and_comes_back_without_a_failed_write(
    world: &World,
) -> anyhow::Result<()> {
    let (volume, attached) = attached(world, "path-loss", Access::RwxBlock, world.a()).await?;
    wait_live(world.a(), &volume, 2).await?;
    let watch = world.controller.watch().await?;
    let mut writer = fixture::writing(world.a(), &attached, 0, Some(1), 5).await?;

    world.a().machine().cut_path(Network::Storage1)?;
    let (_, notice) = watch.notice(0, "volume_degraded", &volume.id, LATER).await?;
    ensure!(notice.node_id == "node-a", "{notice:?}");
    let seen = wait_attachment(world, &volume, world.a(), "degraded", |a| {
        a.reported.as_ref().is_some_and(|state| state.phase() == Phase::Degraded)
    })
    .await?;
    let reported = seen.reported.unwrap_or_default();
    let live: Vec<&str> =
        reported.paths.iter().filter(|path| path.state == "live").map(|path| path.portal.as_str()).collect();
    ensure!(live == ["10.77.2.1:4420"], "the paths that are left: {:?}", reported.paths);
    writer.wait_progress(20, LATER).await?;
    ensure!(attachment(world, &volume, world.a()).await?.is_some_and(|a| a.phase == "Ready" && a.may_write));

    let mark = watch.mark();
    world.a().machine().restore_path(Network::Storage1)?;
    watch.notice(mark, "volume_recovered", &volume.id, LATER).await?;
    wait_live(world.a(), &volume, 2).await?;
    writer.wait_progress(20, LATER).await?;
    unharmed(world, &volume, &mut writer).await?;
    // A write may have been on the path that went: until the drain bound has passed, nobody can say "drained".
    remove(world, &volume, world.a()).await
}

/// The kernel says nothing of a connection that breaks, and has it back in a moment. What was on its way then may still
/// land, so a detach that follows is not drained by the deletion of a live controller, as it otherwise is.
pub(crate) async fn a_connection_that_was_back_at_once_is_not_taken_for_unbroken(
    world: &World,
) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "reconnected", Access::RwoBlock).await?;
    for breaks in [false, true] {
        world.attach(&volume, world.a()).await?;
        let kernel = wait_live(world.a(), &volume, 2).await?;
        if breaks {
            let first = &kernel.first().context("no controller")?.name;
            world.a().sh(&format!("echo 1 > /sys/class/nvme/{first}/reset_controller")).await?;
            wait_live(world.a(), &volume, 2).await?;
        }
        take_off(world, &volume, world.a()).await?;
        let info = world.controller.volume(&volume.id).await?;
        let proof = info.past_evidence.first().context("no evidence is kept")?;
        ensure!(proof.source == "AgentAbsent" && proof.verdict == "Fenced", "{proof:?}");
        ensure!(proof.assumption.contains("drain bound") == breaks, "broken: {breaks}; {proof:?}");
    }
    delete(world, &volume).await
}
