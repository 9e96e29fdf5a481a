//! The agent has done it, and the controller never heard: the management network was cut in between.

use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, World};
use cleat_rig::Network;
use tonic::Code;

use crate::fixture::{
    self, LATER, controllers, cut_off_with_a_directive, delete, holds_nothing, publish_until_done, remove,
    unpublish_until_done, wait_gone, wait_live,
};

/// How long the attacher waits for an answer: longer than the silence deadline, shorter than the controller waits.
const CALL: Duration = Duration::from_secs(7);

/// Unavailable, or still waiting: the caller is told to repeat, and that is what helps.
fn is_not_final(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Aborted | Code::DeadlineExceeded | Code::Cancelled)
}

pub(crate) async fn an_attach_whose_answer_was_lost_is_the_same_attach_when_repeated(
    world: &World,
) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "lost-attach", Access::RwoBlock).await?;
    world.a().freeze_agent().await?;
    let trouble = async {
        cut_off_with_a_directive(world, &volume, world.a(), "Connecting").await?;
        wait_live(world.a(), &volume, 2).await
    };
    let (answer, kernel) = tokio::join!(world.publish_within(&volume, world.a(), CALL), trouble);
    let kernel = kernel?;
    let status = answer.err().context("answered by an agent that was cut off")?;
    ensure!(is_not_final(status.code()), "{status:?}");
    let granted = fixture::attachment(world, &volume, world.a()).await?.context("forgotten")?;
    ensure!(
        world.publish_within(&volume, world.b(), CALL).await.is_err(),
        "node-b was let in while node-a was in doubt"
    );

    world.a().machine().restore_path(Network::Management)?;
    world.wait_session(world.a(), LATER).await?;
    let context = publish_until_done(world, &volume, world.a()).await?;
    let epoch = context.get(fixture::EPOCH_KEY).context("no epoch")?;
    ensure!(*epoch == fixture::epoch_of(&granted), "granted anew: {epoch}, before {granted:?}");
    ensure!(controllers(world.a(), &volume).await? == kernel, "connected anew");
    remove(world, &volume, world.a()).await
}

/// The proof that what was in flight has drained is kept by the node, and comes with its next inventory.
pub(crate) async fn a_detach_whose_answer_was_lost_is_proven_when_repeated(
    world: &World,
) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "lost-detach", Access::RwoBlock).await?;
    publish_until_done(world, &volume, world.a()).await?;
    wait_live(world.a(), &volume, 2).await?;
    world.a().freeze_agent().await?;
    let trouble = async {
        cut_off_with_a_directive(world, &volume, world.a(), "Draining").await?;
        wait_gone(world.a(), &volume).await
    };
    let (answer, gone) = tokio::join!(world.unpublish_within(&volume, world.a(), CALL), trouble);
    gone?;
    let status = answer.err().context("answered by an agent that was cut off")?;
    ensure!(is_not_final(status.code()), "{status:?}");
    ensure!(
        world.publish_within(&volume, world.b(), CALL).await.is_err(),
        "node-b was let in without a proof"
    );

    world.a().machine().restore_path(Network::Management)?;
    world.wait_session(world.a(), LATER).await?;
    unpublish_until_done(world, &volume, world.a()).await?;
    holds_nothing(world, &volume, world.a()).await?;
    // node-b's call went on after its caller had given up, and may have been granted by now.
    unpublish_until_done(world, &volume, world.b()).await?;
    holds_nothing(world, &volume, world.b()).await?;
    let info = world.controller.volume(&volume.id).await?;
    let proof =
        info.past_evidence.iter().find(|proof| proof.node_id == "node-a").context("no evidence is kept")?;
    ensure!(proof.source == "AgentAbsent" && proof.verdict == "Fenced", "{proof:?}");
    ensure!(
        !proof.drained_by.is_empty() && proof.assumption.contains("drain bound"),
        "nobody heard of its paths while the session was cut, so the bound is waited for and named: {proof:?}"
    );
    delete(world, &volume).await
}
