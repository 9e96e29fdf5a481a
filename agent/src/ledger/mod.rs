//! The ledger: the highest epoch that this node has seen per volume, on disk, so that a message of an older
//! grant never changes who can write.
//!
//! Owns: the record ([`LedgerEntry`]), its rules ([`rules`], pure) and its files ([`files`], each sealed). Comes
//! in: the epochs of Attach, Detach and Revoke. Goes out: a ruling, and a durable record from before the
//! change that it permits.
//!
//! Always holds:
//! - An epoch never goes down, and an ended one never becomes un-ended.
//! - A record that cannot be read never counts as "nothing seen": no grant of the volume is taken on. The end
//!   of a grant needs no disk: it only removes a writer.
//! - `may_have_written` always includes every portal over which this node can have written under the grant,
//!   so that a controller that vanished by itself is not forgotten when the grant ends.

pub(crate) mod connections;
mod errors;
pub mod files;
mod lock;
pub mod rules;
pub(crate) mod sealed;

use std::path::PathBuf;

use cleat_host::readiness::PathPolicy;
use cleat_host::reservations::ReservationKey;
use cleat_host::{NamespaceIdentity, Portal};
use serde::{Deserialize, Serialize};

use crate::name::Epoch;

pub use errors::LedgerError;
pub use files::Ledger;

/// The state at deletion of a controller that the kernel removed before we could read it.
pub const STATE_GONE: &str = "gone";
/// The state at deletion of a controller whose deletion an agent began and did not live to record.
pub const STATE_UNKNOWN: &str = "unknown";

/// What an Attach grants: how the device is reached and what must be found there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The portals of the subsystem; sorted, without repetition, never empty.
    pub portals: Vec<Portal>,
    /// What the namespace must report of itself; empty where it is still to be learned.
    pub identity: NamespaceIdentity,
    /// Size of the device in bytes; 0 where it is not known yet.
    pub size_bytes: u64,
    /// Whether this node may only read.
    pub read_only: bool,
    /// How many portals must have a live path before the device counts as ready.
    pub policy: PathPolicy,
    /// The key under which the namespace is reserved; `None` where it is not.
    #[serde(default)]
    pub reserve: Option<ReservationKey>,
}

/// One controller that was deleted, or found to be gone, when a grant ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// The controller's name at that moment; empty where it was gone already.
    pub controller: String,
    /// The portal that it was connected to.
    pub portal: String,
    /// Its sysfs state right before the deletion, or [`STATE_GONE`], or [`STATE_UNKNOWN`].
    pub state: String,
}

/// What the ledger has of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// The highest epoch that this node has seen.
    pub epoch: Epoch,
    /// Whether a Detach or Revoke has ended it. Never returns to false for the same epoch.
    pub ended: bool,
    /// The boot of this node in which the entry was written; what it says of controllers holds for that boot
    /// only.
    pub boot_id: String,
    /// What was granted; `None` where this node saw only the end of the epoch.
    pub grant: Option<Grant>,
    /// The portals over which this node may have written under the grant.
    pub may_have_written: Vec<Portal>,
    /// Controllers that were deleted since the grant began.
    pub deletions: Vec<Deletion>,
    /// The generation of the last reservation report that showed this node registered under the epoch; `None`
    /// where it never was. It tells a preemption from a target that has forgotten everybody.
    #[serde(default)]
    pub registered: Option<u32>,
    /// Targets at which the volume was published and not unpublished: where to read, not what is there.
    #[serde(default)]
    pub published: Vec<PathBuf>,
    /// The generation of the newest secret that came under the epoch. Never the secret itself.
    #[serde(default)]
    pub secret_generation: Option<Epoch>,
    /// The end of a grant wrote it while the earlier record could not be read: `epoch` need not be the
    /// highest then.
    #[serde(default)]
    pub uncertain: bool,
}

impl LedgerEntry {
    /// The proof of absence in this entry; `None` unless the grant has ended, in this boot.
    pub fn proof_of_absence(&self, boot_id: &str) -> Option<&[Deletion]> {
        (self.ended && self.boot_id == boot_id).then_some(self.deletions.as_slice())
    }
}
