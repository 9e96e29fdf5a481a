//! The real machine.
//!
//! Comes in: names. Goes out: what `cleat_host` reports. Always holds: one reading of all of sysfs serves
//! everybody who asked before it began.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cleat_host::devnode::{self, DevNodeError};
use cleat_host::fabrics::{self, ExactController, Fabrics, ResetEnd, ResetError};
use cleat_host::links::Links;
use cleat_host::mounts::{MountError, Mounts, TargetState};
use cleat_host::openers::{DeviceUser, HeldDescriptor, Openers, plain};
use cleat_host::reach::{self, Reached};
use cleat_host::readiness::{CheckError, Checker, Expectation};
use cleat_host::reservations::{BlockReservations, Reservations};
use cleat_host::sockets::{self, SocketsByPortal};
use cleat_host::sysfs::{CounterFiles, SharedViews, SubsystemView, Sysfs, SysfsError, Topology};
use cleat_host::tcp::{self, Unacknowledged};
use cleat_host::work::{self, Workers};
use cleat_host::{DevT, Portal, SubsystemNqn, blockio, head};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::args::Roots;
use crate::volume::count::WriteCounters;
use crate::volume::host::{AtTarget, Checked, Host, HostError, Later};
use crate::volume::observe::judge::device;

/// Longest that one reading of sysfs may take: it does no device I/O, so past this something is badly wrong.
const LOOK: Duration = Duration::from_secs(10);
/// Longest that a search for users may take: it reads every descriptor of every process.
const USERS: Duration = Duration::from_secs(20);
/// Most users, and most things that could not be read, that an answer names.
const NAMED: usize = 64;
/// Longest that a detach waits for a head's attribute, which is a number in memory.
const HEAD: Duration = Duration::from_secs(2);
/// Longest that a look at the kernel's TCP connections may take.
const CONNECTIONS: Duration = Duration::from_secs(2);
/// For how long the files of a device's counters are read before the device is looked for again: a path may have come.
const COUNTER_FILES: Duration = Duration::from_secs(2);
/// Longest that one mount or unmount may take.
const MOUNT: Duration = Duration::from_secs(20);

/// The machine that this process runs on.
#[derive(Debug)]
pub struct Linux {
    fabrics: Arc<dyn Fabrics>,
    sysfs: Sysfs,
    views: SharedViews,
    /// The last reading and when it began. The task that held the lock may have read it for those that
    /// waited.
    last: Mutex<Option<(Instant, Arc<Topology>)>>,
    /// The counters that are being read, and since when.
    counting: std::sync::Mutex<BTreeMap<SubsystemNqn, (Instant, Arc<CounterFiles>)>>,
    workers: Workers,
    openers: Openers,
    checker: Checker,
    mounts: Mounts,
    reservations: BlockReservations,
    dev_root: PathBuf,
    links: Links,
    proc: PathBuf,
}

impl Linux {
    /// The machine with its trees at `roots`; volumes are published below `kubelet_dir` only.
    pub fn new(fabrics: Arc<dyn Fabrics>, roots: &Roots, kubelet_dir: &Path) -> Self {
        let sysfs = Sysfs::at(&roots.sysfs);
        let workers = Workers::new();
        let openers = Openers::at(&roots.proc, &roots.dev, sysfs.clone(), workers.clone());
        let checker = Checker::at(&roots.dev, sysfs.clone(), workers.clone(), openers.clone());
        let mounts = Mounts::new(workers.clone(), kubelet_dir);
        let reservations = BlockReservations::at(&roots.dev, sysfs.clone(), workers.clone());
        let (dev_root, proc) = (roots.dev.clone(), roots.proc.clone());
        Self {
            fabrics,
            views: SharedViews::of(sysfs.clone()),
            sysfs,
            last: Mutex::default(),
            counting: Default::default(),
            workers,
            openers,
            checker,
            mounts,
            reservations,
            dev_root,
            links: Links::at(&roots.sysfs, &roots.proc),
            proc,
        }
    }

    /// A reading that began after this call.
    async fn fresh(&self) -> Result<Arc<Topology>, SysfsError> {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((began, topology)) = &*last
            && *began >= asked
        {
            return Ok(topology.clone());
        }
        let began = Instant::now();
        let topology = Arc::new(self.sysfs.read(LOOK).await?);
        *last = Some((began, topology.clone()));
        Ok(topology)
    }

    fn counter_files(&self, nqn: &SubsystemNqn) -> Option<Arc<CounterFiles>> {
        let mut counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        counting.retain(|_, (since, _)| since.elapsed() < COUNTER_FILES);
        counting.get(nqn).map(|(_, files)| files.clone())
    }

