//! Volumes as the RDS describes them, and which of its disks are ours.
//!
//! Comes in: disk items as RouterOS lists them (every value a string). Goes out: [`RdsVolume`]s with exact
//! sizes. A disk is ours only if three things hold: its slot has the form of a volume id, its backing file is
//! the one of this id under our base path, **and** it has our cluster's mark. Everything else on the RDS is
//! foreign: only its slot, file and owner are remembered, and it is never touched. A disk of ours whose
//! description cannot be read is neither present nor absent: asking for it is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cleat_ids::VolumeId;
use serde_json::{Map, Value};

use super::error::RdsError;
use super::owner::{ClusterId, Mark, VolumeParameters};

/// The TCP port of an export.
const PORT: &str = "nvme-tcp-server-port";
/// The properties that a list asks for; passwords and secrets are not among them.
pub(super) const PROPERTIES: &str = ".id,slot,type,file-path,size,mount-filesystem,nvme-tcp-export,\
nvme-tcp-server-port,nvme-tcp-server-nqn,nvme-tcp-server-allow-host-name,comment";

/// The suffix of backing files.
const FILE_SUFFIX: &str = ".img";

/// A size in bytes, exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}

/// The directory of our volumes on an RDS, and their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    /// Without a slash at either end.
    base_path: String,
    nqn_prefix: String,
    /// The cluster that owns the volumes.
    cluster: ClusterId,
}

/// Why a base path or NQN prefix was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: it has to be {rule}")]
pub struct NamingError {
    what: &'static str,
    value: String,
    rule: &'static str,
}

impl Naming {
    /// Checks the directory of the backing files, and the part of an NQN before the volume id.
    ///
    /// # Errors
    /// The value and the rule that it breaks.
    pub fn new(base_path: &str, nqn_prefix: &str, cluster: ClusterId) -> Result<Self, NamingError> {
        let wrong = |what, value: &str, rule| Err(NamingError { what, value: value.to_owned(), rule });
        let trimmed = base_path.trim_matches('/');
        let sound = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(',');
        if !trimmed.split('/').all(sound) || trimmed.chars().any(char::is_control) {
            return wrong("directory", base_path, "a directory below the root, without . and .. and commas");
        }
        // 223 bytes for an NQN (NVMe Base Specification 2.0, section 4.5), of which a volume id takes 63.
        if !nqn_prefix.starts_with("nqn.") || nqn_prefix.len() < 13 || nqn_prefix.len() > 160 {
            return wrong("NQN prefix", nqn_prefix, "nqn.yyyy-mm.reverse-domain: of at most 160 bytes");
        }
        if !nqn_prefix.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',' && byte != b'/') {
            return wrong("NQN prefix", nqn_prefix, "visible ASCII without commas and slashes");
        }
        Ok(Self { base_path: trimmed.to_owned(), nqn_prefix: nqn_prefix.to_owned(), cluster })
    }

    /// The subsystem NQN of a volume.
    pub fn nqn(&self, volume: &VolumeId) -> String {
        format!("{}{volume}", self.nqn_prefix)
    }

    /// The mark of a volume that is made with this naming.
    pub(super) fn mark(&self, parameters: VolumeParameters) -> Mark {
        Mark { cluster: self.cluster.clone(), parameters }
    }

    /// The backing file as `/rest/disk` names it: with a leading slash.
    pub fn file_path(&self, volume: &VolumeId) -> String {
        format!("/{}", self.file_name(volume))
    }

    /// The backing file as `/rest/file` names it: without a leading slash.
    pub fn file_name(&self, volume: &VolumeId) -> String {
        format!("{}/{volume}{FILE_SUFFIX}", self.base_path)
    }
}

/// One volume, as the RDS described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdsVolume {
    /// Its id, which is its slot.
    pub id: VolumeId,
    /// RouterOS' number of the disk item, such as `*1F`.
    pub item: String,
    /// Exact size, as the RDS lists it.
    pub size: ByteSize,
    /// The NQN of its subsystem. Where the RDS shows none, as it may while nothing is exported, the one with
    /// which a volume of this id is made.
    pub nqn: String,
    /// The TCP port at which it is exported; `None` if the RDS does not show it.
    pub port: Option<u16>,
    /// Whether its export is on.
    pub exported: bool,
    /// Whether RouterOS may mount a file system that it finds inside: never on a volume that we made.
    pub mountable: bool,
    /// The host NQNs that may connect. Empty means **every** host, as long as it is exported.
    pub hosts: BTreeSet<String>,
    /// What it was made with.
    pub parameters: VolumeParameters,
}

