//! `hack/bench restarts`: what a detach takes after an agent's or a controller's restart, and after a path came and went.
//!
//! In: kernel, repetitions. Out: [`Cases`]: each against an ordinary detach of the same kind in the same run, with what proved
//! it. What always holds: the target waits for what it has received when an export goes off, and is known to; beside another
//! node that has the volume nothing may go off, so there only the node's own proof helps. After a path came and went that is
//! none, so beside another node this is not measured: it is the drain bound.

use std::time::{Duration, Instant};

use anyhow::Context;
use cleat_proto::cleat::v1::volume_state::Phase;
use cleat_rig::{Namespace, Network};

use super::cases::Cases;
use super::{accelerator, build, competition, say};
use crate::world::{Access, AgentStart, Kernels, Look, Node, Rung, Volume, World, WorldOptions, wait_for};

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kernel of all machines.
    pub kernel: String,
    /// How often each case is measured.
    pub repetitions: usize,
}

/// Of an ordinary detach, at most so much.
const TARGET: f64 = 1.5;
const LONG: Duration = Duration::from_secs(120);
/// For a detach that waits for the drain bound, too.
const DETACH: Duration = Duration::from_secs(180);
const SIZE_BYTES: u64 = 16 << 20;

/// What has happened to the volume before it is detached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Befell {
    Nothing,
    AgentRestart,
    ControllerRestart,
    PathLoss,
}

impl Befell {
    const ALL: [Self; 4] = [Self::Nothing, Self::AgentRestart, Self::ControllerRestart, Self::PathLoss];

    fn name(self, beside: bool) -> &'static str {
        match (self, beside) {
            (Self::Nothing, false) => "alone, ordinary",
            (Self::AgentRestart, false) => "alone, after the agent's restart",
            (Self::ControllerRestart, false) => "alone, after the controller's restart",
            (Self::PathLoss, false) => "alone, after a path came and went",
            (Self::Nothing, true) => "beside another node, ordinary",
            (Self::AgentRestart, true) => "beside another node, after the agent's restart",
            (Self::ControllerRestart, true) => "beside another node, after the controller's",
            (Self::PathLoss, true) => "beside another node, after a path came and went",
        }
    }

    fn is_measured(self, beside: bool) -> bool {
        !(beside && self == Self::PathLoss)
    }
}

/// Measures everything, tells it in words and gives it for machines.
///
/// # Errors
/// If a machine, a part or a measurement fails; where the logs are is said.
pub async fn run(run: &Namespace, options: &Options) -> anyhow::Result<Cases> {
    let mut world_options = WorldOptions::on_kernel(&options.kernel).nodes(2);
    world_options.log_filter = "warn,cleat_agent=info".to_owned();
    let kernels = Kernels::of(&world_options)?;
    say(&format!("booting one RDS and two nodes, Linux {}", options.kernel));
    let world = World::boot_machines(run, &world_options).await?;
    match measured(&world, kernels, options).await {
        Ok(cases) => Ok(cases),
        Err(error) => {
            let folder = world.collect_logs("bench-restarts").await;
            Err(error.context(format!("logs are in {}", folder.display())))
        }
    }
}

async fn measured(world: &World, kernels: Kernels, options: &Options) -> anyhow::Result<Cases> {
    let began = Instant::now();
    world.rds.start().await?;
    world.view_target(&Rung::Acl.view(kernels)).await?;
    let release = world.a().sh("uname -r").await?;
    let mut cases = Cases::new("restarts", TARGET);
    for repetition in 0..options.repetitions {
        for beside in [false, true] {
            let mut all = Befell::ALL;
            // The first one of each kind is what the others are compared with: it is noted first.
            if repetition > 0 {
                all.rotate_left(repetition % Befell::ALL.len());
            }
            for befell in all.into_iter().filter(|one| one.is_measured(beside)) {
                let name = befell.name(beside);
                let volume = format!("restarts-{repetition}-{beside}-{befell:?}").to_lowercase();
                let scene = Scene { world, beside };
                let (ms, proof) = scene.measure(&volume, befell).await.context(name)?;
                let against = (befell != Befell::Nothing).then(|| Befell::Nothing.name(beside));
                let at = began.elapsed().as_secs_f64();
                say(&format!("{at:>6.0} s  round {}  {name}: {ms:.0} ms, by {proof}", repetition + 1));
                cases.add(name, against, ms, [proof]);
            }
        }
    }
    say("");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    say(&format!(
        "Linux {release}, {}, three machines of one CPU on {cores} host cores, {} build; {} repetitions; {:.0} s in all",
        accelerator(),
        build(),
        options.repetitions,
        began.elapsed().as_secs_f64()
    ));
    say(&competition(3));
    cases.tell().iter().for_each(|line| say(line));
    Ok(cases)
}

