//! `cleat-load`: what `hack/bench scale` runs. See there.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use cleat_load::{AgentPoint, Figures, Scale, Times, measure};

/// Measures what very many volumes and agents cost one controller.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Numbers of Ready volumes; a hundredth of each is the number of agents
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000])]
    points: Vec<usize>,
    /// How long CPU is measured at rest; lists are read each 30 s then
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    rest: Duration,
    /// Attaches in a second
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Attaches in all
    #[arg(long, value_name = "N", default_value_t = 1_500)]
    attaches: usize,
    /// What anything may take before it counts as not reached
    #[arg(long, value_name = "DURATION", default_value = "5min", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// The controller; without it, the one beside this program
    #[arg(long, value_name = "FILE")]
    controller: Option<PathBuf>,
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
    /// A file whose last line is what `cleat-bench at-rest --json` has printed: it is the agent's part of the object
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

fn main() -> ExitCode {
    let mut out = std::io::stdout().lock();
    match bench(Args::parse(), &mut out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cleat-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: Args, out: &mut impl Write) -> anyhow::Result<()> {
    let program = match args.controller {
        Some(program) => program,
        None => std::env::current_exe()?.with_file_name("cleat-controller"),
    };
    let agent = args.agent.map(|file| -> anyhow::Result<AgentPoint> {
        let said = std::fs::read_to_string(&file)?;
        let last = said.lines().last().context("it is empty")?;
        serde_json::from_str(last)
            .with_context(|| format!("cannot read the agent's figures in {}", file.display()))
    });
    let agent = agent.transpose()?;
    let times = Times { rest: args.rest, a_second: args.rate, patience: args.patience };
    let runtime = tokio::runtime::Runtime::new().context("cannot start")?;
    let mut points = Vec::new();
    for volumes in args.points {
        let scale = Scale::of(volumes, args.attaches);
        writeln!(out, "\n{volumes} volumes, {} agents", scale.agents)?;
        let mut say = |line: String| {
            // Whoever reads this may have gone; the figures are measured all the same.
            let _ = writeln!(out, "  {line}");
        };
        let point = runtime.block_on(measure(&program, scale, times, &mut say))?;
        for line in point.judged() {
            writeln!(out, "  {line}")?;
        }
        points.push(point);
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    writeln!(out, "\nload of this machine at the end: {}", load.trim())?;
    if args.json {
        let figures = Figures { bench: "scale", points, agent };
        writeln!(out, "{}", serde_json::to_string(&figures)?)?;
    }
    Ok(())
}