    /// Looks for the device, and for its counters from now on.
    async fn counters_by_view(&self, nqn: &SubsystemNqn) -> Result<WriteCounters, SysfsError> {
        let (sysfs, wanted) = (self.sysfs.clone(), nqn.clone());
        let look = move || {
            let view = sysfs.view_blocking(&wanted)?;
            let files = device(&view).and_then(|device| sysfs.counter_files(&view, device));
            Ok::<_, SysfsError>((WriteCounters::of(&view), files))
        };
        let (counters, files) = work::once("look at counters", LOOK, look).await??;
        if let Some(files) = files {
            let mut counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
            counting.insert(nqn.clone(), (Instant::now(), Arc::new(files)));
        }
        Ok(counters)
    }

    async fn users_of(&self, view: &SubsystemView, to_end: bool) -> Result<Vec<String>, HostError> {
        let mut users = Vec::new();
        let mut blind = Vec::new();
        for namespace in &view.namespaces {
            let report = match to_end {
                true => self.openers.look_to_end(namespace.dev, USERS).await,
                false => self.openers.look(namespace.dev, USERS).await,
            };
            users.extend(report.users.iter().map(|user| plain(&describe(user))));
            blind.extend(report.blind.iter().map(|blind| plain(&blind.to_string())));
        }
        users.sort_unstable();
        users.dedup();
        if users.is_empty() && !blind.is_empty() {
            let what = format!("could not look for users of {}", view.nqn);
            return Err(HostError::new(what, at_most(blind, NAMED, "more").join("; ")));
        }
        Ok(at_most(users, NAMED, "other users"))
    }
}

/// The first `most` of them, and the number of the rest: an answer has to fit into a message, whatever runs
/// on the node.
fn at_most(mut all: Vec<String>, most: usize, rest: &str) -> Vec<String> {
    let left = all.len().saturating_sub(most);
    all.truncate(most);
    all.extend((left > 0).then(|| format!("{left} {rest}")));
    all
}

fn describe(user: &DeviceUser) -> String {
    match user {
        DeviceUser::NodeBind { mount_point, .. } => format!("still published at {}", mount_point.display()),
        other => other.to_string(),
    }
}

fn device_at(path: &Path) -> Option<DevT> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    metadata.file_type().is_block_device().then(|| DevT::from_raw(metadata.rdev()))
}

impl Host for Linux {
    fn fabrics(&self) -> &dyn Fabrics {
        self.fabrics.as_ref()
    }

