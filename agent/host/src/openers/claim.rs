//! Finds what has claimed a block device inside the kernel, where no process and no mount table shows it.
//!
//! Comes in: a device. Goes out: whether something has it exclusively, and what that is, as far as sysfs and
//! `/proc/fs` show.
//!
//! A mounted file system, an external journal, a member of a btrfs or ZFS pool, swap, dm and md have their
//! device exclusively, whether or not anybody can see them. A lazy unmount takes a file system out of every
//! mount table, and a mount namespace that a file keeps alive has no process that shows it. Opening the
//! device exclusively for a moment is what shows it (`bd_may_claim` in the kernel's `block/bdev.c`: a claim
//! on a partition counts for the whole device).
//!
//! Always holds: the device is opened for reading only and closed at once. A loop device does not claim its
//! backing device (the kubelet's is found as a loop device), nor do ordinary openers, this process among
//! them.

use std::path::Path;

use super::Places;
use crate::devnode::{self, DevNodeError, OpenFor};
use crate::name::DevT;

/// What opening the device exclusively showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// Nobody else has it exclusively.
    Nobody,
    /// Somebody else has it exclusively: the open failed with EBUSY.
    Somebody,
    /// The device does not exist any more.
    Gone,
    /// The device could not be opened; the text says why.
    Unknown(String),
}

/// Opens the device exclusively, and closes it.
pub(super) fn ask(places: &Places, dev: DevT) -> Claim {
    let opened = devnode::find(&places.sysfs, &places.dev_root, dev)
        .and_then(|path| devnode::open(&path, dev, OpenFor::Claim));
    match opened {
        Ok(_) => Claim::Nobody,
        Err(DevNodeError::Access { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
            Claim::Somebody
        }
        Err(DevNodeError::NoDevice { .. }) => Claim::Gone,
        Err(DevNodeError::Access { path, source }) => Claim::Unknown(format!("{}: {source}", path.display())),
        Err(error) => Claim::Unknown(error.to_string()),
    }
}

/// File systems and journals that the kernel names after the device or one of its partitions.
pub(super) fn claimants(places: &Places, dev: DevT) -> Vec<String> {
    let Some(device) = name(places, dev) else { return Vec::new() };
    let fs = places.sysfs.root().join("fs");
    let mut found = Vec::new();
    for kind in ["ext4", "xfs", "f2fs"] {
        let on = names(&fs.join(kind)).into_iter().filter(|name| lies_on(name, &device));
        found.extend(on.map(|name| format!("{kind} on {name}")));
    }
    for pool in names(&fs.join("btrfs")) {
        let members = names(&fs.join("btrfs").join(&pool).join("devices"));
        let on = members.into_iter().filter(|name| lies_on(name, &device));
        found.extend(on.map(|name| format!("btrfs {pool} on {name}")));
    }
    // The name of an internal journal ends with its inode, `nvme0n1-8`; its file system has its own entry.
    let journals = names(&places.proc_root.join("fs/jbd2")).into_iter().filter(|name| lies_on(name, &device));
    found.extend(journals.map(|name| format!("an external journal on {name}")));
    found
}

fn name(places: &Places, dev: DevT) -> Option<String> {
    let link = std::fs::read_link(places.sysfs.root().join("dev/block").join(dev.to_string())).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

/// For an error's text only: what cannot be listed is left out.
fn names(dir: &Path) -> Vec<String> {
    crate::sysfs::list(dir).unwrap_or_default()
}

/// Whether a name is the device's or that of a partition of it.
fn lies_on(name: &str, device: &str) -> bool {
    let Some(rest) = name.strip_prefix(device) else { return false };
    let part = rest.strip_prefix('p').unwrap_or_default();
    rest.is_empty() || (!part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

/// For a test without a block device: nobody has claimed anything.
#[cfg(test)]
pub(super) fn nobody(_: &Places, _: DevT) -> Claim {
    Claim::Nobody
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_lies_on_its_device_and_a_longer_number_does_not() {
        for (name, expected) in [
            ("nvme0n1", true),
            ("nvme0n1p2", true),
            ("nvme0n12", false),
            ("nvme0n1p", false),
            ("nvme0n1-8", false),
        ] {
            assert_eq!(lies_on(name, "nvme0n1"), expected, "{name}");
        }
    }
}
