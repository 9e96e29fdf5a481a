//! What the store keeps of each volume, and in which version: its record as JSON, and in the same record whether the
//! RDS may still be carrying out something for it (`unsettled`).
//!
//! In comes what a record is to say; out goes a write against the version that this process has seen last. What holds: a
//! volume whose record somebody else has written is *set aside*: nothing more is
//! done or answered for it until a new start has read what is there. The others go on.
//!
//! Both of the engine's tasks look in here: of a volume about which more was decided than is durable, people are shown what
//! is durable ([`Committed`]); and what is read of a node's record is a person's doing only where it is not our own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cleat_core::{Desired, Effect, Epoch, NodeId, NodeRecord, StoredNode, VolumeId, VolumeRecord};
use cleat_runtime::exit::Causes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::EngineError;
use crate::metrics;
use crate::store::{Key, RecordKind, StoredRecord, Version, Write, left_out};

/// Records that are read one after the other at least.
const PART: usize = 500;
/// Fields that a node's record had once and that say nothing any more.
const RETIRED_OF_NODES: [&str; 1] = ["pinned"];

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
    /// Who is to have something that nobody can name.
    pub unclear: BTreeSet<NodeId>,
    /// As it is in the store, by volume.
    pub(super) kept: HashMap<VolumeId, Kept>,
    /// What is left as it is in the store.
    pub(super) set_aside: SetAside,
}

/// Records that are left as they are, and why.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct SetAside {
    /// Nobody can say who may write to these volumes.
    pub(super) volumes: HashMap<VolumeId, String>,
    /// What these nodes' records say counts, as far as it is known; they are not written.
    pub(super) nodes: HashMap<NodeId, String>,
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
    /// As text: there are as many as volumes, and a tree of values takes several times the room.
    record: Option<Box<str>>,
    unsettled: bool,
}

