//! The script that a shell reads once, so that it asks `cleatctl` for completion.
//!
//! Comes in: the shell's name. Goes out: its script, which runs `cleatctl` with [`VARIABLE`] set (`complete`
//! answers).

use std::io::{self, Write};

use clap_complete::env::{Bash, EnvCompleter as _, Fish, Zsh};

/// The environment variable that names the shell that asks.
pub(crate) const VARIABLE: &str = "CLEATCTL_COMPLETE";

/// A shell that can complete.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Writes the script that the shell has to read.
pub(crate) fn register(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    const NAME: &str = "cleatctl";
    match shell {
        Shell::Bash => Bash.write_registration(VARIABLE, NAME, NAME, NAME, out),
        Shell::Zsh => Zsh.write_registration(VARIABLE, NAME, NAME, NAME, out),
        Shell::Fish => Fish.write_registration(VARIABLE, NAME, NAME, NAME, out),
    }
}
