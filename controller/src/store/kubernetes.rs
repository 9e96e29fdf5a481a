//! The store in a cluster: records as custom resources, the term on the Lease, and which key secrets are made with in a
//! ConfigMap.
//!
//! What holds beside what every store promises: each write asks first whether this process leads for as long as a call may
//! take; a record that a person has deleted takes no grant: it goes once nobody may write by it, and the next grant has a
//! new one.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use cleat_kubernetes::api::{ApiError, ApiServer};
use cleat_kubernetes::lease::{LeaseClaim, LeaseError};
use cleat_kubernetes::notes::{Lines, Notes};
use cleat_kubernetes::records::{self, Before, ClusterRecords, WriteError, Written};
use cleat_rds::secret::{Era, KeyId};
use futures_util::future::join_all;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::statuses::Statuses;
use super::{CommitError, Key, Loaded, Place, RecordKind, Store, StoredRecord, Version, Write};

/// Writes that are under way at once.
const AT_ONCE: usize = 32;
/// Where it is noted which key secrets are made with.
const KEYS: &str = "cleat-secret-keys";

/// A store in a cluster.
pub struct KubernetesStore {
    claim: LeaseClaim,
    timeout: std::time::Duration,
    records: ClusterRecords,
    notes: Notes,
    last: Arc<Mutex<HashMap<Key, Last>>>,
    statuses: Statuses,
    at_once: Semaphore,
}

/// A record as it was written last.
#[derive(Clone)]
struct Last {
    value: Map<String, Value>,
    deleting: bool,
    unguarded: Option<Vec<String>>,
    /// A status that was written over it, and over nothing else: from which version to which.
    described: Option<(u64, u64)>,
}