/// Who owns a disk that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// It has the place and the name of a volume of ours, but no mark.
    Nobody,
    /// It has the mark of another cluster.
    Other(ClusterId),
    /// It is no volume in our directory.
    Elsewhere,
}

/// A disk that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Foreign {
    /// Its backing file without a leading slash; `None` if it has none.
    file: Option<String>,
    owner: Owner,
}

/// Everything that one list shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    volumes: BTreeMap<VolumeId, RdsVolume>,
    /// Disks that are not ours, by their slots.
    foreign: BTreeMap<String, Foreign>,
    /// Our own mark: an operator puts it on a disk that is to be ours.
    mark: String,
    /// Disks of ours that cannot be understood, and why.
    unreadable: BTreeMap<VolumeId, String>,
    /// The ports of all disks, ours or not.
    ports: BTreeSet<u16>,
}

/// What an RDS with these volumes, and no other disks, would list: for a substitute.
impl FromIterator<RdsVolume> for Inventory {
    fn from_iter<I: IntoIterator<Item = RdsVolume>>(volumes: I) -> Self {
        let volumes: BTreeMap<_, _> = volumes.into_iter().map(|volume| (volume.id.clone(), volume)).collect();
        let ports = volumes.values().filter_map(|volume| volume.port).collect();
        Self { volumes, ports, ..Self::default() }
    }
}

impl Inventory {
    /// All volumes that could be read.
    pub fn volumes(&self) -> impl Iterator<Item = &RdsVolume> {
        self.volumes.values()
    }

    /// Disks of ours that could not be read, and why: for people, and so that nobody takes them for absent.
    pub fn unreadable(&self) -> impl Iterator<Item = (&VolumeId, &str)> {
        self.unreadable.iter().map(|(id, why)| (id, why.as_str()))
    }

    /// The volume; `None` if the RDS has said that it has none.
    ///
    /// # Errors
    /// `Malformed` where its description cannot be read; `Conflict` where something that is not ours has its
    /// slot.
    pub fn find(&self, id: &VolumeId) -> Result<Option<&RdsVolume>, RdsError> {
        if let Some(problem) = self.unreadable.get(id) {
            return Err(RdsError::malformed(&format!("the list of disks, about volume {id}"), problem));
        }
        if let Some(Foreign { file, owner }) = self.foreign.get(id.as_str()) {
            let file = file.as_deref().unwrap_or("no file");
            let whose = match owner {
                Owner::Elsewhere => format!("a disk that is not ours (backed by {file})"),
                Owner::Other(cluster) => format!("a volume of cluster {cluster}, which is left alone"),
                Owner::Nobody => format!(
                    "a disk without an owner's mark (backed by {file}), which is left alone. If it is this cluster's, \
                     give it the mark: /disk set [find slot={id}] comment=\"{}\"",
                    self.mark
                ),
            };
            return Err(RdsError::conflict(id, format!("its slot on the RDS is taken by {whose}")));
        }
        Ok(self.volumes.get(id))
    }

    /// The volume, which has to exist.
    ///
    /// # Errors
    /// `NotFound` where the RDS has said that it has none; else as [`Inventory::find`].
    pub fn get(&self, id: &VolumeId) -> Result<&RdsVolume, RdsError> {
        self.find(id)?.ok_or_else(|| RdsError::NotFound { what: format!("volume {id}") })
    }

    /// How many disks there are, ours or not.
    pub(super) fn disks(&self) -> usize {
        self.volumes.len() + self.foreign.len() + self.unreadable.len()
    }

    /// The ports of all disks, ours or not.
    pub(super) fn ports(&self) -> &BTreeSet<u16> {
        &self.ports
    }

    /// The slot of a foreign disk with this backing file (no leading slash), if there is one.
    pub(super) fn foreign_user_of(&self, file_name: &str) -> Option<&str> {
        let mut users = self.foreign.iter().filter(|(_, disk)| disk.file.as_deref() == Some(file_name));
        users.next().map(|(slot, _)| slot.as_str())
    }

