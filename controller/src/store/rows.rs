//! Records and the term as rows: read all at once, written one by one against a version.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, Transaction};
use serde_json::Value;

use super::refusal::{Damage, OpenError, failed};
use super::{CommitError, Key, Loaded, RecordKind, StoredRecord, Version, Write};

/// Everything that is there.
pub(super) fn load(connection: &Connection, path: &Path) -> Result<Loaded, OpenError> {
    let mut entries = Vec::new();
    let term = read_term(connection).map_err(failed("read", path))?;
    for kind in [RecordKind::Volume, RecordKind::Node] {
        let failed = || failed("read", path);
        let sql = format!("SELECT name, version, record FROM {} ORDER BY name", table(kind));
        let mut select = connection.prepare(&sql).map_err(failed())?;
        let mut rows = select.query([]).map_err(failed())?;
        // One after the other: the text of all of them at once would take as much room again.
        while let Some(row) = rows.next().map_err(failed())? {
            let key = Key { kind, name: row.get(0).map_err(failed())? };
            let version = Version(row.get(1).map_err(failed())?);
            let record = row.get_ref(2).and_then(|record| Ok(record.as_str()?)).map_err(failed())?;
            let value = serde_json::from_str(record).map_err(|error| OpenError::Damaged {
                path: path.to_owned(),
                damage: Damage::Corrupt { problem: format!("the record of {key} is not JSON: {error}") },
            })?;
            entries.push(StoredRecord { key, version, value });
        }
    }
    Ok(Loaded { term, entries })
}

pub(super) fn read_term(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT term FROM claim WHERE one = 1", [], |row| row.get(0))
}

/// From which term on secrets are made with which key.
pub(super) fn read_keys(connection: &Connection) -> rusqlite::Result<Vec<(u64, String)>> {
    let mut select = connection.prepare("SELECT first_term, id FROM secret_keys ORDER BY first_term")?;
    select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn table(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Volume => "volumes",
        RecordKind::Node => "nodes",
    }
}

/// Writes one record if it is of the version that was expected.
pub(super) fn put(
    transaction: &Transaction<'_>,
    write: &Write,
) -> rusqlite::Result<Result<Version, CommitError>> {
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
