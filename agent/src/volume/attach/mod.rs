//! Attach: connects all portals in parallel, and proves that the device can be used.
//!
//! Comes in: a grant and a deadline. Goes out: Ready with the state and where the time went, or the clause
//! that failed and whether anything is left.
//!
//! Always holds:
//! - The epoch is on disk before the first connect.
//! - A controller that existed before is reused and never deleted. A failed attach deletes what it made.
//! - Ready is reported only after the whole predicate held on one observation, and, where the grant is
//!   reserved, after a report that showed this node registered and the namespace reserved.

pub(super) mod backoff;
pub(super) mod connect_queue;
pub(super) mod connects;
pub(super) mod duplicate_uuid;
pub(super) mod preconditions;
pub(super) mod repair;
pub(super) mod revive;
pub(super) mod timeouts;
pub(super) mod until_ready;

use std::collections::BTreeSet;
use std::time::Duration;

use cleat_host::Portal;
use cleat_host::sysfs::SubsystemView;
use cleat_runtime::exit::Causes;
use tokio::time::{Instant, timeout};

use crate::ledger::rules::{AttachRuling, Stale, may_begin, on_attach};
use crate::ledger::{Grant, LedgerEntry, LedgerError};
use crate::metrics::{self, AttachPart};
use crate::name::Epoch;
use crate::volume::attach::until_ready::{Proven, Run};
use crate::volume::clause::FailedClause;
use crate::volume::directive::GivenSecret;
use crate::volume::host::Host;
use crate::volume::observe::judge::Activity;
use crate::volume::outcome::{AttachTimes, DirectiveFailure, Outcome, Ready};
use crate::volume::plan::Doomed;
use crate::volume::state::VolumePhase;
use crate::volume::supersede::Superseded;
use crate::volume::{Volume, clause};

/// How long a failed attach waits for its connects in the kernel before it reports that something may be
/// left.
const CALL_BACK: Duration = Duration::from_secs(1);

