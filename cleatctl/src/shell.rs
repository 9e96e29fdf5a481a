//! What a shell reads once, so that it asks `cleatctl` for completion.
//!
//! In comes the shell's name; out goes its script, which runs `cleatctl` with [`VARIABLE`] set (`complete` answers).

use std::io::{self, Write};

use clap_complete::env::{Bash, EnvCompleter as _, Fish, Zsh};

/// Says which shell asks.
pub(crate) const VARIABLE: &str = "CLEATCTL_COMPLETE";

/// A shell that can complete.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Writes what the shell has to read.
pub(crate) fn register(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    const NAME: &str = "cleatctl";
    match shell {
        Shell::Bash => Bash.write_registration(VARIABLE, NAME, NAME, NAME, out),
        Shell::Zsh => Zsh.write_registration(VARIABLE, NAME, NAME, NAME, out),
        Shell::Fish => Fish.write_registration(VARIABLE, NAME, NAME, NAME, out),
    }
}
