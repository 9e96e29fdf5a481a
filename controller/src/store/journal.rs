//! The journal on disk: opened under a lock, appended to with an fsync, rewritten when most of it is history.
//!
//! In come lines; out go bytes that have reached the disk. What always holds: one process at a time has it open
//! (an flock on `PATH.lock`, which is never replaced or removed); the file at `PATH` is at every moment a whole
//! journal, because it is made beside its place and renamed into it; and whoever gets an error has to stop.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use uuid::Uuid;

use super::record::{self, Damage, Line, Sum};
use super::{Change, Loaded};

/// A journal below this size is not worth rewriting.
const COMPACT_MIN_BYTES: u64 = 256 << 10;
/// It is rewritten when it is so many times the size that it had after the last rewrite.
const COMPACT_FACTOR: u64 = 4;
/// Only our own user may read it: volumes' secrets may come to be in it.
const MODE: u32 = 0o600;

/// Why a store cannot be opened. Nothing that was durable has been changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("store {} is in use by another process ({holder}): two controllers must not share it", path.display())]
    Locked {
        /// The store.
        path: PathBuf,
        /// What the other process has written into the lock file.
        holder: String,
    },
    /// Its content cannot be used.
    #[error("store {} cannot be used", path.display())]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What is wrong.
        #[source]
        damage: Damage,
    },
    /// The wall clock cannot be trusted or the terms are used up.
    #[error("store {} has term {stored}: there is no higher one", path.display())]
    TermsUsedUp {
        /// The store.
        path: PathBuf,
        /// Its term.
        stored: u64,
    },
    /// A step failed.
    #[error(transparent)]
    Step(#[from] WriteError),
}

/// A step on a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {}", path.display())]
pub struct WriteError {
    step: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Where lines go. Tests bring one that fails.
pub(super) trait Medium: Write + Send {
    /// Returns once all that was written has reached the disk.
    fn sync(&mut self) -> io::Result<()>;
}

impl Medium for File {
    fn sync(&mut self) -> io::Result<()> {
        // Data and size; the time of change does not matter.
        self.sync_data()
    }
}

/// An open journal.
pub(super) struct Journal {
    path: PathBuf,
    id: Uuid,
    term: u64,
    file: Box<dyn Medium>,
    sum: Sum,
    records: BTreeMap<String, Value>,
    bytes: u64,
    compact_at: u64,
    _lock: Flock<File>,
}

impl Journal {
    /// Opens the journal, or makes a new one, and begins a new term on it, durably.
    pub(super) fn open(path: &Path, now_ms: u64) -> Result<(Self, Loaded), OpenError> {
        let lock = lock(path)?;
        remove_leftover(path)?;
        let found = read(path)?;
        let fresh = found.is_none();
        let (scan, length) = match found {
            None => {
                let id = Uuid::new_v4();
                let empty = record::header(id).into_bytes();
                replace(path, &empty)?;
                tracing::info!(path = %path.display(), store = %id, "made a new store");
                (record::scan(&empty), empty.len() as u64)
            }
            Some(bytes) => (record::scan(&bytes), bytes.len() as u64),
        };
        let scan = scan.map_err(|damage| OpenError::Damaged { path: path.to_owned(), damage })?;
        let file = open_for_append(path)?;
        if scan.valid_bytes < length {
            let lost = length - scan.valid_bytes;
            tracing::warn!(path = %path.display(), offset = scan.valid_bytes, bytes = lost,
                "cutting off a last write that a crash has torn: it was never acknowledged");
            let cut = file.set_len(scan.valid_bytes).and_then(|()| file.sync_all());
            cut.map_err(failed("cut the torn end off", path))?;
        }
        let used_up = || OpenError::TermsUsedUp { path: path.to_owned(), stored: scan.term };
        let term = scan.term.checked_add(1).ok_or_else(used_up)?.max(now_ms);
        let mut journal = Self {
            path: path.to_owned(),
            id: scan.id,
            term,
            file: Box::new(file),
            sum: scan.sum,
            records: scan.records,
            bytes: scan.valid_bytes,
            compact_at: COMPACT_MIN_BYTES,
            _lock: lock,
        };
        journal.append(&Line::Term(term))?;
        tracing::info!(path = %path.display(), store = %journal.id, term, records = journal.records.len(), fresh,
            "store is open");
        let loaded = Loaded { term, records: journal.records.clone() };
        Ok((journal, loaded))
    }

