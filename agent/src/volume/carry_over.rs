//! What is known of connections, carried over from one process of the agent to the next.
//!
//! Comes in: which grants this process has shown to be unbroken. Goes out, at the start of the next one: the grants whose
//! connections are the same, for [`Disconnects`](super::Disconnects).
//!
//! Always holds: the sockets that are noted were there before their controllers were shown to be unbroken, and after it. So
//! one that breaks at any later moment, also while no agent runs, has others by the time of the comparison.

use std::time::Duration;

use cleat_host::sockets::SocketsByPortal;
use cleat_runtime::exit::Causes;
use tokio::time::sleep;

use crate::ledger::connections::{Connections, UnbrokenGrant, in_both};
use crate::volume::Fleet;
use crate::volume::host::Host;
use crate::volume::state::VolumeState;

/// Between two looks at the sockets: the kernel makes a controller live, and says that it is connected, at once.
const SETTLED: Duration = Duration::from_millis(250);

impl<H: Host> Fleet<H> {
    /// Takes over what the process before has noted. Events are received already, and nothing was reported yet.
    pub async fn carry_over(&self) {
        let shared = self.shared();
        let kept = match shared.ledger.connections().await {
            Ok(Some(kept)) => kept,
            Ok(None) => return,
            Err(error) => {
                let error = Causes(&error);
                return tracing::warn!(%error, "cannot read which connections there were; none is shown to be unbroken");
            }
        };
        // In this order: see `Connections::still_there`.
        let Some(before) = self.sockets().await else { return };
        let Ok(topology) = shared.host.topology().await else { return };
        shared.disconnects.belong(&topology.controllers);
        let Some(after) = self.sockets().await else { return };
        let sockets = in_both(&before, &after);
        let identity = &shared.identity;
        let still_there = kept.still_there(&identity.boot_id, &identity.prefix, &topology, &sockets);
        tracing::info!(grants = still_there.len(), "connections are those of the process before");
        for (volume, epoch) in still_there {
            shared.disconnects.carry(&identity.prefix.subsystem(&volume), epoch);
        }
    }

    /// Notes it for the next process, where it is not what was noted last. Not while an operation runs: it changes soon.
    pub(super) async fn keep_connections(&self) {
        let busy = || self.volumes().iter().any(|volume| volume.gate.holder().is_some());
        let unbroken = self.unbroken();
        let mut kept = self.kept_connections().lock().await;
        if busy() || *kept == unbroken {
            return;
        }
        let Some(before) = self.sockets().await.filter(|sockets| !sockets.is_empty()) else { return };
        sleep(SETTLED).await;
        if busy() {
            return;
        }
        let shared = self.shared();
        let Ok(topology) = self.look_at_all().await else { return };
        if self.unbroken() != unbroken || self.sockets().await != Some(before.clone()) {
            return;
        }
        let connections = Connections::of(&shared.identity.boot_id, unbroken.clone(), &topology, &before);
        match shared.ledger.keep_connections(connections).await {
            Ok(()) => *kept = unbroken,
            Err(error) => {
                let error = Causes(&error);
                tracing::warn!(%error, "cannot note which connections there are: after the agent's next start detaches may wait for the drain bound");
            }
        }
    }

    fn unbroken(&self) -> Vec<UnbrokenGrant> {
        let grant = |state: VolumeState| {
            let epoch = state.epoch.filter(|_| state.unbroken)?;
            let controllers = state.paths.into_iter().map(|path| path.controller).collect();
            Some(UnbrokenGrant { volume: state.volume, epoch, controllers })
        };
        self.shared().board.all().into_iter().filter_map(grant).collect()
    }

    async fn sockets(&self) -> Option<SocketsByPortal> {
        let read = self.shared().host.sockets().await;
        read.inspect_err(|error| tracing::warn!(error = error.line(), "cannot see the kernel's connections"))
            .ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::agent::{Agent, Machine};

    /// The agent comes to show whether the volume is unbroken.
    async fn shows(agent: &Agent, unbroken: bool) {
        let shown = async {
            while agent.state().await.unbroken != unbroken {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), shown).await.expect("it is shown");
    }

    /// A machine whose agent has noted that the volume is unbroken, and has ended.
    async fn noted() -> Machine {
        let (machine, agent) = Machine::holding(1, &[1, 2]).await;
        shows(&agent, true).await;
        agent.fleet.keep_connections().await;
        machine
    }

    #[tokio::test]
    async fn an_unbroken_grant_stays_so_when_the_agent_is_started_again() {
        let machine = noted().await;
        let agent = machine.agent();
        assert!(!agent.state().await.unbroken, "before it has looked");
        agent.fleet.carry_over().await;
        assert!(agent.state().await.unbroken);
        // The next one after it, too.
        agent.fleet.keep_connections().await;
        drop(agent);
        let agent = machine.agent();
        agent.fleet.carry_over().await;
        assert!(agent.state().await.unbroken);
    }

    #[tokio::test]
    async fn a_connection_that_came_back_while_no_agent_ran_is_a_break() {
        let machine = noted().await;
        let one = machine.kernel.world().of("v").remove(0);
        machine.kernel.change(|world| {
            world.reconnected.insert(one, 1);
        });
        let agent = machine.agent();
        agent.fleet.carry_over().await;
        assert!(!agent.state().await.unbroken);
    }

    #[tokio::test]
    async fn nothing_is_noted_of_a_grant_while_its_sockets_change() {
        let (machine, agent) = Machine::holding(1, &[1, 2]).await;
        shows(&agent, true).await;
        let keeping = agent.fleet.keep_connections();
        let changing = async {
            sleep(SETTLED / 5).await;
            let one = machine.kernel.world().of("v").remove(0);
            machine.kernel.change(|world| {
                world.reconnected.insert(one, 1);
            });
        };
        tokio::join!(keeping, changing);
        drop(agent);
        let agent = machine.agent();
        agent.fleet.carry_over().await;
        assert!(!agent.state().await.unbroken);
    }
}
