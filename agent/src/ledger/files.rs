//! The ledger's files: one per volume, replaced whole.
//!
//! Comes in: an [`LedgerEntry`] to keep. Goes out: what is on disk, or why nobody knows.
//!
//! A record is removed once its grant has been over for a long time. What has to outlive it, the highest
//! epoch among all removed records, is in one file for all of them ([`Ledger::forgotten`]). A directive about
//! a volume without a record belongs to the past unless its epoch is higher: epochs rise over all volumes, so
//! a grant that came after the removed ones has a higher one.
//!
//! A disk that accepts nothing, or a damaged file on it, does not keep an agent from starting: it can report
//! and give up what this node has without the disk. Each thing that needs the disk is refused by itself.
//!
//! Always holds: a missing record means that this node has seen no grant of the volume above
//! [`Ledger::forgotten`]. Every other failure to read is an error, never "no grant". One process at a time
//! has the directory's lock.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cleat_host::work::Workers;
use cleat_runtime::exit::Causes;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::LedgerEntry;
use super::errors::{LedgerError, io_error};
use super::lock::Lock;
use super::sealed::{self, sync_dir};
use crate::name::{Epoch, VolumeId};

/// Version of the record; another version is refused with its number.
const FORMAT: u32 = 1;
/// The file of the highest epoch of all removed records, beside their directory.
const FORGOTTEN: &str = "forgotten.json";
/// How long one record may take to reach the disk. A healthy disk takes milliseconds. Past this the grant is
/// refused rather than kept waiting, and the caller gets the reason.
const WRITE_DEADLINE: Duration = Duration::from_secs(20);
/// Pause between two tries to take the state directory that another process has.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// After how many tries it logs again that it waits.
const TRIES_PER_WORD: u32 = 60;

#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    volume: VolumeId,
    entry: LedgerEntry,
}

/// What is kept of all removed records.
#[derive(Serialize, Deserialize)]
struct Forgotten {
    format: u32,
    highest: Epoch,
}

/// The ledger of this node. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct Ledger {
    shared: Arc<OpenLedger>,
}

#[derive(Debug)]
struct OpenLedger {
    state_dir: PathBuf,
    dir: PathBuf,
    workers: Workers,
    /// Held while its file is written: one writer at a time.
    forgotten: tokio::sync::Mutex<()>,
    /// `None` where the file could not be read or trusted.
    highest_forgotten: Mutex<Option<Option<Epoch>>>,
    _lock: Lock,
}

impl Ledger {
    /// Opens the ledger under `state_dir`, and makes what is missing. Blocks on the disk: for start-up.
    ///
    /// # Errors
    /// Where the directory does not exist and cannot be made, or where another process has it.
    pub fn open(state_dir: &Path) -> Result<Self, LedgerError> {
        Self::open_with(state_dir, Workers::new())
    }