impl KubernetesStore {
    /// Reads what is there, as the one who leads.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn open(
        server: &ApiServer,
        namespace: &str,
        claim: LeaseClaim,
    ) -> Result<(Self, Loaded), ApiError> {
        let (timeout, records) = (server.timeout(), ClusterRecords::new(server.clone()));
        let notes = Notes::new(server.clone(), namespace, KEYS);
        let (mut entries, mut last, mut term) = (Vec::new(), HashMap::new(), 0);
        let mut described = Vec::new();
        for stored in records.list().await? {
            let kind = match stored.kind {
                records::Kind::Volume => RecordKind::Volume,
                records::Kind::Node => RecordKind::Node,
            };
            let key = Key { kind, name: stored.name };
            term = term.max(stored.term);
            let version = Version(stored.version);
            entries.push(StoredRecord { key: key.clone(), version, value: said(kind, stored.value.clone()) });
            let (value, deleting, unguarded) = (stored.value, stored.deleting, stored.unguarded);
            if kind == RecordKind::Volume {
                described.push((key.name.clone(), stored.version, value.clone(), stored.status));
            }
            last.insert(key, Last { value, deleting, unguarded, described: None });
        }
        let last = Arc::new(Mutex::new(last));
        let kept = Arc::clone(&last);
        let statuses = Statuses::start(records.clone(), move |volume, from, to| {
            let mut last = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(last) = last.get_mut(&Key::volume(volume)) {
                last.described = Some((from, to));
            }
        });
        for (volume, version, value, said) in described {
            statuses.found(&volume, version, value, said);
        }
        let at_once = Semaphore::new(AT_ONCE);
        Ok((Self { claim, timeout, records, notes, last, statuses, at_once }, Loaded { term, entries }))
    }

    /// Notes which keys secrets were made with, as another store has it.
    ///
    /// # Errors
    /// If something else is noted already, or it is not known to be durable.
    pub async fn note_eras(&self, eras: &[Era]) -> Result<(), CommitError> {
        if eras.is_empty() {
            return Ok(());
        }
        if !self.claim.outlives(self.timeout) {
            return Err(self.not_ours());
        }
        let wanted: Lines =
            eras.iter().map(|era| (era.first_term.to_string(), era.key.to_string())).collect();
        let noted = self.notes.change(|lines| {
            if lines.is_empty() {
                return Ok(Some(wanted.clone()));
            }
            if *lines == wanted { Ok(None) } else { Err(format!("the ConfigMap {KEYS} says something else")) }
        });
        noted.await.map(drop).map_err(|error| match error {
            ApiError::Refused(reason) => CommitError::Fatal { reason },
            other => CommitError::Retry { reason: format!("cannot write the ConfigMap {KEYS}: {other}") },
        })
    }

    /// Whether a volume that somebody has was given a secret: then it was also noted what that was made with.
    fn secrets_are_needed(&self) -> bool {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.values().any(|last| needs_its_secret(&last.value))
    }

    fn last(&self, key: &Key) -> Option<Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    async fn write(&self, write: Write) -> Result<Version, CommitError> {
        // It is never closed.
        let _turn = self.at_once.acquire().await;
        let before = self.last(&write.key);
        let value = write.value.map(|value| kept(write.key.kind, value));
        let asked = records::RecordWrite {
            kind: match write.key.kind {
                RecordKind::Volume => records::Kind::Volume,
                RecordKind::Node => records::Kind::Node,
            },
            name: &write.key.name,
            before: match (&before, write.expected) {
                (Some(Last { value, deleting, unguarded, described }), Some(Version(version))) => {
                    let version =
                        described.filter(|(from, _)| *from == version).map_or(version, |(_, to)| to);
                    Some(Before { version, value, deleting: *deleting, unguarded: unguarded.as_deref() })
                }
                _ => None,
            },
            lets_in: value.as_ref().is_some_and(|value| match write.key.kind {
                RecordKind::Volume => lets_in(before.as_ref(), value),
                // One that a person has deleted would go with its last finalizer, whatever is in it: there is a new one.
                RecordKind::Node => true,
            }),
            value: value.as_ref(),
        };
        let (term, may_send) = (self.claim.term(), || self.claim.outlives(self.timeout));
        let nobody_was_in = before.as_ref().is_none_or(|before| who(&before.value).is_empty());
        let mut written = self.records.write(term, &asked, may_send).await;
        if matches!(written, Err(WriteError::Deleting)) && nobody_was_in {
            // What a person has deleted goes, now that nobody may write by it, and there is a new record.
            let gone = records::RecordWrite { value: None, lets_in: false, ..asked.clone() };
            written = self.records.write(term, &gone, may_send).await;
            if written.is_ok() {
                let new = records::RecordWrite { before: None, ..asked };
                written = match self.records.write(term, &new, may_send).await {
                    // Others' finalizers keep the one that was deleted.
                    Err(WriteError::Conflict { .. }) => Err(WriteError::Deleting),
                    made => made,
                };
            }
        }
        if written == Err(WriteError::NotOurs) {
            return Err(self.not_ours());
        }
        let Written { version, deleting } =
            written.map_err(|error| refused(&write.key, write.expected, error))?;
        if write.key.kind == RecordKind::Volume {
            match &value {
                Some(value) => self.statuses.recorded(&write.key.name, version, value),
                None => self.statuses.gone(&write.key.name),
            }
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match value {
            Some(value) => last.insert(write.key, Last { value, deleting, unguarded: None, described: None }),
            None => last.remove(&write.key),
        };
        Ok(Version(version))
    }

    fn not_ours(&self) -> CommitError {
        if self.claim.lost().is_cancelled() {
            return CommitError::LostClaim { reason: LeaseError::Lost.to_string() };
        }
        CommitError::Retry { reason: "the Lease ends too soon: it was not renewed in time so far".into() }
    }
}

/// A record as the resource has it: a node's says nothing beside itself, a volume's has its mark, too.
fn kept(kind: RecordKind, value: Value) -> Map<String, Value> {
    match (kind, value) {
        (RecordKind::Volume, Value::Object(value)) => value,
        (_, value) => Map::from_iter([("record".to_owned(), value)]),
    }
}

/// The other way round. What a later version keeps beside a node's record goes with it, so that whoever reads it sees that
/// there is more than is known.
fn said(kind: RecordKind, mut kept: Map<String, Value>) -> Value {
    if kind == RecordKind::Volume {
        return Value::Object(kept);
    }
    let mut record = kept.remove("record").unwrap_or_default();
    if let Some(record) = record.as_object_mut() {
        record.extend(kept.into_iter().map(|(key, value)| (format!("spec.{key}"), value)));
    }
    record
}

