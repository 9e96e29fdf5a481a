//! The NVMe/TCP target behind a trait: what it looks like, what can be asked of it, how it fails.
//!
//! In: an [`Export`], the state that a disk should have at the target. Out: single [`Step`]s, each one write (or a
//! few that belong together) below nvmet's configfs. [`plan`] turns the difference between what is and what should
//! be into steps and touches nothing; [`reconcile`] applies them and believes only what it reads back.
//!
//! What always holds: a host is taken off the ACL before anything else happens; the ports go before the namespace
//! (a namespace taken down with no session left waits for what is in flight, instead of failing it); a step that
//! is already true is not taken, so adopting a running target disturbs nobody.

mod fake;
mod nvmet;
pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{AddrParseError, IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use fake::FakeTarget;
pub use nvmet::Nvmet;

use crate::secret::Secret;

/// An address and port that hosts connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Portal(SocketAddr);

impl Portal {
    /// The portal at this address and port.
    pub fn new(address: IpAddr, port: u16) -> Self {
        Self(SocketAddr::new(address, port))
    }

    /// The address alone.
    pub fn address(self) -> IpAddr {
        self.0.ip()
    }

    /// The TCP port alone.
    pub fn port(self) -> u16 {
        self.0.port()
    }
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Portal {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        text.parse().map(Self)
    }
}

/// Who may connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allow {
    /// Any host.
    Any,
    /// These host NQNs; nobody if there are none.
    Hosts(BTreeSet<String>),
}

/// What a disk should be at the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The subsystem's NQN.
    pub nqn: String,
    /// Serial number, at most 20 characters.
    pub serial: String,
    /// Model, at most 40 characters.
    pub model: String,
    /// Namespace 1.
    pub namespace: Namespace,
    /// NVMe reservations on the namespace, where the kernel has them (6.13 and newer).
    pub reservations: bool,
    /// Who may connect.
    pub allow: Allow,
    /// What the hosts on the list have to prove that they know; nvmet asks nobody where any host may connect.
    pub secret: Option<Secret>,
    /// Linked to the portals with its namespace up; or neither.
    pub online: bool,
    /// While not online the namespace stays up all the same: nothing waits for what is in flight.
    pub keep_namespace: bool,
    /// The portals that it is linked to while online.
    pub portals: BTreeSet<Portal>,
}

/// A namespace's backing file and identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// The backing file.
    pub path: PathBuf,
    /// Namespace UUID; nvmet would invent one at every enable.
    pub uuid: Uuid,
    /// Namespace globally unique identifier, likewise pinned.
    pub nguid: Uuid,
}

/// One change at the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a TCP port.
    CreatePort(u16, Portal),
    /// Make a subsystem: no hosts, no namespace.
    CreateSubsystem {
        /// Its NQN.
        nqn: String,
        /// Its serial number.
        serial: String,
        /// Its model.
        model: String,
    },
    /// Take a subsystem away; it has neither links nor namespace any more.
    RemoveSubsystem(String),
    /// Let any host connect, or only those on the list. nvmet refuses the first while there is a list.
    SetAnyHost(String, bool),
    /// Put a host on the list. nvmet refuses while any host may connect.
    AllowHost(String, String),
    /// What a host has to know, at every subsystem. Live controllers stay; new ones are asked.
    SetSecret(String, Secret),
    /// Take a host off the list. Its live controllers stay: this alone is no fence.
    DisallowHost(String, String),
    /// Make namespace 1, or give the one that is down another file or identity; with reservations or without.
    SetNamespace(String, Namespace, bool),
    /// Take namespace 1 up: direct I/O where the file system has it, else buffered.
    EnableNamespace(String),
    /// Take namespace 1 down; waits for I/O in flight.
    DisableNamespace(String),
    /// Take namespace 1 away.
    RemoveNamespace(String),
    /// Make the subsystem reachable at a port.
    Link(u16, String),
    /// Take the subsystem off a port; cuts the sessions that came that way.
    Unlink(u16, String),
    /// Tell hosts that the backing file has grown.
    Revalidate(String),
}

/// The part of the target that one subsystem's plan depends on.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Observed {
    /// All ports by id.
    pub ports: BTreeMap<u16, ObservedPort>,
    /// The subsystem, if it exists.
    pub subsystem: Option<ObservedSubsystem>,
}

