//! The addresses at which a subsystem listens, and a node's own addresses there.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::IdError;
use crate::text::reads_as_text;

/// Address and TCP port of an NVMe/TCP portal, IPv4 or IPv6, written `10.0.0.1:4420` or `[fd00::1]:4420`.
///
/// Always a numeric unicast address. Names are not resolved here. A link-local IPv6 address needs an
/// interface, which would make the portal mean something else on each node. An IPv4 address has one spelling:
/// its IPv6 form (`::ffff:10.0.0.1`) is read as the IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Portal(SocketAddr);

impl Portal {
    /// Checks a text such as `10.0.0.1:4420`.
    ///
    /// # Errors
    /// [`IdError`] when it is not a numeric address with a port, or not one that can be connected to.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let address: SocketAddr =
            text.parse().map_err(|_| no_portal(text, "is not ADDRESS:PORT with a numeric address"))?;
        // The lines below would drop an interface silently, and an address that needs one is refused anyway.
        Self::from_address(address).map_err(|error| no_portal(text, error.rule))
    }

    /// Checks an address that was parsed elsewhere.
    ///
    /// # Errors
    /// [`IdError`] for port 0, an unspecified, multicast or link-local IPv6 address.
    pub fn from_address(address: SocketAddr) -> Result<Self, IdError> {
        let ip = address.ip().to_canonical();
        let rule = match ip {
            _ if address.port() == 0 => "has port 0, which cannot be connected to",
            ip if ip.is_unspecified() => "is the unspecified address, which cannot be connected to",
            ip if ip.is_multicast() => "is a multicast address",
            IpAddr::V6(ip) if ip.is_unicast_link_local() => {
                "is a link-local IPv6 address, which is another place on each node"
            }
            _ => return Ok(Self(SocketAddr::new(ip, address.port()))),
        };
        Err(no_portal(&address.to_string(), rule))
    }

    /// The address, the kernel's `traddr`.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.0.ip()
    }

    /// The TCP port, the kernel's `trsvcid`.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Address and port as the standard library's type.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0
    }
}

fn no_portal(text: &str, rule: &'static str) -> IdError {
    IdError::new(
        "portal",
        text,
        rule,
        "use an address that all nodes reach, such as 10.0.0.1:4420 or [fd00::1]:4420",
    )
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

reads_as_text!(Portal);

/// An address of a node on a storage network, without a port.
///
/// Two nodes must not share one. So an address has one spelling, and what belongs to no single host
/// (unspecified, multicast) is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorageAddress(IpAddr);

impl StorageAddress {
    /// Checks a text such as `10.0.0.1` or `fd00::1`.
    ///
    /// # Errors
    /// [`IdError`] when it is not a numeric address, or not one that a host can have.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let address: IpAddr = text
            .parse()
            .map_err(|_| no_storage_address(text, "is not a numeric IP address without a port"))?;
        Self::from_address(address).map_err(|error| no_storage_address(text, error.rule))
    }

    /// Checks an address that was parsed elsewhere.
    ///
    /// # Errors
    /// [`IdError`] for an unspecified or multicast address.
    pub fn from_address(address: IpAddr) -> Result<Self, IdError> {
        match address.to_canonical() {
            ip if ip.is_unspecified() => {
                Err(no_storage_address(&address.to_string(), "is the unspecified address"))
            }
            ip if ip.is_multicast() => {
                Err(no_storage_address(&address.to_string(), "is a multicast address"))
            }
            ip => Ok(Self(ip)),
        }
    }

    /// As the standard library's type.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.0
    }
}

fn no_storage_address(text: &str, rule: &'static str) -> IdError {
    IdError::new(
        "storage address",
        text,
        rule,
        "use the node's own address there, such as 10.0.0.1 or fd00::1",
    )
}

impl fmt::Display for StorageAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

reads_as_text!(StorageAddress);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_read_and_written_alike() {
        for text in ["10.77.1.1:4420", "[fd00::1]:4420"] {
            assert_eq!(Portal::parse(text).map(|p| p.to_string()), Ok(text.to_owned()));
        }
        for text in ["10.77.1.1", "fd00::1", "127.0.0.1"] {
            assert_eq!(StorageAddress::parse(text).map(|a| a.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_cannot_be_connected_to_is_refused() {
        for text in [
            "10.77.1.1",
            "storage:4420",
            "0.0.0.0:4420",
            "10.0.0.1:0",
            "224.0.0.1:4420",
            "[fe80::1]:4420",
            "[fe80::1%1]:4420",
            "[::]:1",
            "[::ffff:0.0.0.0]:4420",
        ] {
            assert!(Portal::parse(text).is_err(), "{text}");
        }
        for text in ["", "10.0.0.1:4420", "host", "0.0.0.0", "::", "ff02::1", "fe80::1%eth0"] {
            assert!(StorageAddress::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn one_address_has_one_spelling() {
        assert_eq!(Portal::parse("[::ffff:10.0.0.1]:4420"), Portal::parse("10.0.0.1:4420"));
        assert_eq!(StorageAddress::parse("::ffff:10.0.0.1"), StorageAddress::parse("10.0.0.1"));
        assert_eq!(StorageAddress::parse("FD00:0::1"), StorageAddress::parse("fd00::1"));
    }
}
