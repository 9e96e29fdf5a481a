//! `cleat-bench`: what `hack/bench` runs. See there.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cleat_e2e::bench::{self, Options};

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
}

fn main() -> ExitCode {
    let What::Attach { json, kernel, volumes, repetitions } = Cli::parse().what;
    let rounds = volumes.into_iter().filter(|volumes| *volumes > 0).map(|volumes| {
        let times = if volumes > 8 { repetitions.div_ceil(2) } else { repetitions };
        (usize::from(volumes), usize::from(times))
    });
    match ran(&Options { kernel, rounds: rounds.collect() }, json) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "hack/bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ran(options: &Options, json: bool) -> anyhow::Result<()> {
    // Before any thread: see Namespace::enter.
    let run = cleat_rig::Namespace::enter("bench")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let figures = runtime.block_on(bench::run(&run, options))?;
    if json {
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&figures)?)?;
    }
    runtime.shutdown_background();
    Ok(())
}
