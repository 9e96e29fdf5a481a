//! Probes of storage addresses while one of them is suspected.
//!
//! Comes in: which portals to probe. Goes out: which of them have answered since the suspicion began, and how
//! often in a row one has not.
//!
//! Always holds: one probe of an address at a time; a result counts only if its probe began after
//! [`Probes::begin_again`]. Nothing is probed without a suspicion: to a target each probe is a connection.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cleat_host::Portal;
use cleat_host::reach::Reached;
use futures_util::FutureExt as _;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::volume::host::Host;

/// How long a probe waits for an answer: on a storage network one takes a millisecond.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long an answer is good for, until the next probe.
const GOOD: Duration = Duration::from_millis(500);

/// What probes have shown.
#[derive(Debug, Default)]
pub(super) struct Probes(BTreeMap<IpAddr, Probed>);

#[derive(Debug, Default)]
struct Probed {
    running: Option<AbortOnDropHandle<Reached>>,
    /// Probes in a row without an answer.
    silent: u32,
    answered: Option<Instant>,
}

impl Probes {
    /// Forgets everything: another suspicion begins, or none is left.
    pub(super) fn begin_again(&mut self) {
        self.0.clear();
    }

    /// Takes what has ended, and begins what is due.
    pub(super) fn go_on<H: Host>(&mut self, host: &Arc<H>, portals: impl IntoIterator<Item = Portal>) {
        for portal in portals {
            let probed = self.0.entry(portal.ip()).or_default();
            probed.take();
            let fresh = probed.answered.is_some_and(|at| at.elapsed() < GOOD);
            if probed.running.is_none() && !(fresh && probed.silent == 0) {
                let host = host.clone();
                let probe = tokio::spawn(async move { host.reach(portal, PATIENCE).await });
                probed.running = Some(AbortOnDropHandle::new(probe));
            }
        }
    }

    /// How many probes in a row an address has not answered.
    pub(super) fn silent(&self, address: IpAddr) -> u32 {
        self.0.get(&address).map_or(0, |probed| probed.silent)
    }

    /// Whether an address has answered since then, however silent it has been later.
    pub(super) fn answered_since(&self, address: IpAddr, since: Instant) -> bool {
        self.0.get(&address).and_then(|probed| probed.answered).is_some_and(|at| at >= since)
    }

    /// Whether an address has answered a moment ago, and not been silent since.
    pub(super) fn answers(&self, address: IpAddr) -> bool {
        self.0.get(&address).is_some_and(|probed| probed.silent == 0 && probed.answered.is_some())
    }
}

impl Probed {
    fn take(&mut self) {
        let Some(running) = self.running.as_mut().filter(|running| running.is_finished()) else { return };
        match running.now_or_never() {
            Some(Ok(Reached::Answers)) => (self.silent, self.answered) = (0, Some(Instant::now())),
            Some(Ok(Reached::Silent(_))) => self.silent += 1,
            // It panicked, or the runtime ends: that says nothing of the address.
            Some(Err(_)) | None => {}
        }
        self.running = None;
    }
}
