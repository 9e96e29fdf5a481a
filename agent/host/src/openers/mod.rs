//! Who uses a block device, as far as this host can show.
//!
//! Comes in: a device number. Goes out: an [`OpenersReport`]: every user found, and everything that could not
//! be read.
//!
//! Always holds: [`DeviceUse::Free`] means that everything was read; whatever is missing makes it
//! [`DeviceUse::Unknown`]. Our own process is left out. Nothing is opened or changed: files are examined with
//! `statx` in a form that asks no server and triggers no automount. A call that does not come back holds up
//! this search for a short time and the next one not at all.
//!
//! It examines: open and mapped files of all processes, mounts in all mount namespaces that have a process,
//! bind mounts of the node, partitions and holders (and what is on those in turn), loop devices, swap. A
//! caller that is about to take the device away uses [`Openers::look_to_end`], which also finds what has
//! claimed it inside the kernel.
//!
//! It cannot see: users inside the kernel that open without a claim (an NVMe target), threads that do not
//! share their process's open files, descriptors that are in transit through a socket or registered with an
//! io_uring only, and a device that was opened through a node on a network file system whose server is silent
//! now.

mod claim;
mod cut;
mod files;
mod held;
mod loops;
mod mounts;
mod processes;
mod scans;
mod stat;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

pub use cut::CutError;
pub use held::{HeldDescriptor, held_elsewhere};
pub use loops::{KubeletLoop, LoopUse};

use claim::Claim;
use loops::LoopTable;
use processes::Snapshot;
use scans::{Scans, StuckCalls};

use crate::name::DevT;
use crate::sysfs::{self, Holder, Sysfs, Unreadable};
use crate::work::{WorkError, Workers};

/// How long a process may have the device open before it counts as a user: udev's `blkid`, `pvs` and `lsblk`
/// open every device for some tens of milliseconds.
const PASSING: Duration = Duration::from_millis(500);
/// How long to wait before the next search where only such processes were found.
const AGAIN: Duration = Duration::from_millis(100);

/// One user of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum DeviceUser {
    /// A process with the device open.
    Process(ProcessUse),
    /// A mounted file system on the device.
    Mount {
        /// Number of the device, or of a holder of it.
        dev: DevT,
        /// Where it is mounted, as that namespace names it.
        mount_point: PathBuf,
        /// Type of the file system.
        fs_type: String,
        /// A process in that mount namespace.
        seen_by_pid: u32,
    },
    /// The device node itself, bound to another place (what a published block volume is).
    NodeBind {
        /// Number of the device, or of a holder of it.
        dev: DevT,
        /// Where it is bound, as that namespace names it.
        mount_point: PathBuf,
        /// A process in that mount namespace.
        seen_by_pid: u32,
    },
    /// Another block device on top of it: LVM, dm, md.
    Holder(Holder),
    /// A loop device over it.
    Loop(LoopUse),
    /// Swap space on the device.
    Swap {
        /// Number of the device, or of a holder of it.
        dev: DevT,
    },
    /// Something in the kernel that has the device, or a part of it, exclusively.
    Claim {
        /// Number of the device that was opened exclusively.
        dev: DevT,
        /// File systems and journals on it, as the kernel names them; empty where it names none.
        by: Vec<String>,
    },
}

impl DeviceUser {
    /// Whether it is the kubelet's own loop device, which it keeps over every mapped block volume.
    pub fn is_kubelet_loop(&self) -> bool {
        matches!(self, Self::Loop(LoopUse { kubelet: Some(_), .. }))
    }

    /// The ticket whose loop device it is, and that device's number.
    pub fn ticket_loop(&self) -> Option<(&str, DevT)> {
        match self {
            Self::Loop(LoopUse { ticket: Some(ticket), dev, .. }) => Some((ticket, *dev)),
            _ => None,
        }
    }

    /// Whether it may be gone in a moment: a process that opens every device, or a claim without a visible
    /// owner.
    fn may_pass(&self) -> bool {
        match self {
            Self::Process(_) => true,
            Self::Claim { by, .. } => by.is_empty(),
            Self::Mount { .. }
            | Self::NodeBind { .. }
            | Self::Holder(_)
            | Self::Loop(_)
            | Self::Swap { .. } => false,
        }
    }
}

/// A process that has the device open or mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessUse {
    /// The device that is open: the one asked for, a holder of it, or a loop device over it.
    pub dev: DevT,
    /// Process id, as `/proc` lists it.
    pub pid: u32,
    /// Its name (15 bytes at most), or `?`.
    pub comm: String,
    /// How many descriptors of it are the device.
    pub descriptors: usize,
    /// Number of memory maps; they outlive the descriptor.
    pub maps: usize,
    /// Path of its cgroup; `None` where that could not be read.
    pub cgroup: Option<String>,
    /// UID of the Kubernetes pod that it belongs to, read from its cgroup.
    pub pod_uid: Option<String>,
}

