//! One volume at the target, as the explored world has it: by small indices, and with what is on its way told by host.

use std::collections::BTreeSet;

use cleat_core::{Epoch, MinFence, ReservationAbility, TargetAbilities};

use crate::names::{N, P, PORTALS};
use crate::target::{Abilities, List, Received, Volume};

/// What a probe would have found out of a target.
#[must_use]
pub fn as_probed(truth: Abilities) -> TargetAbilities {
    let reservations = match (truth.reservations, truth.abort_waits) {
        (false, _) => ReservationAbility::None,
        (true, false) => ReservationAbility::Held,
        (true, true) => ReservationAbility::AbortWaits,
    };
    let Abilities { acl, cuts, drains, secret, .. } = truth;
    TargetAbilities { probed: true, acl, export_cuts: cuts, export_drains: drains, secret, reservations }
}

/// On what kind of connection a write is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Over {
    /// One that has ended: nobody waits for the write but the target.
    Ended,
    /// One that is live, of a host that has lost its registration: its own deletion still waits for the write, because
    /// the target completes none of them to the host before it has landed.
    Aborted,
}

/// How a deletion stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeDeletion {
    /// The RDS was asked.
    Asked,
    /// Whoever asked has given up, and the request is on its way still.
    Late,
}

/// A request to the RDS that outlives whoever asked: what it sets if it is carried out. The list is written whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    /// Who is on the list.
    pub hosts: Option<BTreeSet<N>>,
    /// The export.
    pub on: Option<bool>,
    /// The secret.
    pub secret: Option<Epoch>,
    /// It is carried out before then, or never.
    pub until: u64,
}

/// One exported volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// As the target has it.
    pub volume: Volume<N, N, Epoch, Over, PORTALS>,
    /// How often the target has started anew; with each start it forgets registrations.
    pub restarts: u8,
    /// The RDS's lists lack it.
    pub lacking: bool,
    /// A deletion is on its way.
    pub deletion: Option<VolumeDeletion>,
    /// What is still on its way of requests that nobody waits for.
    pub late: Vec<Late>,
}

impl Default for Export {
    fn default() -> Self {
        let volume = Volume::new(List::Only(BTreeSet::new()));
        Self { volume, restarts: 0, lacking: false, deletion: None, late: Vec::new() }
    }
}

impl Export {
    /// Whether a new connection of a host with this secret would be accepted at a portal.
    #[must_use]
    pub fn accepts_at(&self, p: P, truth: Abilities, n: N, secret: Option<Epoch>) -> bool {
        self.volume.accepts_at(p, truth, &n, secret.as_ref())
    }

    /// Whether it would be at any of them.
    #[must_use]
    pub fn accepts(&self, truth: Abilities, n: N, secret: Option<Epoch>) -> bool {
        (0..PORTALS).any(|p| self.accepts_at(p, truth, n, secret))
    }

    /// The strongest thing by which the target itself keeps a host with this secret from writing.
    #[must_use]
    pub fn guard(&self, truth: Abilities, n: N, secret: Option<Epoch>) -> Option<MinFence> {
        let off_the_list = !self.volume.is_listed(truth, &n);
        if truth.reservations && off_the_list && self.key_of(n).is_none() {
            Some(MinFence::Reservation)
        } else if !self.volume.is_its_secret(truth, secret.as_ref()) {
            Some(MinFence::Secret)
        } else if off_the_list {
            Some(MinFence::Acl)
        } else {
            (!self.volume.is_on()).then_some(MinFence::ExportOff)
        }
    }

    /// Whether a write of a host with a connection would be carried out.
    #[must_use]
    pub fn lets_write(&self, n: N) -> bool {
        self.volume.reservations.lets_write(n)
    }

    /// Under which key a host is registered.
    #[must_use]
    pub fn key_of(&self, n: N) -> Option<u64> {
        self.volume.reservations.key_of(n)
    }

    /// A host takes its key off.
    pub fn unregister(&mut self, n: N) {
        if let Some(key) = self.key_of(n) {
            let _ = self.volume.reservations.unregister(n, key);
        }
    }

    /// Somebody may be on the list.
    #[must_use]
    pub fn lists_anybody(&self) -> bool {
        matches!(&self.volume.list, List::Only(hosts) if !hosts.is_empty())
    }

    /// A host goes on the list, or off it.
    pub fn set_listed(&mut self, n: N, listed: bool) {
        if let List::Only(hosts) = &mut self.volume.list {
            if listed {
                hosts.insert(n)
            } else {
                hosts.remove(&n)
            };
        }
    }

    /// Something of a host is on its way, and lands before then.
    pub fn receives(&mut self, n: N, over: Over, lands_at: u64) {
        self.lets_go_of(n, over);
        self.volume.received.push(Received { host: n, lands_at, write: over });
        // In which order they came decides nothing here.
        self.volume.received.sort_by_key(|one| (one.host, one.write));
    }

    /// Nothing of that kind is on its way any more.
    pub fn lets_go_of(&mut self, n: N, over: Over) {
        self.volume.received.retain(|one| one.host != n || one.write != over);
    }

    /// Something of a host may still land.
    #[must_use]
    pub fn lands(&self, n: N, now: u64) -> bool {
        self.volume.lands_last(n).is_some_and(|until| until > now)
    }

    /// Something of that kind may still land.
    #[must_use]
    pub fn lands_over(&self, n: N, over: Over, now: u64) -> bool {
        let mut received = self.volume.received.iter();
        received.any(|one| one.host == n && one.write == over && one.lands_at > now)
    }
}
