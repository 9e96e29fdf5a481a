//! The SQLite file: written, and opened again after an I/O error.
//!
//! In come writes; out go versions that are on the disk. What SQLite guarantees here, and what it does not:
//!
//! - In WAL mode with `synchronous=FULL` a COMMIT returns after the frames of the transaction are in the log file and
//!   the log file was synced. After a crash the log is read up to the last frame whose checksum follows from all
//!   before it: a torn transaction is not there at all. So what was acknowledged is there, *if the sync told the
//!   truth*.
//! - After a sync that failed it does not know what is on the disk. The kernel marks the pages clean that it could not
//!   write: they are read back from memory as if they were stored, and no later sync writes them. SQLite would find
//!   that transaction whole in the log, and put later ones behind it. Hence two rules of ours. After any I/O error the
//!   connection is given up, the pages are dropped from the page cache, and the file is opened again. And whatever an
//!   opening believes, it first writes itself: a checkpoint copies every frame of the log into the database file, syncs
//!   that, and truncates the log. Only then is anything read, and anything acknowledged.
//! - It does not notice a disk that lies about syncs, nor a file that is put in its place under a running process.
//!
//! Nothing is believed because it was there before: after a reopening every version that was ever acknowledged has
//! to be there, or the store is given up (`Fatal`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use cleat_rds::secret::{Era, KeyId};
use nix::fcntl::Flock;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::lock::lock;
use super::opening::{MIGRATIONS, beside, checkpoint, connect, drop_pages, make, refuse_what_is_not_ours};
use super::refusal::{Damage, OpenError, failed};
use super::rows::{load, put, read_keys, read_term};
use super::{CommitError, Key, Loaded, Version, Write};

/// The log is folded into the database when it has grown to this.
const CHECKPOINT_BYTES: u64 = 4 << 20;

/// What was acknowledged, and has to be there whenever the file is opened again.
#[derive(Debug, Default)]
struct Acknowledged {
    term: u64,
    versions: BTreeMap<Key, Version>,
}

/// An open store.
pub(super) struct Database {
    path: PathBuf,
    /// `None` after an I/O error, until it was opened again.
    connection: Option<Connection>,
    acknowledged: Acknowledged,
    /// What was to be written when an I/O error came, and is not acknowledged since: it may be there or not.
    in_doubt: BTreeSet<Key>,
    /// The term that this process has taken; 0 before it has.
    claim: u64,
    _lock: Flock<File>,
}

impl Database {
    /// Opens the store, or makes a new one.
    pub(super) fn open(path: &Path) -> Result<(Self, Loaded), OpenError> {
        Self::open_with(path, MIGRATIONS)
    }

    pub(super) fn open_with(path: &Path, migrations: &[&str]) -> Result<(Self, Loaded), OpenError> {
        let lock = lock(path)?;
        let fresh = !path.try_exists().map_err(failed("look for", path))?;
        if fresh {
            make(path, migrations)?;
        }
        refuse_what_is_not_ours(path)?;
        let connection = connect(path, migrations)?;
        let loaded = load(&connection, path)?;
        let versions = loaded.entries.iter().map(|entry| (entry.key.clone(), entry.version)).collect();
        tracing::info!(path = %path.display(), term = loaded.term, records = loaded.entries.len(), fresh,
            "store opened");
        let acknowledged = Acknowledged { term: loaded.term, versions };
        let connection = Some(connection);
        Ok((
            Self {
                path: path.to_owned(),
                connection,
                acknowledged,
                in_doubt: BTreeSet::new(),
                claim: 0,
                _lock: lock,
            },
            loaded,
        ))
    }

    /// Takes a term, durably.
    pub(super) fn take_term(&mut self, at_least: u64) -> Result<u64, CommitError> {
        self.ensure_open()?;
        let stored = self.acknowledged.term;
        let next = stored.checked_add(1).map(|next| next.max(at_least));
        // SQLite's integers end at 2^63.
        let Some((term, stored)) = next.and_then(|next| Some((next, i64::try_from(next).ok()?))) else {
            return Err(fatal(&self.path, &Damage::TermsUsedUp(stored)));
        };
        let connection = self.connection.as_mut().ok_or_else(closed)?;
        let result = connection.execute("UPDATE claim SET term = ?1 WHERE one = 1 AND term < ?1", [stored]);
        match result {
            Ok(1) => {}
            Ok(_) => {
                return Err(CommitError::LostClaim { reason: "somebody has taken a higher term".into() });
            }
            Err(error) => return Err(self.trouble(&error)),
        }
        self.acknowledged.term = term;
        self.claim = term;
        Ok(term)
    }