    /// The same; these workers read and write its records.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn open_with(state_dir: &Path, workers: Workers) -> Result<Self, LedgerError> {
        Self::open_among(state_dir, workers, Path::new("/proc"))
    }

    /// The same, once no other process has the directory; `None` when it was asked to stop before that.
    ///
    /// # Errors
    /// As [`Ledger::open`], but not for another process.
    pub async fn open_once_free(
        state_dir: &Path,
        proc_root: &Path,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, LedgerError> {
        for tries in 0_u32.. {
            match Self::open_among(state_dir, Workers::new(), proc_root) {
                Err(error @ LedgerError::Locked { .. }) => {
                    if tries.is_multiple_of(TRIES_PER_WORD) {
                        tracing::error!(error = %Causes(&error), "waiting for the state directory");
                    }
                }
                opened => return opened.map(Some),
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(TRY_AGAIN) => {}
            }
        }
        Ok(None)
    }

    fn open_among(state_dir: &Path, workers: Workers, proc_root: &Path) -> Result<Self, LedgerError> {
        if let Err(error) = make(state_dir)
            && !state_dir.is_dir()
        {
            return Err(error);
        }
        let lock = Lock::take(state_dir, proc_root)?;
        let dir = state_dir.join("ledger");
        if let Err(error) = make_durably(state_dir, &dir) {
            tracing::error!(error = %Causes(&error), "cannot keep records; attaches will be refused");
        }
        let highest = read_forgotten(&state_dir.join(FORGOTTEN))
            .inspect_err(|error| tracing::error!(error = %Causes(error), "attaches will be refused"));
        Ok(Self {
            shared: Arc::new(OpenLedger {
                state_dir: state_dir.to_owned(),
                dir,
                workers,
                forgotten: tokio::sync::Mutex::default(),
                highest_forgotten: Mutex::new(highest.ok()),
                _lock: lock,
            }),
        })
    }

    /// Volumes whose record says that their grant has not ended, or whose record cannot be read.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub async fn unended(&self) -> Result<Vec<VolumeId>, LedgerError> {
        let mut unended = Vec::new();
        for volume in self.volumes()? {
            if !matches!(self.load(&volume).await, Ok(Some(LedgerEntry { ended: true, .. }) | None)) {
                unended.push(volume);
            }
        }
        Ok(unended)
    }

    /// Volumes that have a record, readable or not.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn volumes(&self) -> Result<Vec<VolumeId>, LedgerError> {
        let dir = &self.shared.dir;
        let mut volumes = Vec::new();
        let listed = match fs::read_dir(dir) {
            Ok(listed) => listed,
            // It could not be made, so there is no record.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(volumes),
            Err(error) => return Err(io_error("read", dir)(error)),
        };
        for entry in listed {
            let name = entry.map_err(io_error("read", dir))?.file_name();
            let volume = name.to_str().and_then(|name| name.strip_suffix(".json"));
            volumes.extend(volume.and_then(|volume| VolumeId::parse(volume).ok()));
        }
        volumes.sort_unstable();
        Ok(volumes)
    }

    /// The record of a volume; `None` if there is none.
    ///
    /// # Errors
    /// [`LedgerError`]; it never means "there is no record".
    pub async fn load(&self, volume: &VolumeId) -> Result<Option<LedgerEntry>, LedgerError> {
        let (path, wanted) = (self.path(volume), volume.clone());
        self.on_disk(volume, move || read(&path, &wanted)).await
    }

    /// Writes an entry. When this returns `Ok`, the entry survives a crash of the machine.
    ///
    /// # Errors
    /// [`LedgerError`]; nobody knows then what is on disk until it has been read again.
    pub async fn store(&self, volume: &VolumeId, entry: &LedgerEntry) -> Result<(), LedgerError> {
        let record = Record { format: FORMAT, volume: volume.clone(), entry: entry.clone() };
        let (state_dir, dir) = (self.shared.state_dir.clone(), self.shared.dir.clone());
        let write = move || {
            if !dir.is_dir() {
                make_durably(&state_dir, &dir)?;
            }
            // A grant is given only where its end can be recorded too.
            if !record.entry.ended {
                sealed::keep_room(&dir, &name(&record.volume))?;
            }
            sealed::write(&dir, &name(&record.volume), &record)
        };
        self.on_disk(volume, write).await
    }

    /// The highest epoch among the removed records: for a volume without a record, no epoch up to it is new.
    ///
    /// # Errors
    /// [`LedgerError::Forgotten`] where it cannot be read; each call tries again.
    pub async fn forgotten(&self) -> Result<Option<Epoch>, LedgerError> {
        if let Some(known) = self.known_forgotten() {
            return Ok(known);
        }
        let _one_at_a_time = self.shared.forgotten.lock().await;
        let path = self.shared.state_dir.join(FORGOTTEN);
        let stuck = |source| LedgerError::Stuck { path: self.shared.state_dir.clone(), source };
        let read = move || read_forgotten(&path);
        let read =
            self.shared.workers.run("ledger's forgotten", WRITE_DEADLINE, read).await.map_err(stuck)?;
        let highest = read.map_err(|error| match error {
            LedgerError::Damaged { path, reason } => {
                LedgerError::Forgotten(format!("{} is damaged ({reason})", path.display()))
            }
            other => LedgerError::Forgotten(Causes(&other).to_string()),
        })?;
        *self.shared.highest_forgotten.lock().unwrap_or_else(PoisonError::into_inner) = Some(highest);
        Ok(highest)
    }

    fn known_forgotten(&self) -> Option<Option<Epoch>> {
        *self.shared.highest_forgotten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the record of a volume, of which `epoch` is the highest seen. The caller must know that it may
    /// go: this node has nothing of the volume any more, and nobody is about to write the record.
    ///
    /// # Errors
    /// [`LedgerError`]; the record may or may not be there then, and its epoch is refused either way.
    pub async fn forget(&self, volume: &VolumeId, epoch: Epoch) -> Result<(), LedgerError> {
        self.raise_forgotten(epoch).await?;
        let (dir, name) = (self.shared.dir.clone(), name(volume));
        self.on_disk(volume, move || sealed::remove(&dir, &name)).await
    }

    /// The highest epoch is on disk before the first record that depends on it is removed.
    async fn raise_forgotten(&self, epoch: Epoch) -> Result<(), LedgerError> {
        // A file that cannot be read is not written over: its epoch may be higher.
        self.forgotten().await?;
        let _one_at_a_time = self.shared.forgotten.lock().await;
        if self.known_forgotten().flatten() >= Some(epoch) {
            return Ok(());
        }
        let state_dir = self.shared.state_dir.clone();
        let stuck = |source| LedgerError::Stuck { path: self.shared.state_dir.clone(), source };
        let write =
            move || sealed::write(&state_dir, FORGOTTEN, &Forgotten { format: FORMAT, highest: epoch });
        self.shared.workers.run("ledger's forgotten", WRITE_DEADLINE, write).await.map_err(stuck)??;
        *self.shared.highest_forgotten.lock().unwrap_or_else(PoisonError::into_inner) = Some(Some(epoch));
        Ok(())
    }

    /// Reads or writes a file of the state directory that is no record.
    pub(super) async fn beside<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&Path) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let dir = self.shared.state_dir.clone();
        let stuck = |source| LedgerError::Stuck { path: self.shared.state_dir.clone(), source };
        self.shared.workers.run(what, WRITE_DEADLINE, move || work(&dir)).await.map_err(stuck)?
    }

    fn path(&self, volume: &VolumeId) -> PathBuf {
        self.shared.dir.join(name(volume))
    }

    /// Runs a file operation off the async threads, one per volume at a time, so that records keep their
    /// order.
    async fn on_disk<T: Send + 'static>(
        &self,
        volume: &VolumeId,
        work: impl FnOnce() -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let stuck = |source| LedgerError::Stuck { path: self.shared.dir.clone(), source };
        self.shared.workers.run(&format!("ledger {volume}"), WRITE_DEADLINE, work).await.map_err(stuck)?
    }
}

