//! Requests of the core to the RDS: one at a time for each volume, in the order in which the core asked.
//!
//! In come [`RdsRequest`]s; out goes exactly one [`Event::RdsDone`] for each, within the deadline, whether the
//! request succeeds, fails, hangs or panics. One at a time for each volume, because a volume's host list is read,
//! changed and written as a whole, and because an allow must not land after the deny that followed it. A secret is
//! made here from its generation, and goes to the RDS and nowhere else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cleat_core::{Event, OperationId, RdsFailure, RdsRequest, VolumeId};
use cleat_rds::secret::{self, Keys};
use cleat_rds::{Priority, Rds, RdsError};
use cleat_runtime::exit::Causes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::handle::unanswered;
use super::input::Input;
use super::rds_in_doubt::RdsInDoubt;
use crate::metrics::{self, RdsCall};

pub(super) struct RdsQueue {
    rds: Arc<dyn Rds>,
    /// From which secrets are made, where there are any.
    secrets: Option<Arc<Keys>>,
    inbox: mpsc::Sender<Input>,
    deadline: Duration,
    unsettled: RdsInDoubt,
    /// The last request of each volume that has one under way.
    last: HashMap<VolumeId, JoinHandle<()>>,
}

impl RdsQueue {
    pub(super) fn new(
        rds: Arc<dyn Rds>,
        secrets: Option<Arc<Keys>>,
        inbox: mpsc::Sender<Input>,
        deadline: Duration,
        unsettled: RdsInDoubt,
    ) -> Self {
        Self { rds, secrets, inbox, deadline, unsettled, last: HashMap::new() }
    }

    /// Begins a request, after those of the same volume that were begun before.
    pub(super) fn begin(&mut self, operation: OperationId, request: RdsRequest) {
        self.last.retain(|_, work| !work.is_finished());
        let volume = request.volume().clone();
        let before = self.last.remove(&volume);
        let (rds, inbox, deadline) = (Arc::clone(&self.rds), self.inbox.clone(), self.deadline);
        let (secrets, unsettled) = (self.secrets.clone(), self.unsettled.clone());
        let work = tokio::spawn(async move {
            if let Some(before) = before {
                // Whether it ended well its own event says.
                let _ = before.await;
            }
            let (of, asked) = (request.volume().clone(), request.clone());
            let result = ask(rds, secrets, operation, request, deadline).await;
            unsettled.answered(&of, !matches!(result, Err(RdsFailure::Unreachable(_))));
            let result = unsettled.proven(&asked, result);
            let event = Box::new(Event::RdsDone { operation, result });
            // A closed inbox means that the process is ending.
            let _ = inbox.send(Input::Event { event, waiter: None }).await;
        });
        self.last.insert(volume, work);
    }

    /// Waits until nothing that was begun is under way any more, but for what takes longer than a request may: that is
    /// given up. For the end: nothing may be on its way when another process begins to lead.
    pub(super) async fn finish(&mut self) {
        let mut works: Vec<JoinHandle<()>> = self.last.drain().map(|(_, work)| work).collect();
        let all = async {
            for work in &mut works {
                // Whether it ended well its own event says.
                let _ = work.await;
            }
        };
        // Each ends by itself at its deadline; what is lined up behind it need not begin any more.
        if tokio::time::timeout(self.deadline + Duration::from_millis(500), all).await.is_err() {
            works.iter().for_each(JoinHandle::abort);
        }
    }

    /// Sends the core an event that is no answer of the RDS. Nobody waits for it: whoever carries out what the core
    /// decided must not wait for the core.
    pub(super) fn tell(&self, event: Event) {
        self.tell_all(vec![event]);
    }

    /// The same of several, in their order.
    pub(super) fn tell_all(&self, events: Vec<Event>) {
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            for event in events {
                // A closed inbox means that the process is ending.
                let _ = inbox.send(Input::Event { event: Box::new(event), waiter: None }).await;
            }
        });
    }
}

