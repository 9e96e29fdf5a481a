//! One NVMe controller: a host's association with a subsystem through one portal.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;

use serde::Serialize;

use super::attribute::Attribute;
use super::unreadable::Unreadable;
use crate::name::{ControllerName, Portal};

/// State of a controller, as the kernel names it (`drivers/nvme/host/sysfs.c`, `nvme_sysfs_show_state`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControllerState {
    /// Being set up for the first time.
    New,
    /// Connected: commands go through. The only state in which a deletion waits for writes in flight.
    Live,
    /// Its queues are being removed and will be set up again.
    Resetting,
    /// Lost its connection and is trying to get it back.
    Connecting,
    /// Being deleted; commands still reach the target, so that what is in flight can end.
    Deleting,
    /// Being deleted; the target takes no more commands.
    DeletingNoIo,
    /// The kernel has given it up: no command goes through, and it will not reconnect.
    Dead,
    /// A text that this version does not know.
    Other(String),
}

impl ControllerState {
    /// Whether commands go through: only in the state `live`.
    pub fn is_live(&self) -> bool {
        *self == Self::Live
    }

    /// Whether it is on its way out, whoever asked for that.
    pub fn is_going(&self) -> bool {
        matches!(self, Self::Deleting | Self::DeletingNoIo | Self::Dead)
    }
}

impl FromStr for ControllerState {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.trim() {
            "new" => Self::New,
            "live" => Self::Live,
            "resetting" => Self::Resetting,
            "connecting" => Self::Connecting,
            "deleting" => Self::Deleting,
            "deleting (no IO)" => Self::DeletingNoIo,
            "dead" => Self::Dead,
            other => Self::Other(other.to_owned()),
        })
    }
}

impl fmt::Display for ControllerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Live => "live",
            Self::Resetting => "resetting",
            Self::Connecting => "connecting",
            Self::Deleting => "deleting",
            Self::DeletingNoIo => "deleting (no IO)",
            Self::Dead => "dead",
            Self::Other(other) => other,
        })
    }
}

/// Tells controllers apart that had the same name one after the other: the inode number of the sysfs
/// directory. kernfs does not give one twice (it carries a generation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Incarnation(pub u64);

/// Where a controller connects to: the options that it was made with, as its `uevent` attribute shows them.
///
/// **Not the attribute `address`, which must never be read.** For nvme-tcp that attribute asks the admin
/// queue's socket for its own address. Since 6.1.118, 6.6.62 and 6.12 it checks whether the queue is live
/// *before* it takes the queue's lock (`nvme_tcp_get_address` in drivers/nvme/host/tcp.c). A read that meets
/// the end of that queue (a deletion, or the loss of a path) then uses a socket that was released: a NULL
/// dereference in `kernel_getsockname`, and the node panics. Seen on 6.1 when a sweep met a detach.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Address {
    /// As text, such as `traddr=10.0.0.1,trsvcid=4420`.
    pub raw: String,
    /// The address and port, where the transport is TCP.
    pub portal: Option<Portal>,
}

impl Address {
    /// The attribute that the address is read from.
    pub(crate) const ATTRIBUTE: &str = "uevent";

    /// Parses the attribute's text (`nvme_class_uevent` in drivers/nvme/host/core.c); `None` for a controller
    /// that was made without an address, as local ones are.
    pub(crate) fn parse(uevent: &str) -> Option<Self> {
        let field = |name: &str| {
            uevent.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::trim)
        };
        let (address, service) = (field("NVME_TRADDR")?, field("NVME_TRSVCID").unwrap_or("none"));
        let portal = || {
            let portal = SocketAddr::new(address.parse().ok()?, service.parse().ok()?);
            Portal::from_address(portal).ok()
        };
        Some(Self { raw: format!("traddr={address},trsvcid={service}"), portal: portal() })
    }
}

