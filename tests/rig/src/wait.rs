//! Waiting for a condition with a deadline: the one place of the rig that passes time.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Asks `probe` again and again until it answers with a value, for at most `limit`; `what` names the condition
/// in the error. Between two looks it yields for `every` (a look may itself take longer).
///
/// # Errors
/// [`Error::Deadline`] once `limit` has passed, or whatever `probe` fails with.
pub fn until<T>(
    what: &str,
    limit: Duration,
    every: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Deadline { what: what.to_owned(), after: limit });
        }
        // May return early, which is only one more look.
        std::thread::park_timeout(every.min(left));
    }
}
