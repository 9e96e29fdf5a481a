//! Mounts of the whole host: those of every mount namespace that has a process.
//!
//! Comes in: the directories of processes in `/proc`. Goes out: which block devices are mounted or have their
//! node bound somewhere, and whether each mount is remote.
//!
//! Always holds: no path is followed through a server or a FUSE daemon. Mounts that could not be read are
//! kept apart from everything else that could not: a mounted file system claims its device, which shows
//! without this ([`super::claim`]), and a bound node that nobody has open does not use the device.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::scans::{Key, Looking};
use super::{Blind, DeviceUser, Places, has_gone};
use crate::mountinfo::{self, MountEntry};
use crate::name::DevT;

/// File systems whose files another machine or program answers for, and may be silent.
const REMOTE: [&str; 19] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "ceph",
    "afs",
    "coda",
    "lustre",
    "gpfs",
    "beegfs",
    "orangefs",
    "ocfs2",
    "gfs2",
    "glusterfs",
    "virtiofs",
    "vboxsf",
    "autofs",
];

fn is_remote(fs_type: &str) -> bool {
    REMOTE.contains(&fs_type) || fs_type == "fuse" || fs_type.starts_with("fuse.")
}

/// Whether a path leads through a server or a FUSE daemon, by the mounts of the host's first process.
pub(super) fn host_says_remote(places: &Places, path: &Path) -> bool {
    let Ok(bytes) = std::fs::read(places.proc_root.join("1/mountinfo")) else { return false };
    let entries = mountinfo::parse(&bytes).unwrap_or_default();
    let above = entries.iter().filter(|entry| path.starts_with(&entry.mount_point));
    // Of those that are nearest, the last one is on top.
    let nearest = above.max_by_key(|entry| entry.mount_point.components().count());
    nearest.is_some_and(|entry| is_remote(&entry.fs_type))
}

/// The mounts that were found.
#[derive(Debug, Default)]
pub(super) struct MountTable {
    /// Devices in use, with their users.
    pub(super) users: Vec<(DevT, DeviceUser)>,
    /// Which mounts could not be read.
    pub(super) blind: Vec<Blind>,
    /// Whether each mount is remote, by its number.
    mounts: BTreeMap<u64, bool>,
    /// File systems that are remote, by their device number.
    remote: BTreeMap<DevT, ()>,
    /// Mount namespaces found so far: read (`None`), or why not.
    namespaces: BTreeMap<PathBuf, Option<Blind>>,
}

impl MountTable {
    /// Whether another machine or program answers for the files on a mount. False for a mount that no
    /// namespace shows, as after a lazy unmount: nobody knows what that is.
    pub(super) fn is_remote(&self, mount: u64) -> bool {
        self.mounts.get(&mount).copied().unwrap_or_default()
    }

    /// The same for a file system.
    pub(super) fn is_remote_file_system(&self, dev: DevT) -> bool {
        self.remote.contains_key(&dev)
    }

    /// Reads the mount namespace of a process, unless another process has shown it already.
    pub(super) fn add(&mut self, places: &Places, looking: &Looking, dir: &Path, pid: u32) {
        let link = dir.join("ns/mnt");
        let namespace = match std::fs::read_link(&link) {
            Ok(namespace) => namespace,
            // Gone, or a zombie: neither has a mount namespace.
            Err(error) if has_gone(&error) => return,
            Err(error) => return self.blind.push(Blind::at(&link, error)),
        };
        if matches!(self.namespaces.get(&namespace), Some(None)) {
            return;
        }
        let path = dir.join("mountinfo");
        let read = std::fs::read(&path).map_err(|error| (has_gone(&error), error.to_string()));
        let entries =
            read.and_then(|bytes| mountinfo::parse(&bytes).map_err(|error| (false, error.to_string())));
        match entries {
            Ok(entries) => {
                self.namespaces.insert(namespace, None);
                self.note_kinds(&entries);
                let remote: Vec<PathBuf> = entries
                    .iter()
                    .filter(|entry| is_remote(&entry.fs_type))
                    .map(|entry| entry.mount_point.clone())
                    .collect();
                for entry in entries {
                    let through_remote = remote.iter().any(|above| entry.mount_point.starts_with(above));
                    self.add_mount(places, looking, (dir, pid), entry, through_remote);
                }
            }
            // Zombies answer EINVAL or nothing; another process of the namespace may still be readable.
            Err((true, _)) => {}
            Err((false, why)) => {
                let blind = Blind { what: path.display().to_string(), why };
                self.namespaces.entry(namespace).or_insert(Some(blind));
            }
        }
    }

