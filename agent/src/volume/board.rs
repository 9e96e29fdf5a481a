//! The board: the latest state of every volume of this node, as it was last seen in the kernel.
//!
//! Comes in: states, from operations and from the watch. Goes out: snapshots, and a signal that something
//! changed. It serves listeners such as the session. An operation that decides by the last report uses the
//! volume's own ([`Volume`](super::Volume)).
//!
//! Always holds: a state is replaced whole, never merged, and every listener hears of every replacement that
//! changed something (perhaps of several at once).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::metrics;
use crate::name::VolumeId;
use crate::volume::state::{VolumePhase, VolumeState};

/// The latest state of every volume.
#[derive(Debug)]
pub struct Board {
    states: Mutex<BTreeMap<VolumeId, Posted>>,
    version: watch::Sender<u64>,
}

/// A state, and the version of the board at which it was put there.
#[derive(Debug)]
struct Posted {
    since: u64,
    state: VolumeState,
}

impl Default for Board {
    fn default() -> Self {
        Self { states: Mutex::default(), version: watch::Sender::new(0) }
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Posted>> {
        // Every operation on the map is whole before anything could panic.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the state of a volume; returns what that changed.
    pub fn put(&self, volume: &VolumeId, state: VolumeState) -> StateChange {
        let mut states = self.lock();
        if states.get(volume).is_some_and(|posted| posted.state == state) {
            return StateChange::None;
        }
        // Under the lock, so that versions and states rise together.
        let since = *self.version.borrow() + 1;
        let before = states.insert(volume.clone(), Posted { since, state: state.clone() });
        let before = before.map(|posted| posted.state);
        let significant = before.as_ref().is_none_or(|before| differs(before, &state));
        if significant {
            count(states.values().map(|posted| &posted.state));
        }
        self.version.send_replace(since);
        drop(states);
        if significant {
            StateChange::Significant { before: before.map(|state| state.phase) }
        } else {
            StateChange::Minor
        }
    }

    /// Removes a volume of which there is nothing to report.
    pub fn remove(&self, volume: &VolumeId) {
        let mut states = self.lock();
        if states.remove(volume).is_some() {
            count(states.values().map(|posted| &posted.state));
        }
    }

    /// The state of one volume; `None` where nothing was reported of it.
    pub fn get(&self, volume: &VolumeId) -> Option<VolumeState> {
        self.lock().get(volume).map(|posted| posted.state.clone())
    }

    /// States that were put after a version, and the version up to which they are complete.
    pub fn since(&self, version: u64) -> (u64, Vec<VolumeState>) {
        let states = self.lock();
        let news = states.values().filter(|posted| posted.since > version).map(|posted| posted.state.clone());
        (*self.version.borrow(), news.collect())
    }

    /// The state of every volume, in the order of their ids.
    pub fn all(&self) -> Vec<VolumeState> {
        self.lock().values().map(|posted| posted.state.clone()).collect()
    }

    /// A channel that reports every change from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

fn count<'a>(states: impl Iterator<Item = &'a VolumeState>) {
    let mut phases = VolumePhase::ALL.map(|phase| (phase.as_str(), 0));
    let (mut live, mut not_live) = (0, 0);
    for state in states {
        for (_, count) in phases.iter_mut().filter(|(phase, _)| *phase == state.phase.as_str()) {
            *count += 1;
        }
        for path in &state.paths {
            *if path.is_live() { &mut live } else { &mut not_live } += 1;
        }
    }
    metrics::volumes(&phases, live, not_live);
}

/// How much [`Board::put`] changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateChange {
    /// The state is the same.
    None,
    /// Only the number of writes differs.
    Minor,
    /// Something that somebody may act on.
    Significant {
        /// The phase that was replaced; `None` if the board had no state of the volume.
        before: Option<VolumePhase>,
    },
}

/// Whether two states differ in more than their counters, which move with every write.
pub fn differs(one: &VolumeState, other: &VolumeState) -> bool {
    let still = |state: &VolumeState| VolumeState { writes: 0, ..state.clone() };
    still(one) != still(other)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn state(phase: VolumePhase, writes: u64) -> VolumeState {
        VolumeState { writes, ..crate::testing::state("v", phase) }
    }

    #[test]
    fn volumes_and_paths_are_counted_by_what_they_are() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let path = |state: &str| crate::volume::state::Path {
            portal: String::new(),
            controller: String::new(),
            state: state.into(),
            ana_state: None,
        };
        let state =
            VolumeState { paths: vec![path("live"), path("connecting")], ..state(VolumePhase::Degraded, 0) };
        ::metrics::with_local_recorder(&recorder, || count([state].iter()));
        let text = recorder.handle().render();
        assert!(text.contains("cleat_agent_volumes{phase=\"degraded\"} 1"), "{text}");
        assert!(text.contains("cleat_agent_volumes{phase=\"ready\"} 0"), "{text}");
        assert!(text.contains("cleat_agent_paths{state=\"not_live\"} 1"), "{text}");
    }

    #[tokio::test]
    async fn a_change_is_heard_once_and_counters_alone_are_minor() {
        let board = Board::default();
        let volume = VolumeId::parse("v").unwrap();
        let mut changes = board.changes();
        assert_eq!(
            board.put(&volume, state(VolumePhase::Ready, 1)),
            StateChange::Significant { before: None }
        );
        changes.changed().await.unwrap();
        assert_eq!(board.put(&volume, state(VolumePhase::Ready, 1)), StateChange::None);
        assert!(!changes.has_changed().unwrap());
        let (seen, news) = board.since(0);
        assert_eq!((seen, news.len()), (1, 1));
        assert_eq!(board.put(&volume, state(VolumePhase::Ready, 2)), StateChange::Minor);
        assert_eq!(board.since(seen), (2, vec![state(VolumePhase::Ready, 2)]));
        let lost = board.put(&volume, state(VolumePhase::Lost, 2));
        assert_eq!(lost, StateChange::Significant { before: Some(VolumePhase::Ready) });
    }
}
