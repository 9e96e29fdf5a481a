//! The ledger's files: one per volume, replaced whole.
//!
//! Comes in: an [`Entry`] to keep. Goes out: what is on disk, or why that cannot be told.
//!
//! A record goes once its grant has been over for long: what has to outlive it, the highest epoch among all that
//! went, is kept in one file for all of them ([`Ledger::forgotten`]). A directive about a volume without a record is
//! of the past unless its epoch is higher: epochs rise over all volumes, so a grant that came after the ones that
//! were let go has a higher one.
//!
//! Always holds: a missing record means that no grant was ever seen but such as are not higher than
//! [`Ledger::forgotten`]; every other failure to read is an error, never "no grant". One process at a time holds the
//! directory's lock.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cleat_host::work::{WorkError, Workers};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::Entry;
use super::sealed::{self, sync_dir};
use crate::name::{Epoch, VolumeId};

/// Version of the record; another one is refused by name.
const FORMAT: u32 = 1;
/// Where the highest epoch of all records that were let go is kept, beside their directory.
const FORGOTTEN: &str = "forgotten.json";
/// How long one record may take to reach the disk. A healthy one takes milliseconds; past this the grant is refused
/// rather than kept waiting, and the caller is told why.
const WRITE_DEADLINE: Duration = Duration::from_secs(20);

/// Why the ledger could not say, or could not keep, what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A call on a file or directory failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Another process holds the ledger.
    #[error("{} is locked: another agent with the same --state-dir is running", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A record that cannot be trusted.
    #[error(
        "{} is damaged ({reason}): grants for this volume are refused, since an old one could not be told from a new \
         one; detach the volume from this node (that works), or restore the file",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk did not answer in time, or an earlier write has not ended.
    #[error("the ledger in {} does not answer", path.display())]
    Stuck {
        /// The ledger's directory.
        path: PathBuf,
        /// What was waited for.
        #[source]
        source: WorkError,
    },
}

#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    volume: VolumeId,
    entry: Entry,
}

/// What is kept of all records that were let go.
#[derive(Serialize, Deserialize)]
struct Forgotten {
    format: u32,
    highest: Epoch,
}

/// The ledger of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state_dir: PathBuf,
    dir: PathBuf,
    workers: Workers,
    /// What is on disk of it; written by one at a time.
    forgotten: tokio::sync::Mutex<()>,
    highest_forgotten: Mutex<Option<Epoch>>,
    _lock: Flock<File>,
}

impl Ledger {
    /// Opens the ledger under `state_dir`, making what is missing. Blocks on the disk; for start-up.
    ///
    /// # Errors
    /// If a directory cannot be made or read, or another process holds the lock.
    pub fn open(state_dir: &Path) -> Result<Self, LedgerError> {
        Self::open_with(state_dir, Workers::new())
    }

