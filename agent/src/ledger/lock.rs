//! One process at a time has the state directory.
//!
//! Comes in: the directory. Goes out: a lock that ends with the process, or who has it.
//!
//! The kernel releases the lock of a process when its last thread has ended. A process that was killed while
//! one of its threads is in the kernel (state D, such as in a connect or a read of a device that is gone) has
//! the lock until that call returns. The next process gets its name, and waits.
//!
//! Always holds: the lock needs no write. It locks the directory itself, and also the file `lock` in it,
//! which earlier versions lock, where that exists or can be made.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::errors::{LedgerError, io_error};

/// The locks of the directory and, where there is one, of the file in it.
#[derive(Debug)]
pub(super) struct Lock {
    _dir: Flock<File>,
    _file: Option<Flock<File>>,
}

impl Lock {
    /// Takes the directory, which has to exist.
    pub(super) fn take(state_dir: &Path, proc_root: &Path) -> Result<Self, LedgerError> {
        let dir = File::open(state_dir).map_err(io_error("open", state_dir))?;
        let _dir = lock(dir, state_dir, proc_root)?;
        let path = state_dir.join("lock");
        let made = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let _file = match made.or_else(|_| File::open(&path)) {
            Ok(file) => Some(lock(file, &path, proc_root)?),
            // On a disk that accepts nothing, there is no file to share with an earlier version.
            Err(_) => None,
        };
        Ok(Self { _dir, _file })
    }
}

fn lock(file: File, path: &Path, proc_root: &Path) -> Result<Flock<File>, LedgerError> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(file, errno)| match errno {
        Errno::EWOULDBLOCK => {
            let inode = file.metadata().map(|metadata| metadata.ino()).ok();
            let holder = inode.and_then(|inode| holder(proc_root, inode));
            let holder = holder.unwrap_or_else(|| "a process that /proc does not show".to_owned());
            LedgerError::Locked { path: path.to_owned(), holder }
        }
        other => LedgerError::Io { action: "lock", path: path.to_owned(), source: other.into() },
    })
}

/// Who has locked a file of this inode number, by `/proc/locks` (`lock_get_status` in fs/locks.c). The device
/// is not compared: some file systems show another one there than to `stat`.
fn holder(proc_root: &Path, inode: u64) -> Option<String> {
    let locks = fs::read_to_string(proc_root.join("locks")).ok()?;
    let pid = locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // `1: FLOCK ADVISORY WRITE 4711 fd:01:131 0 EOF`; a process that waits has `->` in the second place.
        let [_, "FLOCK", _, _, pid, file, ..] = fields.as_slice() else { return None };
        let known = file.rsplit(':').next()?.parse::<u64>().ok()?;
        (known == inode).then_some(*pid)
    })?;
    let process = proc_root.join(pid);
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let name = cleat_host::openers::plain(name.trim());
    let stuck = fs::read_dir(process.join("task")).ok().into_iter().flatten().flatten().find_map(|task| {
        (state(&task.path())? == "D").then(|| {
            let place = fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
            format!(", whose thread {} is in the kernel, in {place}", task.file_name().to_string_lossy())
        })
    });
    Some(format!("process {pid} ({name}){}", stuck.unwrap_or_default()))
}

/// The state letter of `/proc/PID/stat`, which comes after the name; a name may contain anything.
fn state(process: &Path) -> Option<String> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').next()?.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_directory_is_named_with_what_it_waits_for() {
        let (dir, proc) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let task = proc.path().join("4711/task/4713");
        fs::create_dir_all(&task).unwrap();
        fs::write(proc.path().join("4711/comm"), "cleat-agent\n").unwrap();
        fs::write(task.join("stat"), "4713 (a) b) D 1 4711 4711 0\n").unwrap();
        fs::write(task.join("wchan"), "nvmf_dev_write").unwrap();
        let inode = fs::metadata(dir.path()).unwrap().ino();
        let locks = format!(
            "1: POSIX  ADVISORY  WRITE 1 00:01:{inode} 0 EOF\n2: FLOCK  ADVISORY  WRITE 4711 00:01:{inode} 0 EOF\n"
        );
        fs::write(proc.path().join("locks"), locks).unwrap();
        let _first = Lock::take(dir.path(), Path::new("/proc")).unwrap();
        let error = Lock::take(dir.path(), proc.path()).unwrap_err().to_string();
        for part in ["4711 (cleat-agent)", "4713", "nvmf_dev_write", &dir.path().display().to_string()] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_earlier_version_that_locks_the_file_alone_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("lock")).unwrap();
        let _earlier = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
        let error = Lock::take(dir.path(), Path::new("/proc")).unwrap_err();
        assert!(matches!(error, LedgerError::Locked { .. }), "{error}");
    }

    #[test]
    fn where_no_file_can_be_made_the_directory_itself_is_locked() {
        let dir = tempfile::tempdir().unwrap();
        // Neither opened for writing nor locked as a file that others share.
        std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join("lock")).unwrap();
        let _first = Lock::take(dir.path(), Path::new("/proc")).unwrap();
        let error = Lock::take(dir.path(), Path::new("/proc")).unwrap_err();
        assert!(matches!(error, LedgerError::Locked { .. }), "{error}");
    }
}
