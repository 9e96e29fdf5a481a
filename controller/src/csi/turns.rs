//! One Publish of a volume after the other, from the look at who has it to the core's hearing of the next.
//!
//! Two that look at the same time would each see nobody else. Only volumes whose owner demands a live migration for a second
//! node need this; the core joins all others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};

use cleat_core::VolumeId;
use tokio::sync::{Mutex, OwnedMutexGuard};

type Waiting = HashMap<VolumeId, Arc<Mutex<()>>>;

/// All turns. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    volumes: Arc<StdMutex<Waiting>>,
}

/// A Publish's turn; over when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    all: Turns,
    volume: VolumeId,
    _turn: OwnedMutexGuard<()>,
}

impl Turns {
    /// Waits for it, in the order of the calls.
    pub(super) async fn next(&self, volume: &VolumeId) -> Turn {
        let turn = Arc::clone(self.lock().entry(volume.clone()).or_default());
        Turn { all: self.clone(), volume: volume.clone(), _turn: turn.lock_owned().await }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // The map is whole after every operation on it.
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut volumes = self.all.lock();
        // The map has one, this turn the other: nobody waits.
        if volumes.get(&self.volume).is_some_and(|turn| Arc::strong_count(turn) <= 2) {
            volumes.remove(&self.volume);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_turn_of_a_volume_comes_when_the_one_before_is_over() {
        let (turns, id) = (Turns::default(), |name| VolumeId::new(name).unwrap());
        let first = turns.next(&id("v")).await;
        let other = turns.next(&id("w")).await;
        let (second, third) = (turns.clone(), turns.clone());
        let second = tokio::spawn(async move { second.next(&id("v")).await });
        tokio::task::yield_now().await;
        let third = tokio::spawn(async move { third.next(&id("v")).await });
        tokio::task::yield_now().await;
        assert!(!second.is_finished() && !third.is_finished());
        drop((first, other));
        let second = second.await.unwrap();
        tokio::task::yield_now().await;
        assert!(!third.is_finished());
        drop(second);
        drop(third.await.unwrap());
        assert!(turns.lock().is_empty(), "nothing is kept of a volume for which nobody waits");
    }
}
