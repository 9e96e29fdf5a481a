//! A disk item: what RouterOS stores of it, which properties it takes, how it reads.
//!
//! In: the properties of an `add` or `set`. Out: a [`Change`] whose every value has been checked, and the item as a
//! GET shows it. What always holds: a property that RouterOS does not have is refused as `unknown parameter NAME`
//! (observed); one that it has and that is not simulated here is refused too, saying so, and never stored silently.
//!
//! The names come from MikroTik's command reference for `/disk`; which of them a `type=file` disk shows, and that
//! `file-path` reads with a leading slash while `/file` names have none, from a published listing of an RDS2216.
//! `nvme-tcp-server-*` show while exported or once set (assumed: the listing shows them on exported disks, and not
//! on disks where nobody set them).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::reply::{ApiError, Item};
use crate::secret::Secret;
use crate::value::{ItemId, boolean, port, scalar, size_bytes};

/// The TCP port of an export that names none.
pub const DEFAULT_PORT: u16 = 4420;

/// Properties that RouterOS takes on other kinds of disk, or that are not simulated.
const NOT_SIMULATED: &[&str] = &[
    "parent",
    "mount-point-template",
    "partition-number",
    "partition-offset",
    "partition-size",
    "raid-type",
    "raid-device-count",
    "raid-max-component-size",
    "raid-chunk-size",
    "raid-master",
    "raid-role",
    "raid-member-failed",
    "nvme-tcp-address",
    "nvme-tcp-nqn",
    "nvme-tcp-name",
    "nvme-tcp-host-name",
    "nvme-tcp-password",
    "nvme-tcp-port",
    "iscsi-export",
    "iscsi-server-port",
    "iscsi-server-iqn",
    "iscsi-port",
    "iscsi-address",
    "iscsi-iqn",
    "nfs-sharing",
    "nfs-address",
    "nfs-share",
    "smb-sharing",
    "smb-server-user",
    "smb-server-password",
    "smb-server-encryption",
    "smb-address",
    "smb-share",
    "smb-user",
    "smb-password",
    "smb-encryption",
    "media-sharing",
    "media-interface",
    "tmpfs-max-size",
    "ramdisk-size",
    "crypted-backend",
    "encryption-key",
    "self-encryption-password",
    "swap",
    "file-offset",
    "copy-from",
];

/// A RouterOS version, as far as it changes anything here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The 7 of 7.24.
    pub major: u32,
    /// The 24 of 7.24.
    pub minor: u32,
}

impl Version {
    /// The first version whose exports have an NQN of their own.
    pub const OWN_NQN: Self = Self { major: 7, minor: 21 };
}

impl std::str::FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('.').and_then(|(major, rest)| {
            let minor = rest.split('.').next().unwrap_or(rest);
            Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
        });
        parsed.ok_or_else(|| format!("{text:?} is no version (such as 7.24)"))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A `type=file` disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its item id; never given twice.
    pub id: ItemId,
    /// Its slot, the name that people use.
    pub slot: String,
    /// Its backing file, without leading slash.
    pub file_path: String,
    /// The size of the backing file.
    pub size_bytes: u64,
    /// `mount-filesystem`; stored only.
    pub mount_filesystem: bool,
    /// `mount-read-only`; stored only.
    pub mount_read_only: bool,
    /// `compress`; stored only.
    pub compress: bool,
    /// `nvme-tcp-export`.
    pub export: bool,
    /// `nvme-tcp-server-port`, if set.
    pub port: Option<u16>,
    /// `nvme-tcp-server-nqn`, if set.
    pub nqn: Option<String>,
    /// `nvme-tcp-server-allow-host-name`, if set.
    pub allow_host_name: Option<String>,
    /// `nvme-tcp-server-password`, if set; enforced only where that was asked for.
    pub password: Option<String>,
    /// `comment`, if set.
    pub comment: Option<String>,
    /// The UUID that its namespace has, or will have.
    pub uuid: Uuid,
}

impl Disk {
    /// The NQN that hosts connect to: its own, or else the slot.
    pub fn effective_nqn(&self) -> &str {
        self.nqn.as_deref().unwrap_or(&self.slot)
    }

    /// What hosts have to know, if anything: an empty password is none.
    pub fn secret(&self) -> Option<Secret> {
        self.password.as_deref().filter(|password| !password.is_empty()).map(Secret::of_password)
    }

    /// The port that it is exported at.
    pub fn effective_port(&self) -> u16 {
        self.port.unwrap_or(DEFAULT_PORT)
    }

    /// The disk after the change; file path and size are the caller's business.
    pub fn changed(&self, change: &Change) -> Self {
        let mut disk = self.clone();
        let set = |field: &mut bool, value: Option<bool>| *field = value.unwrap_or(*field);
        set(&mut disk.mount_filesystem, change.mount_filesystem);
        set(&mut disk.mount_read_only, change.mount_read_only);
        set(&mut disk.compress, change.compress);
        set(&mut disk.export, change.export);
        if let Some(slot) = &change.slot {
            disk.slot.clone_from(slot);
        }
        disk.port = change.port.or(disk.port);
        for (field, value) in [
            (&mut disk.nqn, &change.nqn),
            (&mut disk.allow_host_name, &change.allow_host_name),
            (&mut disk.password, &change.password),
            (&mut disk.comment, &change.comment),
        ] {
            if value.is_some() {
                field.clone_from(value);
            }
        }
        // An empty NQN or comment is none.
        disk.nqn = disk.nqn.filter(|nqn| !nqn.is_empty());
        disk.comment = disk.comment.filter(|comment| !comment.is_empty());
        disk
    }

