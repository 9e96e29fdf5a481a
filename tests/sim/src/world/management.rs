//! The RDS's management: what was asked of it, and when that comes into force.
//!
//! Comes in: requests to set properties of volumes. Goes out: their coming into force, each once or never, in an order
//! that need not be the one in which they were sent. Always holds: a request that has been sent goes its way whatever
//! becomes of who sent it; it comes into force within [`LATE`] or not at all (unless that is what is wrong on purpose).

use std::fmt;

use cleat_host::fabrics::DhchapSecret;

use super::target::Change;
use super::{NODES, NodeIx, Planted, VolumeIx, World, host_nqn};

/// How much later than it was sent a request may come into force, in ms: longer than it takes to fence a node, as
/// with RouterOS.
pub const LATE: u64 = 7_500;
/// The same where that is longer than anybody was told.
const TOO_LATE: (u64, u64) = (9_500, 14_000);

/// What is waited for does not come into force before it is seen, in ms.
const SEEN: u64 = 30;

/// How the RDS's management answers.
#[derive(Debug, Default)]
pub struct Management {
    /// Not reached.
    pub away: bool,
    /// Additional time for each answer, in ms.
    pub slow_ms: u64,
    /// So many answers in a hundred are lost.
    pub loses: u64,
    /// So many requests in a hundred come into force late.
    pub lags: u64,
    /// One that lets a node in beside another one is waited for, to outlive its sender.
    pub awaited: bool,
    /// What a request that outlived its sender is about.
    pub suspect: Option<(VolumeIx, NodeIx)>,
    /// On their way.
    writes: Vec<Write>,
    sent: u64,
}

/// A request on its way.
#[derive(Debug, Clone)]
struct Write {
    number: u64,
    volume: VolumeIx,
    changes: Vec<Change>,
    sent_at: u64,
    lands_at: u64,
}

/// Which requests are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Any.
    Any,
    /// Those that let a host in.
    LetsIn,
    /// Those that let a host in beside one that has the volume.
    LetsInBeside,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// By which it is known; `None` if it never comes into force.
    pub number: Option<u64>,
    /// It gets an answer.
    pub answered: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hosts(hosts) => {
                let named = (0..NODES.len()).filter(|node| hosts.contains(&host_nqn(*node)));
                let named: Vec<_> = named.map(|node| NODES[node]).collect();
                write!(f, "list [{}]", named.join(", "))
            }
            Self::Export(on) => write!(f, "export {}", if *on { "on" } else { "off" }),
            Self::Secret(_) => f.write_str("another secret"),
        }
    }
}

impl Change {
    /// What a request's property sets.
    #[must_use]
    pub fn of(name: &str, value: &str) -> Option<Self> {
        match name {
            "nvme-tcp-server-allow-host-name" => {
                let hosts = value.split(',').filter(|host| !host.is_empty());
                Some(Self::Hosts(hosts.map(str::to_owned).collect()))
            }
            "nvme-tcp-export" => Some(Self::Export(value == "yes")),
            "nvme-tcp-server-password" => DhchapSecret::parse(value)
                .ok()
                .map(|secret| Self::Secret(super::target::Secret { text: value.to_owned(), secret })),
            _ => None,
        }
    }
}

impl World {
    /// Takes a request on its way.
    pub fn send(&mut self, volume: VolumeIx, changes: Vec<Change>) -> Fate {
        let lost = self.chance.below(100) < self.rds.loses;
        let late = self.chance.below(100) < self.rds.lags;
        let usual = self.chance.within(2, 15) + self.rds.slow_ms;
        let after = match (lost, self.chance.index(3)) {
            (true, 0) => None,
            (true, 1) => Some(self.late()),
            _ if late => Some(self.late()),
            _ => Some(usual),
        };
        self.rds.sent += 1;
        let number = self.rds.sent;
        let told: Vec<_> = changes.iter().map(ToString::to_string).collect();
        let fate = if lost { ", answer lost" } else { "" };
        self.note(format_args!(
            "rds: {} {} is asked for ({number}){fate}",
            super::volume_id(volume),
            told.join(", ")
        ));
        if let Some(after) = after {
            let (sent_at, lands_at) = (self.now, self.now + after);
            let mut write = Write { number, volume, changes, sent_at, lands_at };
            if self.rds.awaited && self.beside(&write).is_some() {
                write.lands_at = lands_at.max(sent_at + SEEN);
            }
            self.rds.writes.push(write);
        }
        Fate { number: after.map(|_| number), answered: !lost }
    }

    fn late(&mut self) -> u64 {
        let too_late = self.planted == Some(Planted::LandsTooLate);
        let (least, most) = if too_late { TOO_LATE } else { (1, LATE) };
        self.chance.within(least, most)
    }

    /// Whether a request has not come into force yet.
    #[must_use]
    pub fn on_its_way(&self, number: u64) -> bool {
        self.rds.writes.iter().any(|write| write.number == number)
    }

    /// Whether such a request is on its way.
    #[must_use]
    pub fn any_on_its_way(&self, which: Which) -> bool {
        self.rds.writes.iter().any(|write| match which {
            Which::Any => true,
            Which::LetsIn => self.lets_in(write).is_some(),
            Which::LetsInBeside => self.beside(write).is_some(),
        })
    }

    /// Who has the volume beside the one whom a request lets in, and is written down again with it.
    fn beside(&self, write: &Write) -> Option<NodeIx> {
        self.lets_in(write)?;
        write.changes.iter().find_map(|change| match change {
            Change::Hosts(hosts) => {
                let again = |node: &NodeIx| hosts.contains(&host_nqn(*node));
                (0..NODES.len()).find(|node| again(node) && self.could_write(*node, write.volume))
            }
            Change::Export(_) | Change::Secret(_) => None,
        })
    }

    /// Whom a request lets in.
    fn lets_in(&self, write: &Write) -> Option<NodeIx> {
        write.changes.iter().find_map(|change| match change {
            Change::Hosts(hosts) => (0..NODES.len()).find(|node| {
                let host = host_nqn(*node);
                hosts.contains(&host) && !self.target.luns[write.volume].hosts().contains(&host.as_str())
            }),
            Change::Export(_) | Change::Secret(_) => None,
        })
    }

    /// Who sent them is dead, and such a one was on its way: what is takes its time.
    pub fn forsaken(&mut self, which: Which) {
        for at in 0..self.rds.writes.len() {
            let after = self.late();
            let (volume, write) = (self.rds.writes[at].volume, &self.rds.writes[at]);
            let suspect = if which == Which::LetsInBeside { self.beside(write) } else { self.lets_in(write) };
            self.rds.suspect = suspect.map(|node| (volume, node)).or(self.rds.suspect);
            let write = &mut self.rds.writes[at];
            write.lands_at = (write.sent_at + after).max(self.now + 1);
        }
        if !self.rds.writes.is_empty() {
            self.count("requests outlived who sent them");
        }
    }

    /// What comes into force until now.
    pub(super) fn land_requests(&mut self) {
        let now = self.now;
        let (mut due, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.rds.writes).into_iter().partition(|write| write.lands_at <= now);
        self.rds.writes = left;
        due.sort_by_key(|write| (write.lands_at, write.number));
        for write in due {
            let late = now - write.sent_at > 500;
            for change in &write.changes {
                self.target.change(write.volume, change);
                let late = if late { ", late" } else { "" };
                let (of, number) = (super::volume_id(write.volume), write.number);
                self.note(format_args!("rds: {of} {change} ({number}){late}"));
            }
            if late {
                self.count("requests landed late");
            }
        }
    }
}