fn kind(request: &RdsRequest) -> RdsCall {
    match request {
        RdsRequest::Allow { .. } => RdsCall::Allow,
        RdsRequest::Deny { .. } => RdsCall::Deny,
        RdsRequest::Close { .. } => RdsCall::Close,
        RdsRequest::Hide { .. } => RdsCall::Hide,
        RdsRequest::Show { .. } => RdsCall::Show,
        RdsRequest::SetSecret { .. } => RdsCall::SetSecret,
    }
}

/// The core knows five kinds; whatever leaves the outcome open is `Unreachable` to it.
pub(crate) fn rds_failure(error: &RdsError) -> RdsFailure {
    let text = Causes(error).to_string();
    match error {
        RdsError::NotFound { .. } => RdsFailure::NotFound(text),
        RdsError::Refused { .. } | RdsError::Conflict { .. } | RdsError::Cleartext { .. } => {
            RdsFailure::Refused(text)
        }
        RdsError::Full { .. } => RdsFailure::Full(text),
        RdsError::Unauthorised { .. } => RdsFailure::Unauthorised(text),
        RdsError::Unreachable { .. } | RdsError::Malformed { .. } | RdsError::InDoubt { .. } => {
            RdsFailure::Unreachable(text)
        }
    }
}

async fn call(rds: Arc<dyn Rds>, secrets: Option<Arc<Keys>>, request: RdsRequest) -> Result<(), RdsFailure> {
    let done = |result: Result<(), RdsError>| result.map_err(|error| rds_failure(&error));
    match request {
        // Whether the list is enforced is for the core to know, by what the target was probed to do.
        RdsRequest::Allow { volume, host_nqn } => {
            done(rds.allow(&volume, &host_nqn, Priority::Attach).await.map(drop))
        }
        RdsRequest::Deny { volume, host_nqn, fence } => {
            let priority = if fence { Priority::Fence } else { Priority::Detach };
            done(rds.deny(&volume, &host_nqn, priority).await.map(drop))
        }
        RdsRequest::Close { volume, host_nqn } => {
            done(rds.close(&volume, &host_nqn, Priority::Detach).await.map(drop))
        }
        RdsRequest::Hide { volume } => done(rds.hide(&volume, Priority::Fence).await),
        RdsRequest::Show { volume } => done(rds.show(&volume, Priority::Fence).await),
        RdsRequest::SetSecret { volume, generation } => {
            let secret = secret::secret(secrets.as_deref(), &volume, generation)
                .map_err(|missing| RdsFailure::Refused(missing.to_string()))?;
            done(rds.set_secret(&volume, &secret, Priority::Fence).await)
        }
    }
}

async fn ask(
    rds: Arc<dyn Rds>,
    secrets: Option<Arc<Keys>>,
    operation: OperationId,
    request: RdsRequest,
    deadline: Duration,
) -> Result<(), RdsFailure> {
    let (kind, volume) = (kind(&request), request.volume().clone());
    let began = Instant::now();
    // A task of its own, so that a panic becomes an answer; aborted when the deadline drops it.
    let calling = AbortOnDropHandle::new(tokio::spawn(call(rds, secrets, request.clone())));
    let result = match tokio::time::timeout(deadline, calling).await {
        Ok(Ok(result)) => result,
        Ok(Err(panicked)) => Err(unanswered(format!("the request ended without an answer: {panicked}"))),
        Err(_) => Err(unanswered(format!("no answer within {}", humantime::format_duration(deadline)))),
    };
    let took = began.elapsed();
    metrics::rds_call(kind, took, result.as_ref().err());
    let (call, duration_ms) = (kind.name(), took.as_millis());
    match &result {
        Ok(()) => tracing::debug!(%volume, ?request, %operation, call, duration_ms, "RDS answered"),
        Err(error) => {
            tracing::warn!(%volume, ?request, %operation, call, duration_ms, %error, "RDS request failed");
        }
    }
    result
}