/// A port of the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedPort {
    /// Where it listens; `None` if it is not a TCP port.
    pub portal: Option<Portal>,
    /// The subsystem asked about is linked to it.
    pub linked: bool,
}

/// A subsystem as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedSubsystem {
    /// Any host may connect.
    pub any_host: bool,
    /// The hosts on its list.
    pub hosts: BTreeSet<String>,
    /// What those of them that have to know a secret have to know.
    #[serde(default, skip)]
    pub secrets: BTreeMap<String, Secret>,
    /// Namespace 1, if it exists.
    pub namespace: Option<ObservedNamespace>,
}

/// Namespace 1 as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedNamespace {
    /// It is up.
    pub enabled: bool,
    /// File and identity.
    #[serde(flatten)]
    pub namespace: Namespace,
    /// I/O goes through the page cache.
    pub buffered: bool,
    /// NVMe reservations are on; `None` where the kernel has none.
    pub reservations: Option<bool>,
}

/// A TCP connection that is up at a portal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Connection {
    /// The portal's end.
    pub portal: Portal,
    /// The host's end.
    pub peer: SocketAddr,
}

/// Why the target did not do, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The kernel's target is not there at all.
    #[error(
        "no NVMe target at {root}: load the modules nvmet and nvmet-tcp, mount configfs at /sys/kernel/config, \
         and run as root"
    )]
    Missing {
        /// Where it was looked for.
        root: PathBuf,
        /// What looking said.
        #[source]
        source: std::io::Error,
    },
    /// A file below configfs could not be read or written.
    #[error("{action} {path}")]
    Configfs {
        /// What was tried, with the value where there is one.
        action: String,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A file below configfs says what nobody expects there.
    #[error("{path} says {text:?}, which is no {expected}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What it says.
        text: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A device over a backing file could not be made, changed or taken away.
    #[error("{command}: {outcome}")]
    Backing {
        /// What was run.
        command: String,
        /// What came of it.
        outcome: String,
    },
    /// The steps were taken, and the state is still another one.
    #[error("subsystem {nqn}: after {taken} steps these were still to be taken: {left}")]
    NotReached {
        /// The subsystem.
        nqn: String,
        /// How many steps were taken.
        taken: usize,
        /// The steps that are left.
        left: String,
    },
}

/// A kernel's NVMe target.
pub trait TargetKernel: Send + Sync + fmt::Debug {
    /// Whether the target is there, or what is missing.
    fn probe(&self) -> Result<(), TargetError>;

    /// The ports, and the subsystem of this NQN.
    fn observe(&self, nqn: &str) -> Result<Observed, TargetError>;

    /// Takes one step. May block in the kernel.
    fn apply(&self, step: &Step) -> Result<(), TargetError>;

    /// The TCP connections that are up at these portals.
    fn connections(&self, portals: &BTreeSet<Portal>) -> Result<Vec<Connection>, TargetError>;
}

/// Brings one export about, and reads back that it is so.
pub fn reconcile(target: &dyn TargetKernel, want: &Export) -> Result<(), TargetError> {
    let mut observed = target.observe(&want.nqn)?;
    let ports = plan::ports(&observed, want);
    if !ports.is_empty() {
        take(target, &ports)?;
        observed = target.observe(&want.nqn)?;
    }
    let steps = plan::export(&observed, want);
    if steps.is_empty() {
        return Ok(());
    }
    take(target, &steps)?;
    let left = plan::export(&target.observe(&want.nqn)?, want);
    if left.is_empty() { Ok(()) } else { Err(not_reached(&want.nqn, steps.len(), &left)) }
}

/// Takes a subsystem away, and reads back that it is gone.
pub fn withdraw(target: &dyn TargetKernel, nqn: &str) -> Result<(), TargetError> {
    let steps = plan::removal(&target.observe(nqn)?, nqn);
    take(target, &steps)?;
    let left = plan::removal(&target.observe(nqn)?, nqn);
    if left.is_empty() { Ok(()) } else { Err(not_reached(nqn, steps.len(), &left)) }
}

fn take(target: &dyn TargetKernel, steps: &[Step]) -> Result<(), TargetError> {
    for step in steps {
        tracing::debug!(?step, "target");
        target.apply(step)?;
    }
    Ok(())
}

fn not_reached(nqn: &str, taken: usize, left: &[Step]) -> TargetError {
    TargetError::NotReached { nqn: nqn.to_owned(), taken, left: format!("{left:?}") }
}
