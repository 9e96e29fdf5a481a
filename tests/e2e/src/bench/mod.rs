//! `hack/bench attach`: what attach and detach cost, as ratios to what the kernel alone takes, in one run. What fences
//! cost is [`fence`]'s, what a path that is cut costs [`paths`]', what a VM's live migration does [`handoff`]'s.
//!
//! In: kernel, volume counts, repetitions. Out: a table with targets said to be reached or not, and JSON. What
//! always holds: all four ways are measured in the same machine against the same target, interleaved, with all
//! volumes begun at once; a measurement that failed ends the run, but for nvme-cli's, whose failures are a result.

pub mod at_rest;
mod cases;
mod directives;
mod disks;
pub mod fence;
mod figures;
pub mod handoff;
mod measure;
pub mod one_network;
pub mod paths;
pub mod restarts;

use std::time::{Duration, Instant};

use anyhow::Context;
use cleat_rig::Namespace;

use crate::world::{World, WorldOptions};

pub use cases::Cases;
pub use figures::{Figures, Series};
use measure::Bench;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kernel of both machines.
    pub kernel: String,
    /// How many volumes at once, and how often that is measured.
    pub rounds: Vec<(usize, usize)>,
}

/// CPUs of the node: what the figures of others were measured with.
const NODE_CPUS: u8 = 2;
/// The keep-alive of all connections, whichever way they are made: emulated machines that connect 64 controllers at
/// once stall for longer than the usual 5 s, and a path that is lost by that is none of what is measured here.
const KEEP_ALIVE_S: u32 = 30;

/// Measures everything, tells it in words and gives it for machines.
///
/// # Errors
/// If a machine, a part or a measurement fails; where the logs are is said.
pub async fn run(run: &Namespace, options: &Options) -> anyhow::Result<Figures> {
    let began = Instant::now();
    let mut world_options = WorldOptions::on_kernel(&options.kernel).nodes(1);
    // Ready means the same in all four ways: every portal has its live path.
    world_options =
        world_options.controller_options([["--path-policy", "all"], ["--attach-deadline", "120s"]]);
    (world_options.node_cpus, world_options.node_memory_mib) = (NODE_CPUS, 1024);
    world_options = world_options.agent_options([["--keep-alive", &format!("{KEEP_ALIVE_S}s")]]);
    world_options.log_filter = "warn".to_owned();
    say(&format!("booting one RDS and one node with {NODE_CPUS} CPUs, Linux {}", options.kernel));
    let world = World::boot(run, world_options).await?;
    match measured(&world, options, began).await {
        Ok(figures) => Ok(figures),
        Err(error) => {
            let folder = world.collect_logs("bench").await;
            Err(error.context(format!("logs are in {}", folder.display())))
        }
    }
}

async fn measured(world: &World, options: &Options, began: Instant) -> anyhow::Result<Figures> {
    let release = world.a().sh("uname -r").await?;
    let most = options.rounds.iter().map(|(volumes, _)| *volumes).max().context("nothing to measure")?;
    let mut bench = Bench::prepare(world, most).await?;
    let mut figures = Figures::default();
    let repetitions = options.rounds.iter().map(|(_, repetitions)| *repetitions).max().unwrap_or(0);
    for repetition in 0..repetitions {
        for (volumes, _) in options.rounds.iter().filter(|(_, times)| repetition < *times) {
            bench.round(*volumes, repetition, figures.of(*volumes)).await?;
            say(&format!(
                "{:>6.0} s  round {}, {volumes:>2} at once: {}",
                began.elapsed().as_secs_f64(),
                repetition + 1,
                figures.of(*volumes).latest()
            ));
        }
    }
    say("");
    say(&conditions(&release, &options.rounds, began.elapsed()));
    say(&competition(NODE_CPUS));
    for line in figures.tell() {
        say(&line);
    }
    Ok(figures)
}

fn conditions(release: &str, rounds: &[(usize, usize)], took: Duration) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let times: Vec<String> =
        rounds.iter().map(|(volumes, times)| format!("{volumes} volumes x {times}")).collect();
    format!(
        "Linux {release}, {}, node with {NODE_CPUS} CPUs and RDS with 1 on {cores} host cores, {} build; \
         keep-alive {KEEP_ALIVE_S} s; {}; {:.0} s in all",
        accelerator(),
        build(),
        times.join(", "),
        took.as_secs_f64()
    )
}

fn accelerator() -> &'static str {
    match cleat_rig::Accelerator::choose() {
        cleat_rig::Accelerator::Kvm => "KVM",
        cleat_rig::Accelerator::Emulation => "emulated",
    }
}

fn build() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}

/// What else runs on the host: the host's own load average, which our machines with so many busy CPUs are part of.
fn competition(own: u8) -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    format!(
        "load average {load} (our own machines make up to {own} of it; with more, do not trust the figures)"
    )
}

fn say(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // Whoever reads it may have gone; the run's result is its exit code.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
