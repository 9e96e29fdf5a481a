//! One process at a time: an exclusive lock beside the store, which says who holds it.
//!
//! In comes the store's path; out goes a lock that lasts until it is dropped or the process is gone. The lock file is
//! never replaced or removed: whoever did that would let two processes hold "the" lock.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::opening::{MODE, beside};
use super::refusal::{OpenError, failed};

pub(super) fn lock(path: &Path) -> Result<Flock<File>, OpenError> {
    let lock_path = beside(path, ".lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE);
    let file = options.open(&lock_path).map_err(failed("open lock file", &lock_path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let holder = format!("pid {} on {}", std::process::id(), host.trim());
            // For people only, so its success does not matter.
            let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{holder}"));
            Ok(lock)
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if known { holder.trim().to_owned() } else { "not known which".to_owned() };
            Err(OpenError::Locked { path: path.to_owned(), holder })
        }
        Err((_, errno)) => Err(failed("lock", &lock_path)(errno).into()),
    }
}
