//! The SQLite file: opened, checked, migrated, written; and opened anew after an I/O error.
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
//!   connection is given up, the pages are dropped from the page cache, and the file is opened anew. And whatever an
//!   opening believes, it first writes itself: a checkpoint copies every frame of the log into the database file, syncs
//!   that, and truncates the log. Only then is anything read, and anything acknowledged.
//! - It does not notice a disk that lies about syncs, nor a file that is put in its place under a running process.
//!
//! Nothing is believed because it was there before: after an opening anew every version that was ever acknowledged has
//! to be there, or the store is given up (`Fatal`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, PosixFadviseAdvice, posix_fadvise};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior};
use serde_json::Value;

use super::lock::lock;
use super::{CommitError, Entry, Key, Kind, Loaded, Version, Write};
use crate::secret::{Era, KeyId};

/// Only our own user may read it: volumes' secrets may come to be in it.
pub(super) const MODE: u32 = 0o600;
/// Says that a SQLite file is a store of ours ("Clet").
const APPLICATION_ID: i32 = 0x436c_6574;
/// What the version before wrote, and nobody reads any more.
const JOURNAL_MAGIC: &[u8] = b"cleat-store ";
const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";
/// The log is folded into the database when it has grown to this.
const CHECKPOINT_BYTES: u64 = 4 << 20;

/// What makes a database of version N from one of version N-1; the first makes one from nothing.
pub(super) const MIGRATIONS: &[&str] = &["
    CREATE TABLE claim (one INTEGER PRIMARY KEY CHECK (one = 1), term INTEGER NOT NULL) STRICT;
    INSERT INTO claim VALUES (1, 0);
    CREATE TABLE volumes (
        name TEXT PRIMARY KEY, version INTEGER NOT NULL CHECK (version > 0), record TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE nodes (
        name TEXT PRIMARY KEY, version INTEGER NOT NULL CHECK (version > 0), record TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
", "
    CREATE TABLE secret_keys (first_term INTEGER PRIMARY KEY CHECK (first_term >= 0), id TEXT NOT NULL) STRICT;
"];

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
    #[error("store {} cannot be used: {damage}", path.display())]
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
const START_ANEW: &str = "move PATH and PATH-wal away and start again, and do not restore an older copy: what is lost is \
                          time, while the RDS's lists and the nodes say who may write (docs/operating.md says when it is \
                          more)";

/// What is wrong with a store's content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The journal of an earlier version.
    #[error(
        "it is a journal of a version before the store was a SQLite database, and no version reads both; {START_ANEW}"
    )]
    OldJournal,
    /// Something else.
    #[error("it is not a store of ours ({0}); is the path right? If it is: {START_ANEW}")]
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
    #[error("it is damaged: {problem}; {START_ANEW}")]
    Corrupt {
        /// What was found.
        problem: String,
    },
    /// It has no room for a higher term.
    #[error("its term is {0}: there is no higher one; {START_ANEW}")]
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

/// What was acknowledged, and has to be there whenever the file is opened again.
#[derive(Debug, Default)]
struct Acknowledged {
    term: u64,
    versions: BTreeMap<Key, Version>,
}

/// An open store.
pub(super) struct Database {
    path: PathBuf,
    /// `None` after an I/O error, until it was opened anew.
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
            "store is open");
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
            tracing::warn!(path = %self.path.display(), log_bytes = log, %error, "the store's log is not folded yet");
            let _ = self.trouble(&error);
        }
    }

    /// Opens the file anew if the connection was given up.
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
            "store opened anew after an I/O error: all that was acknowledged is there");
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

fn fatal(path: &Path, damage: &Damage) -> CommitError {
    CommitError::Fatal { reason: format!("store {}: {damage}", path.display()) }
}

