//! Who this host is: to a target (host NQN, host identifier), and from one boot to the next (boot id).
//!
//! Comes in: `/etc/nvme/hostnqn`, `/etc/nvme/hostid`, `/proc`. Goes out: a [`HostIdentity`] that stays the
//! same until somebody changes those files.
//!
//! Rules for the two files:
//! - Both exist: they are taken as they are. They need not have the same UUID (Debian's nvme-cli package
//!   makes them unrelated), which [`HostIdentity::uuid_differs`] notes; what matters is that they stay a
//!   pair.
//! - One exists: the other is made from its UUID if it has one, else from a new one.
//! - None exists: a new UUID for both.
//! - One exists but cannot be read or is not valid: an error. It is never replaced: a host that changes its
//!   name loses its grants, and two hosts with one name overwrite each other.
//!
//! Always holds: what was made is on the disk (fsync of file and directory) before it is used.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::name::{HostId, HostNqn, InvalidName, Portal};
use crate::sysfs::Topology;

/// Why this host's identity is unknown.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read, written or made durable.
    #[error("cannot {step} {path}")]
    File {
        /// The step, such as `read` or `write`.
        step: &'static str,
        /// The file, directory or interface that the step was about.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A file exists but does not contain what it should. It is left as it is.
    #[error("cannot use {path}: it holds no valid name; correct or remove it")]
    Invalid {
        /// `hostnqn` or `hostid`, with its directory.
        path: PathBuf,
        /// The rule that its text breaks.
        #[source]
        source: InvalidName,
    },
    /// A controller is connected under our host NQN with another host identifier, or the other way round.
    /// Newer kernels (6.12 does, 6.1 does not) refuse every further connect then.
    #[error(
        "{controller} is connected as host NQN {nqn} with host id {id}, but this host is {own_nqn} with host \
         id {own_id}; disconnect it, or make the files under /etc/nvme the same pair"
    )]
    Clash {
        /// Its kernel name, such as `nvme3`.
        controller: String,
        /// The host NQN that it is connected with.
        nqn: String,
        /// The host identifier that it is connected with.
        id: String,
        /// The host NQN in this host's file.
        own_nqn: HostNqn,
        /// The host identifier in this host's file.
        own_id: HostId,
    },
    /// The storage interface has no usable address: link-local ones do not count.
    #[error("interface {interface} has no address")]
    NoAddress {
        /// Its name, such as `eth1`.
        interface: String,
    },
}

/// This host's names to a target, and its boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostIdentity {
    /// The name under which targets know it.
    pub host_nqn: HostNqn,
    /// The identifier that goes with that name.
    pub host_id: HostId,
    /// The host NQN contains a UUID that is not the host identifier: valid, but an operator should see it.
    pub uuid_differs: bool,
    /// Which boot this is (`/proc/sys/kernel/random/boot_id`): changes with every boot and with nothing else.
    pub boot_id: String,
    /// The running kernel, such as `6.12.48-cloud-amd64`.
    pub kernel_release: String,
}

/// The directories that the identity is read from.
#[derive(Debug, Clone)]
pub struct IdentitySource {
    etc_nvme: PathBuf,
    proc_root: PathBuf,
}

impl Default for IdentitySource {
    fn default() -> Self {
        Self::at("/etc/nvme", "/proc")
    }
}

impl IdentitySource {
    /// Reads from these directories; [`IdentitySource::default`] is `/etc/nvme` and `/proc`.
    pub fn at(etc_nvme: impl Into<PathBuf>, proc_root: impl Into<PathBuf>) -> Self {
        Self { etc_nvme: etc_nvme.into(), proc_root: proc_root.into() }
    }

