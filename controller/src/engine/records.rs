//! What the store keeps of each volume, and in which version: its record as JSON, and in the same record whether the
//! RDS may still be carrying out something for it (`unsettled`).
//!
//! In come steps, in their order; out go writes, one for each volume that they change, against the version that this
//! process has seen last. What holds: a volume whose record somebody else has written is *set aside*: nothing more is
//! done or answered for it until a new start has read what is there. The others go on.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use cleat_core::{Desired, Effect, NodeId, NodeRecord, VolumeId, VolumeRecord};
use cleat_runtime::exit::Causes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Decision, EngineError};
use crate::metrics;
use crate::store::{Key, RecordKind, StoredRecord, Version, Write};

/// All that was stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Records {
    /// What is kept of each volume.
    pub volumes: Vec<VolumeRecord>,
    /// Volumes of which the RDS may still be carrying out something that an earlier process has asked.
    pub unsettled: BTreeSet<VolumeId>,
    /// What is kept of each node.
    pub(super) nodes: HashMap<NodeId, KeptNode>,
    /// Who is to have what, whatever is stored.
    pub desired: Vec<Desired>,
    /// As it is in the store, by volume.
    pub(super) kept: HashMap<VolumeId, Kept>,
    /// Volumes of which nobody can say who may write to them, and why.
    pub(super) set_aside: HashMap<VolumeId, String>,
}

/// What the store has of a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct KeptNode {
    version: Version,
    pub(super) record: NodeRecord,
}

/// What the store has of a volume.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Kept {
    version: Option<Version>,
    record: Option<Value>,
    unsettled: bool,
}

/// A volume's record as it is written down.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// `null`: nothing is kept of it but the mark.
    record: Option<Value>,
    unsettled: bool,
}

/// What is stored cannot be read. Nothing may be granted then: somebody may still write who would be forgotten.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The name is no valid id.
    #[error(
        "cannot use the store's record of {key}: this version knows no such name; run the version that wrote it"
    )]
    Unknown {
        /// The key.
        key: Key,
    },
    /// The record has a form that this version does not know.
    #[error(
        "cannot read the store's record of {key}; if another version wrote it, run that one; else see \"Losing it costs \
         time\" in docs/operating.md"
    )]
    Unreadable {
        /// The key.
        key: Key,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The record is another node's.
    #[error("cannot use the store's record of {key}: it is that of node {node}")]
    MisplacedNode {
        /// The key.
        key: Key,
        /// Whose it is.
        node: NodeId,
    },
    /// The record is another volume's.
    #[error("cannot use the store's record of {key}: it is that of volume {volume}")]
    Misplaced {
        /// The key.
        key: Key,
        /// Whose it is.
        volume: VolumeId,
    },
}

/// Reads what was stored, all of it.
///
/// # Errors
/// The first record that cannot be read.
pub fn read(stored: Vec<StoredRecord>) -> Result<Records, RecordError> {
    let mut records = Records::default();
    for stored in stored {
        records.add(stored)?;
    }
    Ok(records)
}

/// Reads what can be read. A volume whose record cannot be is set aside: nothing is done or answered for it. For a store in
/// which people may change one record while everybody else goes on.
pub fn read_what_can_be(stored: Vec<StoredRecord>) -> Records {
    let mut records = Records::default();
    for stored in stored {
        let key = stored.key.clone();
        let Err(error) = records.add(stored) else { continue };
        let error = Causes(&error).to_string();
        tracing::error!(%key, "{error}; leaving it as it is until a restart");
        match key.kind {
            // The node says who it is when it is heard; until then its host counts as an unknown one.
            RecordKind::Node => metrics::node_set_aside(),
            RecordKind::Volume => {
                metrics::volume_set_aside();
                records.set_aside.extend(VolumeId::new(&key.name).ok().map(|volume| (volume, error)));
            }
        }
    }
    records
}

impl Records {
    fn add(&mut self, StoredRecord { key, version, value }: StoredRecord) -> Result<(), RecordError> {
        let unreadable = |source| RecordError::Unreadable { key: key.clone(), source };
        if key.kind == RecordKind::Node {
            let record: NodeRecord = serde_json::from_value(value).map_err(unreadable)?;
            if record.node.as_str() != key.name {
                return Err(RecordError::MisplacedNode { key, node: record.node });
            }
            self.nodes.insert(record.node.clone(), KeptNode { version, record });
            return Ok(());
        }
        let Ok(volume) = VolumeId::new(&key.name) else {
            return Err(RecordError::Unknown { key });
        };
        let Written { record, unsettled } = serde_json::from_value(value).map_err(unreadable)?;
        if let Some(record) = record.clone() {
            let record: VolumeRecord = serde_json::from_value(record).map_err(unreadable)?;
            if record.spec.id != volume {
                return Err(RecordError::Misplaced { key, volume: record.spec.id });
            }
            self.volumes.push(record);
        }
        if unsettled {
            self.unsettled.insert(volume.clone());
        }
        self.kept.insert(volume, Kept { version: Some(version), record, unsettled });
        Ok(())
    }

