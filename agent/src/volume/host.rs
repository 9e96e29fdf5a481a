//! What operations ask of the machine: one trait, so that tests can run them against a kernel in memory.
//!
//! Comes in: names (NQN, device number). Goes out: what Linux says, as `cleat_host` reports it; `linux.rs` is
//! the real one.
//!
//! Always holds: every call ends by a deadline of its own, and "could not be read" is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cleat_host::fabrics::{ExactController, Fabrics, Pending, ResetEnd, ResetError};
use cleat_host::openers::HeldDescriptor;
use cleat_host::reach::Reached;
use cleat_host::readiness::{Expectation, ReadyFacts, Unready};
use cleat_host::reservations::Reservations;
use cleat_host::sockets::SocketsByPortal;
use cleat_host::sysfs::{SubsystemView, SysfsError, Topology};
use cleat_host::tcp::Unacknowledged;
use cleat_host::{DevT, Portal, SubsystemNqn};
use tokio::time::Instant;

use crate::volume::count::WriteCounters;

/// A boxed future, so that the trait stays readable.
pub type Later<'a, T> = Pending<'a, T>;

/// Why the machine could not answer or act.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct HostError {
    what: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl HostError {
    /// An error of what was being done and its cause.
    pub fn new(what: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { what: what.into(), source: source.into() }
    }

    /// The error with all its causes, on one line.
    pub fn line(&self) -> String {
        cleat_runtime::exit::Causes(self).to_string()
    }
}

/// The verdict of the readiness predicate.
pub type Checked = Result<ReadyFacts, Unready>;

/// What is at a target path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AtTarget {
    /// No file of that name exists.
    Nothing,
    /// An empty plain file with nothing mounted on it: left by an earlier publish, or made for it.
    Placeholder,
    /// A mounted block device, with its number.
    Device(DevT),
    /// A device node with nothing mounted on it: left by a crash. Its number may be another disk's by now.
    Leftover(DevT),
    /// Something else, as text for a person.
    Other(String),
}

