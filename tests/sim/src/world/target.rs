//! The storage target: who may connect, who is connected, what was received and lands later.
//!
//! What a target does is `cleat_world::target`'s, the one that the core is explored against; here are names, sessions and
//! single writes.

use std::collections::{BTreeMap, BTreeSet};

use cleat_host::fabrics::DhchapSecret;
use cleat_rds::NOBODY;
use cleat_world::target::{self, Abilities, List, Volume};

use super::{NodeIx, VolumeIx};

/// A connection, as the target sees it.
#[derive(Debug, Clone)]
pub struct Session {
    /// Whose.
    pub node: NodeIx,
    /// The boot of that node: a dead kernel's session is nobody's.
    pub boot: u32,
    /// Over which portal.
    pub portal: usize,
    /// Since when the node has not been heard, if it is not.
    pub silent_since: Option<u64>,
}

/// Which write it is that was received.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Which of its node's writes to the volume.
    pub write: u64,
    /// Over which session.
    pub session: u64,
}

/// A write that was received and has not landed.
pub type Received = target::Received<NodeIx, Sent>;

/// One volume.
#[derive(Debug, Clone)]
pub struct Lun {
    /// As every target has it. This one has no switch for one portal alone.
    pub volume: Volume<String, NodeIx, Secret, Sent, 1>,
    /// Connections by number.
    pub sessions: BTreeMap<u64, Session>,
}

/// A secret, as the RDS is told it and as hosts have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// The RDS's form.
    pub text: String,
    /// The hosts'.
    pub secret: DhchapSecret,
}

/// A change of one property of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Set the list of hosts to exactly this.
    Hosts(BTreeSet<String>),
    /// Switch the export.
    Export(bool),
    /// Set the secret.
    Secret(Secret),
}

/// The target.
#[derive(Debug)]
pub struct Target {
    /// Serves at all.
    pub up: bool,
    /// What it does. A planted fault changes one of them behind the controller's back.
    pub abilities: Abilities,
    /// A restart switches every export on, and lists are not looked at until they are set again.
    pub forgets: bool,
    /// Its volumes.
    pub luns: Vec<Lun>,
    /// The longest that its backing store holds a write now, in ms.
    pub holds_ms: u64,
    sessions: u64,
}

impl Target {
    /// A target with so many volumes, exported and (where they were made with lists) with nobody on them, that holds
    /// writes so long.
    #[must_use]
    pub fn new(volumes: usize, lists: bool, abilities: Abilities, holds_ms: u64) -> Self {
        let nobody =
            |volume| lists.then(|| format!("{NOBODY}{}.{}", super::volume_id(volume), "0".repeat(32)));
        let lun = |volume| Lun {
            volume: Volume::new(list(nobody(volume).into_iter().collect())),
            sessions: BTreeMap::new(),
        };
        let luns = (0..volumes).map(lun).collect();
        Self { up: true, abilities, forgets: false, luns, holds_ms, sessions: 0 }
    }

    /// Whether a host would be let in now.
    #[must_use]
    pub fn admits(&self, volume: VolumeIx, host_nqn: &str, secret: Option<&DhchapSecret>) -> bool {
        let lun = &self.luns[volume].volume;
        let known = match (secret, &lun.secret) {
            (Some(secret), Some(needed)) if *secret == needed.secret => Some(needed),
            _ => None,
        };
        self.up && lun.accepts_at(0, self.abilities, host_nqn, known)
    }

    /// The secret that a volume asks for, as hosts have it.
    #[must_use]
    pub fn secret(&self, volume: VolumeIx) -> Option<&DhchapSecret> {
        self.luns[volume].volume.secret.as_ref().map(|secret| &secret.secret)
    }

    /// Whether a write of a node that is connected would be taken.
    #[must_use]
    pub fn takes_writes(&self, volume: VolumeIx, node: NodeIx) -> bool {
        self.luns[volume].volume.reservations.lets_write(node)
    }

    /// Lets a node in; gives the session's number.
    pub fn connect(&mut self, volume: VolumeIx, node: NodeIx, boot: u32, portal: usize) -> u64 {
        self.sessions += 1;
        let session = Session { node, boot, portal, silent_since: None };
        self.luns[volume].sessions.insert(self.sessions, session);
        self.sessions
    }

    /// Changes a property.
    pub fn change(&mut self, volume: VolumeIx, change: &Change) {
        let cuts = self.abilities.cuts;
        let lun = &mut self.luns[volume];
        match change {
            Change::Hosts(hosts) => {
                lun.volume.list = list(hosts.clone());
                lun.volume.list_ignored = false;
            }
            Change::Secret(secret) => lun.volume.secret = Some(secret.clone()),
            Change::Export(true) => lun.volume.show(),
            Change::Export(false) => {
                lun.volume.hide();
                if cuts {
                    lun.sessions.clear();
                }
            }
        }
    }

    /// Whether taking the export away is still waiting for what was received.
    #[must_use]
    pub fn still_drains(&self, volume: VolumeIx) -> bool {
        let lun = &self.luns[volume].volume;
        self.abilities.drains && !lun.is_on() && !lun.received.is_empty()
    }

    /// Goes down: no session survives it, and no reservation. What was received is in the backing store's hands.
    pub fn go_down(&mut self) {
        self.up = false;
        for lun in &mut self.luns {
            lun.sessions.clear();
            lun.volume.restart();
            if self.forgets {
                lun.volume.list_ignored = true;
                lun.volume.show();
            }
        }
    }

    /// What lands until now, in the order of receipt.
    pub fn land(&mut self, volume: VolumeIx, now: u64) -> Vec<Received> {
        self.luns[volume].volume.land(now)
    }
}

/// As RouterOS takes it: an empty list lets everybody in.
fn list(hosts: BTreeSet<String>) -> List<String> {
    if hosts.is_empty() { List::Everybody } else { List::Only(hosts) }
}

impl Lun {
    /// The hosts on the list; none if everybody may connect.
    #[must_use]
    pub fn hosts(&self) -> Vec<&str> {
        match &self.volume.list {
            List::Everybody => Vec::new(),
            List::Only(hosts) => hosts.iter().map(String::as_str).collect(),
        }
    }
}