/// One controller as sysfs shows it. Names are raw text: the host may have controllers whose names break the
/// rules of the standard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Controller {
    /// Its name for now: the kernel reuses it.
    pub name: ControllerName,
    /// Tells it apart from earlier and later controllers of that name.
    pub incarnation: Incarnation,
    /// NQN of the subsystem that it is connected to; `None` in its first moments.
    pub subsystem_nqn: Option<String>,
    /// Name of the subsystem's directory, such as `nvme-subsys0`.
    pub subsystem: Option<String>,
    /// Host NQN that it connected with. Local (PCIe) controllers have none.
    pub host_nqn: Option<String>,
    /// Host identifier that it connected with.
    pub host_id: Option<String>,
    /// The transport: `tcp`, `pcie`, …
    pub transport: Option<String>,
    /// Its type: `io`, `discovery`, `admin`.
    pub kind: Option<String>,
    /// Where it is connected to; `None` for a local controller.
    pub address: Option<Address>,
    /// The state when it was read; it can change at any moment.
    pub state: ControllerState,
    /// The controller id (CNTLID) that the target gave it.
    pub cntlid: Option<u32>,
    /// NUMA node of its network card; -1 for none.
    pub numa_node: Option<i32>,
    /// Number of queues, admin queue included.
    pub queue_count: Option<u32>,
    /// Seconds between two attempts to reconnect.
    pub reconnect_delay_s: Option<u32>,
    /// Seconds after which the kernel gives up, as it writes it: a number or `off`.
    pub ctrl_loss_tmo: Option<String>,
}

impl Controller {
    /// The portal that it is connected to, if that is a TCP one.
    pub fn portal(&self) -> Option<Portal> {
        self.address.as_ref().and_then(|address| address.portal)
    }
}

/// Reads one controller; `None` when it vanished meanwhile.
pub(super) fn read(
    class_dir: &Path,
    name: ControllerName,
    subsystem: Option<String>,
    unreadable: &mut Vec<Unreadable>,
) -> Option<Controller> {
    let dir = class_dir.join(name.as_str());
    // Follows the class link, so this is the inode of the device's own directory.
    let incarnation = Incarnation(std::fs::metadata(&dir).ok()?.ino());
    let mut from = Attribute { dir, unreadable };
    let state = from.value("state").unwrap_or_else(|| ControllerState::Other("unknown".to_owned()));
    let controller = Controller {
        incarnation,
        subsystem_nqn: from.text("subsysnqn"),
        subsystem,
        host_nqn: from.text("hostnqn"),
        host_id: from.text("hostid"),
        transport: from.text("transport"),
        kind: from.text("cntrltype"),
        address: from.text(Address::ATTRIBUTE).and_then(|text| Address::parse(&text)),
        state,
        cntlid: from.value("cntlid"),
        numa_node: from.value("numa_node"),
        queue_count: from.value("queue_count"),
        reconnect_delay_s: from.text("reconnect_delay").and_then(|text| text.parse().ok()),
        ctrl_loss_tmo: from.text("ctrl_loss_tmo"),
        name,
    };
    // Values of two incarnations must not be mixed: the reading counts only if the directory is still the
    // same.
    (std::fs::metadata(&from.dir).ok()?.ino() == incarnation.0).then_some(controller)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_are_read() {
        let made = |address: &str| {
            Address::parse(&format!(
                "MAJOR=242\nMINOR=0\nDEVNAME=nvme0\nNVME_TRTYPE=tcp\nNVME_TRADDR={address}\nNVME_TRSVCID=4420\n\
                 NVME_HOST_TRADDR=none\nNVME_HOST_IFACE=none"
            ))
        };
        let portal = |address: &str| made(address).and_then(|address| address.portal);
        assert_eq!(portal("10.77.1.1"), Portal::parse("10.77.1.1:4420").ok());
        assert_eq!(portal("fd00::1"), Portal::parse("[fd00::1]:4420").ok());
        assert_eq!(made("10.77.1.1").expect("an address").raw, "traddr=10.77.1.1,trsvcid=4420");
        assert_eq!(Address::parse("MAJOR=242\nMINOR=0\nDEVNAME=nvme0\nNVME_TRTYPE=pcie"), None);
    }

    #[test]
    fn only_live_is_live_and_unknown_words_are_kept() {
        let of = |text: &str| text.parse::<ControllerState>().expect("never fails");
        assert!(of("live\n").is_live());
        assert!(of("deleting (no IO)").is_going());
        for text in ["new", "resetting", "connecting", "deleting", "dead", "suspended"] {
            assert!(!of(text).is_live(), "{text}");
            assert_eq!(of(text).to_string(), text);
        }
    }
}
