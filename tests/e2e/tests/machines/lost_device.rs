//! A device that the kernel has given up, under a user, and paths that blink.

use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, NQN_PREFIX, Node, Volume, World};
use cleat_e2e::writer::{OnError, WriteArgs};
use cleat_proto::cleat::v1::volume_state::Phase;
use rds_sim::rds::Hold;

use crate::fixture::{
    self, LATER, SOON, all_rounds, attached, attachment, controllers, epoch_in, epoch_of, remove,
    stop_unharmed, unharmed, verified, wait_attachment, wait_live,
};

/// Rounds of a path that blinks, where not all are asked for.
const SAMPLE: u32 = 8;
/// All of them.
const ALL: u32 = 200;
/// Longest that a portal is away in a round.
const LONGEST: Duration = Duration::from_millis(1500);

/// Whether the node's kernel can have the volume's head stay without a path, and for how long it does.
async fn stays(node: &Node, volume: &Volume) -> anyhow::Result<Option<u64>> {
    let script = format!(
        "for s in /sys/class/nvme-subsystem/*; do [ $(cat $s/subsysnqn) = {NQN_PREFIX}{} ] || continue; \
         cat $s/nvme*n1/delayed_removal_secs 2>/dev/null || true; done",
        volume.id
    );
    let text = node.sh(&script).await?;
    Ok(text.lines().next().map(str::parse).transpose()?)
}

/// Deletes every controller of the volume, as the kernel does that gives them up.
async fn give_up(node: &Node, volume: &Volume) -> anyhow::Result<()> {
    let names =
        controllers(node, volume).await?.into_iter().map(|one| one.name).collect::<Vec<_>>().join(" ");
    ensure!(!names.is_empty(), "it has no controller");
    let script = format!(
        "for c in {names}; do {{ echo 1 >/sys/class/nvme/$c/delete_controller || echo $c; }} & done; wait"
    );
    let left = node.sh(&script).await?;
    ensure!(left.trim().is_empty(), "not deleted: {left}");
    Ok(())
}

/// While somebody has the dead device, the attachment is not ready and he is named; once nobody has, the device is made
/// again under the same grant. Where the kernel can have the head stay, its user does not even see it.
pub(crate) async fn is_named_while_it_is_held_and_made_again_once_it_is_free(
    world: &World,
) -> anyhow::Result<()> {
    let node = world.a();
    let (volume, attached) = attached(world, "given-up", Access::RwoBlock, node).await?;
    wait_live(node, &volume, 2).await?;
    let epoch = epoch_in(&attached.context)?;
    let mut options = WriteArgs::new(&attached.target_path, volume.id.parse()?, node.name().parse()?, 0);
    (options.start_seq, options.interval_us, options.on_error) = (Some(1), 10_000, OnError::Retry);
    let mut writer = node.write_with(&options).await?;
    writer.wait_writes(5, SOON).await?;
    let stays = stays(node, &volume).await?;
    give_up(node, &volume).await?;

    if let Some(seconds) = stays {
        ensure!(seconds > 0, "the head goes with its last path");
        wait_live(node, &volume, 2).await?;
        writer.wait_progress(20, LATER).await?;
        unharmed(world, &volume, &mut writer).await?;
        return remove(world, &volume, node).await;
    }

    let lost = wait_attachment(world, &volume, node, "lost while held", |a| {
        let reported = a.reported.clone().unwrap_or_default();
        let message = reported.unready.clone().unwrap_or_default().message;
        reported.phase() == Phase::Lost && message.contains("lost while held")
    })
    .await?;
    let message = lost.reported.clone().unwrap_or_default().unready.unwrap_or_default().message;
    ensure!(lost.phase == "Lost" && lost.may_write, "shown as {lost:?}");
    for word in ["cleat-writer", &attached.target_path] {
        ensure!(message.contains(word) && lost.waits_for.contains(word), "no word of {word}: {lost:?}");
    }
    let again = node.publish(&volume, &attached.context).await;
    ensure!(again.is_err(), "published while somebody has the dead device");
    let beside = controllers(node, &volume).await?;
    ensure!(beside.is_empty(), "made beside a device that somebody has: {beside:?}");

    let first = writer.stop().await?;
    ensure!(first.counts.errors > 0, "the writer saw no failed write: {first:?}");
    node.unpublish(&volume).await.context("NodeUnpublishVolume")?;
    wait_live(node, &volume, 2).await?;
    let ready = wait_attachment(world, &volume, node, "ready again", |a| {
        a.phase == "Ready" && a.reported.as_ref().is_some_and(|state| state.phase() == Phase::Ready)
    })
    .await?;
    ensure!(epoch_of(&ready) == format!("{}.{}", epoch.0, epoch.1), "under another grant: {ready:?}");
    node.publish(&volume, &attached.context).await.context("NodePublishVolume under the same context")?;
    let mut writer =
        fixture::writing(node, &attached, 1, first.facts.last_acked.map(|last| last + 1), 5).await?;
    let second = stop_unharmed(&mut writer).await?;
    verified(world, &volume, &[&first, &second]).await?;
    remove(world, &volume, node).await
}

/// A portal goes for up to 1.5 s, again and again, and in every other round its controller is deleted, too: the other
/// path carries the writer, and the one that went comes back.
pub(crate) async fn a_path_that_blinks_under_a_writer_comes_back_each_time(
    world: &World,
) -> anyhow::Result<()> {
    let node = world.a();
    let (volume, attached) = attached(world, "blinking", Access::RwoBlock, node).await?;
    wait_live(node, &volume, 2).await?;
    let mut writer = fixture::writing(node, &attached, 0, Some(1), 5).await?;
    let (portals, slot) = (world.rds.portals(), world.rds.disk(&volume.id).await?.slot);
    let rounds = if all_rounds() { ALL } else { SAMPLE };
    for round in 0..rounds {
        // Every length between nothing and the longest, in an order that mixes them.
        let away = LONGEST * (round * 7 % rounds) / (rounds - 1);
        let portal = &portals[round as usize / 2 % portals.len()];
        let told = format!("round {round}, {portal} away for {away:?}");
        let hold = Hold { slot: Some(slot.clone()), portal: Some(portal.parse()?) };
        let at = portal.replace(':', ",trsvcid=");
        let victim = controllers(node, &volume).await?.into_iter().find(|one| one.address.ends_with(&at));
        let victim = victim.with_context(|| format!("{told}: no controller there"))?;
        world.rds.portals_down(&hold).await?;
        let until = tokio::time::Instant::now() + away;
        if round % 2 == 1 {
            // The kernel may have given it up already.
            let file = format!("/sys/class/nvme/{}/delete_controller", victim.name);
            let gone = format!("echo 1 2>/dev/null >{file}; [ ! -e {file} ]");
            node.sh(&gone).await.with_context(|| format!("{told}: {} is still there", victim.name))?;
        }
        tokio::time::sleep_until(until).await;
        world.rds.portals_up(&hold).await?;
        wait_live(node, &volume, 2).await.with_context(|| told.clone())?;
        writer.wait_progress(3, LATER).await.context(told)?;
    }
    unharmed(world, &volume, &mut writer).await?;
    let seen = attachment(world, &volume, node).await?.context("no attachment")?;
    ensure!(seen.phase == "Ready", "{seen:?}");
    remove(world, &volume, node).await
}
