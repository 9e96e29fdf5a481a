//! Where the controller keeps what it must not forget: one record for each volume and each node, with a version.
//!
//! In come writes, each for one record and against the version that the writer has seen; out goes, for each, its new
//! version or why it was not made durable. What always holds: a write that has returned a version survives a crash of
//! process or machine; a write that has not may be there whole or not at all; records of different keys do not depend
//! on each other, so the trouble of one is nobody else's.
//!
//! | file | owns |
//! | --- | --- |
//! | `database` | the SQLite file: written, and opened again after an I/O error |
//! | `opening` | from a path to a database that can be believed |
//! | `older_records` | records of older versions in today's form |
//! | `unknown_fields` | what a record of a later version has, and this one would lose |
//! | `rows` | records and the term as rows |
//! | `statuses` | what people read of volumes in a cluster |
//! | `refusal` | why a store is not opened |
//! | `file` | [`FileStore`]: its thread, and what shares a transaction |
//! | `kubernetes` | [`KubernetesStore`]: custom resources, the Lease's term |
//! | `lock` | one process at a time |

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use cleat_rds::secret::{Era, KeyId};
use serde_json::Value;

mod database;
mod file;
mod kubernetes;
mod lock;
mod older_records;
mod opening;
mod refusal;
mod rows;
mod statuses;
#[cfg(test)]
mod tests;
mod unknown_fields;

pub use file::{FileStore, METRICS};
pub use kubernetes::KubernetesStore;
pub(crate) use opening::move_away;
pub use refusal::{Damage, OpenError, StepError};
pub(crate) use unknown_fields::left_out;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// A volume.
    Volume,
    /// A node.
    Node,
}

/// Which record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Whether it is about a volume or a node.
    pub kind: RecordKind,
    /// Whose: the volume's or node's name.
    pub name: String,
}

impl Key {
    /// The key of a volume's record.
    pub fn volume(name: impl Into<String>) -> Self {
        Self { kind: RecordKind::Volume, name: name.into() }
    }

    /// The key of a node's record.
    pub fn node(name: impl Into<String>) -> Self {
        Self { kind: RecordKind::Node, name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            RecordKind::Volume => "volume",
            RecordKind::Node => "node",
        };
        write!(f, "{kind} {}", self.name)
    }
}

/// How often a record was written. It is only compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRecord {
    /// Which record.
    pub key: Key,
    /// How often it has been written.
    pub version: Version,
    /// The record itself.
    pub value: Value,
}

/// One write of one record.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The record that is written.
    pub key: Key,
    /// The version that is to be there before; `None`: that there is none.
    pub expected: Option<Version>,
    /// What it is to say; `None`: it is to go.
    pub value: Option<Value>,
}

/// What was stored when the store was opened.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Loaded {
    /// The highest term that was ever taken in this store; 0 if none.
    pub term: u64,
    /// All records.
    pub entries: Vec<StoredRecord>,
}

/// Why a write was not made durable: causes that callers handle differently.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The record is not of the version that was expected: somebody else has written it. Only this record is in doubt.
    #[error(
        "the record of {key} has version {}, not {}: somebody else has written it",
        version(*found), version(*expected)
    )]
    Conflict {
        /// The record that was not written.
        key: Key,
        /// The version that was to be there.
        expected: Option<Version>,
        /// The version that is there.
        found: Option<Version>,
    },
    /// The record cannot be written as it is meant. Only this record is in doubt.
    #[error("cannot write the record of {key}: {reason}")]
    Refused {
        /// Which.
        key: Key,
        /// Why.
        reason: String,
    },
    /// A person has made a node's record that of another host, which stands. Only this write is not made.
    #[error("cannot write the record of {key}: {reason}")]
    Pinned {
        /// Which.
        key: Key,
        /// Of which host.
        reason: String,
    },
    /// The record is being deleted, so it takes nobody in; without those it can be written.
    #[error("the record of {key} is being deleted: nobody is granted the volume before it has gone")]
    Deleting {
        /// Which.
        key: Key,
    },
    /// Another controller has taken a higher term: this one must do nothing more.
    #[error("the store was taken over: {reason}")]
    LostClaim {
        /// By whom, as far as it is known.
        reason: String,
    },
    /// Not now: the same write may succeed later, and nothing of it was done.
    #[error("{reason}")]
    Retry {
        /// What is in the way, and what ends it.
        reason: String,
    },
    /// The store can be relied on no more: the process has to end.
    #[error("{reason}")]
    Fatal {
        /// What it found.
        reason: String,
    },
}

fn version(version: Option<Version>) -> String {
    version.map_or_else(|| "none".to_owned(), |version| version.0.to_string())
}

/// Where records are kept, as far as whoever writes them has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On one disk: what is written together becomes durable together, and as soon as one record; its trouble is
    /// everybody's.
    Disk,
    /// Behind an API, each record by itself.
    ApiServer,
}

impl Place {
    /// What is said of it where it gives no answer.
    #[must_use]
    pub fn is_silent(self) -> &'static str {
        match self {
            Self::Disk => "its disk does not answer",
            Self::ApiServer => "the API server does not answer",
        }
    }
}

/// A place that keeps records.
#[tonic::async_trait]
pub trait Store: Send + Sync + 'static {
    /// Where it keeps them.
    fn place(&self) -> Place {
        Place::Disk
    }

    /// Takes a term, durably: higher than any that was taken in this store, and not below `at_least`. Nothing may be
    /// granted under a term that was not taken, and whoever holds an earlier one has lost its claim.
    ///
    /// # Errors
    /// If it is not known to be durable.
    async fn take_term(&self, at_least: u64) -> Result<u64, CommitError>;

    /// Notes, durably, that secrets are made with this key from the term on that was taken, and with `before` until
    /// then if nothing was noted yet, unless there are secrets of which something must have been: then it is lost, and
    /// nothing is said of them. Gives all that is noted.
    ///
    /// # Errors
    /// If it is not known to be durable.
    async fn take_key(&self, key: KeyId, before: KeyId) -> Result<Vec<Era>, CommitError>;

    /// Makes writes durable, at most one for each key, each by itself. Gives an answer for each, in their order: its
    /// new version, or why it was not made.
    async fn commit(&self, writes: Vec<Write>) -> Vec<Result<Version, CommitError>>;
}

/// Which store to use, as the command line says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreSpec {
    /// `file:PATH`: a SQLite database in one file, with files beside it that belong to it.
    File(PathBuf),
    /// `kubernetes`: custom resources of the cluster, and a Lease that says who leads.
    Kubernetes,
}

impl FromStr for StoreSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            None if text == "kubernetes" => Ok(Self::Kubernetes),
            _ => Err(format!("{text:?} is not a store: give file:PATH, or kubernetes")),
        }
    }
}
