//! The folder of a run: console logs, monitor sockets, disks, and the record that `hack/rig` finds the run by.
//!
//! It lies in a folder of the user's own below the system's temporary folder (a short path: Unix sockets live in
//! it). A lock on it is held for as long as the run's processes live, so a folder without a lock is a leftover.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::wait;

/// Logs of a failed run are kept for this long.
const FAILED_KEPT: Duration = Duration::from_secs(3 * 24 * 3600);
/// A folder younger than this may belong to a run that is just beginning.
const BEGINNING: Duration = Duration::from_secs(60);

/// What a run writes down about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The command line that began it.
    pub command: Vec<String>,
    /// Its machines.
    pub machines: Vec<MachineRecord>,
}

/// What is written down about a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Its name.
    pub name: String,
    /// The last part of its addresses.
    pub number: u8,
    /// The kernel release it booted.
    pub kernel: String,
}

/// The folder of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes the folder of a new run and throws away what runs left behind that were killed.
    pub(crate) fn create(name: &str) -> Result<RunDir> {
        let base = base()?;
        sweep(&base);
        let path = base.join(format!("{name}-{}", std::process::id()));
        // Left from a run of this name whose process had this number.
        if path.exists() && !is_locked(&path) {
            fs::remove_dir_all(&path).map_err(Error::io("cannot remove", &path))?;
        }
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(Error::io("cannot make the folder", &path))?;
        let run = RunDir { path };
        run.write(&Record { command: std::env::args().collect(), machines: Vec::new() })?;
        Ok(run)
    }

    /// The folder at `path`, taken for granted.
    pub(crate) fn at(path: impl Into<PathBuf>) -> RunDir {
        RunDir { path: path.into() }
    }

    /// The run called `name`, if its processes live.
    ///
    /// # Errors
    /// [`Error::NoRun`] if there is none.
    pub fn open(name: &str) -> Result<RunDir> {
        let path = base()?.join(name);
        if !name.contains('/') && !name.is_empty() && is_locked(&path) {
            return Ok(RunDir { path });
        }
        let names: Vec<String> = RunDir::alive()?.iter().map(RunDir::name).collect();
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Err(Error::NoRun { what: format!("no run {name} is alive; alive: {there}") })
    }

    /// All runs of this user whose processes live, by name.
    ///
    /// # Errors
    /// If the folder of runs cannot be made or is not the user's own.
    pub fn alive() -> Result<Vec<RunDir>> {
        let entries = fs::read_dir(base()?).into_iter().flatten().flatten();
        let mut runs: Vec<RunDir> =
            entries.map(|e| RunDir { path: e.path() }).filter(|run| is_locked(&run.path)).collect();
        runs.sort_by_key(RunDir::name);
        Ok(runs)
    }

    /// The run's name, as `hack/rig` takes it.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the run has written down about itself.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn record(&self) -> Result<Record> {
        let path = self.path.join("run.json");
        let text = fs::read(&path).map_err(Error::io("cannot read", &path))?;
        serde_json::from_slice(&text).map_err(|e| Error::io("cannot understand", &path)(e.into()))
    }

    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let path = self.path.join("run.json");
        let staged = self.path.join("run.json.new");
        let text = serde_json::to_vec_pretty(record).unwrap_or_default();
        fs::write(&staged, text).map_err(Error::io("cannot write", &staged))?;
        fs::rename(&staged, &path).map_err(Error::io("cannot put in place", &path))
    }

    /// Takes the lock that says that the run lives. It lives as long as what is returned does.
    pub(crate) fn lock(&self) -> Result<Flock<File>> {
        let path = self.path.join("lock");
        let file = File::create(&path).map_err(Error::io("cannot write", &path))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, e)| Error::io("cannot lock", &path)(e.into()))
    }

    /// Whether the run's processes live.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        is_locked(&self.path)
    }

    /// The process id, as seen from where the run began, of the first process of its PID namespace.
    ///
    /// # Errors
    /// If the run has not got that far.
    pub fn init_pid(&self) -> Result<i32> {
        let path = self.path.join("init_pid");
        let text = fs::read_to_string(&path).map_err(Error::io("cannot read", &path))?;
        text.trim().parse().map_err(|e| Error::io("cannot understand", &path)(std::io::Error::other(e)))
    }

    /// Ends the run with all its processes and removes its folder.
    ///
    /// # Errors
    /// [`Error::Deadline`] if its processes are not gone after `limit`.
    pub fn end(&self, limit: Duration) -> Result<()> {
        let init = Pid::from_raw(self.init_pid()?);
        // The lock tells that this is still the process that was written down, and not another of its number.
        if self.is_alive() {
            // Killed, not asked: it has nothing to save, and takes all others with it. ESRCH is as good.
            let _ = kill(init, Signal::SIGKILL);
        }
        wait::until(&format!("the end of run {}", self.name()), limit, Duration::from_millis(20), || {
            Ok((!self.is_alive()).then_some(()))
        })?;
        // A run that was still under way has a keeper that may tidy up at the same time.
        if self.path.exists() {
            self.remove().or_else(|e| if self.path.exists() { Err(e) } else { Ok(()) })
        } else {
            Ok(())
        }
    }

    /// Whether a marker file (`kept`, `failed`) is there.
    pub(crate) fn is_marked(&self, marker: &str) -> bool {
        self.path.join(marker).exists()
    }

    pub(crate) fn mark(&self, marker: &str) -> Result<()> {
        let path = self.path.join(marker);
        fs::write(&path, "").map_err(Error::io("cannot write", &path))
    }

    /// Removes the folder with all that is in it.
    pub(crate) fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.path).map_err(Error::io("cannot remove", &self.path))
    }
}

