//! Missing paths of a volume in use are connected again.
//!
//! The kernel gets a connection back that it has had, for as long as `--ctrl-loss-timeout` allows; one that failed at
//! attach, or was given up since, it does not. So a granted volume that has a live path and misses another is
//! repaired from time to time.
//!
//! Always holds: only while a session with the controller is up (a node that has been fenced has lost it, or has been
//! told; looked at again when the kernel is given the connect), only under a grant that has not ended, only next to a live path, and the portal is on record before it is
//! connected.

use std::collections::BTreeSet;
use std::time::Duration;

use cleat_host::Portal;
use tokio::sync::watch;
use tokio::time::Instant;

use super::dials::{Dialled, Why};
use super::host::Host;
use super::plan::{Step, Want, plan};
use super::{Volume, metrics};
use crate::session::Link;

/// First and longest time between two attempts for a volume.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// When the next attempt may be made.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Backoff {
    next: Option<(Instant, Duration)>,
}

impl Backoff {
    /// Whether an attempt may be made now; if so, the next one may be made after a longer pause. The first look at a
    /// missing path only begins the pause: what has just gone may be coming back by itself.
    fn due(&mut self, now: Instant) -> bool {
        let (at, pause) = match self.next {
            None => {
                self.next = Some((now + PAUSE.0, PAUSE.0));
                return false;
            }
            Some(next) => next,
        };
        if now < at {
            return false;
        }
        let pause = (pause * 2).min(PAUSE.1);
        self.next = Some((now + pause, pause));
        true
    }

    /// One whose time has come.
    #[cfg(test)]
    pub(super) fn overdue() -> Self {
        Self { next: Some((Instant::now(), PAUSE.0)) }
    }

    fn reset(&mut self) {
        self.next = None;
    }
}

impl<H: Host> Volume<H> {
    /// Connects what is missing, if it is time to. Does nothing while an operation has the volume.
    pub(super) async fn repair(&self, link: &watch::Receiver<Link>) {
        let Some(_pass) = self.gate.try_enter("repair of paths") else { return };
        self.tell_repairs();
        let Ok(view) = self.look().await else { return };
        let Ok(Some(mut entry)) = self.record().await else { return };
        let Some(grant) = entry.grant.clone().filter(|_| !entry.ended && entry.boot_id == self.boot_id())
        else {
            return;
        };
        let missing: BTreeSet<_> =
            plan(&view, self.host_nqn(), &self.dials.running(), Want::Connected(&grant.portals))
                .steps
                .into_iter()
                .filter_map(|step| match step {
                    Step::Connect(portal) => Some(portal),
                    Step::Delete(_) => None,
                })
                .collect();
        let (silent, missing): (Vec<Portal>, Vec<Portal>) =
            missing.into_iter().partition(|portal| self.shared.portals.is_silent_and_wanted(*portal));
        if missing.is_empty() {
            if !silent.is_empty() {
                tracing::debug!(volume = %self.id, ?silent, "paths are missing at addresses that do not answer");
            }
            // Asked for by one task for all volumes; once there is an answer, the pause begins anew.
            return self.memory().repair.reset();
        }
        let live = view.controllers.iter().any(|controller| {
            controller.state.is_live() && controller.host_nqn.as_deref() == Some(self.host_nqn().as_str())
        });
        if *link.borrow() == Link::Down || !live || !self.memory().repair.due(Instant::now()) {
            return;
        }
        let mut written: BTreeSet<_> = entry.may_have_written.iter().copied().collect();
        written.extend(&missing);
        let written: Vec<_> = written.into_iter().collect();
        if written != entry.may_have_written {
            entry.may_have_written = written;
            if self.keep(&entry).await.is_err() {
                return;
            }
        }
        self.learn_secret(&view).await;
        for portal in &missing {
            tracing::info!(volume = %self.id, %portal, "connecting a missing path");
            self.dials.start(&self.shared, self.connect_request(*portal), Why::Repair(link.clone()));
        }
    }

    /// Tells how the connects of an earlier attempt have ended. They are not waited for: they hold nobody up, and
    /// are known to whoever has the volume next.
    fn tell_repairs(&self) {
        for (portal, dialled) in self.dials.take_ended() {
            let connected = !matches!(dialled, Dialled::Failed(_));
            metrics::path_repair(connected);
            if let Dialled::Failed(error) = dialled {
                let error = cleat_runtime::exit::Causes(error.as_ref()).to_string();
                tracing::warn!(volume = %self.id, %portal, error, "a missing path cannot be connected");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn attempts_become_rarer_and_begin_late() {
        let mut backoff = Backoff::default();
        let mut attempts = Vec::new();
        let began = Instant::now();
        for _ in 0..300 {
            if backoff.due(Instant::now()) {
                attempts.push(began.elapsed().as_secs());
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(attempts, [5, 15, 35, 75, 135, 195, 255]);
    }
}
