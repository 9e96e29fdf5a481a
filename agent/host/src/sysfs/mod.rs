//! The NVMe topology as sysfs shows it.
//!
//! Comes in: the root of a sysfs tree (`/sys`, or a tree made by a test). Goes out: a [`Topology`], plain
//! values with public fields, taken at one moment.
//!
//! Always holds:
//! - Nothing is cached: each reading asks the kernel again.
//! - An entry that vanishes while it is read is left out, as if the reading had come a moment later. An entry
//!   that exists but cannot be read is listed in [`Topology::unreadable`], never left out in silence.
//! - Only attributes that the kernel answers from memory are read. (`nuse`, since 6.8, asks the target and
//!   can block.)

mod attribute;
mod controller;
mod counters;
mod namespace;
mod pinned;
mod shared_views;
mod topology;
mod unreadable;

pub(crate) use attribute::{Attribute, list};
pub use controller::{Address, Controller, ControllerState, Incarnation};
pub use counters::{CounterFiles, CountersRead};
pub use namespace::{AnaState, Holder, HolderKind, IoCounters, Namespace, NamespaceKind, NamespacePath};
pub(crate) use pinned::PinnedDir;
pub use shared_views::SharedViews;
pub use topology::{NativeMultipath, SubsystemNamespace, SubsystemView, SysfsError, Topology};
pub use unreadable::Unreadable;

use std::path::PathBuf;
use std::time::Duration;

use crate::name::{ControllerName, SubsystemNqn};
use crate::work::{self, WorkError};

/// Where sysfs is. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at("/sys")
    }
}

impl Sysfs {
    /// A sysfs tree at `root`; [`Sysfs::default`] is the host's at `/sys`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root of the tree, usually `/sys`.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }

    /// Reads the whole topology on the calling thread. A few reads per controller; no device I/O.
    ///
    /// # Errors
    /// [`SysfsError`] when the tree itself cannot be listed. A host without any NVMe device, or without the
    /// `nvme-core` module, has an empty topology.
    pub fn read_blocking(&self) -> Result<Topology, SysfsError> {
        topology::read(&self.root, topology::Scope::All)
    }

    /// Reads the whole topology on a thread of its own.
    ///
    /// # Errors
    /// As [`Sysfs::read_blocking`], and [`SysfsError::Work`] past the deadline.
    pub async fn read(&self, deadline: Duration) -> Result<Topology, SysfsError> {
        let sysfs = self.clone();
        work::once("read sysfs", deadline, move || sysfs.read_blocking()).await?
    }

    /// Reads what belongs to one subsystem NQN: the same as [`Topology::view`] of the whole topology, with
    /// far fewer reads.
    ///
    /// # Errors
    /// As [`Sysfs::read`].
    pub async fn view(&self, nqn: &SubsystemNqn, deadline: Duration) -> Result<SubsystemView, SysfsError> {
        let (sysfs, nqn) = (self.clone(), nqn.clone());
        work::once("read sysfs", deadline, move || sysfs.view_blocking(&nqn)).await?
    }

    /// As [`Sysfs::view`], on the calling thread.
    ///
    /// # Errors
    /// As [`Sysfs::read_blocking`].
    pub fn view_blocking(&self, nqn: &SubsystemNqn) -> Result<SubsystemView, SysfsError> {
        Ok(self.read_among(std::slice::from_ref(nqn))?.view(nqn))
    }

    /// Reads what belongs to these subsystems, and whose all controllers are.
    fn read_among(&self, nqns: &[SubsystemNqn]) -> Result<Topology, SysfsError> {
        topology::read(&self.root, topology::Scope::Among(nqns))
    }

    /// What is connected of a subsystem: as [`Sysfs::view`], without controllers that have never been live.
    /// Cheaper still, above all with the name of its directory from an earlier reading.
    pub(crate) async fn connected_view(
        &self,
        nqn: &SubsystemNqn,
        dir: Option<String>,
        deadline: Duration,
    ) -> Result<SubsystemView, SysfsError> {
        let (sysfs, nqn) = (self.clone(), nqn.clone());
        let work = move || {
            let scope = topology::Scope::Linked(&nqn, dir.as_deref());
            Ok(topology::read(&sysfs.root, scope)?.view(&nqn))
        };
        work::once("read sysfs", deadline, work).await?
    }

    /// Reads one controller; `None` when it does not exist. The second part lists what could not be read of
    /// it.
    pub(crate) fn controller_blocking(&self, name: &ControllerName) -> (Option<Controller>, Vec<Unreadable>) {
        let mut unreadable = Vec::new();
        let class = self.root.join("class/nvme");
        (controller::read(&class, name.clone(), None, &mut unreadable), unreadable)
    }

    /// Path of a controller's directory.
    pub(crate) fn controller_dir(&self, name: &ControllerName) -> PathBuf {
        self.root.join("class/nvme").join(name.as_str())
    }
}

/// Block devices that a `holders` directory names, and what could not be read of them.
pub(crate) fn read_holders(root: &std::path::Path, dir: &std::path::Path) -> (Vec<Holder>, Vec<Unreadable>) {
    let mut unreadable = Vec::new();
    (namespace::read_holders(root, dir, &mut unreadable), unreadable)
}

/// Numbers of a block device's partitions, and what could not be read of them.
pub(crate) fn partitions(dir: &std::path::Path) -> (Vec<crate::name::DevT>, Vec<Unreadable>) {
    let mut unreadable = Vec::new();
    let partitions = namespace::read_partitions(dir, &mut unreadable);
    (partitions.into_iter().map(|(_, dev)| dev).collect(), unreadable)
}

impl From<WorkError> for SysfsError {
    fn from(source: WorkError) -> Self {
        Self::Work { source }
    }
}

#[cfg(test)]
mod tests;
