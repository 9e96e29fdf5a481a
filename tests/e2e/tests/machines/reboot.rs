//! A node that loses power under an attachment.

use anyhow::ensure;
use cleat_e2e::world::{Access, AgentStart, World};

use crate::fixture::{
    self, LATER, attached, epoch_of, remove, stop_unharmed, verified, wait_attachment, wait_live,
};

/// The grant outlives the kernel that held the device: the node connects again under the same epoch, and what was
/// acknowledged before is there.
pub(crate) async fn a_rebooted_node_gets_its_volume_back_under_the_same_epoch(
    world: &World,
) -> anyhow::Result<()> {
    let node = world.c();
    let (volume, attached) = attached(world, "rebooted", Access::RwoBlock, node).await?;
    let mut writer = fixture::writing(node, &attached, 0, Some(1), 20).await?;
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
    let mut writer =
        fixture::writing(node, &again, 1, before.facts.last_acked.map(|last| last + 1), 20).await?;
    let after = stop_unharmed(&mut writer).await?;
    verified(world, &volume, &[&before, &after]).await?;
    remove(world, &volume, node).await
}
