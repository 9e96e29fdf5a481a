//! Why the ledger could not say, or could not keep, what it was asked.

use std::io;
use std::path::{Path, PathBuf};

use cleat_host::work::WorkError;

/// Why the ledger could not say, or could not keep, what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A call on a file or directory failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Another process holds the ledger.
    #[error(
        "cannot use {}: {holder} holds its lock; two agents must not share a --state-dir. An agent that has \
         ended holds it until its last thread has left the kernel",
        path.display()
    )]
    Locked {
        /// What is locked.
        path: PathBuf,
        /// Who has it.
        holder: String,
    },
    /// What is kept of the records that were let go cannot be trusted.
    #[error(
        "cannot tell an old grant from a new one for a volume without a record: {}; restore the file, or \
         remove it if no older controller can still reach this node (detaching works either way)",
        .0
    )]
    Forgotten(String),
    /// A record that cannot be trusted.
    #[error(
        "{} is damaged ({reason}): grants for this volume are refused, since the agent cannot tell an old \
         one from a new one; detach the volume from this node (this works), or restore the file",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk did not answer in time, or an earlier write has not ended.
    #[error("the ledger in {} does not answer", path.display())]
    Stuck {
        /// The ledger's directory.
        path: PathBuf,
        /// What was waited for.
        #[source]
        source: WorkError,
    },
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io { action, path, source }
}