    /// Parses the answer to a list.
    pub(super) fn parse(items: &[Value], naming: &Naming) -> Result<Self, RdsError> {
        let malformed = |problem: String| RdsError::malformed("the list of disks", problem);
        let mark = naming.mark(VolumeParameters::default()).comment();
        let mut inventory = Self { mark, ..Self::default() };
        for item in items {
            let fields = item.as_object().ok_or_else(|| malformed(format!("{item} is not an item")))?;
            // A disk may have no slot, but it has a number: without one, this is no list of disks.
            let number = text(fields, ".id").ok_or_else(|| malformed(format!("{item} has no .id")))?;
            let slot = text(fields, "slot").unwrap_or(number);
            inventory.ports.extend(text(fields, PORT).and_then(|port| port.parse::<u16>().ok()));
            let file = text(fields, "file-path").map(|path| path.trim_start_matches('/').to_owned());
            let here = VolumeId::new(slot).ok().filter(|id| file.as_ref() == Some(&naming.file_name(id)));
            let mark = text(fields, "comment").and_then(Mark::read);
            let owner = match (here, mark) {
                (Some(id), Some(mark)) if mark.cluster == naming.cluster => {
                    inventory.add(id, fields, naming, mark);
                    continue;
                }
                (Some(_), Some(mark)) => Owner::Other(mark.cluster),
                (Some(_), None) => Owner::Nobody,
                (None, Some(mark)) if mark.cluster != naming.cluster => Owner::Other(mark.cluster),
                (None, _) => Owner::Elsewhere,
            };
            inventory.foreign.insert(slot.to_owned(), Foreign { file, owner });
        }
        Ok(inventory)
    }

    fn add(&mut self, id: VolumeId, fields: &Map<String, Value>, naming: &Naming, mark: Mark) {
        if self.volumes.remove(&id).is_some() {
            self.unreadable.insert(id, "two disks have its slot".to_owned());
            return;
        }
        match read(&id, fields, naming, mark) {
            Ok(volume) => {
                self.volumes.insert(id, volume);
            }
            Err(problem) => {
                self.unreadable.insert(id, problem);
            }
        }
    }
}

/// A property that exists and is not empty.
fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    fields.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn read(
    id: &VolumeId,
    fields: &Map<String, Value>,
    naming: &Naming,
    mark: Mark,
) -> Result<RdsVolume, String> {
    let wanted = |name: &str| text(fields, name).ok_or_else(|| format!("it has no {name}"));
    let flag = |name: &str| match text(fields, name) {
        None => Ok(false),
        Some("true" | "yes") => Ok(true),
        Some("false" | "no") => Ok(false),
        Some(other) => Err(format!("{name} is {other:?}")),
    };
    let item = wanted(".id")?;
    if !item_shaped(item) {
        return Err(format!("its .id is {item:?}"));
    }
    let size = wanted("size")?;
    let port = text(fields, PORT);
    let exported = flag("nvme-tcp-export")?;
    let nqn = match text(fields, "nvme-tcp-server-nqn") {
        Some(nqn) => nqn.to_owned(),
        None if exported => return Err("it is exported and has no nvme-tcp-server-nqn".to_owned()),
        None => naming.nqn(id),
    };
    Ok(RdsVolume {
        id: id.clone(),
        item: item.to_owned(),
        size: ByteSize(size.parse().map_err(|_| format!("size {size:?} is not a number of bytes"))?),
        nqn,
        port: port.map(|port| port.parse().map_err(|_| format!("port {port:?}"))).transpose()?,
        exported,
        mountable: flag("mount-filesystem")?,
        hosts: hosts(text(fields, "nvme-tcp-server-allow-host-name").unwrap_or_default()),
        parameters: mark.parameters,
    })
}

