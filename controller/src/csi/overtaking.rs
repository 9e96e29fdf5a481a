//! Publishes that have not reached the core yet, and Unpublishes that overtake them.
//!
//! A Publish asks the RDS first, which may take seconds; its caller may have given up and sent an Unpublish meanwhile,
//! which may be quicker. If the Publish reached the core after it, the volume would be attached again with nobody left
//! to detach it. So: an Unpublish marks every Publish of its volume and node that was called before and is not yet
//! with the core, and those are refused. What was called later is not touched.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};

use cleat_core::{NodeId, Overtaking, Refusal, VolumeId};
use tokio::sync::Mutex;

/// All Publishes on their way to the core. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Publishes {
    /// Held while a Publish is handed to the core, so that it is either marked or there.
    door: Arc<Mutex<()>>,
    under_way: Arc<StdMutex<HashMap<u64, Mark>>>,
    count: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Mark {
    volume: VolumeId,
    node: NodeId,
    overtaken: bool,
}

/// A Publish on its way to the core.
#[derive(Debug)]
pub(super) struct OnItsWay {
    all: Publishes,
    number: u64,
}

impl Publishes {
    /// Takes note of a Publish, in the order of the calls.
    pub(super) fn begin(&self, volume: VolumeId, node: NodeId) -> OnItsWay {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, Mark { volume, node, overtaken: false });
        OnItsWay { all: self.clone(), number }
    }

    /// Lets an Unpublish pass every Publish that was called before. Those that are with the core already are before it.
    pub(super) async fn overtake(&self, volume: &VolumeId, node: Option<&NodeId>) {
        let _door = self.door.lock().await;
        for mark in self.lock().values_mut() {
            mark.overtaken |= mark.volume == *volume && node.is_none_or(|node| mark.node == *node);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Mark>> {
        // The map is whole after every operation on it.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OnItsWay {
    /// Hands the Publish to the core, unless it was overtaken.
    pub(super) async fn hand_over<T>(self, hand_over: impl Future<Output = T>) -> Result<T, Refusal> {
        let _door = self.all.door.lock().await;
        let mark = self.all.lock().remove(&self.number);
        match mark {
            Some(Mark { overtaken: true, volume, node }) => {
                Err(Refusal::Overtaken { volume, node, by: Overtaking::Detach })
            }
            _ => Ok(hand_over.await),
        }
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.all.lock().remove(&self.number);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unpublish_overtakes_what_was_called_before_and_nothing_else() {
        let publishes = Publishes::default();
        let id = |name| VolumeId::new(name).unwrap();
        let node = |name| NodeId::new(name).unwrap();
        let begin = |v, n| publishes.begin(id(v), node(n));
        let (one, other_node, other_volume) = (begin("v", "a"), begin("v", "b"), begin("w", "a"));
        publishes.overtake(&id("v"), Some(&node("a"))).await;
        let later = begin("v", "a");
        assert!(matches!(one.hand_over(async {}).await, Err(Refusal::Overtaken { .. })));
        for untouched in [other_node, other_volume, later] {
            assert!(untouched.hand_over(async {}).await.is_ok());
        }
        let (all, gone) = (begin("v", "b"), begin("v", "c"));
        drop(gone);
        publishes.overtake(&id("v"), None).await;
        assert!(all.hand_over(async {}).await.is_err());
        assert!(publishes.lock().is_empty());
    }
}
