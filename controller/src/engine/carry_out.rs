//! The task that owns the store: makes records durable, then carries out what was decided, in order.
//!
//! In come steps; out go one commit for all steps that wait, and then their effects. What always holds: no effect
//! of a step begins before its records and those of all steps before it are durable; effects begin in the order of
//! the steps. A store that cannot take something now (a full disk) is asked again until it does, and everything waits; one
//! that says that a volume's record was written by somebody else sets that volume aside (a node's is written over it, a few
//! times); after any other failure nothing
//! is carried out any more.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use cleat_core::{
    Directive, Effect, Event, NodeId, OperationId, Outcome, RequestId, SessionId, UnixMillis, VolumeId,
};
use cleat_rds::secret::NoSecret;
use cleat_runtime::readiness::ReadyFlag;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::fences::Fences;
use super::handle::Stalled;
use super::input::{RequestResult, Waiter};
use super::ports::Agents;
use super::rds_in_doubt::RdsInDoubt;
use super::rds_queue::RdsQueue;
use super::records::Book;
use super::{Decision, EngineError, RequestError, WatchedChange, notices};
use crate::clock::Clock;
use crate::explain;
use crate::leadership::Leadership;
use crate::metrics;
use crate::store::{CommitError, Key, RecordKind, Store, Version, Write};

/// A commit that takes longer is not normal on any disk.
const SLOW_COMMIT: std::time::Duration = std::time::Duration::from_secs(5);
/// A directive or an answer that has left this process has arrived after that, or its connection is broken.
const ARRIVES: std::time::Duration = std::time::Duration::from_secs(1);
/// Between two tries of a store that cannot take something now.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(500);
/// So often it is said again that it does not.
const SAY_AGAIN: std::time::Duration = std::time::Duration::from_secs(30);
/// A node's record that somebody else writes as often as we do is left to them.
const NODE_TRIES: u32 = 5;
/// Steps that share a commit at most, so that the first of them does not wait for ever-growing ones.
const GROUP: usize = 256;

/// Where records go, and who learns how that goes.
pub(super) struct Storing {
    pub(super) store: Arc<dyn Store>,
    pub(super) book: Book,
    pub(super) ready: ReadyFlag,
    /// Why the store takes nothing now.
    pub(super) stalled: watch::Sender<Stalled>,
    /// Whether this process leads.
    pub(super) leadership: Leadership,
    /// Ends the waiting for a store that takes nothing.
    pub(super) stop: CancellationToken,
}

pub(super) struct Executor {
    storing: Storing,
    rds_queue: RdsQueue,
    agents: Arc<dyn Agents>,
    changes: broadcast::Sender<WatchedChange>,
    clock: Clock,
    waiters: HashMap<RequestId, Waiter>,
    fences: Fences,
    unsettled: RdsInDoubt,
}

impl Executor {
    pub(super) fn new(
        storing: Storing,
        rds_queue: RdsQueue,
        agents: Arc<dyn Agents>,
        changes: broadcast::Sender<WatchedChange>,
        clock: Clock,
        (fences, unsettled): (Fences, RdsInDoubt),
    ) -> Self {
        Self { storing, rds_queue, agents, changes, clock, waiters: HashMap::new(), fences, unsettled }
    }

