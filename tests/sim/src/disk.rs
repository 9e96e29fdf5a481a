//! The disk under the controller's store: what was committed is there after a crash, and takes its time.

use std::collections::BTreeMap;
use std::time::Duration;

use cleat_controller::store::{Change, CommitError, Store};
use cleat_core::VolumeRecord;
use serde_json::Value;

use crate::world::{EPOCH_MS, Planted, Universe};

/// What is on the disk.
#[derive(Debug, Default, Clone)]
pub struct Disk {
    term: u64,
    records: BTreeMap<String, Value>,
    /// Who is on record for each volume: attached, or fenced and not seen to be gone.
    on_record: BTreeMap<String, Vec<String>>,
    /// Who is fenced from each volume, since which epoch, by what.
    fenced: BTreeMap<String, BTreeMap<(String, String), &'static str>>,
}

impl Disk {
    /// Whether a node is on record for a volume.
    #[must_use]
    pub fn knows(&self, volume: &str, node: &str) -> bool {
        self.on_record.get(volume).is_some_and(|nodes| nodes.iter().any(|known| known == node))
    }

    /// Gives by what nodes were fenced with it.
    fn apply(&mut self, change: Change) -> Vec<&'static str> {
        let key = match &change {
            Change::Put(key, _) | Change::Delete(key) => key.clone(),
        };
        match change {
            Change::Put(key, value) => drop(self.records.insert(key, value)),
            Change::Delete(key) => drop(self.records.remove(&key)),
        }
        let Some(volume) = key.strip_prefix("volume/") else { return Vec::new() };
        let record = self.records.get(&key).cloned();
        let record: Option<VolumeRecord> = record.and_then(|value| serde_json::from_value(value).ok());
        let nodes = record.as_ref().map(on_record).unwrap_or_default();
        self.on_record.insert(volume.to_owned(), nodes);
        let fenced = record.map(|record| record.fenced).unwrap_or_default();
        let fenced: BTreeMap<_, _> = fenced
            .iter()
            .map(|it| ((it.node.to_string(), it.epoch.to_string()), it.evidence.source.name()))
            .collect();
        let before = self.fenced.insert(volume.to_owned(), fenced.clone()).unwrap_or_default();
        fenced.into_iter().filter(|(which, by)| before.get(which) != Some(by)).map(|(_, by)| by).collect()
    }
}

fn on_record(record: &VolumeRecord) -> Vec<String> {
    let attached = record.attachments.iter().map(|attachment| attachment.node.to_string());
    attached.chain(record.fenced.iter().map(|fenced| fenced.node.to_string())).collect()
}

/// The store of one run of the controller.
#[derive(Debug)]
pub struct MemoryStore(Universe);

impl MemoryStore {
    /// Opens the disk: the store, a term higher than any before, and what is on it.
    #[must_use]
    pub fn open(universe: &Universe) -> (Self, u64, BTreeMap<String, Value>) {
        let mut world = universe.lock();
        let now = EPOCH_MS + world.now;
        let disk = &mut world.disk;
        disk.term = (disk.term + 1).max(now);
        let (term, records) = (disk.term, disk.records.clone());
        drop(world);
        (Self(universe.clone()), term, records)
    }
}

#[tonic::async_trait]
impl Store for MemoryStore {
    async fn commit(&self, changes: Vec<Change>) -> Result<(), CommitError> {
        let (before, after, forgets) = {
            let mut world = self.0.lock();
            let slow = if world.chance.percent(2) { 300 } else { 0 };
            let forgets = world.planted == Some(Planted::DiskForgets) && world.chance.percent(10);
            (world.chance.within(1, 5) + slow, world.chance.within(1, 3), forgets)
        };
        tokio::time::sleep(Duration::from_millis(before)).await;
        if !forgets {
            let mut world = self.0.lock();
            for change in changes {
                for by in world.disk.apply(change) {
                    world.count(format!("fenced by {by}"));
                }
            }
        }
        // Durable, and the controller does not know it yet: it may die in between.
        tokio::time::sleep(Duration::from_millis(after)).await;
        Ok(())
    }
}
