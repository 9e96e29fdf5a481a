//! Whether the network interface towards a storage address says that nothing gets through.
//!
//! Comes in: an address. Goes out: what the interface or its neighbour table says, as text for a person. It is
//! read where it is wanted: an interface without a carrier, and a neighbour that answers no ARP, are facts
//! about this side of the network, which no load on a target can bring about.
//!
//! Always holds: what cannot be read is no sign.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::identity::source_address;
use crate::name::Portal;

/// Flag of an entry of `/proc/net/arp` whose hardware address is known (`ATF_COM`).
const COMPLETE: u32 = 0x2;

/// Interfaces of this host and where they lead. Cheap to clone; clones share what was found.
#[derive(Debug, Clone)]
pub struct Links {
    sysfs: PathBuf,
    proc: PathBuf,
    /// The interface towards an address, as it was found while that had a carrier: without one the kernel may
    /// name another.
    known: Arc<Mutex<BTreeMap<IpAddr, String>>>,
}

impl Links {
    /// The interfaces as these trees show them.
    pub fn at(sysfs: &Path, proc: &Path) -> Self {
        Self { sysfs: sysfs.to_owned(), proc: proc.to_owned(), known: Arc::default() }
    }

    /// Remembers over which interface an address is reached. Call it while it is.
    pub fn learn(&self, address: IpAddr) {
        if let Some(interface) = towards(address)
            && self.has_carrier(&interface) == Some(true)
        {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(address, interface);
        }
    }

    /// What says that nothing gets through to an address; `None` where nothing does.
    pub fn trouble(&self, address: IpAddr) -> Option<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&address).cloned();
        if let Some(interface) = known
            && self.has_carrier(&interface) == Some(false)
        {
            return Some(format!("{interface} has no carrier"));
        }
        let table = std::fs::read_to_string(self.proc.join("net/arp")).ok()?;
        answers_no_arp(&table, address).then(|| format!("{address} does not answer to ARP"))
    }

    fn has_carrier(&self, interface: &str) -> Option<bool> {
        let dir = self.sysfs.join("class/net").join(interface);
        match std::fs::read_to_string(dir.join("carrier")) {
            Ok(text) => Some(text.trim() == "1"),
            // An interface that was set down does not say whether it has one (EINVAL).
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Some(false),
            Err(_) => None,
        }
    }
}

/// The interface from whose address this host would connect.
fn towards(address: IpAddr) -> Option<String> {
    // The port is arbitrary: nothing is sent.
    let source = source_address(Portal::from_address(SocketAddr::new(address, 4420)).ok()?).ok()?;
    nix::ifaddrs::getifaddrs().ok()?.find_map(|interface| {
        let own = interface.address?;
        let v4 = own.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        let ip = v4.or_else(|| own.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))?;
        (ip == source).then_some(interface.interface_name)
    })
}

/// Whether the table has the address, and no entry of it with a hardware address.
fn answers_no_arp(table: &str, address: IpAddr) -> bool {
    let mut seen = false;
    for line in table.lines().skip(1) {
        let mut fields = line.split_whitespace();
        let (ip, flags) = (fields.next(), fields.nth(1));
        if ip.and_then(|ip| ip.parse().ok()) != Some(address) {
            continue;
        }
        let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok());
        match flags {
            Some(flags) if flags & COMPLETE == 0 => seen = true,
            _ => return false,
        }
    }
    seen
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_an_entry_without_a_hardware_address_is_a_sign() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     10.77.1.1        0x1         0x0         00:00:00:00:00:00     *        eth1\n\
                     10.77.2.1        0x1         0x2         52:54:00:77:02:01     *        eth2\n\
                     10.77.3.1        0x1         zz          52:54:00:77:02:01     *        eth3\n";
        for (address, sign) in
            [("10.77.1.1", true), ("10.77.2.1", false), ("10.77.3.1", false), ("10.77.4.1", false)]
        {
            assert_eq!(answers_no_arp(table, address.parse().unwrap()), sign, "{address}");
        }
    }

    #[test]
    fn an_interface_that_lost_its_carrier_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (sysfs, proc) = (dir.path().join("sys"), dir.path().join("proc"));
        std::fs::create_dir_all(sysfs.join("class/net/lo")).unwrap();
        std::fs::create_dir_all(proc.join("net")).unwrap();
        let carrier = |text: &str| std::fs::write(sysfs.join("class/net/lo/carrier"), text).unwrap();
        let (links, address) = (Links::at(&sysfs, &proc), IpAddr::from([127, 0, 0, 1]));
        carrier("0\n");
        links.learn(address);
        assert_eq!(links.trouble(address), None, "it was never seen with one");
        carrier("1\n");
        links.learn(address);
        assert_eq!(links.trouble(address), None);
        carrier("0\n");
        assert_eq!(links.trouble(address).unwrap(), "lo has no carrier");
    }
}
