//! `cleat-demo`: what `hack/demo` runs. See there.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cleat_e2e::demo::fence::{self, FenceOptions, FenceSabotage};
use cleat_e2e::demo::migrate::{self, MigrateFault, MigrateOptions, MigrateSabotage};
use cleat_e2e::demo::{self, Options, Sabotage};
use cleat_rig::Namespace;
use serde::Serialize;
use tokio::runtime::Runtime;

/// Shows the main job on real kernels: four virtual machines, one volume, a writer that moves.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    other: Option<Other>,
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

/// What else can be shown.
#[derive(Debug, Subcommand)]
enum Other {
    /// Fence a writing node, let it come back, and look for a write that landed after the proof
    Fence {
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
        /// Kernel of the machines, as hack/setup kernels has fetched it; rungs that it cannot do are left out
        #[arg(long, value_name = "VERSION", env = "CLEAT_KERNEL", default_value = "6.18")]
        kernel: String,
        /// A step of the fence that the target only pretends to take: the run must end with an error
        #[arg(long, value_enum, value_name = "MODE")]
        sabotage: Option<FenceSabotage>,
    },
    /// Live-migrate a virtual machine of a real QEMU while it writes, and look for a write that was lost or late
    Migrate {
        /// Print one JSON object as the last line
        #[arg(long)]
        json: bool,
        /// Kernel of the machines, as hack/setup kernels has fetched it
        #[arg(long, value_name = "VERSION", env = "CLEAT_KERNEL", default_value = "6.1")]
        kernel: String,
        /// Break something on purpose: the run must end with an error
        #[arg(long, value_enum, value_name = "MODE")]
        sabotage: Option<MigrateSabotage>,
        /// Play KubeVirt's part on an API server beside the machines, where the controller keeps its records: who migrates has to
        /// be on record then. CLEAT_KUBERNETES says where its program is
        #[arg(long)]
        kubevirt: bool,
        /// What goes wrong in a migration that has to end well all the same; of several, in one migration after the other
        #[arg(long, value_enum, value_name = "FAULT,…", value_delimiter = ',', conflicts_with = "sabotage")]
        fault: Vec<MigrateFault>,
    },
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
    let run = Namespace::enter("demo")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ok = match &cli.other {
        None => main_job(cli, &run, &runtime)?,
        Some(Other::Fence { json, kernel, sabotage }) => {
            let options = FenceOptions { kernel: kernel.clone(), sabotage: *sabotage };
            let outcome = runtime.block_on(fence::run(&run, &options))?;
            print_json(*json, &outcome)?;
            outcome.ok
        }
        Some(Other::Migrate { json, kernel, sabotage, kubevirt, fault }) => {
            let options = MigrateOptions {
                kernel: kernel.clone(),
                sabotage: *sabotage,
                kubevirt: *kubevirt,
                faults: fault.clone(),
            };
            let outcome = runtime.block_on(migrate::run(&run, &options))?;
            print_json(*json, &outcome)?;
            outcome.ok
        }
    };
    // Threads that follow machines may still wait for a line.
    runtime.shutdown_background();
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn main_job(cli: &Cli, run: &Namespace, runtime: &Runtime) -> anyhow::Result<bool> {
    let options = Options { kernel: cli.kernel.clone(), keep: cli.keep, sabotage: cli.sabotage };
    let outcome = runtime.block_on(demo::run(run, &options))?;
    print_json(cli.json, &outcome)?;
    Ok(outcome.ok)
}

fn print_json(wanted: bool, outcome: &impl Serialize) -> anyhow::Result<()> {
    if wanted {
        writeln!(std::io::stdout(), "{}", serde_json::to_string(outcome)?)?;
    }
    Ok(())
}
