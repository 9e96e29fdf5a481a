//! The TCP port at which a volume is exported: one for all volumes, or one for each.
//!
//! A host whose connection is cut tries again. While its volume's export is off, a port of its own refuses
//! the connection, and the host goes on trying. A port that other volumes share accepts the connection and
//! answers that it has no such subsystem, with "do not retry": kernels since 6.10 then give up the volume
//! (`nvmf_should_reconnect`), and its users get I/O errors (seen with 6.18). So a fence that switches the
//! export off beside a survivor leaves that node its device only where the volume has a port of its own.
//!
//! Comes in: a range, and the ports that disks have. Goes out: a free port. Always holds: no port is given to
//! two volumes, even while both are being made.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use cleat_ids::VolumeId;

/// The ports that volumes may have, written `FIRST-LAST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumePorts(RangeInclusive<u16>);

/// The error for a text that is no range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("give a range of TCP ports, lowest first, such as 20000-24095")]
pub struct NotAPortRange;

impl FromStr for VolumePorts {
    type Err = NotAPortRange;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').ok_or(NotAPortRange)?;
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or(NotAPortRange);
        let (first, last) = (port(first)?, port(last)?);
        if first <= last { Ok(Self(first..=last)) } else { Err(NotAPortRange) }
    }
}

impl fmt::Display for VolumePorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

/// The ports of a range, and to which volumes this process has given them.
#[derive(Debug)]
pub(super) struct Ports {
    range: VolumePorts,
    given: Mutex<BTreeMap<VolumeId, u16>>,
}

impl Ports {
    pub(super) fn of(range: VolumePorts) -> Self {
        Self { range, given: Mutex::default() }
    }

    /// The lowest port that no disk has and no other volume was given. A volume that was given one, and does
    /// not exist yet, gets the same again. `None` if all are taken.
    pub(super) fn give(&self, volume: &VolumeId, taken: &BTreeSet<u16>) -> Option<u16> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(port) = given.get(volume).filter(|port| !taken.contains(port)) {
            return Some(*port);
        }
        // Not by the list alone: it may be older than a disk that was made meanwhile.
        let others: BTreeSet<u16> =
            given.iter().filter(|(id, _)| *id != volume).map(|(_, port)| *port).collect();
        let port = self.range.0.clone().find(|port| !taken.contains(port) && !others.contains(port))?;
        given.insert(volume.clone(), port);
        Some(port)
    }

    /// Notes that the volume is gone, and its port free.
    pub(super) fn take_back(&self, volume: &VolumeId) {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).remove(volume);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_two_ports_with_the_lower_first() {
        assert_eq!("20000-20001".parse::<VolumePorts>().unwrap().to_string(), "20000-20001");
        for bad in ["", "20000", "0-5", "6-5", "1-65536", "a-b", "1-2-3"] {
            assert!(bad.parse::<VolumePorts>().is_err(), "{bad}");
        }
    }

    #[test]
    fn no_two_volumes_get_one_port_even_if_the_list_is_old() {
        let ports = Ports::of("7-9".parse().unwrap());
        let volume = |name: &str| VolumeId::new(name).unwrap();
        let nothing = BTreeSet::new();
        assert_eq!(ports.give(&volume("a"), &BTreeSet::from([7])), Some(8));
        assert_eq!(ports.give(&volume("b"), &nothing), Some(7));
        assert_eq!(ports.give(&volume("a"), &nothing), Some(8), "a repeated call is for the same one");
        assert_eq!(ports.give(&volume("c"), &nothing), Some(9));
        assert_eq!(ports.give(&volume("d"), &nothing), None);
        ports.take_back(&volume("b"));
        assert_eq!(ports.give(&volume("d"), &nothing), Some(7));
    }
}
