//! `hack/bench scale --agent`: what an agent that holds very many volumes costs at rest, beside very many processes.
//!
//! In: how many of both. Out: CPU time and memory of the agent over a while in which nothing is asked of it. What always holds:
//! all volumes are there over all portals, and all processes, before that while and after it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cleat_rig::{Command, Daemon, Namespace};
use serde::Serialize;

use super::directives::Directives;
use super::{KEEP_ALIVE_S, NODE_CPUS, accelerator, build, competition, disks, say};
use crate::world::{Node, World, WorldOptions, blocking};

/// For 5,000 processes and 200 volumes.
const NODE_MEMORY_MIB: u32 = 4096;
const RDS_MEMORY_MIB: u32 = 1024;
/// For all processes to be there.
const CROWD: Duration = Duration::from_secs(900);
const LOG: &str = "/run/crowd.log";
/// What attaching and starting have left to do is done after this.
const CALM: Duration = Duration::from_secs(60);
/// In which Linux counts CPU time for users.
const TICK: Duration = Duration::from_millis(10);
/// Of a core, at rest.
const GOAL_PERCENT: f64 = 2.0;

/// What there is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kernel of both machines.
    pub kernel: String,
    /// Volumes that the agent holds, over two portals each.
    pub volumes: usize,
    /// Processes beside it.
    pub processes: u32,
    /// Descriptors that each of them has open.
    pub descriptors: u32,
    /// How long is measured.
    pub rest: Duration,
}

/// What it costs.
#[derive(Debug, Clone, Serialize)]
pub struct AtRest {
    /// Volumes that the agent holds.
    pub volumes: usize,
    /// Processes beside it.
    pub processes: u32,
    /// CPU time of the agent, in percent of one core of the machine.
    pub idle_cpu_percent: f64,
    /// Its memory.
    pub rss_mib: u64,
}

/// Measures it.
///
/// # Errors
/// If a machine, an attach or a process fails.
pub async fn run(run: &Namespace, options: &Options) -> anyhow::Result<AtRest> {
    let mut world_options = WorldOptions::on_kernel(&options.kernel).nodes(1);
    (world_options.node_cpus, world_options.node_memory_mib) = (NODE_CPUS, NODE_MEMORY_MIB);
    world_options.rds_memory_mib = RDS_MEMORY_MIB;
    world_options = world_options.agent_options([["--keep-alive", &format!("{KEEP_ALIVE_S}s")]]);
    world_options.log_filter = "warn".to_owned();
    say(&format!("booting one RDS and one node with {NODE_MEMORY_MIB} MiB, Linux {}", options.kernel));
    let world = World::boot(run, world_options).await?;
    match measured(&world, options).await {
        Ok(at_rest) => Ok(at_rest),
        Err(error) => {
            let folder = world.collect_logs("bench").await;
            Err(error.context(format!("logs are in {}", folder.display())))
        }
    }
}

async fn measured(world: &World, options: &Options) -> anyhow::Result<AtRest> {
    let node = world.a();
    disks::make_for_the_agent(world, node, options.volumes).await?;
    let mut directives = Directives::begin(world, node).await?;
    let attached = directives.attach(options.volumes).await?;
    say(&format!("{} volumes attached in {:.0} ms", options.volumes, attached.wall_ms));
    let crowd = crowd(node, options).await?;
    say(&format!("{} processes with {} descriptors each", options.processes, options.descriptors));
    tokio::time::sleep(CALM).await;

    let pid = directives.agent_pid();
    let (before, began) = (cpu(node, pid).await?, Instant::now());
    tokio::time::sleep(options.rest).await;
    let used = cpu(node, pid).await?.saturating_sub(before);
    let percent = 100.0 * used.as_secs_f64() / began.elapsed().as_secs_f64();
    let status = node.sh(&format!("cat /proc/{pid}/status")).await?;
    let rss_kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    let rss_kib: u64 = rss_kib.context("the agent's memory")?.parse()?;

    let paths = node.nvme_controllers().await?.len();
    let wanted = options.volumes * world.rds.portals().len();
    ensure!(paths >= wanted, "only {paths} of {wanted} paths are there after it");
    ensure!(crowd.exit()?.is_none(), "the processes have ended meanwhile");
    let verdict = if percent < GOAL_PERCENT { "reached" } else { "missed" };
    say(&format!(
        "agent at rest for {} s: {percent:.2} % of a core, {} MiB ({}, {} build); goal below {GOAL_PERCENT} %: {verdict}",
        options.rest.as_secs(),
        rss_kib / 1024,
        accelerator(),
        build(),
    ));
    say(&competition(NODE_CPUS));
    let idle_cpu_percent = (percent * 100.0).round() / 100.0;
    let (volumes, processes) = (options.volumes, options.processes);
    Ok(AtRest { volumes, processes, idle_cpu_percent, rss_mib: rss_kib / 1024 })
}

/// Starts all processes, and waits until they are there.
async fn crowd(node: &Node, options: &Options) -> anyhow::Result<Daemon> {
    let machine = node.shared_machine();
    let command = Command::new("bench-guest").arg("crowd").args([
        "--processes".to_owned(),
        options.processes.to_string(),
        "--descriptors".to_owned(),
        options.descriptors.to_string(),
    ]);
    let crowd = blocking(move || machine.daemon(&command, LOG)).await?;
    let deadline = Instant::now() + CROWD;
    loop {
        let said = node.sh(&format!("cat {LOG}")).await?;
        if said.contains("all there") {
            return Ok(crowd);
        }
        ensure!(crowd.exit()?.is_none() && Instant::now() < deadline, "not all processes start: {said}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The CPU time that a process of the node has used.
async fn cpu(node: &Node, pid: u32) -> anyhow::Result<Duration> {
    let stat = node.sh(&format!("cat /proc/{pid}/stat")).await?;
    // What precedes the figures ends with the name in brackets, which may have any bytes.
    let (_, rest) = stat.rsplit_once(')').context("the agent's CPU time")?;
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
    let ticks = ticks.sum::<Result<u32, _>>().context("the agent's CPU time")?;
    Ok(TICK * ticks)
}
