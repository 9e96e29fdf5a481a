//! Logs the same kind of thing at most every few seconds, with how often it was not logged.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Shortest time between two lines about the same kind of thing.
const EVERY: Duration = Duration::from_secs(5);

/// One kind of thing that strangers, or a broken peer, could make us log without end.
#[derive(Debug, Default)]
pub struct Hush(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    skipped: u64,
}

impl Hush {
    /// Calls `say` with the number of times that nothing was logged since; or only counts, where the last
    /// line is too recent.
    pub fn warn(&self, say: impl FnOnce(u64)) {
        let skipped = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.last.is_some_and(|last| last.elapsed() < EVERY) {
                state.skipped += 1;
                return;
            }
            state.last = Some(Instant::now());
            std::mem::take(&mut state.skipped)
        };
        say(skipped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_one_line_with_the_count_of_the_rest() {
        let (hush, mut said) = (Hush::default(), Vec::new());
        for _ in 0..3 {
            hush.warn(|skipped| said.push(skipped));
        }
        tokio::time::advance(EVERY).await;
        hush.warn(|skipped| said.push(skipped));
        assert_eq!(said, [0, 2]);
    }
}