impl fmt::Display for DeviceUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(process) => {
                write!(f, "process {} ({})", process.pid, process.comm)?;
                f.write_str(if process.descriptors == 0 { " by a memory map" } else { "" })?;
                process.pod_uid.as_ref().map_or(Ok(()), |uid| write!(f, " of pod {uid}"))
            }
            Self::Mount { mount_point, fs_type, seen_by_pid, .. } => {
                write!(f, "{fs_type} mounted at {} (seen by process {seen_by_pid})", mount_point.display())
            }
            Self::NodeBind { mount_point, seen_by_pid, .. } => {
                write!(f, "node bound at {} (seen by process {seen_by_pid})", mount_point.display())
            }
            Self::Holder(holder) => write!(f, "held by {holder}"),
            Self::Loop(one) => write!(f, "{one}"),
            Self::Swap { dev } => write!(f, "swap on {dev}"),
            Self::Claim { dev, by } if by.is_empty() => write!(
                f,
                "claimed in the kernel, block device {dev}, by what no process and no mount table shows (a file \
                 system that was unmounted lazily or is mounted in a pinned mount namespace, an external journal, a \
                 member of a btrfs or ZFS pool)"
            ),
            Self::Claim { by, .. } => write!(f, "claimed in the kernel by {}", by.join(", ")),
        }
    }
}

/// Something that could not be read, and may hide a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Blind {
    /// The path or the call, such as `/proc/17/fd`.
    pub what: String,
    /// What the operating system said, or for how long the call has not come back.
    pub why: String,
}

impl fmt::Display for Blind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl Blind {
    fn at(path: &Path, error: io::Error) -> Self {
        Self { what: path.display().to_string(), why: error.to_string() }
    }
}

/// Text with its control characters escaped: programs and users choose names freely, and somebody reads them
/// at a terminal.
pub fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|letter| if letter.is_control() { letter.escape_default().collect() } else { vec![letter] })
        .collect()
}

/// Whether an error means that the process (or its descriptor) has gone.
fn has_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Everything that was found about one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenersReport {
    /// The device that was asked for.
    pub dev: DevT,
    /// Everybody who was found using the device, or something on it.
    pub users: Vec<DeviceUser>,
    /// What could not be read.
    pub blind: Vec<Blind>,
}

/// What a report amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceUse {
    /// Somebody uses the device; there may be more users than were found.
    InUse,
    /// Nobody uses it, and everything could be read.
    Free,
    /// Nobody was found, but something could not be read.
    Unknown,
}

impl OpenersReport {
    /// What the report amounts to, with every user counted.
    pub fn verdict(&self) -> DeviceUse {
        self.verdict_without(|_| false)
    }

    /// What the report amounts to when some users are expected, such as our own bind mounts or the kubelet's
    /// loop device.
    pub fn verdict_without(&self, expected: impl Fn(&DeviceUser) -> bool) -> DeviceUse {
        if self.users.iter().any(|user| !expected(user)) {
            DeviceUse::InUse
        } else if self.blind.is_empty() {
            DeviceUse::Free
        } else {
            DeviceUse::Unknown
        }
    }
}

impl OpenersReport {
    /// Whether a process has the device open, other than by a ticket's loop device: that one only reads, beside whoever
    /// the volume is attached for.
    pub fn is_open_beside_tickets(&self) -> bool {
        let tickets: BTreeSet<DevT> =
            self.users.iter().filter_map(DeviceUser::ticket_loop).map(|(_, dev)| dev).collect();
        let is_one = |user: &DeviceUser| matches!(user, DeviceUser::Process(process) if !tickets.contains(&process.dev));
        self.users.iter().any(is_one)
    }
}

impl fmt::Display for OpenersReport {
    /// Users first, then what could not be read: for an error message.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let users = self.users.iter().map(ToString::to_string);
        let blind = self.blind.iter().take(3).map(|blind| format!("could not look at {blind}"));
        let all: Vec<String> = users.chain(blind).collect();
        if all.is_empty() { f.write_str("nobody") } else { f.write_str(&all.join("; ")) }
    }
}

/// Finds users of devices. Cheap to clone; clones share their searches.
#[derive(Debug, Clone)]
pub struct Openers {
    places: Places,
    workers: Workers,
    loops: Scans<LoopTable>,
    processes: Scans<Snapshot>,
}

/// What block devices alone show, and which of them count as the one that was asked for.
struct Blocks {
    devices: BTreeSet<DevT>,
    report: OpenersReport,
}

