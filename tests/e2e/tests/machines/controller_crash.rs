//! A controller that is killed with -9 at each step of attach and detach, and started again over its records.
//!
//! Each step is held still from outside (a slow or hanging RDS, a frozen agent, a cut network), so that the kill
//! comes where it is meant to. What must hold after each: the repeated call completes; exactly one node has exactly
//! one grant; nobody else was let in meanwhile; whatever was granted is known.

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, Look, Volume, World, wait_for};
use cleat_rig::Network;
use rds_sim::faults::{Action, Fault};
use tonic::Code;

use crate::fixture::{
    self, LATER, SOON, attached, cut_off_with_a_directive, delete, epoch_in, holds_nothing,
    publish_until_done, refused, remove, requests, stop_unharmed, take_off, unpublish_until_done,
    wait_attachment, wait_gone, wait_live, wait_request,
};

const SET_DISK: &str = "PATCH /rest/disk/*";

/// A step at which a call is held still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// The RDS was asked to change the host list and does not answer.
    RdsAsked,
    /// The host list has been changed; the look at it is slow.
    RdsDone,
    /// The agent was told, and does not move.
    AgentTold,
    /// The agent has done it, and its answer does not come through.
    AgentDone,
}

/// Which call is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Attach,
    Detach,
}

impl Held {
    /// Puts the obstacle in place, before the call.
    async fn prepare(self, world: &World) -> anyhow::Result<()> {
        match self {
            Self::RdsAsked => {
                world.rds.add_fault(&Fault::all(Action::Hang).only("PATCH", "/rest/disk/")).await
            }
            Self::RdsDone => {
                let slow = Action::Slow { delay_ms: 1200 };
                world.rds.add_fault(&Fault::all(slow).only("GET", "/rest/disk")).await
            }
            Self::AgentTold | Self::AgentDone => world.a().freeze_agent().await,
        }
    }

    /// Waits until the call has come to the obstacle.
    async fn reached(self, world: &World, volume: &Volume, call: Call, writes: u64) -> anyhow::Result<()> {
        match self {
            Self::RdsAsked => wait_request(world, SET_DISK, writes).await,
            Self::RdsDone => wait_listed(world, volume, call == Call::Attach).await,
            Self::AgentTold | Self::AgentDone => {
                let phase = if call == Call::Attach { "Connecting" } else { "Draining" };
                if self == Self::AgentTold {
                    return wait_attachment(world, volume, world.a(), phase, |a| a.phase == phase)
                        .await
                        .map(drop);
                }
                // What it was told is in its socket; what it answers stays there, too.
                cut_off_with_a_directive(world, volume, world.a(), phase).await?;
                match call {
                    Call::Attach => wait_live(world.a(), volume, 2).await.map(drop),
                    Call::Detach => wait_gone(world.a(), volume).await,
                }
            }
        }
    }

    /// Takes the obstacle away, while the controller is dead.
    async fn let_go(self, world: &World) -> anyhow::Result<()> {
        match self {
            Self::RdsAsked | Self::RdsDone => world.rds.clear_faults().await,
            Self::AgentTold => world.a().thaw_agent().await,
            Self::AgentDone => Ok(world.a().machine().restore_path(Network::Management)?),
        }
    }
}

/// Waits until node-a is on the volume's host list at the target, or is not.
async fn wait_listed(world: &World, volume: &Volume, listed: bool) -> anyhow::Result<()> {
    let host = world.a().host_nqn().await?;
    wait_for(format!("node-a on the host list: {listed}"), SOON, async || {
        let disk = world.rds.disk(&volume.id).await?;
        let recorded = disk.allow_host_name.clone().unwrap_or_default();
        let on = recorded.contains(&host) && disk.export;
        let off = !recorded.contains(&host);
        Ok(Look::holds(if listed { on } else { off }, format!("{recorded:?}, export {}", disk.export)))
    })
    .await
    .map_err(Into::into)
}

