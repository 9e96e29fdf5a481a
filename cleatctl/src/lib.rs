//! `cleatctl`: what the controller knows, for people and for scripts.
//!
//! In come the words of a command line; out go, on standard output, a screen or a document, on standard error what went
//! wrong, and an exit code. Only `fence` and `node declare-gone` change anything, and they need a reason.

mod cli;
mod client;
mod complete;
mod explain;
mod fence;
mod format;
mod json;
mod output;
mod page;
mod rds;
mod screens;
#[cfg(test)]
mod screens_tests;
mod shell;
mod table;
mod watch;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;

use anstream::{AutoStream, ColorChoice};

/// Where a command writes.
pub struct Console<'a> {
    /// Answers.
    pub out: &'a mut dyn Write,
    /// What went wrong.
    pub err: &'a mut dyn Write,
    /// The columns of the terminal behind `out`; none where that is no terminal.
    pub width: Option<usize>,
    /// Whether `--color auto` means colour.
    pub color: bool,
}

impl Console<'_> {
    /// Says what went wrong.
    fn complain(&mut self, text: &str) {
        // If that cannot be written either, the exit code still says it.
        let _ = writeln!(self.err, "cleatctl: {}", cleat_runtime::text::harmless(text, &['\n']));
    }
}

/// Runs the process's own command line on its own terminal.
#[must_use]
pub fn main() -> ExitCode {
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr());
    let size = out.is_terminal().then(|| terminal_size::terminal_size_of(&out)).flatten();
    let width = size.map(|(width, _)| usize::from(width.0));
    // As NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM say.
    let color = AutoStream::choice(&out) != ColorChoice::Never;
    // Where this cannot be written, the shell offers nothing.
    if complete::answer(std::env::args_os(), &mut out).unwrap_or(true) {
        return ExitCode::SUCCESS;
    }
    ExitCode::from(run(std::env::args_os(), &mut Console { out: &mut out, err: &mut err, width, color }))
}

/// Runs one command line, the program's name first, and gives the exit code.
///
/// It waits for the answer in a runtime of its own: asynchronous callers need a blocking thread for it. `rds probe`
/// replaces the whole process.
pub fn run(words: impl IntoIterator<Item = OsString>, console: &mut Console<'_>) -> u8 {
    cli::run(words, console)
}

/// What a shell offers for the last of these words, the program's name first. It waits as [`run`] does, for a second.
#[must_use]
pub fn completions(words: Vec<OsString>) -> Vec<String> {
    let last = words.len().saturating_sub(1);
    complete::candidates(words, last)
}