    /// Reads the identity and makes whatever is missing. A few small files: call it at start.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load_or_make(&self) -> Result<HostIdentity, IdentityError> {
        let names = self.names()?.completed();
        self.keep(&names)?;
        self.identity(names)
    }

    /// Adds this boot and this kernel to the names.
    ///
    /// # Errors
    /// [`IdentityError::File`] when `/proc` cannot be read.
    pub fn identity(&self, names: HostNames) -> Result<HostIdentity, IdentityError> {
        let HostNames { host_nqn, host_id } = names;
        let uuid_differs = host_nqn.embedded_uuid().is_some_and(|uuid| uuid != host_id);
        Ok(HostIdentity {
            host_nqn,
            host_id,
            uuid_differs,
            boot_id: self.proc_text("sys/kernel/random/boot_id")?,
            kernel_release: self.proc_text("sys/kernel/osrelease")?,
        })
    }

    fn proc_text(&self, name: &str) -> Result<String, IdentityError> {
        let path = self.proc_root.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(source) => Err(IdentityError::File { step: "read", path, source }),
        }
    }

    /// Reads the two files. Makes nothing.
    ///
    /// # Errors
    /// [`IdentityError`] for a file that exists but cannot be read or is not valid.
    pub fn names(&self) -> Result<FoundNames, IdentityError> {
        Ok(FoundNames {
            host_nqn: read_name(&self.etc_nvme.join("hostnqn"), HostNqn::parse)?,
            host_id: read_name(&self.etc_nvme.join("hostid"), HostId::parse)?,
        })
    }

    /// Writes, durably, whichever of these names is missing. A file that exists is left as it is.
    ///
    /// # Errors
    /// [`IdentityError`]; one of the two may have been written then.
    pub fn keep(&self, names: &HostNames) -> Result<(), IdentityError> {
        let found = self.names()?;
        if found.whole().is_some() {
            return Ok(());
        }
        make_directory(&self.etc_nvme)?;
        // The identifier first: a crash in between leaves the one from which the other is made.
        if found.host_id.is_none() {
            write_durably(&self.etc_nvme.join("hostid"), &format!("{}\n", names.host_id))?;
        }
        if found.host_nqn.is_none() {
            write_durably(&self.etc_nvme.join("hostnqn"), &format!("{}\n", names.host_nqn))?;
        }
        Ok(())
    }
}

/// The two names of a host, which belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNames {
    /// The name under which targets know it.
    pub host_nqn: HostNqn,
    /// The identifier that goes with that name.
    pub host_id: HostId,
}

impl std::fmt::Display for HostNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "host NQN {} with host id {}", self.host_nqn, self.host_id)
    }
}

/// What the two files hold; `None` for one that is missing or empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundNames {
    /// From the file `hostnqn`.
    pub host_nqn: Option<HostNqn>,
    /// From the file `hostid`.
    pub host_id: Option<HostId>,
}

impl FoundNames {
    /// Both names, where both files have one.
    pub fn whole(&self) -> Option<HostNames> {
        Some(HostNames { host_nqn: self.host_nqn.clone()?, host_id: self.host_id? })
    }

    /// Whether every name that was found is the same as in `names`.
    pub fn fit(&self, names: &HostNames) -> bool {
        self.host_nqn.as_ref().is_none_or(|nqn| *nqn == names.host_nqn)
            && self.host_id.is_none_or(|id| id == names.host_id)
    }

    /// Both names. A missing one is made from the other's UUID, else from a new one.
    pub fn completed(&self) -> HostNames {
        let embedded = || self.host_nqn.as_ref().and_then(HostNqn::embedded_uuid);
        let host_id = self.host_id.or_else(embedded).unwrap_or_else(random_host_id);
        let host_nqn = self.host_nqn.clone().unwrap_or_else(|| HostNqn::from_host_id(host_id));
        HostNames { host_nqn, host_id }
    }
}

impl HostIdentity {
    /// Compares with the names that the kernel's controllers are connected with. A controller with two other
    /// names is no clash.
    ///
    /// # Errors
    /// [`IdentityError::Clash`].
    pub fn check_against(&self, topology: &Topology) -> Result<(), IdentityError> {
        for controller in &topology.controllers {
            let (Some(nqn), Some(id)) = (&controller.host_nqn, &controller.host_id) else { continue };
            let same_nqn = *nqn == self.host_nqn.as_str();
            let same_id = HostId::parse(id).is_ok_and(|id| id == self.host_id);
            if same_nqn != same_id {
                return Err(IdentityError::Clash {
                    controller: controller.name.to_string(),
                    nqn: nqn.clone(),
                    id: id.clone(),
                    own_nqn: self.host_nqn.clone(),
                    own_id: self.host_id,
                });
            }
        }
        Ok(())
    }
}

/// Reads one name; `None` when the file is missing or empty (a package may have left an empty one).
fn read_name<T>(
    path: &Path,
    parse: impl Fn(&str) -> Result<T, InvalidName>,
) -> Result<Option<T>, IdentityError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(IdentityError::File { step: "read", path: path.to_owned(), source }),
    };
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    parse(text).map(Some).map_err(|source| IdentityError::Invalid { path: path.to_owned(), source })
}

fn make_directory(path: &Path) -> Result<(), IdentityError> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|source| IdentityError::File {
        step: "create",
        path: path.to_owned(),
        source,
    })
}

/// Writes a file that is missing or whole, even after a crash: temporary file, fsync, rename, fsync of the
/// directory.
fn write_durably(path: &Path, text: &str) -> Result<(), IdentityError> {
    let failed = |step, path: &Path| {
        let path = path.to_owned();
        move |source| IdentityError::File { step, path, source }
    };
    let temporary = path.with_extension(format!("cleat-{}", std::process::id()));
    let written =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&temporary).and_then(
            |mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            },
        );
    written.map_err(failed("write", &temporary))?;
    fs::rename(&temporary, path).map_err(failed("rename to", path))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory).and_then(|dir| dir.sync_all()).map_err(failed("sync", directory))
}

