//! `cleatctl`: what the controller knows, for people and for scripts.
//!
//! In come the words of a command line; out go, on standard output, a screen or a document, on standard error what went
//! wrong, and an exit code. Only `fence` and `node declare-gone` change anything, and they need a reason.

mod cli;
mod client;
mod explain;
mod fence;
mod json;
mod output;
mod rds;
mod table;
mod watch;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

/// Where a command writes.
pub struct Console<'a> {
    /// Answers.
    pub out: &'a mut dyn Write,
    /// What went wrong.
    pub err: &'a mut dyn Write,
}

impl Console<'_> {
    /// Says what went wrong.
    fn complain(&mut self, text: &str) {
        // If that cannot be written either, the exit code still says it.
        let _ = writeln!(self.err, "cleatctl: {}", output::harmless(text));
    }
}

/// Runs the process's own command line on its own terminal.
#[must_use]
pub fn main() -> ExitCode {
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr());
    ExitCode::from(run(std::env::args_os(), &mut Console { out: &mut out, err: &mut err }))
}

/// Runs one command line, the program's name first, and gives the exit code.
///
/// It waits for the answer in a runtime of its own: asynchronous callers need a blocking thread for it. `rds probe`
/// replaces the whole process.
pub fn run(words: impl IntoIterator<Item = OsString>, console: &mut Console<'_>) -> u8 {
    cli::run(words, console)
}
