//! `hack/bench handoff`: what a live migration with 1, 8 and 32 volumes of one VM costs, and how much of the guest's pause is
//! storage.
//!
//! In: kernel, volume counts, repetitions. Out: lines for people and JSON. What always holds: each migration with Cleat has one
//! beside it, in the same run on the same machines, for which both nodes were attached by hand before it began; which of the
//! two comes first changes from round to round; a migration in which a write was lost, doubled or late ends the run.

mod figures;

use std::time::{Duration, Instant};

use anyhow::Context;
use cleat_proto::cleat::v1::MigrationInfo;
use cleat_rig::Namespace;
use futures_util::future::try_join_all;

use super::{KEEP_ALIVE_S, NODE_CPUS, competition, disks, say};
use crate::vm::qemu;
use crate::vm::undisturbed::{self, Writing};
use crate::world::{Access, AttachTimes, Attached, ByHand, Node, Volume, World, WorldOptions};
use figures::Handoff;
pub use figures::HandoffFigures;

/// A node runs QEMU beside its agent.
const NODE_MEMORY_MIB: u32 = 1024;
/// The guest writes to the first disk alone, for a minute or so; only what is written takes place.
const FIRST_BYTES: u64 = 1 << 30;

/// What is measured is how long a call takes, so it has longer than in a cluster.
const CALL: Duration = Duration::from_secs(180);

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct HandoffOptions {
    /// Kernel of all machines.
    pub kernel: String,
    /// How many volumes the VM has, and how often that is measured, both ways.
    pub rounds: Vec<(usize, usize)>,
}

/// Measures everything, says it in words and gives it for machines.
///
/// # Errors
/// If a machine, a part or a migration fails; where the logs are is said, and which round it was.
pub async fn run(run: &Namespace, options: &HandoffOptions) -> anyhow::Result<HandoffFigures> {
    let began = Instant::now();
    let mut world = WorldOptions::on_kernel(&options.kernel).nodes(2);
    world = world.controller_options([
        ["--path-policy", "all"],
        ["--attach-deadline", "120s"],
        ["--request-limit", "150s"],
    ]);
    world = world.agent_options([["--keep-alive", &format!("{KEEP_ALIVE_S}s")]]);
    (world.node_memory_mib, world.node_image) = (NODE_MEMORY_MIB, Some(qemu::image()?));
    world.node_cpus = NODE_CPUS;
    world.log_filter = "warn".to_owned();
    say(&format!("booting one RDS and two nodes with QEMU, Linux {}", options.kernel));
    let world = World::boot(run, world).await?;
    match measured(&world, options, began).await {
        Ok(figures) => Ok(figures),
        Err(error) => {
            let folder = world.collect_logs("bench-handoff").await;
            Err(error.context(format!("logs are in {}", folder.display())))
        }
    }
}

async fn measured(world: &World, options: &HandoffOptions, began: Instant) -> anyhow::Result<HandoffFigures> {
    let most = options.rounds.iter().map(|(volumes, _)| *volumes).max().context("nothing to measure")?;
    let bench = Bench::prepare(world, most).await?;
    say(&format!("{:>6.0} s  {most} volumes, and as many attached by hand", began.elapsed().as_secs_f64()));
    let mut figures = HandoffFigures::default();
    let repetitions = options.rounds.iter().map(|(_, times)| *times).max().unwrap_or(0);
    for repetition in 0..repetitions {
        for (volumes, _) in options.rounds.iter().filter(|(_, times)| repetition < *times) {
            let round = || format!("round {} with {volumes} volumes", repetition + 1);
            let (floor_ms, handoff) = if repetition % 2 == 0 {
                let floor = bench.floor(*volumes).await.with_context(round)?;
                (floor, bench.handoff(*volumes).await.with_context(round)?)
            } else {
                let handoff = bench.handoff(*volumes).await.with_context(round)?;
                (bench.floor(*volumes).await.with_context(round)?, handoff)
            };
            say(&format!(
                "{:>6.0} s  {}: {}, by hand {floor_ms:.0} ms",
                began.elapsed().as_secs_f64(),
                round(),
                handoff.in_words()
            ));
            figures.add(*volumes, floor_ms, handoff);
        }
    }
    bench.by_hand.take_away().await?;
    say("");
    say(&format!("Linux {}, {:.0} s in all", world.a().sh("uname -r").await?, began.elapsed().as_secs_f64()));
    say(&competition(2 * NODE_CPUS));
    figures.lines().iter().for_each(|line| say(line));
    Ok(figures)
}

/// A world with volumes for both ways.
struct Bench<'w> {
    world: &'w World,
    volumes: Vec<Volume>,
    by_hand: ByHand<'w>,
}