/// The machine, as far as operations on volumes need it.
pub trait Host: Send + Sync + 'static {
    /// Connects and deletes controllers.
    fn fabrics(&self) -> &dyn Fabrics;

    /// Whether anything at a portal's address answers to TCP within `patience`. Where the machine has no
    /// network of its own, every portal answers.
    fn reach(&self, _portal: Portal, _patience: Duration) -> Later<'_, Reached> {
        Box::pin(std::future::ready(Reached::Answers))
    }

    /// How often retransmission timers of the kernel's TCP have fired. By default none ever has.
    fn timeouts(&self) -> Later<'_, Result<u64, HostError>> {
        Box::pin(std::future::ready(Ok(0)))
    }

    /// Which addresses of these portals have not acknowledged what was sent there again. By default all have.
    fn unacknowledged<'a>(
        &'a self,
        _portals: &'a BTreeSet<SocketAddr>,
    ) -> Later<'a, Result<BTreeMap<IpAddr, Unacknowledged>, HostError>> {
        Box::pin(std::future::ready(Ok(BTreeMap::new())))
    }

    /// Remembers over which interface an address is reached, while it is. By default there is none.
    fn learn_link(&self, _address: IpAddr) {}

    /// What the interface towards an address says of it, if that is that nothing gets through.
    fn link_trouble(&self, _address: IpAddr) -> Option<String> {
        None
    }

    /// Resets a live controller and waits for the kernel's answer at most for `deadline`. By default there is
    /// none to reset.
    fn reset<'a>(
        &'a self,
        _target: &'a ExactController,
        _deadline: Duration,
    ) -> Later<'a, Result<ResetEnd, ResetError>> {
        Box::pin(std::future::ready(Ok(ResetEnd::Gone)))
    }

    /// The kernel's TCP connections, by the portal that they lead to. By default none can be seen.
    fn sockets(&self) -> Later<'_, Result<SocketsByPortal, HostError>> {
        Box::pin(std::future::ready(Ok(SocketsByPortal::new())))
    }

    /// Registers with namespaces and reserves them.
    fn reservations(&self) -> &dyn Reservations;

    /// Reads all of sysfs that has to do with NVMe.
    fn topology(&self) -> Later<'_, Result<Topology, SysfsError>>;

    /// Reads what belongs to one subsystem.
    fn view<'a>(&'a self, nqn: &'a SubsystemNqn) -> Later<'a, Result<SubsystemView, SysfsError>>;

    /// What the device of a subsystem and its paths have counted: for who asks many times a second. By default from a view.
    fn write_counters<'a>(&'a self, nqn: &'a SubsystemNqn) -> Later<'a, Result<WriteCounters, SysfsError>> {
        Box::pin(async { Ok(WriteCounters::of(&self.view(nqn).await?)) })
    }

    /// Judges the whole predicate, with direct reads, within `deadline`.
    fn check<'a>(
        &'a self,
        expectation: &'a Expectation,
        deadline: Duration,
    ) -> Later<'a, Result<Checked, HostError>>;

    /// As [`Host::check`], for one of many volumes that are judged together: what needs a search of the whole
    /// machine may come from a search for another one, at `since` or later. By default it searches each time.
    fn check_since<'a>(
        &'a self,
        expectation: &'a Expectation,
        _since: Instant,
        deadline: Duration,
    ) -> Later<'a, Result<Checked, HostError>> {
        self.check(expectation, deadline)
    }

    /// Who uses these devices: mounts in every mount namespace, open descriptors of every process, holders,
    /// loop devices; each as text for a person.
    fn users<'a>(&'a self, view: &'a SubsystemView) -> Later<'a, Result<Vec<String>, HostError>>;

    /// As [`Host::users`], for a caller that is about to take the devices away: with what has claimed them
    /// inside the kernel, and without processes that only open every device for a moment.
    fn users_to_end<'a>(&'a self, view: &'a SubsystemView) -> Later<'a, Result<Vec<String>, HostError>> {
        self.users(view)
    }

    /// Ends who has these devices open by tickets' loop devices, and nobody else, at most until then; who that was, each as
    /// text for a person, once no such loop device is left. By default there are none.
    fn cut_tickets<'a>(
        &'a self,
        _view: &'a SubsystemView,
        _until: Instant,
    ) -> Later<'a, Result<Vec<String>, HostError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// Who uses a device by its number, even where no disk has that number any more. By default nobody does.
    fn users_of_device(&self, _dev: DevT) -> Later<'_, Result<Vec<String>, HostError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    /// What the processes of these pods have open, by their UIDs, and whether all processes could be read. By default nobody
    /// has anything open.
    fn held_by<'a>(
        &'a self,
        _pods: &'a BTreeSet<String>,
    ) -> Later<'a, Result<(Vec<HeldDescriptor>, bool), HostError>> {
        Box::pin(std::future::ready(Ok((Vec::new(), true))))
    }

    /// Whether a process has one of these devices open, other than by a ticket's loop device. By default each user is one.
    fn is_open<'a>(&'a self, view: &'a SubsystemView) -> Later<'a, Result<bool, HostError>> {
        Box::pin(async { Ok(!self.users(view).await?.is_empty()) })
    }

    /// Sets how long a multipath head stays without a path; with zero it goes with its last path. Returns the
    /// time that was set before; `None` where the kernel has no such time, which is the default.
    fn stay_without_paths(
        &self,
        _head: DevT,
        _stay: Duration,
    ) -> Later<'_, Result<Option<Duration>, HostError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Flushes a device within `deadline`.
    fn flush(&self, dev: DevT, deadline: Duration) -> Later<'_, Result<(), HostError>>;

    /// Where a device is mounted, in this process's mount namespace.
    fn publications(&self, dev: DevT) -> Later<'_, Result<Vec<PathBuf>, HostError>>;

    /// The directory that targets have to be in; `None` on a machine that publishes anywhere, such as one in
    /// memory.
    fn kubelet_dir(&self) -> Option<&Path> {
        None
    }

    /// What is at a path.
    fn at_target<'a>(&'a self, target: &'a Path) -> Later<'a, Result<AtTarget, HostError>>;

    /// The name of the block device that has this number now; `None` where none has, which is the default.
    fn device_name(&self, _dev: DevT) -> Later<'_, Result<Option<String>, HostError>> {
        Box::pin(async { Ok(None) })
    }

    /// Bind-mounts the node of a device at a path and verifies it there; with `read_only` the mount says so.
    fn publish<'a>(
        &'a self,
        node: &'a Path,
        dev: DevT,
        target: &'a Path,
        read_only: bool,
    ) -> Later<'a, Result<(), HostError>>;

    /// Whether the mount at a path says that it is read-only.
    fn is_read_only<'a>(&'a self, target: &'a Path) -> Later<'a, Result<bool, HostError>>;

    /// Unmounts the device at a path, removes the file or leftover node there, and verifies that they are
    /// gone. Anything else is left alone.
    fn unpublish<'a>(&'a self, target: &'a Path) -> Later<'a, Result<(), HostError>>;
}