    /// The highest term under which any of them was granted or ended; 0 if there is none.
    #[must_use]
    pub fn highest_term(&self) -> u64 {
        self.volumes.iter().map(VolumeRecord::highest_term).max().unwrap_or(0)
    }
}

/// What the store has of every volume, and which of them are set aside.
#[derive(Debug, Default)]
pub(super) struct Book {
    kept: HashMap<VolumeId, Kept>,
    nodes: HashMap<NodeId, KeptNode>,
    set_aside: HashMap<VolumeId, String>,
    /// Nodes whose records are left to whoever else writes them.
    nodes_set_aside: HashSet<NodeId>,
}

impl Book {
    pub(super) fn new(
        kept: HashMap<VolumeId, Kept>,
        nodes: HashMap<NodeId, KeptNode>,
        set_aside: HashMap<VolumeId, String>,
    ) -> Self {
        Self { kept, nodes, set_aside, ..Self::default() }
    }

    /// What has to be durable before the effects of these steps: a volume's last record among them, and the marks of
    /// those in `asked`. Those in `settled` need theirs no more.
    pub(super) fn writes(
        &mut self,
        group: &[Decision],
        asked: &[VolumeId],
        settled: &[VolumeId],
    ) -> Result<Vec<Write>, EngineError> {
        let mut changed: BTreeMap<VolumeId, Kept> = BTreeMap::new();
        let kept = &self.kept;
        let mut change = |volume: &VolumeId, change: &mut dyn FnMut(&mut Kept)| {
            let entry = changed.entry(volume.clone());
            change(entry.or_insert_with(|| kept.get(volume).cloned().unwrap_or_default()));
        };
        for effect in group.iter().flat_map(|step| &step.effects) {
            match effect {
                Effect::Persist(record) => {
                    let volume = &record.spec.id;
                    let value = serde_json::to_value(record)
                        .map_err(|source| EngineError::Record { volume: volume.clone(), source })?;
                    change(volume, &mut |kept| kept.record = Some(value.clone()));
                }
                Effect::Forget(volume) => change(volume, &mut |kept| kept.record = None),
                _ => {}
            }
        }
        for volume in settled {
            change(volume, &mut |kept| kept.unsettled = false);
        }
        for volume in asked {
            change(volume, &mut |kept| kept.unsettled = true);
        }
        let mut writes = self.node_writes(group)?;
        for (volume, is) in changed {
            let was = self.kept.get(&volume).cloned().unwrap_or_default();
            if self.set_aside.contains_key(&volume) || is == was {
                continue;
            }
            let key = Key::volume(volume.as_str());
            let value =
                is.value().map_err(|source| EngineError::Record { volume: volume.clone(), source })?;
            writes.push(Write { key, expected: was.version, value });
        }
        Ok(writes)
    }

    /// The last record of each node among the steps, where it is another than the store has.
    fn node_writes(&self, group: &[Decision]) -> Result<Vec<Write>, EngineError> {
        let mut changed: BTreeMap<&NodeId, Option<&NodeRecord>> = BTreeMap::new();
        for effect in group.iter().flat_map(|step| &step.effects) {
            match effect {
                Effect::PersistNode(record) => drop(changed.insert(&record.node, Some(record))),
                Effect::ForgetNode(node) => drop(changed.insert(node, None)),
                _ => {}
            }
        }
        let mut writes = Vec::new();
        for (node, is) in changed {
            let was = self.nodes.get(node);
            if self.nodes_set_aside.contains(node) || was.map(|was| &was.record) == is {
                continue;
            }
            let value = is.map(serde_json::to_value).transpose();
            let value = value.map_err(|source| EngineError::Node { node: node.clone(), source })?;
            writes.push(Write { key: Key::node(node.as_str()), expected: was.map(|was| was.version), value });
        }
        Ok(writes)
    }

