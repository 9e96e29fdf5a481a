//! What this process remembers of each volume between operations: whose turn it is, and which writes are in
//! doubt.
//!
//! Comes in: operations on a volume, one at a time for each. Goes out: their exclusivity, and the doubts
//! about them. A write whose answer was lost may be queued inside the RDS and take effect after later writes.
//! Until that is impossible, nothing is proven that it could undo.
//!
//! The memory ends with the process: `engine::unsettled` knows what an earlier process has left under way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cleat_ids::{HostNqn, VolumeId};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::access::AccessStep;
use super::error::RdsError;
use super::volume::RdsVolume;
use crate::secret::Secret;

/// Doubts beyond this many per volume replace the oldest; each stands for some seconds of an unreachable RDS.
const DOUBTS_MAX: usize = 64;

/// Turns and doubts by volume.
#[derive(Debug, Default)]
pub(super) struct PerVolume {
    volumes: Mutex<HashMap<VolumeId, Arc<tokio::sync::Mutex<Memory>>>>,
}

/// The exclusive use of one volume.
pub(super) type Held = OwnedMutexGuard<Memory>;

/// What is remembered of one volume.
#[derive(Debug, Default)]
pub(super) struct Memory {
    doubts: Vec<Doubt>,
    /// Whether our latest switch of the export was to off, and the RDS has answered it.
    hid: bool,
    /// When a removal of the disk was given up without an answer.
    removal: Option<Instant>,
}

/// A write whose answer was lost.
#[derive(Debug)]
struct Doubt {
    at: Instant,
    step: AccessStep,
    /// Whether something else was written since: then a reading no longer shows what this write did.
    overwritten: bool,
}

impl PerVolume {
    /// Waits until no other operation works on this volume.
    pub(super) async fn hold(&self, volume: &VolumeId) -> Held {
        let memory = Arc::clone(self.lock().entry(volume.clone()).or_default());
        memory.lock_owned().await
    }

