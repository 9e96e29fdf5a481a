//! The turn: requests to an RDS go one at a time, the most urgent first.
//!
//! Comes in: callers with a priority. Goes out: a [`Turn`], which ends when dropped. Within a priority,
//! callers are served in order of arrival. A caller that gives up costs the others nothing: a turn that it
//! was given passes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// How urgent a request is. The most urgent sorts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Keeps a fenced node from writing.
    Fence,
    /// Takes a volume off a node; its next user waits for that.
    Detach,
    /// Brings a volume to a node; a pod waits for it.
    Attach,
    /// Lists, creations and deletions: nobody's fence or attach waits for them.
    List,
}

/// Hands out turns. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    taken: bool,
    arrivals: u64,
    waiting: BTreeMap<(Priority, u64), oneshot::Sender<Turn>>,
}

/// The right to send one request; ends when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    gate: Gate,
}

impl Gate {
    /// Waits for a turn.
    pub(super) async fn turn(&self, priority: Priority) -> Turn {
        loop {
            let mut waiting = match self.take_or_queue(priority) {
                Ok(turn) => return turn,
                Err(waiting) => waiting,
            };
            // A place in the queue ends with a turn. If one ever ends without, take a new place.
            if let Ok(turn) = (&mut waiting.receive).await {
                return turn;
            }
        }
    }

    fn take_or_queue(&self, priority: Priority) -> Result<Turn, Waiting<'_>> {
        let mut state = self.lock();
        if !state.taken {
            state.taken = true;
            return Ok(Turn { gate: self.clone() });
        }
        let (give, receive) = oneshot::channel();
        state.arrivals += 1;
        let place = (priority, state.arrivals);
        state.waiting.insert(place, give);
        super::metrics::queue_depth(state.waiting.len());
        Err(Waiting { gate: self, place, receive })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing here can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut state = self.gate.lock();
            let next = state.waiting.pop_first();
            state.taken = next.is_some();
            super::metrics::queue_depth(state.waiting.len());
            next
        };
        if let Some((_, give)) = next {
            // If nobody takes the turn, it comes back, is dropped here, and so passes to the next one.
            drop(give.send(Turn { gate: self.gate.clone() }));
        }
    }
}

/// A place in the queue; dropping it gives it up.
struct Waiting<'a> {
    gate: &'a Gate,
    place: (Priority, u64),
    receive: oneshot::Receiver<Turn>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        let given_up = state.waiting.remove(&self.place);
        super::metrics::queue_depth(state.waiting.len());
        drop(state);
        drop(given_up);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_most_urgent_goes_first_and_equals_in_their_order() {
        let gate = Gate::default();
        let first = gate.turn(Priority::List).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (place, priority) in [
            (0, Priority::List),
            (1, Priority::Attach),
            (2, Priority::Attach),
            (3, Priority::Fence),
            (4, Priority::Detach),
        ] {
            let (gate, order) = (gate.clone(), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let _turn = gate.turn(priority).await;
                order.lock().unwrap().push(place);
            }));
            tokio::task::yield_now().await;
        }
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [3, 4, 1, 2, 0]);
    }

    #[tokio::test]
    async fn a_turn_given_to_a_caller_that_has_gone_passes_on() {
        let gate = Gate::default();
        let first = gate.turn(Priority::List).await;
        let mut gone = Box::pin(gate.turn(Priority::Fence));
        assert!(futures_util::poll!(&mut gone).is_pending());
        let mut waits = Box::pin(gate.turn(Priority::List));
        assert!(futures_util::poll!(&mut waits).is_pending());
        drop(first); // the turn is in `gone`'s hands now, not yet seen by it
        drop(gone);
        let second = waits.await;
        assert!(!gate.lock().waiting.values().any(|_| true));
        drop(second);
        assert!(!gate.lock().taken);
    }
}
