//! Observations of the kernel, in the order in which they began.
//!
//! Comes in: nothing. Goes out: what the kernel shows of a volume, with what limits its meaning.
//!
//! Always holds: of two observations, the one that began later has the higher number. One that began while a
//! connect was in the kernel says so. Of two that overlap it is not known which has seen something later.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use cleat_host::sysfs::{SubsystemView, SysfsError};

use crate::metrics;
use crate::volume::Volume;
use crate::volume::host::Host;

/// Numbers observations in the order in which they begin.
#[derive(Debug, Default)]
pub struct ObservationNumbers(AtomicU64);

impl ObservationNumbers {
    pub(in crate::volume) fn next(&self) -> u64 {
        // Only the order among the numbers counts.
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// What the kernel showed of a volume at one time. Reading takes time: see [`Observation::is_newer_than`].
#[derive(Debug, Clone)]
pub(in crate::volume) struct Observation {
    /// Its place in the order of all observations.
    pub(in crate::volume) number: u64,
    /// Its end, in the same order.
    pub(in crate::volume) ended: u64,
    /// It is part of a reading of all volumes, which takes longer than one of this volume alone.
    pub(in crate::volume) of_all: bool,
    /// What the kernel showed of the volume's subsystem.
    pub(in crate::volume) view: Arc<SubsystemView>,
    /// Whether a connect was in the kernel when it began: it can have made a controller since.
    pub(in crate::volume) connecting: bool,
}

impl Observation {
    /// Whether it is to take the place of another one. Where they overlap, one of all volumes does not take the place of one of
    /// this volume, which an operation rests on: it may have read this volume long before it ended.
    pub(in crate::volume) fn is_newer_than(&self, other: &Self) -> bool {
        let overlap = self.number < other.ended && other.number < self.ended;
        match (self.of_all, other.of_all) {
            (true, false) if overlap => false,
            (false, true) if overlap => true,
            _ => self.number >= other.number,
        }
    }
}

impl Deref for Observation {
    type Target = SubsystemView;

    fn deref(&self) -> &SubsystemView {
        &self.view
    }
}

impl<H: Host> Volume<H> {
    /// Reads what the kernel shows of the volume.
    pub(in crate::volume) async fn observe(&self) -> Result<Observation, SysfsError> {
        let (number, connecting) = (self.shared.observations.next(), self.connects.are_running());
        let view =
            self.shared.host.view(&self.subsystem).await.inspect_err(|_| metrics::observation_error())?;
        let (view, ended) = (Arc::new(view), self.shared.observations.next());
        Ok(Observation { number, ended, of_all: false, view, connecting })
    }

    /// What was reported last: in a sweep, its own reading of everything. With many volumes, the kernel is
    /// not read again for each.
    pub(in crate::volume) fn last_observation(&self) -> Option<Observation> {
        let reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.as_ref().map(|reported| reported.observation.clone())
    }
}
