//! `cleat-bench`: what `hack/bench` runs. See there.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use clap::{Parser, Subcommand};
use cleat_e2e::bench::handoff::{self, HandoffOptions};
use cleat_e2e::bench::{self, Options, at_rest, fence, one_network, paths, restarts};
use cleat_e2e::world::Rung;
use cleat_rig::Namespace;
use serde::Serialize;
use tokio::runtime::Runtime;

/// Measures Cleat on real kernels.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// What attach and detach cost, as ratios to what the kernel alone takes
    Attach {
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
        /// Kernel of the machines, as hack/setup kernels has fetched it
        #[arg(long, value_name = "VERSION", env = "CLEAT_KERNEL", default_value = "6.1")]
        kernel: String,
        /// Numbers of volumes that are attached at once
        #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1, 8, 32])]
        volumes: Vec<u8>,
        /// How often each is measured (with more than 8 volumes: half as often, rounded up)
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
        repetitions: u8,
    },
    /// What a detach takes after a restart of either side, and after a path came and went, against an ordinary one
    Restarts {
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
        /// Kernel of the machines, as hack/setup kernels has fetched it
        #[arg(long, value_name = "VERSION", env = "CLEAT_KERNEL", default_value = "6.1")]
        kernel: String,
        /// How often each case is measured
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
        repetitions: u8,
    },
    /// What attaches and detaches of many volumes take with one of two storage networks dropping packets
    OneNetwork {
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
        /// Kernel of the machines, as hack/setup kernels has fetched it
        #[arg(long, value_name = "VERSION", env = "CLEAT_KERNEL", default_value = "6.1")]
        kernel: String,
        /// Number of volumes that are attached at once
        #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u8).range(1..))]
        volumes: u8,
        /// How often each case is measured
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
        repetitions: u8,
    },
    /// What an agent costs at rest that holds very many volumes, beside very many processes
    AtRest {
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
        /// Kernel of the machines, as hack/setup kernels has fetched it
        #[arg(long, value_name = "VERSION", env = "CLEAT_KERNEL", default_value = "6.1")]
        kernel: String,
        /// Volumes that it holds
        #[arg(long, value_name = "N", default_value_t = 200)]
        volumes: usize,
        /// Processes beside it, with 30 descriptors each
        #[arg(long, value_name = "N", default_value_t = 5_000)]
        processes: u32,
        /// Seconds that are measured
        #[arg(long, value_name = "N", default_value_t = 120)]
        rest_s: u64,
    },
    /// What a live migration costs with volumes of one VM, beside the same one with both nodes attached by hand
    Handoff {
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
        /// Kernel of the machines, as hack/setup kernels has fetched it
        #[arg(long, value_name = "VERSION", env = "CLEAT_KERNEL", default_value = "6.1")]
        kernel: String,
        /// Numbers of volumes of the VM
        #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1, 8, 32])]
        volumes: Vec<u8>,
        /// How often each is measured, both ways in turn (with more than 8 volumes: half as often, rounded up)
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
        repetitions: u8,
    },
    /// What a fence costs on each rung, as ratios to the raw commands of that rung
    Fence {
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
        /// Kernel of the machines, as hack/setup kernels has fetched it; rungs that it cannot do are left out
        #[arg(long, value_name = "VERSION", env = "CLEAT_KERNEL", default_value = "6.18")]
        kernel: String,
        /// Rungs, in this order
        #[arg(long, value_name = "RUNG,RUNG", value_delimiter = ',', value_parser = rung,
              default_value = "reservation,acl,secret,export-off")]
        rungs: Vec<Rung>,
        /// How often each is measured, both ways in turn
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
        repetitions: u8,
        /// How often each is measured with a store that holds the fenced host's writes
        #[arg(long, value_name = "N", default_value_t = 1)]
        held: u8,
    },
    /// How long a write waits when its path drops packets in silence: keep-alive alone, and Cleat's early reset
    Paths {
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
        /// Kernel of the machines, as hack/setup kernels has fetched it
        #[arg(long, value_name = "VERSION", env = "CLEAT_KERNEL", default_value = "6.1")]
        kernel: String,
        /// How often a path is cut each way, in turn, and how often it is interrupted for 200 ms
        #[arg(long, value_name = "N", default_value_t = 20)]
        repetitions: u8,
        /// How often it is cut each way while what was sent over it comes through late, and overwrites are counted
        #[arg(long, value_name = "N", default_value_t = 0)]
        held: u8,
        /// How late, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=60))]
        hold_s: u8,
    },
}

