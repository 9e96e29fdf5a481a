//! The queue of this node's connects: which one the kernel gets next.
//!
//! Comes in: connects that are ready to be made. Goes out: places in the kernel, one after the other.
//!
//! The kernel makes one connect at a time, in the order of arrival, and none can be withdrawn. So it gets
//! few, and the others wait here, where they can be called off at once.
//!
//! Always holds: at most `IN_KERNEL` places are taken. A repair gets a place only while no attach waits, and
//! one repair at a time. Portals that have held up the kernel come last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Connects in the kernel at a time: with two, the next one is already there while the first one's result is
/// verified.
const IN_KERNEL: usize = 2;

/// What a connect is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::volume) enum Purpose {
    /// An operation waits for it.
    Attach,
    /// A path is missing beside a live one; nobody waits for it.
    Repair,
}

/// The order in the queue: by purpose, then portals that have held up the kernel last, then by arrival.
type Rank = (Purpose, bool, u64);

/// The queue of one node. Cheap to clone; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Queue(Arc<Mutex<QueueState>>);

#[derive(Debug, Default)]
struct QueueState {
    waiting: BTreeMap<Rank, oneshot::Sender<Place>>,
    came: u64,
    taken: usize,
    repairs: usize,
}

/// A place in the kernel; dropping it gives it back.
#[derive(Debug)]
pub(in crate::volume) struct Place {
    queue: Queue,
    purpose: Purpose,
}

impl Drop for Place {
    fn drop(&mut self) {
        {
            let mut state = self.queue.state();
            state.taken -= 1;
            state.repairs -= usize::from(self.purpose == Purpose::Repair);
        }
        self.queue.serve();
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, QueueState> {
        // Every change of it is whole before anything could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place. Cancel safe: a caller that goes away takes no place and holds up nobody.
    pub(in crate::volume) async fn place(&self, purpose: Purpose, slow: bool) -> Place {
        let (sender, receiver) = oneshot::channel();
        let rank = {
            let mut state = self.state();
            state.came += 1;
            let rank = (purpose, slow, state.came);
            state.waiting.insert(rank, sender);
            rank
        };
        let _leave = Leave { queue: self, rank };
        self.serve();
        match receiver.await {
            Ok(place) => place,
            // The sender stays in the queue until it is used.
            Err(_) => std::future::pending().await,
        }
    }

    /// Hands out the free places.
    fn serve(&self) {
        while let Some((sender, place)) = self.next() {
            // A caller that has gone away does not receive it, which gives it back.
            drop(sender.send(place));
        }
    }

    fn next(&self) -> Option<(oneshot::Sender<Place>, Place)> {
        let mut state = self.state();
        if state.taken >= IN_KERNEL {
            return None;
        }
        let purpose = state.waiting.first_key_value()?.0.0;
        if purpose == Purpose::Repair && state.repairs > 0 {
            return None;
        }
        let (_, sender) = state.waiting.pop_first()?;
        state.taken += 1;
        state.repairs += usize::from(purpose == Purpose::Repair);
        Some((sender, Place { queue: self.clone(), purpose }))
    }

    /// How many connects wait.
    pub(in crate::volume) fn length(&self) -> usize {
        self.state().waiting.len()
    }
}

/// Takes a connect out of the queue when its caller goes away.
struct Leave<'a> {
    queue: &'a Queue,
    rank: Rank,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let left = self.queue.state().waiting.remove(&self.rank);
        drop(left);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn attaches_go_first_slow_portals_last_and_repairs_one_at_a_time() {
        let queue = Queue::default();
        let first = queue.place(Purpose::Repair, false).await;
        let mut second_repair = Box::pin(queue.place(Purpose::Repair, false));
        assert!((&mut second_repair).now_or_never().is_none(), "one repair at a time");
        let attach = queue.place(Purpose::Attach, false).await;
        let mut slow = Box::pin(queue.place(Purpose::Attach, true));
        let mut quick = Box::pin(queue.place(Purpose::Attach, false));
        assert!((&mut slow).now_or_never().is_none() && (&mut quick).now_or_never().is_none(), "two places");
        drop(first);
        let quick = quick.await;
        assert!((&mut slow).now_or_never().is_none());
        drop(attach);
        let slow = slow.await;
        assert!((&mut second_repair).now_or_never().is_none());
        drop((quick, slow));
        second_repair.await;
    }

    #[tokio::test]
    async fn who_goes_away_holds_nobody_up() {
        let queue = Queue::default();
        let places = [queue.place(Purpose::Attach, false).await, queue.place(Purpose::Attach, false).await];
        let mut gone = Box::pin(queue.place(Purpose::Attach, false));
        assert!((&mut gone).now_or_never().is_none());
        let mut served = Box::pin(queue.place(Purpose::Attach, false));
        assert!((&mut served).now_or_never().is_none());
        assert_eq!(queue.length(), 2);
        // Its place has come, and it was not looked at before it went.
        drop(places);
        drop(gone);
        served.await;
        assert_eq!((queue.length(), queue.state().taken), (0, 0));
    }
}
