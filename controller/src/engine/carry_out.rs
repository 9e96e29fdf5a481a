//! The task that owns the store: makes records durable, then carries out what was decided, in order.
//!
//! In come steps; out go one commit for all steps that wait, and then their effects. What always holds: no effect
//! of a step begins before its records and those of all steps before it are durable; effects begin in the order of
//! the steps; after a failed commit nothing is carried out any more.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use cleat_core::{Effect, NodeId, RequestId, UnixMillis, VolumeId};
use cleat_runtime::readiness::ReadyFlag;
use tokio::sync::{broadcast, mpsc};

use super::fences::Fences;
use super::handle::{Answer, Waiter};
use super::lanes::Lanes;
use super::unsettled::Unsettled;
use super::{Change, EngineError, Step, notices, records};
use crate::agents::Sessions;
use crate::clock::Clock;
use crate::metrics;
use crate::store::{Change as StoreChange, Store};

/// A commit that takes longer is not normal on any disk.
const SLOW_COMMIT: std::time::Duration = std::time::Duration::from_secs(5);
/// Steps that share a commit at most, so that the first of them does not wait for ever-growing ones.
const GROUP: usize = 256;

pub(super) struct Executor {
    store: Arc<dyn Store>,
    storing: ReadyFlag,
    lanes: Lanes,
    sessions: Sessions,
    changes: broadcast::Sender<Change>,
    clock: Clock,
    waiters: HashMap<RequestId, Waiter>,
    fences: Fences,
    unsettled: Unsettled,
}

impl Executor {
    pub(super) fn new(
        (store, storing): (Arc<dyn Store>, ReadyFlag),
        lanes: Lanes,
        sessions: Sessions,
        changes: broadcast::Sender<Change>,
        clock: Clock,
        (fences, unsettled): (Fences, Unsettled),
    ) -> Self {
        Self { store, storing, lanes, sessions, changes, clock, waiters: HashMap::new(), fences, unsettled }
    }

    /// Runs until no more steps can come.
    pub(super) async fn run(mut self, mut steps: mpsc::Receiver<Step>) -> Result<(), EngineError> {
        self.storing.set(true);
        let mut group = Vec::with_capacity(GROUP);
        while steps.recv_many(&mut group, GROUP).await > 0 {
            let mut changes = self.unsettled.asking(&group);
            changes.extend(records::changes(&group)?);
            if !changes.is_empty() {
                changes.extend(self.unsettled.settled());
            }
            self.commit(changes).await?;
            for step in group.drain(..) {
                if let ControlFlow::Break(error) = self.carry_out(step) {
                    return Err(error);
                }
            }
            // Nobody waits for this: it is done when nothing else is to be.
            if steps.is_empty() {
                self.commit(self.unsettled.settled()).await?;
            }
        }
        Ok(())
    }

    /// Makes records durable, in their order, with one commit.
    async fn commit(&self, changes: Vec<StoreChange>) -> Result<(), EngineError> {
        if changes.is_empty() {
            return Ok(());
        }
        let (began, records) = (Instant::now(), changes.len());
        let mut commit = self.store.commit(changes);
        let committed = loop {
            match tokio::time::timeout(SLOW_COMMIT, &mut commit).await {
                Ok(committed) => break committed,
                // A disk that hangs cannot be helped from here; but everybody waits for it, and people should know.
                Err(_) => {
                    self.storing.set(false);
                    let waited_s = began.elapsed().as_secs();
                    tracing::error!(
                        waited_s,
                        records,
                        "the store does not answer: nothing is granted meanwhile"
                    );
                }
            }
        };
        committed.map_err(EngineError::Store)?;
        self.storing.set(true);
        metrics::engine_commit(began.elapsed(), records);
        Ok(())
    }

    fn carry_out(&mut self, step: Step) -> ControlFlow<EngineError> {
        let Step { now, waiter, effects, changed, view } = step;
        if let Some(waiter) = waiter {
            self.waiters.insert(waiter.request, waiter);
        }
        for effect in effects {
            self.begin(now, effect)?;
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
            // Durable already; only watchers are still to be told.
            Effect::Persist(record) => {
                let nodes = self.fences.recorded(now, &record);
                self.recorded(record.spec.id, nodes);
            }
            Effect::Forget(volume) => {
                let nodes = self.fences.forgotten(&volume);
                self.recorded(volume, nodes);
            }
            Effect::Rds { operation, request } => self.lanes.begin(operation, request),
            Effect::Direct { node, session, operation, directive } => {
                self.sessions.direct(&node, &session, operation, &directive)
            }
            Effect::Reply { request, result } => self.reply(now, request, result),
            Effect::RefuseSession { session, reason } => self.sessions.refuse(&session, reason),
            Effect::Notice(notice) => {
                let told = notices::tell(now, &notice);
                self.tell(Change::Told(told.into()));
            }
        }
        ControlFlow::Continue(())
    }

    fn recorded(&self, volume: VolumeId, nodes: Vec<NodeId>) {
        self.tell(Change::Volume(volume));
        for node in nodes {
            self.tell(Change::Node(node));
        }
    }

    fn reply(&mut self, now: UnixMillis, request: RequestId, result: Answer) {
        let Some(waiter) = self.waiters.remove(&request) else {
            // One answer for each request is the core's promise; a second one has nobody left to hear it.
            tracing::error!(request = request.0, ?result, "an answer to a request that nobody waits for");
            return;
        };
        if let Err(refusal) = &result {
            let told = notices::refused(now, waiter.volume.as_ref(), waiter.node.as_ref(), refusal);
            self.tell(Change::Told(told.into()));
        }
        // The caller may have gone at its deadline. What was asked stands, and a repeat is answered from it.
        if waiter.answer.send(result).is_err() {
            let age_ms = self.clock.now().since(now);
            let volume = waiter.volume.as_ref().map(VolumeId::as_str);
            tracing::debug!(volume, age_ms, "the caller did not wait for its answer");
        }
    }

    fn tell(&self, change: Change) {
        // An error means that nobody watches.
        let _ = self.changes.send(change);
    }
}

#[cfg(test)]
#[path = "carry_out_tests.rs"]
mod tests;
