//! `hack/bench fence`: what a fence costs on each rung, against the raw commands of that rung in the same run.
//!
//! In: kernel, rungs, repetitions. Out: a table of medians, spreads and ratios, and JSON. What always holds: both ways
//! are measured on the same machines against the same target, in turn, with the same load on the fenced host and on
//! the survivor; a measurement that failed, or ended with another proof than its rung's, ends the run.
//!
//! Cleat is asked by the operators' Fence, which begins at once. An Unpublish of a silent node waits for
//! `--fence-after` first: that is policy and no cost, and is in none of the figures.

mod cleat;
mod figures;
mod load;
mod raw;

use std::time::{Duration, Instant};

use cleat_rig::Namespace;

use super::{competition, say};
use crate::demo::fence::left_out;
use crate::world::{Kernels, Rung, World, WorldOptions};
pub use figures::Figures;
use figures::{Sample, Way};

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kernel of all machines.
    pub kernel: String,
    /// Rungs, in their order.
    pub rungs: Vec<Rung>,
    /// How often each is measured with a store that holds nothing.
    pub repetitions: usize,
    /// How often with one that holds the fenced host's writes.
    pub held_repetitions: usize,
}

/// How long a store holds the fenced host's writes, where it does.
const HOLD: Duration = Duration::from_secs(2);

/// Machines on which a rung is measured.
struct Scene<'w> {
    world: &'w World,
    rung: Rung,
}

/// One measurement of a rung.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// No other has this number.
    number: usize,
    /// Whether the store holds what the fenced host writes.
    held: bool,
}

/// Measures everything, tells it in words and gives it for machines.
///
/// # Errors
/// If a machine, a part or a measurement fails; where the logs are is said.
pub async fn run(run: &Namespace, options: &Options) -> anyhow::Result<Figures> {
    let began = Instant::now();
    let mut world_options = WorldOptions::on_kernel(&options.kernel).nodes(2);
    world_options.log_filter = "warn".to_owned();
    world_options.node_programs.push("fence-guest".to_owned());
    world_options.rds_programs.push("fence-guest".to_owned());
    let kernels = Kernels::of(&world_options)?;
    say(&format!("booting one RDS and two nodes, Linux {}", options.kernel));
    let world = World::boot_machines(run, &world_options).await?;
    match measured(&world, kernels, options, began).await {
        Ok(figures) => Ok(figures),
        Err(error) => {
            let folder = world.collect_logs("bench-fence").await;
            Err(error.context(format!("logs are in {}", folder.display())))
        }
    }
}

async fn measured(
    world: &World,
    kernels: Kernels,
    options: &Options,
    began: Instant,
) -> anyhow::Result<Figures> {
    world.rds.start().await?;
    let release = world.a().sh("uname -r").await?;
    let mut figures = Figures::default();
    let mut number = 0;
    for rung in &options.rungs {
        if let Some(why) = left_out(*rung, kernels) {
            say(&format!("{:<12} left out: {why}", rung.name()));
            figures.left_out(*rung, why);
            continue;
        }
        world.view_target(&rung.view(kernels)).await?;
        let scene = Scene { world, rung: *rung };
        for repetition in 0..options.repetitions + options.held_repetitions {
            let held = repetition >= options.repetitions;
            let mut ways = [Way::Raw, Way::Cleat];
            ways.rotate_left(repetition % 2);
            for way in ways {
                number += 1;
                let round = Round { number, held };
                let sample = scene.measure(way, round).await.map_err(|error| {
                    error.context(format!("{} by {}, round {}", rung.name(), way.name(), repetition + 1))
                })?;
                let (at, held) = (began.elapsed().as_secs_f64(), if held { ", writes held" } else { "" });
                say(&format!(
                    "{at:>6.0} s  {:<12} {:<13} {}{held}",
                    rung.name(),
                    way.name(),
                    sample.in_words()
                ));
                figures.add(*rung, way, round.held, sample);
            }
        }
    }
    say("");
    say(&conditions(&release, options, began.elapsed()));
    say(&competition(3));
    for line in figures.tell() {
        say(&line);
    }
    Ok(figures)
}

impl Scene<'_> {
    async fn measure(&self, way: Way, round: Round) -> anyhow::Result<Sample> {
        match way {
            Way::Raw => self.raw(round).await,
            Way::Cleat => self.cleat(round).await,
        }
    }

    /// Whether another node goes on with the volume: on every rung but the one that is for where there is none.
    fn survives(&self) -> bool {
        self.rung != Rung::ExportOff
    }
}

fn conditions(release: &str, options: &Options, took: Duration) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Linux {release}, {}, three machines of one CPU on {cores} host cores, {} build; {} repetitions, and {} with \
         writes held for {} s; {:.0} s in all",
        super::accelerator(),
        super::build(),
        options.repetitions,
        options.held_repetitions,
        HOLD.as_secs(),
        took.as_secs_f64()
    )
}
