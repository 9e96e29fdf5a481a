//! How the device is to behave: what the command line or a test chooses.
//!
//! What always holds: the defaults are an RDS as far as one is known; whatever is not known of RouterOS is off.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use uuid::Uuid;

use crate::disk::Version;
use crate::target::Portal;

/// What `nvme-tcp-server-allow-host-name` does. What it does on an RDS is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AclMode {
    /// Stored and shown; any host may connect.
    Ignored,
    /// The whole value is one host NQN, and the target enforces it.
    Single,
    /// The value is a comma separated list of host NQNs, and the target enforces it.
    List,
}

/// What volumes lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Backing {
    /// Their files.
    File,
    /// Devices over their files that can be told to hold writes.
    Held,
}

/// How the device is to behave.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory of the backing files.
    pub files: PathBuf,
    /// Where exported disks are reachable.
    pub portals: BTreeSet<Portal>,
    /// What the host list does.
    pub acl: AclMode,
    /// With an enforced list: an empty one lets nobody in, instead of anybody.
    pub acl_empty_denies: bool,
    /// `file-size` of an existing disk may be raised.
    pub grow_online: bool,
    /// Another namespace UUID at every enable, as of a target that does not keep it.
    pub uuid_random: bool,
    /// Namespace UUIDs by slot, in place of the pinned ones.
    pub uuid_overrides: BTreeMap<String, Uuid>,
    /// NVMe reservations, where the kernel has them.
    pub reservations: bool,
    /// `nvme-tcp-server-password` is enforced by in-band authentication, where the kernel has it.
    pub in_band_auth: bool,
    /// What volumes lie on.
    pub backing: Backing,
    /// With [`Backing::Held`]: requests that a volume's device takes at a time; any number if `None`.
    pub backing_depth: Option<u32>,
    /// What all backing files together may take; no limit if `None`.
    pub capacity_bytes: Option<u64>,
    /// The RouterOS version to be.
    pub version: Version,
    /// The board to be.
    pub board_name: String,
    /// The slot and mount point of the pool that the files are said to be on.
    pub pool: String,
}

impl Options {
    /// The defaults, with backing files in this directory.
    pub fn with_files(files: PathBuf) -> Self {
        Self {
            files,
            portals: BTreeSet::new(),
            acl: AclMode::Ignored,
            acl_empty_denies: false,
            grow_online: false,
            uuid_random: false,
            uuid_overrides: BTreeMap::new(),
            reservations: false,
            in_band_auth: false,
            backing: Backing::File,
            backing_depth: None,
            capacity_bytes: None,
            version: Version { major: 7, minor: 24 },
            board_name: "RDS2216".to_owned(),
            pool: "storage-pool".to_owned(),
        }
    }
}

/// Portals that are held down for tests: of one slot or of all, one portal or all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// The disk's slot; every disk if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// The portal; every portal if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portal: Option<Portal>,
}
