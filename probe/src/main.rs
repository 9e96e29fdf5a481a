//! `cleat-rds-probe`: run by `cleatctl rds probe`, as git runs its subcommands.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use cleat_probe::cli::Cli;
use cleat_runtime::exit::{BAD_CONFIG, Causes, FAILED};

fn main() -> ExitCode {
    let complain = |text: &str| {
        // Where even this cannot be written, the exit code still shows it.
        let _ = writeln!(std::io::stderr(), "cleat-rds-probe: {text}");
    };
    let settings = match Cli::parse().settings() {
        Ok(settings) => settings,
        Err(error) => {
            complain(&Causes(&error).to_string());
            return ExitCode::from(BAD_CONFIG);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    let outcome = runtime.block_on(cleat_probe::run::run(settings));
    // A call that hangs in the kernel is not waited for: it has been reported.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&Causes(&error).to_string());
            ExitCode::from(FAILED)
        }
    }
}
