//! Connect attempts that outlive their callers: who may begin, and what happens to a late success.
//!
//! Always holds: for one subsystem, host and portal, at most one attempt is between its first write and the
//! end of its undoing. So a retry cannot race with the attempt that it repeats, and that attempt's undoing
//! cannot delete the retry's controller.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::connect::ConnectError;
use super::delete;
use super::{ConnectRequest, Connected, ExactController};
use crate::name::{HostNqn, Portal, SubsystemNqn};
use crate::sysfs::Sysfs;
use crate::work;

type Key = (SubsystemNqn, Portal, HostNqn);
type Turns = HashMap<Key, Arc<tokio::sync::Mutex<()>>>;

/// The right to be the only attempt of its key. Held until the attempt and its undoing are over.
pub(super) type Turn = OwnedMutexGuard<()>;

/// Which attempts are under way.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    turns: Mutex<Turns>,
}

impl Attempts {
    fn turn(&self, request: &ConnectRequest) -> Arc<tokio::sync::Mutex<()>> {
        let key = (request.subsystem.clone(), request.portal, request.host_nqn.clone());
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Drop keys that nobody holds or waits for: the table stays as small as what is under way.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(key).or_default())
    }

    /// Waits until no attempt of the same key is under way.
    pub(super) async fn settled(&self, request: &ConnectRequest) {
        drop(self.turn(request).lock_owned().await);
    }

    /// Waits until no other attempt of the same key is under way, at most for `deadline`.
    pub(super) async fn begin(
        &self,
        request: &ConnectRequest,
        deadline: Duration,
    ) -> Result<Turn, ConnectError> {
        tokio::time::timeout(deadline, self.turn(request).lock_owned()).await.map_err(|_| {
            ConnectError::EarlierAttempt {
                subsystem: request.subsystem.clone(),
                portal: request.portal,
                deadline,
            }
        })
    }
}

/// The result of an attempt on its way to the caller. If it never arrives, what the attempt made is deleted.
pub(super) struct Outcome {
    result: Option<Result<Connected, ConnectError>>,
    undo: Undo,
}

/// Deletes the controller that an attempt made, unless it was claimed.
struct Undo {
    sysfs: Sysfs,
    made: Option<ExactController>,
    turn: Option<Turn>,
}

impl Outcome {
    /// The outcome of an attempt. `made` is the controller that exists because of it, if any: never an
    /// adopted one.
    pub(super) fn new(
        sysfs: Sysfs,
        turn: Turn,
        result: Result<Connected, ConnectError>,
        made: Option<ExactController>,
    ) -> Self {
        Self { result: Some(result), undo: Undo { sysfs, made, turn: Some(turn) } }
    }

    /// The caller takes the result. A failure is undone in the background all the same.
    fn claim(mut self, request: &ConnectRequest) -> Result<Connected, ConnectError> {
        let result = self.result.take().unwrap_or_else(|| Err(lost(request)));
        if result.is_ok() {
            self.undo.made = None;
        }
        result
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let (Some(target), turn) = (self.made.take(), self.turn.take()) else { return };
        let sysfs = self.sysfs.clone();
        tracing::warn!(controller = %target.controller, subsystem = %target.subsystem,
            "a connect that was given up has made a controller; deleting it");
        let undo = move || {
            match delete::run_kernel(&sysfs, &target) {
                Ok(done) => tracing::info!(controller = %done.controller, how = ?done.how, "deleted"),
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "left behind by a late connect"
                    );
                }
            }
            drop(turn);
        };
        if let Err(error) = work::spawn("undo connect", undo) {
            tracing::error!(error = &error as &dyn std::error::Error, "left behind by a late connect");
        }
    }
}

fn lost(request: &ConnectRequest) -> ConnectError {
    ConnectError::Work {
        subsystem: request.subsystem.clone(),
        portal: request.portal,
        source: work::WorkError::Lost { what: "connect".to_owned() },
    }
}

/// Runs one attempt: waits for its turn, runs `connect` on a thread of its own, waits for the outcome.
/// `connect` has what is left of `deadline` after that turn has come.
pub(super) async fn run<D>(
    attempts: &Attempts,
    request: &ConnectRequest,
    deadline: Duration,
    connect: D,
) -> Result<Connected, ConnectError>
where
    D: FnOnce(ConnectRequest, Turn) -> Outcome + Send + 'static,
{
    let end = Instant::now() + deadline;
    let turn = attempts.begin(request, deadline).await?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let owned = request.clone();
    let work = move || {
        // Where nobody waits any more, the outcome comes back and is dropped here, which undoes it.
        drop(sender.send(connect(owned, turn)));
    };
    work::spawn("nvme connect", work).map_err(|source| ConnectError::Work {
        subsystem: request.subsystem.clone(),
        portal: request.portal,
        source,
    })?;
    match tokio::time::timeout_at(end, receiver).await {
        Ok(Ok(outcome)) => outcome.claim(request),
        Ok(Err(_)) => Err(lost(request)),
        Err(_) => Err(ConnectError::Overdue {
            subsystem: request.subsystem.clone(),
            portal: request.portal,
            deadline,
        }),
    }
}
