//! Removes records of grants that have been over for a long time.
//!
//! Comes in: the passing of time. Goes out: a smaller ledger, and inventories without old volumes.
//!
//! Without this a node would keep the record of every volume that it ever had: a block of the disk each (some
//! 500 to 800 bytes of text), about 130 bytes of every inventory, and an observation of it in every sweep.
//!
//! Always holds: a record goes only once three things hold. Its grant has ended. An observation of each
//! target that it names found no device there (a pod that went with a reboot is never unpublished). An
//! observation that could read everything found nothing of it in the kernel, with no connect under way. What
//! its epoch refused is still refused without it ([`Ledger::forgotten`](crate::ledger::Ledger::forgotten)).
//! The proof of how its controllers were deleted goes with it: a controller that has not received it by then
//! waits for its drain bound instead.

use std::time::Duration;

use cleat_runtime::exit::Causes;
use tokio::time::Instant;

use crate::name::Epoch;
use crate::volume::Volume;
use crate::volume::host::Host;

/// The epoch that is over, and since when this process has known that.
#[derive(Debug, Default)]
pub(super) struct Over(Option<(Epoch, Instant)>);

impl Over {
    /// Since when the epoch has been over; `None` where it is not.
    fn has_been(&mut self, ended: Option<Epoch>) -> Option<Instant> {
        self.0 = match (ended, self.0) {
            (Some(epoch), Some((known, since))) if known == epoch => Some((known, since)),
            (Some(epoch), _) => Some((epoch, Instant::now())),
            (None, _) => None,
        };
        self.0.map(|(_, since)| since)
    }
}

impl<H: Host> Volume<H> {
    /// Removes the record where its grant has been over for `retain`. Does nothing while an operation has the
    /// volume.
    pub(super) async fn retire(&self, retain: Duration) {
        self.write_owed_if_idle().await;
        if !self.has_been_over_for(retain) {
            return;
        }
        let Some(_pass) = self.gate.try_enter("letting go of the record") else { return };
        let Ok(Some(entry)) = self.record().await else { return };
        if !entry.ended || self.may_be_published(&entry).await {
            return;
        }
        let Ok(view) = self.observe().await else { return };
        if view.connecting || !view.is_proven_absent() {
            return;
        }
        match self.shared.ledger.forget(&self.id, entry.epoch).await {
            Ok(()) => {
                tracing::debug!(volume = %self.id, epoch = %entry.epoch, "removing the record of a grant \
                    that ended long ago");
                self.memory().record.let_go();
            }
            Err(error) => {
                self.memory().record.doubt();
                tracing::error!(volume = %self.id, error = %Causes(&error), "cannot remove a record");
            }
        }
    }

    /// By this process's own clock: since it first saw that the grant is over.
    fn has_been_over_for(&self, retain: Duration) -> bool {
        let mut memory = self.memory();
        let ended = memory.record.entry().filter(|entry| entry.ended).map(|entry| entry.epoch);
        memory.over.has_been(ended).is_some_and(|since| since.elapsed() >= retain)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cleat_host::DevT;
    use std::path::Path;

    use crate::volume::outcome::Outcome;

    use super::*;
    use crate::testing::agent::{Agent, Machine, epoch, grant};
    use crate::testing::kernel::HOST;
    use crate::volume::host::AtTarget;

    async fn retire(agent: &Agent) {
        for volume in agent.fleet.volumes() {
            volume.retire(Duration::ZERO).await;
        }
    }

    #[tokio::test]
    async fn a_record_that_was_let_go_still_refuses_what_it_refused() {
        let (machine, agent) = Machine::holding(4, &[1]).await;
        retire(&agent).await;
        assert!(agent.entry().await.is_some(), "the grant stands");
        agent.detach(4).await;
        retire(&agent).await;
        assert_eq!(agent.entry().await, None);
        assert_eq!(agent.fleet.inventory().await.unwrap(), []);
        drop(agent);
        let agent = machine.agent();
        let late =
            [agent.attach(4, grant(&[1])).await, agent.attach(3, grant(&[1])).await, agent.revoke(4).await];
        for outcome in late {
            let Outcome::StaleEpoch(stale) = outcome else { panic!("{outcome:?}") };
            assert_eq!((stale.highest, stale.ended), (epoch(4), true));
        }
        assert!(machine.kernel.world().connects.len() == 1 && agent.entry().await.is_none());
        // Under an epoch that is new, whatever is asked is done.
        assert!(matches!(agent.revoke(5).await, Outcome::Absent(_)));
        agent.ready(6, &[1]).await;
    }

    #[tokio::test]
    async fn a_record_stays_while_anything_is_left_or_its_time_has_not_come() {
        let (machine, agent) = Machine::holding(1, &[1]).await;
        let volume = agent.fleet.volumes().remove(0);
        volume.note_published(Path::new("/pods/a/volume")).await;
        let device = AtTarget::Device(DevT { major: 259, minor: 0 });
        machine.kernel.change(|world| drop(world.targets.insert("/pods/a/volume".into(), device)));
        agent.revoke(1).await;
        retire(&agent).await;
        assert!(agent.entry().await.is_some(), "something is still published");
        // The pod has gone with its folder, and nobody has ever unpublished the volume.
        machine.kernel.change(|world| world.targets.clear());
        machine.kernel.change(|world| drop(world.connect("nqn.2026-01.io.cleat:v", 2, HOST)));
        retire(&agent).await;
        assert!(agent.entry().await.is_some(), "the kernel holds something of it");
        machine.kernel.change(|world| world.controllers.clear());
        machine.kernel.change(|world| world.sysfs_broken = true);
        retire(&agent).await;
        assert!(agent.entry().await.is_some(), "the kernel cannot be read");
        machine.kernel.change(|world| world.sysfs_broken = false);
        volume.retire(Duration::from_secs(3600)).await;
        assert!(agent.entry().await.is_some(), "not yet");
        retire(&agent).await;
        assert_eq!(agent.entry().await, None);
    }
}
