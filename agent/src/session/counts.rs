//! The writes that a session's controller has asked to have counted.
//!
//! Comes in: requests, each about one grant and for a limited time. Goes out: what was counted, as it is to be sent.
//!
//! Always holds:
//! - One counting for each volume: the next request takes its place, and nothing of the one before is sent after that.
//! - All of it ends with the session: whoever leads next asks again.
//! - Of each volume one report waits at most, the newest: its number says all that those before it said.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::NodeVolumes;
use crate::name::{OperationId, VolumeId};
use crate::volume::count::{CountRequest, Counted};

/// Most volumes whose writes are counted at once: each is looked at many times a second.
const MOST: usize = 256;

/// What was counted, and when that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CountReport {
    pub(super) asked: CountRequest,
    pub(super) counted: Counted,
    pub(super) at: Instant,
}

/// The countings of one session.
#[derive(Debug, Default)]
pub(super) struct Counts {
    running: BTreeMap<VolumeId, AbortOnDropHandle<()>>,
    reports: Arc<Reports>,
}

#[derive(Debug, Default)]
struct Reports {
    kept: Mutex<Kept>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    /// Which counting of each volume is the last one.
    current: BTreeMap<VolumeId, OperationId>,
    waiting: VecDeque<CountReport>,
}

impl Reports {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Every operation on it is whole before anything could panic.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, asked: &CountRequest, running: impl Fn(&VolumeId) -> bool) {
        let mut kept = self.lock();
        kept.current.retain(|volume, _| running(volume));
        kept.current.insert(asked.volume.clone(), asked.operation);
        kept.waiting.retain(|report| report.asked.volume != asked.volume);
    }

    fn put(&self, report: CountReport) {
        let mut kept = self.lock();
        if kept.current.get(&report.asked.volume) != Some(&report.asked.operation) {
            return;
        }
        kept.waiting.retain(|before| before.asked.volume != report.asked.volume);
        kept.waiting.push_back(report);
        drop(kept);
        self.arrived.notify_one();
    }
}

impl Counts {
    /// Begins a counting, in the place of the one of the same volume.
    pub(super) fn begin<N: NodeVolumes>(&mut self, node: &N, asked: CountRequest) {
        let CountRequest { operation, volume, epoch, .. } = &asked;
        self.running.remove(volume);
        self.running.retain(|_, task| !task.is_finished());
        if self.running.len() >= MOST {
            tracing::warn!(%volume, %operation, "cannot count writes: those of {MOST} volumes are counted already");
            return;
        }
        tracing::debug!(%volume, %epoch, %operation, "counting writes");
        self.reports.begin(&asked, |volume| self.running.contains_key(volume));
        let (reports, about) = (self.reports.clone(), asked.clone());
        let report =
            move |counted| reports.put(CountReport { asked: about.clone(), counted, at: Instant::now() });
        let (volume, counting) = (asked.volume.clone(), node.count(asked, report));
        self.running.insert(volume, AbortOnDropHandle::new(tokio::spawn(counting)));
    }

    /// Waits for the next report that is to be sent. Cancel safe: it takes one only when it returns it.
    pub(super) async fn next(&self) -> CountReport {
        loop {
            let arrived = self.reports.arrived.notified();
            if let Some(report) = self.reports.lock().waiting.pop_front() {
                return report;
            }
            arrived.await;
        }
    }
}
