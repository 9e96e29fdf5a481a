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

    /// Now.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        self.start.plus(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

/// A moment, as people read it: RFC 3339, UTC, whole seconds.
#[must_use]
pub fn date(at: UnixMillis) -> String {
    // Past the year 9999 the form has no room: such a time is a mistake, and is shown as the number it is.
    const YEAR_10000_MS: u64 = 253_402_300_800_000;
    if at.0 >= YEAR_10000_MS {
        return format!("{} ms after 1970", at.0);
    }
    humantime::format_rfc3339_seconds(UNIX_EPOCH + std::time::Duration::from_millis(at.0)).to_string()
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

    #[test]
    fn dates_are_readable_and_absurd_ones_do_not_panic() {
        assert_eq!(date(UnixMillis(951_782_400_000)), "2000-02-29T00:00:00Z");
        assert_eq!(date(UnixMillis(u64::MAX)), format!("{} ms after 1970", u64::MAX));
    }
}
