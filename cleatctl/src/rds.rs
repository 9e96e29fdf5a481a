//! `cleatctl rds …`: handed over to a program of its own, as git does with subcommands that it does not have itself.
//!
//! In come the words after the command; this process becomes `cleat-rds-probe`, from beside itself or from PATH. It
//! needs root and NVMe/TCP, which nothing else of `cleatctl` does.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

const PROBE: &str = "cleat-rds-probe";

/// Things about an RDS.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum RdsCommand {
    /// Finds out on a scratch disk what an RDS does that could fence, and writes it for `cleat-controller`. Runs on a
    /// node, as root; `cleatctl rds probe --help` says more
    #[command(disable_help_flag = true)]
    Probe {
        /// Its options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        words: Vec<OsString>,
    },
}

/// Becomes the other program; returns only if there is none, with why.
pub(crate) fn hand_over(command: RdsCommand) -> String {
    let RdsCommand::Probe { words } = command;
    let beside =
        std::env::current_exe().ok().map(|own| own.with_file_name(PROBE)).filter(|file| file.is_file());
    let program = beside.unwrap_or_else(|| PathBuf::from(PROBE));
    let error = Command::new(&program).args(words).exec();
    format!("cannot run {}: {error}; put it beside cleatctl, or into PATH", program.display())
}
