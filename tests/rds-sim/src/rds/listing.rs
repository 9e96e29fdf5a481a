//! Items that are no disks: the pool, the files, the system.
//!
//! In: what the file system says. Out: items as RouterOS shows them. What always holds: a file's item id never comes
//! to mean another file, not even after a restart.

use serde_json::Value;

use super::{POOL_ID, Rds, failure};
use crate::files::{Entry, timestamp};
use crate::reply::{ApiError, Item};
use crate::value::ItemId;

impl Rds {
    /// All files.
    pub fn files(&mut self) -> Result<Vec<Item>, ApiError> {
        Ok(self.file_entries()?.into_iter().map(|(id, entry)| file_item(id, &entry)).collect())
    }

    /// Removes files by id.
    pub fn remove_files(&mut self, ids: &[ItemId]) -> Result<(), ApiError> {
        let entries = self.file_entries()?;
        for id in ids {
            let found = entries.iter().find(|(other, _)| other == id);
            let (_, entry) = found.ok_or_else(ApiError::no_such_item)?;
            // What RouterOS does with a file in use is not known; refused, so that no test pulls it from under a disk.
            if let Some(disk) = self.saved.disks.iter().find(|disk| disk.file_path == entry.name) {
                let detail = format!("failure: file is in use by disk {}", disk.slot);
                return Err(ApiError::bad_request(detail));
            }
            self.files.remove(entry).map_err(failure)?;
        }
        Ok(())
    }

    /// `/system/resource`.
    pub fn resource(&self) -> Result<Item, ApiError> {
        let space = self.files.space().map_err(failure)?;
        Ok(item([
            ("version", format!("{} (stable)", self.options.version)),
            ("board-name", self.options.board_name.clone()),
            ("platform", "MikroTik".to_owned()),
            ("architecture-name", "arm64".to_owned()),
            ("uptime", format!("{}s", self.started.elapsed().as_secs())),
            ("total-hdd-space", space.total_bytes.to_string()),
            ("free-hdd-space", space.free_bytes.to_string()),
        ]))
    }

    pub(super) fn pool(&self) -> Result<Item, ApiError> {
        let space = self.files.space().map_err(failure)?;
        let pool = &self.options.pool;
        Ok(item([
            (".id", POOL_ID.to_string()),
            ("type", "raid".to_owned()),
            ("slot", pool.clone()),
            ("slot-default", String::new()),
            ("parent", String::new()),
            ("fs", "btrfs".to_owned()),
            ("model", "RAID1 mirrored".to_owned()),
            ("size", space.total_bytes.to_string()),
            ("free", space.free_bytes.to_string()),
            ("mount-filesystem", "true".to_owned()),
            ("mount-point", pool.clone()),
            ("mounted", "true".to_owned()),
            ("block-device", "true".to_owned()),
            ("state", "clean".to_owned()),
            ("nvme-tcp-export", "false".to_owned()),
        ]))
    }

    fn file_entries(&mut self) -> Result<Vec<(ItemId, Entry)>, ApiError> {
        let entries = self.files.list().map_err(failure)?;
        let mut saved = self.saved.clone();
        saved.file_ids.retain(|name, _| entries.iter().any(|entry| entry.name == *name));
        let mut listed = Vec::with_capacity(entries.len());
        for entry in entries {
            let next = &mut saved.next_file_id;
            let id = *saved.file_ids.entry(entry.name.clone()).or_insert_with(|| {
                let id = *next;
                *next += 1;
                id
            });
            listed.push((ItemId(id), entry));
        }
        if saved != self.saved {
            self.commit(saved)?;
        }
        Ok(listed)
    }
}

fn item<const N: usize>(properties: [(&str, String); N]) -> Item {
    properties.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
}

fn file_item(id: ItemId, entry: &Entry) -> Item {
    let extension = entry.name.rsplit_once('.').map(|(_, extension)| format!(".{extension} file"));
    let kind = if entry.directory { "directory".to_owned() } else { extension.unwrap_or("file".to_owned()) };
    let mut item = item([
        (".id", id.to_string()),
        ("name", entry.name.clone()),
        ("type", kind),
        ("last-modified", timestamp(entry.modified)),
    ]);
    if !entry.directory {
        item.insert("size".to_owned(), Value::from(entry.size_bytes.to_string()));
    }
    item
}
