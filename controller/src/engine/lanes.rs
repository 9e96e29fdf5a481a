//! Requests of the core to the RDS: one at a time for each volume, in the order in which the core asked.
//!
//! In come [`RdsRequest`]s; out goes exactly one [`Event::RdsDone`] for each, within the deadline, whether the
//! request succeeds, fails, hangs or panics. One at a time for each volume, because a volume's host list is read,
//! changed and written as a whole, and because an allow must not land after the deny that followed it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cleat_core::{Event, OperationId, RdsError, RdsRequest, VolumeId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::handle::{Input, unanswered};
use crate::metrics::{self, RdsCall};
use crate::rds::{Admission, Priority, Rds};

pub(super) struct Lanes {
    rds: Arc<dyn Rds>,
    inbox: mpsc::Sender<Input>,
    deadline: Duration,
    /// The last request of each volume that has one under way.
    last: HashMap<VolumeId, JoinHandle<()>>,
}

impl Lanes {
    pub(super) fn new(rds: Arc<dyn Rds>, inbox: mpsc::Sender<Input>, deadline: Duration) -> Self {
        Self { rds, inbox, deadline, last: HashMap::new() }
    }

    /// Begins a request, after those of the same volume that were begun before.
    pub(super) fn begin(&mut self, operation: OperationId, request: RdsRequest) {
        self.last.retain(|_, work| !work.is_finished());
        let volume = match &request {
            RdsRequest::Allow { volume, .. }
            | RdsRequest::Deny { volume, .. }
            | RdsRequest::Hide { volume }
            | RdsRequest::Show { volume }
            | RdsRequest::SetSecret { volume, .. } => volume.clone(),
        };
        let before = self.last.remove(&volume);
        let (rds, inbox, deadline) = (Arc::clone(&self.rds), self.inbox.clone(), self.deadline);
        let work = tokio::spawn(async move {
            if let Some(before) = before {
                // Whether it ended well is told by its own event.
                let _ = before.await;
            }
            let result = ask(rds, operation, request, deadline).await;
            let event = Box::new(Event::RdsDone { operation, result });
            // A closed inbox means that the process is ending.
            let _ = inbox.send(Input::Event { event, waiter: None }).await;
        });
        self.last.insert(volume, work);
    }
}

async fn ask(
    rds: Arc<dyn Rds>,
    operation: OperationId,
    request: RdsRequest,
    deadline: Duration,
) -> Result<(), RdsError> {
    let (kind, volume, host_nqn) = match request {
        RdsRequest::Allow { volume, host_nqn } => (RdsCall::Allow, volume, host_nqn),
        RdsRequest::Deny { volume, host_nqn } => (RdsCall::Deny, volume, host_nqn),
        RdsRequest::Hide { .. } | RdsRequest::Show { .. } | RdsRequest::SetSecret { .. } => {
            return Err(RdsError::Refused("not supported yet".to_owned()));
        }
    };
    let began = Instant::now();
    let call = {
        let (volume, host) = (volume.clone(), host_nqn.clone());
        async move {
            match kind {
                RdsCall::Deny => rds.deny(&volume, &host, Priority::Detach).await,
                _ => rds.allow(&volume, &host, Priority::Attach).await,
            }
        }
    };
    // A task of its own, so that a panic becomes an answer; aborted when the deadline drops it.
    let result = match tokio::time::timeout(deadline, AbortOnDropHandle::new(tokio::spawn(call))).await {
        Ok(Ok(result)) => result.map_err(|error| RdsError::from(&error)),
        Ok(Err(panicked)) => Err(unanswered(format!("the request ended without an answer: {panicked}"))),
        Err(_) => Err(unanswered(format!("no answer within {}", humantime::format_duration(deadline)))),
    };
    let took = began.elapsed();
    metrics::rds_call(kind, took, result.as_ref().err());
    let (call, duration_ms) = (kind.name(), took.as_millis());
    match result {
        Ok(admission) => {
            let enforced = admission == Admission::Enforced;
            tracing::debug!(%volume, %host_nqn, %operation, call, enforced, duration_ms, "RDS answered");
            Ok(())
        }
        Err(error) => {
            tracing::warn!(%volume, %host_nqn, %operation, call, duration_ms, %error, "RDS request failed");
            Err(error)
        }
    }
}
