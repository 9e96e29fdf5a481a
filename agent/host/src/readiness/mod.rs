//! "Ready" as a predicate: the proof that this node can use a volume, or the first clause that fails.
//!
//! Comes in: a [`SubsystemView`](crate::sysfs::SubsystemView) (what sysfs shows), an
//! [`Expectation`] (what the volume must be) and [`IoFacts`](crate::blockio::IoFacts) (what the device answered). Goes out: [`ReadyFacts`], or [`Unready`] with the clause and the
//! facts in words.
//!
//! Always holds: [`evaluate`] is pure; the clauses are judged in the order of [`Clause`]; what could not be
//! looked at fails its clause. a [`Checker`] observes and then calls it.

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
    /// Its subsystem.
    pub subsystem: SubsystemNqn,
    /// Identity of its namespace, pinned at the first attach; `None` at that first attach, when the one
    /// namespace of the subsystem is taken and its identity reported.
    pub identity: Option<NamespaceIdentity>,
    /// Smallest size in bytes; `None` where nobody knows it (it is then reported).
    pub size_bytes: Option<u64>,
    /// How the device will be used. Writable use (`false`) needs a device that is not read-only; read-only
    /// use (`true`) takes either.
    pub read_only: bool,
    /// Our own host NQN.
    pub host_nqn: HostNqn,
    /// The portals that may be used, without repetition.
    pub portals: Vec<Portal>,
    /// How many of them must be live.
    pub paths: PathPolicy,
    /// Kernel names of holders that were asked for, such as `dm-3`. A dm-multipath map where native
    /// multipath is off need not be named.
    pub asked_holders: Vec<String>,
}

/// How many portals must have a live path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathPolicy {
    /// One.
    Any,
    /// More than half.
    #[default]
    Quorum,
    /// Every one.
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

/// The clauses of the predicate, in the order in which they are judged. The names are stable: they appear in
/// RPC errors, metrics and `cleatctl`.
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
    /// Nobody holds it that was not asked for.
    Holders,
}

impl Clause {
    /// Every clause, in order.
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

    /// The stable name.
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
    /// The clause.
    pub clause: Clause,
    /// Expected and found, in words, for the person who has to do something about it.
    pub facts: String,
    /// Whether waiting can change it. `false` for what contradicts, such as another identity.
    pub may_heal: bool,
}

/// The device that a volume is on this node, chosen from sysfs alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Selected {
    /// Kernel name of the device to use: the head, or the dm-multipath map (`dm-0`).
    pub device: String,
    /// Its device number.
    pub dev: DevT,
    /// Kernel names of the namespace devices under it: the head itself, or the bare devices of a map.
    pub namespaces: Vec<String>,
    /// Identity of the namespace.
    pub identity: NamespaceIdentity,
    /// Size in bytes by sysfs.
    pub size_bytes: u64,
    /// Read-only by sysfs.
    pub read_only: bool,
    /// Live paths, one per controller, and the portals that they go to.
    pub live_paths: Vec<LivePath>,
}

/// A path that I/O can take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LivePath {
    /// The controller.
    pub controller: ControllerName,
    /// The portal.
    pub portal: Portal,
}

/// Everything that was proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadyFacts {
    /// The device, from sysfs.
    pub selected: Selected,
    /// Its node.
    pub node: PathBuf,
    /// How long the direct read of the first block took.
    pub first_read: Duration,
    /// How long the direct read of the last block took.
    pub last_read: Duration,
    /// Loop devices of the kubelet over this device, by kernel name: known, and no holder.
    pub kubelet_loops: Vec<String>,
}
