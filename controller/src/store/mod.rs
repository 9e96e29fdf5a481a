//! Where the controller keeps what it must not forget: attachments and what belongs to them, by key.
//!
//! In come changes; out goes, at the next start, the state that they made, and a term higher than any before.
//! What always holds: a commit that has returned success survives a crash of process or machine; a commit that
//! has not may be there whole or not at all; and after the first failure nothing more is accepted, because what
//! a disk holds after a failed write or fsync is not known.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod file;
mod journal;
mod record;
#[cfg(test)]
mod tests;

pub use file::FileStore;
pub use journal::{OpenError, WriteError};
pub use record::Damage;

/// One change of what is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The key has this value now.
    Put(String, Value),
    /// The key has none.
    Delete(String),
}

/// What was stored when the store was opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The term of this run: higher than that of any run before on this store, and not below the wall clock in
    /// milliseconds, so that it rises even if the store was lost in between. Durable.
    pub term: u64,
    /// The values by key.
    pub records: BTreeMap<String, Value>,
}

/// Why a commit was not made durable.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// Writing failed. The store takes nothing more; the process has to end.
    #[error("the store has failed and takes nothing more")]
    Failed(#[source] std::sync::Arc<WriteError>),
    /// The store is closed, or its thread has gone. What became of the commit is not known.
    #[error("the store is closed")]
    Closed,
}

/// A place that keeps changes.
#[tonic::async_trait]
pub trait Store: Send + Sync + 'static {
    /// Makes the changes durable, all or none, in their order.
    ///
    /// # Errors
    /// If they are not known to be durable. The caller must stop: nothing later will be accepted.
    async fn commit(&self, changes: Vec<Change>) -> Result<(), CommitError>;
}

/// Which store to use, as the command line says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreSpec {
    /// `file:PATH`: a journal in one file.
    File(PathBuf),
}

impl FromStr for StoreSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(format!("{text:?} is not a store: give file:PATH")),
        }
    }
}
