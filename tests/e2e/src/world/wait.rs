//! Waiting for a condition: with a deadline, and with what was seen last in the message when it passes.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

/// What one look at a condition found.
#[derive(Debug, Clone)]
pub enum Look<T> {
    /// It holds.
    Yes(T),
    /// It does not hold yet; what is there instead, for the message.
    Not(String),
}

impl<T> Look<T> {
    /// `Yes` with the value where there is one.
    pub fn some(value: Option<T>, instead: impl fmt::Display) -> Self {
        value.map_or_else(|| Self::Not(instead.to_string()), Self::Yes)
    }
}

impl Look<()> {
    /// `Yes` if it holds.
    pub fn holds(holds: bool, instead: impl fmt::Display) -> Self {
        Self::some(holds.then_some(()), instead)
    }
}

/// A condition that did not come to hold in time.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}: not within {limit:?}; last seen: {seen}")]
pub struct NotInTime {
    /// What was waited for.
    pub what: String,
    /// For how long.
    pub limit: Duration,
    /// What the last look found instead.
    pub seen: String,
}

/// From one look to the next. Looks cost CPU that emulated machines need.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Looks until the condition holds. A look that fails is one that found the failure; a look that hangs is cut off
/// by the deadline.
///
/// # Errors
/// [`NotInTime`] with what was seen last.
pub async fn wait_for<T, F>(what: impl fmt::Display, limit: Duration, mut look: F) -> Result<T, NotInTime>
where
    F: AsyncFnMut() -> anyhow::Result<Look<T>>,
{
    let deadline = Instant::now() + limit;
    let mut turns = interval(LOOK_INTERVAL);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = "nothing yet".to_owned();
    loop {
        let turn = async {
            turns.tick().await;
            look().await
        };
        match tokio::time::timeout_at(deadline, turn).await {
            Ok(Ok(Look::Yes(value))) => return Ok(value),
            Ok(Ok(Look::Not(instead))) => seen = instead,
            Ok(Err(error)) => seen = format!("{error:#}"),
            Err(_) => return Err(NotInTime { what: what.to_string(), limit, seen }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_message_says_what_was_seen_last() {
        let mut looks = 0;
        let error = wait_for("three looks", Duration::from_millis(120), async || {
            looks += 1;
            Ok(Look::holds(false, format!("{} looks", looks.min(2))))
        })
        .await
        .expect_err("never");
        assert_eq!(error.to_string(), "three looks: not within 120ms; last seen: 2 looks");
    }

    #[tokio::test]
    async fn a_look_that_hangs_ends_at_the_deadline() {
        let error = wait_for("an answer", Duration::from_millis(20), async || {
            std::future::pending::<()>().await;
            Ok(Look::Yes(()))
        })
        .await;
        assert!(error.is_err());
    }
}
