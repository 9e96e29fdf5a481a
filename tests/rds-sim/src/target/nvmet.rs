//! The kernel's target, by its configfs (drivers/nvme/target/configfs.c).
//!
//! In: steps. Out: directories, links and attribute writes below one root, usually `/sys/kernel/config/nvmet`, and
//! observations read back from there. What always holds: an attribute is written in one `write`, as configfs
//! wants it; an error names the path and what was written; nothing outside the subsystem asked for is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::libc;
use uuid::Uuid;

use crate::secret::Secret;

use super::{
    Connection, Namespace, Observed, ObservedNamespace, ObservedPort, ObservedSubsystem, Portal, Step,
    TargetError, TargetKernel,
};

/// The kernel's NVMe target.
#[derive(Debug)]
pub struct Nvmet {
    root: PathBuf,
}

impl Nvmet {
    /// The target whose configfs group is at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn subsystem(&self, nqn: &str) -> PathBuf {
        self.root.join("subsystems").join(nqn)
    }

    fn namespace(&self, nqn: &str) -> PathBuf {
        self.subsystem(nqn).join("namespaces/1")
    }

    fn port(&self, id: u16) -> PathBuf {
        self.root.join("ports").join(id.to_string())
    }

    fn create_port(&self, id: u16, portal: Portal) -> Result<(), TargetError> {
        let port = self.port(id);
        make_dir(&port)?;
        let family = if portal.address().is_ipv4() { "ipv4" } else { "ipv6" };
        write(&port.join("addr_trtype"), "tcp")?;
        write(&port.join("addr_adrfam"), family)?;
        write(&port.join("addr_traddr"), &portal.address().to_string())?;
        write(&port.join("addr_trsvcid"), &portal.port().to_string())
    }

    fn allow_host(&self, nqn: &str, host: &str) -> Result<(), TargetError> {
        let known = self.root.join("hosts").join(host);
        if !known.exists() {
            make_dir(&known)?;
        }
        make_link(&known, &self.subsystem(nqn).join("allowed_hosts").join(host))
    }

    fn set_secret(&self, host: &str, secret: &Secret) -> Result<(), TargetError> {
        let known = self.root.join("hosts").join(host);
        if !known.exists() {
            make_dir(&known)?;
        }
        let path = known.join("dhchap_key");
        // Not by `write`, whose errors repeat the value.
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(secret.reveal().as_bytes()))
            .map_err(failed("write a secret to", &path))
    }

    /// The secrets of these hosts; none where the kernel has no in-band authentication.
    fn secrets(&self, hosts: &BTreeSet<String>) -> Result<BTreeMap<String, Secret>, TargetError> {
        let mut secrets = BTreeMap::new();
        for host in hosts {
            let path = self.root.join("hosts").join(host).join("dhchap_key");
            if path.exists()
                && let Some(secret) = Secret::shown(&read(&path)?)
            {
                secrets.insert(host.clone(), secret);
            }
        }
        Ok(secrets)
    }

    fn disallow_host(&self, nqn: &str, host: &str) -> Result<(), TargetError> {
        remove_link(&self.subsystem(nqn).join("allowed_hosts").join(host))?;
        let known = self.root.join("hosts").join(host);
        match fs::remove_dir(&known) {
            // Busy: it is still on another subsystem's list.
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => Err(failed("rmdir", &known)(error)),
            _ => Ok(()),
        }
    }

    fn set_namespace(&self, nqn: &str, namespace: &Namespace, resv: bool) -> Result<(), TargetError> {
        let dir = self.namespace(nqn);
        if !dir.exists() {
            make_dir(&dir)?;
        }
        write(&dir.join("device_path"), &namespace.path.to_string_lossy())?;
        write(&dir.join("device_uuid"), &namespace.uuid.to_string())?;
        write(&dir.join("device_nguid"), &namespace.nguid.to_string())?;
        let reservations = dir.join("resv_enable");
        if reservations.exists() {
            write(&reservations, flag(resv))?;
        }
        Ok(())
    }

    fn enable(&self, nqn: &str) -> Result<(), TargetError> {
        let dir = self.namespace(nqn);
        let file = PathBuf::from(read(&dir.join("device_path"))?);
        // Asked here and not by trying: the kernel would complain on the console each time.
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&file);
        let buffered = match direct {
            Ok(_) => false,
            // The file system has no direct I/O (tmpfs before 6.6).
            Err(error) if error.kind() == ErrorKind::InvalidInput => true,
            Err(error) => return Err(failed("open", &file)(error)),
        };
        write(&dir.join("buffered_io"), flag(buffered))?;
        write(&dir.join("enable"), "1")
    }

    fn observe_ports(&self, nqn: &str) -> Result<BTreeMap<u16, ObservedPort>, TargetError> {
        let mut ports = BTreeMap::new();
        for name in names(&self.root.join("ports"))? {
            let Ok(id) = name.parse::<u16>() else { continue };
            let dir = self.port(id);
            let portal = if read(&dir.join("addr_trtype"))? == "tcp" {
                let address: Option<IpAddr> = read(&dir.join("addr_traddr"))?.parse().ok();
                let service: Option<u16> = read(&dir.join("addr_trsvcid"))?.parse().ok();
                address.zip(service).map(|(address, service)| Portal::new(address, service))
            } else {
                None
            };
            let linked = dir.join("subsystems").join(nqn).exists();
            ports.insert(id, ObservedPort { portal, linked });
        }
        Ok(ports)
    }

    fn observe_namespace(&self, nqn: &str) -> Result<Option<ObservedNamespace>, TargetError> {
        let dir = self.namespace(nqn);
        if !dir.exists() {
            return Ok(None);
        }
        let reservations = dir.join("resv_enable");
        Ok(Some(ObservedNamespace {
            enabled: read_flag(&dir.join("enable"))?,
            namespace: Namespace {
                path: read(&dir.join("device_path"))?.into(),
                uuid: read_uuid(&dir.join("device_uuid"))?,
                nguid: read_uuid(&dir.join("device_nguid"))?,
            },
            buffered: read_flag(&dir.join("buffered_io"))?,
            reservations: if reservations.exists() { Some(read_flag(&reservations)?) } else { None },
        }))
    }
}

