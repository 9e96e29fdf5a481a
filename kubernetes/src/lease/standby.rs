//! What a candidate that waits for the Lease can tell others meanwhile, and how long it waits without an answer.
//!
//! In comes what each look at the Lease has found. What holds:
//! - who could not look for a lease time does not stand by: if the holder has gone since, it does not know it, and it cannot
//!   take over before it can look again. Until then the last look counts, so that one slow call changes nothing;
//! - who is not answered for [`patience`] waits no longer, for perhaps it asks in the wrong way: a client has the API server's
//!   address and CA from when it was made, and only the next start reads them again (docs/decisions/0015);
//! - an answer is an answer. Who lacks a right does not stand by, and waits on: the right may be given, and a start more
//!   gives none.

use std::time::Duration;

use tokio::time::Instant;

use super::{Leader, SetBack};
use crate::api::ApiError;

/// In lease times, how long no answer is waited out.
const LEASE_TIMES: u32 = 10;
/// At the least that: a kubelet that starts a process again waits longer from one time to the next, up to five minutes, and
/// begins from nothing with one that has run for ten.
const LEAST: Duration = Duration::from_secs(12 * 60);

/// A candidate that waits, as others see it.
#[derive(Clone, Debug, Default)]
pub struct Standby {
    /// Who else leads, as far as it was seen.
    pub leader: Option<Leader>,
    /// It has seen who leads.
    warm: bool,
    /// Until when the last look counts.
    until: Option<Instant>,
}

impl Standby {
    /// Whether it would take over if the leader ended now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.warm && self.until.is_some_and(|until| Instant::now() < until)
    }

    /// Takes in what a look that began then has found.
    pub(super) fn looked(&mut self, began: Instant, leader: Option<Leader>, duration: Duration) {
        self.warm |= leader.is_some();
        (self.leader, self.until) = (leader, Some(began + duration));
    }
}

/// The API server has answered nothing for too long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot wait for the Lease any longer: the API server has not answered for {} s, and the last time {last}; the next \
     start reads its address and its CA again",
    silent.as_secs()
)]
pub struct NotAnswered {
    silent: Duration,
    last: String,
}

/// Why nobody waits for the Lease any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WaitEnded {
    /// What the API server has is older than what it had.
    #[error(transparent)]
    SetBack(#[from] SetBack),
    /// There was no answer.
    #[error(transparent)]
    NotAnswered(#[from] NotAnswered),
}

/// How long a candidate for a Lease of that duration waits without an answer.
fn patience(duration: Duration) -> Duration {
    LEAST.max(duration * LEASE_TIMES)
}

/// Since when there was no answer. On a clock that stands still while the machine sleeps: nobody was asked then.
pub(super) struct Answered {
    last: Instant,
}

impl Answered {
    pub(super) fn now() -> Self {
        Self { last: Instant::now() }
    }

    /// Takes in why a look has failed.
    pub(super) fn failed(&mut self, error: &ApiError, duration: Duration) -> Result<(), NotAnswered> {
        let ApiError::Unanswered(_) = error else {
            *self = Self::now();
            return Ok(());
        };
        let silent = self.last.elapsed();
        if silent < patience(duration) {
            return Ok(());
        }
        Err(NotAnswered { silent, last: error.to_string() })
    }
}

#[cfg(test)]
#[path = "standby_tests.rs"]
mod tests;
