//! A sysfs directory that is held open, so that everything read and written there belongs to one device.
//!
//! Numbers are reused: between reading `nvme3/subsysnqn` and writing `nvme3/delete_controller` by path,
//! `nvme3` can become another controller. Through an open directory it cannot: when the device goes, lookups
//! in its directory fail.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::controller::Incarnation;

/// An open directory.
#[derive(Debug)]
pub(crate) struct PinnedDir {
    file: File,
}

impl PinnedDir {
    /// Opens a directory; follows links.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = libc::O_DIRECTORY | libc::O_PATH | libc::O_CLOEXEC;
        Ok(Self { file: OpenOptions::new().read(true).custom_flags(flags).open(path)? })
    }

    /// A path that leads to this very directory while `self` lives, whatever has its name by then.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Tells its device apart from earlier and later ones of the same name.
    pub(crate) fn incarnation(&self) -> io::Result<Incarnation> {
        Ok(Incarnation(self.file.metadata()?.ino()))
    }
}
