//! One volume at a target: who may connect, who is registered, and what was received and has not landed.
//!
//! In come the RDS's changes and what hosts do; out goes whether a host would be let in, and whether its writes would
//! be carried out. What always holds, as Linux was measured: list, export and secret matter to new connections only;
//! a write that was received lands, whatever becomes of its host, unless it was waited for.
//!
//! `Host` is what the list names hosts by, `Id` what reservations know them by, `Write` what somebody wants to know of
//! a write on its way. Whose connections are up is the caller's: the explorer keeps that with the hosts' paths, the
//! simulation with its sockets.

use std::collections::BTreeSet;

use crate::reservations::Reservations;

/// What a target does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Abilities {
    /// A host that is not on the list cannot connect.
    pub acl: bool,
    /// Export off ends live sessions.
    pub cuts: bool,
    /// And waits for every write that was received.
    pub drains: bool,
    /// A host without the secret in force cannot connect.
    pub secret: bool,
    /// Reservations are held, and refuse the writes of who is not registered.
    pub reservations: bool,
    /// Preempt-and-abort waits for the writes of who loses its registration.
    pub abort_waits: bool,
}

/// Whom the list lets in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum List<Host> {
    /// There is no list: everybody.
    Everybody,
    /// These alone.
    Only(BTreeSet<Host>),
}

impl<Host: Ord> List<Host> {
    /// Whether it lets a host in.
    #[must_use]
    pub fn has<Name: Ord + ?Sized>(&self, host: &Name) -> bool
    where
        Host: std::borrow::Borrow<Name>,
    {
        match self {
            Self::Everybody => true,
            Self::Only(hosts) => hosts.contains(host),
        }
    }
}

/// A write that was received and has not landed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Received<Id, Write> {
    /// Whose.
    pub host: Id,
    /// When it lands, or the latest moment at which it may.
    pub lands_at: u64,
    /// What is known of it besides.
    pub write: Write,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Volume<Host, Id, Secret, Write, const PORTALS: usize> {
    /// Who may connect.
    pub list: List<Host>,
    /// The list is kept and not looked at until it is set again, as after some restarts.
    pub list_ignored: bool,
    /// It is exported, by portal.
    pub on: [bool; PORTALS],
    /// The secret that connects need.
    pub secret: Option<Secret>,
    /// Who is registered.
    pub reservations: Reservations<Id>,
    /// What is on its way, in the order of receipt.
    pub received: Vec<Received<Id, Write>>,
}

impl<Host, Id, Secret, Write, const PORTALS: usize> Volume<Host, Id, Secret, Write, PORTALS>
where
    Host: Ord,
    Id: Copy + Eq,
    Secret: PartialEq,
{
    /// A volume that is exported, for these.
    #[must_use]
    pub fn new(list: List<Host>) -> Self {
        Self {
            list,
            list_ignored: false,
            on: [true; PORTALS],
            secret: None,
            reservations: Reservations::default(),
            received: Vec::new(),
        }
    }

    /// Whether a host is kept out by the list.
    #[must_use]
    pub fn is_listed<Name: Ord + ?Sized>(&self, abilities: Abilities, host: &Name) -> bool
    where
        Host: std::borrow::Borrow<Name>,
    {
        !abilities.acl || self.list_ignored || self.list.has(host)
    }

    /// Whether a host that has this secret could connect as far as secrets go.
    #[must_use]
    pub fn is_its_secret(&self, abilities: Abilities, secret: Option<&Secret>) -> bool {
        !abilities.secret || self.secret.is_none() || self.secret.as_ref() == secret
    }

    /// Whether a new connection of a host with this secret would be accepted at a portal.
    #[must_use]
    pub fn accepts_at<Name: Ord + ?Sized>(
        &self,
        portal: usize,
        abilities: Abilities,
        host: &Name,
        secret: Option<&Secret>,
    ) -> bool
    where
        Host: std::borrow::Borrow<Name>,
    {
        self.on[portal] && self.is_listed(abilities, host) && self.is_its_secret(abilities, secret)
    }

    /// It is exported at some portal.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on.contains(&true)
    }

    /// Takes the export off everywhere. What becomes of the sessions is the caller's.
    pub fn hide(&mut self) {
        self.on = [false; PORTALS];
    }

    /// Exports it everywhere.
    pub fn show(&mut self) {
        self.on = [true; PORTALS];
    }

    /// The namespace is made anew, as by a restart: registrations are forgotten, lists and secrets are not.
    pub fn restart(&mut self) {
        self.reservations.forget();
    }

    /// What has landed by now, in the order of receipt.
    pub fn land(&mut self, now: u64) -> Vec<Received<Id, Write>> {
        let (landed, left) =
            std::mem::take(&mut self.received).into_iter().partition(|one| one.lands_at <= now);
        self.received = left;
        landed
    }

    /// When the last write of a host that is on its way may land.
    #[must_use]
    pub fn lands_last(&self, host: Id) -> Option<u64> {
        self.received.iter().filter(|one| one.host == host).map(|one| one.lands_at).max()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Abilities, List, Received, Volume};

    type Small = Volume<&'static str, char, u8, (), 2>;

    fn listed(hosts: &[&'static str]) -> Small {
        Small::new(List::Only(hosts.iter().copied().collect()))
    }

    #[test]
    fn a_list_counts_only_where_the_target_looks_at_it() {
        let looks = Abilities { acl: true, ..Abilities::default() };
        let mut volume = listed(&["a"]);
        assert!(volume.accepts_at(0, looks, "a", None) && !volume.accepts_at(0, looks, "b", None));
        assert!(volume.accepts_at(0, Abilities::default(), "b", None));
        volume.list_ignored = true;
        assert!(volume.accepts_at(0, looks, "b", None));
    }

    #[test]
    fn a_portal_that_is_off_lets_nobody_in() {
        let mut volume = Small::new(List::Everybody);
        volume.on[0] = false;
        let any = Abilities::default();
        assert!(!volume.accepts_at(0, any, "a", None) && volume.accepts_at(1, any, "a", None));
        volume.hide();
        assert!(!volume.is_on());
        volume.show();
        assert!(volume.accepts_at(0, any, "a", None));
    }

    #[test]
    fn a_secret_counts_only_once_it_is_set() {
        let asks = Abilities { secret: true, ..Abilities::default() };
        let mut volume = Small::new(List::Everybody);
        assert!(volume.accepts_at(0, asks, "a", None));
        volume.secret = Some(7);
        assert!(!volume.accepts_at(0, asks, "a", Some(&6)) && volume.accepts_at(0, asks, "a", Some(&7)));
    }

    #[test]
    fn what_was_received_lands_after_a_restart_too() {
        let mut volume = listed(&["a"]);
        volume.reservations.register('a', None, 1).unwrap();
        volume.received = [3, 5].map(|lands_at| Received { host: 'a', lands_at, write: () }).to_vec();
        volume.restart();
        assert!(volume.reservations.registrants().is_empty());
        assert_eq!(volume.land(3).len(), 1);
        assert_eq!(volume.lands_last('a'), Some(5));
    }
}
