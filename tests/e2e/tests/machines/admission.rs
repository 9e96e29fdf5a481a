//! Admission: who may have a volume beside whom, and what the refused one is told.

use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, World};
use tonic::Code;

use crate::fixture::{
    self, SOON, attached, attachment, controllers, delete, epoch_in, holds_nothing, refused, remove,
    stop_unharmed, take_off, verified, wait_attachment, wait_live,
};

/// The words are those that the issue asks for: they tell a person what to do instead.
pub(crate) async fn a_second_node_is_refused_an_rwo_volume_with_a_hint(world: &World) -> anyhow::Result<()> {
    let (volume, attached) = attached(world, "rwo", Access::RwoBlock, world.a()).await?;
    let kernel = wait_live(world.a(), &volume, 2).await?;
    let hint = "already attached to node node-a. For multi-node access, use RWX with block volumes.";
    refused(world.publish(&volume, world.b()).await, Code::FailedPrecondition, &[hint])?;
    holds_nothing(world, &volume, world.b()).await?;
    ensure!(controllers(world.a(), &volume).await? == kernel, "the refusal touched the holder");
    ensure!(world.publish(&volume, world.a()).await?.value == attached.context);
    remove(world, &volume, world.a()).await
}

/// Two are the source and the target of a migration; nothing needs three.
pub(crate) async fn a_third_node_is_refused_an_rwx_volume_with_both_holders_named(
    world: &World,
) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "rwx", Access::RwxBlock).await?;
    world.attach(&volume, world.a()).await?;
    world.attach(&volume, world.b()).await?;
    let words = [
        "already attached to 2 nodes (migration limit). Wait for migration to complete.",
        "node-a",
        "node-b",
    ];
    refused(world.publish(&volume, world.c()).await, Code::FailedPrecondition, &words)?;
    holds_nothing(world, &volume, world.c()).await?;
    ensure!(world.rds.allowed_hosts(&volume.id).await?.len() == 2, "the host list is not that of the two");
    let role = |attachment: Option<cleat_proto::cleat::v1::AttachmentInfo>| attachment.map(|a| a.role);
    ensure!(role(attachment(world, &volume, world.a()).await?).as_deref() == Some("primary"));
    ensure!(role(attachment(world, &volume, world.b()).await?).as_deref() == Some("migration-target"));
    take_off(world, &volume, world.a()).await?;
    // One of the two is gone: now there is room.
    world.attach(&volume, world.c()).await?;
    take_off(world, &volume, world.b()).await?;
    remove(world, &volume, world.c()).await
}

/// The next node's Publish usually comes before the last one's Unpublish is answered: refusing it would send it into
/// the attacher's back-off.
pub(crate) async fn a_move_waits_for_the_detach_under_way_and_is_granted_at_once(
    world: &World,
) -> anyhow::Result<()> {
    let (volume, first) = attached(world, "moved", Access::RwoBlock, world.a()).await?;
    world.a().unpublish(&volume).await?;
    world.a().unstage(&volume).await?;

    // Frozen, so that the detach is surely under way when the Publish comes.
    world.a().freeze_agent().await?;
    let off = async { world.unpublish(&volume, world.a()).await };
    let on = async {
        wait_attachment(world, &volume, world.a(), "draining", |a| a.phase == "Draining").await?;
        let waiting = world.publish(&volume, world.b());
        let thaw = async {
            fixture::wait_waiting(world, &volume, world.b()).await?;
            ensure!(controllers(world.b(), &volume).await?.is_empty(), "connected before the other was gone");
            world.a().thaw_agent().await
        };
        let (granted, thawed) = tokio::join!(waiting, thaw);
        thawed?;
        anyhow::Ok((granted, tokio::time::Instant::now()))
    };
    let off = async { (off.await, tokio::time::Instant::now()) };
    let ((detached, detached_at), moved) = tokio::join!(off, on);
    let (granted, granted_at) = moved?;
    detached.context("the Unpublish that was under way")?;
    let granted = granted.context("the Publish that waited for it")?;
    let after = granted_at.saturating_duration_since(detached_at);
    ensure!(after < Duration::from_secs(10), "granted {after:?} after the detach");
    ensure!(epoch_in(&granted)? > epoch_in(&first.context)?, "the epoch does not rise");
    holds_nothing(world, &volume, world.a()).await?;
    wait_live(world.b(), &volume, 2).await?;
    remove(world, &volume, world.b()).await
}

/// Source and target of a migration hold the volume together, and the sequence that both have written is whole.
pub(crate) async fn a_handoff_loses_no_write(world: &World) -> anyhow::Result<()> {
    let (volume, source) = attached(world, "handoff", Access::RwxBlock, world.a()).await?;
    let mut before = fixture::writing(world.a(), &source, 0, Some(1), 20).await?;
    let target = world.attach(&volume, world.b()).await?;
    ensure!(epoch_in(&target.context)? > epoch_in(&source.context)?, "the target's epoch is not higher");
    let mut after = fixture::writer(world.b(), &target, 1, None).await?;
    let stopped = stop_unharmed(&mut before).await?;
    let last = stopped.counts.last_acked.context("the source acknowledged nothing")?;
    after.go(last + 1).await?;
    after.wait_writes(20, SOON).await?;
    take_off(world, &volume, world.a()).await?;
    after.wait_progress(20, SOON).await?;
    let migrations = world.controller.migrations().await?;
    let ours =
        migrations.iter().find(|m| m.volume_id == volume.id).context("the migration is not recorded")?;
    ensure!((ours.result.as_str(), ours.left.as_str()) == ("unattributed", "source"), "{ours:?}");
    ensure!((ours.source_node_id.as_str(), ours.target_node_id.as_str()) == ("node-a", "node-b"), "{ours:?}");
    let ended = stop_unharmed(&mut after).await?;
    verified(world, &volume, &[&stopped, &ended]).await?;
    remove(world, &volume, world.b()).await
}

/// Deleting is the one thing that nothing brings back.
pub(crate) async fn a_volume_that_is_attached_is_not_deleted(world: &World) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "deleted", Access::RwoBlock).await?;
    world.attach(&volume, world.a()).await?;
    refused(world.delete_volume(&volume).await, Code::FailedPrecondition, &["deleted", "node-a"])?;
    ensure!(world.rds.disk(&volume.id).await?.export, "the export went off");
    wait_live(world.a(), &volume, 2).await?;
    remove(world, &volume, world.a()).await?;
    delete(world, &volume).await.context("the same DeleteVolume again")?;
    Ok(())
}
