//! Moments in time, as people read them.
//!
//! Comes in: milliseconds since 1970. Goes out: RFC 3339: UTC, whole seconds. Every number has a form; none
//! panics.

use std::time::{Duration, UNIX_EPOCH};

/// RFC 3339 has no form for anything past the year 9999.
const YEAR_10000_MS: u64 = 253_402_300_800_000;

/// A moment in RFC 3339. One past the year 9999 is a mistake, and appears as a number.
#[must_use]
pub fn rfc3339(unix_ms: u64) -> String {
    if unix_ms >= YEAR_10000_MS {
        return format!("{unix_ms} ms after 1970");
    }
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(unix_ms)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_readable_and_absurd_ones_do_not_panic() {
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(u64::MAX), format!("{} ms after 1970", u64::MAX));
    }
}