impl Blocks {
    fn with(mut self, places: &Places, loops: &LoopTable, processes: &Snapshot) -> Found {
        let over: Vec<LoopUse> = loops.over(&self.devices).collect();
        self.devices.extend(over.iter().map(|one| one.dev));
        self.report.users.extend(over.into_iter().map(DeviceUser::Loop));
        self.report.blind.extend(loops.blind.iter().cloned());
        add_swap(places, &self.devices, &mut self.report);
        self.report.users.extend(processes.users_of(&self.devices));
        self.report.blind.extend(processes.blind.iter().cloned());
        Found { report: self.report, blind_to_mounts: processes.blind_to_mounts.clone() }
    }
}

/// A report, and, apart from it, which mounts could not be read.
struct Found {
    report: OpenersReport,
    blind_to_mounts: Vec<Blind>,
}

impl Found {
    fn whole(mut self) -> OpenersReport {
        self.report.blind.extend(self.blind_to_mounts);
        self.report
    }
}

/// Where to search, and how to recognise a block device.
#[derive(Debug, Clone)]
struct Places {
    proc_root: PathBuf,
    dev_root: PathBuf,
    sysfs: Sysfs,
    /// Device number of the block device at a path; a test replaces it, since it has no block devices.
    rdev: fn(&Path) -> io::Result<Option<DevT>>,
    /// Opens a block device exclusively for a moment.
    claim: fn(&Self, DevT) -> Claim,
}

impl Openers {
    /// Searches in `/proc`, `/dev` and the given sysfs.
    pub fn new(sysfs: Sysfs, workers: Workers) -> Self {
        Self::at("/proc", "/dev", sysfs, workers)
    }

    /// Searches in other trees, for tests.
    pub fn at(
        proc_root: impl Into<PathBuf>,
        dev_root: impl Into<PathBuf>,
        sysfs: Sysfs,
        workers: Workers,
    ) -> Self {
        let (proc_root, dev_root) = (proc_root.into(), dev_root.into());
        let stuck = StuckCalls::default();
        Self {
            loops: Scans::new("look at all loop devices", &stuck, loops::scan),
            processes: Scans::new("look at all processes", &stuck, processes::scan),
            places: Places { proc_root, dev_root, sysfs, rdev: stat::block_rdev, claim: claim::ask },
            workers,
        }
    }

    /// Finds users of one device, at most for `deadline`. When the deadline passes, the report says so.
    /// Parallel calls share their search of processes and loop devices.
    pub async fn look(&self, dev: DevT, deadline: Duration) -> OpenersReport {
        self.find(dev, deadline).await.whole()
    }

    async fn find(&self, dev: DevT, deadline: Duration) -> Found {
        let this = self.clone();
        let key = format!("openers of {dev}");
        let blocks = self.workers.run(&key, deadline, move || this.look_at_blocks(dev));
        let loops = self.loops.fresh(&self.places, deadline);
        let (blocks, loops, processes) =
            tokio::join!(blocks, loops, self.processes.fresh(&self.places, deadline));
        let unseen = |what: &str, error: WorkError| Blind { what: what.to_owned(), why: error.to_string() };
        let (loops, no_loops) = match loops {
            Ok(loops) => (loops, None),
            Err(error) => (Arc::default(), Some(unseen("loop devices", error))),
        };
        let (processes, no_processes) = match processes {
            Ok(processes) => (processes, None),
            Err(error) => (Arc::default(), Some(unseen("processes", error))),
        };
        let mut found = match blocks {
            Ok(blocks) => blocks.with(&self.places, &loops, &processes),
            Err(error) => {
                let report = OpenersReport { dev, users: Vec::new(), blind: vec![unseen(&key, error)] };
                Found { report, blind_to_mounts: Vec::new() }
            }
        };
        found.report.blind.extend(no_loops.into_iter().chain(no_processes));
        found
    }

    /// As [`Openers::look`], for a caller that is about to take the device away: it also finds what has
    /// claimed the device inside the kernel, and a process counts only once it has had the device open for
    /// half a second. Its claim of a moment would make a mount fail that comes just then: never use it on a
    /// device that is to stay.
    pub async fn look_to_end(&self, dev: DevT, deadline: Duration) -> OpenersReport {
        let (end, mut first_seen) = (Instant::now() + deadline, None);
        let left = || end.saturating_duration_since(Instant::now());
        loop {
            let mut found = self.find(dev, left()).await;
            if found.report.users.is_empty() && self.add_claim(dev, left(), &mut found.report).await {
                // A file system that is mounted anywhere would have claimed it.
                found.blind_to_mounts.clear();
            }
            let report = found.whole();
            let passing = !report.users.is_empty() && report.users.iter().all(DeviceUser::may_pass);
            let now = Instant::now();
            let settled = *first_seen.get_or_insert(now) + PASSING;
            if !passing || now >= settled.min(end) {
                return report;
            }
            sleep(AGAIN).await;
        }
    }

