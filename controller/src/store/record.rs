//! The journal's text: a header, then one line per durable write. Pure.
//!
//! ```text
//! cleat-store 1 6f9619ff-8b86-d011-b42d-00c04fc964ff
//! 0b6cfa…32 hex… {"term":1790000000000}
//! 91d2e4…32 hex… {"commit":[{"put":["volume/pvc-1",{…}]},{"delete":"volume/pvc-2"}]}
//! ```
//! Each line begins with a checksum over the checksum before it and its own text, so a line that is missing,
//! moved or changed shows.
//!
//! What always holds: a line is one write, followed by an fsync before the next line is written. So only the last
//! line can be torn by a crash, and a torn line is one that does not end, or that has holes (zero bytes where
//! sectors did not reach the disk). Everything else that does not check is damage to what was durable, and is
//! never repaired by guessing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::Change;

/// The version of the format that is written, and the only one that is read.
pub(super) const VERSION: u32 = 1;

const MAGIC: &str = "cleat-store";
/// Bytes of SHA-256 that a line keeps: against chance, not against an attacker, who could rewrite it all.
const SUM_BYTES: usize = 16;
const SUM_HEX: usize = 2 * SUM_BYTES;

/// What a line holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    /// A run began, with this term.
    Term(u64),
    /// Changes that are there all or not at all.
    Commit(Vec<Change>),
}

/// A checksum, from which the next one follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sum(String);

/// What is wrong with a journal's bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It does not begin like a store.
    #[error(
        "it does not begin with \"{MAGIC} VERSION ID\": not a store of ours, or its beginning is destroyed"
    )]
    NotAStore,
    /// It was written by another version.
    #[error(
        "it has format version {found}; this program reads version {VERSION} only: run the version that wrote it"
    )]
    OtherVersion {
        /// The version in the header.
        found: u32,
    },
    /// Something that was durable is not what was written.
    #[error("it is corrupt at byte {offset}: {problem}; restore it from a backup, nothing was changed")]
    Corrupt {
        /// Where the first line that does not check begins.
        offset: u64,
        /// What does not check.
        problem: String,
    },
}

/// What a journal says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scan {
    pub(super) id: Uuid,
    /// The highest term, 0 if there is none.
    pub(super) term: u64,
    pub(super) records: BTreeMap<String, Value>,
    /// Where what checks ends; a torn line may follow.
    pub(super) valid_bytes: u64,
    /// The sum of the last line that checks.
    pub(super) sum: Sum,
}

/// The first line, with its end.
pub(super) fn header(id: Uuid) -> String {
    format!("{MAGIC} {VERSION} {id}\n")
}

impl Sum {
    /// What the first line's sum follows from: the header, so that lines do not move between stores.
    pub(super) fn first(id: Uuid) -> Self {
        Self(hex(&Sha256::digest(header(id))))
    }

    fn next(&self, text: &[u8]) -> Self {
        let digest = Sha256::new().chain_update(self.0.as_bytes()).chain_update(text).finalize();
        Self(hex(&digest))
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().take(SUM_BYTES).fold(String::with_capacity(SUM_HEX), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The line as it is written, with its end, and the sum that the next one follows from.
///
/// # Errors
/// If a value cannot be written as JSON, such as a map whose keys are not strings.
pub(super) fn encode(line: &Line, before: &Sum) -> Result<(Vec<u8>, Sum), serde_json::Error> {
    let text = serde_json::to_vec(line)?;
    let sum = before.next(&text);
    let mut bytes = Vec::with_capacity(SUM_HEX + text.len() + 2);
    bytes.extend_from_slice(sum.0.as_bytes());
    bytes.push(b' ');
    bytes.extend_from_slice(&text);
    bytes.push(b'\n');
    Ok((bytes, sum))
}

/// Does to the records what the change says.
pub(super) fn apply(records: &mut BTreeMap<String, Value>, change: Change) {
    match change {
        Change::Put(key, value) => {
            records.insert(key, value);
        }
        Change::Delete(key) => {
            records.remove(&key);
        }
    }
}

/// Reads a whole journal.
///
/// # Errors
/// If it is not one, or something in it that was durable is damaged.
pub(super) fn scan(bytes: &[u8]) -> Result<Scan, Damage> {
    let (id, header_bytes) = read_header(bytes)?;
    let mut scan =
        Scan { id, term: 0, records: BTreeMap::new(), valid_bytes: header_bytes as u64, sum: Sum::first(id) };
    let mut rest = &bytes[header_bytes..];
    while !rest.is_empty() {
        let (line, after) = match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => return Ok(scan), // torn: it does not end
        };
        match decode(line, &scan.sum) {
            Ok((content, sum)) => {
                match content {
                    Line::Term(term) => scan.term = scan.term.max(term),
                    Line::Commit(changes) => {
                        changes.into_iter().for_each(|change| apply(&mut scan.records, change));
                    }
                }
                scan.sum = sum;
                scan.valid_bytes += line.len() as u64 + 1;
            }
            Err(_) if after.is_empty() && line.contains(&0) => return Ok(scan), // torn: it has holes
            Err(problem) => return Err(Damage::Corrupt { offset: scan.valid_bytes, problem }),
        }
        rest = after;
    }
    Ok(scan)
}

fn read_header(bytes: &[u8]) -> Result<(Uuid, usize), Damage> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(Damage::NotAStore)?;
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| Damage::NotAStore)?;
    let mut words = text.split(' ');
    if words.next() != Some(MAGIC) {
        return Err(Damage::NotAStore);
    }
    let version: u32 = words.next().and_then(|word| word.parse().ok()).ok_or(Damage::NotAStore)?;
    if version != VERSION {
        return Err(Damage::OtherVersion { found: version });
    }
    let id = words.next().and_then(|word| word.parse().ok()).ok_or(Damage::NotAStore)?;
    // Exactly what we would write: anything else is damage that happens to parse.
    if text.len() + 1 != header(id).len() || !header(id).starts_with(text) {
        return Err(Damage::NotAStore);
    }
    Ok((id, end + 1))
}

fn decode(line: &[u8], before: &Sum) -> Result<(Line, Sum), String> {
    let (found, text) = match line.split_at_checked(SUM_HEX) {
        Some((found, [b' ', text @ ..])) => (found, text),
        _ => return Err("it is too short for a checksum".to_owned()),
    };
    let sum = before.next(text);
    if sum.0.as_bytes() != found {
        return Err("the checksum does not match".to_owned());
    }
    let content = serde_json::from_slice(text).map_err(|error| format!("it cannot be read: {error}"))?;
    Ok((content, sum))
}
