//! A node that loses power under an attachment.

use anyhow::ensure;
use cleat_e2e::world::{Access, AgentStart, World};

use crate::fixture::{
    self, LATER, SOON, delete, epoch_of, stop_unharmed, take_off, verified, wait_attachment, wait_live,
};

/// The grant outlives the kernel that held the device: the node connects again under the same epoch, and what was
/// acknowledged before is there.
pub(crate) async fn a_rebooted_node_gets_its_volume_back_under_the_same_epoch(
    world: &World,
) -> anyhow::Result<()> {
    let node = world.c();
    let volume = fixture::volume(world, "rebooted", Access::RwoBlock).await?;
    let attached = world.attach(&volume, node).await?;
    let mut writer = fixture::writer(node, &attached, 0, Some(1)).await?;
    writer.wait_writes(20, SOON).await?;
    let before = stop_unharmed(&mut writer).await?;
    let boot = tokio::task::block_in_place(|| node.machine().boot_id())?;

    tokio::task::block_in_place(|| node.machine().reset())?;
    ensure!(tokio::task::block_in_place(|| node.machine().boot_id())? != boot, "it did not reboot");
    node.start_agent(AgentStart::default()).await?;
    world.wait_session(node, LATER).await?;
    wait_live(node, &volume, 2).await?;
    let epoch = attached.context.get(fixture::EPOCH_KEY).cloned().unwrap_or_default();
    wait_attachment(world, &volume, node, "ready again", |a| a.phase == "Ready" && epoch_of(a) == epoch)
        .await?;

    let again = world.attach(&volume, node).await?;
    ensure!(again.context == attached.context, "{:?}, before {:?}", again.context, attached.context);
    let mut writer = fixture::writer(node, &again, 1, before.facts.last_acked.map(|last| last + 1)).await?;
    writer.wait_writes(20, SOON).await?;
    let after = stop_unharmed(&mut writer).await?;
    verified(world, &volume, &[&before, &after]).await?;
    take_off(world, &volume, node).await?;
    delete(world, &volume).await
}
