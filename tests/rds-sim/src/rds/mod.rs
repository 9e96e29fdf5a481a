//! The device: its disks and files, and the operations on them.
//!
//! In: operations of the REST API, one at a time (the owner holds the lock), and of the test control. Out: items,
//! refusals in RouterOS' words, and changes at the target, in the backing files and in the store. What always holds:
//! success means that the target was read back as wanted and that the record is on disk; a failed `add` leaves
//! nothing, a failed `set` the disk as it was (as far as the target lets it be put back).

mod export;
mod listing;
mod options;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

pub use self::options::{AclMode, Backing, Hold, Options};
use crate::disk::{Change, Disk};
use crate::files::{Entry, FileError, Files};
use crate::held::{self, HeldStores};
use crate::pretend::Pretend;
use crate::reply::{ApiError, Item};
use crate::store::{Saved, Store, StoreError};
use crate::target::{Step, TargetError, TargetKernel, reconcile, withdraw};
use crate::value::ItemId;

use self::export::is_up;

/// The pool's own item.
const POOL_ID: ItemId = ItemId(1);

/// Why the device could not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kernel's target.
    #[error("NVMe target")]
    Target(#[from] TargetError),
    /// The directory of the backing files.
    #[error("backing files")]
    Files(#[from] FileError),
    /// The saved state.
    #[error("saved state")]
    Store(#[from] StoreError),
}

/// The device.
#[derive(Debug)]
pub struct Rds {
    pub(crate) options: Options,
    pub(crate) target: Arc<dyn TargetKernel>,
    files: Files,
    store: Store,
    saved: Saved,
    pub(crate) holds: BTreeSet<Hold>,
    pub(crate) pretends: BTreeSet<Pretend>,
    /// The devices over the files, with [`Backing::Held`].
    held: Option<HeldStores>,
    /// How writes are held, by slot.
    pub(crate) writes_held: BTreeMap<String, held::Hold>,
    /// Disks whose export failed at start, with the reason.
    pub(crate) broken: BTreeMap<ItemId, String>,
    started: Instant,
}

impl Rds {
    /// Opens the device: reads what was saved and brings its exports about. What is there already stays untouched,
    /// so sessions survive a restart of this program; after a reboot of the machine everything is made again. An
    /// export that fails is logged and reported, and does not keep the others down.
    pub fn open(options: Options, target: Arc<dyn TargetKernel>) -> Result<Self, OpenError> {
        target.probe()?;
        let files = Files::open(options.files.clone(), options.capacity_bytes)?;
        let store = Store::in_directory(&options.files);
        let saved = store.load()?;
        let held = (options.backing == Backing::Held).then(|| HeldStores::new(options.backing_depth));
        let mut rds = Self {
            held,
            writes_held: BTreeMap::new(),
            pretends: BTreeSet::new(),
            options,
            target,
            files,
            store,
            saved,
            holds: BTreeSet::new(),
            broken: BTreeMap::new(),
            started: Instant::now(),
        };
        rds.bring_all_about();
        rds.store.save(&rds.saved)?;
        Ok(rds)
    }

    /// All disks, the pool first.
    pub fn disks(&self) -> Result<Vec<Item>, ApiError> {
        let mut items = vec![self.pool()?];
        items.extend(self.saved.disks.iter().map(|disk| disk.item(self.options.version)));
        Ok(items)
    }

    /// One disk.
    pub fn disk(&self, id: ItemId) -> Result<Item, ApiError> {
        if id == POOL_ID {
            return self.pool();
        }
        self.find(id).map(|disk| disk.item(self.options.version)).ok_or_else(ApiError::not_found)
    }

    /// The ids behind a comma separated list of ids and slots; `None` if one of them is nobody's.
    pub fn resolve(&self, numbers: &str) -> Option<Vec<ItemId>> {
        let resolve = |text: &str| match text.parse::<ItemId>() {
            Ok(id) => (id == POOL_ID || self.find(id).is_some()).then_some(id),
            Err(_) => self.by_slot(text).map(|disk| disk.id),
        };
        numbers.split(',').map(|text| resolve(text.trim())).collect()
    }

    /// Makes a disk.
    pub fn add(&mut self, properties: &Item) -> Result<ItemId, ApiError> {
        let change = Change::parse(properties, self.options.version)?;
        match change.kind.as_deref() {
            // The wording for a missing argument is that of `.id` (observed), applied to `type` (assumed).
            None => return Err(ApiError::bad_request("missing =type=")),
            Some("file") => {}
            Some(_) => return Err(ApiError::bad_request("input does not match any value of type")),
        }
        let path = change.file_path.clone().ok_or_else(|| ApiError::bad_request("missing =file-path="))?;
        let id = ItemId(self.saved.next_disk_id);
        // A disk without a slot gets one from RouterOS; the form is assumed.
        let slot = change.slot.clone().unwrap_or_else(|| format!("file{}", id.0));
        let blank = Disk {
            id,
            uuid: self.pinned_uuid(&slot),
            slot,
            file_path: path.clone(),
            size_bytes: 0,
            mount_filesystem: true,
            mount_read_only: false,
            compress: false,
            export: false,
            port: None,
            nqn: None,
            allow_host_name: None,
            password: None,
            comment: None,
        };
        let mut disk = blank.changed(&change);
        self.refuse_clash(&disk)?;
        let created = self.files.create(&path, change.size_bytes).map_err(refusal)?;
        let (size_bytes, new) = created.ok_or_else(|| ApiError::bad_request("missing =file-size="))?;
        disk.size_bytes = size_bytes;
        let made = self.bring_about(&mut disk).map_err(failure).and_then(|()| {
            let mut saved = self.saved.clone();
            saved.next_disk_id += 1;
            saved.disks.push(disk.clone());
            self.commit(saved)
        });
        if let Err(error) = made {
            self.undo_add(&disk, new);
            return Err(error);
        }
        Ok(id)
    }

    /// Changes disks, one after the other; the first that fails ends it.
    pub fn set(&mut self, ids: &[ItemId], properties: &Item) -> Result<(), ApiError> {
        let change = Change::parse(properties, self.options.version)?;
        for id in ids {
            self.set_one(*id, &change)?;
        }
        Ok(())
    }

    /// Removes disks; their files stay.
    pub fn remove(&mut self, ids: &[ItemId]) -> Result<(), ApiError> {
        for id in ids {
            let Some(disk) = self.find(*id).cloned() else {
                return Err(self.refuse_pool(*id));
            };
            withdraw(self.target.as_ref(), disk.effective_nqn()).map_err(failure)?;
            self.take_down(&disk.slot).map_err(failure)?;
            let mut saved = self.saved.clone();
            saved.disks.retain(|other| other.id != *id);
            self.commit(saved)?;
            self.broken.remove(id);
        }
        Ok(())
    }

    /// Makes the target agree with all records.
    fn agree(&mut self) -> Result<(), TargetError> {
        let mut disks = std::mem::take(&mut self.saved.disks);
        let brought = disks.iter_mut().try_for_each(|disk| self.bring_about(disk));
        self.saved.disks = disks;
        brought
    }

    fn take_down(&mut self, slot: &str) -> Result<(), TargetError> {
        self.writes_held.remove(slot);
        self.held.as_mut().map_or(Ok(()), |held| held.take_down(slot))
    }

    /// The path of a disk's backing file.
    pub fn backing_file(&self, disk: &Disk) -> std::path::PathBuf {
        self.files.path(&disk.file_path)
    }

    /// The disks' records.
    pub fn records(&self) -> &[Disk] {
        &self.saved.disks
    }

    fn set_one(&mut self, id: ItemId, change: &Change) -> Result<(), ApiError> {
        let Some(before) = self.find(id).cloned() else {
            return Err(self.refuse_pool(id));
        };
        if change.kind.as_deref().is_some_and(|kind| kind != "file") {
            return Err(ApiError::bad_request("failure: can not change type"));
        }
        if change.file_path.as_ref().is_some_and(|path| *path != before.file_path) {
            return Err(ApiError::bad_request("failure: can not change file-path"));
        }
        let mut after = before.changed(change);
        self.refuse_clash(&after)?;
        if let Some(size_bytes) = change.size_bytes {
            self.grow(&mut after, size_bytes)?;
        }
        let renamed = after.effective_nqn() != before.effective_nqn();
        let applied = if renamed { withdraw(self.target.as_ref(), before.effective_nqn()) } else { Ok(()) };
        let applied = applied.and_then(|()| self.bring_about(&mut after)).and_then(|()| {
            let grown = after.export && after.size_bytes != before.size_bytes;
            let revalidate = Step::Revalidate(after.effective_nqn().to_owned());
            if grown { self.target.apply(&revalidate) } else { Ok(()) }
        });
        if let Err(error) = applied {
            if renamed && let Err(undo) = withdraw(self.target.as_ref(), after.effective_nqn()) {
                tracing::error!(slot = before.slot, error = chain(&undo), "half-made export stays");
            }
            if let Err(undo) = self.bring_about(&mut before.clone()) {
                tracing::error!(slot = before.slot, error = chain(&undo), "could not be put back");
            }
            return Err(failure(error));
        }
        self.broken.remove(&id);
        self.replace(after)
    }

    fn grow(&self, disk: &mut Disk, size_bytes: u64) -> Result<(), ApiError> {
        if size_bytes == disk.size_bytes {
            return Ok(());
        }
        // Whether a file disk grows at all is not known of RouterOS: refused unless asked for. It never shrinks.
        if size_bytes < disk.size_bytes || !self.options.grow_online || self.held.is_some() {
            return Err(ApiError::bad_request("failure: can not change file-size"));
        }
        self.files.grow(&disk.file_path, disk.size_bytes, size_bytes).map_err(refusal)?;
        disk.size_bytes = size_bytes;
        Ok(())
    }

    fn undo_add(&mut self, disk: &Disk, new_file: bool) {
        if let Err(error) = withdraw(self.target.as_ref(), disk.effective_nqn()) {
            tracing::error!(slot = disk.slot, error = chain(&error), "half-made export stays");
            return;
        }
        if let Err(error) = self.take_down(&disk.slot) {
            tracing::error!(slot = disk.slot, error = chain(&error), "device of a failed add stays");
            return;
        }
        let name = disk.file_path.clone();
        let entry = Entry { name, directory: false, size_bytes: 0, modified: std::time::UNIX_EPOCH };
        if new_file && let Err(error) = self.files.remove(&entry) {
            tracing::error!(slot = disk.slot, error = chain(&error), "file of a failed add stays");
        }
    }

    fn bring_all_about(&mut self) {
        let mut disks = std::mem::take(&mut self.saved.disks);
        for disk in &mut disks {
            if let Some(uuid) = self.options.uuid_overrides.get(&disk.slot) {
                disk.uuid = *uuid;
            }
            let brought = if self.files.path(&disk.file_path).is_file() {
                self.bring_about(disk).map_err(|error| chain(&error))
            } else {
                Err(format!("backing file {} is missing", disk.file_path))
            };
            if let Err(reason) = brought {
                tracing::error!(slot = disk.slot, reason, "not exported");
                self.broken.insert(disk.id, reason);
            }
        }
        self.saved.disks = disks;
    }

    /// Makes the target agree with the record.
    fn bring_about(&mut self, disk: &mut Disk) -> Result<(), TargetError> {
        if let Some(held) = self.held.as_mut().filter(|_| disk.export) {
            held.bring_up(&disk.slot, &self.files.path(&disk.file_path), disk.size_bytes)?;
        }
        if self.options.uuid_random && disk.export && !is_up(&self.target.observe(disk.effective_nqn())?) {
            disk.uuid = Uuid::new_v4();
        }
        self.reconciled(disk)
    }

    fn reconciled(&self, disk: &Disk) -> Result<(), TargetError> {
        let now = self.target.observe(disk.effective_nqn())?;
        reconcile(self.target.as_ref(), &self.export(disk, &now))
    }

    /// The wording of all three is assumed.
    fn refuse_clash(&self, disk: &Disk) -> Result<(), ApiError> {
        let others = || self.saved.disks.iter().filter(|other| other.id != disk.id);
        let refuse = |detail: &str| Err(ApiError::bad_request(detail));
        if disk.slot == self.options.pool || others().any(|other| other.slot == disk.slot) {
            return refuse("failure: already have disk with such slot");
        }
        if others().any(|other| other.file_path == disk.file_path) {
            return refuse("failure: file is already in use");
        }
        if others().any(|other| other.effective_nqn() == disk.effective_nqn()) {
            return refuse("failure: already have disk with such nvme-tcp-server-nqn");
        }
        // Our own limit, and in our own words: nvmet has one secret to a host.
        let hosts = |disk: &Disk| -> BTreeSet<String> {
            let list = disk.allow_host_name.as_deref().unwrap_or("");
            list.split(',').map(|host| host.trim().to_owned()).filter(|host| !host.is_empty()).collect()
        };
        let differs = |other: &&Disk| {
            disk.export
                && other.export
                && other.secret() != disk.secret()
                && !hosts(other).is_disjoint(&hosts(disk))
        };
        if self.options.in_band_auth
            && let Some(other) = others().find(differs)
        {
            return refuse(&format!(
                "failure: rds-sim has one secret to a host, and disk {} has another",
                other.slot
            ));
        }
        Ok(())
    }

    fn refuse_pool(&self, id: ItemId) -> ApiError {
        if id == POOL_ID {
            ApiError::bad_request("failure: rds-sim does not change the pool")
        } else {
            ApiError::no_such_item()
        }
    }

    fn find(&self, id: ItemId) -> Option<&Disk> {
        self.saved.disks.iter().find(|disk| disk.id == id)
    }

    fn by_slot(&self, slot: &str) -> Option<&Disk> {
        self.saved.disks.iter().find(|disk| disk.slot == slot)
    }

    fn replace(&mut self, disk: Disk) -> Result<(), ApiError> {
        let mut saved = self.saved.clone();
        if let Some(place) = saved.disks.iter_mut().find(|other| other.id == disk.id) {
            *place = disk;
        }
        self.commit(saved)
    }

    fn commit(&mut self, saved: Saved) -> Result<(), ApiError> {
        self.store.save(&saved).map_err(failure)?;
        self.saved = saved;
        Ok(())
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// A file that cannot be made: the client's doing, or ours. The wordings are assumed.
fn refusal(error: FileError) -> ApiError {
    match error {
        FileError::Full { .. } => ApiError::bad_request("failure: not enough space"),
        FileError::OtherSize { .. } => ApiError::bad_request("failure: file already exists"),
        FileError::Io(_) => failure(error),
    }
}

/// RouterOS' form for what it did not expect itself (documented: `std failure: not allowed (9)`).
fn failure(error: impl std::error::Error) -> ApiError {
    let text = chain(&error);
    tracing::error!(error = text, "operation failed");
    ApiError::internal(format!("std failure: {text}"))
}
