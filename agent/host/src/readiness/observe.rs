//! Observes and judges a volume: once, or until it is ready.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::interest::Interest;
use super::{Expectation, ReadyFacts, Selected, Unready, evaluate, select};
use crate::blockio::{self, IoFacts};
use crate::openers::{Openers, holders_in};
use crate::sysfs::{SubsystemView, Sysfs, SysfsError};
use crate::uevents::UeventListener;
use crate::work::Workers;

/// Time between two checks when no event comes: not everything has one.
const SWEEP: Duration = Duration::from_millis(250);

/// Why a volume is not proven ready.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A clause of the predicate fails.
    #[error(transparent)]
    Unready(#[from] Unready),
    /// Sysfs could not be read.
    #[error("cannot observe the volume")]
    Sysfs(#[from] SysfsError),
}

/// Checks volumes against expectations. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Checker {
    sysfs: Sysfs,
    dev_root: PathBuf,
    workers: Workers,
    openers: Openers,
    /// The name of the directory in which each volume's subsystem was seen last. With it, a check of one of
    /// many volumes need not read all the others. Each reading compares the NQN in that directory.
    directories: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Checker {
    /// Checks in `/dev` and the given sysfs.
    pub fn new(sysfs: Sysfs, workers: Workers, openers: Openers) -> Self {
        Self::at("/dev", sysfs, workers, openers)
    }

    /// Checks in other trees, for tests.
    pub fn at(dev_root: impl Into<PathBuf>, sysfs: Sysfs, workers: Workers, openers: Openers) -> Self {
        Self { sysfs, dev_root: dev_root.into(), workers, openers, directories: Arc::default() }
    }

    /// Observes and judges once; I/O has until `deadline`.
    ///
    /// Sysfs is read before *and after* the device is opened and read: the facts count only if it is the same
    /// device both times.
    ///
    /// # Errors
    /// [`CheckError`].
    pub async fn check(
        &self,
        expectation: &Expectation,
        deadline: Duration,
    ) -> Result<ReadyFacts, CheckError> {
        self.check_since(expectation, Instant::now(), deadline).await
    }

    /// As [`Checker::check`], for one of many volumes that are judged together. What needs a search of the
    /// whole machine (its loop devices) may come from a search that another check began at `since` or later.
    /// The device and its paths are read now.
    ///
    /// # Errors
    /// [`CheckError`].
    pub async fn check_since(
        &self,
        expectation: &Expectation,
        since: Instant,
        deadline: Duration,
    ) -> Result<ReadyFacts, CheckError> {
        let end = Instant::now() + deadline;
        let nqn = &expectation.subsystem;
        let known = self.directories().get(nqn.as_str()).cloned();
        let before = self.sysfs.connected_view(nqn, known, deadline).await?;
        match directory(&before) {
            Some(name) => drop(self.directories().insert(nqn.to_string(), name)),
            None => drop(self.directories().remove(nqn.as_str())),
        }
        self.judge(&before, expectation, since, end).await
    }

    fn directories(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn judge(
        &self,
        before: &SubsystemView,
        expectation: &Expectation,
        since: Instant,
        end: Instant,
    ) -> Result<ReadyFacts, CheckError> {
        let left = || end.saturating_duration_since(Instant::now());
        let selected = select(before, expectation)?;
        let io = self.probe(&selected, since, left()).await;
        // A reading of sysfs takes a moment even when the device has used up the time.
        let after =
            self.sysfs.connected_view(&expectation.subsystem, directory(before), left().max(SWEEP)).await?;
        Ok(evaluate(&after, expectation, &io)?)
    }

    async fn probe(&self, selected: &Selected, since: Instant, deadline: Duration) -> IoFacts {
        let reading = blockio::probe(&self.workers, &self.sysfs, &self.dev_root, selected.dev, deadline);
        let looking = self.openers.loops(selected.dev, since, deadline);
        let (mut facts, loops) = tokio::join!(reading, looking);
        match loops {
            Ok((loops, blind)) => {
                facts.loops = loops;
                facts.loops_unknown = blind.first().map(ToString::to_string);
            }
            Err(error) => facts.loops_unknown = Some(error.to_string()),
        }
        if !selected.namespaces.contains(&selected.device) {
            let dir = self.sysfs.root().join("class/block").join(&selected.device).join("holders");
            let (holders, unreadable) = holders_in(&self.sysfs, &dir);
            facts.map_holders = holders;
            facts.loops_unknown =
                facts.loops_unknown.or_else(|| unreadable.first().map(|u| u.path.display().to_string()));
        }
        facts
    }

    /// Observes and judges until the volume is ready, until a clause fails that waiting cannot heal, or until
    /// the deadline passes. Checks again upon every event that concerns the volume, and from time to time
    /// without one.
    ///
    /// # Errors
    /// [`CheckError`] with the last clause that failed.
    pub async fn wait(
        &self,
        expectation: &Expectation,
        listener: &mut UeventListener,
        deadline: Duration,
    ) -> Result<ReadyFacts, CheckError> {
        let end = Instant::now() + deadline;
        let mut known = None;
        loop {
            // The check that follows covers every event so far.
            listener.clear();
            let view = self.sysfs.connected_view(&expectation.subsystem, known, deadline).await?;
            known = directory(&view);
            let interest = Interest::new(&view, expectation.portals.len());
            let last = match self.judge(&view, expectation, Instant::now(), end).await {
                Err(error) if error.may_heal() && Instant::now() < end => error,
                result => return result,
            };
            let sweep = (Instant::now() + SWEEP).min(end);
            let _ = tokio::time::timeout_at(sweep, event_of(&interest, listener)).await;
            if Instant::now() >= end {
                return Err(last);
            }
        }
    }
}

/// Name of the subsystem's directory, for the next reading.
fn directory(view: &SubsystemView) -> Option<String> {
    view.controllers.iter().find_map(|controller| controller.subsystem.clone())
}

/// Waits for an event that concerns the volume. Waits for ever when the source of events has ended: then the
/// sweep alone has to do.
async fn event_of(interest: &Interest, listener: &mut UeventListener) {
    while let Some(event) = listener.next().await {
        if interest.concerns(&event) {
            return;
        }
    }
    std::future::pending().await
}

impl CheckError {
    /// Whether waiting can change it. A failure to read sysfs may pass.
    pub fn may_heal(&self) -> bool {
        match self {
            Self::Unready(unready) => unready.may_heal,
            Self::Sysfs(_) => true,
        }
    }
}

#[cfg(test)]
mod tests;