/// The agent has heard what the controller has not: that nothing broke meanwhile.
pub(crate) async fn a_detach_after_its_restart_is_proven_as_ever(world: &World) -> anyhow::Result<()> {
    let (node, volume) =
        (world.a(), fixture::volume(world, "controller-away-unbroken", Access::RwoBlock).await?);
    world.attach(&volume, node).await?;
    wait_live(node, &volume, 2).await?;
    world.controller.restart().await?;
    for node in world.nodes() {
        world.wait_session(node, LATER).await?;
    }
    take_off(world, &volume, node).await?;
    let proof = world.evidence(&volume, node).await?;
    ensure!(!proof.drained_by.is_empty() && !proof.drained_by.contains("bound"), "{proof:?}");
    delete(world, &volume).await
}

async fn kill_during_attach(world: &World, name: &str, held: Held) -> anyhow::Result<()> {
    let volume = fixture::volume(world, name, Access::RwoBlock).await?;
    let writes = requests(world, SET_DISK).await?;
    held.prepare(world).await?;
    let crash = async {
        held.reached(world, &volume, Call::Attach, writes).await?;
        world.controller.kill().await
    };
    let (answer, crashed) = tokio::join!(world.publish(&volume, world.a()), crash);
    crashed?;
    ensure!(answer.is_err(), "the call was answered before the controller was killed");
    held.let_go(world).await?;
    world.controller.start().await?;
    ensure!(world.publish(&volume, world.b()).await.is_err(), "node-b was let in while node-a was in doubt");

    let context = publish_until_done(world, &volume, world.a()).await?;
    holds_once(world, &volume, &context).await?;
    world.wait_session(world.b(), LATER).await?;
    refused(world.publish(&volume, world.b()).await, Code::FailedPrecondition, &["node-a"])?;
    world.a().stage(&volume, &context).await?;
    world.a().unpublish(&volume).await?;
    world.a().unstage(&volume).await?;
    if let Err(status) = world.unpublish(&volume, world.a()).await {
        // What the dead controller asked of the RDS may still land: taken off, and said that it may not stay so.
        refused::<()>(Err(status), Code::Unavailable, &["node-a", "may still take effect"])?;
    }
    unpublish_until_done(world, &volume, world.a()).await?;
    holds_nothing(world, &volume, world.a()).await?;
    delete(world, &volume).await
}

/// That node-a alone has the volume, once, under the epoch of this context, in every view.
async fn holds_once(
    world: &World,
    volume: &Volume,
    context: &cleat_e2e::world::PublishContext,
) -> anyhow::Result<()> {
    let info = world.controller.volume(&volume.id).await?;
    ensure!(info.attachments.len() == 1, "granted more than once: {info:?}");
    let epoch = info.attachments[0].epoch.map(|epoch| (epoch.term, epoch.seq));
    ensure!(epoch == Some(epoch_in(context)?), "{info:?} is not {context:?}");
    ensure!(world.rds.allowed_hosts(&volume.id).await? == [world.a().host_nqn().await?], "the host list");
    wait_live(world.a(), volume, 2).await.map(drop)
}

async fn kill_during_detach(world: &World, name: &str, held: Held) -> anyhow::Result<()> {
    let volume = fixture::volume(world, name, Access::RwoBlock).await?;
    let context = publish_until_done(world, &volume, world.a()).await?;
    wait_live(world.a(), &volume, 2).await?;
    let writes = requests(world, SET_DISK).await?;
    held.prepare(world).await?;
    let crash = async {
        held.reached(world, &volume, Call::Detach, writes).await?;
        world.controller.kill().await
    };
    let (answer, crashed) = tokio::join!(world.unpublish(&volume, world.a()), crash);
    crashed?;
    ensure!(answer.is_err(), "the call was answered before the controller was killed");
    held.let_go(world).await?;
    world.controller.start().await?;

    unpublish_until_done(world, &volume, world.a()).await?;
    holds_nothing(world, &volume, world.a()).await?;
    moves_on(world, &volume, &context).await
}