/// Addresses of one interface without its link-local ones: the controller compares them with a target's
/// sessions.
///
/// # Errors
/// [`IdentityError::File`] when interfaces cannot be listed, `NoAddress` when this one has none.
pub fn interface_addresses(interface: &str) -> Result<Vec<IpAddr>, IdentityError> {
    let listed = nix::ifaddrs::getifaddrs().map_err(|errno| IdentityError::File {
        step: "list addresses of",
        path: PathBuf::from(interface),
        source: errno.into(),
    })?;
    let mut addresses: Vec<IpAddr> = listed
        .filter(|entry| entry.interface_name == interface)
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
        })
        .filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(IdentityError::NoAddress { interface: interface.to_owned() });
    }
    Ok(addresses)
}

/// The address that this host would use towards a portal, by its routing table. Sends nothing.
///
/// # Errors
/// [`IdentityError::File`] when there is no route.
pub fn source_address(portal: Portal) -> Result<IpAddr, IdentityError> {
    let any: SocketAddr = match portal.ip() {
        IpAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        IpAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let address = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(portal.address())?;
        socket.local_addr()
    });
    address.map(|address| address.ip()).map_err(|source| IdentityError::File {
        step: "find a route to",
        path: PathBuf::from(portal.to_string()),
        source,
    })
}

fn random_host_id() -> HostId {
    loop {
        if let Some(id) = HostId::from_bytes(uuid::Uuid::new_v4().into_bytes()) {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ID: &str = "00000000-0000-0000-0000-000000000011";

    struct Host {
        dir: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let random = dir.path().join("proc/sys/kernel/random");
            fs::create_dir_all(&random).expect("made");
            fs::write(random.join("boot_id"), "b00t\n").expect("written");
            fs::write(dir.path().join("proc/sys/kernel/osrelease"), "6.12.1\n").expect("written");
            Self { dir }
        }

        fn put(&self, name: &str, text: &str) {
            fs::create_dir_all(self.dir.path().join("nvme")).expect("made");
            fs::write(self.dir.path().join("nvme").join(name), text).expect("written");
        }

        fn load(&self) -> Result<HostIdentity, IdentityError> {
            IdentitySource::at(self.dir.path().join("nvme"), self.dir.path().join("proc")).load_or_make()
        }
    }

    #[test]
    fn a_host_without_a_name_gets_one_and_keeps_it() {
        let host = Host::new();
        let made = host.load().expect("made");
        assert_eq!(made.host_nqn, HostNqn::from_host_id(made.host_id));
        assert_eq!((made.boot_id.as_str(), made.kernel_release.as_str()), ("b00t", "6.12.1"));
        assert_eq!(host.load().expect("kept"), made);
        let names = fs::read_dir(host.dir.path().join("nvme")).expect("listed").count();
        assert_eq!(names, 2, "no temporary file is left");
    }

    #[test]
    fn the_missing_half_follows_from_the_other() {
        let nqn = format!("nqn.2014-08.org.nvmexpress:uuid:{ID}");
        let by_nqn = Host::new();
        by_nqn.put("hostnqn", &nqn);
        assert_eq!(by_nqn.load().expect("loads").host_id.to_string(), ID);
        let by_id = Host::new();
        by_id.put("hostid", ID);
        by_id.put("hostnqn", "\n");
        assert_eq!(by_id.load().expect("loads").host_nqn.as_str(), nqn);
    }

    #[test]
    fn a_pair_that_differs_is_kept_and_noted() {
        let host = Host::new();
        host.put("hostnqn", "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000012\n");
        host.put("hostid", ID);
        let identity = host.load().expect("loads");
        assert!(identity.uuid_differs);
        assert_eq!(identity.host_id.to_string(), ID);
    }

    #[test]
    fn a_name_that_is_not_valid_is_never_replaced() {
        let host = Host::new();
        host.put("hostid", "not a uuid");
        let error = host.load().expect_err("invalid");
        assert!(error.to_string().contains("hostid"), "{error}");
        assert_eq!(
            fs::read_to_string(host.dir.path().join("nvme/hostid")).ok().as_deref(),
            Some("not a uuid")
        );
    }

    #[test]
    fn the_loopback_interface_has_its_address() {
        let addresses = interface_addresses("lo").expect("lo is up");
        assert!(addresses.contains(&IpAddr::from([127, 0, 0, 1])), "{addresses:?}");
        assert!(matches!(interface_addresses("nowhere9"), Err(IdentityError::NoAddress { .. })));
        let portal = Portal::parse("127.0.0.1:4420").expect("valid");
        assert_eq!(source_address(portal).ok(), Some(IpAddr::from([127, 0, 0, 1])));
    }
}
