//! The disk under the controller's store: what was committed is there after a crash, and takes its time. Somebody may
//! set it back to what it had earlier, or to nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use cleat_controller::store::{CommitError, Key, RecordKind, Store, StoredRecord, Version, Write};
use cleat_core::VolumeRecord;

use crate::chance::Chance;
use crate::world::{Planted, Universe};

/// What is on the disk.
#[derive(Debug, Default, Clone)]
pub struct Disk {
    term: u64,
    records: BTreeMap<Key, StoredRecord>,
    /// Who is on record for each volume: attached, or fenced and not seen to be gone.
    on_record: BTreeMap<String, Vec<String>>,
    /// Who is fenced from each volume, since which epoch, by what.
    fenced: BTreeMap<String, BTreeMap<(String, String), &'static str>>,
    /// What it had after each change.
    earlier: Vec<BTreeMap<Key, StoredRecord>>,
    /// Somebody has set it back: what it does not know it may have known.
    pub set_back: bool,
}

impl Disk {
    /// Whether a node is on record for a volume.
    #[must_use]
    pub fn knows(&self, volume: &str, node: &str) -> bool {
        self.on_record.get(volume).is_some_and(|nodes| nodes.iter().any(|known| known == node))
    }

    /// What is on record of a volume.
    #[must_use]
    pub fn record(&self, volume: &str) -> Option<VolumeRecord> {
        let is_its = |key: &Key| key.kind == RecordKind::Volume && key.name == volume;
        let (_, entry) = self.records.iter().find(|(key, _)| is_its(key))?;
        serde_json::from_value(entry.value["record"].clone()).ok()
    }

    /// Sets it back to what it had, or to nothing. Not in the middle of a fence: decision 0010 says what that costs. The
    /// term is not of it: controllers take theirs from the clock as well.
    ///
    /// Where the target keeps no lists, nothing tells an older store from the last: then it loses all.
    ///
    /// Gives whether it did.
    pub fn set_back(&mut self, chance: &mut Chance, lists: bool) -> bool {
        if self.records.values().any(in_a_fence) {
            return false;
        }
        let to = chance.index(self.earlier.len() * 3 / 2 + 1);
        self.records = self.earlier.get(to).filter(|_| lists).cloned().unwrap_or_default();
        self.set_back = true;
        true
    }

    /// Gives by what nodes were fenced with it.
    fn apply(&mut self, write: Write) -> Result<(Version, Vec<&'static str>), CommitError> {
        let Write { key, expected, value } = write;
        let found = self.records.get(&key).map(|entry| entry.version);
        if found != expected {
            return Err(CommitError::Conflict { key, expected, found });
        }
        let version = Version(found.map_or(1, |found| found.0 + 1));
        match value {
            Some(value) => {
                drop(self.records.insert(key.clone(), StoredRecord { key: key.clone(), version, value }));
            }
            None => drop(self.records.remove(&key)),
        }
        self.earlier.push(self.records.clone());
        if key.kind != RecordKind::Volume {
            return Ok((version, Vec::new()));
        }
        let volume = key.name.clone();
        let record = self.records.get(&key).map(|entry| entry.value["record"].clone());
        let record: Option<VolumeRecord> = record.and_then(|value| serde_json::from_value(value).ok());
        let nodes = record.as_ref().map(on_record).unwrap_or_default();
        self.on_record.insert(volume.clone(), nodes);
        let fenced = record.map(|record| record.fenced).unwrap_or_default();
        let fenced: BTreeMap<_, _> = fenced
            .iter()
            .map(|it| ((it.node.to_string(), it.epoch.to_string()), it.evidence.source.name()))
            .collect();
        let before = self.fenced.insert(volume, fenced.clone()).unwrap_or_default();
        let new = fenced.into_iter().filter(|(which, by)| before.get(which) != Some(by)).map(|(_, by)| by);
        Ok((version, new.collect()))
    }
}

fn in_a_fence(entry: &StoredRecord) -> bool {
    let record = serde_json::from_value::<VolumeRecord>(entry.value["record"].clone());
    record.is_ok_and(|record| record.attachments.iter().any(|it| record.fence(&it.node).is_some()))
}

fn on_record(record: &VolumeRecord) -> Vec<String> {
    let attached = record.attachments.iter().map(|attachment| attachment.node.to_string());
    attached.chain(record.fenced.iter().map(|fenced| fenced.node.to_string())).collect()
}

/// The store of one run of the controller.
#[derive(Debug)]
pub struct MemoryStore(Universe);

impl MemoryStore {
    /// Opens the disk: the store, and what is on it.
    #[must_use]
    pub fn open(universe: &Universe) -> (Self, Vec<StoredRecord>) {
        let records = universe.lock().disk.records.values().cloned().collect();
        (Self(universe.clone()), records)
    }
}

#[tonic::async_trait]
impl Store for MemoryStore {
    async fn take_key(
        &self,
        _: cleat_rds::secret::KeyId,
        before: cleat_rds::secret::KeyId,
    ) -> Result<Vec<cleat_rds::secret::Era>, CommitError> {
        Ok(vec![cleat_rds::secret::Era { first_term: 0, key: before }])
    }

    async fn take_term(&self, at_least: u64) -> Result<u64, CommitError> {
        let mut world = self.0.lock();
        let disk = &mut world.disk;
        disk.term = (disk.term + 1).max(at_least);
        Ok(disk.term)
    }

    async fn commit(&self, writes: Vec<Write>) -> Vec<Result<Version, CommitError>> {
        let (before, after, forgets) = {
            let mut world = self.0.lock();
            let slow = if world.chance.percent(2) { 300 } else { 0 };
            let forgets = world.planted == Some(Planted::DiskForgets) && world.chance.percent(10);
            (world.chance.within(1, 5) + slow, world.chance.within(1, 3), forgets)
        };
        tokio::time::sleep(Duration::from_millis(before)).await;
        let mut answers = Vec::new();
        {
            let mut world = self.0.lock();
            for write in writes {
                if forgets {
                    answers.push(Ok(Version(write.expected.map_or(1, |version| version.0 + 1))));
                    continue;
                }
                match world.disk.apply(write) {
                    Ok((version, fenced)) => {
                        answers.push(Ok(version));
                        for by in fenced {
                            world.count(format!("fenced by {by}"));
                        }
                    }
                    Err(error) => answers.push(Err(error)),
                }
            }
        }
        // Durable, and the controller does not know it yet: it may die in between.
        tokio::time::sleep(Duration::from_millis(after)).await;
        answers
    }
}
