//! `hack/bench one-network`: attaches and detaches of many volumes at once, with one of two storage networks dropping packets.
//!
//! In: kernel, number of volumes, repetitions. Out: [`Cases`]: each against the same with both networks in the same run. What
//! always holds: the target waits for what it has received when an export goes off, and is known to; nobody else has the
//! volumes; a detach is measured once the kernel has marked all paths of the dead network.

use std::time::{Duration, Instant};

use anyhow::Context;
use cleat_rig::{Namespace, Network};
use futures_util::future::join_all;

use super::cases::Cases;
use super::{NODE_CPUS, accelerator, build, competition, say};
use crate::world::{Access, Kernels, Look, Rung, Volume, World, WorldOptions, wait_for};

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kernel of all machines.
    pub kernel: String,
    /// How many volumes at once.
    pub volumes: usize,
    /// How often each case is measured.
    pub repetitions: usize,
}

/// Of what it takes with both networks, at most so much.
const TARGET: f64 = 1.5;
const LONG: Duration = Duration::from_secs(240);
const SIZE_BYTES: u64 = 16 << 20;

const ATTACH_BOTH: &str = "attach, both networks";
const ATTACH_ONE: &str = "attach, one drops packets";
const DETACH_BOTH: &str = "detach, both networks";
const DETACH_ONE: &str = "detach, one drops packets";

/// Measures everything, tells it in words and gives it for machines.
///
/// # Errors
/// If a machine, a part or a measurement fails; where the logs are is said.
pub async fn run(run: &Namespace, options: &Options) -> anyhow::Result<Cases> {
    let mut world_options = WorldOptions::on_kernel(&options.kernel).nodes(1);
    (world_options.node_cpus, world_options.node_memory_mib) = (NODE_CPUS, 1024);
    world_options = world_options.controller_options([["--attach-deadline", "120s"]]);
    world_options.log_filter = "warn".to_owned();
    let kernels = Kernels::of(&world_options)?;
    say(&format!("booting one RDS and one node with {NODE_CPUS} CPUs, Linux {}", options.kernel));
    let world = World::boot_machines(run, &world_options).await?;
    match measured(&world, kernels, options).await {
        Ok(cases) => Ok(cases),
        Err(error) => {
            let folder = world.collect_logs("bench-one-network").await;
            Err(error.context(format!("logs are in {}", folder.display())))
        }
    }
}

async fn measured(world: &World, kernels: Kernels, options: &Options) -> anyhow::Result<Cases> {
    let began = Instant::now();
    world.rds.start().await?;
    world.view_target(&Rung::Acl.view(kernels)).await?;
    let release = world.a().sh("uname -r").await?;
    let mut volumes = Vec::new();
    for number in 0..options.volumes {
        let name = format!("one-network-{number}");
        let created = world.create_volume(&name, Access::RwoBlock, SIZE_BYTES).await;
        volumes.push(created.with_context(|| format!("create {name}"))?.value);
    }
    let (cut, mend) = (
        || world.a().machine().cut_path(Network::Storage1),
        || world.a().machine().restore_path(Network::Storage1),
    );
    let mut cases = Cases::new("one-network", TARGET);
    for repetition in 0..options.repetitions {
        let attach_both = attach(world, &volumes).await?;
        live(world, 2 * volumes.len()).await?;
        let (detach_both, proofs) = detach(world, &volumes).await?;
        cases.add(ATTACH_BOTH, None, attach_both, []);
        cases.add(DETACH_BOTH, None, detach_both, proofs);

        cut()?;
        let attach_one = attach(world, &volumes).await?;
        cases.add(ATTACH_ONE, Some(ATTACH_BOTH), attach_one, []);
        mend()?;
        // Each gets its second path, and loses it again.
        live(world, 2 * volumes.len()).await?;
        cut()?;
        live(world, volumes.len()).await?;
        let (detach_one, proofs) = detach(world, &volumes).await?;
        cases.add(DETACH_ONE, Some(DETACH_BOTH), detach_one, proofs);
        mend()?;
        say(&format!(
            "{:>6.0} s  round {}: attach {attach_both:.0} / {attach_one:.0} ms, detach {detach_both:.0} / {detach_one:.0} ms",
            began.elapsed().as_secs_f64(),
            repetition + 1
        ));
        live(world, 0).await?;
    }
    say("");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    say(&format!(
        "Linux {release}, {}, node with {NODE_CPUS} CPUs and RDS with 1 on {cores} host cores, {} build; {} volumes at \
         once, {} repetitions; {:.0} s in all",
        accelerator(),
        build(),
        options.volumes,
        options.repetitions,
        began.elapsed().as_secs_f64()
    ));
    say(&competition(NODE_CPUS));
    cases.tell().iter().for_each(|line| say(line));
    Ok(cases)
}

/// All at once, in milliseconds.
async fn attach(world: &World, volumes: &[Volume]) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let all = volumes.iter().map(|volume| world.publish_within(volume, world.a(), LONG));
    for answer in join_all(all).await {
        answer.context("ControllerPublishVolume")?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1000.0)
}

/// All at once, in milliseconds, and by what each was proven.
async fn detach(world: &World, volumes: &[Volume]) -> anyhow::Result<(f64, Vec<String>)> {
    let begun = Instant::now();
    let all = volumes.iter().map(|volume| world.unpublish_within(volume, world.a(), LONG));
    for answer in join_all(all).await {
        answer.context("ControllerUnpublishVolume")?;
    }
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    let mut proofs = Vec::new();
    for volume in volumes {
        proofs.push(world.evidence(volume, world.a()).await?.drained_by);
    }
    Ok((took, proofs))
}

/// So many of the node's controllers are live.
async fn live(world: &World, count: usize) -> anyhow::Result<()> {
    wait_for(format!("{count} live controllers"), LONG, async || {
        let all = world.a().nvme_controllers().await?;
        let live = all.iter().filter(|(.., state)| state == "live").count();
        Ok(Look::holds(live == count, format!("{live} of {} are live", all.len())))
    })
    .await
    .map_err(Into::into)
}
