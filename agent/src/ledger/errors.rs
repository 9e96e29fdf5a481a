//! Why the ledger could not be read or written.

use std::io;
use std::path::{Path, PathBuf};

use cleat_host::work::WorkError;

/// Why the ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A call on a file or directory failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done, such as `read` or `sync`.
        action: &'static str,
        /// The file or directory that was acted on.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Another process has the state directory.
    #[error(
        "cannot use {}: {holder} holds its lock; two agents must not share a --state-dir. An agent that has \
         ended holds it until its last thread has left the kernel",
        path.display()
    )]
    Locked {
        /// The directory or file that is locked.
        path: PathBuf,
        /// The process that has the lock, as `/proc/locks` shows it.
        holder: String,
    },
    /// The highest epoch of the removed records cannot be trusted.
    #[error(
        "cannot tell an old grant from a new one for a volume without a record: {}; restore the file, or \
         remove it if no older controller can still reach this node (detaching works either way)",
        .0
    )]
    Forgotten(String),
    /// A record cannot be trusted.
    #[error(
        "{} is damaged ({reason}): grants for this volume are refused, since the agent cannot tell an old \
         one from a new one; detach the volume from this node (this works), or restore the file",
        path.display()
    )]
    Damaged {
        /// The record's file.
        path: PathBuf,
        /// What is wrong with it, as text for a person.
        reason: String,
    },
    /// The disk did not answer in time, or an earlier write has not ended.
    #[error("the ledger in {} does not answer", path.display())]
    Stuck {
        /// The directory of the ledger that does not answer.
        path: PathBuf,
        /// Why the work gave no result.
        #[source]
        source: WorkError,
    },
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io { action, path, source }
}