/// Why an attach did not end in Ready.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachError {
    #[error("the grant has ended")]
    Stale(#[source] Stale),
    #[error("{0}")]
    Conflict(String),
    #[error("cannot record the grant")]
    Ledger(#[from] LedgerError),
    #[error("superseded by a later directive")]
    Superseded,
    #[error("not ready: {}: {}", .unready.clause, .unready.message)]
    NotReady { unready: FailedClause, nothing_left: bool },
}

impl AttachError {
    pub(super) fn outcome(self) -> Outcome {
        let failed = |unready, nothing_left| Outcome::Failed(DirectiveFailure { unready, nothing_left });
        match self {
            Self::Stale(stale) => Outcome::StaleEpoch(stale),
            Self::Conflict(text) => failed(clause::failed(clause::GRANT, text), false),
            Self::Ledger(error) => failed(clause::failed(clause::LEDGER, Causes(&error)), false),
            Self::Superseded => failed(clause::failed(clause::SUPERSEDED, self), false),
            Self::NotReady { unready, nothing_left } => failed(unready, nothing_left),
        }
    }
}

impl<H: Host> Volume<H> {
    /// Attaches under an epoch. The caller has the gate.
    pub(super) async fn attach(
        &self,
        epoch: Epoch,
        grant: &Grant,
        given: Option<GivenSecret>,
        received: Instant,
        deadline: Instant,
    ) -> Result<Ready, AttachError> {
        let before = self.record().await?;
        let generation = given.as_ref().and_then(|given| given.generation);
        let entry = self.put_on_record(before.as_ref(), epoch, grant, generation).await?;
        if before.as_ref().is_some_and(|before| before.epoch == epoch) {
            self.refuse_beside_a_dead_device(entry.as_ref()).await?;
        }
        let under_way = self.begin_attach(epoch, before.as_ref().map(|entry| entry.epoch));
        let new_epoch = before.as_ref().is_none_or(|before| before.epoch != epoch);
        self.take_secret(given, new_epoch, entry.as_ref().and_then(|entry| entry.secret_generation));
        let registered = entry.as_ref().and_then(|entry| entry.registered);
        let dated = entry.as_ref().is_some_and(|entry| entry.secret_generation.is_some());
        let mut run = Run::new(self, grant, registered, deadline);
        let stopped = self
            .unless_superseded(epoch, async {
                self.bring_secret_up_to_date(dated).await;
                run.until_proven().await
            })
            .await;
        drop(under_way);
        let written_before = written_before(before.as_ref(), self.boot_id());
        match stopped {
            Ok(Ok(proven)) => {
                self.bring_times_up_to_date(&proven.view).await;
                self.let_heads_stay(&proven.view).await;
                let times = self.proven(epoch, grant, received, &proven);
                if let Some(mut entry) = entry {
                    // Before Ready is reported: a preemption must differ from a registration that never was.
                    let registered = proven.registered.or(entry.registered);
                    let changed = std::mem::replace(&mut entry.registered, registered) != registered;
                    self.note_connected(entry, changed, &proven.view, &written_before).await?;
                }
                self.report(&proven.view);
                // What was proven, whatever another look shows: that follows by itself.
                let state = Box::new(self.judge(&proven.view));
                Ok(Ready { state, times: Some(times) })
            }
            // The directive that took its place deletes what it made, or uses it.
            Err(Superseded) => Err(AttachError::Superseded),
            Ok(Err(unready)) => {
                let unready = self.name_the_duplicate(unready, grant).await;
                let made = std::mem::take(&mut run.made);
                let give_back = written_before.is_empty() && run.reserving;
                let undone = self.unless_superseded(epoch, async {
                    (give_back && self.give_back_unused(grant).await, self.undo(made).await)
                });
                let Ok((given_back, nothing_left)) = undone.await else {
                    return Err(AttachError::Superseded);
                };
                if let Some(entry) = entry {
                    self.note_failed(entry, given_back, nothing_left.then_some(written_before)).await;
                }
                Err(AttachError::NotReady { unready, nothing_left })
            }
        }
    }

    /// Rules on the grant and records it; returns the record before that.
    async fn put_on_record(
        &self,
        before: Option<&LedgerEntry>,
        epoch: Epoch,
        grant: &Grant,
        generation: Option<Epoch>,
    ) -> Result<Option<LedgerEntry>, AttachError> {
        if before.is_none_or(|before| before.uncertain) {
            may_begin(before, self.shared.ledger.forgotten().await?, epoch).map_err(AttachError::Stale)?;
        }
        match on_attach(before, epoch, grant, generation, self.boot_id()) {
            AttachRuling::Stale(stale) => Err(AttachError::Stale(stale)),
            AttachRuling::Conflict(text) => Err(AttachError::Conflict(text)),
            AttachRuling::Recorded => Ok(before.cloned()),
            AttachRuling::Record(entry) => {
                self.keep(&entry).await?;
                Ok(Some(*entry))
            }
        }
    }

    /// A device that is made again under the same grant must not appear beside one that somebody still has
    /// open.
    async fn refuse_beside_a_dead_device(&self, entry: Option<&LedgerEntry>) -> Result<(), AttachError> {
        let ready_under = self.memory().judged.ready_under();
        let known = |entry: &&LedgerEntry| ready_under == Some(entry.epoch) || !entry.published.is_empty();
        let Some(entry) = entry.filter(known) else { return Ok(()) };
        // A failed observation shows in what follows.
        let Ok(view) = self.observe().await else { return Ok(()) };
        if !view.controllers.is_empty() {
            return Ok(());
        }
        let users = self.users_of_dead(entry, &view).await;
        self.report(&view);
        if users.is_empty() {
            // A device that comes back is not ready before it is proven.
            self.memory().judged.set_ready_under(None);
            return Ok(());
        }
        let message = format!(
            "lost while held: the kernel has given the device up, and it is still in use: {}; stop that, and it is made again",
            users.join("; ")
        );
        let unready = clause::failed(clause::DEAD_DEVICE, message);
        Err(AttachError::NotReady { unready, nothing_left: false })
    }

    fn begin_attach(&self, epoch: Epoch, before: Option<Epoch>) -> UnderWay<'_, H> {
        let was_usable = self
            .reported_state()
            .is_some_and(|state| matches!(state.phase, VolumePhase::Ready | VolumePhase::Degraded));
        let mut memory = self.memory();
        if before != Some(epoch) {
            memory.grant_begins(epoch);
        } else if was_usable {
            // An observation may have reported it ready before any attach of this process: then it stays so
            // meanwhile.
            memory.judged.set_ready_under(Some(epoch));
        }
        memory.judged.attach_begins();
        memory.activity = Activity::Connecting;
        drop(memory);
        UnderWay { volume: self }
    }

    /// Gives the grant's secret to controllers that have another one: it may have changed while this node
    /// could not be reached.
    async fn bring_secret_up_to_date(&self, dated: bool) {
        if !dated && self.memory().secret.get().is_none() {
            return;
        }
        // A failed observation, or a failure to give it, shows in what follows.
        let Ok(view) = self.observe().await else { return };
        // An outdated secret was not accepted, and a process that has just started has none.
        self.learn_secret(&view).await;
        let Some(secret) = self.memory().secret.get() else { return };
        for (live, error) in self.give_secret(&view, &secret).await {
            tracing::warn!(volume = %self.id, live, error = %Causes(&error), "a controller keeps another secret");
        }
    }

    /// A failed attach leaves no registration of a node that was not allowed to use the device.
    async fn give_back_unused(&self, grant: &Grant) -> bool {
        match self.observe().await {
            Ok(view) => self.give_back(Some(grant), &view).await,
            Err(_) => false,
        }
    }

    fn proven(&self, epoch: Epoch, grant: &Grant, received: Instant, proven: &Proven) -> AttachTimes {
        let learned = grant.identity.is_empty().then_some(proven.facts.selected.identity);
        self.memory().judged.proven(epoch, proven.checked, learned);
        let connect = proven.connected.saturating_duration_since(received);
        let device = proven.device.saturating_duration_since(proven.connected);
        let checks = proven.checked.saturating_duration_since(proven.device);
        metrics::attach_seconds(AttachPart::Connect, connect);
        metrics::attach_seconds(AttachPart::Device, device);
        metrics::attach_seconds(AttachPart::Checks, checks);
        metrics::attach_seconds(AttachPart::Total, received.elapsed());
        AttachTimes { connect, device, checks }
    }

    /// Takes portals off the record that were never connected: nothing can have been written over them.
    async fn note_connected(
        &self,
        mut entry: LedgerEntry,
        changed: bool,
        view: &SubsystemView,
        written_before: &BTreeSet<Portal>,
    ) -> Result<(), LedgerError> {
        let mut written: BTreeSet<Portal> = self.connects.running();
        written.extend(view.controllers.iter().filter_map(|controller| controller.portal()));
        written.retain(|portal| entry.may_have_written.contains(portal));
        written.extend(written_before);
        let written: Vec<Portal> = written.into_iter().collect();
        if entry.may_have_written == written && !changed {
            return Ok(());
        }
        entry.may_have_written = written;
        self.keep(&entry).await
    }

    /// After a failure. If it left nothing, nothing was written over its connections: nobody had the device
    /// yet. It forgets that this node was once registered only where it gave that registration back itself;
    /// one that somebody else removed was preempted, and stays so.
    async fn note_failed(&self, entry: LedgerEntry, given_back: bool, written: Option<BTreeSet<Portal>>) {
        let mut noted = entry.clone();
        if given_back {
            noted.registered = None;
        }
        if let Some(written) = written {
            noted.may_have_written = written.into_iter().collect();
        }
        if noted != entry
            && let Err(error) = self.keep(&noted).await
        {
            // Then the record claims more than can have been written, or a preemption that never was: both
            // are safe.
            tracing::error!(volume = %self.id, error = %Causes(&error), "cannot note how the attach failed");
        }
    }

    /// Deletes what a failed attach made; true where it is proven that no controller of the subsystem is
    /// left.
    async fn undo(&self, made: Vec<Doomed>) -> bool {
        self.connects.call_back();
        let quiet = timeout(CALL_BACK, self.connects.quiet()).await.is_ok();
        for (doomed, gone) in self.delete(made).await {
            if let Err(error) = gone {
                tracing::error!(
                    volume = %self.id, controller = %doomed.target.controller, error = %Causes(&error),
                    "a failed attach cannot remove what it made"
                );
            }
        }
        match self.observe().await {
            Ok(view) => {
                self.report(&view);
                quiet && view.is_proven_absent()
            }
            Err(_) => false,
        }
    }
}

/// Portals that may have been written over before this attach, under a grant that has not ended.
fn written_before(before: Option<&LedgerEntry>, boot_id: &str) -> BTreeSet<Portal> {
    let open = before.filter(|entry| !entry.ended && entry.boot_id == boot_id);
    open.map(|entry| entry.may_have_written.iter().copied().collect()).unwrap_or_default()
}

/// While it lives, the volume counts as connecting.
struct UnderWay<'a, H: Host> {
    volume: &'a Volume<H>,
}

impl<H: Host> Drop for UnderWay<'_, H> {
    fn drop(&mut self) {
        self.volume.set_activity(Activity::None);
    }
}