    /// The same, with its records read and written by these workers.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn open_with(state_dir: &Path, workers: Workers) -> Result<Self, LedgerError> {
        let dir = state_dir.join("ledger");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io_error("create", &dir))?;
        // What was made has to be there after a crash, from the top down.
        let above = state_dir.parent().filter(|above| !above.as_os_str().is_empty());
        for parent in above.into_iter().chain([state_dir, dir.as_path()]) {
            sync_dir(parent)?;
        }
        let path = state_dir.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => LedgerError::Locked { path: path.clone() },
            other => LedgerError::Io { action: "lock", path: path.clone(), source: other.into() },
        })?;
        let highest = read_forgotten(&state_dir.join(FORGOTTEN))?;
        Ok(Self {
            shared: Arc::new(Shared {
                state_dir: state_dir.to_owned(),
                dir,
                workers,
                forgotten: tokio::sync::Mutex::default(),
                highest_forgotten: Mutex::new(highest),
                _lock: lock,
            }),
        })
    }

    /// The volumes that have a record, readable or not.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn volumes(&self) -> Result<Vec<VolumeId>, LedgerError> {
        let dir = &self.shared.dir;
        let mut volumes = Vec::new();
        for entry in fs::read_dir(dir).map_err(io_error("read", dir))? {
            let name = entry.map_err(io_error("read", dir))?.file_name();
            let volume = name.to_str().and_then(|name| name.strip_suffix(".json"));
            volumes.extend(volume.and_then(|volume| VolumeId::parse(volume).ok()));
        }
        volumes.sort_unstable();
        Ok(volumes)
    }

    /// What is recorded for a volume; `None` if nothing ever was.
    ///
    /// # Errors
    /// [`LedgerError`]; never to be read as "nothing was recorded".
    pub async fn load(&self, volume: &VolumeId) -> Result<Option<Entry>, LedgerError> {
        let (path, wanted) = (self.path(volume), volume.clone());
        self.on_disk(volume, move || read(&path, &wanted)).await
    }

    /// Keeps an entry. When this returns `Ok`, it survives a crash of the machine.
    ///
    /// # Errors
    /// [`LedgerError`]; what is on disk is then not known until it has been loaded again.
    pub async fn store(&self, volume: &VolumeId, entry: &Entry) -> Result<(), LedgerError> {
        let record = Record { format: FORMAT, volume: volume.clone(), entry: entry.clone() };
        let dir = self.shared.dir.clone();
        let write = move || {
            // A grant is given only where its end can be recorded, too.
            if !record.entry.ended {
                sealed::keep_room(&dir, &name(&record.volume))?;
            }
            sealed::write(&dir, &name(&record.volume), &record)
        };
        self.on_disk(volume, write).await
    }

    /// The highest epoch among the records that were let go: of a volume without a record, nothing up to it is new.
    pub fn forgotten(&self) -> Option<Epoch> {
        *self.shared.highest_forgotten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the record of a volume go, of which `epoch` is the highest seen. Whether it may go is the caller's to
    /// know: nothing of the volume is left on this node, and nobody is about to write the record.
    ///
    /// # Errors
    /// [`LedgerError`]; then the record may be there or not, and its epoch is refused either way.
    pub async fn forget(&self, volume: &VolumeId, epoch: Epoch) -> Result<(), LedgerError> {
        self.raise_forgotten(epoch).await?;
        let (dir, name) = (self.shared.dir.clone(), name(volume));
        self.on_disk(volume, move || sealed::remove(&dir, &name)).await
    }

    /// Durable before the first record goes that rests on it.
    async fn raise_forgotten(&self, epoch: Epoch) -> Result<(), LedgerError> {
        let _one_at_a_time = self.shared.forgotten.lock().await;
        if self.forgotten() >= Some(epoch) {
            return Ok(());
        }
        let state_dir = self.shared.state_dir.clone();
        let stuck = |source| LedgerError::Stuck { path: self.shared.state_dir.clone(), source };
        let write =
            move || sealed::write(&state_dir, FORGOTTEN, &Forgotten { format: FORMAT, highest: epoch });
        self.shared.workers.run("ledger's forgotten", WRITE_DEADLINE, write).await.map_err(stuck)??;
        *self.shared.highest_forgotten.lock().unwrap_or_else(PoisonError::into_inner) = Some(epoch);
        Ok(())
    }

    fn path(&self, volume: &VolumeId) -> PathBuf {
        self.shared.dir.join(name(volume))
    }

    /// Runs a file operation off the async threads; at most one per volume, so that records keep their order.
    async fn on_disk<T: Send + 'static>(
        &self,
        volume: &VolumeId,
        work: impl FnOnce() -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let stuck = |source| LedgerError::Stuck { path: self.shared.dir.clone(), source };
        self.shared.workers.run(&format!("ledger {volume}"), WRITE_DEADLINE, work).await.map_err(stuck)?
    }
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io { action, path, source }
}

fn name(volume: &VolumeId) -> String {
    format!("{volume}.json")
}

fn read(path: &Path, volume: &VolumeId) -> Result<Option<Entry>, LedgerError> {
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

    fn entry() -> Entry {
        ending(None, Epoch::new(1, 2).unwrap(), &[], "boot")
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
        assert_eq!(ledger.forgotten(), None);
        for (volume, seq) in [("pvc-1", 7), ("pvc-2", 9), ("pvc-3", 8)] {
            let (volume, epoch) = (VolumeId::parse(volume).unwrap(), Epoch::new(1, seq).unwrap());
            ledger.store(&volume, &ending(None, epoch, &[], "boot")).await.unwrap();
            ledger.forget(&volume, epoch).await.unwrap();
            assert_eq!(ledger.load(&volume).await.unwrap(), None);
        }
        drop(ledger);
        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.volumes().unwrap(), []);
        assert_eq!(ledger.forgotten(), Epoch::new(1, 9).ok());
        drop(ledger);
        let file = dir.path().join("forgotten.json");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(file, text.replacen("1.9", "1.1", 1)).unwrap();
        let error = Ledger::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("forgotten.json") && error.contains("checksum"), "{error}");
    }

    #[test]
    fn a_second_agent_on_the_same_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Ledger::open(dir.path()).unwrap();
        let error = Ledger::open(dir.path()).unwrap_err();
        assert!(matches!(error, LedgerError::Locked { .. }), "{error}");
    }
}
