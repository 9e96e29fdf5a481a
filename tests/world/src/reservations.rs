//! Reservations of one namespace, as Linux' target keeps them: who is registered, and whether it is held.
//!
//! In come the commands of hosts; out goes a conflict, or what has changed. What always holds: a host has at most one
//! registration; a reservation that is held has a holder among the registrants. It is always Write Exclusive - All
//! Registrants, which is all that Cleat asks for. Where Linux differs from the NVMe standard this does as Linux does:
//! only the holder that the target remembers may take the reservation again or release it, although the standard calls
//! every registrant a holder.

/// A host may not do that: its key is not the one that is registered, or another host holds the reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict;

/// The reservations of one namespace. `Host` is how the target tells hosts apart: by their host id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reservations<Host> {
    registrants: Vec<(Host, u64)>,
    holder: Option<Host>,
    changes: u32,
}

impl<Host> Default for Reservations<Host> {
    fn default() -> Self {
        Self { registrants: Vec::new(), holder: None, changes: 0 }
    }
}

impl<Host: Copy + Eq> Reservations<Host> {
    /// Who is registered under which key, oldest first.
    #[must_use]
    pub fn registrants(&self) -> &[(Host, u64)] {
        &self.registrants
    }

    /// The key of a host.
    #[must_use]
    pub fn key_of(&self, host: Host) -> Option<u64> {
        self.registrants.iter().find(|(registrant, _)| *registrant == host).map(|(_, key)| *key)
    }