    /// Forgets volumes that nobody works on and that have no doubts.
    pub(super) fn tidy(&self, settle: Duration) {
        self.lock().retain(|_, memory| match Arc::get_mut(memory) {
            None => true,
            Some(memory) => {
                let memory = memory.get_mut();
                memory.settle(settle);
                !memory.doubts.is_empty() || memory.removal.is_some()
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, Arc<tokio::sync::Mutex<Memory>>>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// Remembers a write whose answer was lost.
    pub(super) fn doubt(&mut self, step: AccessStep) {
        if self.doubts.len() == DOUBTS_MAX {
            self.doubts.remove(0);
        }
        self.doubts.push(Doubt { at: Instant::now(), step, overwritten: false });
    }

    /// Notes that this step is about to be written.
    pub(super) fn writing(&mut self, step: &AccessStep) {
        self.hid &= step.switches().is_none();
        self.doubts.iter_mut().for_each(|doubt| doubt.overwritten = true);
    }

    /// Notes that the RDS has answered that it has done this step.
    pub(super) fn written(&mut self, step: &AccessStep) {
        self.hid |= step.switches() == Some(false);
    }

    /// Whether the RDS has answered that the export is off. Showing it as off is not enough: the RDS may show
    /// that before the writes have landed for which its answer waits.
    pub(super) fn hid(&self) -> bool {
        self.hid
    }

    /// Notes that the volume was read. A write in doubt that shows, with nothing written since, has taken
    /// effect, and does so only once. (A step is written only where it changes something, so it did not show
    /// before.)
    pub(super) fn read(&mut self, volume: &RdsVolume) {
        self.doubts.retain(|doubt| doubt.overwritten || !doubt.step.taken(volume));
    }

    /// The volume is gone, and its doubts with it.
    pub(super) fn clear(&mut self) {
        self.doubts.clear();
        self.removal = None;
    }

    /// Remembers a removal of the disk whose answer was lost.
    pub(super) fn doubt_removal(&mut self) {
        self.removal = Some(Instant::now());
    }

    /// Checks that no removal in doubt could take the disk away under a host that is admitted.
    pub(super) fn cannot_vanish(&mut self, volume: &VolumeId, settle: Duration) -> Result<(), RdsError> {
        self.settle(settle);
        let Some(at) = self.removal else { return Ok(()) };
        let (earlier, wait) = ("remove its disk".to_owned(), settle.saturating_sub(at.elapsed()));
        Err(RdsError::InDoubt { volume: volume.clone(), earlier, wait })
    }

    /// Checks that no write in doubt could still admit the host (`None`: anybody).
    pub(super) fn cannot_admit(
        &mut self,
        volume: &VolumeId,
        host: Option<&HostNqn>,
        settle: Duration,
    ) -> Result<(), RdsError> {
        self.no_doubt(volume, settle, |step| step.could_admit(host))
    }

    /// Checks that no write in doubt could still switch the export off.
    pub(super) fn cannot_hide(&mut self, volume: &VolumeId, settle: Duration) -> Result<(), RdsError> {
        self.no_doubt(volume, settle, |step| step.switches() == Some(false))
    }

    /// Checks that no write in doubt could still replace this secret by another one.
    pub(super) fn cannot_rekey(
        &mut self,
        volume: &VolumeId,
        secret: &Secret,
        settle: Duration,
    ) -> Result<(), RdsError> {
        self.no_doubt(volume, settle, |step| matches!(step, AccessStep::Secret(other) if other != secret))
    }

    /// Notes that the secret was read: like [`Memory::read`].
    pub(super) fn read_secret(&mut self, shown: &Secret) {
        let taken = |step: &AccessStep| matches!(step, AccessStep::Secret(secret) if secret == shown);
        self.doubts.retain(|doubt| doubt.overwritten || !taken(&doubt.step));
    }

    fn no_doubt(
        &mut self,
        volume: &VolumeId,
        settle: Duration,
        matters: impl Fn(&AccessStep) -> bool,
    ) -> Result<(), RdsError> {
        self.settle(settle);
        match self.doubts.iter().rev().find(|doubt| matters(&doubt.step)) {
            None => Ok(()),
            Some(doubt) => Err(RdsError::InDoubt {
                volume: volume.clone(),
                earlier: format!("{:?}", doubt.step),
                wait: settle.saturating_sub(doubt.at.elapsed()),
            }),
        }
    }

    fn settle(&mut self, settle: Duration) {
        self.doubts.retain(|doubt| doubt.at.elapsed() < settle);
        self.removal = self.removal.filter(|at| at.elapsed() < settle);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_in_doubt_matters_to_what_it_could_undo_until_it_has_settled() {
        let settle = Duration::from_secs(60);
        let (all, volume) = (PerVolume::default(), VolumeId::new("v").unwrap());
        let host = |name: &str| HostNqn::new(name).unwrap();
        let (a, b) = (host("nqn.2026-01.test:a"), host("nqn.2026-01.test:b"));
        let mut held = all.hold(&volume).await;
        held.doubt(AccessStep::Hosts([a.as_str().to_owned()].into()));
        assert!(held.cannot_admit(&volume, Some(&a), settle).is_err());
        assert!(held.cannot_admit(&volume, Some(&b), settle).is_ok());
        assert!(held.cannot_admit(&volume, None, settle).is_ok());
        held.doubt(AccessStep::Export(true));
        assert!(held.cannot_admit(&volume, None, settle).is_err());
        let [old, new] = [1, 2].map(Secret::for_test);
        held.doubt(AccessStep::Secret(old.clone()));
        assert!(held.cannot_rekey(&volume, &old, settle).is_ok());
        assert!(held.cannot_rekey(&volume, &new, settle).is_err());
        held.read_secret(&old);
        assert!(held.cannot_rekey(&volume, &new, settle).is_ok());
        drop(held);
        all.tidy(settle);
        assert_eq!(all.lock().len(), 1);
        tokio::time::advance(settle).await;
        assert!(all.hold(&volume).await.cannot_admit(&volume, Some(&a), settle).is_ok());
        all.tidy(settle);
        assert_eq!(all.lock().len(), 0);
    }
}