struct Scene<'w> {
    world: &'w World,
    /// The other node has the volume, too.
    beside: bool,
}

impl Scene<'_> {
    /// How long the Unpublish took, and by what nothing was on its way any more.
    async fn measure(&self, name: &str, befell: Befell) -> anyhow::Result<(f64, String)> {
        let (world, node) = (self.world, self.world.a());
        let access = if self.beside { Access::RwxBlock } else { Access::RwoBlock };
        let volume = world.create_volume(name, access, SIZE_BYTES).await.context("CreateVolume")?.value;
        for holder in self.holders() {
            world.publish(&volume, holder).await.context("ControllerPublishVolume")?;
            self.ready(&volume, holder).await?;
        }
        self.befalls(befell, &volume).await?;
        for holder in self.holders() {
            self.ready(&volume, holder).await?;
        }
        let detached = world.unpublish_within(&volume, node, DETACH).await;
        let took = detached.context("ControllerUnpublishVolume")?.took;
        let proof = world.evidence(&volume, node).await?;
        for holder in self.holders().skip(1) {
            world.unpublish_within(&volume, holder, DETACH).await.context("ControllerUnpublishVolume")?;
        }
        world.delete_volume(&volume).await.context("DeleteVolume")?;
        Ok((took.as_secs_f64() * 1000.0, format!("{}, {}", proof.source, proof.drained_by)))
    }

    /// Whom the measured one is first of.
    fn holders(&self) -> impl Iterator<Item = &Node> {
        self.world.nodes().iter().take(if self.beside { 2 } else { 1 })
    }

    async fn befalls(&self, befell: Befell, volume: &Volume) -> anyhow::Result<()> {
        let (world, node) = (self.world, self.world.a());
        match befell {
            Befell::Nothing => Ok(()),
            Befell::AgentRestart => {
                noted(node, volume).await?;
                node.kill_agent().await?;
                node.start_agent(AgentStart::default()).await?;
                world.wait_session(node, LONG).await
            }
            Befell::ControllerRestart => {
                world.controller.restart().await?;
                for node in world.nodes() {
                    world.wait_session(node, LONG).await?;
                }
                Ok(())
            }
            Befell::PathLoss => {
                node.machine().cut_path(Network::Storage1)?;
                live(node, 1).await?;
                node.machine().restore_path(Network::Storage1)?;
                live(node, 2).await
            }
        }
    }

    /// The controller has heard that it is ready on all paths.
    async fn ready(&self, volume: &Volume, node: &Node) -> anyhow::Result<()> {
        wait_for(format!("{} to be ready on {}", volume.id, node.name()), LONG, async || {
            let info = self.world.controller.volume(&volume.id).await?;
            let its = info.attachments.into_iter().find(|one| one.node_id == node.name());
            let is_ready = its.as_ref().is_some_and(|one| {
                one.phase == "Ready"
                    && one.reported.as_ref().is_some_and(|state| state.phase() == Phase::Ready)
            });
            Ok(Look::holds(is_ready, format!("{its:?}")))
        })
        .await
        .map_err(Into::into)
    }
}

/// The agent has noted for its next process which connections there are.
async fn noted(node: &Node, volume: &Volume) -> anyhow::Result<()> {
    wait_for(format!("the agent to note the connections of {}", volume.id), LONG, async || {
        let text = node.sh("cat /data/cleat/connections.json 2>/dev/null || true").await?;
        Ok(Look::holds(text.contains(&volume.id), text))
    })
    .await
    .map_err(Into::into)
}

/// So many of the node's controllers are live.
async fn live(node: &Node, count: usize) -> anyhow::Result<()> {
    wait_for(format!("{count} live controllers on {}", node.name()), LONG, async || {
        let all = node.nvme_controllers().await?;
        let live = all.iter().filter(|(.., state)| state == "live").count();
        Ok(Look::holds(live == count, format!("{all:?}")))
    })
    .await
    .map_err(Into::into)
}