/// Who may write by a volume's record, and who was cut off from it.
fn who(value: &Map<String, Value>) -> BTreeSet<(String, String)> {
    let of = |list: &str| value.get("record").and_then(|record| record.get(list)).and_then(Value::as_array);
    let all = ["attachments", "fenced"].into_iter().filter_map(of).flatten();
    all.map(|one| (one["node"].to_string(), one["epoch"].to_string())).collect()
}

/// Whether somebody is granted it who was not in before. Who was found with it, or is on the way out, has to be kept even
/// in a record that goes.
fn lets_in(before: Option<&Last>, after: &Map<String, Value>) -> bool {
    let was = before.map(|before| who(&before.value)).unwrap_or_default();
    !granted(after).is_subset(&was)
}

/// Who may go on using a volume by its record.
fn granted(value: &Map<String, Value>) -> BTreeSet<(String, String)> {
    let attachments = value.get("record").and_then(|record| record["attachments"].as_array());
    let goes_on = |one: &&Value| !matches!(one["phase"]["type"].as_str(), Some("stray" | "draining"));
    let all = attachments.into_iter().flatten().filter(goes_on);
    all.map(|one| (one["node"].to_string(), one["epoch"].to_string())).collect()
}

fn refused(key: &Key, expected: Option<Version>, error: WriteError) -> CommitError {
    match error {
        WriteError::Conflict { found } => {
            CommitError::Conflict { key: key.clone(), expected, found: Some(Version(found)) }
        }
        WriteError::Overtaken => CommitError::LostClaim { reason: error.to_string() },
        WriteError::Deleting => CommitError::Deleting { key: key.clone() },
        WriteError::Pinned { .. } => CommitError::Pinned { key: key.clone(), reason: error.to_string() },
        WriteError::Api(ApiError::Refused(_)) => {
            CommitError::Refused { key: key.clone(), reason: error.to_string() }
        }
        WriteError::NotOurs | WriteError::Api(_) => {
            CommitError::Retry { reason: format!("cannot write the record of {key}: {error}") }
        }
    }
}

/// Whether a volume's record has a secret that somebody uses. The next one to whom it is granted gets another.
fn needs_its_secret(value: &Map<String, Value>) -> bool {
    let Some(record) = value.get("record") else { return false };
    let is_used = record["attachments"].as_array().is_some_and(|all| !all.is_empty());
    is_used && !record["secret"].is_null()
}

/// The notes are not there, and once were.
fn say_lost(key: KeyId, before: KeyId) {
    if key == before {
        tracing::warn!(
            %key,
            "the ConfigMap {KEYS} is gone: all secrets are taken for secrets of this key; where volumes have some of another \
             one, note it again (docs/operating.md, \"Fencing\")"
        );
    } else {
        tracing::error!(
            %key, old_key = %before,
            "the ConfigMap {KEYS} is gone, and with it which of the two keys the secrets of attached volumes were made with: \
             they are given to nobody; note it again (docs/operating.md, \"Fencing\")"
        );
    }
}

/// The notes, with the key that secrets are made with from that term on; `None`: they say so already. `before`: the key that
/// they were made with until then, if nothing is noted; where that is not known either, nothing is said of it.
fn with_key(lines: &Lines, term: u64, key: KeyId, before: Option<KeyId>) -> Result<Option<Lines>, String> {
    let (eras, mut changed) = (noted(lines)?, lines.clone());
    if let (true, Some(before)) = (eras.is_empty(), before) {
        changed.insert("0".into(), before.to_string());
    }
    if eras.last().map(|era| era.key).or(before) != Some(key) {
        changed.insert(term.to_string(), key.to_string());
    }
    Ok((changed != *lines).then_some(changed))
}

fn noted(lines: &Lines) -> Result<Vec<Era>, String> {
    let mut eras = Vec::new();
    for (term, id) in lines {
        let wrong = |error: String| format!("ConfigMap {KEYS}: {term}: {error}; mend it by hand");
        let first_term = term.parse().map_err(|_| wrong("this is no term".into()))?;
        eras.push(Era { first_term, key: id.parse().map_err(|error| wrong(format!("{error}")))? });
    }
    eras.sort_by_key(|era| era.first_term);
    Ok(eras)
}

