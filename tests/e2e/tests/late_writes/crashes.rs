//! Programs that are killed with -9 in the steps of a fence and started again: the fence goes on from what is stored,
//! and the survivor gets its volume back. The proof holds as any other; where nobody heard that the namespace was down,
//! it rests on the drain bound.
//!
//! Each step is held still from outside, so that the kill comes in the middle of it: the RDS takes its time to answer,
//! or the survivor's agent is stopped.

use std::time::Duration;

use anyhow::Context;
use cleat_e2e::world::{Access, AgentStart, Look, Rung, World, wait_for};
use rds_sim::faults::{Action, Fault};

use crate::scene::{HOLD, SOON, Silence, Survivor, Target, Writing};

/// How slow the RDS is to list its disks, with which each of its steps begins and ends.
const SLOW_MS: u64 = 700;
/// What an export stays off for beyond the writes that are held: a controller that starts again, and waits for what
/// its predecessor has asked to be over (`--rds-settle`, 5 s here).
const OUTAGE: Duration = Duration::from_secs(8);

/// Whose process dies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Controller,
    /// The RDS's own control plane; what its kernel serves goes on.
    Rds,
    /// The agent on the node that goes on using the volume.
    SurvivorsAgent,
}

/// Who dies at which step of a fence.
pub(crate) type Death = (&'static str, Who);

/// Beside a survivor on node-b (RWX); the deaths are in the order of the rung's steps.
pub(crate) async fn fence_goes_on(world: &World, rung: Rung, deaths: &'static [Death]) -> anyhow::Result<()> {
    let words: Vec<String> = deaths.iter().map(|(step, who)| format!("{}-at-{step}", who.name())).collect();
    let what = format!("{}, partition, killed {}", rung.name(), words.join(", "));
    // A name of its own: what a controller that died has asked about a volume holds up the next of the same name.
    let name = format!("crash-{}-{}", rung.name(), words.join("-"));
    let mut target = Target::of(world, rung, 2);
    target.barrier_unheard = deaths.iter().any(|(step, _)| *step == "hide");
    let mut writing = Writing::begin(world, &name, Access::RwxBlock, target).await?;
    let mut survivor = Survivor::begin(&writing).await?;
    writing.silence(Silence::Partition).await?;
    for (step, who) in deaths {
        let slow = Action::Slow { delay_ms: SLOW_MS };
        world.rds.add_fault(&Fault::all(slow).only("GET", "/rest/disk")).await?;
        // What it was called for goes on by itself; whether the call comes to an end is not the question here.
        let call = async {
            let _ = world.unpublish(&writing.volume, world.a()).await;
            std::future::pending().await
        };
        tokio::select! {
            died = who.dies_at(&writing, step) => died,
            never = call => never,
        }
        .with_context(|| format!("{} at {step}", who.name()))?;
        who.begins_again(world).await?;
    }
    world.rds.clear_faults().await?;
    let then = writing.fenced(&what).await?;
    survivor.goes_on().await?;
    Silence::Partition.end(world).await?;
    writing.readmitted().await?;
    writing.nothing_landed_since(&then).await?;
    survivor.end_after(&what, HOLD + OUTAGE).await?;
    writing.again().await?;
    writing.end().await
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Rds => "rds",
            Self::SurvivorsAgent => "agent",
        }
    }

    /// Kills it as soon as node-a's fence is seen to be at this step.
    async fn dies_at(self, writing: &Writing<'_>, step: &str) -> anyhow::Result<()> {
        let world = writing.world;
        let asks_agent = matches!(step, "preempt" | "rekey");
        if asks_agent {
            is_at(writing, "any", |_| true).await?;
            world.b().freeze_agent().await?;
        }
        is_at(writing, step, |now| now == step).await?;
        match self {
            Self::Controller => world.controller.kill().await?,
            Self::Rds => world.rds.kill().await?,
            Self::SurvivorsAgent => return world.b().kill_agent().await,
        }
        if asks_agent {
            world.b().thaw_agent().await?;
        }
        Ok(())
    }

    async fn begins_again(self, world: &World) -> anyhow::Result<()> {
        match self {
            Self::Controller => world.controller.start().await,
            Self::Rds => world.rds.start().await,
            Self::SurvivorsAgent => world.b().start_agent(AgentStart::default()).await,
        }
    }
}

/// Waits until the fence of node-a is at such a step.
async fn is_at(writing: &Writing<'_>, step: &str, such: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    wait_for(format!("step {step} of the fence"), SOON, async || {
        let info = writing.world.controller.volume(&writing.volume.id).await?;
        let a = info.attachments.iter().find(|a| a.node_id == "node-a");
        let fence = a.and_then(|a| a.fence.as_ref());
        Ok(Look::holds(fence.is_some_and(|fence| such(&fence.step)), format!("{a:?}")))
    })
    .await
    .map_err(Into::into)
}
