//! The gate of a volume: one operation at a time, in order of arrival.
//!
//! Always holds: an operation that waits can say for which one and since when. A volume's gate never holds up
//! another volume.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout_at};

/// The turn of one volume, which one operation has at a time.
#[derive(Debug, Default)]
pub struct Gate {
    turn: Arc<tokio::sync::Mutex<()>>,
    holder: Arc<Holder>,
}

#[derive(Debug, Default)]
struct Holder(Mutex<Option<(String, Instant)>>);

impl Holder {
    fn lock(&self) -> MutexGuard<'_, Option<(String, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to act on the volume; dropping it gives it back.
#[derive(Debug)]
pub struct Pass {
    holder: Arc<Holder>,
    _turn: OwnedMutexGuard<()>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        // Runs before the turn is given back, so it never removes a successor's name.
        *self.holder.lock() = None;
    }
}

/// Another operation has the volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("operation {what} has been in progress for {:.1} s", since.as_secs_f64())]
pub struct InProgress {
    /// Its name, as it gave it to the gate.
    pub what: String,
    /// How long it has had the volume.
    pub since: Duration,
}

impl Gate {
    /// Waits for the turn, however long that takes.
    pub async fn enter(&self, what: impl Into<String>) -> Pass {
        let turn = self.turn.clone().lock_owned().await;
        self.admit(what.into(), turn)
    }

    /// Waits for the turn, but not past `deadline`.
    ///
    /// # Errors
    /// [`InProgress`] with the operation that has the turn.
    pub async fn enter_by(&self, what: impl Into<String>, deadline: Instant) -> Result<Pass, InProgress> {
        match timeout_at(deadline, self.turn.clone().lock_owned()).await {
            Ok(turn) => Ok(self.admit(what.into(), turn)),
            Err(_) => Err(self
                .holder()
                .unwrap_or_else(|| InProgress { what: "another".into(), since: Duration::ZERO })),
        }
    }

    /// Takes the turn if nobody has it; never waits.
    pub fn try_enter(&self, what: impl Into<String>) -> Option<Pass> {
        let turn = self.turn.clone().try_lock_owned().ok()?;
        Some(self.admit(what.into(), turn))
    }

    /// Which operation has the volume now, and for how long.
    pub fn holder(&self) -> Option<InProgress> {
        self.holder
            .lock()
            .as_ref()
            .map(|(what, since)| InProgress { what: what.clone(), since: since.elapsed() })
    }

    fn admit(&self, what: String, turn: OwnedMutexGuard<()>) -> Pass {
        *self.holder.lock() = Some((what, Instant::now()));
        Pass { holder: self.holder.clone(), _turn: turn }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_too_long_names_its_holder_and_age() {
        let gate = Gate::default();
        let first = gate.enter("attach op-1").await;
        tokio::time::advance(Duration::from_secs(3)).await;
        let soon = Instant::now() + Duration::from_secs(1);
        let error = gate.enter_by("stage", soon).await.expect_err("held");
        assert_eq!(error.to_string(), "operation attach op-1 has been in progress for 4.0 s");
        drop(first);
        assert_eq!(gate.holder(), None);
        let second = gate.enter_by("stage", soon).await.expect("free");
        assert_eq!(gate.holder().map(|holder| holder.what), Some("stage".into()));
        assert!(gate.try_enter("look").is_none());
        drop(second);
        assert!(gate.try_enter("look").is_some());
    }
}
