//! Block devices that processes and mounts of the whole host use, at one moment.
//!
//! Always holds: our own process is left out. A process that was forked during the search is searched too. To
//! be missed, a process has to come from a parent that closed the device before its own turn, and that again
//! in each of [`ROUNDS`] rounds.

use std::collections::BTreeSet;
use std::path::Path;

use super::files::{self, Mapped};
use super::held::HeldDescriptor;
use super::mounts::MountTable;
use super::scans::Looking;
use super::{Blind, DeviceUser, Places, ProcessUse, plain};
use crate::name::DevT;

/// Inode number of the first PID namespace (`include/linux/proc_ns.h`, `PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// How often processes are listed, at most, until no new one is among them.
const ROUNDS: usize = 4;

/// Every use of any block device by a process or a mount, at one moment.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    users: Vec<(DevT, DeviceUser)>,
    /// What the processes of pods have open.
    pub(super) held: Vec<HeldDescriptor>,
    /// Which processes could not be read.
    pub(super) blind: Vec<Blind>,
    /// Which mounts could not be read.
    pub(super) blind_to_mounts: Vec<Blind>,
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

/// Reads every process but our own, and every mount namespace.
pub(super) fn scan(places: &Places, looking: &Looking) -> Snapshot {
    let mut found = Snapshot::default();
    found.blind.extend(not_the_hosts(places));
    let (mut seen, mut mounts, mut known) = (BTreeSet::new(), MountTable::default(), Mapped::new());
    for _ in 0..ROUNDS {
        let pids = match crate::sysfs::list(&places.proc_root) {
            Ok(names) => names.into_iter().filter_map(|name| name.parse::<u32>().ok()),
            Err(error) => {
                found.blind.push(Blind::at(&places.proc_root, error));
                break;
            }
        };
        let new: Vec<u32> = pids.filter(|pid| seen.insert(*pid)).collect();
        if new.is_empty() || looking.is_left_behind() {
            break;
        }
        // Mounts first: what a descriptor is on decides whether it may be examined.
        for pid in &new {
            mounts.add(places, looking, &places.proc_root.join(pid.to_string()), *pid);
        }
        for pid in new.into_iter().filter(|pid| *pid != std::process::id()) {
            add_process(places, looking, &mounts, pid, &mut known, &mut found);
        }
    }
    mounts.finish();
    found.users.append(&mut mounts.users);
    found.blind_to_mounts = mounts.blind;
    found
}

/// Why the processes that are listed are not all of the host's, if so: in a PID namespace of our own, others are not even
/// listed, and have other numbers.
pub(super) fn not_the_hosts(places: &Places) -> Option<Blind> {
    let path = places.proc_root.join("self/ns/pid");
    match std::fs::read_link(&path) {
        Ok(name) if name == Path::new(FIRST_PID_NAMESPACE) => None,
        Ok(name) => Some(Blind {
            what: "processes of the host".to_owned(),
            why: format!("we are in PID namespace {}, not the host's (hostPID is needed)", name.display()),
        }),
        Err(error) => Some(Blind::at(&path, error)),
    }
}

fn add_process(
    places: &Places,
    looking: &Looking,
    mounts: &MountTable,
    pid: u32,
    known: &mut Mapped,
    found: &mut Snapshot,
) {
    let dir = places.proc_root.join(pid.to_string());
    let blind = &mut found.blind;
    let mut open = files::open(places, looking, mounts, &dir, blind);
    let mut mapped = files::mapped(places, looking, mounts, (&dir, pid), known, blind);
    if open.is_none() && mapped.is_empty() {
        // The first thread may have ended before the others, which then have what is open and mapped.
        let others = crate::sysfs::list(&dir.join("task")).unwrap_or_default();
        let others =
            others.into_iter().filter_map(|name| name.parse::<u32>().ok()).filter(|task| *task != pid);
        for task in others {
            let dir = dir.join("task").join(task.to_string());
            open = files::open(places, looking, mounts, &dir, blind);
            mapped = files::mapped(places, looking, mounts, (&dir, task), known, blind);
            if open.is_some() || !mapped.is_empty() {
                break;
            }
        }
    }
    let (open, mapped) = (open.unwrap_or_default(), mapped);
    let devices: BTreeSet<DevT> = open.keys().chain(mapped.keys()).copied().collect();
    for dev in devices {
        let opened = open.get(&dev);
        let descriptors = opened.map(|opened| opened.descriptors).unwrap_or_default();
        let maps = mapped.get(&dev).copied().unwrap_or_default();
        let process = describe(&dir, pid, dev, descriptors, maps);
        if let (Some(opened), Some(_)) = (opened, &process.pod_uid) {
            let ProcessUse { comm, pod_uid, .. } = process.clone();
            found.held.push(HeldDescriptor { pid, comm, pod_uid, name: opened.name.clone(), rdev: dev });
        }
        found.users.push((dev, DeviceUser::Process(process)));
    }
}

fn describe(dir: &Path, pid: u32, dev: DevT, descriptors: usize, maps: usize) -> ProcessUse {
    // A program chooses its own name.
    let read = |name: &str| {
        let bytes = std::fs::read(dir.join(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let comm = read("comm").map_or_else(|| "?".to_owned(), |text| plain(text.trim_end()));
    // Version 2 has one line `0::/…`; of version 1 the longest says most.
    let cgroup = read("cgroup").and_then(|text| {
        text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).max_by_key(|path| path.len()).map(plain)
    });
    let pod_uid = cgroup.as_deref().and_then(pod_uid);
    ProcessUse { dev, pid, comm, descriptors, maps, cgroup, pod_uid }
}

/// UID of a pod in a cgroup path: `…/pod3b0c5a0e-…/…`, or with underscores and prefixes in systemd's form.
fn pod_uid(cgroup: &str) -> Option<String> {
    cgroup.split(['/', '.']).find_map(|part| {
        let (_, uid) = part.rsplit_once("pod")?;
        let uid = uid.replace('_', "-");
        uuid::Uuid::try_parse(&uid).ok().map(|uid| uid.as_hyphenated().to_string())
    })
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

    #[test]
    fn a_programs_name_cannot_reach_a_terminal() {
        assert_eq!(plain("\u{1b}[2Jx\u{9b}é"), "\\u{1b}[2Jx\\u{9b}é");
    }
}
