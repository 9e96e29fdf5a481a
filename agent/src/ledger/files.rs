//! The ledger's files: one per volume, replaced whole.
//!
//! Comes in: an [`Entry`] to keep. Goes out: what is on disk, or why that cannot be told.
//!
//! A file is two lines of JSON: the record, and the SHA-256 of that line, so that a torn or altered file is known for
//! one. It is written beside, synced, renamed over the old one, and the directory is synced: after a crash either
//! the old or the new record is there, whole.
//!
//! Always holds: a missing file means that no grant was ever seen; every other failure to read is an error, never
//! "no grant". One process at a time holds the directory's lock.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cleat_host::work::{WorkError, Workers};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Entry;
use crate::name::VolumeId;

/// Version of the record; another one is refused by name.
const FORMAT: u32 = 1;
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
         one; restore the file, or remove it once no older grant of the volume can arrive any more",
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

#[derive(Serialize, Deserialize)]
struct Seal {
    sha256: String,
}

/// The ledger of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    workers: Workers,
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
        for parent in [state_dir, dir.as_path()] {
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
        Ok(Self { shared: Arc::new(Shared { dir, workers, _lock: lock }) })
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
        self.on_disk(volume, move || write(&dir, &record)).await
    }

    fn path(&self, volume: &VolumeId) -> PathBuf {
        self.shared.dir.join(format!("{volume}.json"))
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

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io { action, path, source }
}

fn sync_dir(dir: &Path) -> Result<(), LedgerError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))
}

fn digest(line: &str) -> String {
    Sha256::digest(line.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(path: &Path, volume: &VolumeId) -> Result<Option<Entry>, LedgerError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(LedgerError::Damaged { path: path.to_owned(), reason: "it is not text".into() });
        }
        Err(error) => return Err(io_error("read", path)(error)),
    };
    decode(&text, volume).map(Some).map_err(|reason| LedgerError::Damaged { path: path.to_owned(), reason })
}

fn decode(text: &str, volume: &VolumeId) -> Result<Entry, String> {
    let mut lines = text.split_inclusive('\n');
    let (Some(line), Some(seal), None) = (lines.next(), lines.next(), lines.next()) else {
        return Err("it does not have two lines".into());
    };
    let seal: Seal =
        serde_json::from_str(seal).map_err(|error| format!("its seal cannot be read: {error}"))?;
    if seal.sha256 != digest(line) {
        return Err("its checksum is wrong".into());
    }
    let record: Record = serde_json::from_str(line).map_err(|error| format!("it cannot be read: {error}"))?;
    if record.format != FORMAT {
        return Err(format!("it has format {}, this agent reads {FORMAT}", record.format));
    }
    if record.volume != *volume {
        return Err(format!("it is about volume {}", record.volume));
    }
    Ok(record.entry)
}

fn write(dir: &Path, record: &Record) -> Result<(), LedgerError> {
    let path = dir.join(format!("{}.json", record.volume));
    let beside = dir.join(format!(".{}.tmp", record.volume));
    let encoded = || -> Result<String, serde_json::Error> {
        let line = serde_json::to_string(record)? + "\n";
        let seal = serde_json::to_string(&Seal { sha256: digest(&line) })?;
        Ok(format!("{line}{seal}\n"))
    };
    let text = encoded().map_err(|error| io_error("encode", &path)(error.into()))?;
    let written = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    written().map_err(io_error("write", &beside))?;
    fs::rename(&beside, &path).map_err(io_error("replace", &path))?;
    sync_dir(dir)
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

    #[test]
    fn a_second_agent_on_the_same_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Ledger::open(dir.path()).unwrap();
        let error = Ledger::open(dir.path()).unwrap_err();
        assert!(matches!(error, LedgerError::Locked { .. }), "{error}");
    }
}
