//! Carries out directives: each once at a time, in its turn, to its result.
//!
//! Comes in: directives. Goes out: results into the outbox.
//!
//! Always holds: every directive ends in a result. One that takes longer than its deadline is reported as
//! Pending until then.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use crate::metrics;
use crate::name::Epoch;
use crate::volume::deduplicate::Begin;
use crate::volume::detach::DetachMode;
use crate::volume::directive::{Ask, Directive};
use crate::volume::host::Host;
use crate::volume::outcome::{DirectiveResult, Outcome, StillRunning};
use crate::volume::supersede::Arrival;
use crate::volume::{Fleet, Volume, clause};

/// How often a directive that is past its deadline is reported as pending again.
const PENDING_AGAIN: Duration = Duration::from_secs(30);
/// An attach answers by itself at its deadline, once it has deleted what it made; only past this it is
/// pending.
const UNDOING: Duration = Duration::from_secs(2);

impl<H: Host> Fleet<H> {
    /// Starts a directive, or joins the operation of the same id.
    pub fn begin(&self, directive: Directive) {
        let volume = self.volume(&directive.volume);
        let kind = directive.ask.kind();
        let span = tracing::info_span!(
            "directive",
            kind = kind.as_str(),
            volume = %directive.volume,
            epoch = %directive.epoch,
            operation = %directive.operation
        );
        match volume.operations.begin(&directive.operation, kind) {
            Begin::Start => {
                span.in_scope(|| tracing::info!("begins"));
                // The operation that has the volume hears of it before anything else of it begins.
                let (fleet, arrival) = (self.clone(), volume.arrivals.arrive(&directive));
                self.tasks().spawn(fleet.carry_out(volume, directive, arrival).instrument(span));
            }
            Begin::Joined => {
                span.in_scope(|| tracing::info!("repeated directive; joined the one that is running"))
            }
            Begin::Known(result) => {
                span.in_scope(|| tracing::info!("repeated directive; answered with the earlier result"));
                self.results().deliver(*result);
            }
        }
    }

    /// Carries out a directive and delivers its result.
    async fn carry_out(self, volume: Arc<Volume<H>>, directive: Directive, arrival: Arrival) {
        let kind = directive.ask.kind();
        let due = match directive.ask {
            Ask::Attach { deadline, .. } => deadline + UNDOING,
            Ask::Detach { deadline, .. }
            | Ask::Revoke { deadline }
            | Ask::Preempt { deadline, .. }
            | Ask::Rekey { deadline, .. } => deadline,
            Ask::Verify { .. } => directive.received + PENDING_AGAIN,
        };
        let work = tokio::spawn({
            let (fleet, volume, directive) = (self.clone(), volume.clone(), directive.clone());
            async move { fleet.execute(&volume, &directive, arrival).await }.in_current_span()
        });
        let outcome = self.outcome(&volume, &directive, work, due).await;
        metrics::directive(kind.as_str(), outcome.as_str());
        let result = DirectiveResult::of(&directive, outcome);
        log_outcome(&directive, &result.outcome);
        volume.operations.end(&directive.operation, kind, &result);
        self.results().deliver(result);
    }

    async fn execute(&self, volume: &Volume<H>, directive: &Directive, arrival: Arrival) -> Outcome {
        if let Ask::Verify { pods, others } = &directive.ask
            && !pods.is_empty()
        {
            let own = self.devices_of(others);
            volume.look_at_held(directive.epoch, pods, own).await;
        }
        volume.execute(directive, arrival).await
    }

