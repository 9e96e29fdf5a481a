//! Why a question could not be answered.

use cleat_host::devnode::DevNodeError;
use cleat_host::fabrics::{ConnectError, DisconnectError};
use cleat_host::reservations::ReservationError;
use cleat_host::sysfs::SysfsError;
use cleat_host::work::WorkError;
use cleat_rds::RdsError;
use std::time::Duration;

/// Why a question could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    /// The RDS did not answer, or refused.
    #[error(transparent)]
    Rds(#[from] RdsError),
    /// A connect failed that should have succeeded.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A connection could not be deleted.
    #[error(transparent)]
    Disconnect(#[from] DisconnectError),
    /// The kernel's topology could not be read.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// The device's node is missing or wrong.
    #[error(transparent)]
    Node(#[from] DevNodeError),
    /// A reservation command failed.
    #[error(transparent)]
    Reservation(#[from] ReservationError),
    /// Work that may block gave no result.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// A read or write of the scratch disk failed.
    #[error("cannot {what} the scratch disk")]
    Io {
        /// What was being done, such as `read`.
        what: &'static str,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// Something that was waited for did not happen.
    #[error("waited {} s for {what}, which did not come", limit.as_secs())]
    InVain {
        /// What was waited for.
        what: String,
        /// How long the wait was.
        limit: Duration,
    },
    /// What was seen gives neither a yes nor a no; the text says why.
    #[error("{0}")]
    Unclear(String),
}

impl QuestionError {
    /// The trouble that what was seen gives neither a yes nor a no.
    pub fn unclear(what: impl Into<String>) -> Self {
        Self::Unclear(what.into())
    }
}

/// Pause between two observations while something is waited for.
const LOOK: Duration = Duration::from_millis(25);

/// Observes until there is something, at most for `limit`.
///
/// # Errors
/// The first error of an observation, or [`QuestionError::InVain`].
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>, QuestionError>,
) -> Result<T, QuestionError> {
    let end = tokio::time::Instant::now() + limit;
    let mut pace = tokio::time::interval(LOOK);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        if let Some(seen) = look().await? {
            return Ok(seen);
        }
        if tokio::time::Instant::now() >= end {
            return Err(QuestionError::InVain { what: what.to_owned(), limit });
        }
    }
}
