//! A command for a guest, and what came of it.

use std::time::Duration;

use crate::wire::{Exit, Run};

/// A command has this long unless it says otherwise: emulated machines on busy hosts are slow, not dead.
const DEADLINE: Duration = Duration::from_secs(60);

/// A command to run in a machine.
///
/// ```
/// use cleat_rig::Command;
/// use std::time::Duration;
/// let connect = Command::new("nvme").args(["list", "-o", "json"]).deadline(Duration::from_secs(10));
/// let look = Command::shell("cat /sys/class/nvme/*/state");
/// assert_eq!(connect.to_string(), "nvme list -o json");
/// assert_eq!(look.to_string(), "sh -c cat /sys/class/nvme/*/state");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub(crate) argv: Vec<String>,
    env: Vec<(String, String)>,
    directory: Option<String>,
    pub(crate) stdin: Vec<u8>,
    pub(crate) deadline: Duration,
}

impl Command {
    /// A program, looked for on the machine's PATH.
    #[must_use]
    pub fn new(program: impl Into<String>) -> Command {
        Command {
            argv: vec![program.into()],
            env: Vec::new(),
            directory: None,
            stdin: Vec::new(),
            deadline: DEADLINE,
        }
    }

    /// A script for busybox's shell. In it, an applet of busybox comes before a program of the same name: write
    /// `/usr/sbin/mount` where the real one is meant.
    #[must_use]
    pub fn shell(script: impl Into<String>) -> Command {
        Command::new("sh").arg("-c").arg(script)
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Command {
        self.argv.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<String>>(mut self, arguments: impl IntoIterator<Item = A>) -> Command {
        self.argv.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Command {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory, `/` without it.
    #[must_use]
    pub fn directory(mut self, path: impl Into<String>) -> Command {
        self.directory = Some(path.into());
        self
    }

    /// What it reads from standard input; nothing without it.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Command {
        self.stdin = bytes.into();
        self
    }

    /// How long it may take, 60 s without it; then its process group is killed.
    #[must_use]
    pub fn deadline(mut self, limit: Duration) -> Command {
        self.deadline = limit;
        self
    }

    pub(crate) fn to_wire(&self) -> Run {
        Run {
            argv: self.argv.clone(),
            env: self.env.clone(),
            directory: self.directory.clone(),
            deadline_ms: u64::try_from(self.deadline.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.argv.join(" "))
    }
}

/// What a command has written, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Of a command that has neither written nor ended.
    pub(crate) fn running() -> Output {
        Output { exit: Exit::TimedOut { gone: false }, stdout: Vec::new(), stderr: Vec::new() }
    }

    /// Whether it ended by itself with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.exit == Exit::Code(0)
    }

    /// Standard output as text.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}