    /// Runs until no more steps can come.
    pub(super) async fn run(mut self, mut steps: mpsc::Receiver<Decision>) -> Result<(), EngineError> {
        self.storing.ready.set(true);
        let mut group = Vec::with_capacity(GROUP);
        while steps.recv_many(&mut group, GROUP).await > 0 {
            let asked = self.unsettled.asking(&group);
            let mut writes = self.storing.book.writes(&group, &asked, &[])?;
            if !writes.is_empty() {
                writes = self.storing.book.writes(&group, &asked, &self.unsettled.settled())?;
            }
            self.storing.commit(writes).await?;
            for step in group.drain(..) {
                self.storing.still_leads()?;
                if let ControlFlow::Break(error) = self.carry_out(step) {
                    return Err(error);
                }
            }
            // Nobody waits for this: it is done when nothing else is to be.
            if steps.is_empty() {
                let writes = self.storing.book.writes(&[], &[], &self.unsettled.settled())?;
                self.storing.commit(writes).await?;
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, step: Decision) -> ControlFlow<EngineError> {
        let Decision { now, waiter, effects, changed, view } = step;
        if let Some(waiter) = waiter {
            self.waiters.insert(waiter.request, waiter);
        }
        for effect in effects {
            match self.set_aside(&effect) {
                None => self.begin(now, effect)?,
                // What was decided rests on a record that is not ours any more.
                Some(failed) => self.leave(effect, failed),
            }
        }
        if let Some(change) = changed {
            self.tell(change);
        }
        if let Some(deliver) = view {
            deliver();
        }
        metrics::waiting_requests(self.waiters.len());
        ControlFlow::Continue(())
    }

    fn begin(&mut self, now: UnixMillis, effect: Effect) -> ControlFlow<EngineError> {
        match effect {
            // Durable already; only watchers still have to learn of it.
            Effect::Persist(record) => {
                let nodes = self.fences.recorded(now, &record);
                self.recorded(record.spec.id, nodes);
            }
            Effect::Forget(volume) => {
                let nodes = self.fences.forgotten(&volume);
                self.recorded(volume, nodes);
            }
            // Durable already; watchers hear of the node by its session.
            Effect::PersistNode(_) | Effect::ForgetNode(_) => {}
            Effect::Rds { operation, request } => self.rds_queue.begin(operation, request),
            Effect::Direct { node, session, operation, directive } => {
                if let Err(missing) = self.agents.direct(&node, &session, operation, &directive) {
                    // Its agent was sent nothing; to the core that is an agent that could not do it.
                    self.rds_queue.tell(cannot_be_sent(node, session, operation, &directive, &missing));
                }
            }
            Effect::Reply { request, result } => self.reply(now, request, result),
            Effect::RefuseSession { session, refusal } => {
                self.agents.refuse(&session, explain::session_refusal(&refusal));
            }
            Effect::Notice(notice) => {
                let notice = notices::tell(now, &notice);
                self.tell(WatchedChange::Notice(notice.into()));
            }
        }
        ControlFlow::Continue(())
    }

    /// Why an effect must not be carried out, where it is about a volume that was set aside.
    fn set_aside(&self, effect: &Effect) -> Option<RequestError> {
        let volume = match effect {
            Effect::Persist(record) => &record.spec.id,
            Effect::Forget(volume) => volume,
            Effect::Rds { request, .. } => request.volume(),
            Effect::Direct { directive, .. } => directive.volume(),
            Effect::Reply { request, .. } => self.waiters.get(request)?.volume.as_ref()?,
            Effect::RefuseSession { .. }
            | Effect::Notice(_)
            | Effect::PersistNode(_)
            | Effect::ForgetNode(_) => return None,
        };
        let reason = self.storing.book.is_set_aside(volume)?.to_owned();
        Some(RequestError::SetAside { volume: volume.clone(), reason })
    }

    fn leave(&mut self, effect: Effect, failed: RequestError) {
        let Effect::Reply { request, .. } = effect else { return };
        if let Some(waiter) = self.waiters.remove(&request) {
            // The caller may have gone.
            let _ = waiter.answer.send(Err(failed));
        }
    }

    fn recorded(&self, volume: VolumeId, nodes: Vec<NodeId>) {
        self.tell(WatchedChange::Volume(volume));
        for node in nodes {
            self.tell(WatchedChange::Node(node));
        }
    }

    fn reply(&mut self, now: UnixMillis, request: RequestId, result: RequestResult) {
        let Some(waiter) = self.waiters.remove(&request) else {
            // One answer for each request is the core's promise; a second one has nobody left to hear it.
            tracing::error!(request = request.0, ?result, "answered a request that nobody waits for");
            return;
        };
        if let Err(refusal) = &result {
            let notice = notices::refused(now, waiter.volume.as_ref(), waiter.node.as_ref(), refusal);
            self.tell(WatchedChange::Notice(notice.into()));
        }
        // The caller may have gone at its deadline. What was asked stands, and a repeat is answered from it.
        if waiter.answer.send(result.map_err(RequestError::Refused)).is_err() {
            let age_ms = self.clock.now().since(now);
            let volume = waiter.volume.as_ref().map(VolumeId::as_str);
            tracing::debug!(volume, age_ms, "the caller did not wait for its answer");
        }
    }

    fn tell(&self, change: WatchedChange) {
        // An error means that nobody watches.
        let _ = self.changes.send(change);
    }
}

/// The answer to a directive that was not sent, because it needs a secret that cannot be made.
fn cannot_be_sent(
    node: NodeId,
    session: SessionId,
    operation: OperationId,
    directive: &Directive,
    missing: &NoSecret,
) -> Event {
    let (volume, epoch) = (directive.volume().clone(), directive.epoch());
    let message = missing.to_string();
    let outcome = Outcome::Failed { clause: "secret".to_owned(), message, nothing_left: false };
    Event::AgentDone { node, session, operation, volume, epoch, outcome }
}

impl Storing {
    /// Nothing leaves this process that could arrive after another has begun to lead.
    fn still_leads(&self) -> Result<(), EngineError> {
        if self.leadership.outlives(ARRIVES) {
            return Ok(());
        }
        Err(EngineError::SteppedDown { reason: "the Lease was lost, or is about to be".into() })
    }

    /// Makes records durable. Returns when each is, or its volume was set aside.
    async fn commit(&mut self, mut writes: Vec<Write>) -> Result<(), EngineError> {
        let (began, records) = (Instant::now(), writes.len());
        let mut said: Option<(Instant, String)> = None;
        let mut conflicts = HashMap::new();
        while !writes.is_empty() {
            let answers = self.ask(writes.clone(), began).await;
            // Without a reason to wait there is nothing left, or a node's record to be written over another's at once.
            let Some(reason) = self.take(&mut writes, answers, &mut conflicts)? else { continue };
            self.stall(Some(reason.clone()));
            let again =
                said.as_ref().is_none_or(|(at, before)| *before != reason || at.elapsed() >= SAY_AGAIN);
            if again {
                let waited_s = began.elapsed().as_secs();
                tracing::error!(
                    waited_s,
                    records,
                    "cannot write to the store: {reason}; granting nothing until it works"
                );
                said = Some((Instant::now(), reason.clone()));
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                // What was decided and is not durable was not decided.
                () = self.stop.cancelled() => return Err(EngineError::Store(CommitError::Retry { reason })),
            }
        }
        if records > 0 {
            self.stall(None);
            self.ready.set(true);
            metrics::engine_commit(began.elapsed(), records);
        }
        Ok(())
    }

    /// Waits for the answers, as long as that takes.
    async fn ask(&self, writes: Vec<Write>, began: Instant) -> Vec<Result<Version, CommitError>> {
        let records = writes.len();
        let mut commit = self.store.commit(writes);
        loop {
            match tokio::time::timeout(SLOW_COMMIT, &mut commit).await {
                Ok(answers) => return answers,
                // A disk that hangs cannot be helped from here; but everybody waits for it, and people should know.
                Err(_) => {
                    let waited_s = began.elapsed().as_secs();
                    self.stall(Some("its disk does not answer".into()));
                    tracing::error!(
                        waited_s,
                        records,
                        "the store does not answer; granting nothing until it does"
                    );
                }
            }
        }
    }

    /// Takes in answers, and leaves in `writes` those that are to be tried again; gives the reason if not at once.
    /// `conflicts` counts those of each node's record.
    fn take(
        &mut self,
        writes: &mut Vec<Write>,
        answers: Vec<Result<Version, CommitError>>,
        conflicts: &mut HashMap<Key, u32>,
    ) -> Result<Option<String>, EngineError> {
        let mut why = None;
        let mut again = Vec::new();
        for (mut write, answer) in std::mem::take(writes).into_iter().zip(answers) {
            match answer {
                Ok(version) => self.book.written(write, version),
                // Who a node is its own agent says: whoever hears it last is right.
                Err(error @ CommitError::Conflict { found, .. }) if write.key.kind == RecordKind::Node => {
                    let tries = conflicts.entry(write.key.clone()).or_default();
                    *tries += 1;
                    if *tries < NODE_TRIES {
                        write.expected = found;
                        again.push(write);
                        continue;
                    }
                    // What rests on it is only whether the node is known after a restart before it is heard. Who is on
                    // one of the RDS's lists and not known then counts as a writer.
                    tracing::error!(
                        key = %write.key, tries,
                        "cannot write the record of {}: {error}, {tries} times in a row; it is left as it is until a \
                         restart; find what else writes to the store, and end it", write.key
                    );
                    metrics::node_set_aside();
                    self.book.set_aside(&write.key, error.to_string());
                }
                Err(error @ (CommitError::Conflict { .. } | CommitError::Refused { .. })) => {
                    tracing::error!(key = %write.key, "{error}; leaving it as it is until a restart");
                    metrics::volume_set_aside();
                    self.book.set_aside(&write.key, error.to_string());
                }
                Err(CommitError::Retry { reason }) => {
                    why = Some(reason);
                    again.push(write);
                }
                Err(error @ (CommitError::LostClaim { .. } | CommitError::Fatal { .. })) => {
                    return Err(EngineError::Store(error));
                }
            }
        }
        *writes = again;
        Ok(why)
    }

    /// Says whether the store takes what it is given: readiness, metric, and whoever waits for an answer.
    fn stall(&self, reason: Option<String>) {
        if reason.is_some() {
            self.ready.set(false);
        }
        let stalled: Stalled = reason.map(Into::into);
        metrics::store_stalled(stalled.is_some());
        self.stalled.send_if_modified(|before| {
            let changed = *before != stalled;
            *before = stalled;
            changed
        });
    }
}

#[cfg(test)]
#[path = "carry_out_tests.rs"]
mod tests;
