//! Commands that run by themselves in a machine.

use std::time::Duration;

use super::{TRANSFER, kill};
use crate::client::{ANSWER, Guest};
use crate::error::{Error, Result};
use crate::wire::{Exit, Reply, Request};

/// A command that runs by itself in a machine, until it ends, is killed or the machine is reset.
#[derive(Debug, Clone)]
pub struct Daemon {
    guest: Guest,
    pid: u32,
    label: String,
    log: String,
}

impl Daemon {
    pub(super) fn new(guest: Guest, pid: u32, label: String, log: String) -> Daemon {
        Daemon { guest, pid, label, log }
    }

    /// Its process id in the machine.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// If the machine does not answer, or has been reset since.
    pub fn exit(&self) -> Result<Option<Exit>> {
        self.status(Duration::ZERO)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error::Deadline`] if it still runs after `limit`; else as [`Daemon::exit`].
    pub fn wait(&self, limit: Duration) -> Result<Exit> {
        let still = || Error::Deadline {
            what: format!("machine {}: the end of `{}`", self.guest.name, self.label),
            after: limit,
        };
        self.status(limit)?.ok_or_else(still)
    }

    /// Sends it a signal (9 is the one that nothing survives).
    ///
    /// # Errors
    /// If it has ended, or the machine does not answer.
    pub fn kill(&self, signal: i32) -> Result<()> {
        kill(&self.guest, self.pid, signal)
    }

    /// What it has written so far, together with whatever else went to the same file.
    ///
    /// # Errors
    /// If the file cannot be read, or the machine does not answer.
    pub fn log(&self) -> Result<String> {
        self.guest.get(&self.log, TRANSFER).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn status(&self, limit: Duration) -> Result<Option<Exit>> {
        let wait_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = Request::DaemonStatus { pid: self.pid, wait_ms };
        match self.guest.ask(&self.label, &request, limit + ANSWER)? {
            (_, Reply::Daemon(exit)) => Ok(exit),
            (_, other) => Err(Error::Guest {
                machine: self.guest.name.clone(),
                request: self.label.clone(),
                what: format!("unexpected answer {other:?}"),
            }),
        }
    }
}
