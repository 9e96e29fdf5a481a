//! Shutdown: SIGTERM or SIGINT becomes a cancelled token, and a deadline by which everything has stopped.
//!
//! Comes in: signals. Goes out: one `CancellationToken` that every long-running part selects on. The deadline
//! is hard: open streams may hold up a graceful stop for ever, a thread may be stuck in the kernel for ever,
//! and neither may keep the process from ending.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Why signals cannot be listened for.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for {signal}")]
pub struct SignalError {
    signal: &'static str,
    #[source]
    source: std::io::Error,
}

/// Receives the signals that end the process, from the moment this exists.
#[derive(Debug)]
pub struct Shutdown {
    token: CancellationToken,
    timeout: Duration,
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// Starts to listen. `timeout` is the time that the parts have to stop, counted from the signal.
    ///
    /// # Errors
    /// Where a signal handler cannot be installed.
    pub fn listen(timeout: Duration) -> Result<Self, SignalError> {
        let on = |kind, name| signal(kind).map_err(|source| SignalError { signal: name, source });
        Ok(Self {
            token: CancellationToken::new(),
            timeout,
            terminate: on(SignalKind::terminate(), "SIGTERM")?,
            interrupt: on(SignalKind::interrupt(), "SIGINT")?,
        })
    }

    /// The token that a signal cancels. A part of the program may cancel it too, to end the program.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Waits for a signal (or for the token), cancels the token, then waits for the timeout. Returns only
    /// when that has passed, or at once at a second signal.
    pub async fn deadline(mut self) {
        let cause = tokio::select! {
            cause = next(&mut self.terminate, &mut self.interrupt) => cause,
            () = self.token.cancelled() => "the program itself",
        };
        tracing::info!(cause, timeout = %humantime::format_duration(self.timeout), "stopping");
        self.token.cancel();
        tokio::select! {
            () = tokio::time::sleep(self.timeout) => tracing::error!("not everything stopped within \
                --shutdown-timeout; ending anyway"),
            cause = next(&mut self.terminate, &mut self.interrupt) => {
                tracing::warn!(cause, "second signal to stop; stopping at once");
            }
        }
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    // A closed signal stream yields `None` at once; waiting for ever instead keeps that from stopping us.
    tokio::select! {
        Some(()) = terminate.recv() => "SIGTERM",
        Some(()) = interrupt.recv() => "SIGINT",
        else => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_deadline_counts_from_the_moment_the_token_is_cancelled() {
        let shutdown = Shutdown::listen(Duration::from_secs(20)).expect("signals");
        let token = shutdown.token();
        let began = tokio::time::Instant::now();
        let deadline = tokio::spawn(shutdown.deadline());
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(!deadline.is_finished());
        token.cancel();
        deadline.await.expect("no panic");
        assert_eq!(began.elapsed().as_secs(), 120);
    }
}
