//! `cleatctl`: what the controller knows, for people and for scripts.
//!
//! Comes in: the words of a command line. Goes out: a screen or a document on standard output, a page in a file where one
//! is asked for, errors on standard error, and an exit code. Only `fence`, `node declare-gone` and
//! `ticket` change anything; the first two need a reason.

mod cli;
mod client;
mod complete;
mod explain;
mod fence;
mod format;
mod identity;
mod json;
mod migration;
mod output;
mod page;
mod rds;
mod screens;
#[cfg(test)]
mod screens_tests;
mod shell;
mod table;
mod ticket_commands;
mod ticket_run;
mod tickets;
mod timeline;
mod watch;

use std::ffi::OsString;
use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;

use anstream::{AutoStream, ColorChoice};

/// Where a command writes, and how wide that is.
pub struct Console<'a> {
    /// Standard output: a screen or a document.
    pub out: &'a mut dyn Write,
    /// Standard error: what went wrong.
    pub err: &'a mut dyn Write,
    /// Columns of the terminal behind `out`; `None` where that is no terminal.
    pub width: Option<usize>,
    /// Its lines.
    pub height: Option<usize>,
    /// Whether `--color auto` means colour.
    pub color: bool,
}

impl Console<'_> {
    /// Reports an error.
    fn complain(&mut self, text: &str) {
        // If that cannot be written either, the exit code still shows it.
        let _ = writeln!(self.err, "cleatctl: {}", cleat_runtime::text::harmless(text, &['\n']));
    }
}

/// Runs the process's own command line on its own terminal.
#[must_use]
pub fn main() -> ExitCode {
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr());
    let size = out.is_terminal().then(|| terminal_size::terminal_size_of(&out)).flatten();
    let width = size.map(|(width, _)| usize::from(width.0));
    let height = size.map(|(_, height)| usize::from(height.0));
    // As NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM ask for.
    let color = AutoStream::choice(&out) != ColorChoice::Never;
    // Where the answer cannot be written, the shell offers nothing.
    if complete::answer(std::env::args_os(), &mut out).unwrap_or(true) {
        return ExitCode::SUCCESS;
    }
    ExitCode::from(run(
        std::env::args_os(),
        &mut Console { out: &mut out, err: &mut err, width, height, color },
    ))
}

/// Runs one command line, which begins with the program's name, and returns the exit code.
///
/// It waits for the answer in a runtime of its own: an asynchronous caller needs a blocking thread for it.
/// `rds probe` replaces the whole process.
pub fn run(words: impl IntoIterator<Item = OsString>, console: &mut Console<'_>) -> u8 {
    cli::run(words, console)
}

/// What a shell offers for the last of these words, which begin with the program's name. Waits as [`run`]
/// does, for a second.
#[must_use]
pub fn completions(words: Vec<OsString>) -> Vec<String> {
    let last = words.len().saturating_sub(1);
    complete::candidates(words, last)
}
