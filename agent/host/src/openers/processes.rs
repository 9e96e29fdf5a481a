//! Open files and mounts of all processes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::{Blind, DeviceUser, OpenersReport, Places, ProcessUse};
use crate::mountinfo::{self, MountEntry};
use crate::name::DevT;

/// Inode number of the first PID namespace (`include/linux/proc_ns.h`, `PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Adds processes and mounts that use any of `devices`.
pub(super) fn find(places: &Places, devices: &BTreeSet<DevT>, report: &mut OpenersReport) {
    let proc_root = &places.proc_root;
    check_pid_namespace(proc_root, report);
    let pids = match super::sysfs::list(proc_root) {
        Ok(names) => names.into_iter().filter_map(|name| name.parse::<u32>().ok()),
        Err(error) => return blind(report, proc_root.clone(), error),
    };
    let mut namespaces = BTreeMap::new();
    for pid in pids {
        let dir = proc_root.join(pid.to_string());
        let own = pid == std::process::id();
        if !own {
            add_open_files(places, &dir, pid, devices, report);
        }
        add_mounts(places, &dir, pid, devices, &mut namespaces, report);
    }
    // A namespace of which no process could be read may hide a mount.
    for (_, reason) in namespaces.into_iter().filter_map(|(ns, unread)| Some((ns, unread?))) {
        report.blind.push(reason);
    }
}

/// In a PID namespace of our own, other processes are not even listed.
fn check_pid_namespace(proc_root: &Path, report: &mut OpenersReport) {
    let path = proc_root.join("self/ns/pid");
    match std::fs::read_link(&path) {
        Ok(name) if name == Path::new(FIRST_PID_NAMESPACE) => {}
        Ok(name) => report.blind.push(Blind {
            what: "processes of the host".to_owned(),
            why: format!("we are in PID namespace {}, not the host's (hostPID is needed)", name.display()),
        }),
        Err(error) => blind(report, path, error),
    }
}

fn blind(report: &mut OpenersReport, what: PathBuf, error: io::Error) {
    report.blind.push(Blind { what: what.display().to_string(), why: error.to_string() });
}

/// Whether an error means that the process (or its descriptor) has gone.
fn has_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

fn add_open_files(
    places: &Places,
    dir: &Path,
    pid: u32,
    devices: &BTreeSet<DevT>,
    report: &mut OpenersReport,
) {
    let fds = dir.join("fd");
    let entries = match std::fs::read_dir(&fds) {
        Ok(entries) => entries,
        Err(error) if has_gone(&error) => return,
        Err(error) => return blind(report, fds, error),
    };
    let mut open: BTreeMap<DevT, usize> = BTreeMap::new();
    for entry in entries {
        let rdev = entry.and_then(|entry| {
            let target = std::fs::read_link(entry.path())?;
            // Sockets, pipes and the like (`socket:[1]`) have no path and are no block devices.
            if !target.has_root() { Ok(None) } else { (places.rdev)(&entry.path()) }
        });
        match rdev {
            Ok(Some(dev)) if devices.contains(&dev) => *open.entry(dev).or_default() += 1,
            Ok(_) => {}
            Err(error) if has_gone(&error) => {}
            Err(error) => return blind(report, fds, error),
        }
    }
    for (dev, descriptors) in open {
        report.users.push(DeviceUser::Process(describe(dir, pid, dev, descriptors)));
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

fn add_mounts(
    places: &Places,
    dir: &Path,
    pid: u32,
    devices: &BTreeSet<DevT>,
    namespaces: &mut Namespaces,
    report: &mut OpenersReport,
) {
    let link = dir.join("ns/mnt");
    let namespace = match std::fs::read_link(&link) {
        Ok(namespace) => namespace,
        // Gone, or a zombie: neither has a mount namespace.
        Err(error) if has_gone(&error) => return,
        Err(error) => return blind(report, link, error),
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
                add_mount(places, dir, pid, entry, devices, report);
            }
        }
        // Zombies answer EINVAL or nothing; another process of the namespace may still be readable.
        Err((true, _)) => {}
        Err((false, why)) => {
            namespaces.entry(namespace).or_insert(Some(Blind { what: path.display().to_string(), why }));
        }
    }
}

fn add_mount(
    places: &Places,
    dir: &Path,
    pid: u32,
    entry: MountEntry,
    devices: &BTreeSet<DevT>,
    report: &mut OpenersReport,
) {
    let MountEntry { dev, mount_point, fs_type, .. } = entry;
    if devices.contains(&dev) {
        report.users.push(DeviceUser::Mount { dev, mount_point, fs_type, seen_by_pid: pid });
        return;
    }
    // A bound device node shows the file system that the node lies in, and a root that is not "/".
    let may_hold_nodes = matches!(fs_type.as_str(), "devtmpfs" | "tmpfs" | "ramfs" | "rootfs");
    if !may_hold_nodes || entry.root == Path::new("/") {
        return;
    }
    let inside = dir.join("root").join(mount_point.strip_prefix("/").unwrap_or(&mount_point));
    match (places.rdev)(&inside) {
        Ok(Some(dev)) if devices.contains(&dev) => {
            report.users.push(DeviceUser::NodeBind { dev, mount_point, seen_by_pid: pid });
        }
        Ok(_) => {}
        // Covered by another mount, or gone with its process.
        Err(error) if has_gone(&error) || error.raw_os_error() == Some(libc::ENOTDIR) => {}
        Err(error) => blind(report, inside, error),
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
