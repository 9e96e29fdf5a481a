//! A portal: where a subsystem listens, one address and TCP port.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{InvalidName, text_name};

/// Address and TCP port of an NVMe/TCP portal, IPv4 or IPv6, written `10.0.0.1:4420` or `[fd00::1]:4420`.
///
/// Always a numeric unicast address: names are not resolved here, and a link-local IPv6 address needs an
/// interface, which would make the portal mean something else on each node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Portal(SocketAddr);

impl Portal {
    /// Checks a text such as `10.0.0.1:4420`.
    ///
    /// # Errors
    /// [`InvalidName`] when it is not a numeric address with a port, or not one that can be connected to.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let broken = |rule| InvalidName::new("portal", text, rule);
        let address: SocketAddr =
            text.parse().map_err(|_| broken("is not ADDRESS:PORT with a numeric address"))?;
        Self::from_address(address).map_err(|rule| broken(rule.rule))
    }

    /// Checks an address that was parsed elsewhere.
    ///
    /// # Errors
    /// [`InvalidName`] for port 0, an unspecified, multicast or link-local IPv6 address.
    pub fn from_address(address: SocketAddr) -> Result<Self, InvalidName> {
        let rule = match address.ip() {
            _ if address.port() == 0 => "port 0 cannot be connected to",
            ip if ip.is_unspecified() => "the unspecified address cannot be connected to",
            ip if ip.is_multicast() => "is a multicast address",
            IpAddr::V6(ip) if ip.is_unicast_link_local() => "is a link-local IPv6 address",
            _ => return Ok(Self(SocketAddr::new(address.ip(), address.port()))),
        };
        Err(InvalidName::new("portal", &address.to_string(), rule))
    }

    /// The address, the kernel's `traddr`.
    pub fn ip(&self) -> IpAddr {
        self.0.ip()
    }

    /// The TCP port, the kernel's `trsvcid`.
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    /// Both as the standard library's type.
    pub fn address(&self) -> SocketAddr {
        self.0
    }
}

impl fmt::Display for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_name!(Portal);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_read_and_written_alike() {
        for text in ["10.77.1.1:4420", "[fd00::1]:4420"] {
            assert_eq!(Portal::parse(text).map(|p| p.to_string()), Ok(text.to_owned()));
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
            "[::]:1",
        ] {
            assert!(Portal::parse(text).is_err(), "{text}");
        }
    }
}
