//! `hack/bench paths`: how long a write waits when the path that it is on drops packets in silence.
//!
//! In: kernel, repetitions. Out: a table, and JSON. What always holds: the kernel's keep-alive alone and Cleat with
//! `--early-path-reset` are measured in turn on the same machines and the same attached volume, of which only the agent is
//! started again; each cut is of the path that the writes take at that moment, and both paths are live when it begins. A
//! measurement that failed is named and left out, and the end is then a failure; the others go on.
//!
//! Beside the cuts: interruptions of 200 ms, which are to cost neither an error nor a reset; and with `--held` what a cut
//! leaves behind, where the network holds what was sent over the dead path (`held.rs`).

mod cut;
mod figures;
mod held;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cleat_rig::Namespace;

use super::say;
use crate::world::{Access, AgentStart, Attached, NQN_PREFIX, Node, START, World, WorldOptions};
use crate::writer::WriteArgs;
use crate::writer::args::DEFAULT_REGION_BYTES;
pub use figures::Figures;
use figures::Way;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kernel of both machines.
    pub kernel: String,
    /// How many cuts each way, and how many interruptions of 200 ms.
    pub repetitions: usize,
    /// How many cuts each way with what was sent being held.
    pub held: usize,
    /// For how long it is held.
    pub hold: Duration,
}

/// The agent's own default.
const KEEP_ALIVE: &str = "5s";
/// For the writer to go on: longer than any of the kernel's own timeouts, so that a long stall is a figure.
const GOES_ON: Duration = Duration::from_secs(150);
/// For both paths to be live again: the kernel may be at a reset for a minute.
const BACK: Duration = Duration::from_secs(150);
/// For what should take a second or two.
const SOON: Duration = Duration::from_secs(45);
/// An interruption that is to cost nothing.
const FLAP: Duration = Duration::from_millis(200);
/// Acknowledged writes that show the writer to be at work.
const AT_WORK: u64 = 40;
/// Failures in a row after which nothing more is tried.
const MOST_FAILURES: usize = 3;

/// A volume on the one node, and which way its agent goes now.
pub(super) struct Scene<'w> {
    world: &'w World,
    node: &'w Node,
    attached: Attached,
    way: Option<Way>,
}

/// Measures everything, tells it in words and gives it for machines.
///
/// # Errors
/// If a machine or a part fails; where the logs are is said. A measurement that failed is in [`Figures::failures`].
pub async fn run(run: &Namespace, options: &Options) -> anyhow::Result<Figures> {
    let began = Instant::now();
    let mut world_options = WorldOptions::on_kernel(&options.kernel).nodes(1);
    world_options = world_options
        .controller_options([["--path-policy", "all"], ["--attach-deadline", "60s"], ["--drain-bound", "3s"]])
        .agent_options([["--keep-alive", KEEP_ALIVE]]);
    world_options.log_filter = "info".to_owned();
    say(&format!("booting one RDS and one node, Linux {}", options.kernel));
    let world = World::boot(run, world_options).await?;
    let measured = measured(&world, options, began).await;
    let sound = measured.as_ref().is_ok_and(|figures| figures.failures().is_empty());
    if !sound {
        say(&world.logs_are_in("bench-paths").await);
    }
    measured
}

async fn measured(world: &World, options: &Options, began: Instant) -> anyhow::Result<Figures> {
    let node = world.a();
    let release = node.sh("uname -r").await?;
    let bytes = 2 * DEFAULT_REGION_BYTES;
    let volume =
        world.create_volume("bench-paths", Access::RwoBlock, bytes).await.context("CreateVolume")?.value;
    let attached = world.attach(&volume, node).await?;
    let mut scene = Scene { world, node, attached, way: None };
    let mut figures = Figures::new(&release, options.hold);
    let mut in_a_row = 0;
    for (number, round) in rounds(options).into_iter().enumerate() {
        let at = began.elapsed().as_secs_f64();
        match scene.measure(round, options, &mut figures).await {
            Ok(words) => {
                in_a_row = 0;
                say(&format!("{at:>6.0} s  {round}: {words}"));
            }
            Err(error) => {
                in_a_row += 1;
                let failure = format!("measurement {} ({round}): {error:#}", number + 1);
                say(&format!("{at:>6.0} s  FAILED: {failure}"));
                figures.failed(failure);
                if let Err(error) = scene.heal().await {
                    figures.failed(format!("both paths did not come back: {error:#}"));
                    break;
                }
                if in_a_row == MOST_FAILURES {
                    figures.failed(format!("{MOST_FAILURES} failures in a row: the rest was not measured"));
                    break;
                }
            }
        }
    }
    say("");
    say(&conditions(&release, options, began.elapsed()));
    say(&super::competition(2));
    for line in figures.tell() {
        say(&line);
    }
    Ok(figures)
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
enum Round {
    Cut(Way),
    Flap,
    Held(Way),
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cut(way) => write!(f, "{:<16} cut", way.name()),
            Self::Flap => write!(f, "{:<16} 200 ms", Way::Cleat.name()),
            Self::Held(way) => write!(f, "{:<16} cut, held", way.name()),
        }
    }
}

