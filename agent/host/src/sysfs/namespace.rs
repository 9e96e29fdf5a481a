//! Namespaces as block devices: the multipath head, its paths, and bare devices where there is no head.

use std::convert::Infallible;
use std::fmt;
use std::path::Path as FsPath;
use std::str::FromStr;

use serde::Serialize;

use super::attribute::{Attribute, list};
use super::unreadable::Unreadable;
use crate::name::{ControllerName, DevT, NamespaceIdentity, NamespaceUuid, Nguid};

/// Asymmetric namespace access state of a path, as the kernel names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnaState {
    /// Usable, and the preferred way.
    Optimized,
    /// Usable, but slower than an optimized path: taken where there is none.
    NonOptimized,
    /// Not usable for now; another path may be.
    Inaccessible,
    /// Not usable any more: the target has lost the namespace for good on this path.
    PersistentLoss,
    /// The target is changing to another state.
    Change,
    /// A text that this version does not know.
    Other(String),
}

impl AnaState {
    /// Whether I/O may be sent on a path in this state.
    pub fn is_usable(&self) -> bool {
        matches!(self, Self::Optimized | Self::NonOptimized)
    }
}

impl FromStr for AnaState {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.trim() {
            "optimized" => Self::Optimized,
            "non-optimized" => Self::NonOptimized,
            "inaccessible" => Self::Inaccessible,
            "persistent-loss" => Self::PersistentLoss,
            "change" => Self::Change,
            other => Self::Other(other.to_owned()),
        })
    }
}

impl fmt::Display for AnaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Optimized => "optimized",
            Self::NonOptimized => "non-optimized",
            Self::Inaccessible => "inaccessible",
            Self::PersistentLoss => "persistent-loss",
            Self::Change => "change",
            Self::Other(other) => other,
        })
    }
}

/// Counters of a block device since it was made, from its `stat` (`Documentation/block/stat.rst`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct IoCounters {
    /// Reads that have completed since the device appeared.
    pub reads: u64,
    /// Bytes that those reads have returned.
    pub read_bytes: u64,
    /// Writes that have completed since the device appeared.
    pub writes: u64,
    /// Bytes that those writes have carried.
    pub written_bytes: u64,
    /// Requests in flight at this moment.
    pub in_flight: u64,
}

impl IoCounters {
    /// `stat` counts in units of 512 bytes whatever the block size.
    const UNIT_BYTES: u64 = 512;

    pub(super) fn parse(text: &str) -> Option<Self> {
        let numbers: Vec<u64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
        Some(Self {
            reads: *numbers.first()?,
            read_bytes: numbers.get(2)?.saturating_mul(Self::UNIT_BYTES),
            writes: *numbers.get(4)?,
            written_bytes: numbers.get(6)?.saturating_mul(Self::UNIT_BYTES),
            in_flight: *numbers.get(8)?,
        })
    }
}

/// What is on a block device according to its `holders` directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Kernel name, such as `dm-0`.
    pub name: String,
    /// Its device number; `None` where it could not be read.
    pub dev: Option<DevT>,
    /// Which driver made it.
    pub kind: HolderKind,
}

/// The drivers that can be told apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HolderKind {
    /// A dm-multipath map, by the prefix `mpath-` of its `dm/uuid`.
    DmMultipath {
        /// Name of the map, from `dm/name`.
        map: String,
    },
    /// Another device-mapper device (LVM, crypt, a multipath's partition, …).
    Dm {
        /// Name of the device, from `dm/name`.
        map: String,
        /// Its `dm/uuid`, which begins with the name of who made it, such as `LVM-`.
        uuid: String,
    },
    /// A Linux software RAID.
    Md,
    /// Anything else, such as bcache.
    Other,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            HolderKind::DmMultipath { map } => write!(f, "{} (dm-multipath map {map})", self.name),
            HolderKind::Dm { map, uuid } if uuid.starts_with("LVM-") => write!(
                f,
                "{} (LVM volume {map}, activated on this node: deactivate it with `vgchange -an {}`, and keep LVM off \
                 Cleat's devices with a filter)",
                self.name,
                volume_group(map)
            ),
            HolderKind::Dm { map, uuid } => {
                let maker = uuid.split('-').next().unwrap_or_default();
                write!(f, "{} (device-mapper {map}, made by {maker:?})", self.name)
            }
            HolderKind::Md => write!(f, "{} (software RAID)", self.name),
            HolderKind::Other => f.write_str(&self.name),
        }
    }
}

/// The group in the name of a map that LVM has made: `GROUP-VOLUME`, in which a dash of either is doubled.
fn volume_group(map: &str) -> String {
    let mut group = String::new();
    let mut letters = map.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == '-' && letters.next_if_eq(&'-').is_none() {
            break;
        }
        group.push(letter);
    }
    group
}

/// One way from a multipath head to the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamespacePath {
    /// Kernel name, such as `nvme0c1n1`.
    pub name: String,
    /// The controller that it goes through.
    pub controller: ControllerName,
    /// ANA state; `None` where the target has no ANA.
    pub ana_state: Option<AnaState>,
    /// Size in bytes as this path last saw it.
    pub size_bytes: Option<u64>,
    /// Counters of this path alone.
    pub counters: Option<IoCounters>,
}