    fn reach(&self, portal: Portal, patience: Duration) -> Later<'_, Reached> {
        Box::pin(reach::reach(portal, patience))
    }

    fn timeouts(&self) -> Later<'_, Result<u64, HostError>> {
        // A sum that the kernel keeps: no thread is worth its while.
        let counted = tcp::timeouts(&self.proc);
        let what = "cannot count the timeouts of TCP";
        Box::pin(std::future::ready(counted.map_err(|error| HostError::new(what, error))))
    }

    fn unacknowledged<'a>(
        &'a self,
        portals: &'a BTreeSet<SocketAddr>,
    ) -> Later<'a, Result<BTreeMap<IpAddr, Unacknowledged>, HostError>> {
        let (proc, portals) = (self.proc.clone(), portals.clone());
        Box::pin(async move {
            let what = || "cannot read the connections of TCP";
            let look = move || tcp::unacknowledged(&proc, &portals);
            let looked = work::once("read connections", CONNECTIONS, look).await;
            looked
                .map_err(|error| HostError::new(what(), error))?
                .map_err(|error| HostError::new(what(), error))
        })
    }

    fn learn_link(&self, address: IpAddr) {
        self.links.learn(address);
    }

    fn link_trouble(&self, address: IpAddr) -> Option<String> {
        self.links.trouble(address)
    }

    fn reset<'a>(
        &'a self,
        target: &'a ExactController,
        deadline: Duration,
    ) -> Later<'a, Result<ResetEnd, ResetError>> {
        Box::pin(fabrics::reset(&self.workers, &self.sysfs, target, deadline))
    }

    fn sockets(&self) -> Later<'_, Result<SocketsByPortal, HostError>> {
        Box::pin(async {
            let proc = self.proc.clone();
            let read = work::once("read sockets", LOOK, move || sockets::established(&proc)).await;
            let what = "cannot read the kernel's TCP connections";
            read.map_err(|error| HostError::new(what, error))?.map_err(|error| HostError::new(what, error))
        })
    }

    fn reservations(&self) -> &dyn Reservations {
        &self.reservations
    }

    fn topology(&self) -> Later<'_, Result<Topology, SysfsError>> {
        Box::pin(async { Ok(self.fresh().await?.as_ref().clone()) })
    }

    fn view<'a>(&'a self, nqn: &'a SubsystemNqn) -> Later<'a, Result<SubsystemView, SysfsError>> {
        Box::pin(self.views.view(nqn, LOOK))
    }

    fn write_counters<'a>(&'a self, nqn: &'a SubsystemNqn) -> Later<'a, Result<WriteCounters, SysfsError>> {
        Box::pin(async move {
            if let Some(files) = self.counter_files(nqn)
                && let Some(read) = work::once("read counters", LOOK, move || files.read()).await?
            {
                return Ok(WriteCounters::read(read));
            }
            self.counters_by_view(nqn).await
        })
    }

    fn check<'a>(
        &'a self,
        expectation: &'a Expectation,
        deadline: Duration,
    ) -> Later<'a, Result<Checked, HostError>> {
        self.check_since(expectation, Instant::now(), deadline)
    }

    fn check_since<'a>(
        &'a self,
        expectation: &'a Expectation,
        since: Instant,
        deadline: Duration,
    ) -> Later<'a, Result<Checked, HostError>> {
        Box::pin(async move {
            match self.checker.check_since(expectation, since, deadline).await {
                Ok(facts) => Ok(Ok(facts)),
                Err(CheckError::Unready(unready)) => Ok(Err(unready)),
                Err(CheckError::Sysfs(error)) => {
                    Err(HostError::new(format!("cannot check {}", expectation.subsystem), error))
                }
            }
        })
    }

    fn users<'a>(&'a self, view: &'a SubsystemView) -> Later<'a, Result<Vec<String>, HostError>> {
        Box::pin(self.users_of(view, false))
    }

    fn users_to_end<'a>(&'a self, view: &'a SubsystemView) -> Later<'a, Result<Vec<String>, HostError>> {
        Box::pin(self.users_of(view, true))
    }

    fn cut_tickets<'a>(
        &'a self,
        view: &'a SubsystemView,
        until: Instant,
    ) -> Later<'a, Result<Vec<String>, HostError>> {
        Box::pin(async move {
            let mut ended = Vec::new();
            for namespace in &view.namespaces {
                let what = || format!("cannot cut tickets off from {}", namespace.name);
                let cut = self.openers.cut_tickets(namespace.dev, None, until).await;
                ended.extend(cut.map_err(|error| HostError::new(what(), error))?);
            }
            Ok(at_most(ended, NAMED, "others"))
        })
    }

    fn held_by<'a>(
        &'a self,
        pods: &'a BTreeSet<String>,
    ) -> Later<'a, Result<(Vec<HeldDescriptor>, bool), HostError>> {
        Box::pin(async move {
            let looked = self.openers.held_by(pods, Instant::now(), USERS).await;
            let (held, blind) =
                looked.map_err(|error| HostError::new("could not look at what pods have open", error))?;
            Ok((held, blind.is_empty()))
        })
    }

    fn is_open<'a>(&'a self, view: &'a SubsystemView) -> Later<'a, Result<bool, HostError>> {
        Box::pin(async move {
            for namespace in &view.namespaces {
                let report = self.openers.look(namespace.dev, USERS).await;
                // The kubelet's loop and the nodes that are bound for a pod are there before anybody opens them.
                if report.is_open_beside_tickets() {
                    return Ok(true);
                }
                if !report.blind.is_empty() {
                    let what = format!("could not look for who has {} open", view.nqn);
                    let blind = report.blind.iter().map(ToString::to_string).collect();
                    return Err(HostError::new(what, at_most(blind, NAMED, "more").join("; ")));
                }
            }
            Ok(false)
        })
    }

    fn users_of_device(&self, dev: DevT) -> Later<'_, Result<Vec<String>, HostError>> {
        Box::pin(async move {
            let report = self.openers.look(dev, USERS).await;
            let users: Vec<String> = report.users.iter().map(describe).collect();
            if users.is_empty() && !report.blind.is_empty() {
                let blind = report.blind.iter().map(ToString::to_string).collect();
                let what = format!("could not look for users of block device {dev}");
                return Err(HostError::new(what, at_most(blind, NAMED, "more").join("; ")));
            }
            Ok(at_most(users, NAMED, "other users"))
        })
    }

    fn stay_without_paths(
        &self,
        head: DevT,
        stay: Duration,
    ) -> Later<'_, Result<Option<Duration>, HostError>> {
        Box::pin(async move {
            let done = head::stay_without_paths(&self.workers, &self.sysfs, head, stay, HEAD).await;
            let what = || match stay.is_zero() {
                true => "the multipath head may outlive its paths",
                false => "the multipath head may go with its last path",
            };
            done.map_err(|error| HostError::new(what(), error))
        })
    }

    fn flush(&self, dev: DevT, deadline: Duration) -> Later<'_, Result<(), HostError>> {
        Box::pin(async move {
            blockio::flush(&self.workers, &self.sysfs, &self.dev_root, dev, deadline)
                .await
                .map_err(|error| HostError::new("flush", error))
        })
    }

    fn publications(&self, dev: DevT) -> Later<'_, Result<Vec<PathBuf>, HostError>> {
        let mounts = self.mounts.clone();
        let what = move || format!("cannot find where block device {dev} is published");
        Box::pin(async move {
            // Only nodes that are bound from a device file system are examined: a stat elsewhere could ask a
            // server.
            let look = move || {
                let entries = mounts.list()?.into_iter();
                let nodes =
                    entries.filter(|entry| entry.fs_type.ends_with("tmpfs") && entry.root != Path::new("/"));
                let published = nodes.filter(|entry| device_at(&entry.mount_point) == Some(dev));
                Ok::<_, MountError>(published.map(|entry| entry.mount_point).collect())
            };
            let looked = work::once("list mounts", MOUNT, look).await;
            looked
                .map_err(|error| HostError::new(what(), error))?
                .map_err(|error| HostError::new(what(), error))
        })
    }

    fn device_name(&self, dev: DevT) -> Later<'_, Result<Option<String>, HostError>> {
        let (sysfs, dev_root) = (self.sysfs.clone(), self.dev_root.clone());
        Box::pin(async move {
            let what = || format!("cannot tell which block device {dev} is");
            let look = move || match devnode::find(&sysfs, &dev_root, dev) {
                Ok(path) => Ok(Some(path)),
                Err(DevNodeError::NoDevice { .. }) => Ok(None),
                // The device exists, whatever is wrong with its node.
                Err(DevNodeError::Missing { path } | DevNodeError::Wrong { path, .. }) => Ok(Some(path)),
                Err(error @ DevNodeError::Access { .. }) => Err(error),
            };
            let found = work::once("look at device", LOOK, look).await;
            let found = found.map_err(|error| HostError::new(what(), error))?;
            let path = found.map_err(|error| HostError::new(what(), error))?;
            Ok(path.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned())))
        })
    }

    fn kubelet_dir(&self) -> Option<&Path> {
        Some(self.mounts.below())
    }

    fn at_target<'a>(&'a self, target: &'a Path) -> Later<'a, Result<AtTarget, HostError>> {
        Box::pin(async move {
            let found = self.mounts.state(target, MOUNT).await;
            Ok(match found.map_err(|error| HostError::new("target_path", error))? {
                TargetState::Missing => AtTarget::Nothing,
                TargetState::EmptyFile => AtTarget::Placeholder,
                TargetState::Device(dev) => AtTarget::Device(dev),
                TargetState::Node(dev) => AtTarget::Leftover(dev),
                other @ (TargetState::Directory | TargetState::Other(_)) => {
                    AtTarget::Other(other.to_string())
                }
            })
        })
    }

    fn publish<'a>(
        &'a self,
        node: &'a Path,
        dev: DevT,
        target: &'a Path,
        read_only: bool,
    ) -> Later<'a, Result<(), HostError>> {
        Box::pin(async move {
            let done = self.mounts.bind_device(node, dev, target, read_only, MOUNT).await;
            done.map_err(|error| HostError::new(format!("cannot publish {}", node.display()), error))
        })
    }

    fn is_read_only<'a>(&'a self, target: &'a Path) -> Later<'a, Result<bool, HostError>> {
        Box::pin(async move {
            let looked = self.mounts.is_read_only(target, MOUNT).await;
            looked.map_err(|error| HostError::new("target_path", error))
        })
    }

    fn unpublish<'a>(&'a self, target: &'a Path) -> Later<'a, Result<(), HostError>> {
        Box::pin(async move {
            let done = self.mounts.release_device(target, None, MOUNT).await;
            done.map_err(|error| HostError::new(format!("cannot unpublish {}", target.display()), error))
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "linux_tests.rs"]
mod tests;
