//! Connect attempts that outlive their callers: who may begin, and what happens to a late success.
//!
//! Always holds: at most one attempt per subsystem, host and portal is between its first write and the end
//! of its undoing. So a retry can neither race with the attempt that it repeats nor lose its controller to
//! that attempt's undoing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::connect::ConnectError;
use super::delete;
use super::{ConnectRequest, Connected, Target};
use crate::name::{HostNqn, Portal, SubsystemNqn};
use crate::sysfs::Sysfs;
use crate::work;

type Key = (SubsystemNqn, Portal, HostNqn);
type Turns = HashMap<Key, Arc<tokio::sync::Mutex<()>>>;

/// The right to be the one attempt of its key. Held until the attempt is over, its undoing included.
pub(super) type Turn = OwnedMutexGuard<()>;

/// Who is connecting what.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    turns: Mutex<Turns>,
}

impl Attempts {
    fn turn(&self, request: &ConnectRequest) -> Arc<tokio::sync::Mutex<()>> {
        let key = (request.subsystem.clone(), request.portal, request.host_nqn.clone());
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Keys nobody holds or waits for any more; the table stays as small as what is under way.
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

/// Result of an attempt on its way to the caller. If it never arrives, what it made is deleted.
pub(super) struct Outcome {
    result: Option<Result<Connected, ConnectError>>,
    undo: Undo,
}

/// Deletes the controller that an attempt made, unless it was claimed.
struct Undo {
    sysfs: Sysfs,
    made: Option<Target>,
    turn: Option<Turn>,
}

impl Outcome {
    /// The outcome of an attempt. `made` is the controller that exists because of it, if any: not an
    /// adopted one.
    pub(super) fn new(
        sysfs: Sysfs,
        turn: Turn,
        result: Result<Connected, ConnectError>,
        made: Option<Target>,
    ) -> Self {
        Self { result: Some(result), undo: Undo { sysfs, made, turn: Some(turn) } }
    }

    /// The caller has it. A failure is undone in the background all the same.
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

/// Runs one attempt: waits for its turn, runs `connect` on a thread of its own, waits for the outcome. What is
/// left of `deadline` after the turn has come is the time that `connect` has.
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
        // Nobody there any more: the outcome comes back and is dropped here, which undoes it.
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
