//! Whether the kernel is to give up a path before its keep-alive does: signs in, decision out.
//!
//! Comes in: what shows that nothing gets through to a storage address, what else a volume has, what was
//! given up lately. Goes out: yes, or the reason why not. No I/O and no clock: times are handed in.
//!
//! Three sources can say that nothing gets through, and two of them have to. They are independent: what can
//! make one of them wrong does not make another one wrong.
//! - *Unacknowledged*: the kernel has sent the same data again and again on a connection of a volume, and no
//!   acknowledgement came. Wrong where one connection alone is broken: a state table in between that forgot
//!   it, one link of a bundle. A new connection answers then.
//! - *Probe*: new connections, each from another port, get no answer. Wrong where the target admits no new
//!   ones: a listener whose queue is full, a firewall. What is connected is acknowledged all the same.
//! - *Link*: the interface has no carrier, or the neighbour does not answer to ARP. Wrong where the driver is,
//!   or where another route leads there. The two others do not look at it. Carrier and neighbour count once,
//!   as the kernel forgets neighbours with the carrier.
//!
//! A target that is overloaded acknowledges late, if at all, over *all* of its addresses. So another address
//! of it has to have answered since the suspicion began, and this one is then cut off, not late.
//!
//! Always holds:
//! - Never on one sign, never the last path, never while another storage address looks dead as well: then it
//!   is the network or the target, and no path is better than another.
//! - However long it goes on, [`Budget`] bounds how much is given up.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

/// How often a connection has to have timed out in a row: the first is sent again after 0.2 s at the
/// earliest, the second after 0.6 s. An interruption of 200 ms costs one.
pub(super) const TIMEOUTS: u32 = 2;
/// Probes in a row without an answer.
pub(super) const PROBES: u32 = 2;
/// The least time between two resets over one storage address.
pub(super) const PER_ADDRESS: Duration = Duration::from_secs(60);
/// How often in so much time any address may be given up.
pub(super) const IN_ALL: (usize, Duration) = (4, Duration::from_secs(600));
/// The most paths that are reset at once.
pub(super) const AT_ONCE: usize = 64;

/// What says that nothing gets through to a storage address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Signs {
    /// Data that was sent again and again is not acknowledged.
    pub(super) unacknowledged: bool,
    /// New connections get no answer.
    pub(super) probe: bool,
    /// The interface, or the neighbour table, says so.
    pub(super) link: bool,
}

impl Signs {
    /// How many sources say so.
    pub(super) fn count(self) -> usize {
        [self.unacknowledged, self.probe, self.link].into_iter().filter(|sign| *sign).count()
    }

    /// They as text for a person.
    pub(super) fn words(self) -> String {
        let signs = [
            (self.unacknowledged, "sent data is not acknowledged"),
            (self.probe, "new connections get no answer"),
            (self.link, "the link is down"),
        ];
        let words: Vec<&str> = signs.iter().filter(|(seen, _)| *seen).map(|(_, word)| *word).collect();
        words.join(", ")
    }
}

/// Why a path is left to its keep-alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    /// Only one source says that nothing gets through.
    OneSign,
    /// Another storage address looks dead, too.
    SeveralAddresses,
    /// This address was given up a short time ago.
    AddressTooSoon,
    /// Addresses were given up too often lately.
    TooOften,
    /// More paths than are reset at once.
    TooMany,
    /// What the kernel has could not be read whole.
    Unreadable,
    /// An operation has the volume.
    Busy,
    /// The kernel is at it already.
    NotLive,
    /// The path belongs to no device.
    NoDevice,
    /// The volume has no other live path.
    LastPath,
    /// No other live path is optimized.
    NotOptimized,
    /// No other live path's address has answered since.
    OtherDoesNotAnswer,
}

impl Refusal {
    /// The label of the metric, and the reason in the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::OneSign => "one_sign",
            Self::SeveralAddresses => "several_addresses",
            Self::AddressTooSoon => "address_too_soon",
            Self::TooOften => "too_often",
            Self::TooMany => "too_many",
            Self::Unreadable => "unreadable",
            Self::Busy => "busy",
            Self::NotLive => "not_live",
            Self::NoDevice => "no_device",
            Self::LastPath => "last_path",
            Self::NotOptimized => "not_optimized",
            Self::OtherDoesNotAnswer => "other_does_not_answer",
        }
    }
}

/// Another path of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OtherPath {
    /// Its controller is live, and at another address.
    pub(super) live: bool,
    /// The target prefers it, or makes no difference.
    pub(super) optimized: bool,
    /// Its address has answered since the suspicion began, and is not suspected itself.
    pub(super) answers: bool,
}

/// A path that may be given up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct PathFacts {
    /// Whether its controller is live.
    pub(super) live: bool,
    /// Whether an operation has the volume.
    pub(super) busy: bool,
    /// The other paths of each namespace that it leads to.
    pub(super) others: Vec<Vec<OtherPath>>,
}

/// Whether the paths over a storage address may be given up at all.
pub(super) fn of_address(
    address: IpAddr,
    signs: Signs,
    others_suspected: bool,
    budget: &Budget,
    now: Duration,
) -> Result<(), Refusal> {
    if signs.count() < 2 {
        return Err(Refusal::OneSign);
    }
    if others_suspected {
        return Err(Refusal::SeveralAddresses);
    }
    budget.allows(address, now)
}

/// Whether one path over such an address may be given up.
pub(super) fn of_path(path: &PathFacts) -> Result<(), Refusal> {
    if !path.live {
        return Err(Refusal::NotLive);
    }
    if path.busy {
        return Err(Refusal::Busy);
    }
    if path.others.is_empty() {
        return Err(Refusal::NoDevice);
    }
    for others in &path.others {
        let live = || others.iter().filter(|other| other.live);
        if live().next().is_none() {
            return Err(Refusal::LastPath);
        }
        if !live().any(|other| other.optimized) {
            return Err(Refusal::NotOptimized);
        }
        if !live().any(|other| other.optimized && other.answers) {
            return Err(Refusal::OtherDoesNotAnswer);
        }
    }
    Ok(())
}

/// What was given up lately.
#[derive(Debug, Clone, Default)]
pub(super) struct Budget {
    last: BTreeMap<IpAddr, Duration>,
    recent: VecDeque<Duration>,
}

impl Budget {
    fn allows(&self, address: IpAddr, now: Duration) -> Result<(), Refusal> {
        if self.last.get(&address).is_some_and(|last| now.saturating_sub(*last) < PER_ADDRESS) {
            return Err(Refusal::AddressTooSoon);
        }
        let lately = self.recent.iter().filter(|at| now.saturating_sub(**at) < IN_ALL.1).count();
        if lately >= IN_ALL.0 { Err(Refusal::TooOften) } else { Ok(()) }
    }

    /// Notes that an address is given up.
    pub(super) fn spend(&mut self, address: IpAddr, now: Duration) {
        self.last.retain(|_, last| now.saturating_sub(*last) < PER_ADDRESS);
        self.last.insert(address, now);
        self.recent.retain(|at| now.saturating_sub(*at) < IN_ALL.1);
        self.recent.push_back(now);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "verdict_tests.rs"]
mod tests;
