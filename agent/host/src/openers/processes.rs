//! Open block devices and mounts of all processes, for whoever asks about one device.
//!
//! A scan of a busy host costs thousands of system calls, whatever it looks for. So it notes every block
//! device that is in use, and the callers that came before it began share it ([`Scans`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::{Blind, DeviceUser, Places, ProcessUse};
use crate::mountinfo::{self, MountEntry};
use crate::name::DevT;
use crate::work::{self, WorkError};

/// Inode number of the first PID namespace (`include/linux/proc_ns.h`, `PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Every use of any block device by a process or a mount, at one moment.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    users: Vec<(DevT, DeviceUser)>,
    pub(super) blind: Vec<Blind>,
}

impl Snapshot {
    /// Users of any of `devices`.
    pub(super) fn users_of<'a>(
        &'a self,
        devices: &'a BTreeSet<DevT>,
    ) -> impl Iterator<Item = DeviceUser> + 'a {
        self.users.iter().filter(|(dev, _)| devices.contains(dev)).map(|(_, user)| user.clone())
    }
}

type Pending = watch::Receiver<Option<Arc<Snapshot>>>;

/// Scans under way: at most one that runs and one that waits for its end.
#[derive(Debug, Clone, Default)]
pub(super) struct Scans {
    running: Arc<Mutex<()>>,
    /// The scan that has not begun yet, and can still be joined.
    pending: Arc<Mutex<Option<Pending>>>,
}

impl Scans {
    /// The result of a scan that begins after this call.
    pub(super) async fn fresh(
        &self,
        places: &Places,
        deadline: Duration,
    ) -> Result<Arc<Snapshot>, WorkError> {
        const WHAT: &str = "look at all processes";
        let mut scan = self.join_or_start(places, WHAT)?;
        let done = scan.wait_for(Option::is_some);
        match tokio::time::timeout(deadline, done).await {
            Ok(Ok(snapshot)) => snapshot.clone().ok_or_else(|| WorkError::Lost { what: WHAT.to_owned() }),
            Ok(Err(_)) => Err(WorkError::Lost { what: WHAT.to_owned() }),
            Err(_) => Err(WorkError::Overdue { what: WHAT.to_owned(), deadline }),
        }
    }

    fn join_or_start(&self, places: &Places, what: &str) -> Result<Pending, WorkError> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scan) = pending.as_ref() {
            return Ok(scan.clone());
        }
        let (sender, receiver) = watch::channel(None);
        let (scans, places) = (self.clone(), places.clone());
        work::spawn(what, move || {
            let _turn = scans.running.lock().unwrap_or_else(PoisonError::into_inner);
            // From here on it is too late to join.
            scans.pending.lock().unwrap_or_else(PoisonError::into_inner).take();
            sender.send_replace(Some(Arc::new(scan(&places))));
        })?;
        *pending = Some(receiver.clone());
        Ok(receiver)
    }
}

/// Looks at every process but our own, and at every mount namespace.
pub(super) fn scan(places: &Places) -> Snapshot {
    let mut found = Snapshot::default();
    let proc_root = &places.proc_root;
    check_pid_namespace(proc_root, &mut found);
    let pids = match super::sysfs::list(proc_root) {
        Ok(names) => names.into_iter().filter_map(|name| name.parse::<u32>().ok()),
        Err(error) => {
            blind(&mut found, proc_root.clone(), error);
            return found;
        }
    };
    let mut namespaces = BTreeMap::new();
    for pid in pids {
        let dir = proc_root.join(pid.to_string());
        let own = pid == std::process::id();
        if !own {
            add_open_files(places, &dir, pid, &mut found);
        }
        add_mounts(places, &dir, pid, &mut namespaces, &mut found);
    }
    // A namespace of which no process could be read may hide a mount.
    found.blind.extend(namespaces.into_values().flatten());
    found
}

/// In a PID namespace of our own, other processes are not even listed.
fn check_pid_namespace(proc_root: &Path, found: &mut Snapshot) {
    let path = proc_root.join("self/ns/pid");
    match std::fs::read_link(&path) {
        Ok(name) if name == Path::new(FIRST_PID_NAMESPACE) => {}
        Ok(name) => found.blind.push(Blind {
            what: "processes of the host".to_owned(),
            why: format!("we are in PID namespace {}, not the host's (hostPID is needed)", name.display()),
        }),
        Err(error) => blind(found, path, error),
    }
}

fn blind(found: &mut Snapshot, what: PathBuf, error: io::Error) {
    found.blind.push(Blind { what: what.display().to_string(), why: error.to_string() });
}

/// Whether an error means that the process (or its descriptor) has gone.
fn has_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

fn add_open_files(places: &Places, dir: &Path, pid: u32, found: &mut Snapshot) {
    let fds = dir.join("fd");
    let entries = match std::fs::read_dir(&fds) {
        Ok(entries) => entries,
        Err(error) if has_gone(&error) => return,
        Err(error) => return blind(found, fds, error),
    };
    let mut open: BTreeMap<DevT, usize> = BTreeMap::new();
    for entry in entries {
        let rdev = entry.and_then(|entry| {
            let target = std::fs::read_link(entry.path())?;
            // Sockets, pipes and the like (`socket:[1]`) have no path and are no block devices.
            if !target.has_root() { Ok(None) } else { (places.rdev)(&entry.path()) }
        });
        match rdev {
            Ok(Some(dev)) => *open.entry(dev).or_default() += 1,
            Ok(None) => {}
            Err(error) if has_gone(&error) => {}
            Err(error) => return blind(found, fds, error),
        }
    }
    for (dev, descriptors) in open {
        found.users.push((dev, DeviceUser::Process(describe(dir, pid, dev, descriptors))));
    }
}