/// That the next node gets the volume under a higher epoch; then it is deleted.
async fn moves_on(
    world: &World,
    volume: &Volume,
    before: &cleat_e2e::world::PublishContext,
) -> anyhow::Result<()> {
    let next = publish_until_done(world, volume, world.b()).await?;
    ensure!(epoch_in(&next)? > epoch_in(before)?, "{next:?} does not come after {before:?}");
    let info = world.controller.volume(&volume.id).await?;
    ensure!(info.attachments.len() == 1 && info.attachments[0].node_id == "node-b", "{info:?}");
    remove(world, volume, world.b()).await
}

/// Granted and recorded; whether the RDS will let the host in is not known.
pub(crate) async fn killed_while_the_rds_is_to_allow_the_host(world: &World) -> anyhow::Result<()> {
    kill_during_attach(world, "crash-allow", Held::RdsAsked).await
}

/// The host may connect, and the controller has not seen that it may.
pub(crate) async fn killed_after_the_rds_has_allowed_the_host(world: &World) -> anyhow::Result<()> {
    kill_during_attach(world, "crash-allowed", Held::RdsDone).await
}

/// The directive is on its way to an agent that will carry it out when nobody waits for it any more.
pub(crate) async fn killed_while_the_agent_is_to_attach(world: &World) -> anyhow::Result<()> {
    kill_during_attach(world, "crash-attach", Held::AgentTold).await
}

/// The device is there, and only the node knows.
pub(crate) async fn killed_after_the_agent_has_attached(world: &World) -> anyhow::Result<()> {
    kill_during_attach(world, "crash-attached", Held::AgentDone).await
}

/// A finished attach outlives the controller, and so does the writer on it.
pub(crate) async fn killed_after_it_has_answered_an_attach(world: &World) -> anyhow::Result<()> {
    let (volume, attached) = attached(world, "crash-answered", Access::RwoBlock, world.a()).await?;
    let kernel = wait_live(world.a(), &volume, 2).await?;
    let mut writer = fixture::writing(world.a(), &attached, 0, Some(1), 5).await?;
    world.controller.kill().await?;
    writer.wait_progress(20, SOON).await?;
    world.controller.start().await?;
    let context = publish_until_done(world, &volume, world.a()).await?;
    ensure!(context == attached.context, "{context:?}, before {:?}", attached.context);
    holds_once(world, &volume, &context).await?;
    ensure!(wait_live(world.a(), &volume, 2).await? == kernel, "the connections changed");
    // Before, the node is one that nobody has heard of.
    world.wait_session(world.b(), LATER).await?;
    refused(world.publish(&volume, world.b()).await, Code::FailedPrecondition, &["node-a"])?;
    stop_unharmed(&mut writer).await?;
    remove(world, &volume, world.a()).await
}

/// The detach is recorded as wanted and goes on by itself; the directive reaches an agent that nobody listens to.
pub(crate) async fn killed_while_the_agent_is_to_detach(world: &World) -> anyhow::Result<()> {
    kill_during_detach(world, "crash-detach", Held::AgentTold).await
}

/// The device is gone, drained, and only the node knows.
pub(crate) async fn killed_after_the_agent_has_detached(world: &World) -> anyhow::Result<()> {
    kill_during_detach(world, "crash-detached", Held::AgentDone).await
}

/// The host is off the list, and the controller has not seen that it is.
pub(crate) async fn killed_after_the_rds_has_taken_the_host_off(world: &World) -> anyhow::Result<()> {
    kill_during_detach(world, "crash-denied", Held::RdsDone).await
}

/// What was proven gone stays gone.
pub(crate) async fn killed_after_it_has_answered_a_detach(world: &World) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "crash-done", Access::RwoBlock).await?;
    let context = publish_until_done(world, &volume, world.a()).await?;
    unpublish_until_done(world, &volume, world.a()).await?;
    world.controller.restart().await?;
    for node in world.nodes() {
        world.wait_session(node, LATER).await?;
    }
    world.unpublish(&volume, world.a()).await.context("the same Unpublish again")?;
    holds_nothing(world, &volume, world.a()).await?;
    moves_on(world, &volume, &context).await
}
