//! A storage path that goes and comes back, under a writer.

use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, AgentStart, Look, World, wait_for};
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

/// With `--early-path-reset` a writer waits for two signs, and not for the keep-alive; an interruption of 200 ms costs no
/// reset, and with the other path cut as well none is tried.
pub(crate) async fn a_path_that_is_cut_in_silence_is_reset_before_its_keep_alive_ends(
    world: &World,
) -> anyhow::Result<()> {
    let node = world.a();
    agent_again(world, &["--early-path-reset"]).await?;
    let done = cut_in_silence(world).await;
    let _ = node.machine().restore_all();
    agent_again(world, &[]).await?;
    done
}

/// Another process of node-a's agent, with these arguments besides.
async fn agent_again(world: &World, arguments: &[&str]) -> anyhow::Result<()> {
    let arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
    world.a().kill_agent().await?;
    world.a().start_agent(AgentStart { arguments }).await?;
    world.wait_session(world.a(), LATER).await
}

async fn cut_in_silence(world: &World) -> anyhow::Result<()> {
    // The whole keep-alive: by that alone it is felt for longer. How much sooner it is over, hack/bench paths measures.
    const FELT: Duration = Duration::from_secs(5);
    let node = world.a();
    let (volume, attached) = attached(world, "early-reset", Access::RwoBlock, node).await?;
    wait_live(node, &volume, 2).await?;
    let begun =
        async || anyhow::Ok(node.agent_log().await?.matches("resetting it before its keep-alive").count());
    let mut writer = fixture::writing(node, &attached, 0, Some(1), 20).await?;
    let before = begun().await?;
    for network in Network::STORAGE {
        node.machine().cut_path(network)?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        node.machine().restore_path(network)?;
        writer.wait_progress(20, LATER).await?;
    }
    ensure!(begun().await? == before, "an interruption of 200 ms cost a path");

    // One of the two carries the writes; the cut of the other is not felt, and nobody resets it.
    for network in Network::STORAGE {
        node.machine().cut_path(network)?;
        writer.wait_progress(20, LATER).await?;
        let resets = begun().await?;
        node.machine().restore_path(network)?;
        wait_live(node, &volume, 2).await?;
        if resets > before {
            break;
        }
    }
    ensure!(begun().await? == before + 1, "the path that carried the writes was not reset once");
    let stopped = fixture::stop_unharmed(&mut writer).await?;
    let longest = Duration::from_micros(stopped.counts.max_latency_us);
    ensure!(longest < FELT, "a write took {longest:?}");
    fixture::verified(world, &volume, &[&stopped]).await?;

    // One that remembers no reset: only the paths themselves keep it from another one.
    agent_again(world, &["--early-path-reset"]).await?;
    let mut writer =
        fixture::writing(node, &attached, 1, Some(stopped.facts.last_acked.unwrap_or(0) + 1), 20).await?;
    let before = begun().await?;
    for network in Network::STORAGE {
        node.machine().cut_path(network)?;
    }
    // The kernel's own keep-alive says so of both, in its time.
    wait_for("both paths to be given up by the kernel", LATER, async || {
        let found = fixture::controllers(node, &volume).await?;
        Ok(Look::holds(found.iter().all(|one| one.state != "live"), format!("{found:?}")))
    })
    .await?;
    ensure!(begun().await? == before, "a last path was reset");
    node.machine().restore_all()?;
    wait_live(node, &volume, 2).await?;
    writer.wait_progress(20, LATER).await?;
    fixture::stop_unharmed(&mut writer).await?;
    remove(world, &volume, node).await
}
