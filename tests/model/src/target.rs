//! The target: who may connect, who is registered, and what it has received and not landed yet.
//!
//! In come the RDS's requests and what hosts do; out goes, for a host, whether it *could write*. What always holds:
//! a list of hosts matters to new connections only, and a write that was received lands, whatever happens to its
//! host, unless the namespace was taken down in between and the target waits for it (`drains`), or its bound is over.

use cleat_core::{Epoch, MinFence, Reservations, Target};

use crate::names::{N, NODES, P, PORTALS};

/// What a target really does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Truth {
    /// A host that is not on the list cannot connect.
    pub acl: bool,
    /// Export off ends live sessions.
    pub cuts: bool,
    /// And waits for every write that was received.
    pub drains: bool,
    /// A host without the secret of the generation in force cannot connect.
    pub secret: bool,
    /// Reservations are held, and refuse the writes of who is not registered.
    pub reservations: bool,
    /// Preempt-and-abort waits for the writes of who loses its registration.
    pub abort_waits: bool,
}

impl Truth {
    /// What a probe would have found out.
    #[must_use]
    pub fn as_probed(self) -> Target {
        let reservations = match (self.reservations, self.abort_waits) {
            (false, _) => Reservations::None,
            (true, false) => Reservations::Held,
            (true, true) => Reservations::AbortWaits,
        };
        let (acl, secret) = (self.acl, self.secret);
        Target { acl, export_cuts: self.cuts, export_drains: self.drains, secret, reservations }
    }
}

/// One exported volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The list of hosts.
    pub allowed: [bool; NODES],
    /// It is exported, by portal.
    pub on: [bool; PORTALS],
    /// The generation of the secret in force.
    pub secret: Option<Epoch>,
    /// A Write Exclusive - All Registrants reservation is held.
    pub reserved: bool,
    /// How often the target has started anew; with each start it forgets registrations.
    pub restarts: u8,
    /// Registered keys, by host.
    pub keys: [Option<u64>; NODES],
    /// Until when writes of a host that were received may land; 0: none.
    pub lands_until: [u64; NODES],
    /// The same of writes on a connection that is live, whose host has lost its registration: its own deletion still
    /// waits for them, because the target completes none of them to the host before it has landed.
    pub aborted_until: [u64; NODES],
}

impl Default for Export {
    fn default() -> Self {
        Self {
            allowed: [false; NODES],
            on: [true; PORTALS],
            secret: None,
            reserved: false,
            restarts: 0,
            keys: [None; NODES],
            lands_until: [0; NODES],
            aborted_until: [0; NODES],
        }
    }
}

impl Export {
    /// Whether a new connection of a host with this secret would be accepted at a portal.
    #[must_use]
    pub fn accepts_at(&self, p: P, truth: Truth, n: N, secret: Option<Epoch>) -> bool {
        self.on[p]
            && (!truth.acl || self.allowed[n])
            && (!truth.secret || self.secret.is_none() || self.secret == secret)
    }

    /// Whether it would be at any of them.
    #[must_use]
    pub fn accepts(&self, truth: Truth, n: N, secret: Option<Epoch>) -> bool {
        (0..PORTALS).any(|p| self.accepts_at(p, truth, n, secret))
    }

    /// The strongest thing by which the target itself keeps a host with this secret from writing.
    #[must_use]
    pub fn guard(&self, truth: Truth, n: N, secret: Option<Epoch>) -> Option<MinFence> {
        let off_the_list = truth.acl && !self.allowed[n];
        if truth.reservations && off_the_list && self.keys[n].is_none() {
            Some(MinFence::Reservation)
        } else if truth.secret && self.secret.is_some() && self.secret != secret {
            Some(MinFence::Secret)
        } else if off_the_list {
            Some(MinFence::Acl)
        } else {
            (!self.on.contains(&true)).then_some(MinFence::ExportOff)
        }
    }

    /// Whether a write of a host with a connection would be carried out.
    #[must_use]
    pub fn lets_write(&self, n: N) -> bool {
        !self.reserved || self.keys[n].is_some()
    }

    /// A host takes its key off; with the last one the reservation is released.
    pub fn unregister(&mut self, n: N) {
        self.keys[n] = None;
        self.reserved &= self.keys.iter().any(Option::is_some);
    }
}