    /// Waits for the outcome, and reports Pending each time that it is overdue.
    async fn outcome(
        &self,
        volume: &Volume<H>,
        directive: &Directive,
        mut work: JoinHandle<Outcome>,
        mut due: Instant,
    ) -> Outcome {
        loop {
            match timeout_at(due, &mut work).await {
                Ok(Ok(outcome)) => return outcome,
                Ok(Err(error)) => {
                    tracing::error!(%error, "an operation ended without a result");
                    let unready = clause::failed(
                        clause::INTERNAL,
                        "the operation was lost; this is a bug, please \
                                                          report it",
                    );
                    return Outcome::failed(unready);
                }
                Err(_) => {
                    let age = directive.received.elapsed();
                    let message = volume.waits_for();
                    tracing::warn!(?age, message, "still running after its deadline");
                    let pending = Outcome::Pending(StillRunning { message, age });
                    metrics::directive(directive.ask.kind().as_str(), pending.as_str());
                    self.results().deliver(DirectiveResult::of(directive, pending));
                    due = Instant::now() + PENDING_AGAIN;
                }
            }
        }
    }
}

impl<H: Host> Volume<H> {
    /// Does what a directive asks for, in its turn.
    async fn execute(&self, directive: &Directive, arrival: Arrival) -> Outcome {
        if let Ask::Verify { .. } = &directive.ask {
            return self.verify(directive.epoch).await;
        }
        let _pass =
            self.gate.enter(format!("{} {}", directive.ask.kind().as_str(), directive.operation)).await;
        // It ends before the turn is given back: the next operation must not see a directive that has ended.
        let _arrival = arrival;
        let epoch = directive.epoch;
        match &directive.ask {
            Ask::Verify { .. } => self.verify(epoch).await,
            Ask::Attach { grant, secret, deadline } => {
                match self.attach(epoch, grant, secret.clone(), directive.received, *deadline).await {
                    Ok(ready) => Outcome::Ready(ready),
                    Err(error) => error.outcome(),
                }
            }
            Ask::Preempt { key, victims, .. } => self.preempt(epoch, *key, victims).await,
            Ask::Rekey { secret, generation, .. } => self.rekey(epoch, secret, *generation).await,
            Ask::Detach { cut_tickets: false, .. } => self.ended(epoch, DetachMode::Detach).await,
            Ask::Detach { cut_tickets: true, deadline } => {
                self.ended(epoch, DetachMode::CutTickets { by: *deadline }).await
            }
            Ask::Revoke { .. } => self.ended(epoch, DetachMode::Revoke).await,
        }
    }

    async fn ended(&self, epoch: Epoch, mode: DetachMode) -> Outcome {
        match self.end_grant(epoch, mode).await {
            Ok(absent) => Outcome::Absent(absent),
            Err(error) => error.outcome(),
        }
    }

    /// What an operation of this volume waits for, as text for a person.
    fn waits_for(&self) -> String {
        let holder = self.gate.holder().map(|holder| holder.to_string());
        let state = self.reported_state();
        let controllers: Vec<String> = state
            .iter()
            .flat_map(|state| &state.paths)
            .map(|path| format!("{} at {} ({})", path.controller, path.portal, path.state))
            .collect();
        let mut parts: Vec<String> = holder.into_iter().collect();
        parts.extend(self.memory().deleting.in_words());
        if !controllers.is_empty() {
            parts.push(format!("controllers when last looked at: {}", controllers.join(", ")));
        }
        parts.extend(self.connects.in_words());
        parts.join("; ")
    }
}

fn log_outcome(directive: &Directive, outcome: &Outcome) {
    let (took, name) = (directive.received.elapsed(), outcome.as_str());
    match outcome {
        Outcome::Ready(_) | Outcome::Absent(_) | Outcome::Preempted(_) | Outcome::Rekeyed => {
            tracing::info!(outcome = name, ?took, "done");
        }
        Outcome::Busy(busy) => {
            tracing::warn!(holders = busy.holders.join("; "), ?took, "refused: in use")
        }
        Outcome::Failed(failed) => {
            let (clause, message) = (failed.unready.clause, failed.unready.message.as_str());
            tracing::warn!(clause, message, nothing_left = failed.nothing_left, ?took, "failed");
        }
        Outcome::StaleEpoch(seen) => {
            tracing::warn!(outcome = name, %seen, ?took, "refused: stale directive");
        }
        Outcome::Pending(_) => {}
    }
}