pub(super) fn failed<E>(step: &'static str, path: &Path) -> impl FnOnce(E) -> StepError
where
    Cause: From<E>,
{
    let path = path.to_owned();
    move |source| StepError { step, path, source: source.into() }
}

/// `PATH` with something appended to its last part.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes a new store beside its place, and puts it there whole: so an empty file at its place is never ours.
fn make(path: &Path, migrations: &[&str]) -> Result<(), OpenError> {
    let new = beside(path, ".new");
    for leftover in [new.clone(), beside(&new, "-journal")] {
        match std::fs::remove_file(&leftover) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("remove", &leftover)(error).into());
            }
            _ => {}
        }
    }
    // A log whose database has gone belongs to nothing, and must not be taken for the new one's.
    let log = beside(path, "-wal");
    if log.try_exists().map_err(failed("look for", &log))? {
        let damage = Damage::NotAStore("the database is gone, and its log, PATH-wal, is there");
        return Err(OpenError::Damaged { path: path.to_owned(), damage });
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(MODE).open(&new).map_err(failed("make", &new))?;
    let made = (|| {
        let mut connection = Connection::open_with_flags(&new, flags())?;
        connection.pragma_update(None, "synchronous", "EXTRA")?;
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        migrate(&mut connection, migrations)?;
        connection.close().map_err(|(_, error)| error)
    })();
    made.map_err(failed("make", &new))?;
    File::open(&new).and_then(|file| file.sync_all()).map_err(failed("fsync", &new))?;
    std::fs::rename(&new, path).map_err(failed("rename into place", path))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("fsync directory", dir))?;
    Ok(())
}

fn flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// Looks at the first bytes, before SQLite does: what is not ours is refused by name, and left alone.
fn refuse_what_is_not_ours(path: &Path) -> Result<(), OpenError> {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(100).read_to_end(&mut head));
    read.map_err(failed("read", path))?;
    let damage = if head.starts_with(JOURNAL_MAGIC) {
        Damage::OldJournal
    } else if head.is_empty() {
        Damage::NotAStore("it is empty")
    } else if !head.starts_with(SQLITE_MAGIC) {
        Damage::NotAStore("it does not begin like a SQLite database")
    } else {
        return Ok(());
    };
    Err(OpenError::Damaged { path: path.to_owned(), damage })
}

/// Opens the database, checks it, and makes durable whatever it is found to say.
fn connect(path: &Path, migrations: &[&str]) -> Result<Connection, OpenError> {
    let damaged = |damage| OpenError::Damaged { path: path.to_owned(), damage };
    let sqlite = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            damaged(Damage::Corrupt { problem: error.to_string() })
        }
        _ => failed("open", path)(error).into(),
    };
    let mut connection = Connection::open_with_flags(path, flags()).map_err(sqlite)?;
    (|| {
        // One process, so the log's index is kept in memory: no shared file that a crash could leave wrong.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        // Done by us: SQLite's own says nothing when it fails.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        let id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        Ok((id, version))
    })()
    .map_err(sqlite)
    .and_then(|(id, found)| {
        let known = i64::try_from(migrations.len()).unwrap_or(i64::MAX);
        match id {
            APPLICATION_ID if found > known => Err(damaged(Damage::Newer { found, known })),
            APPLICATION_ID => Ok(()),
            _ => Err(damaged(Damage::NotAStore("it is another program's SQLite database"))),
        }
    })?;
    let checked = (|| {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        let problem: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
        let foreign: Option<String> =
            connection.query_row("PRAGMA foreign_key_check", [], |row| row.get(0)).optional()?;
        Ok((problem, foreign))
    })();
    let (problem, foreign) = checked.map_err(sqlite)?;
    if problem != "ok" || foreign.is_some() {
        let problem = foreign.map_or(problem, |table| format!("rows of {table} refer to nothing"));
        return Err(damaged(Damage::Corrupt { problem }));
    }
    migrate(&mut connection, migrations).map_err(sqlite)?;
    checkpoint(&connection).map_err(sqlite)?;
    Ok(connection)
}

/// Brings an older database to the newest version, each step whole or not at all.
fn migrate(connection: &mut Connection, migrations: &[&str]) -> rusqlite::Result<()> {
    let found: usize = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for (at, migration) in migrations.iter().enumerate().skip(found) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", at + 1)?;
        transaction.commit()?;
        if found > 0 {
            tracing::info!(from = at, to = at + 1, "store migrated");
        }
    }
    Ok(())
}

/// Copies the whole log into the database file, syncs that, and truncates the log.
fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy == 0 {
        return Ok(());
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    Err(rusqlite::Error::SqliteFailure(code, Some("the log cannot be folded".into())))
}

