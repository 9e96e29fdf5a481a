//! What can go wrong in the rig, worded for the person who reads a failed test.
//!
//! Every error names the machine or the path or the command, what was tried on it, and what was seen.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// An error of the rig. `source()` leads to the operating system's reason where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A kernel that the caller asked for is not in the cache.
    #[error("no kernel {version} in {}; get it with: hack/setup kernels {version}", cache.display())]
    NoKernel {
        /// The version asked for, such as `6.12`.
        version: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// A program of this workspace, or a tool of the host, is not where it is looked for.
    #[error("no program {name} in {looked_in}; {remedy}")]
    NoProgram {
        /// The program's file name.
        name: String,
        /// The folders that were searched.
        looked_in: String,
        /// What the reader can do about it.
        remedy: String,
    },
    /// Reading or writing a file, a socket or a folder of the host failed.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "cannot read".
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A tool that was run on the host failed.
    #[error("`{command}` on the host: {outcome}{}", indented(stderr))]
    HostCommand {
        /// The command line.
        command: String,
        /// Exit code, signal or the reason why it could not start.
        outcome: String,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// The namespaces of a run cannot be made here.
    #[error("cannot make the run's own namespaces: {what}")]
    Namespace {
        /// Which step failed and why.
        what: String,
    },
    /// A machine did not come up, however often it was tried.
    #[error("machine {machine} did not come up: {what}; the end of its console:{}", indented(console))]
    Boot {
        /// The machine's name.
        machine: String,
        /// What was seen last.
        what: String,
        /// The last lines of its console.
        console: String,
    },
    /// Something was waited for in vain.
    #[error("{what} did not happen within {after:?}")]
    Deadline {
        /// What was waited for, with the machine's name.
        what: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server in the guest refused a request, or could not be reached or understood.
    #[error("machine {machine}: {request}: {what}")]
    Guest {
        /// The machine's name.
        machine: String,
        /// The request, such as the command line.
        request: String,
        /// What went wrong.
        what: String,
    },
    /// A command in a guest ended with something other than 0 where success was asked for.
    #[error("machine {machine}: `{command}`: {outcome}{}", indented(output))]
    GuestCommand {
        /// The machine's name.
        machine: String,
        /// The command line.
        command: String,
        /// Exit code, signal, or that the deadline passed.
        outcome: String,
        /// What it wrote to standard error, or to standard output if it wrote nothing there.
        output: String,
    },
    /// QEMU's monitor refused a command or could not be reached.
    #[error("machine {machine}: QEMU's `{command}`: {what}")]
    Monitor {
        /// The machine's name.
        machine: String,
        /// The QMP command.
        command: String,
        /// What went wrong.
        what: String,
    },
    /// There is no such run, or it has no such machine, or it is over.
    #[error("{what}")]
    NoRun {
        /// What is missing.
        what: String,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { what, path, source }
    }
}

/// The result of the rig's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn indented(text: &str) -> String {
    let text = text.trim_end();
    if text.is_empty() { String::new() } else { format!("\n    {}", text.replace('\n', "\n    ")) }
}
