//! Finds and verifies the device node of a device number.
//!
//! Always holds: a path that this module returns was a block device with exactly that number a moment ago. An
//! open file from [`open`] *is* that device: the number is compared on the descriptor, not on the name.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::name::DevT;
use crate::sysfs::Sysfs;

/// Why there is no usable node for a device number.
#[derive(Debug, thiserror::Error)]
pub enum DevNodeError {
    /// The kernel has no block device of that number.
    #[error("cannot find block device {dev}: no {path}")]
    NoDevice {
        /// The number that was asked for.
        dev: DevT,
        /// Where sysfs would show the device.
        path: PathBuf,
    },
    /// The node does not exist, or not yet: devtmpfs makes it after sysfs shows the device.
    #[error("{path} does not exist")]
    Missing {
        /// Where the kernel's `DEVNAME` places it.
        path: PathBuf,
    },
    /// The path leads to another device, or to something that is no block device.
    #[error("{path} is {found}, expected block device {expected}")]
    Wrong {
        /// The path that was checked.
        path: PathBuf,
        /// What it is, as text for a person.
        found: String,
        /// The number that it should have.
        expected: DevT,
    },
    /// The node, or sysfs, could not be read or opened.
    #[error("cannot use {path}")]
    Access {
        /// The path that was read or opened.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// Finds the node of a block device: the name that the kernel gave it (`DEVNAME` in its sysfs `uevent`)
/// under `dev_root` (`/dev`), verified.
///
/// # Errors
/// [`DevNodeError`].
pub fn find(sysfs: &Sysfs, dev_root: &Path, dev: DevT) -> Result<PathBuf, DevNodeError> {
    let uevent = sysfs.root().join("dev/block").join(dev.to_string()).join("uevent");
    let text = match std::fs::read_to_string(&uevent) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(DevNodeError::NoDevice { dev, path: uevent });
        }
        Err(source) => return Err(DevNodeError::Access { path: uevent, source }),
    };
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    // The kernel's names may contain a directory, such as mapper/…, but never `..`.
    let Some(name) = name.filter(|name| !name.split('/').any(|part| part == ".." || part.is_empty())) else {
        return Err(DevNodeError::NoDevice { dev, path: uevent });
    };
    let path = dev_root.join(name);
    verify(&path, dev)?;
    Ok(path)
}

/// Checks that a path is (or leads to) the block device of that number.
///
/// # Errors
/// [`DevNodeError`].
pub fn verify(path: &Path, dev: DevT) -> Result<(), DevNodeError> {
    match std::fs::metadata(path) {
        Ok(metadata) => matches(path, &metadata, dev),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(DevNodeError::Missing { path: path.to_owned() })
        }
        Err(source) => Err(DevNodeError::Access { path: path.to_owned(), source }),
    }
}

/// How a device is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenFor {
    /// Reading past the page cache.
    DirectRead,
    /// Writing, for a flush; nothing is written.
    Flush,
    /// Reading, exclusively: fails with EBUSY while the kernel or another exclusive opener has the device.
    Claim,
    /// Writing past the page cache: only for a caller to whom every byte of the device belongs.
    DirectWrite,
}

/// Opens a node and compares the number on the descriptor. May block while the device does not answer.
///
/// # Errors
/// [`DevNodeError`].
pub fn open(path: &Path, dev: DevT, purpose: OpenFor) -> Result<File, DevNodeError> {
    let access = |source| DevNodeError::Access { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    match purpose {
        OpenFor::DirectRead => options.read(true).custom_flags(libc::O_DIRECT | libc::O_CLOEXEC),
        OpenFor::Flush => options.read(true).custom_flags(libc::O_CLOEXEC),
        OpenFor::Claim => options.read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC),
        OpenFor::DirectWrite => options.read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_CLOEXEC),
    };
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(DevNodeError::Missing { path: path.to_owned() });
        }
        other => other.map_err(access)?,
    };
    matches(path, &file.metadata().map_err(access)?, dev)?;
    Ok(file)
}

fn matches(path: &Path, metadata: &std::fs::Metadata, expected: DevT) -> Result<(), DevNodeError> {
    let found = describe(metadata);
    if metadata.file_type().is_block_device() && DevT::from_raw(metadata.rdev()) == expected {
        return Ok(());
    }
    Err(DevNodeError::Wrong { path: path.to_owned(), found, expected })
}

/// What a file is, as text for a person.
pub(crate) fn describe(metadata: &std::fs::Metadata) -> String {
    let kind = metadata.file_type();
    if kind.is_block_device() {
        format!("block device {}", DevT::from_raw(metadata.rdev()))
    } else if kind.is_char_device() {
        format!("character device {}", DevT::from_raw(metadata.rdev()))
    } else if kind.is_dir() {
        "a directory".to_owned()
    } else if kind.is_file() {
        format!("a regular file of {} bytes", metadata.len())
    } else {
        "neither a device nor a file".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Tree;

    #[test]
    fn a_node_that_is_no_block_device_of_that_number_is_refused_by_name() {
        let tree = Tree::new();
        tree.write("dev/block/259:1/uevent", "MAJOR=259\nMINOR=1\nDEVNAME=nvme0n1\n");
        let dev_root = tempfile::tempdir().expect("a directory");
        let dev = DevT { major: 259, minor: 1 };
        let missing = find(&tree.sysfs(), dev_root.path(), dev).expect_err("no node");
        assert!(matches!(missing, DevNodeError::Missing { .. }), "{missing}");
        std::fs::write(dev_root.path().join("nvme0n1"), "").expect("a file");
        let wrong = find(&tree.sysfs(), dev_root.path(), dev).expect_err("a file is no device");
        assert!(
            wrong.to_string().contains("regular file of 0 bytes, expected block device 259:1"),
            "{wrong}"
        );
        let none = find(&tree.sysfs(), dev_root.path(), DevT { major: 259, minor: 2 });
        assert!(matches!(none, Err(DevNodeError::NoDevice { .. })));
    }

    #[test]
    fn a_name_cannot_lead_out_of_dev() {
        let tree = Tree::new();
        tree.write("dev/block/8:0/uevent", "DEVNAME=../etc/passwd\n");
        let found = find(&tree.sysfs(), Path::new("/dev"), DevT { major: 8, minor: 0 });
        assert!(matches!(found, Err(DevNodeError::NoDevice { .. })));
    }
}
