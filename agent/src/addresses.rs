//! The addresses of this node on the storage networks, where nobody has named them.
//!
//! Comes in: the interfaces of the host. Goes out: the addresses of those that lead out of it. Addresses of bridges
//! that live inside the host (a container runtime's, say) are the same on every node, and the controller refuses two
//! nodes with one address: so only interfaces with hardware, and bonds, VLANs and bridges over such, count.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

/// How deep bonds, VLANs and bridges may lie over each other.
const DEEPEST: u32 = 4;

/// Why the addresses cannot be found out.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The kernel does not tell.
    #[error("cannot list this host's addresses; name them with --storage-address")]
    List(#[source] nix::errno::Errno),
    /// There is none.
    #[error("no interface that leads out of this host has an address; name one with --storage-address")]
    None,
}

/// Finds the addresses out.
///
/// # Errors
/// [`AddressError`], which names the flag to use instead.
pub fn find(sysfs_root: &Path) -> Result<Vec<IpAddr>, AddressError> {
    let class = sysfs_root.join("class/net");
    let mut found = BTreeSet::new();
    for interface in nix::ifaddrs::getifaddrs().map_err(AddressError::List)? {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip()));
        let Some(ip) = v4.or(v6) else { continue };
        if !ip.is_loopback() && !is_link_local(&ip) && leads_out(&class, &interface.interface_name, 0) {
            found.insert(ip);
        }
    }
    if found.is_empty() { Err(AddressError::None) } else { Ok(found.into_iter().collect()) }
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Whether an interface is hardware, or lies over hardware: `lower_*` links are what it lies over.
fn leads_out(class: &Path, name: &str, depth: u32) -> bool {
    if name.contains('/') || depth > DEEPEST {
        return false;
    }
    let dir = class.join(name);
    if dir.join("device").exists() {
        return true;
    }
    let Ok(entries) = std::fs::read_dir(&dir) else { return false };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_prefix("lower_").map(str::to_owned))
        .any(|lower| leads_out(class, &lower, depth + 1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hardware_and_what_lies_over_it_leads_out_and_a_bridge_of_containers_does_not() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["eth0/device", "bond0/lower_eth0", "br0/lower_bond0", "cni0/lower_veth1", "veth1"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        for (name, expected) in
            [("eth0", true), ("bond0", true), ("br0", true), ("cni0", false), ("none", false)]
        {
            assert_eq!(leads_out(dir.path(), name, 0), expected, "{name}");
        }
    }
}
