//! "Ready" as a predicate: the proof that this node can use a volume, or the first clause that fails.
//!
//! Comes in: a [`SubsystemView`](crate::sysfs::SubsystemView) (what sysfs shows), an [`Expectation`] (what
//! the volume must be) and [`IoFacts`](crate::blockio::IoFacts) (what the device answered). Goes out:
//! [`ReadyFacts`], or [`Unready`] with the clause that fails and what was found.
//!
//! Always holds: [`evaluate`] is pure. It judges the clauses in the order of [`Clause`]. A clause fails where
//! its facts could not be read. A [`Checker`] observes and then calls it.

mod clauses;
mod interest;
mod observe;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub use clauses::{evaluate, select};
pub use observe::{CheckError, Checker};

use crate::name::{ControllerName, DevT, HostNqn, NamespaceIdentity, Portal, SubsystemNqn};

/// What a volume must be to count as ready on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// The NQN of the subsystem that has the volume, and nothing else.
    pub subsystem: SubsystemNqn,
    /// Identity of its namespace, pinned at the first attach. `None` at that first attach: then the
    /// subsystem's one namespace is taken and its identity reported.
    pub identity: Option<NamespaceIdentity>,
    /// Smallest size in bytes; `None` where nobody knows it yet (the check then reports it).
    pub size_bytes: Option<u64>,
    /// How the device will be used. Writable use (`false`) needs a device that is not read-only; read-only
    /// use (`true`) accepts either.
    pub read_only: bool,
    /// This host's NQN: a controller of any other host fails the check.
    pub host_nqn: HostNqn,
    /// The portals that may be used, without repetition.
    pub portals: Vec<Portal>,
    /// How many of them must be live.
    pub paths: PathPolicy,
    /// Kernel names of holders that are expected, such as `dm-3`. A dm-multipath map where native multipath
    /// is off need not be named.
    pub asked_holders: Vec<String>,
}

/// How many portals must have a live path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathPolicy {
    /// One portal is enough.
    Any,
    /// More than half of the portals.
    #[default]
    Quorum,
    /// Every portal that may be used.
    All,
}

impl PathPolicy {
    /// Number of live portals needed of `portals`; at least one.
    pub fn needed(self, portals: usize) -> usize {
        match self {
            Self::Any => 1,
            Self::Quorum => portals / 2 + 1,
            Self::All => portals.max(1),
        }
    }
}

/// The clauses of the predicate, in the order in which they are judged. Their names are stable: they appear
/// in RPC errors, metrics and `cleatctl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clause {
    /// A controller with the subsystem NQN exists, and all of sysfs could be read.
    Subsystem,
    /// The namespace is there, and is the one that was pinned.
    NamespaceIdentity,
    /// Its size is the expected one or larger, and the same in sysfs and on the open device.
    Size,
    /// It is not read-only where it is to be written, in sysfs and on the open device.
    ReadOnly,
    /// Every controller of the subsystem has our own host NQN.
    HostNqn,
    /// Every controller of the subsystem goes to an allowed portal.
    Portal,
    /// Enough portals have a live controller with a usable path.
    LivePaths,
    /// The namespace is one device: one native head, or bare devices under one dm-multipath map.
    SingleDevice,
    /// The device node exists and has the expected device number.
    DeviceNode,
    /// Direct reads of the first and last block succeed in time, and the device was the same before and
    /// after.
    DirectRead,
    /// Every holder of it is an expected one.
    Holders,
}

impl Clause {
    /// Every clause, in the order of the judgement.
    pub const ALL: [Self; 11] = [
        Self::Subsystem,
        Self::NamespaceIdentity,
        Self::Size,
        Self::ReadOnly,
        Self::HostNqn,
        Self::Portal,
        Self::LivePaths,
        Self::SingleDevice,
        Self::DeviceNode,
        Self::DirectRead,
        Self::Holders,
    ];

    /// The stable name, in kebab case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Subsystem => "subsystem",
            Self::NamespaceIdentity => "namespace-identity",
            Self::Size => "size",
            Self::ReadOnly => "read-only",
            Self::HostNqn => "host-nqn",
            Self::Portal => "portal",
            Self::LivePaths => "live-paths",
            Self::SingleDevice => "single-device",
            Self::DeviceNode => "device-node",
            Self::DirectRead => "direct-read",
            Self::Holders => "holders",
        }
    }

    /// Whether waiting can make it hold: connections come up, nodes appear, reads succeed. A wrong identity
    /// or a foreign host NQN does not heal by itself.
    pub fn may_heal(self) -> bool {
        matches!(
            self,
            Self::Subsystem
                | Self::NamespaceIdentity
                | Self::LivePaths
                | Self::SingleDevice
                | Self::DeviceNode
                | Self::DirectRead
        )
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The first clause that fails, and what was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("not ready: {clause}: {facts}")]
pub struct Unready {
    /// The clause that failed; those after it were not judged.
    pub clause: Clause,
    /// What was expected and what was found, as text for the person who has to act on it.
    pub facts: String,
    /// Whether waiting can change it. `false` for a contradiction, such as another identity.
    pub may_heal: bool,
}

/// The device that a volume has on this node, chosen from sysfs alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Selected {
    /// Kernel name of the device to use: the head, or the dm-multipath map (`dm-0`).
    pub device: String,
    /// Its device number; readers compare it on the open descriptor.
    pub dev: DevT,
    /// Kernel names of the namespace devices under it: the head itself, or the bare devices of a map.
    pub namespaces: Vec<String>,
    /// UUID and NGUID of the namespace, for pinning.
    pub identity: NamespaceIdentity,
    /// Size in bytes by sysfs.
    pub size_bytes: u64,
    /// Whether sysfs shows it as read-only.
    pub read_only: bool,
    /// Live paths, one per controller, and the portals that they go to.
    pub live_paths: Vec<LivePath>,
}

/// A path that can carry I/O.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LivePath {
    /// Its kernel name at that moment, such as `nvme3`.
    pub controller: ControllerName,
    /// The address and port that it is connected to.
    pub portal: Portal,
}

/// Everything that the check has proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadyFacts {
    /// The device as chosen from sysfs.
    pub selected: Selected,
    /// Path of its device node, verified to have the device's number.
    pub node: PathBuf,
    /// How long the direct read of the first block took.
    pub first_read: Duration,
    /// How long the direct read of the last block took.
    pub last_read: Duration,
    /// The kubelet's loop devices over this device, by kernel name: known, and no holder.
    pub kubelet_loops: Vec<String>,
}