/// All of them, both ways in turn; which is first changes from one repetition to the next.
fn rounds(options: &Options) -> Vec<Round> {
    let ways = |repetition: usize| {
        let mut ways = Way::ALL;
        ways.rotate_left(repetition % 2);
        ways
    };
    let cuts = (0..options.repetitions).flat_map(|n| ways(n).map(Round::Cut));
    let flaps = (0..options.repetitions).map(|_| Round::Flap);
    let held = (0..options.held).flat_map(|n| ways(n).map(Round::Held));
    cuts.chain(flaps).chain(held).collect()
}

impl Scene<'_> {
    async fn measure(
        &mut self,
        round: Round,
        options: &Options,
        figures: &mut Figures,
    ) -> anyhow::Result<String> {
        match round {
            Round::Cut(way) => {
                let seen = self.cut(way).await?;
                let words = seen.to_string();
                figures.cut(way, seen);
                Ok(words)
            }
            Round::Flap => {
                let seen = self.flap().await?;
                let words = seen.to_string();
                figures.flap(seen);
                Ok(words)
            }
            Round::Held(way) => {
                let found = self.held(way, options.hold).await?;
                let words = format!(
                    "{} stale of {} that stalled, longest write {:.0} ms",
                    found.stale,
                    found.stalled,
                    found.longest_us as f64 / 1000.0
                );
                figures.held(way, found);
                Ok(words)
            }
        }
    }

    /// Has an agent that was started just now go one way, with both paths live: what it remembers of earlier resets keeps it
    /// from another one for a minute.
    async fn begin(&mut self, way: Way) -> anyhow::Result<()> {
        self.way = None;
        self.go(way).await
    }

    /// Has the agent go one way, with both paths live.
    async fn go(&mut self, way: Way) -> anyhow::Result<()> {
        if self.way != Some(way) {
            self.way = None;
            if self.node.agent_runs().await {
                self.node.kill_agent().await.context("kill the agent")?;
            }
            let arguments = way.arguments();
            self.node.start_agent(AgentStart { arguments }).await.context("start the agent")?;
            self.world.wait_session(self.node, START).await?;
            self.way = Some(way);
        }
        self.wait_live().await
    }

    /// The volume's subsystem.
    fn nqn(&self) -> String {
        format!("{NQN_PREFIX}{}", self.attached.volume.id)
    }

    async fn writer(&self) -> anyhow::Result<crate::world::Writer> {
        let (volume, name) = (self.attached.volume.id.parse()?, self.node.name().parse()?);
        let mut args = WriteArgs::new(&self.attached.target_path, volume, name, 1);
        (args.start_seq, args.interval_us) = (Some(0), 8_000);
        let mut writer = self.node.write_with(&args).await?;
        writer.wait_writes(AT_WORK, SOON).await?;
        Ok(writer)
    }

    /// Resets that this agent has begun, whatever became of them, and what it has refused.
    async fn counts(&self) -> anyhow::Result<(f64, f64)> {
        let metrics = self.node.metrics().await?;
        let sum = |name| metrics.sum(name, &[]);
        let logged = self.node.agent_log().await?;
        // The metric counts a reset when it has ended, which may take the kernel a minute; the log, when it begins.
        let begun = logged.matches("resetting it before its keep-alive").count();
        Ok((begun as f64, sum("cleat_agent_early_path_refusals_total")))
    }
}

fn conditions(release: &str, options: &Options, took: Duration) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Linux {release}, {}, node and RDS with 1 CPU each on {cores} host cores, {} build; keep-alive {KEEP_ALIVE}; {} cuts \
         each way, {} with what was sent held for {:?}; {:.0} s in all",
        super::accelerator(),
        super::build(),
        options.repetitions,
        options.held,
        options.hold,
        took.as_secs_f64()
    )
}

/// That no write failed.
fn unharmed(errors: &[String]) -> anyhow::Result<()> {
    ensure!(errors.is_empty(), "writes failed: {errors:?}");
    Ok(())
}
