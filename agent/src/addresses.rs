//! Finds this node's addresses on the storage networks where nobody has named them.
//!
//! Comes in: the interfaces of the host. Goes out: the addresses from which the host itself connects over
//! interfaces that lead out of it. Addresses of bridges inside the host (such as a container runtime's) are
//! the same on every node, and the controller refuses two nodes with one address: so only interfaces with
//! hardware count, and bonds, VLANs and bridges over such. Addresses that move between hosts (a virtual
//! router's, a load balancer's) do not count either: no connection ever comes from one, since the routing
//! table has another source address for its network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use cleat_host::Portal;
use cleat_host::identity::source_address;

/// How many bonds, VLANs and bridges may be stacked on each other.
const DEEPEST: u32 = 4;

/// Why the addresses could not be found.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The kernel could not list the interfaces.
    #[error("cannot list this host's addresses; name them with --storage-address")]
    List(#[source] nix::errno::Errno),
    /// No interface has an address that counts.
    #[error("cannot find an address of this host on a network; name one with --storage-address")]
    None,
}

/// Finds the addresses from which this host connects.
///
/// # Errors
/// [`AddressError`], which names the option to use instead.
pub fn find(sysfs_root: &Path) -> Result<Vec<IpAddr>, AddressError> {
    let class = sysfs_root.join("class/net");
    let mut found = BTreeMap::new();
    for interface in nix::ifaddrs::getifaddrs().map_err(AddressError::List)? {
        let ip_of = |address: nix::sys::socket::SockaddrStorage| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
        };
        let Some(ip) = interface.address.and_then(ip_of) else { continue };
        if !ip.is_loopback() && !is_link_local(&ip) && leads_out(&class, &interface.interface_name, 0) {
            found.insert(ip, interface.netmask.and_then(ip_of));
        }
    }
    let own = in_use(&found, |neighbour| {
        // The port is arbitrary: nothing is sent.
        let portal = Portal::from_address(SocketAddr::new(neighbour, 4420)).ok()?;
        source_address(portal).ok()
    });
    if own.is_empty() { Err(AddressError::None) } else { Ok(own) }
}

/// Those of the addresses, each with its mask, from which connections come. `source` returns which address
/// the host uses towards another one.
fn in_use(
    found: &BTreeMap<IpAddr, Option<IpAddr>>,
    source: impl Fn(IpAddr) -> Option<IpAddr>,
) -> Vec<IpAddr> {
    let another_is_used = |ip: IpAddr, mask: Option<IpAddr>| {
        let used = mask.and_then(|mask| neighbour(ip, mask, found)).and_then(&source);
        used.is_some_and(|used| used != ip && found.contains_key(&used))
    };
    found.iter().filter(|(ip, mask)| !another_is_used(**ip, **mask)).map(|(ip, _)| *ip).collect()
}

/// Another address of the same network, and not one of this host's; `None` for a network of a single address.
fn neighbour(ip: IpAddr, mask: IpAddr, own: &BTreeMap<IpAddr, Option<IpAddr>>) -> Option<IpAddr> {
    let others = |ip: u128, mask: u128, bits: u32| {
        let width = u128::MAX >> (128 - bits);
        let (network, hosts) = (ip & mask, !mask & width);
        (1..=hosts.saturating_sub(1).min(64)).map(move |host| network | host)
    };
    match (ip, mask) {
        (IpAddr::V4(ip), IpAddr::V4(mask)) => others(u32::from(ip).into(), u32::from(mask).into(), 32)
            .filter_map(|other| Some(IpAddr::from(Ipv4Addr::from(u32::try_from(other).ok()?))))
            .find(|other| !own.contains_key(other)),
        (IpAddr::V6(ip), IpAddr::V6(mask)) => others(ip.into(), mask.into(), 128)
            .map(|other| IpAddr::from(Ipv6Addr::from(other)))
            .find(|other| !own.contains_key(other)),
        _ => None,
    }
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Whether an interface is hardware or is stacked on hardware: `lower_*` links show what it is stacked on.
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
    fn an_address_that_no_connection_comes_from_is_left_out() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let with = |address: &str, mask: &str| (ip(address), Some(ip(mask)));
        let found = BTreeMap::from([
            with("10.77.1.1", "255.255.255.0"),
            with("10.77.1.200", "255.255.255.0"),
            with("10.77.2.1", "255.255.255.0"),
            with("192.0.2.9", "255.255.255.255"),
            with("fd00::5", "ffff:ffff:ffff:ffff::"),
            with("fd00::200", "ffff:ffff:ffff:ffff::"),
            (ip("10.9.9.9"), None),
        ]);
        let source = |towards: IpAddr| match towards.to_string() {
            near if near.starts_with("10.77.1.") => Some(ip("10.77.1.1")),
            near if near.starts_with("10.77.2.") => Some(ip("172.16.0.1")),
            near if near.starts_with("fd00::") => Some(ip("fd00::5")),
            other => panic!("nobody asks for {other}"),
        };
        let own: Vec<String> = in_use(&found, source).iter().map(IpAddr::to_string).collect();
        assert_eq!(own, ["10.9.9.9", "10.77.1.1", "10.77.2.1", "192.0.2.9", "fd00::5"]);
        assert_eq!(
            in_use(&found, |_| None).len(),
            found.len(),
            "what the kernel does not tell costs no address"
        );
    }

    #[test]
    fn hardware_and_what_lies_over_it_leads_out_and_a_bridge_does_not() {
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