impl<'w> Bench<'w> {
    async fn prepare(world: &'w World, most: usize) -> anyhow::Result<Self> {
        let sizes: Vec<u64> =
            (0..most).map(|index| if index == 0 { FIRST_BYTES } else { disks::SIZE_BYTES }).collect();
        let mut volumes = Vec::new();
        for (index, bytes) in sizes.iter().enumerate() {
            let name = format!("pvc-handoff-{index}");
            let created = world.create_volume(&name, Access::RwxBlock, *bytes).await;
            volumes.push(created.with_context(|| format!("create {name}"))?.value);
        }
        Ok(Self { world, volumes, by_hand: ByHand::attach(world, &sizes).await? })
    }

    /// The pause of a migration for which both nodes were attached by hand, milliseconds.
    async fn floor(&self, volumes: usize) -> anyhow::Result<f64> {
        let [at_a, at_b] = self.by_hand.disks(volumes)?;
        let first = (self.by_hand.first_nqn()?, FIRST_BYTES);
        let writing = Writing::begin(self.world, "vm-by-hand", first, at_a).await?;
        let order = writing.moves(at_b).await?.judge()?;
        undisturbed::gap_ms(&order)
    }

    /// A migration whose volumes Cleat hands off.
    async fn handoff(&self, volumes: usize) -> anyhow::Result<Handoff> {
        let (world, volumes) = (self.world, self.volumes.get(..volumes).context("too few volumes")?);
        let (a, b) = (world.a(), world.b());
        let at_a = self.attach(volumes, a).await?.0;
        let nqn = world.rds.disk(&volumes.first().context("no volume")?.id).await?.nqn;
        let writing = Writing::begin(world, "vm-cleat", (&nqn, FIRST_BYTES), &paths(&at_a)).await?;
        let (at_b, attach) = self.attach(volumes, b).await.context("attach to node-b, beside node-a")?;
        let mut moved = writing.moves(&paths(&at_b)).await?;
        moved.end_source()?;
        let detach = self.detach(&at_a, a).await?;
        let recorded = world.controller.migrations().await?;
        let order = moved.judge()?;
        self.detach(&at_b, b).await?;
        let mut handoff = Handoff::new(undisturbed::gap_ms(&order)?, attach, detach);
        for volume in volumes {
            let ours = recorded.iter().find(|one| one.volume_id == volume.id);
            handoff.phases(phases(ours.with_context(|| format!("no migration of {} on record", volume.id))?));
        }
        Ok(handoff)
    }

    /// All of them side by side; where they are, and how long each took.
    async fn attach(
        &self,
        volumes: &[Volume],
        node: &Node,
    ) -> anyhow::Result<(Vec<Attached>, Vec<Duration>)> {
        let at = try_join_all(volumes.iter().map(|volume| self.attach_one(volume, node))).await;
        let at = at.with_context(|| format!("attach to {}", node.name()))?;
        let times = at.iter().map(|attached| attached.times.total()).collect();
        Ok((at, times))
    }

    async fn attach_one(&self, volume: &Volume, node: &Node) -> anyhow::Result<Attached> {
        let on = |call: &str| format!("{call} of {}", volume.id);
        let context = self.world.publish_within(volume, node, CALL).await;
        let context = context.with_context(|| on("ControllerPublishVolume"))?;
        let stage = node.stage(volume, &context).await.with_context(|| on("NodeStageVolume"))?;
        let published = node.publish(volume, &context).await.with_context(|| on("NodePublishVolume"))?;
        let times = AttachTimes { publish: context.took, stage: stage.took, node_publish: published.took };
        Ok(Attached {
            volume: volume.clone(),
            node: node.name().to_owned(),
            context: context.value,
            target_path: node.target_path(volume),
            times,
        })
    }

    /// The same back again.
    async fn detach(&self, at: &[Attached], node: &Node) -> anyhow::Result<Vec<Duration>> {
        let times = try_join_all(at.iter().map(|attached| self.detach_one(&attached.volume, node))).await;
        times.with_context(|| format!("detach from {}", node.name()))
    }

    async fn detach_one(&self, volume: &Volume, node: &Node) -> anyhow::Result<Duration> {
        let on = |call: &str| format!("{call} of {}", volume.id);
        let removed = node.unpublish(volume).await.with_context(|| on("NodeUnpublishVolume"))?;
        let unstaged = node.unstage(volume).await.with_context(|| on("NodeUnstageVolume"))?;
        let unpublished = self.world.unpublish_within(volume, node, CALL).await;
        let unpublished = unpublished.with_context(|| on("ControllerUnpublishVolume"))?;
        Ok(removed.took + unstaged.took + unpublished.took)
    }
}

fn paths(at: &[Attached]) -> Vec<String> {
    at.iter().map(|attached| attached.target_path.clone()).collect()
}

/// Each step of a migration with the time since the step before, milliseconds.
fn phases(migration: &MigrationInfo) -> Vec<(String, f64)> {
    let pairs = migration.steps.windows(2).filter_map(|pair| Some((pair.first()?, pair.get(1)?)));
    let since = |before: u64, after: u64| after.saturating_sub(before) as f64;
    pairs.map(|(before, after)| (after.name.clone(), since(before.at_unix_ms, after.at_unix_ms))).collect()
}
