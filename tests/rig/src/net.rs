//! The networks of a run: four bridges in its own network namespace, and each machine's taps on them.
//!
//! The host side is `.254` in each, a machine's is its number. The control network carries nothing but the rig's
//! own connections and cannot be cut: a machine that is cut off from everything else can still be looked at.

use std::net::Ipv4Addr;

use crate::error::{Error, Result};
use crate::host;

/// A network that a machine has an interface on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// `eth0`, 10.77.3.0/24: controller and agents.
    Management,
    /// `eth1`, 10.77.1.0/24: the first path to storage.
    Storage1,
    /// `eth2`, 10.77.2.0/24: the second path to storage.
    Storage2,
    /// `eth3`, 10.77.9.0/24: the rig's own.
    Control,
}

impl Network {
    /// All of them, in the order of a machine's interfaces.
    pub const ALL: [Network; 4] =
        [Network::Management, Network::Storage1, Network::Storage2, Network::Control];
    /// Those that a test can cut.
    pub const CUTTABLE: [Network; 3] = [Network::Management, Network::Storage1, Network::Storage2];
    /// The two paths to storage.
    pub const STORAGE: [Network; 2] = [Network::Storage1, Network::Storage2];

    /// The third byte of its addresses.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Network::Storage1 => 1,
            Network::Storage2 => 2,
            Network::Management => 3,
            Network::Control => 9,
        }
    }

    /// The bridge, and the name that `hack/rig` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Network::Management => "mgmt",
            Network::Storage1 => "stor1",
            Network::Storage2 => "stor2",
            Network::Control => "ctl",
        }
    }

    /// The interface in a machine.
    #[must_use]
    pub fn interface(self) -> &'static str {
        match self {
            Network::Management => "eth0",
            Network::Storage1 => "eth1",
            Network::Storage2 => "eth2",
            Network::Control => "eth3",
        }
    }

    /// A machine's address in it.
    #[must_use]
    pub fn address(self, machine: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number(), machine)
    }

    /// The address of the host side.
    #[must_use]
    pub fn host_address(self) -> Ipv4Addr {
        self.address(HOST)
    }

    /// The host's end of a machine's interface.
    pub(crate) fn tap(self, machine: u8) -> String {
        format!("tap-{machine}-{}", self.number())
    }

    /// A machine's MAC address in it. The machine finds out by it which interface is which.
    pub(crate) fn mac(self, machine: u8) -> String {
        format!("52:54:00:77:{:02x}:{machine:02x}", self.number())
    }
}

impl std::str::FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Network> {
        let found =
            Network::CUTTABLE.into_iter().find(|n| n.name() == text || n.number().to_string() == text);
        found.ok_or_else(|| Error::NoRun { what: format!("no path {text}: it is stor1, stor2 or mgmt") })
    }
}

/// The last byte of the host side's addresses.
const HOST: u8 = 254;

/// Makes the bridges in the network namespace of this process.
pub(crate) fn make_bridges() -> Result<()> {
    let mut batch = String::from("link set lo up\n");
    for network in Network::ALL {
        let name = network.name();
        batch += &format!("link add {name} type bridge stp_state 0 forward_delay 0\n");
        batch += &format!("addr add {}/24 dev {name}\nlink set {name} up\n", network.host_address());
    }
    ip(&batch)
}

/// Makes a machine's taps, plugged in and up.
pub(crate) fn make_taps(machine: u8) -> Result<()> {
    let mut batch = String::new();
    for network in Network::ALL {
        let tap = network.tap(machine);
        batch += &format!("tuntap add dev {tap} mode tap\nlink set {tap} master {} up\n", network.name());
    }
    // Known beforehand, so that the rig need not ask around (once a second) for a machine that is coming up.
    let (control, mac) = (Network::Control, Network::Control.mac(machine));
    let address = control.address(machine);
    batch += &format!("neigh replace {address} lladdr {mac} dev {} nud permanent\n", control.name());
    ip(&batch)
}

/// Removes a machine's taps.
pub(crate) fn remove_taps(machine: u8) -> Result<()> {
    ip(&Network::ALL.map(|network| format!("link del {}\n", network.tap(machine))).concat())
}

/// Opens or shuts the bridges' ports to a machine. Shut, every packet is lost both ways and the machine is not
/// told: its link stays up, as behind a switch that has failed. At once in both directions: a tap that is taken
/// down and up again forwards only when the kernel's link watch has come round, up to a second later.
pub(crate) fn set_ports(machine: u8, networks: &[Network], open: bool) -> Result<()> {
    // BR_STATE_DISABLED and BR_STATE_FORWARDING of linux/if_bridge.h
    let state = if open { 3 } else { 0 };
    let lines = networks.iter().map(|n| format!("link set dev {} state {state}\n", n.tap(machine)));
    // Not `ip link … type bridge_slave state`, which reports success and changes nothing.
    host::run_with_input("bridge", &["-batch", "-"], lines.collect::<String>().as_bytes()).map(drop)
}

fn ip(batch: &str) -> Result<()> {
    host::run_with_input("ip", &["-batch", "-"], batch.as_bytes()).map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernels_limit_and_differ() {
        let names: Vec<String> = Network::ALL.iter().map(|n| n.tap(253)).collect();
        assert!(names.iter().all(|n| n.len() <= 15), "{names:?}");
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
    }

    #[test]
    fn the_control_network_cannot_be_named_as_a_path() {
        assert_eq!("stor2".parse::<Network>().unwrap(), Network::Storage2);
        assert_eq!("1".parse::<Network>().unwrap(), Network::Storage1);
        assert!("ctl".parse::<Network>().is_err());
    }

    #[test]
    fn addresses_are_where_the_documentation_says() {
        assert_eq!(Network::Management.address(11).to_string(), "10.77.3.11");
        assert_eq!(Network::Storage1.host_address().to_string(), "10.77.1.254");
        assert_eq!(Network::Storage2.mac(11), "52:54:00:77:02:0b");
    }
}