/// How a namespace appears on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamespaceKind {
    /// A head of native multipath over these paths.
    Head {
        /// Paths of this namespace only, not of others in the same subsystem.
        paths: Vec<NamespacePath>,
    },
    /// A device of one controller: native multipath is off, or the namespace is not shared.
    Bare {
        /// The controller that it belongs to.
        controller: ControllerName,
        /// ANA state; `None` where the target or kernel has none.
        ana_state: Option<AnaState>,
    },
}

/// A namespace as a block device that can be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// Kernel name, such as `nvme0n1`.
    pub name: String,
    /// Whether it is a head, and over which paths.
    pub kind: NamespaceKind,
    /// Its device number, for opening it.
    pub dev: DevT,
    /// Namespace identifier within the subsystem.
    pub nsid: Option<u32>,
    /// UUID and NGUID as the target reports them.
    pub identity: NamespaceIdentity,
    /// What the kernel itself identifies it by, such as `uuid.…`.
    pub wwid: Option<String>,
    /// Capacity in bytes, as sysfs shows it now.
    pub size_bytes: u64,
    /// Logical block size in bytes.
    pub logical_block_bytes: Option<u32>,
    /// Whether the kernel holds it read-only.
    pub read_only: bool,
    /// A number that no other disk of this boot has had (since 5.15).
    pub disk_sequence: Option<u64>,
    /// What is on it or on one of its partitions.
    pub holders: Vec<Holder>,
    /// Counters since it appeared. A head has counters of its own only where the kernel accounts for heads;
    /// on 6.1 they stay zero, so a reader takes [`Namespace::written`], which adds up the paths.
    pub counters: Option<IoCounters>,
}

impl Namespace {
    /// Its paths: those of a head, none for a bare device.
    pub fn paths(&self) -> &[NamespacePath] {
        match &self.kind {
            NamespaceKind::Head { paths } => paths,
            NamespaceKind::Bare { .. } => &[],
        }
    }

    /// Writes completed and bytes written: the larger of the head's own counters and its paths' sum. A path
    /// that went away takes its count with it, so the value can fall. Compare only while the paths are the
    /// same.
    pub fn written(&self) -> (u64, u64) {
        let paths = self.paths().iter().filter_map(|path| path.counters);
        let (writes, bytes) =
            paths.fold((0, 0), |(writes, bytes), c| (writes + c.writes, bytes + c.written_bytes));
        let own = self.counters.unwrap_or_default();
        (own.writes.max(writes), own.written_bytes.max(bytes))
    }
}

/// Splits `nvme0c1n2` into controller instance 1; `None` for anything that is not a path.
pub(super) fn path_controller(name: &str) -> Option<ControllerName> {
    let rest = name.strip_prefix("nvme")?;
    let (subsystem, rest) = rest.split_once('c')?;
    let (controller, namespace) = rest.split_once('n')?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (number(subsystem) && number(namespace)).then_some(())?;
    ControllerName::parse(&format!("nvme{controller}")).ok()
}

/// Whether a name is that of a namespace's block device, such as `nvme0n1` (not a path, not a partition).
pub(super) fn is_namespace(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix("nvme")
        .and_then(|rest| rest.split_once('n'))
        .is_some_and(|(instance, namespace)| number(instance) && number(namespace))
}

/// Reads one namespace's block device; `None` when it vanished meanwhile.
pub(super) fn read(
    root: &FsPath,
    dir: &FsPath,
    name: &str,
    kind: NamespaceKind,
    unreadable: &mut Vec<Unreadable>,
) -> Option<Namespace> {
    let mut holders = read_holders(root, &dir.join("holders"), unreadable);
    // A guest's disk has partitions, and the host's LVM may have found a volume group in one of them.
    for (partition, _) in read_partitions(dir, unreadable) {
        holders.extend(read_holders(root, &dir.join(partition).join("holders"), unreadable));
    }
    let mut from = Attribute { dir: dir.to_owned(), unreadable };
    let dev: DevT = from.value("dev")?;
    let wwid = from.text("wwid");
    let namespace = Namespace {
        name: name.to_owned(),
        kind,
        dev,
        nsid: from.value("nsid"),
        identity: read_identity(&mut from, wwid.as_deref()),
        wwid,
        size_bytes: sectors(from.value("size")?),
        logical_block_bytes: from.value("queue/logical_block_size"),
        read_only: from.flag("ro")?,
        disk_sequence: from.value("diskseq"),
        holders,
        counters: from.text("stat").and_then(|text| IoCounters::parse(&text)),
    };
    // It counts only if it is still the same device after all of it was read: values of two disks must not be
    // mixed.
    (from.value::<DevT>("dev")? == dev).then_some(namespace)
}

