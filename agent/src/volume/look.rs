//! Looks at the kernel, in the order in which they began.
//!
//! Comes in: nothing. Goes out: what the kernel shows of a volume, with what makes it worth less than it seems.
//!
//! Always holds: of two looks the one that began later has the higher number; one that began while a connect was in
//! the kernel says so.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use cleat_host::sysfs::{SubsystemView, SysfsError};

use super::Volume;
use super::host::Host;
use crate::metrics;

/// Numbers looks in the order in which they begin.
#[derive(Debug, Default)]
pub struct Looks(AtomicU64);

impl Looks {
    pub(super) fn next(&self) -> u64 {
        // Only the order among numbers counts.
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// What the kernel showed of a volume in one look. Reading takes time: of two looks the one that began later knows
/// better, whichever ended first.
#[derive(Debug, Clone)]
pub(super) struct Look {
    /// Its place among all looks.
    pub(super) number: u64,
    /// What was seen.
    pub(super) view: Arc<SubsystemView>,
    /// Whether a connect was in the kernel when the look began: it can have made a controller since.
    pub(super) connecting: bool,
}

impl Deref for Look {
    type Target = SubsystemView;

    fn deref(&self) -> &SubsystemView {
        &self.view
    }
}

impl<H: Host> Volume<H> {
    /// Reads what the kernel shows of the volume.
    pub(super) async fn look(&self) -> Result<Look, SysfsError> {
        let (number, connecting) = (self.shared.looks.next(), self.dials.are_running());
        let view = self.shared.host.view(&self.subsystem).await.inspect_err(|_| metrics::look_error())?;
        Ok(Look { number, view: Arc::new(view), connecting })
    }

    /// What was told last: in a sweep, its own reading of everything. No look for one volume, of which there are many.
    pub(super) fn last_told(&self) -> Option<Look> {
        let reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.as_ref().map(|reported| reported.look.clone())
    }
}
