//! Connects missing paths of a volume in use again.
//!
//! The kernel restores a connection that it had, for as long as `--ctrl-loss-timeout` allows. It does not
//! restore one that failed at attach or was given up since. So a granted volume with a live path and a
//! missing one is repaired from time to time.
//!
//! Always holds: it repairs only while a session with the controller is up (a fenced node has lost its
//! session, or has been sent the end of its grant), which is checked again when the kernel gets the connect;
//! only under a grant that has not ended; only beside a live path; and the portal is on record before it is
//! connected.

use std::collections::BTreeSet;

use cleat_host::Portal;
use cleat_host::fabrics::ExactController;
use cleat_host::sysfs::SubsystemView;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::link::Link;
use crate::volume::attach::backoff::Sight;
use crate::volume::attach::connects::{ConnectEnd, Why};
use crate::volume::host::Host;
use crate::volume::plan::{PlannedStep, Want, plan};
use crate::volume::{Volume, metrics};

impl<H: Host> Volume<H> {
    /// Connects missing paths when it is time to. Does nothing while an operation has the volume.
    pub(in crate::volume) async fn repair(&self, link: &watch::Receiver<Link>) {
        let Some(_pass) = self.gate.try_enter("repair of paths") else { return };
        self.log_repairs();
        let Ok(view) = self.observe().await else { return };
        let Ok(Some(mut entry)) = self.record().await else { return };
        let Some(grant) = entry.grant.clone().filter(|_| !entry.ended && entry.boot_id == self.boot_id())
        else {
            return;
        };
        let missing: BTreeSet<_> =
            plan(&view, self.host_nqn(), &self.connects.running(), Want::Connected(&grant.portals))
                .steps
                .into_iter()
                .filter_map(|step| match step {
                    PlannedStep::Connect(portal) => Some(portal),
                    PlannedStep::Delete(_) => None,
                })
                .collect();
        let (silent, missing): (Vec<Portal>, Vec<Portal>) =
            missing.into_iter().partition(|portal| self.shared.portals.is_silent_and_wanted(*portal));
        if !silent.is_empty() {
            tracing::debug!(volume = %self.id, ?silent, "paths are missing at addresses that do not answer");
            // One task asks for all volumes; once there is an answer, the pause starts again.
            self.memory().repair.forget(&silent);
        }
        let live = view.controllers.iter().any(|controller| {
            controller.state.is_live() && controller.host_nqn.as_deref() == Some(self.host_nqn().as_str())
        });
        if *link.borrow() == Link::Down || !live {
            return;
        }
        let now = Instant::now();
        let missing: Vec<Portal> =
            missing.into_iter().filter(|portal| self.memory().repair.due(now, *portal)).collect();
        if missing.is_empty() {
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
            self.connects.start(&self.shared, self.connect_request(*portal), Why::Repair(link.clone()));
        }
    }

    /// Notes what an observation shows of the grant's portals, so that each path's live time is known.
    pub(in crate::volume) fn note_paths(&self, view: &SubsystemView) {
        let mut memory = self.memory();
        let grant = memory.record.entry().filter(|entry| !entry.ended).and_then(|entry| entry.grant.as_ref());
        let portals = grant.map(|grant| grant.portals.clone()).unwrap_or_default();
        let seen = portals.into_iter().map(|portal| (portal, self.sight(view, portal))).collect();
        memory.repair.observe(Instant::now(), &seen);
    }

    fn sight(&self, view: &SubsystemView, portal: Portal) -> Sight {
        let ours = view.controllers.iter().filter(|one| {
            one.portal() == Some(portal)
                && !one.state.is_going()
                && ExactController::of(one, &view.nqn, self.host_nqn()).is_some()
        });
        let sights: Vec<Sight> =
            ours.map(|one| if one.state.is_live() { Sight::Live } else { Sight::Pending }).collect();
        match sights[..] {
            [] => Sight::Missing,
            _ if sights.contains(&Sight::Live) => Sight::Live,
            _ => Sight::Pending,
        }
    }

    /// Logs how the connects of an earlier attempt ended. Nobody waits for them: they hold up nobody, and the
    /// volume's next operation sees them.
    fn log_repairs(&self) {
        for (portal, connect_end) in self.connects.take_ended() {
            let connected = !matches!(connect_end, ConnectEnd::Failed(_));
            metrics::path_repair(connected);
            if let ConnectEnd::Failed(error) = connect_end {
                let error = cleat_runtime::exit::Causes(error.as_ref()).to_string();
                tracing::warn!(volume = %self.id, %portal, error, "cannot connect a missing path");
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::testing::agent::{Agent, Machine};
    use crate::testing::kernel::portal;
    use crate::volume::watch::Watch;

    #[tokio::test(start_paused = true)]
    async fn a_path_that_is_given_up_again_and_again_is_back_as_soon_each_time() {
        let machine = Machine::new();
        let agent = Agent::with_stopped_clock(&machine.kernel, machine.dir.path());
        agent.ready(1, &[1, 2]).await;
        let stop = CancellationToken::new();
        let watching = tokio::spawn(Watch::new(agent.fleet.clone()).run(stop.clone()));
        // The one goes as soon as the other is back: there is hardly an observation that shows both.
        for round in 0..12 {
            let gone = portal(1 + round % 2);
            machine.kernel.change(|world| world.controllers.retain(|one| one.portal() != Some(gone)));
            let lost = Instant::now();
            let back = machine.kernel.until(|world| (world.controllers.len() == 2).then_some(()));
            tokio::time::timeout(Duration::from_secs(3600), back).await.unwrap();
            let away = lost.elapsed();
            assert!(away <= Duration::from_secs(15), "{gone} was away for {away:?} in round {round}");
        }
        stop.cancel();
        watching.await.unwrap();
    }
}
