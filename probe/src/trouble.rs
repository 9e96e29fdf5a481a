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
pub enum Trouble {
    /// The RDS.
    #[error(transparent)]
    Rds(#[from] RdsError),
    /// A connect that should have gone well.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A connection that should have been taken away.
    #[error(transparent)]
    Disconnect(#[from] DisconnectError),
    /// The kernel's topology.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// The device's node.
    #[error(transparent)]
    Node(#[from] DevNodeError),
    /// A reservation command.
    #[error(transparent)]
    Reservation(#[from] ReservationError),
    /// Work that may block.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// A read or write of the scratch disk.
    #[error("cannot {what} the scratch disk")]
    Io {
        /// Which.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Something did not come about.
    #[error("waited {} s for {what}, which did not come", limit.as_secs())]
    InVain {
        /// What.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// What was seen answers the question neither way.
    #[error("{0}")]
    Unclear(String),
}

impl Trouble {
    /// What was seen answers the question neither way.
    pub fn unclear(what: impl Into<String>) -> Self {
        Self::Unclear(what.into())
    }
}

/// How often the kernel is looked at while something is waited for.
const LOOK: Duration = Duration::from_millis(25);

/// Looks until there is something, at most for `limit`.
///
/// # Errors
/// The first error of a look, or [`Trouble::InVain`].
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>, Trouble>,
) -> Result<T, Trouble> {
    let end = tokio::time::Instant::now() + limit;
    let mut pace = tokio::time::interval(LOOK);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        if let Some(seen) = look().await? {
            return Ok(seen);
        }
        if tokio::time::Instant::now() >= end {
            return Err(Trouble::InVain { what: what.to_owned(), limit });
        }
    }
}
