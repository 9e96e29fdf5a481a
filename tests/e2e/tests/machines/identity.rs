//! Who a node is to the RDS: an identity that is lost, and one that two nodes have, as cloned machines do.

use anyhow::ensure;
use cleat_e2e::world::{Access, AgentStart, Look, World, wait_for};

use crate::fixture::{self, LATER, attached, controllers, remove, wait_live};

/// An `/etc/nvme` that does not outlive a restart: under a new name the node could not detach what it has.
pub(crate) async fn that_is_lost_while_attached_comes_back_and_everything_goes_on(
    world: &World,
) -> anyhow::Result<()> {
    let node = world.a();
    let (nqn, id) = (node.host_nqn().await?, node.host_id().await?);
    let (volume, attached) = attached(world, "identity-lost", Access::RwoBlock, node).await?;
    let kernel = wait_live(node, &volume, 2).await?;
    node.kill_agent().await?;
    node.sh("rm /data/nvme/hostnqn /data/nvme/hostid").await?;
    node.start_agent(AgentStart::default()).await?;
    world.wait_session(node, LATER).await?;
    let now = (node.host_nqn().await?, node.host_id().await?);
    ensure!(now == (nqn.clone(), id), "another identity: {now:?}, before {nqn}");
    ensure!(controllers(node, &volume).await? == kernel, "the connections changed");
    node.publish(&volume, &attached.context).await?;
    remove(world, &volume, node).await
}

/// With one host NQN for two, no host list and no reservation tells them apart: the second is not let in.
pub(crate) async fn a_second_node_with_the_same_host_identity_is_refused_with_both_names(
    world: &World,
) -> anyhow::Result<()> {
    let (first, second) = (world.a(), world.c());
    let (nqn, id) = (first.host_nqn().await?, first.host_id().await?);
    second.kill_agent().await?;
    second
        .sh(&format!(
            "rm -rf /data/nvme.own; mv /data/nvme /data/nvme.own; mkdir /data/nvme; \
             echo {nqn} >/data/nvme/hostnqn; echo {id} >/data/nvme/hostid; : >/run/cleat-agent.log"
        ))
        .await?;
    second.start_agent(AgentStart::default()).await?;
    wait_for("the refusal in the agent's log", LATER, async || {
        let log = second.agent_log().await?;
        let refusal = log
            .lines()
            .find(|line| line.contains(&nqn) && line.contains("node-a") && line.contains("node-c"));
        let last = log.lines().last().unwrap_or_default();
        Ok(Look::holds(refusal.is_some(), last))
    })
    .await?;
    let nodes = world.controller.nodes().await?;
    let known = nodes.iter().find(|info| info.node_id == second.name());
    ensure!(known.is_none_or(|info| info.session != "connected"), "{known:?}");

    // The first is not concerned.
    let volume = fixture::volume(world, "not-cloned", Access::RwoBlock).await?;
    world.attach(&volume, first).await?;
    ensure!(world.publish(&volume, second).await.is_err(), "the second was granted something");
    remove(world, &volume, first).await?;

    second.kill_agent().await?;
    second.sh("rm -rf /data/nvme; mv /data/nvme.own /data/nvme").await?;
    second.start_agent(AgentStart::default()).await?;
    world.wait_session(second, LATER).await
}