    /// Notes from which term on secrets are made with a key.
    pub(super) fn take_key(&mut self, key: KeyId, before: KeyId) -> Result<Vec<Era>, CommitError> {
        self.ensure_open()?;
        let claim = self.claim;
        let connection = self.connection.as_mut().ok_or_else(closed)?;
        let result = (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let term = read_term(&transaction)?;
            if term != claim {
                return Ok(Err(term));
            }
            let mut noted = read_keys(&transaction)?;
            let mut note = |first_term: u64, id: String| {
                let sql = "INSERT OR REPLACE INTO secret_keys (first_term, id) VALUES (?1, ?2)";
                transaction.execute(sql, (first_term, &id))?;
                noted.push((first_term, id));
                Ok::<_, rusqlite::Error>(())
            };
            if read_keys(&transaction)?.is_empty() {
                note(0, before.to_string())?;
            }
            if read_keys(&transaction)?.last().is_none_or(|(_, id)| *id != key.to_string()) {
                note(claim, key.to_string())?;
            }
            transaction.commit()?;
            Ok::<_, rusqlite::Error>(Ok(noted))
        })();
        let noted = match result {
            Ok(Ok(noted)) => noted,
            Ok(Err(term)) => return Err(lost_claim(term, claim)),
            Err(error) => return Err(self.trouble(&error)),
        };
        self.parsed(noted)
    }

    /// Which keys secrets were made with, as it is noted.
    pub(super) fn eras(&mut self) -> Result<Vec<Era>, CommitError> {
        self.ensure_open()?;
        let connection = self.connection.as_mut().ok_or_else(closed)?;
        match read_keys(connection) {
            Ok(noted) => self.parsed(noted),
            Err(error) => Err(self.trouble(&error)),
        }
    }

    fn parsed(&self, noted: Vec<(u64, String)>) -> Result<Vec<Era>, CommitError> {
        let era = |(first_term, id): (u64, String)| {
            let key = id.parse().map_err(|error| {
                let problem = format!("the key of term {first_term}: {error}");
                fatal(&self.path, &Damage::Corrupt { problem })
            })?;
            Ok(Era { first_term, key })
        };
        noted.into_iter().map(era).collect()
    }

    /// Makes writes durable with one transaction. A conflict is its own write's alone.
    pub(super) fn commit(&mut self, writes: &[Write]) -> Vec<Result<Version, CommitError>> {
        let tried = self.ensure_open().and_then(|()| self.try_commit(writes));
        let results = match tried {
            Ok(results) => results,
            Err(error) => {
                if self.connection.is_none() {
                    self.in_doubt.extend(writes.iter().map(|write| write.key.clone()));
                }
                return writes.iter().map(|_| Err(error.clone())).collect();
            }
        };
        for (write, result) in writes.iter().zip(&results) {
            let Ok(version) = result else { continue };
            self.in_doubt.remove(&write.key);
            let versions = &mut self.acknowledged.versions;
            match write.value {
                Some(_) => drop(versions.insert(write.key.clone(), *version)),
                None => drop(versions.remove(&write.key)),
            }
        }
        results
    }

    fn try_commit(&mut self, writes: &[Write]) -> Result<Vec<Result<Version, CommitError>>, CommitError> {
        let claim = self.claim;
        let connection = self.connection.as_mut().ok_or_else(closed)?;
        let result = (|| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let term = read_term(&transaction)?;
            if term != claim {
                return Ok(Err(term));
            }
            let results =
                writes.iter().map(|write| put(&transaction, write)).collect::<Result<Vec<_>, _>>()?;
            // Returns when the log is synced.
            transaction.commit()?;
            Ok::<_, rusqlite::Error>(Ok(results))
        })();
        match result {
            Ok(Ok(results)) => {
                self.fold();
                Ok(results)
            }
            Ok(Err(term)) => Err(lost_claim(term, claim)),
            Err(error) => Err(self.trouble(&error)),
        }
    }

    /// Folds the log into the database once it has grown. What was acknowledged stays so if this fails: the log keeps
    /// it, and it is copied again the next time.
    fn fold(&mut self) {
        let log = std::fs::metadata(beside(&self.path, "-wal")).map_or(0, |log| log.len());
        let Some(connection) = self.connection.as_ref().filter(|_| log >= CHECKPOINT_BYTES) else {
            return;
        };
        if let Err(error) = checkpoint(connection) {
            tracing::warn!(path = %self.path.display(), log_bytes = log, %error, "cannot fold the store's log yet");
            let _ = self.trouble(&error);
        }
    }

    /// Opens the file again if the connection was given up.
    fn ensure_open(&mut self) -> Result<(), CommitError> {
        if self.connection.is_some() {
            return Ok(());
        }
        let again = |error: OpenError| match error {
            OpenError::Damaged { damage, .. } => fatal(&self.path, &damage),
            error => CommitError::Retry {
                reason: format!(
                    "{}, after an I/O error: check the disk; it is tried again",
                    cleat_runtime::exit::Causes(&error)
                ),
            },
        };
        let opened = drop_pages(&self.path).map_err(OpenError::from).and_then(|()| {
            refuse_what_is_not_ours(&self.path)?;
            let connection = connect(&self.path, MIGRATIONS)?;
            let loaded = load(&connection, &self.path)?;
            Ok((connection, loaded))
        });
        let (connection, loaded) = opened.map_err(again)?;
        let there: BTreeMap<&Key, Version> =
            loaded.entries.iter().map(|entry| (&entry.key, entry.version)).collect();
        let lost = self.acknowledged.versions.iter().find(|(key, version)| match there.get(key) {
            // What was not acknowledged may be there, so a version may be higher; never lower.
            Some(found) => found < version,
            None => !self.in_doubt.contains(key),
        });
        if let Some((key, version)) = lost {
            let what = format!("version {} of the record of {key}", version.0);
            return Err(fatal(&self.path, &Damage::Lost { what }));
        }
        if loaded.term < self.acknowledged.term {
            let what = format!("term {}", self.acknowledged.term);
            return Err(fatal(&self.path, &Damage::Lost { what }));
        }
        tracing::warn!(path = %self.path.display(), records = loaded.entries.len(),
            "store opened again after an I/O error; no acknowledged write is missing");
        self.connection = Some(connection);
        Ok(())
    }

    /// What an error of SQLite means for whoever wanted something.
    fn trouble(&mut self, error: &rusqlite::Error) -> CommitError {
        let path = self.path.display().to_string();
        let retry = |reason: String| CommitError::Retry { reason };
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => retry(format!(
                "no room on the disk of store {path}: make some; it is tried again, and nothing is done meanwhile that \
                 is not durable"
            )),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => retry(format!(
                "store {path} is in use by another program ({error}): let only the controller open it; it is tried again"
            )),
            Some(
                ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::PermissionDenied
                | ErrorCode::OutOfMemory
                | ErrorCode::OperationInterrupted,
            ) => {
                let reason = format!(
                    "store {path} cannot be written ({error}): check the disk; what is really on it is read before \
                     anything more is done"
                );
                self.give_up();
                retry(reason)
            }
            _ => {
                self.give_up();
                CommitError::Fatal { reason: format!("store {path}: {error}") }
            }
        }
    }

    /// Nothing that this connection believes counts any more.
    fn give_up(&mut self) {
        // It is closed without a checkpoint (`connect`), so nothing more is written. That closing fails changes nothing.
        drop(self.connection.take().map(Connection::close));
    }

    #[cfg(test)]
    pub(super) fn break_connection(&mut self) {
        self.give_up();
    }
}

fn closed() -> CommitError {
    CommitError::Retry { reason: "the store is being opened".into() }
}

fn lost_claim(term: u64, claim: u64) -> CommitError {
    let reason = format!("term {term} was taken in it, this controller has term {claim}");
    CommitError::LostClaim { reason }
}

fn fatal(path: &Path, damage: &Damage) -> CommitError {
    CommitError::Fatal { reason: format!("store {}: {damage}", path.display()) }
}
