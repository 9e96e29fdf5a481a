//! From a path to a database that can be believed: made where there is none, looked at, migrated, and made durable.
//!
//! What holds: what is not ours, damaged or newer is refused by name and left as it is; whatever an opening believes it
//! has first written itself ([`checkpoint`]).

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rusqlite::config::DbConfig;
use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, TransactionBehavior};

use super::older_records;
use super::refusal::{Damage, OpenError, StepError, failed};

/// Only our own user may read it: volumes' secrets may come to be in it.
pub(super) const MODE: u32 = 0o600;
/// Says that a SQLite file is a store of ours ("Clet").
const APPLICATION_ID: i32 = 0x436c_6574;
/// What the version before wrote, and nobody reads any more.
const JOURNAL_MAGIC: &[u8] = b"cleat-store ";
const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";

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
", r#"
    UPDATE volumes SET record = replace(replace(replace(replace(record,
        '"phase":"ghost"', '"phase":"stray"'), '"ghost":', '"stray":'), '"nguid":""', '"nguid":null'),
        '"subsystem_nqn":""', '"subsystem_nqn":null');
"#, "
    UPDATE volumes SET record = with_types(record);
    UPDATE nodes SET record = with_types(record);
"];

/// What stands where a store was whose records are in a cluster now: without it a controller would begin with an empty one.
const MOVED: &[u8] = b"cleat: the records of this store were moved to a cluster\n";

/// Puts a store away whose records are somewhere else now, and a mark in its place, which is refused by name. Whoever calls
/// this holds the store's lock. In this order: a log without its database is refused, too.
pub(crate) fn move_away(path: &Path) -> io::Result<()> {
    let moved = beside(path, ".moved");
    for end in ["", "-wal", "-shm"] {
        match std::fs::rename(beside(path, end), beside(&moved, end)) {
            Err(error) if end.is_empty() || error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let new = beside(path, ".new");
    let mut file = File::create(&new)?;
    file.write_all(MOVED)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

/// `PATH` with something appended to its last part.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes a new store beside its place, and puts it there whole: so an empty file at its place is never ours.
pub(super) fn make(path: &Path, migrations: &[&str]) -> Result<(), OpenError> {
    let new = beside(path, ".new");
    for leftover in [new.clone(), beside(&new, "-journal")] {
        match std::fs::remove_file(&leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &leftover)(error).into());
            }
            _ => {}
        }
    }
    // A log whose database has gone belongs to nothing, and must not be taken for the new one's.
    let log = beside(path, "-wal");
    if log.try_exists().map_err(failed("look for", &log))? {
        let damage = Damage::NotAStore("the database is gone, and its log, with -wal at the end, is there");
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
pub(super) fn refuse_what_is_not_ours(path: &Path) -> Result<(), OpenError> {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(100).read_to_end(&mut head));
    read.map_err(failed("read", path))?;
    let damage = if head.starts_with(JOURNAL_MAGIC) {
        Damage::OldJournal
    } else if head.is_empty() {
        Damage::NotAStore("it is empty")
    } else if head.starts_with(MOVED) {
        Damage::NotAStore("its records were moved to a cluster (migrate-store): use --store kubernetes")
    } else if !head.starts_with(SQLITE_MAGIC) {
        Damage::NotAStore("it does not begin like a SQLite database")
    } else {
        return Ok(());
    };
    Err(OpenError::Damaged { path: path.to_owned(), damage })
}

/// Opens the database, checks it, and makes durable whatever it is found to say.
pub(super) fn connect(path: &Path, migrations: &[&str]) -> Result<Connection, OpenError> {
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
    connection.create_scalar_function("with_types", 1, FunctionFlags::SQLITE_DETERMINISTIC, |call| {
        let record = serde_json::from_str(&call.get::<String>(0)?);
        let record = record.map_err(|error| rusqlite::Error::UserFunctionError(error.into()))?;
        Ok(older_records::with_types(record).to_string())
    })?;
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
pub(super) fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy == 0 {
        return Ok(());
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    Err(rusqlite::Error::SqliteFailure(code, Some("cannot fold the log".into())))
}

/// Lets the kernel forget what it has in memory of the files: what is read afterwards comes from the disk.
pub(super) fn drop_pages(path: &Path) -> Result<(), StepError> {
    for file in [path.to_owned(), beside(path, "-wal")] {
        let open = match File::open(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
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
