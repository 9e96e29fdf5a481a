//! An agent that is killed with volumes in use. Connections and I/O are the kernel's; the agent reads them back.

use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, AgentStart, World};
use cleat_proto::cleat::v1::volume_state::Phase;
use tonic::Code;

use crate::fixture::{
    self, LATER, SOON, controllers, delete, epoch_in, refused, remove, stop_unharmed, take_off, verified,
    wait_attachment, wait_live,
};

/// Nothing stops while it is away, and when it is back it knows all that it knew.
pub(crate) async fn a_killed_agent_disturbs_no_io_and_knows_everything_again(
    world: &World,
) -> anyhow::Result<()> {
    let node = world.a();
    let (one, two) = (
        fixture::volume(world, "agent-one", Access::RwoBlock).await?,
        fixture::volume(world, "agent-two", Access::RwxBlock).await?,
    );
    let (first, second) = (world.attach(&one, node).await?, world.attach(&two, node).await?);
    let kernel = (wait_live(node, &one, 2).await?, wait_live(node, &two, 2).await?);
    let (mut writer, mut other) =
        (fixture::writer(node, &first, 0, Some(1)).await?, fixture::writer(node, &second, 0, Some(1)).await?);
    writer.wait_writes(5, SOON).await?;

    node.kill_agent().await?;
    wait_silent(world, "node-a").await?;
    writer.wait_progress(20, SOON).await?;
    other.wait_progress(20, SOON).await?;
    // Nothing is taken away and nothing given to others because an agent is not heard.
    let still = fixture::attachment(world, &one, node).await?.context("forgotten")?;
    ensure!(still.may_write, "{still:?}");
    let wanted = fixture::volume(world, "agent-away", Access::RwoBlock).await?;
    refused(world.publish(&wanted, node).await, Code::Unavailable, &["node-a", "since"])?;
    delete(world, &wanted).await?;

    node.start_agent(AgentStart::default()).await?;
    world.wait_session(node, LATER).await?;
    for (volume, context) in [(&one, &first.context), (&two, &second.context)] {
        wait_attachment(world, volume, node, "known again", |a| {
            let state = a.reported.clone().unwrap_or_default();
            let epoch = state.epoch.map(|epoch| (epoch.term, epoch.seq));
            a.phase == "Ready" && state.phase() == Phase::Ready && epoch == epoch_in(context).ok()
        })
        .await?;
        ensure!(world.publish(volume, node).await?.value == *context, "another context after the restart");
    }
    let now = (controllers(node, &one).await?, controllers(node, &two).await?);
    ensure!(now == kernel, "the connections changed: {now:?}, before {kernel:?}");
    // A kubelet that comes back stages again.
    node.stage(&one, &first.context).await?;
    node.publish(&one, &first.context).await?;
    writer.wait_progress(5, SOON).await?;
    let (run, other_run) = (stop_unharmed(&mut writer).await?, stop_unharmed(&mut other).await?);
    verified(world, &one, &[&run]).await?;
    verified(world, &two, &[&other_run]).await?;
    for volume in [&one, &two] {
        remove(world, volume, node).await?;
    }
    Ok(())
}

/// How long the agent may take to note its connections: it does once they have been there for 65 s.
const NOTED: Duration = Duration::from_secs(90);

/// That nothing broke while no agent ran is shown by the kernel's own connections; so is that something did.
pub(crate) async fn a_detach_after_a_restart_is_proven_by_what_did_not_break(
    world: &World,
) -> anyhow::Result<()> {
    let (node, volume) = (world.a(), fixture::volume(world, "agent-away-unbroken", Access::RwoBlock).await?);
    for breaks in [false, true] {
        // What was noted of the grant before would be found at once.
        node.sh("rm -f /data/cleat/connections.json").await?;
        world.attach(&volume, node).await?;
        let kernel = wait_live(node, &volume, 2).await?;
        cleat_e2e::world::wait_for("the agent to note its connections", NOTED, async || {
            let noted = node.sh("cat /data/cleat/connections.json 2>/dev/null || true").await?;
            Ok(cleat_e2e::world::Look::holds(noted.contains(&volume.id), noted))
        })
        .await?;
        node.kill_agent().await?;
        wait_silent(world, node.name()).await?;
        if breaks {
            let first = &kernel.first().context("no controller")?.name;
            node.sh(&format!("echo 1 > /sys/class/nvme/{first}/reset_controller")).await?;
            wait_live(node, &volume, 2).await?;
        }
        node.start_agent(AgentStart::default()).await?;
        world.wait_session(node, LATER).await?;
        take_off(world, &volume, node).await?;
        let proof = world.evidence(&volume, node).await?;
        ensure!(proof.drained_by.contains("bound") == breaks, "something broke: {breaks}; {proof:?}");
    }
    delete(world, &volume).await
}

async fn wait_silent(world: &World, node: &str) -> anyhow::Result<()> {
    cleat_e2e::world::wait_for(format!("{node} to be missed"), LATER, async || {
        let nodes = world.controller.nodes().await?;
        let session = nodes.iter().find(|info| info.node_id == node).map(|info| info.session.clone());
        Ok(cleat_e2e::world::Look::holds(session.as_deref() == Some("silent"), format!("{session:?}")))
    })
    .await
    .map_err(Into::into)
}