    /// Adds what has claimed the device; true where certainly nobody has.
    async fn add_claim(&self, dev: DevT, deadline: Duration, report: &mut OpenersReport) -> bool {
        let places = self.places.clone();
        let key = format!("claim on {dev}");
        let work = move || {
            let claim = (places.claim)(&places, dev);
            let by = if claim == Claim::Somebody { claim::claimants(&places, dev) } else { Vec::new() };
            (claim, by)
        };
        match self.workers.run(&key, deadline, work).await {
            Ok((Claim::Nobody | Claim::Gone, _)) => return true,
            Ok((Claim::Somebody, by)) => report.users.push(DeviceUser::Claim { dev, by }),
            Ok((Claim::Unknown(why), _)) => report.blind.push(Blind { what: key, why }),
            Err(error) => report.blind.push(Blind { what: key, why: error.to_string() }),
        }
        false
    }

    /// Loop devices over one device, for the readiness check, from a search that began at `since` or later.
    ///
    /// # Errors
    /// [`WorkError`] when the search did not end in time. The second part lists what could not be read.
    pub async fn loops(
        &self,
        dev: DevT,
        since: Instant,
        deadline: Duration,
    ) -> Result<(Vec<LoopUse>, Vec<Blind>), WorkError> {
        let table = self.loops.since(&self.places, since.into_std(), deadline).await?;
        Ok((table.over(&BTreeSet::from([dev])).collect(), table.blind.clone()))
    }

    /// As [`Openers::look`], on the calling thread.
    pub fn look_blocking(&self, dev: DevT) -> OpenersReport {
        let (loops, processes) = (self.loops.alone(&self.places), self.processes.alone(&self.places));
        self.look_at_blocks(dev).with(&self.places, &loops, &processes).whole()
    }

    /// Partitions and holders of the device.
    fn look_at_blocks(&self, dev: DevT) -> Blocks {
        let mut report = OpenersReport { dev, users: Vec::new(), blind: Vec::new() };
        let mut devices = BTreeSet::from([dev]);
        self.add_holders(&mut devices, &mut report);
        Blocks { devices, report }
    }

    /// Follows partitions and holders upwards: whatever uses one of them uses the device too.
    fn add_holders(&self, devices: &mut BTreeSet<DevT>, report: &mut OpenersReport) {
        let mut unlisted: Vec<DevT> = devices.iter().copied().collect();
        while let Some(dev) = unlisted.pop() {
            let dir = self.places.sysfs.root().join("dev/block").join(dev.to_string());
            let (partitions, unreadable) = sysfs::partitions(&dir);
            report.blind.extend(unreadable.into_iter().map(Blind::from));
            unlisted.extend(partitions.into_iter().filter(|dev| devices.insert(*dev)));
            let (holders, unreadable) = holders_in(&self.places.sysfs, &dir.join("holders"));
            report.blind.extend(unreadable.into_iter().map(Blind::from));
            for holder in holders {
                match holder.dev {
                    Some(dev) => unlisted.extend(devices.insert(dev).then_some(dev)),
                    None => report.blind.push(Blind {
                        what: format!("holder {}", holder.name),
                        why: "it has no device number".to_owned(),
                    }),
                }
                report.users.push(DeviceUser::Holder(holder));
            }
        }
    }
}

fn add_swap(places: &Places, devices: &BTreeSet<DevT>, report: &mut OpenersReport) {
    let path = places.proc_root.join("swaps");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        // A kernel without swap has no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return report.blind.push(Blind::at(&path, error)),
    };
    let paths = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    for path in paths.filter(|path| path.starts_with("/dev/")) {
        let rdev = (places.rdev)(Path::new(path)).ok().flatten();
        if let Some(dev) = rdev.filter(|dev| devices.contains(dev)) {
            report.users.push(DeviceUser::Swap { dev });
        }
    }
}

/// What is on a device according to a `holders` directory.
pub(crate) fn holders_in(sysfs: &Sysfs, dir: &Path) -> (Vec<Holder>, Vec<Unreadable>) {
    sysfs::read_holders(sysfs.root(), dir)
}

impl From<Unreadable> for Blind {
    fn from(unreadable: Unreadable) -> Self {
        Self { what: unreadable.path.display().to_string(), why: unreadable.error }
    }
}

#[cfg(test)]
mod tests;
