//! What survives a restart: the disk items, in one JSON file beside the backing files.
//!
//! In and out: [`Saved`]. What always holds: the file on disk is a whole one (written aside, fsynced, renamed, the
//! directory fsynced), and it is on disk before the caller is told of success.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::files::IoError;

/// The layout of the file; another one is refused.
const LAYOUT: u32 = 1;

/// The state that survives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    layout: u32,
    /// The next item id of a disk.
    pub next_disk_id: u32,
    /// The disks.
    pub disks: Vec<Disk>,
    /// Item ids of files by name, so that an id never comes to mean another file.
    pub file_ids: BTreeMap<String, u32>,
    /// The next item id of a file.
    pub next_file_id: u32,
}

impl Saved {
    /// Nothing yet. The first disk id after the pool's own (`*1`) is `*2`.
    pub fn empty() -> Self {
        Self {
            layout: LAYOUT,
            next_disk_id: 2,
            disks: Vec::new(),
            file_ids: BTreeMap::new(),
            next_file_id: 1,
        }
    }
}

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The file is not ours, or damaged.
    #[error("{path} is no state of rds-sim; move it away to start with no disks")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The file is of another version of this program.
    #[error("{path} has layout {found}, this program knows {LAYOUT}; move it away to start with no disks")]
    Layout {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: u32,
    },
}

/// The file that holds the state.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// The name of the state's file; hidden from `/rest/file`.
    pub const FILE_NAME: &str = ".rds-sim.json";

    /// The store in this directory.
    pub fn in_directory(directory: &Path) -> Self {
        Self { path: directory.join(Self::FILE_NAME) }
    }

    /// What was saved last; empty if nothing ever was.
    pub fn load(&self) -> Result<Saved, StoreError> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Saved::empty()),
            Err(source) => return Err(self.io("read", source).into()),
        };
        let saved: Saved = serde_json::from_str(&text)
            .map_err(|source| StoreError::Malformed { path: self.path.clone(), source })?;
        if saved.layout != LAYOUT {
            return Err(StoreError::Layout { path: self.path.clone(), found: saved.layout });
        }
        Ok(saved)
    }

    /// Puts the state on disk.
    pub fn save(&self, saved: &Saved) -> Result<(), StoreError> {
        let text = serde_json::to_vec_pretty(saved)
            .map_err(|source| StoreError::Malformed { path: self.path.clone(), source })?;
        let aside = self.path.with_extension("json.new");
        let write = || {
            let mut file = File::create(&aside)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&aside, &self.path)?;
            match self.path.parent() {
                Some(directory) => File::open(directory)?.sync_all(),
                None => Ok(()),
            }
        };
        Ok(write().map_err(|source| self.io("save", source))?)
    }

    fn io(&self, action: &'static str, source: io::Error) -> IoError {
        IoError { action, path: self.path.clone(), source }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_state_survives_and_a_stranger_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::in_directory(directory.path());
        assert_eq!(store.load().unwrap(), Saved::empty());
        let saved = Saved { next_disk_id: 7, ..Saved::empty() };
        store.save(&saved).unwrap();
        assert_eq!(store.load().unwrap(), saved);
        store.save(&Saved { layout: 2, ..Saved::empty() }).unwrap();
        assert!(matches!(store.load(), Err(StoreError::Layout { found: 2, .. })));
        fs::write(directory.path().join(Store::FILE_NAME), "{").unwrap();
        assert!(matches!(store.load(), Err(StoreError::Malformed { .. })));
    }
}