/// The folder of this user's runs: made if missing, refused if it is somebody else's.
fn base() -> Result<PathBuf> {
    // Root of a user namespace is still the user outside; the environment carries over who that is.
    let uid = std::env::var("CLEAT_RIG_UID")
        .ok()
        .and_then(|u| u.parse().ok())
        .unwrap_or_else(|| nix::unistd::getuid().as_raw());
    let path = std::env::temp_dir().join(format!("cleat-rig-{uid}"));
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => Ok(path),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let meta = fs::symlink_metadata(&path).map_err(Error::io("cannot look at", &path))?;
            if meta.is_dir() && meta.uid() == nix::unistd::getuid().as_raw() {
                Ok(path)
            } else {
                Err(Error::io("refusing to use", &path)(std::io::Error::other(
                    "not a folder of this user's own",
                )))
            }
        }
        Err(error) => Err(Error::io("cannot make the folder", &path)(error)),
    }
}

fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path.join("lock")) else { return false };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => false,
        Err((_, errno)) => errno == nix::errno::Errno::EWOULDBLOCK,
    }
}

/// Removes folders of runs that died without tidying up, and logs of failures that nobody looks at any more.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let run = RunDir { path: entry.path() };
        let age =
            entry.metadata().ok().and_then(|m| SystemTime::now().duration_since(m.modified().ok()?).ok());
        let limit = if run.is_marked("failed") { FAILED_KEPT } else { BEGINNING };
        if age.is_some_and(|age| age > limit) && !is_locked(&run.path) {
            // It is only tidying: what cannot be removed now is met again by the next run.
            let _ = run.remove();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_run_lives_as_long_as_its_lock() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(folder.path());
        assert!(!run.is_alive());
        let lock = run.lock().unwrap();
        assert!(run.is_alive());
        assert!(run.lock().is_err(), "only one process owns a run");
        drop(lock);
        assert!(!run.is_alive());
    }

    #[test]
    fn leftovers_go_and_the_living_and_the_fresh_stay() {
        let base = tempfile::tempdir().unwrap();
        let age = |path: &Path, seconds: u64| {
            let folder = File::open(path).unwrap();
            folder.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        let make = |name: &str, marker: Option<&str>| {
            let run = RunDir::at(base.path().join(name));
            fs::create_dir(run.path()).unwrap();
            marker.into_iter().for_each(|m| run.mark(m).unwrap());
            run
        };
        let (dead, failed, fresh, living) =
            (make("dead", None), make("failed", Some("failed")), make("fresh", None), make("living", None));
        let _lock = living.lock().unwrap();
        for run in [&dead, &failed, &living] {
            age(run.path(), 600);
        }
        sweep(base.path());
        assert!(!dead.path().exists());
        assert!(failed.path().exists() && fresh.path().exists() && living.path().exists());
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::at(folder.path());
        let machine = MachineRecord { name: "node-a".into(), number: 11, kernel: "6.1".into() };
        let record = Record { command: vec!["demo".into()], machines: vec![machine] };
        run.write(&record).unwrap();
        assert_eq!(run.record().unwrap(), record);
    }
}
