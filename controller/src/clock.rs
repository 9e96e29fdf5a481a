//! The time that the core sees: the wall clock once, at the start, and monotonic time from then on.
//!
//! Nothing goes in; out go [`UnixMillis`] that never go back, whatever is done to the wall clock meanwhile.

use std::time::{SystemTime, UNIX_EPOCH};

use cleat_core::UnixMillis;
use tokio::time::Instant;

/// A clock that never goes back.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: UnixMillis,
    began: Instant,
}

impl Clock {
    /// Reads the wall clock, for the only time. A wall clock before 1970 counts as 1970.
    #[must_use]
    pub fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::at(UnixMillis(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)))
    }

    /// A clock that shows this time now.
    #[must_use]
    pub fn at(start: UnixMillis) -> Self {
        Self { start, began: Instant::now() }
    }

    /// The time now, which never goes back.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        self.start.plus(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_goes_on_with_the_monotonic_clock() {
        let clock = Clock::start();
        let first = clock.now();
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(clock.now().since(first), 1500);
    }
}