impl TargetKernel for Nvmet {
    fn probe(&self) -> Result<(), TargetError> {
        for group in ["subsystems", "ports", "hosts"] {
            fs::read_dir(self.root.join(group))
                .map_err(|source| TargetError::Missing { root: self.root.clone(), source })?;
        }
        if !Path::new("/sys/module/nvmet_tcp").exists() {
            tracing::warn!(
                "module nvmet-tcp is not loaded; the kernel will have to find it at the first export"
            );
        }
        Ok(())
    }

    fn observe(&self, nqn: &str) -> Result<Observed, TargetError> {
        let ports = self.observe_ports(nqn)?;
        let dir = self.subsystem(nqn);
        if !dir.exists() {
            return Ok(Observed { ports, subsystem: None });
        }
        let hosts: BTreeSet<String> = names(&dir.join("allowed_hosts"))?.into_iter().collect();
        let subsystem = ObservedSubsystem {
            any_host: read_flag(&dir.join("attr_allow_any_host"))?,
            secrets: self.secrets(&hosts)?,
            hosts,
            namespace: self.observe_namespace(nqn)?,
        };
        Ok(Observed { ports, subsystem: Some(subsystem) })
    }

    fn apply(&self, step: &Step) -> Result<(), TargetError> {
        match step {
            Step::CreatePort(id, portal) => self.create_port(*id, *portal),
            Step::CreateSubsystem { nqn, serial, model } => {
                let dir = self.subsystem(nqn);
                make_dir(&dir)?;
                write(&dir.join("attr_serial"), serial)?;
                write(&dir.join("attr_model"), model)
            }
            Step::RemoveSubsystem(nqn) => remove_dir(&self.subsystem(nqn)),
            Step::SetAnyHost(nqn, any) => write(&self.subsystem(nqn).join("attr_allow_any_host"), flag(*any)),
            Step::AllowHost(nqn, host) => self.allow_host(nqn, host),
            Step::SetSecret(host, secret) => self.set_secret(host, secret),
            Step::DisallowHost(nqn, host) => self.disallow_host(nqn, host),
            Step::SetNamespace(nqn, namespace, resv) => self.set_namespace(nqn, namespace, *resv),
            Step::EnableNamespace(nqn) => self.enable(nqn),
            Step::DisableNamespace(nqn) => write(&self.namespace(nqn).join("enable"), "0"),
            Step::RemoveNamespace(nqn) => remove_dir(&self.namespace(nqn)),
            Step::Link(id, nqn) => {
                make_link(&self.subsystem(nqn), &self.port(*id).join("subsystems").join(nqn))
            }
            Step::Unlink(id, nqn) => remove_link(&self.port(*id).join("subsystems").join(nqn)),
            Step::Revalidate(nqn) => write(&self.namespace(nqn).join("revalidate_size"), "1"),
        }
    }