    /// Call it once all processes have been added: a namespace that no process could show may hide a mount.
    pub(super) fn finish(&mut self) {
        self.blind.extend(std::mem::take(&mut self.namespaces).into_values().flatten());
    }

    fn note_kinds(&mut self, entries: &[MountEntry]) {
        for MountEntry { id, dev, fs_type, .. } in entries {
            let remote = is_remote(fs_type);
            self.mounts.insert(*id, remote);
            if remote {
                self.remote.insert(*dev, ());
            }
        }
    }

    fn add_mount(
        &mut self,
        places: &Places,
        looking: &Looking,
        (dir, pid): (&Path, u32),
        entry: MountEntry,
        through_remote: bool,
    ) {
        let MountEntry { id, dev, mount_point, fs_type, source, root, .. } = entry;
        // Anonymous file systems have major number 0; all others are on the block device of that number.
        if dev.major != 0 {
            self.users.push((dev, DeviceUser::Mount { dev, mount_point, fs_type, seen_by_pid: pid }));
            return;
        }
        if matches!(fs_type.as_str(), "btrfs" | "bcachefs") {
            self.add_sources(places, (dir, pid), &source, &mount_point, &fs_type);
        }
        // A bound device node shows the file system that the node is in, and a root that is not "/".
        let may_hold_nodes = matches!(fs_type.as_str(), "devtmpfs" | "tmpfs" | "ramfs" | "rootfs");
        if !may_hold_nodes || root == Path::new("/") {
            return;
        }
        // There is one devtmpfs, and it is ours too: what is bound from it need not be read where it is
        // bound.
        let node = places.dev_root.join(root.strip_prefix("/").unwrap_or(&root));
        let ours = (fs_type == "devtmpfs").then(|| (places.rdev)(&node).ok().flatten()).flatten();
        let inside = dir.join("root").join(mount_point.strip_prefix("/").unwrap_or(&mount_point));
        let found = match ours {
            Some(dev) => Ok(Ok(Some(dev))),
            None if through_remote => {
                let why = "it lies below a mount of a server or a FUSE daemon".to_owned();
                return self.blind.push(Blind { what: inside.display().to_string(), why });
            }
            None => looking.call(&Key::Mount(id), || (places.rdev)(&inside)),
        };
        match found {
            Ok(Ok(Some(dev))) => {
                self.users.push((dev, DeviceUser::NodeBind { dev, mount_point, seen_by_pid: pid }));
            }
            Ok(Ok(None)) => {}
            // Covered by another mount, or its process has ended.
            Ok(Err(error)) if has_gone(&error) || error.raw_os_error() == Some(libc::ENOTDIR) => {}
            Ok(Err(error)) => self.blind.push(Blind::at(&inside, error)),
            Err(stuck) => {
                self.blind.push(Blind { what: inside.display().to_string(), why: stuck.to_string() })
            }
        }
    }

    /// Btrfs and similar file systems span devices and have a number of their own. Their source names the
    /// devices: one path, or several with colons between.
    fn add_sources(
        &mut self,
        places: &Places,
        (dir, pid): (&Path, u32),
        source: &str,
        mount_point: &Path,
        fs_type: &str,
    ) {
        for path in source.split(':') {
            let inside = dir.join("root").join(path.trim_start_matches('/'));
            let outside = places.dev_root.join(path.trim_start_matches("/dev/"));
            match (places.rdev)(&outside).or_else(|_| (places.rdev)(&inside)) {
                Ok(Some(dev)) => {
                    let (mount_point, fs_type) = (mount_point.to_owned(), fs_type.to_owned());
                    self.users.push((dev, DeviceUser::Mount { dev, mount_point, fs_type, seen_by_pid: pid }));
                }
                Ok(None) => {}
                // The name given to mount may have been a link that is gone. Other members may be unknown
                // too.
                Err(error) => self.blind.push(Blind::at(&inside, error)),
            }
        }
    }
}
