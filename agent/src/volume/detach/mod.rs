//! Detach and Revoke: end a grant, and prove that no controller of it is left.
//!
//! Comes in: an epoch. Goes out: Absent with what was deleted and the state of each controller at that
//! moment, Busy with who uses the device, Failed where that could not be seen, or why it could not be done.
//!
//! Always holds:
//! - A Detach that finds a user, or could not search for one, has touched nothing, but for users of tickets' devices where it
//!   was to end those.
//! - The end of the epoch is on disk before the first deletion, and the states are on disk before Absent is
//!   reported, where the disk accepts them. Where it does not, the grant ends all the same (a full disk on a
//!   node must not keep a writer there): the record of its end is written later, and nothing is claimed to be
//!   drained.
//! - A registration is given back before the deletion, as far as the target answers in time.
//! - Absent is reported only after an observation that found no controller and could read everything.

pub(super) mod leftovers;

use std::collections::BTreeMap;
use std::time::Duration;

use cleat_host::ControllerName;
use cleat_host::fabrics::{DisconnectError, Disconnected, HowDeleted as Went};
use cleat_host::sysfs::{SubsystemView, SysfsError};
use cleat_runtime::exit::Causes;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::ledger::rules::{Present, Stale, ending, may_begin, may_end, note_deleted};
use crate::ledger::{Deletion, LedgerEntry, STATE_GONE};
use crate::metrics::{self, DetachPart};
use crate::name::Epoch;
use crate::volume::host::{Host, HostError};
use crate::volume::observe::events::Interest;
use crate::volume::observe::judge::{Activity, device};
use crate::volume::outcome::{Busy, Outcome};
use crate::volume::plan::{Doomed, PlannedStep, Want, plan};
use crate::volume::record::{OnRecord, anything_before};
use crate::volume::state::{Absence, DetachTimes};
use crate::volume::{Observation, Volume, clause};

/// How long the disk may take, each time, before a grant ends without it. A failed Detach is sent again; a
/// Revoke is a fence.
const DETACH_DISK: Duration = Duration::from_secs(6);
const REVOKE_DISK: Duration = Duration::from_secs(2);
/// One wait for a deletion; repeated while the kernel is deleting. The caller answers Pending meanwhile.
const SLICE: Duration = Duration::from_secs(30);
/// How often a deletion is tried after a failure, and how many rounds of observing and deleting there are: a
/// connect that was under way may still have made a controller.
const ROUNDS: u32 = 5;
/// How long a namespace may outlive its last controller before the volume is reported as not absent.
const LINGER: Duration = Duration::from_secs(2);

/// Controllers that the kernel is deleting, and since when.
#[derive(Debug, Default)]
pub(super) struct Deleting(BTreeMap<ControllerName, Instant>);

impl Deleting {
    /// Each as text for a person.
    pub(super) fn in_words(&self) -> Vec<String> {
        let words = |(controller, since): (&ControllerName, &Instant)| {
            format!("the kernel has been deleting {controller} for {:.1} s", since.elapsed().as_secs_f64())
        };
        self.0.iter().map(words).collect()
    }
}

/// What may keep a grant from ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DetachMode {
    /// Ends the grant only if nobody uses the device.
    Detach,
    /// The same, once those were ended who use it by tickets' loop devices.
    CutTickets {
        /// The directive's deadline; the cut has half of the time until then.
        by: Instant,
    },
    /// Ends it even while somebody has the device open.
    Revoke,
}

impl DetachMode {
    fn disk(self) -> Duration {
        match self {
            Self::Detach | Self::CutTickets { .. } => DETACH_DISK,
            Self::Revoke => REVOKE_DISK,
        }
    }
}