    fn connections(&self, portals: &BTreeSet<Portal>) -> Result<Vec<Connection>, TargetError> {
        let mut found = Vec::new();
        for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
            let table = match fs::read_to_string(path) {
                Ok(table) => table,
                // A kernel without IPv6 has no such table.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("read", Path::new(path))(error)),
            };
            found.extend(table.lines().skip(1).filter_map(|line| established(line, portals)));
        }
        found.sort();
        Ok(found)
    }
}

/// The connection on one line of /proc/net/tcp or tcp6, if it is up at one of the portals.
fn established(line: &str, portals: &BTreeSet<Portal>) -> Option<Connection> {
    const ESTABLISHED: &str = "01"; // include/net/tcp_states.h
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = socket_address(fields.next()?)?;
    let peer = socket_address(fields.next()?)?;
    let portal = Portal::new(local.ip(), local.port());
    (fields.next()? == ESTABLISHED && portals.contains(&portal)).then_some(Connection { portal, peer })
}

/// `0100007F:1144`: the address as 32-bit words in the machine's byte order, the port as a plain number.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(address)?)),
        32 => {
            let mut octets = [0u8; 16];
            for (index, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(address.get(index * 8..index * 8 + 8)?)?);
            }
            IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

fn failed(action: impl Into<String>, path: &Path) -> impl FnOnce(io::Error) -> TargetError {
    let action = action.into();
    move |source| TargetError::Configfs { action, path: path.to_owned(), source }
}

fn flag(on: bool) -> &'static str {
    if on { "1" } else { "0" }
}

fn write(path: &Path, value: &str) -> Result<(), TargetError> {
    // Neither O_CREAT nor a second write: configfs takes an attribute whole, and makes no files.
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(failed(format!("write {value:?} to"), path))
}

fn read(path: &Path) -> Result<String, TargetError> {
    let text = fs::read_to_string(path).map_err(failed("read", path))?;
    Ok(text.trim_end_matches('\n').to_owned())
}

fn read_flag(path: &Path) -> Result<bool, TargetError> {
    match read(path)?.as_str() {
        "1" => Ok(true),
        "0" => Ok(false),
        text => Err(unreadable(path, text, "flag")),
    }
}

fn read_uuid(path: &Path) -> Result<Uuid, TargetError> {
    let text = read(path)?;
    Uuid::parse_str(&text).map_err(|_| unreadable(path, &text, "UUID"))
}

fn unreadable(path: &Path, text: &str, expected: &'static str) -> TargetError {
    TargetError::Unreadable { path: path.to_owned(), text: text.to_owned(), expected }
}

fn names(dir: &Path) -> Result<Vec<String>, TargetError> {
    let entries = fs::read_dir(dir).map_err(failed("list", dir))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list", dir))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

fn make_dir(path: &Path) -> Result<(), TargetError> {
    fs::create_dir(path).map_err(failed("mkdir", path))
}

fn remove_dir(path: &Path) -> Result<(), TargetError> {
    fs::remove_dir(path).map_err(failed("rmdir", path))
}

fn make_link(target: &Path, link: &Path) -> Result<(), TargetError> {
    std::os::unix::fs::symlink(target, link).map_err(failed(format!("link {} as", target.display()), link))
}

fn remove_link(path: &Path) -> Result<(), TargetError> {
    fs::remove_file(path).map_err(failed("unlink", path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_read_from_the_kernels_tables() {
        let portals: BTreeSet<Portal> = ["10.77.1.1:4420".parse().unwrap()].into();
        let up =
            "   3: 01014D0A:1144 0B014D0A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 1";
        let found = established(up, &portals).unwrap();
        assert_eq!(found.peer, "10.77.1.11:40000".parse().unwrap());
        let listening = up.replace(" 01 0", " 0A 0");
        assert_eq!(established(&listening, &portals), None);
        let mapped = "1: 0000000000000000FFFF000001014D0A:1144 0000000000000000FFFF00000B014D0A:9C40 01 0";
        assert_eq!(established(mapped, &portals).unwrap(), found);
    }

    #[test]
    fn without_nvmet_the_error_names_the_module_to_load() {
        let error = Nvmet::at("/nonexistent/nvmet").probe().unwrap_err().to_string();
        assert!(error.contains("nvmet-tcp") && error.contains("configfs"), "{error}");
    }
}
