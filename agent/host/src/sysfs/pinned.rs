//! A sysfs directory held open, so that what is read and written there is one device's and stays so.
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

    /// A path that leads to this very directory while `self` lives, whatever its name means by then.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Which life of its name this is.
    pub(crate) fn incarnation(&self) -> io::Result<Incarnation> {
        Ok(Incarnation(self.file.metadata()?.ino()))
    }
}