/// Why a grant could not be ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum DetachError {
    #[error("stale directive: its epoch has ended or been superseded")]
    Stale(#[source] Stale),
    #[error("in use: {}", .0.join("; "))]
    Busy(Vec<String>),
    #[error("cannot see who uses the device; nothing was changed")]
    Users(#[source] HostError),
    #[error("superseded by a revoke")]
    Superseded,
    #[error("cannot read the kernel's state")]
    Observation(#[from] SysfsError),
    #[error("{0}")]
    Unseen(String),
    #[error("cannot delete controllers: {}", .0.join("; "))]
    Delete(Vec<String>),
    #[error("controllers with another host NQN than this node's remain: {}", .0.join("; "))]
    Foreign(Vec<String>),
}

impl DetachError {
    pub(super) fn outcome(self) -> Outcome {
        let clause = match self {
            Self::Stale(stale) => return Outcome::StaleEpoch(stale),
            Self::Busy(holders) => return Outcome::Busy(Busy { holders }),
            Self::Users(_) => clause::USERS,
            Self::Superseded => clause::SUPERSEDED,
            Self::Observation(_) | Self::Unseen(_) => clause::LOOK,
            Self::Delete(_) => clause::DELETE,
            Self::Foreign(_) => cleat_host::readiness::Clause::HostNqn.as_str(),
        };
        Outcome::failed(clause::failed(clause, Causes(&self)))
    }
}

impl<H: Host> Volume<H> {
    /// Ends the grant of an epoch. The caller has the gate.
    pub(super) async fn end_grant(&self, epoch: Epoch, mode: DetachMode) -> Result<Absence, DetachError> {
        let began = Instant::now();
        let known = self.record_within(mode.disk()).await;
        may_end(known.entry(), epoch).map_err(DetachError::Stale)?;
        let uncertain = match (&known, known.entry()) {
            (_, Some(_)) => false,
            (OnRecord::Unreadable, None) => true,
            (OnRecord::Known(_), None) => match self.forgotten_within(mode.disk()).await {
                Some(highest) => {
                    may_begin(None, highest, epoch).map(|()| false).map_err(DetachError::Stale)?
                }
                None => true,
            },
        };
        let view = self.observe().await?;
        if mode != DetachMode::Revoke {
            let free = async {
                if let DetachMode::CutTickets { by } = mode {
                    self.cut_tickets(&view, began + by.saturating_duration_since(began) / 2).await;
                }
                self.refuse_if_used(&view).await
            };
            let looked = self.unless_revoked(Some(epoch), free).await;
            looked.map_err(|_| DetachError::Superseded)??;
        }
        let checks = began.elapsed();

        // From here on the grant is over, whatever happens to this process.
        self.connects.call_back();
        let mut entry = self.record_end(&known, uncertain, epoch, &view, mode.disk()).await;
        let detaching = Detaching::begin(self);
        self.report(&view);
        let flush = self.leave_in_order(epoch, mode, known.entry(), &view).await;
        let linger = LINGER + self.let_heads_go(&view).await;
        let began_deleting = Instant::now();
        let removed = self.remove(epoch, &mut entry, view, mode.disk(), linger).await;
        drop(detaching);
        // Even where something is left: what is known of the deleted ones must not be lost.
        let kept = self.keep_end(&entry, mode.disk()).await;
        let view = removed?;
        let delete = began_deleting.elapsed();
        self.report(&view);

        metrics::detach_seconds(DetachPart::Checks, checks);
        metrics::detach_seconds(DetachPart::Flush, flush);
        metrics::detach_seconds(DetachPart::Delete, delete);
        metrics::detach_seconds(DetachPart::Total, began.elapsed());
        Ok(Absence {
            deleted: if kept { entry.deletions } else { not_recorded(&entry.deletions) },
            times: Some(DetachTimes { checks, flush, delete }),
        })
    }

    /// Flushes the device and gives the registration back; returns how long the flush took. A Revoke does not
    /// flush, and does not wait for a Detach that does.
    async fn leave_in_order(
        &self,
        epoch: Epoch,
        mode: DetachMode,
        known: Option<&LedgerEntry>,
        view: &SubsystemView,
    ) -> Duration {
        let grant = known.and_then(|entry| entry.grant.as_ref());
        if mode == DetachMode::Revoke {
            self.give_back(grant, view).await;
            return Duration::ZERO;
        }
        let leave = async {
            let flush = self.flush(view).await;
            self.give_back(grant, view).await;
            flush
        };
        // Superseded: what follows is what the Revoke would do next.
        self.unless_revoked(Some(epoch), leave).await.unwrap_or_default()
    }

    /// Ends who uses tickets' devices. Whoever is left is found by the look that follows.
    async fn cut_tickets(&self, view: &SubsystemView, until: Instant) {
        if view.namespaces.is_empty() {
            return;
        }
        // A search that others wait for may take longer; then nobody is ended, and the Detach is refused.
        let Ok(_turn) = timeout_at(until, self.searching.lock()).await else { return };
        match self.shared.host.cut_tickets(view, until).await {
            Ok(ended) if ended.is_empty() => {}
            Ok(ended) => {
                tracing::warn!(volume = %self.id, ended = ended.join("; "), "a ticket's time is over; ended who had the \
                    device open for it");
            }
            Err(error) => tracing::warn!(volume = %self.id, error = error.line(), "a ticket was not cut off"),
        }
    }

    async fn refuse_if_used(&self, view: &SubsystemView) -> Result<(), DetachError> {
        if view.namespaces.is_empty() {
            return Ok(());
        }
        match self.users_to_end(view).await {
            Ok(users) if users.is_empty() => Ok(()),
            Ok(users) => Err(DetachError::Busy(users)),
            // Nobody was seen, so nobody is named as a user. What to do next is the controller's decision.
            Err(error) => Err(DetachError::Users(error)),
        }
    }

    async fn record_end(
        &self,
        known: &OnRecord,
        uncertain: bool,
        epoch: Epoch,
        view: &SubsystemView,
        disk: Duration,
    ) -> LedgerEntry {
        let present: Vec<Present> = self.doomed(view).iter().map(Present::from).collect();
        let mut entry = ending(known.entry(), epoch, &present, self.boot_id());
        entry.uncertain |= uncertain;
        if let OnRecord::Unreadable = known {
            entry.deletions.push(anything_before());
        }
        if known.entry() != Some(&entry) {
            self.keep_end(&entry, disk).await;
        }
        self.memory().grant_ends();
        entry
    }

    fn doomed(&self, view: &SubsystemView) -> Vec<Doomed> {
        let plan = plan(view, self.host_nqn(), &self.connects.running(), Want::Gone);
        let delete = |step| match step {
            PlannedStep::Delete(doomed) => Some(doomed),
            PlannedStep::Connect(_) => None,
        };
        plan.steps.into_iter().filter_map(delete).collect()
    }

    /// Flushes the device. A failure is only logged. Nobody has the device open, so whatever an application
    /// was promised has been flushed before; and a target that does not answer must not keep the grant from
    /// ending.
    async fn flush(&self, view: &SubsystemView) -> Duration {
        let began = Instant::now();
        if let Some(namespace) = device(view)
            && let Err(error) = self.shared.host.flush(namespace.dev, self.shared.times.flush).await
        {
            tracing::warn!(volume = %self.id, device = namespace.name, error = error.line(), "flush failed; detaching");
        }
        began.elapsed()
    }

    /// Deletes until an observation finds nothing of ours, and notes how each controller went. Controllers
    /// are deleted at once, even while a connect is in the kernel. That connect may still make one, so
    /// nothing is proven until it has ended.
    async fn remove(
        &self,
        epoch: Epoch,
        entry: &mut LedgerEntry,
        mut view: Observation,
        disk: Duration,
        linger: Duration,
    ) -> Result<Observation, DetachError> {
        let mut failures = Vec::new();
        for round in 0..ROUNDS {
            // An observation from before the grant was over proves nothing.
            let fresh = round > 0;
            if fresh {
                view = self.observe().await?;
            }
            let doomed = self.doomed(&view);
            if doomed.is_empty() {
                if fresh && !view.connecting {
                    return self.prove_absent(view, linger).await;
                }
                self.connects.quiet().await;
                continue;
            }
            let present: Vec<Present> = doomed.iter().map(Present::from).collect();
            let unseen = ending(Some(entry), epoch, &present, self.boot_id());
            if unseen != *entry {
                *entry = unseen;
                self.keep_end(entry, disk).await;
            }
            failures.clear();
            for (doomed, gone) in self.delete(doomed).await {
                match gone {
                    Ok(deletion) => note_deleted(entry, &deletion),
                    Err(error) => failures.push(format!("{}: {}", doomed.target.controller, Causes(&error))),
                }
            }
        }
        if failures.is_empty() {
            failures.push(format!("controllers kept coming, {ROUNDS} times"));
        }
        Err(DetachError::Delete(failures))
    }

    /// Deletes controllers in parallel, each until it is gone or cannot be deleted.
    pub(super) async fn delete(
        &self,
        doomed: Vec<Doomed>,
    ) -> Vec<(Doomed, Result<Deletion, DisconnectError>)> {
        join_all(doomed.into_iter().map(|doomed| async {
            let gone = self.delete_one(&doomed).await;
            (doomed, gone)
        }))
        .await
    }

    async fn delete_one(&self, doomed: &Doomed) -> Result<Deletion, DisconnectError> {
        let _in_the_kernel = InKernel::begin(self, &doomed.target.controller);
        let name = doomed.target.controller.as_str();
        let heard = self.shared.disconnects.about_to_delete(name, &self.subsystem);
        loop {
            match self.shared.host.fabrics().disconnect(&doomed.target, SLICE).await {
                Ok(done) => {
                    // A deletion that proves nothing anyway does not wait for an event.
                    let broken = match done.drained() {
                        true => self.shared.disconnects.broken_before(&heard).await,
                        false => None,
                    };
                    return Ok(deletion(doomed, &done, broken));
                }
                // The fabrics layer follows a deletion for a limited time; after that it answers otherwise.
                Err(DisconnectError::StillDetaching { controller, state, since }) => {
                    tracing::warn!(volume = %self.id, %controller, ?state, ?since, "still detaching");
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn prove_absent(
        &self,
        mut view: Observation,
        linger: Duration,
    ) -> Result<Observation, DetachError> {
        let until = Instant::now() + linger;
        let mut events = self.events();
        loop {
            let plan = plan(&view, self.host_nqn(), &Default::default(), Want::Gone);
            if !plan.steps.is_empty() {
                return Err(DetachError::Delete(vec!["a controller appeared meanwhile".to_owned()]));
            }
            let foreign = plan.foreign;
            if !foreign.is_empty() {
                return Err(DetachError::Foreign(foreign));
            }
            let now = Instant::now();
            let clear = view.unreadable.is_empty();
            if clear && view.namespaces.is_empty() {
                return Ok(view);
            }
            if now >= until && clear {
                let heads: Vec<&str> = view.namespaces.iter().map(|one| one.name.as_str()).collect();
                return Err(DetachError::Unseen(format!(
                    "{} is still there without a controller: it would queue writes, and send them once it has one again",
                    heads.join(", ")
                )));
            }
            if now >= until {
                let unread =
                    view.unreadable.iter().map(|one| format!("{}: {}", one.path.display(), one.error));
                return Err(DetachError::Unseen(format!(
                    "cannot read {}",
                    unread.collect::<Vec<_>>().join("; ")
                )));
            }
            let interest = Interest::in_view(&view);
            tokio::select! {
                () = events.concerning(&interest) => {}
                () = sleep_until((now + Duration::from_millis(20)).min(until)) => {}
            }
            view = self.observe().await?;
        }
    }
}

impl From<&Doomed> for Present {
    fn from(doomed: &Doomed) -> Self {
        Self { controller: doomed.target.controller.to_string(), portal: doomed.portal.clone() }
    }
}

/// How a controller went, as the ledger keeps it. It says "live" only where the deletion proves that nothing
/// of the controller is still on its way.
fn deletion(doomed: &Doomed, done: &Disconnected, broken: Option<&str>) -> Deletion {
    let state = match &done.how {
        Went::Deleted(facts) if facts.state.is_live() && !facts.drained() => {
            let requests = match facts.in_flight {
                Some(0) => "nothing".to_owned(),
                Some(count) => format!("{count} requests"),
                None => "an unknown number of requests".to_owned(),
            };
            format!("live, but with {requests} in flight it took {:?}", facts.took)
        }
        Went::Deleted(facts) => match broken {
            Some(why) if facts.state.is_live() => format!("live, but {why}"),
            _ => facts.state.to_string(),
        },
        Went::AlreadyGone => STATE_GONE.to_owned(),
    };
    Deletion { controller: doomed.target.controller.to_string(), portal: doomed.portal.clone(), state }
}

/// Deletions that are not on disk. An agent that is restarted knows less, so no more is claimed.
fn not_recorded(deletions: &[Deletion]) -> Vec<Deletion> {
    let weaker =
        |one: &Deletion| Deletion { state: format!("{}, but not recorded", one.state), ..one.clone() };
    deletions.iter().map(weaker).collect()
}

/// While it lives, the volume counts as detaching.
struct Detaching<'a, H: Host>(&'a Volume<H>);

impl<'a, H: Host> Detaching<'a, H> {
    fn begin(volume: &'a Volume<H>) -> Self {
        volume.set_activity(Activity::Detaching);
        Self(volume)
    }
}

impl<H: Host> Drop for Detaching<'_, H> {
    fn drop(&mut self) {
        self.0.set_activity(Activity::None);
    }
}

/// While it lives, the kernel is deleting this controller.
struct InKernel<'a, H: Host> {
    volume: &'a Volume<H>,
    controller: &'a ControllerName,
}

impl<'a, H: Host> InKernel<'a, H> {
    fn begin(volume: &'a Volume<H>, controller: &'a ControllerName) -> Self {
        volume.memory().deleting.0.insert(controller.clone(), Instant::now());
        Self { volume, controller }
    }
}

impl<H: Host> Drop for InKernel<'_, H> {
    fn drop(&mut self) {
        self.volume.memory().deleting.0.remove(self.controller);
    }
}

#[cfg(test)]
mod cut_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "revoke_tests.rs"]
mod tests;
