//! `cleat-demo`: what `hack/demo` runs. See there.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use cleat_e2e::demo::{self, Options, Sabotage};

/// Shows the main job on real kernels: four virtual machines, one volume, a writer that moves.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
    /// Leave the machines running at the end, and say how to look inside
    #[arg(long)]
    keep: bool,
    /// Kernel of the machines, as hack/setup kernels has fetched it
    #[arg(long, value_name = "VERSION", env = "CLEAT_KERNEL", default_value = "6.1")]
    kernel: String,
    /// Break something on purpose: the run must end with an error
    #[arg(long, value_enum, value_name = "MODE")]
    sabotage: Option<Sabotage>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match ran(&cli) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "hack/demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ran(cli: &Cli) -> anyhow::Result<ExitCode> {
    // Before any thread: see Namespace::enter.
    let run = cleat_rig::Namespace::enter("demo")?;
    let options = Options { kernel: cli.kernel.clone(), keep: cli.keep, sabotage: cli.sabotage };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(demo::run(&run, &options))?;
    if cli.json {
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&outcome)?)?;
    }
    // Threads that follow machines may still wait for a line.
    runtime.shutdown_background();
    Ok(if outcome.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