/// A volume's record as it is written down.
#[derive(Debug, Serialize, Deserialize)]
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
    /// A later version wrote it, with something that this one would lose.
    #[error(
        "cannot use the store's record of {key}: this version does not know its field {field} and would lose it; run the \
         version that wrote it"
    )]
    Newer {
        /// The key.
        key: Key,
        /// Where in the record the field is.
        field: String,
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

/// Reads what was stored, all of it. What a later version has put a field into is set aside.
///
/// # Errors
/// The first record that cannot be read.
pub fn read(stored: Vec<StoredRecord>) -> Result<Records, RecordError> {
    let mut records = Records::default();
    for (key, read) in read_each(stored) {
        match read.and_then(|read| records.add(read)) {
            Err(error @ RecordError::Newer { .. }) => records.leave(&key, &error),
            added => added?,
        }
    }
    Ok(records)
}

/// Reads what can be read. A volume whose record cannot be is set aside: nothing is done or answered for it. For a store in
/// which people may change one record while everybody else goes on.
pub fn read_what_can_be(stored: Vec<StoredRecord>) -> Records {
    let mut records = Records::default();
    for (key, read) in read_each(stored) {
        if let Err(error) = read.and_then(|read| records.add(read)) {
            records.leave(&key, &error);
        }
    }
    records
}

/// One record that was read.
enum ReadRecord {
    /// It counts even where it is left as it is, for what is said beside it.
    Node(KeptNode, Result<(), RecordError>),
    Volume(VolumeId, Option<Box<VolumeRecord>>, Kept),
}

/// Reads each record, in their order; where there are many, on all cores: nothing is served before all are read.
fn read_each(stored: Vec<StoredRecord>) -> Vec<(Key, Result<ReadRecord, RecordError>)> {
    let read = |part: Vec<StoredRecord>| -> Vec<_> {
        part.into_iter().map(|stored| (stored.key.clone(), read_one(stored))).collect()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut rest = stored.into_iter();
    let part = rest.len().div_ceil(cores).max(PART);
    if rest.len() <= part {
        return read(rest.collect());
    }
    std::thread::scope(|scope| {
        let (mut parts, read) = (Vec::new(), &read);
        while rest.len() > 0 {
            let some: Vec<StoredRecord> = rest.by_ref().take(part).collect();
            parts.push(scope.spawn(move || read(some)));
        }
        let ended = parts.into_iter().map(|part| part.join());
        ended.flat_map(|read| read.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

fn read_one(StoredRecord { key, version, mut value }: StoredRecord) -> Result<ReadRecord, RecordError> {
    let unreadable = |source| RecordError::Unreadable { key: key.clone(), source };
    if key.kind == RecordKind::Node {
        let record = NodeRecord::deserialize(&value).map_err(unreadable)?;
        if record.node.as_str() != key.name {
            return Err(RecordError::MisplacedNode { key, node: record.node });
        }
        if let Some(said) = value.as_object_mut() {
            RETIRED_OF_NODES.iter().for_each(|field| drop(said.remove(*field)));
        }
        let kept = serde_json::to_value(&record).map_err(unreadable)?;
        return Ok(ReadRecord::Node(KeptNode { version, record }, known(key, &value, &kept)));
    }
    let Ok(volume) = VolumeId::new(&key.name) else {
        return Err(RecordError::Unknown { key });
    };
    let Written { record, unsettled } = Written::deserialize(&value).map_err(unreadable)?;
    let read = record.as_ref().map(VolumeRecord::deserialize).transpose().map_err(unreadable)?;
    if let Some(other) = read.as_ref().map(|read| &read.spec.id).filter(|id| **id != volume) {
        return Err(RecordError::Misplaced { key, volume: other.clone() });
    }
    let kept = read.as_ref().map(serde_json::to_value).transpose().map_err(unreadable)?;
    let kept = serde_json::to_value(Written { record: kept, unsettled }).map_err(unreadable)?;
    known(key, &value, &kept)?;
    let kept = Kept { version: Some(version), record: record.as_ref().map(text), unsettled };
    Ok(ReadRecord::Volume(volume, read.map(Box::new), kept))
}

impl Records {
    /// What cannot be used is left as it is.
    fn leave(&mut self, key: &Key, error: &RecordError) {
        let is_newer = matches!(error, RecordError::Newer { .. });
        let error = Causes(error).to_string();
        tracing::error!(%key, "{error}; leaving it as it is until a restart");
        match key.kind {
            // The node says who it is when it is heard; until then the host of one that cannot be read counts as unknown.
            RecordKind::Node => {
                metrics::node_set_aside();
                let node = NodeId::new(&key.name).ok().filter(|_| is_newer);
                self.set_aside.nodes.extend(node.map(|node| (node, error)));
            }
            RecordKind::Volume => {
                metrics::volume_set_aside();
                self.set_aside.volumes.extend(VolumeId::new(&key.name).ok().map(|volume| (volume, error)));
            }
        }
    }

    fn add(&mut self, read: ReadRecord) -> Result<(), RecordError> {
        match read {
            ReadRecord::Node(kept, known) => {
                self.nodes.insert(kept.record.node.clone(), kept);
                known
            }
            ReadRecord::Volume(volume, record, kept) => {
                self.volumes.extend(record.map(|record| *record));
                if kept.unsettled {
                    self.unsettled.insert(volume.clone());
                }
                self.kept.insert(volume, kept);
                Ok(())
            }
        }
    }

    /// The highest term under which any of them was granted or ended; 0 if there is none.
    #[must_use]
    pub fn highest_term(&self) -> u64 {
        self.volumes.iter().map(VolumeRecord::highest_term).max().unwrap_or(0)
    }
}

/// A record's text, by which it is compared: its fields have one order.
fn text(record: &Value) -> Box<str> {
    record.to_string().into_boxed_str()
}

/// Whether all that is stored would be there again if it were written back.
fn known(key: Key, stored: &Value, kept: &Value) -> Result<(), RecordError> {
    left_out(stored, kept).map_or(Ok(()), |field| Err(RecordError::Newer { key, field }))
}

/// What a record is to say, as far as it is to say something else.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Inner `None`: there is to be none.
    volume: Option<Option<Arc<VolumeRecord>>>,
    node: Option<Option<Box<NodeRecord>>>,
    /// The RDS may still be carrying out something for the volume.
    pub(super) unsettled: Option<bool>,
    /// How many decisions of the core are in it.
    decisions: usize,
}

impl Wanted {
    /// A volume's record, decided by the core.
    pub(super) fn volume(&mut self, record: Option<Arc<VolumeRecord>>) {
        self.volume = Some(record);
        self.decisions += 1;
    }

    /// What a write had in it that is not made: whatever is written next has it, too.
    pub(super) fn again(&mut self, refused: Deciding) {
        self.decisions += refused.decisions;
        self.unsettled = self.unsettled.or(refused.unsettled);
    }

    /// Whether it says anything of the record itself.
    pub(super) fn has_record(&self) -> bool {
        self.volume.is_some() || self.node.is_some()
    }

    /// A node's record.
    pub(super) fn node(&mut self, record: Option<Box<NodeRecord>>) {
        self.node = Some(record);
        self.decisions += 1;
    }
}

/// One write, and how many decisions of the core are in it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Deciding {
    pub(super) write: Write,
    decisions: usize,
    unsettled: Option<bool>,
}

impl Deciding {
    /// Grants that are in it, and not in the record that is stored.
    pub(super) fn new_grants(&self, book: &Book) -> Vec<(NodeId, Epoch)> {
        let of = |record: Option<VolumeRecord>| -> Vec<(NodeId, Epoch)> {
            let attachments = record.into_iter().flat_map(|record| record.attachments);
            attachments.map(|attachment| (attachment.node, attachment.epoch)).collect()
        };
        let Ok(volume) = VolumeId::new(&self.write.key.name) else { return Vec::new() };
        let was = of(book.committed.lock().record(&volume));
        let is = self.write.value.as_ref().and_then(|value| value.get("record"));
        let mut grants = of(is.and_then(|record| VolumeRecord::deserialize(record).ok()));
        grants.retain(|grant| !was.contains(grant));
        grants
    }
}

/// What the store has of every volume and node, for both tasks. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Committed(Arc<Mutex<OfAll>>);

#[derive(Debug, Default)]
struct OfAll {
    kept: HashMap<VolumeId, Kept>,
    /// How many decisions about a volume are not durable.
    ahead: HashMap<VolumeId, usize>,
    /// Volumes about which nothing more is done, and why.
    set_aside: HashMap<VolumeId, String>,
    nodes: HashMap<NodeId, OfNode>,
}

impl OfAll {
    /// What is durable of a volume.
    fn record(&self, volume: &VolumeId) -> Option<VolumeRecord> {
        let record = self.kept.get(volume)?.record.as_ref()?;
        // It was read, or written, as one.
        serde_json::from_str(record).ok()
    }
}

#[derive(Debug, Default)]
struct OfNode {
    /// As this process has read or written it last.
    kept: Option<KeptNode>,
    /// How many decisions about it there were, and how many of them are not durable.
    decided: u64,
    ahead: usize,
    /// It was seen otherwise in the store since.
    edited: bool,
}

/// How much was decided about a node at some moment, all of which was durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeMark(u64);

impl Committed {
    fn lock(&self) -> MutexGuard<'_, OfAll> {
        // Each change under this lock is whole by itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The core has decided this.
    pub(super) fn decided(&self, effects: &[Effect]) {
        let volumes = effects.iter().filter_map(|effect| match effect {
            Effect::Persist(record) => Some(&record.spec.id),
            Effect::Forget(volume) => Some(volume),
            _ => None,
        });
        for volume in volumes {
            *self.lock().ahead.entry(volume.clone()).or_default() += 1;
        }
        let nodes = effects.iter().filter_map(|effect| match effect {
            Effect::PersistNode(record) => Some(&record.node),
            Effect::ForgetNode(node) => Some(node),
            _ => None,
        });
        for node in nodes {
            let mut all = self.lock();
            let of = all.nodes.entry(node.clone()).or_default();
            of.decided += 1;
            of.ahead += 1;
        }
    }

    /// So many decisions about a node are durable, or are not made so.
    pub(super) fn node_settled(&self, node: &NodeId, decisions: usize) {
        if let Some(of) = self.lock().nodes.get_mut(node) {
            of.ahead = of.ahead.saturating_sub(decisions);
        }
    }

    /// To be taken before a node's record is read live. `None`: a write of it is not durable, so whatever is read may be
    /// older than what was decided.
    pub(super) fn mark(&self, node: &NodeId) -> Option<NodeMark> {
        let all = self.lock();
        let Some(of) = all.nodes.get(node) else { return Some(NodeMark(0)) };
        (of.ahead == 0).then_some(NodeMark(of.decided))
    }

    /// Whether somebody else has made a node's record what was read after that mark. No decision may come meanwhile.
    pub(super) fn is_by_others(&self, node: &NodeId, mark: NodeMark, read: &StoredNode) -> bool {
        let read = match read {
            StoredNode::Record(record) => Some(&**record),
            StoredNode::Nothing => None,
        };
        let mut all = self.lock();
        let Some(of) = all.nodes.get_mut(node) else { return read.is_some() };
        if NodeMark(of.decided) != mark {
            return false;
        }
        // Once it was, what is written there is theirs, be it what we wrote before.
        of.edited |= of.kept.as_ref().map(|kept| &kept.record) != read;
        of.edited
    }

    fn node(&self, node: &NodeId) -> Option<KeptNode> {
        self.lock().nodes.get(node)?.kept.clone()
    }

    fn node_written(&self, node: NodeId, kept: Option<KeptNode>, decisions: usize) {
        let mut all = self.lock();
        let of = all.nodes.entry(node).or_default();
        (of.kept, of.edited) = (kept, false);
        of.ahead = of.ahead.saturating_sub(decisions);
    }

    fn durable(&self, volume: &VolumeId, decisions: usize) {
        let mut all = self.lock();
        if let Some(ahead) = all.ahead.get_mut(volume) {
            *ahead = ahead.saturating_sub(decisions);
            if *ahead == 0 {
                all.ahead.remove(volume);
            }
        }
    }

    /// The volumes about which more was decided than is durable, each with what is.
    pub(super) fn behind(&self) -> Vec<(VolumeId, Option<VolumeRecord>)> {
        let all = self.lock();
        all.ahead.keys().map(|volume| (volume.clone(), all.record(volume))).collect()
    }

    /// The same of one volume; no other is read.
    pub(super) fn behind_of(&self, volume: &VolumeId) -> Vec<(VolumeId, Option<VolumeRecord>)> {
        let all = self.lock();
        all.ahead
            .get_key_value(volume)
            .map(|(volume, _)| (volume.clone(), all.record(volume)))
            .into_iter()
            .collect()
    }

    /// The volumes that were set aside, and why: what is kept of them says nothing for certain.
    pub(super) fn set_aside(&self) -> BTreeMap<VolumeId, String> {
        self.lock().set_aside.iter().map(|(volume, why)| (volume.clone(), why.clone())).collect()
    }

    fn kept(&self, volume: &VolumeId) -> Kept {
        self.lock().kept.get(volume).cloned().unwrap_or_default()
    }
}

/// What the store has of every volume and node, and which of them are set aside.
#[derive(Debug, Default)]
pub(super) struct Book {
    committed: Committed,
    /// Nodes whose records are left to whoever else writes them, and why.
    nodes_set_aside: HashMap<NodeId, String>,
}

impl Book {
    pub(super) fn new(
        kept: HashMap<VolumeId, Kept>,
        nodes: HashMap<NodeId, KeptNode>,
        SetAside { volumes: set_aside, nodes: nodes_set_aside }: SetAside,
    ) -> Self {
        let of = |kept| OfNode { kept: Some(kept), ..OfNode::default() };
        let nodes = nodes.into_iter().map(|(node, kept)| (node, of(kept))).collect();
        let all = OfAll { kept, set_aside, nodes, ..OfAll::default() };
        Self { committed: Committed(Arc::new(Mutex::new(all))), nodes_set_aside }
    }

    /// What is durable, for who shows it.
    pub(super) fn committed(&self) -> Committed {
        self.committed.clone()
    }

    /// The write that makes a record say what it is to; `None`: it says that already, and is durable. No write of it is
    /// under way.
    pub(super) fn write(&mut self, key: &Key, wanted: Wanted) -> Result<Option<Deciding>, EngineError> {
        let Wanted { volume, node, unsettled, decisions } = wanted;
        if key.kind == RecordKind::Node {
            let Some(is) = node else { return Ok(None) };
            let Ok(node) = NodeId::new(&key.name) else { return Ok(None) };
            let write = self.node_write(key, &node, is.as_deref())?;
            if write.is_none() {
                self.committed.node_settled(&node, decisions);
            }
            return Ok(write.map(|write| Deciding { write, decisions, unsettled: None }));
        }
        let Ok(id) = VolumeId::new(&key.name) else { return Ok(None) };
        let wrong = |source| EngineError::Record { volume: id.clone(), source };
        let was = self.committed.kept(&id);
        let unsettled_now = unsettled.unwrap_or(was.unsettled);
        let record: Option<Value> = match volume {
            Some(record) => record.as_deref().map(serde_json::to_value).transpose(),
            None => was.record.as_deref().map(serde_json::from_str).transpose(),
        }
        .map_err(wrong)?;
        if unsettled_now == was.unsettled && record.as_ref().map(text) == was.record {
            self.committed.durable(&id, decisions);
            return Ok(None);
        }
        let value = Written { record, unsettled: unsettled_now }.value().map_err(wrong)?;
        let write = Write { key: key.clone(), expected: was.version, value };
        Ok(Some(Deciding { write, decisions, unsettled }))
    }

    fn node_write(
        &self,
        key: &Key,
        node: &NodeId,
        is: Option<&NodeRecord>,
    ) -> Result<Option<Write>, EngineError> {
        let was = self.committed.node(node);
        if was.as_ref().map(|was| &was.record) == is {
            return Ok(None);
        }
        let value = is.map(serde_json::to_value).transpose();
        let value = value.map_err(|source| EngineError::Node { node: node.clone(), source })?;
        Ok(Some(Write { key: key.clone(), expected: was.map(|was| was.version), value }))
    }

    /// A write is durable.
    pub(super) fn written(&mut self, Deciding { write, decisions, .. }: Deciding, version: Version) {
        if write.key.kind == RecordKind::Node {
            let record = write.value.and_then(|value| serde_json::from_value::<NodeRecord>(value).ok());
            let kept = record.map(|record| KeptNode { version, record });
            if let Ok(node) = NodeId::new(&write.key.name) {
                self.committed.node_written(node, kept, decisions);
            }
            return;
        }
        let Ok(volume) = VolumeId::new(&write.key.name) else { return };
        let written = write.value.and_then(|value| serde_json::from_value::<Written>(value).ok());
        let mut all = self.committed.lock();
        match written {
            Some(Written { record, unsettled }) => {
                let kept = Kept { version: Some(version), record: record.as_ref().map(text), unsettled };
                drop(all.kept.insert(volume.clone(), kept));
            }
            None => drop(all.kept.remove(&volume)),
        }
        drop(all);
        self.committed.durable(&volume, decisions);
    }

    /// A write of a node is not made: what is there stands.
    pub(super) fn dropped(&self, Deciding { write, decisions, .. }: &Deciding) {
        if let Ok(node) = NodeId::new(&write.key.name) {
            self.committed.node_settled(&node, *decisions);
        }
    }

    /// Somebody else has written the record: nothing more is done for the volume; a node's is written no more.
    pub(super) fn set_aside(&mut self, key: &Key, reason: String) {
        if key.kind == RecordKind::Node {
            if let Ok(node) = NodeId::new(&key.name) {
                self.committed.node_settled(&node, usize::MAX);
                self.nodes_set_aside.insert(node, reason);
            }
        } else if let Ok(volume) = VolumeId::new(&key.name) {
            self.committed.lock().set_aside.insert(volume, reason);
        }
    }

    /// Why nothing is done for the volume, if so.
    pub(super) fn is_set_aside(&self, volume: &VolumeId) -> Option<String> {
        self.committed.lock().set_aside.get(volume).cloned()
    }

    /// Why a node's record is left as it is, if so.
    pub(super) fn is_node_set_aside(&self, node: &NodeId) -> Option<String> {
        self.nodes_set_aside.get(node).cloned()
    }
}

impl Written {
    /// As it is written down; `None`: nothing is.
    fn value(self) -> Result<Option<Value>, serde_json::Error> {
        if self.record.is_none() && !self.unsettled {
            return Ok(None);
        }
        serde_json::to_value(self).map(Some)
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
            ("w", whole, "of volume v"),
        ] {
            let error = read(stored(name, value)).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(words), "{error}");
        }
    }

    #[test]
    fn of_many_records_all_are_read_and_the_first_that_cannot_be_is_named() {
        let of = |number: usize| {
            let (name, mut record) = (format!("v{number:04}"), record());
            record["spec"]["id"] = json!(name);
            stored(&name, json!({"record": record, "unsettled": number.is_multiple_of(2)})).remove(0)
        };
        let mut all: Vec<StoredRecord> = (0..5 * PART).map(of).collect();
        let records = read(all.clone()).unwrap();
        let ids: Vec<&str> = records.volumes.iter().map(|read| read.spec.id.as_str()).collect();
        assert!(ids.is_sorted() && ids.len() == 5 * PART && records.kept.len() == ids.len());
        assert_eq!(records.unsettled.len(), ids.len().div_ceil(2));
        for number in [4 * PART, 2 * PART, PART + 7] {
            all[number].value = json!({"record": 1});
        }
        let error = read(all.clone()).unwrap_err().to_string();
        assert!(error.contains(&format!("volume v{:04}", PART + 7)), "{error}");
        assert_eq!(read_what_can_be(all).volumes.len(), 5 * PART - 3);
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
    fn a_field_that_is_not_known_sets_the_volume_aside_and_is_named() {
        let attachment = json!({
            "node": "a", "hostNqn": "nqn.2026-01.test:a", "epoch": "1.1", "role": "primary", "readOnly": false,
            "phase": {"type": "ready"}, "since": 0, "proven": true, "bootId": null, "mayLandUntil": null,
        });
        let of = |change: &dyn Fn(&mut Value)| {
            let mut value = json!({"record": record(), "unsettled": true});
            value["record"]["attachments"] = json!([attachment]);
            change(&mut value);
            value
        };
        for (value, field) in [
            (of(&|value| value["newer"] = json!(1)), "newer"),
            (of(&|value| value["record"]["newer"] = json!("x")), "record.newer"),
            (of(&|value| value["record"]["spec"]["newer"] = json!(false)), "record.spec.newer"),
            (
                of(&|value| value["record"]["attachments"][0]["newer"] = json!({})),
                "record.attachments[0].newer",
            ),
            (
                of(&|value| value["record"]["attachments"][0]["phase"]["newer"] = json!(1)),
                "record.attachments[0].phase.newer",
            ),
        ] {
            let records = [read(stored("v", value.clone())).unwrap(), read_what_can_be(stored("v", value))];
            for records in records {
                assert_eq!((records.volumes.len(), records.kept.len()), (0, 0), "{field}");
                let book = Book::new(records.kept, records.nodes, records.set_aside);
                let reason = book.is_set_aside(&VolumeId::new("v").unwrap()).unwrap();
                assert!(reason.contains(&format!("does not know its field {field} and")), "{reason}");
            }
        }
        let nothing_new = of(&|value| value["record"]["newer"] = Value::Null);
        assert_eq!(
            read(stored("v", nothing_new)).unwrap().volumes.len(),
            1,
            "null says no more than nothing"
        );
    }

    #[test]
    fn a_nodes_record_with_an_unknown_field_counts_and_is_not_written() {
        let a = NodeId::new("a").unwrap();
        let read_node = |change: &dyn Fn(&mut Value)| {
            let mut value = serde_json::to_value(host("a", 1)).unwrap();
            change(&mut value);
            let all =
                || vec![StoredRecord { key: Key::node("a"), version: Version(1), value: value.clone() }];
            let records = [read(all()).unwrap(), read_what_can_be(all())];
            records.map(|records| {
                assert_eq!(records.nodes[&a].record, host("a", 1));
                Book::new(records.kept, records.nodes, records.set_aside).is_node_set_aside(&a)
            })
        };
        for reason in read_node(&|value| value["identity"]["newer"] = json!(1)) {
            let reason = reason.unwrap();
            assert!(
                reason.contains("node a: this version does not know its field identity.newer"),
                "{reason}"
            );
        }
        for as_before in [json!(true), Value::Null] {
            let reasons = read_node(&|value| value["pinned"] = as_before.clone());
            assert_eq!(reasons, [None, None], "it says nothing any more");
        }
        assert_eq!(read_node(&|value| value["uid"] = Value::Null), [None, None]);
    }

    fn marked(unsettled: bool) -> Wanted {
        Wanted { unsettled: Some(unsettled), ..Wanted::default() }
    }

    #[test]
    fn a_mark_and_the_record_are_one_write_against_the_version_that_was_seen() {
        let read_back = read(stored("v", json!({"record": record(), "unsettled": false}))).unwrap();
        let mut book = Book::new(read_back.kept, read_back.nodes, SetAside::default());
        let (v, key) = (VolumeId::new("v").unwrap(), Key::volume("v"));
        let asked = book.write(&key, marked(true)).unwrap().unwrap();
        let value = Some(json!({"record": serde_json::to_value(record()).unwrap(), "unsettled": true}));
        assert_eq!(asked.write, Write { key: key.clone(), expected: Some(Version(3)), value });
        book.written(asked, Version(4));
        assert_eq!(book.write(&key, marked(true)).unwrap(), None, "it is marked");
        let settled = book.write(&key, marked(false)).unwrap().unwrap();
        assert_eq!(settled.write.expected, Some(Version(4)));
        book.set_aside(&key, "somebody else".into());
        assert_eq!(book.is_set_aside(&v).as_deref(), Some("somebody else"));
        assert_eq!(book.committed().set_aside(), [(v, "somebody else".to_owned())].into());
    }

    fn host(name: &str, uuid: u8) -> NodeRecord {
        let uuid = format!("00000000-0000-0000-0000-{uuid:012}");
        let identity = json!({
            "hostNqn": format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}"), "hostId": uuid, "storageAddresses": [],
            "bootId": "b",
        });
        serde_json::from_value(json!({ "node": name, "identity": identity })).unwrap()
    }

    fn decided(committed: &Committed, record: Option<&NodeRecord>) -> Wanted {
        let record = record.cloned().map(Box::new);
        let a = NodeId::new("a").unwrap();
        committed.decided(&[record.clone().map_or(Effect::ForgetNode(a), Effect::PersistNode)]);
        let mut wanted = Wanted::default();
        wanted.node(record);
        wanted
    }

    #[test]
    fn a_node_read_while_its_write_is_pending_is_nobody_elses() {
        let key = Key::node("a");
        let (a, first, second) = (NodeId::new("a").unwrap(), host("a", 1), host("a", 2));
        let of = |record: &NodeRecord| StoredNode::Record(Box::new(record.clone()));
        let mut book = Book::new(HashMap::new(), HashMap::new(), SetAside::default());
        let committed = book.committed();
        // Its first record: what is read before that is there says nothing.
        let before = committed.mark(&a).unwrap();
        let wanted = decided(&committed, Some(&first));
        assert!(!committed.is_by_others(&a, before, &StoredNode::Nothing));
        assert_eq!(committed.mark(&a), None);
        let write = book.write(&key, wanted).unwrap().unwrap();
        assert_eq!(committed.mark(&a), None);
        book.written(write, Version(1));
        let durable = committed.mark(&a).unwrap();
        assert!(!committed.is_by_others(&a, durable, &of(&first)));
        // What was read before a write counts no more once that is durable, be it written or forgotten.
        for next in [Some(&second), None] {
            let read = committed.mark(&a).unwrap();
            let wanted = decided(&committed, next);
            let write = book.write(&key, wanted).unwrap().unwrap();
            book.written(write, Version(2));
            assert!(!committed.is_by_others(&a, read, &of(&first)), "it is older than {next:?}");
        }
        let now = committed.mark(&a).unwrap();
        assert!(!committed.is_by_others(&a, now, &StoredNode::Nothing));
        assert!(committed.is_by_others(&a, now, &of(&second)), "a person has made it");
    }

    #[test]
    fn a_node_that_a_person_changes_twice_is_theirs_until_it_is_written() {
        let key = Key::node("a");
        let (a, first, second) = (NodeId::new("a").unwrap(), host("a", 1), host("a", 2));
        let of = |record: &NodeRecord| StoredNode::Record(Box::new(record.clone()));
        let kept = KeptNode { version: Version(1), record: first.clone() };
        let mut book = Book::new(HashMap::new(), [(a.clone(), kept)].into(), SetAside::default());
        let committed = book.committed();
        let mark = committed.mark(&a).unwrap();
        assert!(!committed.is_by_others(&a, mark, &of(&first)));
        assert!(committed.is_by_others(&a, mark, &of(&second)));
        assert!(committed.is_by_others(&a, mark, &of(&first)), "back again");
        let wanted = decided(&committed, Some(&second));
        let write = book.write(&key, wanted).unwrap().unwrap();
        book.written(write, Version(3));
        let mark = committed.mark(&a).unwrap();
        assert!(!committed.is_by_others(&a, mark, &of(&second)));
        // Nothing more is written of one that is set aside: what is there is read as it is.
        drop(decided(&committed, Some(&first)));
        book.set_aside(&key, "somebody else".into());
        assert!(committed.mark(&a).is_some());
    }

    #[test]
    fn what_is_decided_and_not_durable_is_shown_as_it_is_stored() {
        let read_back = read(stored("v", json!({"record": record(), "unsettled": false}))).unwrap();
        let mut book = Book::new(read_back.kept, read_back.nodes, SetAside::default());
        let (committed, key) = (book.committed(), Key::volume("v"));
        let v = VolumeId::new("v").unwrap();
        assert_eq!(committed.behind(), []);
        let forget = Effect::Forget(v.clone());
        committed.decided(&[forget.clone(), forget]);
        let shown = |committed: &Committed| {
            committed.behind().into_iter().map(|(v, record)| (v, record.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(shown(&committed), [(v.clone(), true)]);
        let of = |volume: &str| committed.behind_of(&VolumeId::new(volume).unwrap()).len();
        assert_eq!((of("v"), of("w")), (1, 0), "each alone, where that is all that is looked at");
        let mut wanted = Wanted::default();
        wanted.volume(None);
        let write = book.write(&key, wanted).unwrap().unwrap();
        book.written(write, Version(4));
        assert_eq!(shown(&committed), [(v, false)], "of the second one nothing is known yet");
        let mut wanted = Wanted::default();
        wanted.volume(None);
        assert_eq!(book.write(&key, wanted).unwrap(), None);
        assert_eq!(committed.behind(), []);
    }
}