/// Whether this is RouterOS' number of an item, safe in a path.
pub(super) fn item_shaped(item: &str) -> bool {
    let digits = item.strip_prefix('*').unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The hosts in a comma-separated list.
fn hosts(list: &str) -> BTreeSet<String> {
    list.split(',').map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn naming() -> Naming {
        Naming::new("/pool/cleat", "nqn.2000-02.com.mikrotik:", cluster()).unwrap()
    }

    fn cluster() -> ClusterId {
        ClusterId::new("one").unwrap()
    }

    fn disk(slot: &str) -> Value {
        json!({".id": "*1F", "slot": slot, "type": "file", "file-path": format!("/pool/cleat/{slot}.img"),
            "size": "1073745920", "mount-filesystem": "false", "nvme-tcp-export": "true",
            "nvme-tcp-server-port": "4420", "nvme-tcp-server-nqn": format!("nqn.2000-02.com.mikrotik:{slot}"),
            "nvme-tcp-server-allow-host-name": "nqn.a:1, nqn.b:2,", "comment": "cleat cluster=one min-fence=acl"})
    }

    #[test]
    fn a_volume_is_read_with_its_exact_size_and_its_hosts() {
        let inventory = Inventory::parse(&[disk("pvc-1")], &naming()).unwrap();
        let volume = inventory.get(&VolumeId::new("pvc-1").unwrap()).unwrap();
        assert_eq!(volume.size, ByteSize(1_073_745_920));
        assert_eq!(volume.hosts, BTreeSet::from(["nqn.a:1".to_owned(), "nqn.b:2".to_owned()]));
        assert!(volume.exported && !volume.mountable);
        assert_eq!(volume.parameters.min_fence.as_deref(), Some("acl"));
        let absent = inventory.get(&VolumeId::new("pvc-2").unwrap());
        assert!(matches!(absent, Err(RdsError::NotFound { .. })));
    }

    #[test]
    fn a_disk_elsewhere_is_foreign_even_if_its_slot_looks_like_ours() {
        let mut elsewhere = disk("pvc-1");
        elsewhere["file-path"] = json!("/pool/other/pvc-1.img");
        let drive = json!({".id": "*1", "slot": "nvme1", "type": "hardware", "size": "x"});
        let inventory = Inventory::parse(&[elsewhere, drive], &naming()).unwrap();
        assert_eq!(inventory.volumes().count(), 0);
        let found = inventory.find(&VolumeId::new("pvc-1").unwrap());
        assert!(matches!(found, Err(RdsError::Conflict { .. })), "{found:?}");
        assert_eq!(inventory.foreign_user_of("pool/other/pvc-1.img"), Some("pvc-1"));
    }

    #[test]
    fn a_disk_of_another_cluster_or_of_nobody_is_foreign_and_named() {
        let id = VolumeId::new("pvc-1").unwrap();
        for (comment, words) in [
            ("cleat cluster=two", "a volume of cluster two"),
            ("mine", "comment=\"cleat cluster=one\""),
            ("", "without an owner's mark"),
        ] {
            let mut theirs = disk("pvc-1");
            theirs["comment"] = json!(comment);
            let inventory = Inventory::parse(&[theirs], &naming()).unwrap();
            assert_eq!(
                (inventory.volumes().count(), inventory.unreadable().count()),
                (0, 0),
                "it is not listed"
            );
            let refused = inventory.find(&id).unwrap_err();
            assert!(matches!(refused, RdsError::Conflict { .. }), "{refused}");
            assert!(refused.to_string().contains(words), "{refused}");
        }
    }

    #[test]
    fn a_volume_that_cannot_be_read_is_not_absent() {
        let id = VolumeId::new("pvc-1").unwrap();
        for (property, value) in
            [("size", json!("1.0GiB")), ("nvme-tcp-server-nqn", json!("")), (".id", json!("*1/../file"))]
        {
            let mut broken = disk("pvc-1");
            broken[property] = value;
            let inventory = Inventory::parse(&[broken], &naming()).unwrap();
            assert!(matches!(inventory.find(&id), Err(RdsError::Malformed { .. })));
        }
        let twice = Inventory::parse(&[disk("pvc-1"), disk("pvc-1")], &naming()).unwrap();
        assert!(matches!(twice.find(&id), Err(RdsError::Malformed { .. })));
        assert!(Inventory::parse(&[json!({"slot": "pvc-1"})], &naming()).is_err());
    }

    #[test]
    fn base_paths_and_prefixes_are_checked() {
        for (path, prefix) in [
            ("", "nqn.2000-02.com.mikrotik:"),
            ("/", "nqn.2000-02.com.mikrotik:"),
            ("/a/../b", "nqn.2000-02.com.mikrotik:"),
            ("/a", "iqn.2000-02.com.mikrotik:"),
            ("/a", "nqn.2000-02.com.mik rotik:"),
        ] {
            assert!(Naming::new(path, prefix, cluster()).is_err(), "{path} {prefix}");
        }
        let id = VolumeId::new("v").unwrap();
        let naming = Naming::new("pool/", "nqn.2000-02.com.mikrotik:", cluster()).unwrap();
        assert_eq!(naming.file_path(&id), "/pool/v.img");
    }
}