/// Lets the kernel forget what it has in memory of the files: what is read afterwards comes from the disk.
fn drop_pages(path: &Path) -> Result<(), StepError> {
    for file in [path.to_owned(), beside(path, "-wal")] {
        let open = match File::open(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            open => open.map_err(failed("open", &file))?,
        };
        // Pages that are still to be written stay; so that they are few, they are written first. Whether that
        // succeeds does not matter: what is there is found out next.
        let _ = open.sync_all();
        posix_fadvise(&open, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(failed("drop the cached pages of", &file))?;
    }
    Ok(())
}

fn load(connection: &Connection, path: &Path) -> Result<Loaded, OpenError> {
    let mut entries = Vec::new();
    let term = read_term(connection).map_err(failed("read", path))?;
    for kind in [Kind::Volume, Kind::Node] {
        let rows = (|| {
            let sql = format!("SELECT name, version, record FROM {} ORDER BY name", table(kind));
            let mut select = connection.prepare(&sql)?;
            let rows =
                select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)))?;
            rows.collect::<rusqlite::Result<Vec<(String, u64, String)>>>()
        })();
        for (name, version, record) in rows.map_err(failed("read", path))? {
            let key = Key { kind, name };
            let value = serde_json::from_str(&record).map_err(|error| OpenError::Damaged {
                path: path.to_owned(),
                damage: Damage::Corrupt { problem: format!("the record of {key} is not JSON: {error}") },
            })?;
            entries.push(Entry { key, version: Version(version), value });
        }
    }
    Ok(Loaded { term, entries })
}

fn read_term(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT term FROM claim WHERE one = 1", [], |row| row.get(0))
}

fn read_keys(connection: &Connection) -> rusqlite::Result<Vec<(u64, String)>> {
    let mut select = connection.prepare("SELECT first_term, id FROM secret_keys ORDER BY first_term")?;
    select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn lost_claim(term: u64, claim: u64) -> CommitError {
    let reason = format!("term {term} was taken in it, this controller has term {claim}");
    CommitError::LostClaim { reason }
}

fn table(kind: Kind) -> &'static str {
    match kind {
        Kind::Volume => "volumes",
        Kind::Node => "nodes",
    }
}

/// Writes one record if it is of the version that was expected.
fn put(transaction: &Transaction<'_>, write: &Write) -> rusqlite::Result<Result<Version, CommitError>> {
    let (table, name) = (table(write.key.kind), &write.key.name);
    let found: Option<u64> = transaction
        .prepare_cached(&format!("SELECT version FROM {table} WHERE name = ?1"))?
        .query_row([name], |row| row.get(0))
        .optional()?;
    let found = found.map(Version);
    if found != write.expected {
        // A try whose answer was lost, by an I/O error after it had reached the disk.
        if let Some(version) = done_before(transaction, write, found)? {
            return Ok(Ok(version));
        }
        let (key, expected) = (write.key.clone(), write.expected);
        return Ok(Err(CommitError::Conflict { key, expected, found }));
    }
    let version = next_version(found);
    match &write.value {
        Some(value) => {
            let sql = format!("INSERT OR REPLACE INTO {table} (name, version, record) VALUES (?1, ?2, ?3)");
            transaction.prepare_cached(&sql)?.execute((name, version.0, text(value)))?;
        }
        None => {
            transaction.prepare_cached(&format!("DELETE FROM {table} WHERE name = ?1"))?.execute([name])?;
        }
    }
    Ok(Ok(version))
}

/// The version that this very write has made, if it was carried out before.
fn done_before(
    transaction: &Transaction<'_>,
    write: &Write,
    found: Option<Version>,
) -> rusqlite::Result<Option<Version>> {
    let next = next_version(write.expected);
    let done = match (&write.value, found) {
        (None, None) => true,
        (Some(value), Some(found)) if found == next => {
            let sql = format!("SELECT record FROM {} WHERE name = ?1", table(write.key.kind));
            let record: String = transaction.query_row(&sql, [&write.key.name], |row| row.get(0))?;
            record == text(value)
        }
        _ => false,
    };
    Ok(done.then_some(next))
}

fn next_version(before: Option<Version>) -> Version {
    Version(before.map_or(1, |before| before.0 + 1))
}

fn text(value: &Value) -> String {
    value.to_string()
}