fn rung(text: &str) -> Result<Rung, String> {
    let names = || Rung::ALL.map(Rung::name).join(", ");
    Rung::ALL.into_iter().find(|rung| rung.name() == text).ok_or_else(|| format!("one of {}", names()))
}

fn main() -> ExitCode {
    match ran(Cli::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "hack/bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ran(what: What) -> anyhow::Result<()> {
    // Before any thread: see Namespace::enter.
    let run = Namespace::enter("bench")?;
    let runtime = Runtime::new()?;
    let mut failures = 0;
    match what {
        What::Attach { json, kernel, volumes, repetitions } => {
            let options = Options { kernel, rounds: rounds(volumes, repetitions) };
            print_json(json, &runtime.block_on(bench::run(&run, &options))?)?;
        }
        What::Restarts { json, kernel, repetitions } => {
            let options = restarts::Options { kernel, repetitions: repetitions.into() };
            print_json(json, &runtime.block_on(restarts::run(&run, &options))?)?;
        }
        What::OneNetwork { json, kernel, volumes, repetitions } => {
            let (volumes, repetitions) = (volumes.into(), repetitions.into());
            let options = one_network::Options { kernel, volumes, repetitions };
            print_json(json, &runtime.block_on(one_network::run(&run, &options))?)?;
        }
        What::AtRest { json, kernel, volumes, processes, rest_s } => {
            let (descriptors, rest) = (30, Duration::from_secs(rest_s));
            let options = at_rest::Options { kernel, volumes, processes, descriptors, rest };
            print_json(json, &runtime.block_on(at_rest::run(&run, &options))?)?;
        }
        What::Handoff { json, kernel, volumes, repetitions } => {
            let options = HandoffOptions { kernel, rounds: rounds(volumes, repetitions) };
            print_json(json, &runtime.block_on(handoff::run(&run, &options))?)?;
        }
        What::Fence { json, kernel, rungs, repetitions, held } => {
            let (repetitions, held_repetitions) = (usize::from(repetitions), usize::from(held));
            let options = fence::Options { kernel, rungs, repetitions, held_repetitions };
            print_json(json, &runtime.block_on(fence::run(&run, &options))?)?;
        }
        What::Paths { json, kernel, repetitions, held, hold_s } => {
            let (repetitions, held) = (usize::from(repetitions), usize::from(held));
            let hold = Duration::from_secs(hold_s.into());
            let figures =
                runtime.block_on(paths::run(&run, &paths::Options { kernel, repetitions, held, hold }))?;
            failures = figures.failures().len();
            print_json(json, &figures)?;
        }
    }
    runtime.shutdown_background();
    // After the JSON, which has them too.
    ensure!(failures == 0, "{failures} measurements failed; they are named above");
    Ok(())
}

fn rounds(volumes: Vec<u8>, repetitions: u8) -> Vec<(usize, usize)> {
    let rounds = volumes.into_iter().filter(|volumes| *volumes > 0).map(|volumes| {
        let times = if volumes > 8 { repetitions.div_ceil(2) } else { repetitions };
        (usize::from(volumes), usize::from(times))
    });
    rounds.collect()
}

fn print_json(wanted: bool, figures: &impl Serialize) -> anyhow::Result<()> {
    if wanted {
        writeln!(std::io::stdout(), "{}", serde_json::to_string(figures)?)?;
    }
    Ok(())
}