fn describe(dir: &Path, pid: u32, dev: DevT, descriptors: usize) -> ProcessUse {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
    let comm = read("comm").map_or_else(|| "?".to_owned(), |text| text.trim_end().to_owned());
    // Version 2 has one line `0::/…`; of version 1 the longest says most.
    let cgroup = read("cgroup").and_then(|text| {
        text.lines()
            .filter_map(|line| line.splitn(3, ':').nth(2))
            .max_by_key(|path| path.len())
            .map(str::to_owned)
    });
    let pod_uid = cgroup.as_deref().and_then(pod_uid);
    ProcessUse { dev, pid, comm, descriptors, cgroup, pod_uid }
}

/// UID of a pod in a cgroup path: `…/pod3b0c5a0e-…/…`, or with underscores and prefixes in systemd's form.
fn pod_uid(cgroup: &str) -> Option<String> {
    cgroup.split(['/', '.']).find_map(|part| {
        let (_, uid) = part.rsplit_once("pod")?;
        let uid = uid.replace('_', "-");
        uuid::Uuid::try_parse(&uid).ok().map(|uid| uid.as_hyphenated().to_string())
    })
}

/// Mount namespaces met so far: read (`None`), or why not.
type Namespaces = BTreeMap<PathBuf, Option<Blind>>;

fn add_mounts(places: &Places, dir: &Path, pid: u32, namespaces: &mut Namespaces, found: &mut Snapshot) {
    let link = dir.join("ns/mnt");
    let namespace = match std::fs::read_link(&link) {
        Ok(namespace) => namespace,
        // Gone, or a zombie: neither has a mount namespace.
        Err(error) if has_gone(&error) => return,
        Err(error) => return blind(found, link, error),
    };
    if matches!(namespaces.get(&namespace), Some(None)) {
        return;
    }
    let path = dir.join("mountinfo");
    let read = std::fs::read(&path).map_err(|error| (has_gone(&error), error.to_string()));
    let entries = read.and_then(|bytes| mountinfo::parse(&bytes).map_err(|error| (false, error.to_string())));
    match entries {
        Ok(entries) => {
            namespaces.insert(namespace, None);
            for entry in entries {
                add_mount(places, dir, pid, entry, found);
            }
        }
        // Zombies answer EINVAL or nothing; another process of the namespace may still be readable.
        Err((true, _)) => {}
        Err((false, why)) => {
            namespaces.entry(namespace).or_insert(Some(Blind { what: path.display().to_string(), why }));
        }
    }
}

fn add_mount(places: &Places, dir: &Path, pid: u32, entry: MountEntry, found: &mut Snapshot) {
    let MountEntry { dev, mount_point, fs_type, source, root, .. } = entry;
    // Anonymous file systems have major number 0, all others lie on the block device of that number.
    if dev.major != 0 {
        found.users.push((dev, DeviceUser::Mount { dev, mount_point, fs_type, seen_by_pid: pid }));
        return;
    }
    if matches!(fs_type.as_str(), "btrfs" | "bcachefs") {
        add_sources(places, dir, pid, &source, &mount_point, &fs_type, found);
    }
    // A bound device node shows the file system that the node lies in, and a root that is not "/".
    let may_hold_nodes = matches!(fs_type.as_str(), "devtmpfs" | "tmpfs" | "ramfs" | "rootfs");
    if !may_hold_nodes || root == Path::new("/") {
        return;
    }
    let inside = dir.join("root").join(mount_point.strip_prefix("/").unwrap_or(&mount_point));
    match (places.rdev)(&inside) {
        Ok(Some(dev)) => {
            found.users.push((dev, DeviceUser::NodeBind { dev, mount_point, seen_by_pid: pid }));
        }
        Ok(None) => {}
        // Covered by another mount, or gone with its process.
        Err(error) if has_gone(&error) || error.raw_os_error() == Some(libc::ENOTDIR) => {}
        Err(error) => blind(found, inside, error),
    }
}

/// Btrfs and its like span devices and have a number of their own: what they lie on is in the source, one
/// path, or several with colons between.
fn add_sources(
    places: &Places,
    dir: &Path,
    pid: u32,
    source: &str,
    mount_point: &Path,
    fs_type: &str,
    found: &mut Snapshot,
) {
    for path in source.split(':') {
        let inside = dir.join("root").join(path.trim_start_matches('/'));
        let outside = places.dev_root.join(path.trim_start_matches("/dev/"));
        match (places.rdev)(&inside).or_else(|_| (places.rdev)(&outside)) {
            Ok(Some(dev)) => {
                let (mount_point, fs_type) = (mount_point.to_owned(), fs_type.to_owned());
                found.users.push((dev, DeviceUser::Mount { dev, mount_point, fs_type, seen_by_pid: pid }));
            }
            Ok(None) => {}
            // The name given to mount may have been a link that is gone. Other members may be unknown too.
            Err(error) => blind(found, inside, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_from_both_forms_of_cgroup() {
        let uid = "3b0c5a0e-6a5f-4f5e-9d3e-0d8a2b8c1f11";
        for path in [
            format!("/kubepods/besteffort/pod{uid}/0123"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/x",
                uid.replace('-', "_")
            ),
        ] {
            assert_eq!(pod_uid(&path).as_deref(), Some(uid), "{path}");
        }
        assert_eq!(pod_uid("/system.slice/podman.service"), None);
    }
}
