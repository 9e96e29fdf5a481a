//! The storage target: who may connect, who is connected, what was received and lands later.
//!
//! It behaves as Linux was measured to: an access list is asked at connects only; taking an export away ends its
//! sessions; a write that was received lands, whatever has become of its host; taking a namespace down waits for what
//! is on its way.

use std::collections::{BTreeMap, BTreeSet};

use cleat_controller::rds::NOBODY;
use cleat_host::fabrics::DhchapSecret;

use super::{NodeIx, VolumeIx};

/// What the target does. A planted fault changes one of them behind the controller's back.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// The list of hosts is enforced at connects.
    pub acl: bool,
    /// Taking an export away ends its sessions.
    pub cuts: bool,
    /// And waits for what was received.
    pub drains: bool,
    /// Connects need the secret, where one is set.
    pub asks_secret: bool,
    /// A restart switches every export on, and lists are not looked at until they are set again.
    pub forgets: bool,
    /// It keeps reservations, until it restarts.
    pub reservations: bool,
    /// Preempt-and-abort waits for what the victim has on its way.
    pub abort_waits: bool,
}

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

/// A write that was received and has not landed.
#[derive(Debug, Clone)]
pub struct Received {
    /// Whose.
    pub node: NodeIx,
    /// Which of that node's writes to the volume.
    pub write: u64,
    /// Over which session.
    pub session: u64,
    /// When it lands.
    pub lands_at: u64,
}

/// One volume.
#[derive(Debug, Clone, Default)]
pub struct Lun {
    /// Hosts can see it.
    pub exported: bool,
    /// The list is shown and not looked at until it is set again.
    pub list_forgotten: bool,
    /// Host NQNs that may connect; everybody if empty.
    pub hosts: BTreeSet<String>,
    /// The secret that connects need.
    pub secret: Option<Secret>,
    /// Who is registered, and under which key.
    pub registrants: BTreeMap<NodeIx, u64>,
    /// Held Write Exclusive – All Registrants.
    pub held: bool,
    /// Counts changes of the reservation.
    pub generation: u32,
    /// Connections by number.
    pub sessions: BTreeMap<u64, Session>,
    /// Writes on their way, in the order of their receipt.
    pub received: Vec<Received>,
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
    /// What it does.
    pub abilities: Abilities,
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
        let nobody = |volume| lists.then(|| format!("{NOBODY}{}", super::volume_id(volume)));
        let lun =
            |volume| Lun { exported: true, hosts: nobody(volume).into_iter().collect(), ..Lun::default() };
        Self { up: true, abilities, luns: (0..volumes).map(lun).collect(), holds_ms, sessions: 0 }
    }

    /// Whether a host would be let in now.
    #[must_use]
    pub fn admits(&self, volume: VolumeIx, host_nqn: &str, secret: Option<&DhchapSecret>) -> bool {
        let lun = &self.luns[volume];
        let enforced = self.abilities.acl && !lun.list_forgotten && !lun.hosts.is_empty();
        let listed = !enforced || lun.hosts.contains(host_nqn);
        let needed = lun.secret.as_ref().filter(|_| self.abilities.asks_secret);
        let known = needed.is_none_or(|needed| secret == Some(&needed.secret));
        self.up && lun.exported && listed && known
    }

    /// The secret that a volume asks for, as hosts have it.
    #[must_use]
    pub fn secret(&self, volume: VolumeIx) -> Option<&DhchapSecret> {
        self.luns[volume].secret.as_ref().map(|secret| &secret.secret)
    }

    /// Whether a write of a node that is connected would be taken.
    #[must_use]
    pub fn takes_writes(&self, volume: VolumeIx, node: NodeIx) -> bool {
        let lun = &self.luns[volume];
        !lun.held || lun.registrants.contains_key(&node)
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
                lun.hosts.clone_from(hosts);
                lun.list_forgotten = false;
            }
            Change::Secret(secret) => lun.secret = Some(secret.clone()),
            Change::Export(on) => {
                lun.exported = *on;
                if !on && cuts {
                    lun.sessions.clear();
                }
            }
        }
    }

    /// Whether taking the export away is still waiting for what was received.
    #[must_use]
    pub fn still_drains(&self, volume: VolumeIx) -> bool {
        self.abilities.drains && !self.luns[volume].exported && !self.luns[volume].received.is_empty()
    }

    /// Goes down: no session survives it, and no reservation. What was received is in the backing store's hands.
    pub fn go_down(&mut self) {
        self.up = false;
        for lun in &mut self.luns {
            lun.sessions.clear();
            lun.registrants.clear();
            (lun.held, lun.generation) = (false, 0);
            if self.abilities.forgets {
                (lun.list_forgotten, lun.exported) = (true, true);
            }
        }
    }

    /// What lands until now, in the order of receipt.
    pub fn land(&mut self, volume: VolumeIx, now: u64) -> Vec<Received> {
        let received = std::mem::take(&mut self.luns[volume].received);
        let (landed, left) = received.into_iter().partition(|write| write.lands_at <= now);
        self.luns[volume].received = left;
        landed
    }
}