    /// Makes the changes durable, all or none. After an error nothing may be appended any more.
    pub(super) fn commit(&mut self, changes: Vec<Change>) -> Result<(), WriteError> {
        let line = Line::Commit(changes);
        self.append(&line)?;
        if let Line::Commit(changes) = line {
            changes.into_iter().for_each(|change| record::apply(&mut self.records, change));
        }
        if self.bytes >= self.compact_at {
            self.compact()?;
        }
        Ok(())
    }

    fn append(&mut self, line: &Line) -> Result<(), WriteError> {
        let encoded = record::encode(line, &self.sum).map_err(io::Error::from);
        let (bytes, sum) = encoded.map_err(failed("write a record for", &self.path))?;
        self.file.write_all(&bytes).map_err(failed("append to", &self.path))?;
        self.file.sync().map_err(failed("fsync", &self.path))?;
        self.sum = sum;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Writes what is current into a new journal and puts that in the place of the old one.
    fn compact(&mut self) -> Result<(), WriteError> {
        let (bytes, sum) = self.snapshot().map_err(failed("write a record for", &self.path))?;
        if let Err(error) = write_beside(&self.path, &bytes) {
            // The journal itself is untouched: it grows on, and this is tried again later.
            tracing::warn!(error = %cleat_runtime::exit::Causes(&error), "store is not compacted");
            self.compact_at = self.bytes.saturating_mul(2);
            return Ok(());
        }
        // From here on, failing means not to know which of the two a crash would leave: so it is fatal.
        put_in_place(&self.path)?;
        self.file = Box::new(open_for_append(&self.path)?);
        tracing::info!(path = %self.path.display(), before_bytes = self.bytes, after_bytes = bytes.len(), "store compacted");
        self.sum = sum;
        self.bytes = bytes.len() as u64;
        self.compact_at = self.bytes.saturating_mul(COMPACT_FACTOR).max(COMPACT_MIN_BYTES);
        Ok(())
    }

    fn snapshot(&self) -> Result<(Vec<u8>, Sum), io::Error> {
        let mut bytes = record::header(self.id).into_bytes();
        let mut sum = Sum::first(self.id);
        let puts = self.records.iter().map(|(key, value)| Change::Put(key.clone(), value.clone()));
        // A line for each record: lines stay short, and the whole file counts only once it is renamed.
        let lines = std::iter::once(Line::Term(self.term)).chain(puts.map(|put| Line::Commit(vec![put])));
        for line in lines {
            let (line, next) = record::encode(&line, &sum)?;
            bytes.extend_from_slice(&line);
            sum = next;
        }
        Ok((bytes, sum))
    }

    #[cfg(test)]
    pub(super) fn set_medium(&mut self, medium: Box<dyn Medium>) {
        self.file = medium;
    }

    #[cfg(test)]
    pub(super) fn set_compact_at(&mut self, bytes: u64) {
        self.compact_at = bytes;
    }
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    move |source| WriteError { step, path, source }
}

/// `PATH` with something appended to its last part.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn lock(path: &Path) -> Result<Flock<File>, OpenError> {
    let lock_path = beside(path, ".lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE);
    let file = options.open(&lock_path).map_err(failed("open lock file", &lock_path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // For people only, so its success does not matter.
            let _ = lock.set_len(0).and_then(|()| writeln!(lock, "pid {}", std::process::id()));
            Ok(lock)
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if known { holder.trim().to_owned() } else { "not known which".to_owned() };
            Err(OpenError::Locked { path: path.to_owned(), holder })
        }
        Err((_, errno)) => Err(failed("lock", &lock_path)(errno.into()).into()),
    }
}

/// Removes what a crash during a rewrite has left beside the journal; it never counted.
fn remove_leftover(path: &Path) -> Result<(), WriteError> {
    let leftover = beside(path, ".new");
    match std::fs::remove_file(&leftover) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", &leftover)(error)),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, WriteError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn open_for_append(path: &Path) -> Result<File, WriteError> {
    OpenOptions::new().append(true).open(path).map_err(failed("open", path))
}

/// Makes `PATH` hold exactly these bytes, or what it held before: nothing in between, also after a crash.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    write_beside(path, bytes)?;
    put_in_place(path)
}

fn write_beside(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let new = beside(path, ".new");
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(&new)
        .map_err(failed("make", &new))?;
    file.write_all(bytes).map_err(failed("write", &new))?;
    file.sync_all().map_err(failed("fsync", &new))
}

fn put_in_place(path: &Path) -> Result<(), WriteError> {
    std::fs::rename(beside(path, ".new"), path).map_err(failed("rename into place", path))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("fsync directory", dir))
}
