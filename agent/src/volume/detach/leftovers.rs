//! Deletes what is left of a grant that has ended.
//!
//! A node may end a grant and be stopped before it has deleted every controller; and a connect that was in
//! the kernel at that moment may make one later. Perhaps nobody asks again: the controller may have fenced
//! the node meanwhile, and somebody may have deleted the volume. Without this, such a controller would go on
//! connecting for as long as the node runs.
//!
//! Comes in: an observation of the sweep. Goes out: the deletion, by the same steps as a Revoke's.
//!
//! Always holds: it acts only where the record says that the grant has ended (which is written before the
//! first deletion and never undone under the same epoch), and not while an operation has the volume.

use std::sync::Arc;

use tokio::time::Instant;

use crate::volume::Volume;
use crate::volume::detach::DetachMode;
use crate::volume::host::Host;
use crate::volume::observe::judge::Activity;

/// When to try next.
#[derive(Debug, Default)]
pub(in crate::volume) struct Leftovers {
    /// The earliest moment of the next try.
    again: Option<Instant>,
}

impl<H: Host> Volume<H> {
    /// Whether this process's record says that the grant has ended, although the last observation showed
    /// controllers.
    pub(in crate::volume) fn has_leftovers(&self) -> bool {
        let reported =
            self.reported_state().is_some_and(|state| !state.paths.is_empty() && state.epoch_ended);
        let memory = self.memory();
        reported
            && memory.activity == Activity::None
            && memory.leftovers.again.is_none_or(|at| Instant::now() >= at)
    }

    /// Deletes the controllers that are left of an ended grant.
    pub(in crate::volume) async fn take_leftovers_away(self: Arc<Self>) {
        let Some(_pass) = self.gate.try_enter("removal of what is left of a grant that has ended") else {
            return;
        };
        let Ok(Some(entry)) = self.record().await else { return };
        if !entry.ended {
            return;
        }
        tracing::warn!(volume = %self.id, epoch = %entry.epoch, "a volume without a grant still has \
            controllers; deleting them");
        if let Err(error) = self.end_grant(entry.epoch, DetachMode::Revoke).await {
            self.memory().leftovers.again = Some(Instant::now() + crate::volume::attach::revive::PAUSE);
            let error = cleat_runtime::exit::Causes(&error).to_string();
            tracing::error!(volume = %self.id, error, "cannot remove what is left of a grant that has ended");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::volume::state::VolumePhase;

    use crate::testing::agent::Machine;
    use crate::testing::kernel::HOST;

    #[tokio::test]
    async fn controllers_of_an_ended_grant_are_deleted_without_a_directive() {
        let (machine, agent) = Machine::holding(1, &[1]).await;
        let volume = agent.fleet.volumes().remove(0);
        agent.state().await;
        assert!(!volume.has_leftovers(), "the grant stands");
        agent.revoke(1).await;
        machine.kernel.change(|world| {
            world.connect("nqn.2026-01.io.cleat:v", 2, HOST);
            world.set_state(2, "connecting");
        });
        drop((agent, volume));
        // Also by a process that has ended nothing itself.
        let agent = machine.agent();
        assert_eq!(agent.state().await.phase, VolumePhase::Detaching);
        let volume = agent.fleet.volumes().remove(0);
        assert!(volume.has_leftovers());
        volume.clone().take_leftovers_away().await;
        assert_eq!(agent.state().await.phase, VolumePhase::Absent);
        assert!(machine.kernel.world().controllers.is_empty() && !volume.has_leftovers());
        // What another host's name connected is nobody's to take away.
        let foreign = "nqn.2014-08.org.nvmexpress:uuid:22222222-2222-2222-2222-222222222222";
        machine.kernel.change(|world| drop(world.connect("nqn.2026-01.io.cleat:v", 1, foreign)));
        agent.state().await;
        assert!(!volume.has_leftovers());
    }
}
