//! Verify: a new observation of one volume, and a judgement of the whole predicate.
//!
//! Comes in: an epoch. Goes out: the state, or why the volume is not usable. Changes nothing.

use std::time::Duration;

use cleat_host::NamespaceIdentity;
use cleat_host::readiness::{Expectation, Unready};
use cleat_runtime::exit::Causes;
use tokio::time::Instant;

use crate::ledger::rules::{ending, may_end};
use crate::ledger::{Grant, LedgerEntry};
use crate::name::Epoch;
use crate::volume::host::Host;
use crate::volume::observe::judge::{Activity, device};
use crate::volume::outcome::{Outcome, Ready};
use crate::volume::state::{Absence, VolumePhase};
use crate::volume::{Volume, clause};

/// The last judgement of the whole predicate.
#[derive(Debug, Clone, Default)]
pub(in crate::volume) struct Judged {
    /// The epoch under which the volume was ready.
    ready_under: Option<Epoch>,
    /// The identity that was learned at the attach of a grant that named none.
    learned: Option<NamespaceIdentity>,
    /// What failed at the last judgement.
    failing: Option<Unready>,
    /// When it was last judged.
    at: Option<Instant>,
}

impl Judged {
    /// The identity that was learned at the attach.
    pub(in crate::volume) fn learned(&self) -> Option<NamespaceIdentity> {
        self.learned
    }

    /// What failed at the last judgement; `None` if nothing did.
    pub(in crate::volume) fn failing(&self) -> Option<&Unready> {
        self.failing.as_ref()
    }

    /// The epoch under which the volume was ready.
    pub(in crate::volume) fn ready_under(&self) -> Option<Epoch> {
        self.ready_under
    }

    /// Whether the volume was ready under this very epoch.
    pub(in crate::volume) fn was_ready_under(&self, epoch: Option<Epoch>) -> bool {
        self.ready_under.is_some() && self.ready_under == epoch
    }

    /// Whether it is time to judge again.
    pub(in crate::volume) fn is_due(&self, every: Duration) -> bool {
        self.at.is_none_or(|at| at.elapsed() >= every)
    }

    /// Sets, or clears, the epoch under which the volume counts as having been ready.
    pub(in crate::volume) fn set_ready_under(&mut self, epoch: Option<Epoch>) {
        self.ready_under = epoch;
    }

    /// An attach begins: it will judge again what failed before.
    pub(in crate::volume) fn attach_begins(&mut self) {
        self.failing = None;
    }

    /// An attach has proven the device.
    pub(in crate::volume) fn proven(
        &mut self,
        epoch: Epoch,
        at: Instant,
        learned: Option<NamespaceIdentity>,
    ) {
        self.ready_under = Some(epoch);
        self.at = Some(at);
        if learned.is_some() {
            self.learned = learned;
        }
    }

    /// Another grant begins: its identity is still to be learned.
    pub(in crate::volume) fn grant_begins(&mut self) {
        self.learned = None;
    }

    /// What stays after the end of the grant.
    pub(in crate::volume) fn ended(&self) -> Self {
        Self { at: self.at, ..Self::default() }
    }

    /// Makes the next judgement due, for tests.
    #[cfg(test)]
    pub(in crate::volume) fn make_due(&mut self) {
        self.at = None;
    }
}

impl<H: Host> Volume<H> {
    /// Observes again. Needs no turn: an operation that is under way shows in the state.
    pub(in crate::volume) async fn verify(&self, epoch: Epoch) -> Outcome {
        let entry = match self.known().await {
            Ok(entry) => entry,
            Err(error) => return Outcome::failed(clause::failed(clause::LEDGER, error)),
        };
        if let Err(stale) = may_end(entry.as_ref(), epoch) {
            return Outcome::StaleEpoch(stale);
        }
        let grant = entry.as_ref().filter(|entry| !entry.ended).and_then(|entry| entry.grant.as_ref());
        if let Some(grant) = grant {
            self.judge_fully(&self.expectation(grant), Instant::now(), self.shared.times.check).await;
        }
        let view = match self.observe().await {
            Ok(view) => view,
            Err(error) => return Outcome::failed(clause::failed(clause::LOOK, Causes(&error))),
        };
        let mut state = self.report(&view);
        if device(&view).is_some() {
            state.openers = match self.users(&view).await {
                Ok(users) => users,
                Err(error) => vec![error.line()],
            };
        }
        match state.phase {
            VolumePhase::Ready | VolumePhase::Degraded => {
                Outcome::Ready(Ready { state: Box::new(state), times: None })
            }
            VolumePhase::Absent => {
                // Even where no deletion has ended the grant: a controller that vanished by itself is named.
                let seen = ending(entry.as_ref(), epoch, &[], self.boot_id());
                Outcome::Absent(Absence { deleted: seen.deletions, times: None })
            }
            VolumePhase::Connecting | VolumePhase::Lost | VolumePhase::Detaching => {
                let nothing = || {
                    clause::failed(clause::GRANT, "the grant has ended, and its controllers are still there")
                };
                Outcome::failed(state.unready.unwrap_or_else(nothing))
            }
        }
    }

    /// The record as it was last read or written; reads it where it was not. For reports only.
    async fn known(&self) -> Result<Option<LedgerEntry>, String> {
        let read = self.memory().record.as_read();
        if let Some(entry) = read {
            return entry;
        }
        let _pass = self.gate.enter("reading of the ledger").await;
        self.record().await.map_err(|error| Causes(&error).to_string())
    }

    /// The grant that is in force; `None` without one.
    pub(in crate::volume) async fn granted(&self) -> Option<Grant> {
        self.known().await.ok().flatten().filter(|entry| !entry.ended).and_then(|entry| entry.grant)
    }

    /// Judges the whole predicate and remembers what failed. Searches of the whole machine may be older than
    /// this call, but not older than `since`.
    pub(in crate::volume) async fn judge_fully(
        &self,
        expectation: &Expectation,
        since: Instant,
        limit: Duration,
    ) {
        let epoch = self.memory().record.entry().map(|entry| entry.epoch);
        let judged = self.check_since(expectation, since, limit).await;
        self.memory().judged.at = Some(Instant::now());
        match judged {
            Ok(Ok(_)) => {
                let mut memory = self.memory();
                memory.judged.failing = None;
                // An attach that is under way says Ready by itself, after its own judgement.
                if memory.activity == Activity::None {
                    memory.judged.ready_under = epoch;
                }
            }
            Ok(Err(unready)) => self.memory().judged.failing = Some(unready),
            Err(error) => {
                tracing::warn!(volume = %self.id, error = error.line(), "cannot check whether the volume is \
                    ready");
            }
        }
    }
}