fn make(dir: &Path) -> Result<(), LedgerError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("create", dir))
}

/// Makes both directories durable, from the top down.
fn make_durably(state_dir: &Path, dir: &Path) -> Result<(), LedgerError> {
    make(dir)?;
    let above = state_dir.parent().filter(|above| !above.as_os_str().is_empty());
    above.into_iter().chain([state_dir, dir]).try_for_each(sync_dir)
}

fn name(volume: &VolumeId) -> String {
    format!("{volume}.json")
}

fn read(path: &Path, volume: &VolumeId) -> Result<Option<LedgerEntry>, LedgerError> {
    let Some(record) = sealed::read::<Record>(path)? else { return Ok(None) };
    let damaged = |reason| Err(LedgerError::Damaged { path: path.to_owned(), reason });
    if record.format != FORMAT {
        return damaged(format!("it has format {}, this agent reads {FORMAT}", record.format));
    }
    if record.volume != *volume {
        return damaged(format!("it is about volume {}", record.volume));
    }
    Ok(Some(record.entry))
}

fn read_forgotten(path: &Path) -> Result<Option<Epoch>, LedgerError> {
    match sealed::read::<Forgotten>(path)? {
        Some(Forgotten { format: FORMAT, highest }) => Ok(Some(highest)),
        Some(Forgotten { format, .. }) => {
            let reason = format!("it has format {format}, this agent reads {FORMAT}");
            Err(LedgerError::Damaged { path: path.to_owned(), reason })
        }
        None => Ok(None),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ledger::rules::ending;
    use crate::name::Epoch;

    fn volume() -> VolumeId {
        VolumeId::parse("pvc-1").unwrap()
    }

    fn entry() -> LedgerEntry {
        ending(None, Epoch::new(1, 2).unwrap(), &[], "boot")
    }

    /// The two lines of a record. An agent that is upgraded finds such files on the disk of its node.
    const ON_DISK: &str = concat!(
        r#"{"format":1,"volume":"pvc-1","entry":{"epoch":"1.2","ended":false,"boot_id":"boot","grant":"#,
        r#"{"portals":["10.0.1.1:4420"],"identity":{"uuid":"01234567-89ab-cdef-0123-456789abcdef","nguid":null},"#,
        r#""size_bytes":4096,"read_only":false,"policy":"quorum","reserve":7},"#,
        r#""may_have_written":["10.0.1.1:4420"],"#,
        r#""deletions":[{"controller":"nvme3","portal":"10.0.2.1:4420","state":"live"}],"#,
        r#""registered":4,"published":["/pods/a"],"secret_generation":"1.1","uncertain":false}}"#,
        "\n",
        r#"{"sha256":"3b9fc0e7f562b2867a1831df5a4d5146a856eb6922801476fa3eec0145711275"}"#,
        "\n",
    );

    #[tokio::test]
    async fn a_record_on_disk_is_read_and_written_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let path = dir.path().join("ledger/pvc-1.json");
        fs::write(&path, ON_DISK).unwrap();
        let entry = ledger.load(&volume()).await.unwrap().unwrap();
        let grant = entry.grant.clone().unwrap();
        assert_eq!((entry.epoch, entry.registered, entry.ended), (Epoch::new(1, 2).unwrap(), Some(4), false));
        assert_eq!((grant.size_bytes, grant.reserve.map(|key| key.get())), (4096, Some(7)));
        assert_eq!(entry.deletions[0].state, "live");
        ledger.store(&volume(), &entry).await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), ON_DISK);
    }

    #[tokio::test]
    async fn what_was_stored_is_there_after_the_process_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.load(&volume()).await.unwrap(), None);
        ledger.store(&volume(), &entry()).await.unwrap();
        drop(ledger);
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.volumes().unwrap(), [volume()]);
        assert_eq!(ledger.load(&volume()).await.unwrap(), Some(entry()));
    }

    #[tokio::test]
    async fn a_file_torn_at_any_byte_is_an_error_and_never_reads_as_no_grant() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.store(&volume(), &entry()).await.unwrap();
        let path = dir.path().join("ledger/pvc-1.json");
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() - 1 {
            fs::write(&path, &whole[..length]).unwrap();
            let error = read(&path, &volume()).unwrap_err();
            assert!(matches!(error, LedgerError::Damaged { .. }), "{length}: {error}");
        }
        assert_eq!(ledger.volumes().unwrap(), [volume()]);
    }

    #[tokio::test]
    async fn an_altered_number_or_a_file_of_another_volume_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.store(&volume(), &entry()).await.unwrap();
        let path = dir.path().join("ledger/pvc-1.json");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen("1.2", "1.1", 1)).unwrap();
        let error = ledger.load(&volume()).await.unwrap_err().to_string();
        assert!(error.contains("checksum") && error.contains("pvc-1.json"), "{error}");
        fs::write(dir.path().join("ledger/pvc-2.json"), text).unwrap();
        let error = ledger.load(&VolumeId::parse("pvc-2").unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("about volume pvc-1"), "{error}");
    }

    #[tokio::test]
    async fn of_records_that_were_let_go_the_highest_epoch_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.forgotten().await.unwrap(), None);
        for (volume, seq) in [("pvc-1", 7), ("pvc-2", 9), ("pvc-3", 8)] {
            let (volume, epoch) = (VolumeId::parse(volume).unwrap(), Epoch::new(1, seq).unwrap());
            ledger.store(&volume, &ending(None, epoch, &[], "boot")).await.unwrap();
            ledger.forget(&volume, epoch).await.unwrap();
            assert_eq!(ledger.load(&volume).await.unwrap(), None);
        }
        drop(ledger);
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.volumes().unwrap(), []);
        assert_eq!(ledger.forgotten().await.unwrap(), Epoch::new(1, 9).ok());
        drop(ledger);
        let file = dir.path().join("forgotten.json");
        let text = fs::read_to_string(&file).unwrap();
        let damaged = text.replacen("1.9", "1.1", 1);
        fs::write(&file, &damaged).unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let error = ledger.forgotten().await.unwrap_err().to_string();
        assert!(error.contains("forgotten.json") && error.contains("checksum"), "{error}");
        ledger.forget(&volume(), Epoch::new(2, 1).unwrap()).await.unwrap_err();
        assert_eq!(fs::read_to_string(&file).unwrap(), damaged, "it is not written over");
        fs::write(&file, text).unwrap();
        assert_eq!(ledger.forgotten().await.unwrap(), Epoch::new(1, 9).ok());
    }

    #[tokio::test]
    async fn without_a_place_for_records_nothing_is_kept_and_all_else_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ledger"), "in the way").unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let error = ledger.store(&volume(), &entry()).await.unwrap_err().to_string();
        assert!(error.contains("ledger"), "{error}");
        fs::remove_file(dir.path().join("ledger")).unwrap();
        assert_eq!(ledger.volumes().unwrap(), []);
        ledger.store(&volume(), &entry()).await.unwrap();
        assert_eq!(ledger.load(&volume()).await.unwrap(), Some(entry()));
    }

    #[tokio::test]
    async fn grants_that_have_not_ended_and_damaged_records_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let (open, damaged) = (VolumeId::parse("pvc-2").unwrap(), VolumeId::parse("pvc-3").unwrap());
        ledger.store(&volume(), &entry()).await.unwrap();
        ledger.store(&open, &LedgerEntry { ended: false, ..entry() }).await.unwrap();
        fs::write(dir.path().join("ledger/pvc-3.json"), "").unwrap();
        assert_eq!(ledger.unended().await.unwrap(), [open, damaged]);
    }

    #[test]
    fn a_second_agent_on_the_same_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Ledger::open(dir.path()).unwrap();
        let error = Ledger::open(dir.path()).unwrap_err();
        assert!(matches!(error, LedgerError::Locked { .. }), "{error}");
        let own = format!("process {} ", std::process::id());
        assert!(error.to_string().contains(&own), "{error}");
    }

    #[tokio::test]
    async fn the_state_directory_of_one_that_has_not_gone_yet_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (proc, stop) = (Path::new("/proc"), CancellationToken::new());
        let first = Ledger::open(dir.path()).unwrap();
        let mut waiting = Box::pin(Ledger::open_once_free(dir.path(), proc, &stop));
        let early = std::future::poll_fn(|cx| std::task::Poll::Ready(waiting.as_mut().poll(cx).is_ready()));
        assert!(!early.await, "the first has it");
        drop(first);
        let second = waiting.await.unwrap();
        assert!(second.is_some());
        stop.cancel();
        assert!(Ledger::open_once_free(dir.path(), proc, &stop).await.unwrap().is_none(), "told to stop");
    }
}
