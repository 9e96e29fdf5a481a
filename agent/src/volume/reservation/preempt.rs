//! Preempt: removes other nodes' registrations, under this node's own grant.
//!
//! Comes in: this node's key and the victims' keys. Goes out: the keys of a report that was read afterwards
//! and shows no victim, and the keys that were aborted.
//!
//! Always holds: nothing of this node's is touched. A victim that is not registered is done. Success is what
//! the report shows, not what a command answered. A victim counts as aborted only if a report showed it and
//! the target then answered its preemption with success. A later Detach or Revoke does not wait for a slow
//! target.

use std::time::Duration;

use cleat_host::DevT;
use cleat_host::reservations::{ReservationError, ReservationKey, ReservationReport};
use cleat_runtime::exit::Causes;

use crate::ledger::rules::may_end;
use crate::ledger::{LedgerEntry, LedgerError};
use crate::name::Epoch;
use crate::volume::host::Host;
use crate::volume::observe::judge::device;
use crate::volume::outcome::{Outcome, Preempted};
use crate::volume::reservation::{self, ReserveError};
use crate::volume::supersede::Superseded;
use crate::volume::{Volume, clause};

/// Longest that one preempt-and-abort may take: a target may wait for the victim's writes. The caller answers
/// Pending meanwhile.
const LONGEST: Duration = Duration::from_secs(120);
/// Longest that a report may take.
const REPORT: Duration = Duration::from_secs(5);
/// How often the victims of a report are preempted before it gives up: others can register in between.
const ROUNDS: u32 = 3;

/// Why victims may still be registered.
#[derive(Debug, thiserror::Error)]
enum PreemptError {
    #[error("this node has no grant of the volume under epoch {0}")]
    NoGrant(Epoch),
    #[error("the grant's reservation key is {granted}, the directive names {asked}")]
    OtherKey { granted: ReservationKey, asked: ReservationKey },
    #[error("this node has no device of the volume with a live path")]
    NoDevice,
    #[error("cannot keep this node's own registration")]
    Own(#[from] ReserveError),
    #[error("cannot preempt the victims")]
    Command(#[from] ReservationError),
    #[error("still registered after {ROUNDS} rounds: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Left(Vec<ReservationKey>),
    #[error("superseded by a later directive; the command may still take effect")]
    Superseded,
    #[error("cannot record the key")]
    Ledger(#[from] LedgerError),
    #[error("cannot read the kernel's state")]
    Observation(#[from] cleat_host::sysfs::SysfsError),
}

impl From<Superseded> for PreemptError {
    fn from(_: Superseded) -> Self {
        Self::Superseded
    }
}

impl PreemptError {
    fn clause(&self) -> &'static str {
        match self {
            Self::NoGrant(_) | Self::OtherKey { .. } => clause::GRANT,
            Self::Superseded => clause::SUPERSEDED,
            Self::Ledger(_) => clause::LEDGER,
            Self::Observation(_) => clause::LOOK,
            Self::NoDevice | Self::Own(_) | Self::Command(_) | Self::Left(_) => clause::RESERVATION,
        }
    }
}

impl<H: Host> Volume<H> {
    /// Carries out a Preempt. The caller has the gate.
    pub(in crate::volume) async fn preempt(
        &self,
        epoch: Epoch,
        key: ReservationKey,
        victims: &[ReservationKey],
    ) -> Outcome {
        let known = match self.record().await {
            Ok(known) => known,
            Err(error) => return outcome(&PreemptError::Ledger(error)),
        };
        if let Err(stale) = may_end(known.as_ref(), epoch) {
            return Outcome::StaleEpoch(stale);
        }
        match self.preempt_under(known, epoch, key, victims).await {
            Ok((report, aborted)) => {
                let aborted_keys = aborted.into_iter().map(ReservationKey::get).collect();
                Outcome::Preempted(Preempted { left_keys: report.keys(), aborted_keys })
            }
            Err(error) => outcome(&error),
        }
    }

    async fn preempt_under(
        &self,
        known: Option<LedgerEntry>,
        epoch: Epoch,
        key: ReservationKey,
        victims: &[ReservationKey],
    ) -> Result<(ReservationReport, Vec<ReservationKey>), PreemptError> {
        let in_force =
            |entry: &LedgerEntry| entry.epoch == epoch && !entry.ended && entry.boot_id == self.boot_id();
        let mut entry = known.filter(in_force).ok_or(PreemptError::NoGrant(epoch))?;
        let grant = entry.grant.as_mut().ok_or(PreemptError::NoGrant(epoch))?;
        match grant.reserve {
            Some(granted) if granted != key => {
                return Err(PreemptError::OtherKey { granted, asked: key });
            }
            Some(_) => {}
            None => {
                // On record before it is registered, so that the end of the grant gives it back.
                grant.reserve = Some(key);
                self.keep(&entry).await?;
            }
        }
        let view = self.observe().await?;
        let live = view.controllers.iter().any(|one| one.state.is_live());
        let dev = device(&view).filter(|_| live).ok_or(PreemptError::NoDevice)?.dev;
        // A later directive may interrupt only what asks the target: a record is always finished.
        let held = self.unless_superseded(epoch, self.hold(dev, key, entry.registered)).await??;
        self.note_held();
        if entry.registered != Some(held.generation) {
            entry.registered = Some(held.generation);
            self.keep(&entry).await?;
        }
        self.unless_superseded(epoch, self.remove_victims(dev, key, victims, held)).await?
    }

    /// Preempts each victim that a report shows, until a report shows none; returns that report and which
    /// were aborted.
    async fn remove_victims(
        &self,
        dev: DevT,
        key: ReservationKey,
        victims: &[ReservationKey],
        mut report: ReservationReport,
    ) -> Result<(ReservationReport, Vec<ReservationKey>), PreemptError> {
        let target = self.shared.host.reservations();
        let mut aborted = Vec::new();
        for _ in 0..ROUNDS {
            for victim in registered(&report, victims) {
                tracing::info!(volume = %self.id, %key, %victim, "preempting and aborting");
                match target.preempt_and_abort(dev, key, victim, LONGEST).await {
                    Ok(()) => aborted.push(victim),
                    // A conflict means that the report is old and that nothing was aborted; the next one
                    // shows what happened.
                    Err(error) if error.is_conflict() => {}
                    Err(error) => return Err(error.into()),
                }
            }
            report = target.report(dev, REPORT).await?;
            if !report.admits(self.host_id(), key) {
                return Err(ReserveError::Preempted(key).into());
            }
            if registered(&report, victims).is_empty() {
                return Ok((report, aborted));
            }
        }
        Err(PreemptError::Left(registered(&report, victims)))
    }
}

fn registered(report: &ReservationReport, victims: &[ReservationKey]) -> Vec<ReservationKey> {
    victims.iter().copied().filter(|victim| report.has(*victim)).collect()
}

fn outcome(error: &PreemptError) -> Outcome {
    let unready = match error {
        PreemptError::Own(own) => reservation::unready(own),
        other => clause::failed(other.clause(), Causes(other)),
    };
    Outcome::failed(unready)
}