/// Reads one path's hidden block device.
pub(super) fn read_path(
    dir: &FsPath,
    name: &str,
    controller: ControllerName,
    unreadable: &mut Vec<Unreadable>,
) -> Option<NamespacePath> {
    let mut from = Attribute { dir: dir.to_owned(), unreadable };
    let size_bytes = from.value("size").map(sectors);
    if size_bytes.is_none() && !dir.exists() {
        return None;
    }
    Some(NamespacePath {
        name: name.to_owned(),
        controller,
        ana_state: from.value("ana_state"),
        size_bytes,
        counters: from.text("stat").and_then(|text| IoCounters::parse(&text)),
    })
}

/// ANA state of a bare device.
pub(super) fn read_ana(dir: &FsPath, unreadable: &mut Vec<Unreadable>) -> Option<AnaState> {
    Attribute { dir: dir.to_owned(), unreadable }.value("ana_state")
}

/// `size` counts in units of 512 bytes whatever the block size.
fn sectors(count: u64) -> u64 {
    count.saturating_mul(512)
}

/// Kernels up to 6.4 show the NGUID in `uuid` when there is no UUID. `wwid` tells which it is, because it
/// prefers a real UUID (`drivers/nvme/host/core.c`, `wwid_show`).
fn read_identity(from: &mut Attribute<'_>, wwid: Option<&str>) -> NamespaceIdentity {
    let uuid = from.text("uuid").and_then(|text| NamespaceUuid::parse(&text).ok());
    let nguid = from.text("nguid").and_then(|text| Nguid::parse(&text).ok());
    let real_uuid = wwid.is_none_or(|wwid| wwid.starts_with("uuid."));
    NamespaceIdentity { uuid: uuid.filter(|_| real_uuid), nguid }
}

/// Partitions of a block device, by name and number.
pub(super) fn read_partitions(dir: &FsPath, unreadable: &mut Vec<Unreadable>) -> Vec<(String, DevT)> {
    let names = match list(dir) {
        Ok(names) => names,
        Err(error) => {
            unreadable.push(Unreadable { path: dir.to_owned(), error: error.to_string() });
            return Vec::new();
        }
    };
    // Only a partition has an attribute of that name. Partition names end with their number, which spares
    // most reads.
    let numbered = names.into_iter().filter(|name| name.ends_with(|c: char| c.is_ascii_digit()));
    let partitions = numbered.filter(|name| dir.join(name).join("partition").is_file());
    partitions
        .filter_map(|name| {
            let dev = Attribute { dir: dir.join(&name), unreadable }.value("dev")?;
            Some((name, dev))
        })
        .collect()
}

pub(super) fn read_holders(root: &FsPath, dir: &FsPath, unreadable: &mut Vec<Unreadable>) -> Vec<Holder> {
    let names = match list(dir) {
        Ok(names) => names,
        Err(error) => {
            unreadable.push(Unreadable { path: dir.to_owned(), error: error.to_string() });
            return Vec::new();
        }
    };
    names.into_iter().map(|name| read_holder(root, name, unreadable)).collect()
}

fn read_holder(root: &FsPath, name: String, unreadable: &mut Vec<Unreadable>) -> Holder {
    let mut from = Attribute { dir: root.join("class/block").join(&name), unreadable };
    let map = from.text("dm/name").unwrap_or_else(|| name.clone());
    let kind = match from.text("dm/uuid") {
        Some(uuid) if uuid.starts_with("mpath-") => HolderKind::DmMultipath { map },
        Some(uuid) => HolderKind::Dm { map, uuid },
        None if name.starts_with("dm-") => HolderKind::Dm { map, uuid: String::new() },
        None if from.dir.join("md").exists() => HolderKind::Md,
        None => HolderKind::Other,
    };
    Holder { dev: from.value("dev"), kind, name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_heads_and_paths_are_recognised() {
        assert_eq!(path_controller("nvme0c12n1"), ControllerName::parse("nvme12").ok());
        for name in ["nvme0n1", "nvme0", "ng0n1", "nvmec1n1", "nvme0c1n"] {
            assert_eq!(path_controller(name), None, "{name}");
        }
        assert!(is_namespace("nvme10n2"));
        for name in ["nvme0c1n1", "nvme0n1p1", "nvme0", "ng0n1", "nvme0n"] {
            assert!(!is_namespace(name), "{name}");
        }
    }

    #[test]
    fn an_activated_volume_group_is_named_with_its_cure() {
        let map = "my--vg-data--1".to_owned();
        let kind = HolderKind::Dm { map, uuid: "LVM-x".to_owned() };
        let holder = Holder { dev: None, kind, name: "dm-3".to_owned() };
        assert!(holder.to_string().contains("vgchange -an my-vg`"), "{holder}");
    }

    #[test]
    fn counters_are_in_bytes() {
        let text = " 1 0 8 1 7 0 16 0 2 0 1 0 0 0 0 0 0";
        let counters = IoCounters::parse(text).expect("17 columns");
        assert_eq!((counters.reads, counters.read_bytes), (1, 4096));
        assert_eq!((counters.writes, counters.written_bytes, counters.in_flight), (7, 8192, 2));
        assert_eq!(IoCounters::parse("1 2"), None);
    }
}