    /// The item as RouterOS of this version shows it.
    pub fn item(&self, version: Version) -> Item {
        let path = format!("/{}", self.file_path);
        let mut item = Item::new();
        let mut put = |name: &str, value: &str| item.insert(name.to_owned(), Value::from(value));
        put(".id", &self.id.to_string());
        for (name, value) in [
            ("type", "file"),
            ("slot-default", ""),
            ("parent", ""),
            ("fs", "-"),
            ("sector-size", "512"),
            ("raid-master", "none"),
            ("media-interface", "none"),
            ("file-offset", "0"),
            ("block-device", "true"),
        ] {
            put(name, value);
        }
        for name in ["iscsi-export", "nfs-sharing", "smb-sharing", "media-sharing", "swap"] {
            put(name, "false");
        }
        put("slot", &self.slot);
        put("model", &path);
        put("file-path", &path);
        // The REST API gives exact bytes where the console rounds.
        put("size", &self.size_bytes.to_string());
        put("file-size", &self.size_bytes.to_string());
        put("mount-filesystem", text(self.mount_filesystem));
        put("mount-read-only", text(self.mount_read_only));
        put("compress", text(self.compress));
        put("nvme-tcp-export", text(self.export));
        if let Some(comment) = &self.comment {
            put("comment", comment);
        }
        if self.export || self.port.is_some() {
            put("nvme-tcp-server-port", &self.effective_port().to_string());
        }
        if version >= Version::OWN_NQN && (self.export || self.nqn.is_some()) {
            put("nvme-tcp-server-nqn", self.effective_nqn());
        }
        if self.export || self.allow_host_name.is_some() {
            put("nvme-tcp-server-allow-host-name", self.allow_host_name.as_deref().unwrap_or(""));
        }
        if let Some(password) = &self.password {
            put("nvme-tcp-server-password", password);
            put("nvme-tcp-server-secret", Secret::of_password(password).reveal());
        }
        item
    }
}

fn text(flag: bool) -> &'static str {
    if flag { "true" } else { "false" }
}

/// The checked properties of one `add` or `set`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the fields are the properties of Disk, each given or not
pub struct Change {
    pub kind: Option<String>,
    pub slot: Option<String>,
    pub file_path: Option<String>,
    pub size_bytes: Option<u64>,
    pub mount_filesystem: Option<bool>,
    pub mount_read_only: Option<bool>,
    pub compress: Option<bool>,
    pub export: Option<bool>,
    pub port: Option<u16>,
    pub nqn: Option<String>,
    pub allow_host_name: Option<String>,
    pub password: Option<String>,
    pub comment: Option<String>,
}

impl Change {
    /// Checks every property; the first that is wrong is refused and nothing is taken.
    pub fn parse(properties: &Item, version: Version) -> Result<Self, ApiError> {
        let mut change = Self::default();
        for (name, value) in properties {
            let value = scalar(value)
                .ok_or_else(|| ApiError::bad_request(format!("invalid value for argument {name}")))?;
            change.take(name, value, version)?;
        }
        Ok(change)
    }

    fn take(&mut self, name: &str, value: String, version: Version) -> Result<(), ApiError> {
        match name {
            "type" => self.kind = Some(value),
            "slot" => self.slot = Some(directory_name(name, value)?),
            "file-path" => self.file_path = Some(file_path(&value)?),
            "file-size" => self.size_bytes = Some(size_bytes(name, &value)?),
            "mount-filesystem" => self.mount_filesystem = Some(boolean(name, &value)?),
            "mount-read-only" => self.mount_read_only = Some(boolean(name, &value)?),
            "compress" => self.compress = Some(boolean(name, &value)?),
            "nvme-tcp-export" => self.export = Some(boolean(name, &value)?),
            "nvme-tcp-server-port" => self.port = Some(port(name, &value)?),
            "nvme-tcp-server-nqn" if version >= Version::OWN_NQN => {
                self.nqn = Some(if value.is_empty() { value } else { directory_name(name, value)? });
            }
            "nvme-tcp-server-allow-host-name" => self.allow_host_name = Some(value),
            "nvme-tcp-server-password" => self.password = Some(value),
            "comment" => self.comment = Some(value),
            // Said in our own words on purpose: a driver under test must not take it for RouterOS'.
            _ if NOT_SIMULATED.contains(&name) => {
                return Err(ApiError::bad_request(format!("failure: rds-sim does not simulate {name}")));
            }
            _ => return Err(ApiError::bad_request(format!("unknown parameter {name}"))),
        }
        Ok(())
    }
}

/// Longest NQN (NVMe base specification, section 4.7).
const NQN_MAX_BYTES: usize = 223;

/// A slot or NQN: names a directory of configfs, so it must be able to.
fn directory_name(name: &str, value: String) -> Result<String, ApiError> {
    let usable = !value.is_empty()
        && value.len() <= NQN_MAX_BYTES
        && !value.starts_with('.')
        && value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if usable { Ok(value) } else { Err(ApiError::bad_request(format!("invalid value for argument {name}"))) }
}

/// A path below the device's root, without its leading slash; `..` and empty parts are refused.
pub fn file_path(text: &str) -> Result<String, ApiError> {
    let path = text.strip_prefix('/').unwrap_or(text);
    let sound = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.len() <= 255
            && !part.contains(|c: char| c.is_control())
    };
    if path.split('/').all(sound) && path.len() <= 1024 {
        Ok(path.to_owned())
    } else {
        Err(ApiError::bad_request("invalid value for argument file-path"))
    }
}
