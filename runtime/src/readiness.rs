//! Readiness: named conditions that must all hold before the process reports ready.
//!
//! Each part that needs time to become useful takes a flag at start-up. `/readyz` answers ready only when all
//! flags are up, and lists those that are not. A flag is down from the moment it is taken, so nothing is
//! ready by omission, and it goes down by itself when its owner drops it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All flags of the process. Cheap to clone; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    flags: Arc<Mutex<BTreeMap<&'static str, bool>>>,
}

/// One named condition. Down at first, and down again when dropped.
#[derive(Debug)]
pub struct ReadyFlag {
    name: &'static str,
    all: Readiness,
}

impl Readiness {
    /// Adds a condition that does not hold yet.
    #[must_use = "a dropped flag stays down"]
    pub fn flag(&self, name: &'static str) -> ReadyFlag {
        self.lock().insert(name, false);
        ReadyFlag { name, all: self.clone() }
    }

    /// The names of the conditions that do not hold; empty means ready.
    pub fn missing(&self) -> Vec<&'static str> {
        self.lock().iter().filter(|(_, up)| !**up).map(|(name, _)| *name).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, bool>> {
        // A map of flags is whole after every operation on it, so a panic elsewhere cannot have broken it.
        self.flags.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadyFlag {
    /// Sets whether the condition holds now; logs a change.
    pub fn set(&self, holds: bool) {
        let before = self.all.lock().insert(self.name, holds);
        if before != Some(holds) {
            tracing::info!(condition = self.name, holds, "readiness changed");
        }
    }
}

impl Drop for ReadyFlag {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_every_flag_is_up_and_a_dropped_flag_is_down() {
        let readiness = Readiness::default();
        assert!(readiness.missing().is_empty());
        let (store, rds) = (readiness.flag("store"), readiness.flag("rds"));
        assert_eq!(readiness.missing(), ["rds", "store"]);
        store.set(true);
        rds.set(true);
        assert!(readiness.missing().is_empty());
        drop(rds);
        assert_eq!(readiness.missing(), ["rds"]);
    }
}