    /// The namespace is held: only registrants write.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.holder.is_some()
    }

    /// The generation that a report shows. Reserving and releasing do not count.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.changes
    }

    /// Whether a write of a connected host would be carried out.
    #[must_use]
    pub fn lets_write(&self, host: Host) -> bool {
        !self.is_held() || self.key_of(host).is_some()
    }

    /// Registers a host (`old` is `None`: the same key once more changes nothing, and counts all the same), or replaces
    /// its key.
    ///
    /// # Errors
    /// The host's key is another one.
    pub fn register(&mut self, host: Host, old: Option<u64>, key: u64) -> Result<(), Conflict> {
        let registered = self.key_of(host);
        let same_again = old.is_none() && registered == Some(key);
        if registered != old && !same_again {
            return Err(Conflict);
        }
        match self.registrants.iter_mut().find(|(registrant, _)| *registrant == host) {
            Some((_, registered)) => *registered = key,
            None => self.registrants.push((host, key)),
        }
        self.changes += 1;
        Ok(())
    }

    /// Takes a host's registration off. With the last one the reservation ends.
    ///
    /// # Errors
    /// The host's key is another one.
    pub fn unregister(&mut self, host: Host, key: u64) -> Result<(), Conflict> {
        self.own(host, key)?;
        self.take_off(|(registrant, _)| *registrant == host);
        self.changes += 1;
        Ok(())
    }

    /// Takes the reservation.
    ///
    /// # Errors
    /// The host's key is another one, or another host holds it.
    pub fn reserve(&mut self, host: Host, key: u64) -> Result<(), Conflict> {
        self.own(host, key)?;
        match self.holder {
            Some(holder) if holder != host => Err(Conflict),
            _ => {
                self.holder = Some(host);
                Ok(())
            }
        }
    }

    /// Releases the reservation; who does not hold it changes nothing.
    ///
    /// # Errors
    /// The host's key is another one.
    pub fn release(&mut self, host: Host, key: u64) -> Result<(), Conflict> {
        self.own(host, key)?;
        if self.holder == Some(host) {
            self.holder = None;
        }
        Ok(())
    }

    /// Takes all registrations under the victims' key off; gives whose they were. Key 0 is everybody else while the
    /// namespace is held, and leaves it to this host. Whether the target waits for what those hosts have on their way is
    /// the caller's.
    ///
    /// # Errors
    /// The host's own key is another one, or nobody has the victims'.
    pub fn preempt(&mut self, host: Host, key: u64, victim: u64) -> Result<Vec<Host>, Conflict> {
        self.own(host, key)?;
        if victim == 0 && self.is_held() {
            self.holder = Some(host);
            self.changes += 1;
            return Ok(self.take_off(|(registrant, _)| *registrant != host));
        }
        let victims = self.take_off(|(_, registered)| *registered == victim);
        if victims.is_empty() {
            return Err(Conflict);
        }
        self.changes += 1;
        Ok(victims)
    }

    /// Takes everything off.
    ///
    /// # Errors
    /// The host's key is another one.
    pub fn clear(&mut self, host: Host, key: u64) -> Result<(), Conflict> {
        self.own(host, key)?;
        (self.registrants, self.holder) = (Vec::new(), None);
        self.changes += 1;
        Ok(())
    }

    /// The target starts anew, or the namespace goes off and on: everything is forgotten, the generation, too.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    fn own(&self, host: Host, key: u64) -> Result<(), Conflict> {
        if self.key_of(host) == Some(key) { Ok(()) } else { Err(Conflict) }
    }

    /// A holder that goes leaves the reservation to the oldest registrant that stays.
    fn take_off(&mut self, goes: impl Fn(&(Host, u64)) -> bool) -> Vec<Host> {
        let gone: Vec<Host> =
            self.registrants.iter().filter(|one| goes(one)).map(|(host, _)| *host).collect();
        self.registrants.retain(|one| !goes(one));
        if self.holder.is_some_and(|holder| gone.contains(&holder)) {
            self.holder = self.registrants.first().map(|(host, _)| *host);
        }
        gone
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::{Conflict, Reservations};

    fn two_that_share() -> Reservations<char> {
        let mut target = Reservations::default();
        target.register('a', None, 1).unwrap();
        target.reserve('a', 1).unwrap();
        target.register('b', None, 2).unwrap();
        target
    }

    #[test]
    fn reserving_and_releasing_leave_the_generation() {
        let mut target = two_that_share();
        assert_eq!(target.generation(), 2);
        target.release('a', 1).unwrap();
        assert_eq!((target.is_held(), target.generation()), (false, 2));
        target.reserve('b', 2).unwrap();
        assert_eq!((target.is_held(), target.generation()), (true, 2));
    }

    #[test]
    fn the_same_key_once_more_counts_and_changes_nothing() {
        let mut target = two_that_share();
        target.register('b', None, 2).unwrap();
        assert_eq!((target.registrants(), target.generation()), (&[('a', 1), ('b', 2)][..], 3));
        assert_eq!(target.register('b', None, 3), Err(Conflict));
        target.register('b', Some(2), 3).unwrap();
        assert_eq!(target.key_of('b'), Some(3));
    }

    #[test]
    fn a_holder_that_leaves_leaves_the_reservation_behind() {
        let mut target = two_that_share();
        assert_eq!(target.reserve('b', 2), Err(Conflict), "the target remembers one holder");
        target.release('b', 2).unwrap();
        assert!(target.is_held(), "who does not hold it releases nothing");
        target.unregister('a', 1).unwrap();
        assert!(target.is_held() && !target.lets_write('a') && target.lets_write('b'));
        target.reserve('b', 2).unwrap();
        target.unregister('b', 2).unwrap();
        assert!(!target.is_held() && target.lets_write('a'), "with the last one it ends");
    }

    #[test]
    fn preempting_takes_off_the_victim_alone() {
        let mut target = two_that_share();
        assert_eq!(target.preempt('b', 2, 9), Err(Conflict), "nobody has that key");
        assert_eq!(target.preempt('b', 9, 1), Err(Conflict), "its own key is another one");
        assert_eq!(target.generation(), 2);
        assert_eq!(target.preempt('b', 2, 1).unwrap(), ['a']);
        assert_eq!((target.registrants(), target.generation()), (&[('b', 2)][..], 3));
        assert!(target.is_held() && !target.lets_write('a'));
    }

    #[test]
    fn preempting_key_0_takes_everybody_else_off_what_is_held() {
        let mut target = two_that_share();
        assert_eq!(target.preempt('b', 2, 0).unwrap(), ['a']);
        assert_eq!((target.registrants(), target.generation()), (&[('b', 2)][..], 3));
        target.release('b', 2).unwrap();
        assert!(!target.is_held(), "who preempts so holds it from then on");
        assert_eq!(target.preempt('b', 2, 0), Err(Conflict), "not held, 0 is a key that nobody has");
        target.reserve('b', 2).unwrap();
        assert_eq!(target.preempt('b', 2, 0).unwrap(), [], "alone, it counts all the same");
        assert_eq!((target.registrants(), target.generation()), (&[('b', 2)][..], 4));
    }

    #[test]
    fn a_restart_forgets_everything() {
        let mut target = two_that_share();
        target.forget();
        assert_eq!(target, Reservations::default());
        assert!(target.lets_write('a'));
    }
}