    /// A write is durable.
    pub(super) fn written(&mut self, write: Write, version: Version) {
        if write.key.kind == RecordKind::Node {
            let record = write.value.and_then(|value| serde_json::from_value::<NodeRecord>(value).ok());
            match (record, NodeId::new(&write.key.name)) {
                (Some(record), _) => {
                    drop(self.nodes.insert(record.node.clone(), KeptNode { version, record }));
                }
                (None, Ok(node)) => drop(self.nodes.remove(&node)),
                (None, Err(_)) => {}
            }
            return;
        }
        let Ok(volume) = VolumeId::new(&write.key.name) else { return };
        let written = write.value.and_then(|value| serde_json::from_value::<Written>(value).ok());
        match written {
            Some(Written { record, unsettled }) => {
                drop(self.kept.insert(volume, Kept { version: Some(version), record, unsettled }));
            }
            None => drop(self.kept.remove(&volume)),
        }
    }

    /// Somebody else has written the record: nothing more is done for the volume; a node's is written no more.
    pub(super) fn set_aside(&mut self, key: &Key, reason: String) {
        if key.kind == RecordKind::Node {
            self.nodes_set_aside.extend(NodeId::new(&key.name));
        } else if let Ok(volume) = VolumeId::new(&key.name) {
            self.set_aside.insert(volume, reason);
        }
    }

    /// Why nothing is done for the volume, if so.
    pub(super) fn is_set_aside(&self, volume: &VolumeId) -> Option<&str> {
        self.set_aside.get(volume).map(String::as_str)
    }
}

impl Kept {
    /// As it is written down; `None`: nothing is.
    fn value(&self) -> Result<Option<Value>, serde_json::Error> {
        if self.record.is_none() && !self.unsettled {
            return Ok(None);
        }
        serde_json::to_value(Written { record: self.record.clone(), unsettled: self.unsettled }).map(Some)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record() -> Value {
        json!({
            "spec": {"id": "v", "access": "RWO", "subsystemNqn": null, "portals": [], "sizeBytes": 4096},
            "identity": null, "attachments": [], "migration": null, "pastEvidence": [],
        })
    }

    fn stored(name: &str, value: Value) -> Vec<StoredRecord> {
        vec![StoredRecord { key: Key::volume(name), version: Version(3), value }]
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_its_key() {
        let whole = json!({"record": record(), "unsettled": true});
        let read_back = read(stored("v", whole.clone())).unwrap();
        assert_eq!(read_back.volumes[0].spec.id.as_str(), "v");
        assert!(read_back.unsettled.iter().any(|v| v.as_str() == "v"));
        for (name, value, words) in [
            ("no name/", whole.clone(), "no such name"),
            ("v", json!({"record": {"spec": 1}, "unsettled": false}), "cannot read"),
            ("v", json!({"record": null, "unsettled": false, "newer": 1}), "cannot read"),
            ("w", whole, "of volume v"),
        ] {
            let error = read(stored(name, value)).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(words), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_set_aside_where_others_are_to_go_on() {
        let mut all = stored("v", json!({"record": record(), "unsettled": false}));
        all.extend(stored("broken", json!({"record": {"spec": 1}, "unsettled": false})));
        all.push(StoredRecord { key: Key::node("n"), version: Version(1), value: json!({"node": ""}) });
        let records = read_what_can_be(all);
        assert_eq!(records.volumes.len(), 1);
        let book = Book::new(records.kept, records.nodes, records.set_aside);
        let reason = book.is_set_aside(&VolumeId::new("broken").unwrap()).unwrap();
        assert!(reason.contains("volume broken"), "{reason}");
        assert_eq!(book.is_set_aside(&VolumeId::new("v").unwrap()), None);
    }

    #[test]
    fn a_mark_and_the_record_are_one_write_against_the_version_that_was_seen() {
        let read_back = read(stored("v", json!({"record": record(), "unsettled": false}))).unwrap();
        let mut book = Book::new(read_back.kept, read_back.nodes, HashMap::new());
        let v = VolumeId::new("v").unwrap();
        let asked = book.writes(&[], std::slice::from_ref(&v), &[]).unwrap();
        let marked = json!({"record": serde_json::to_value(record()).unwrap(), "unsettled": true});
        assert_eq!(
            asked,
            [Write { key: Key::volume("v"), expected: Some(Version(3)), value: Some(marked.clone()) }]
        );
        book.written(asked[0].clone(), Version(4));
        assert_eq!(book.writes(&[], std::slice::from_ref(&v), &[]).unwrap(), [], "it is marked");
        let settled = book.writes(&[], &[], std::slice::from_ref(&v)).unwrap();
        assert_eq!(settled[0].expected, Some(Version(4)));
        book.set_aside(&Key::volume("v"), "somebody else".into());
        assert_eq!(book.writes(&[], &[], std::slice::from_ref(&v)).unwrap(), []);
        assert_eq!(book.is_set_aside(&v), Some("somebody else"));
    }
}
