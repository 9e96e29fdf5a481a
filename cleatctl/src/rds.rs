//! `cleatctl rds …`: a program of its own, as git runs subcommands that it lacks.
//!
//! Comes in: the words after the command. Goes out: nothing: this process becomes `cleat-rds-probe`, from its
//! own directory or from PATH. That program needs root and NVMe/TCP, which nothing else of `cleatctl` does.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

const PROBE: &str = "cleat-rds-probe";

/// Commands about an RDS.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum RdsCommand {
    /// Find out on a scratch disk how an RDS can fence, and write it down for `cleat-controller`. Runs on a node, as
    /// root; see `cleatctl rds probe --help`
    #[command(disable_help_flag = true)]
    Probe {
        /// Options of the probe
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        words: Vec<OsString>,
    },
}

/// Becomes the other program; returns only if that fails, with the reason.
pub(crate) fn hand_over(command: RdsCommand) -> String {
    let RdsCommand::Probe { words } = command;
    let beside =
        std::env::current_exe().ok().map(|own| own.with_file_name(PROBE)).filter(|file| file.is_file());
    let program = beside.unwrap_or_else(|| PathBuf::from(PROBE));
    let error = Command::new(&program).args(words).exec();
    format!("cannot run {}: {error}; put it beside cleatctl, or into PATH", program.display())
}