#[tonic::async_trait]
impl Store for KubernetesStore {
    fn place(&self) -> Place {
        Place::ApiServer
    }

    async fn take_term(&self, at_least: u64) -> Result<u64, CommitError> {
        self.claim.raise(at_least).await.map_err(|error| match error {
            LeaseError::Lost | LeaseError::SetBack(_) => CommitError::LostClaim { reason: error.to_string() },
            LeaseError::Api(_) => CommitError::Retry { reason: format!("cannot write the Lease: {error}") },
        })
    }

    async fn take_key(&self, key: KeyId, before: KeyId) -> Result<Vec<Era>, CommitError> {
        if !self.claim.outlives(self.timeout) {
            return Err(self.not_ours());
        }
        let (term, needed) = (self.claim.term(), self.secrets_are_needed());
        let lines = self.notes.change(|lines| {
            if needed && lines.is_empty() {
                say_lost(key, before);
            }
            with_key(lines, term, key, (key == before || !needed).then_some(before))
        });
        let read = lines.await.map_err(|error| match error {
            ApiError::Refused(reason) => CommitError::Fatal { reason },
            other => CommitError::Retry { reason: format!("cannot write the ConfigMap {KEYS}: {other}") },
        })?;
        noted(&read).map_err(|reason| CommitError::Fatal { reason })
    }

    async fn commit(&self, writes: Vec<Write>) -> Vec<Result<Version, CommitError>> {
        join_all(writes.into_iter().map(|write| self.write(write))).await
    }
}

#[cfg(test)]
mod tests {
    use cleat_rds::secret::MasterKey;
    use serde_json::json;

    use super::*;

    fn lines(all: &[(&str, KeyId)]) -> Lines {
        all.iter().map(|(term, key)| ((*term).to_owned(), key.to_string())).collect()
    }

    #[test]
    fn a_key_is_noted_from_its_term_on_and_an_unknown_one_before_it_is_not() {
        let [a, b] = [1, 2].map(|byte| MasterKey::passing(&[byte; 32]).id());
        let none = Lines::new();
        let noted = |lines: &Lines, key, before| with_key(lines, 20, key, before);
        assert_eq!(noted(&none, a, Some(a)), Ok(Some(lines(&[("0", a)]))));
        assert_eq!(noted(&none, b, Some(a)), Ok(Some(lines(&[("0", a), ("20", b)]))));
        assert_eq!(noted(&none, b, None), Ok(Some(lines(&[("20", b)]))), "lost: nobody knows");
        let known = lines(&[("0", a), ("10", b)]);
        for before in [Some(a), None] {
            assert_eq!(noted(&known, b, before), Ok(None));
            assert_eq!(noted(&known, a, before), Ok(Some(lines(&[("0", a), ("10", b), ("20", a)]))));
        }
        assert!(noted(&Lines::from([("x".into(), a.to_string())]), a, Some(a)).is_err());
    }

    #[test]
    fn a_secret_is_needed_as_long_as_somebody_has_its_volume() {
        let secret = json!({"generation": "1.1", "inForce": true});
        for (record, needed) in [
            (json!({"attachments": [{"node": "a"}], "secret": secret}), true),
            (json!({"attachments": [{"node": "a"}], "secret": null}), false),
            (json!({"attachments": [{"node": "a"}]}), false),
            (json!({"attachments": [], "secret": secret}), false),
            (Value::Null, false),
        ] {
            let value = Map::from_iter([("record".to_owned(), record)]);
            assert_eq!(needs_its_secret(&value), needed, "{value:?}");
        }
        assert!(!needs_its_secret(&Map::new()));
    }

    #[test]
    fn what_is_kept_beside_a_nodes_record_is_seen() {
        let of = |kept: Value| said(RecordKind::Node, kept.as_object().cloned().unwrap_or_default());
        assert_eq!(of(json!({"record": {"node": "a"}})), json!({"node": "a"}));
        let more = of(json!({"record": {"node": "a"}, "newer": 1}));
        assert_eq!(more, json!({"node": "a", "spec.newer": 1}));
    }
}
