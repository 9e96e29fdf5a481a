//! Why a store is not opened: what was tried, or what is wrong with its content, and what a person can do.

use std::path::{Path, PathBuf};

/// Why a store cannot be opened. Nothing that was durable has been changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "cannot use store {}: another process uses it ({holder}), and two controllers must not share it; \
         stop one of them",
        path.display()
    )]
    Locked {
        /// The store.
        path: PathBuf,
        /// What the other process has written into the lock file.
        holder: String,
    },
    /// Its content cannot be used.
    #[error("cannot use store {}: {damage}", path.display())]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What is wrong.
        damage: Damage,
    },
    /// A step failed.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// A step on the store that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}", path.display())]
pub struct StepError {
    step: &'static str,
    path: PathBuf,
    #[source]
    source: Cause,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Errno(#[from] nix::errno::Errno),
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// What a person can do about a store that cannot be read. A start without records takes whoever the RDS lists for
/// somebody who may write.
const START_AGAIN: &str = "move it, and the file that has -wal after its name, away and start again; do not restore an older copy: \
     what is lost is \
                          time, while the RDS's lists and the nodes say who may write (docs/operating.md says when it is \
                          more)";

/// What is wrong with a store's content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The journal of an earlier version.
    #[error(
        "it is a journal of a version before the store was a SQLite database, and no version reads both; \
         {START_AGAIN}"
    )]
    OldJournal,
    /// The file is something else.
    #[error("it is not a store of ours ({0}); correct the path, or {START_AGAIN}")]
    NotAStore(&'static str),
    /// It was written by a newer program.
    #[error(
        "it has schema version {found}, and this program knows versions up to {known}: run the version that wrote it"
    )]
    Newer {
        /// The version that it has.
        found: i64,
        /// The newest that is known.
        known: i64,
    },
    /// It is torn or changed.
    #[error("it is damaged: {problem}; {START_AGAIN}")]
    Corrupt {
        /// What was found.
        problem: String,
    },
    /// It has no room for a higher term.
    #[error("its term is {0}: there is no higher one; {START_AGAIN}")]
    TermsUsedUp(u64),
    /// It lacks what was acknowledged.
    #[error(
        "{what} was acknowledged as durable and is not there: the disk does not keep what it says it keeps"
    )]
    Lost {
        /// What is missing.
        what: String,
    },
}

pub(super) fn failed<E>(step: &'static str, path: &Path) -> impl FnOnce(E) -> StepError
where
    Cause: From<E>,
{
    let path = path.to_owned();
    move |source| StepError { step, path, source: source.into() }
}
