//! What is known of connections, carried over from one process of the agent to the next.
//!
//! Comes in: which grants this process has shown to be unbroken. Goes out, at the start of the next one: the grants whose
//! connections are the same, for [`Disconnects`](super::Disconnects).
//!
//! Always holds: the sockets that are noted were there before their controllers were shown to be unbroken, and after it. So
//! one that breaks at any later moment, also while no agent runs, has others by the time of the comparison. They had been there
//! for longer than the kernel may take to say that it has connected again, so none of them is of a connection that was made
//! after a break of which nobody has heard.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cleat_host::Portal;
use cleat_host::sockets::{SocketId, SocketsByPortal};
use cleat_host::sysfs::{Controller, Topology};
use cleat_runtime::exit::Causes;
use tokio::time::Instant;

use crate::ledger::connections::{Connections, UnbrokenGrant, in_both};
use crate::volume::Fleet;
use crate::volume::host::Host;
use crate::volume::state::VolumeState;

/// What is noted for the next process, and since when what may be noted has been seen.
#[derive(Debug, Default)]
pub(super) struct Noting {
    noted: Connections,
    sockets: BTreeMap<(Portal, SocketId), Instant>,
    /// By name and incarnation.
    controllers: BTreeMap<(String, u64), Instant>,
}

impl Noting {
    /// Those of the controllers and of their sockets that were seen so long ago already.
    fn settled(
        &mut self,
        mut topology: Topology,
        sockets: SocketsByPortal,
        age: Duration,
    ) -> (Topology, SocketsByPortal) {
        let key = |one: &Controller| (one.name.to_string(), one.incarnation.0);
        // What else this machine is connected to changes all the time.
        let portals: BTreeSet<Portal> = topology.controllers.iter().filter_map(Controller::portal).collect();
        let ours = sockets.into_iter().filter(|(portal, _)| portals.contains(portal));
        let ours = ours.flat_map(|(portal, ids)| ids.into_iter().map(move |id| (portal, id)));
        let old = see(&mut self.sockets, ours.collect(), age);
        let controllers = see(&mut self.controllers, topology.controllers.iter().map(key).collect(), age);
        topology.controllers.retain(|one| controllers.contains(&key(one)));
        let mut settled = SocketsByPortal::new();
        for (portal, id) in old {
            settled.entry(portal).or_default().insert(id);
        }
        (topology, settled)
    }
}

/// Notes what is there now, and gives what was seen so long ago already.
fn see<K: Ord + Clone>(seen: &mut BTreeMap<K, Instant>, there: BTreeSet<K>, age: Duration) -> BTreeSet<K> {
    let now = Instant::now();
    seen.retain(|one, _| there.contains(one));
    for one in &there {
        seen.entry(one.clone()).or_insert(now);
    }
    there.into_iter().filter(|one| seen.get(one).is_some_and(|since| since.elapsed() >= age)).collect()
}

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
        let began = shared.disconnects.reading_begins();
        let Ok(topology) = shared.host.topology().await else { return };
        shared.disconnects.belong(began, &topology.controllers);
        let Some(after) = self.sockets().await else { return };
        let sockets = in_both(&before, &after);
        let identity = &shared.identity;
        let still_there = kept.still_there(&identity.boot_id, &identity.prefix, &topology, &sockets);
        tracing::info!(grants = still_there.len(), "connections are those of the process before");
        for (volume, epoch) in &still_there {
            shared.disconnects.carry(&identity.prefix.subsystem(volume), *epoch);
        }
        let is_there = |grant: &UnbrokenGrant| {
            still_there.iter().any(|(volume, epoch)| *volume == grant.volume && *epoch == grant.epoch)
        };
        self.noting().lock().await.noted = kept.only(is_there);
    }

    /// Notes it for the next process: less at once, more once its connections have been there for long enough.
    pub(super) async fn keep_connections(&self) {
        let mut noting = self.noting().lock().await;
        let unbroken = self.unbroken();
        let fewer = noting.noted.clone().only(|grant| unbroken.contains(grant));
        if fewer != noting.noted {
            self.note(&mut noting, fewer).await;
        }
        if noting.noted.grants() == unbroken {
            return;
        }
        let Some(before) = self.sockets().await else { return };
        let Ok(topology) = self.look_at_all().await else { return };
        let still = self.unbroken();
        let Some(after) = self.sockets().await else { return };
        let shared = self.shared();
        let (topology, sockets) = noting.settled(topology, in_both(&before, &after), shared.times.settled);
        let grants = unbroken.into_iter().filter(|grant| still.contains(grant)).collect();
        let connections = Connections::of(&shared.identity.boot_id, grants, &topology, &sockets);
        if connections.grants().len() > noting.noted.grants().len() {
            self.note(&mut noting, connections).await;
        }
    }

    async fn note(&self, noting: &mut Noting, connections: Connections) {
        match self.shared().ledger.keep_connections(connections.clone()).await {
            Ok(()) => noting.noted = connections,
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
    use cleat_host::uevents::Action;
    use tokio::time::sleep;

    use super::*;
    use crate::testing::agent::{Agent, Machine};
    use crate::testing::kernel::portal;

    /// The agent comes to show whether the volume is unbroken.
    async fn shows(agent: &Agent, unbroken: bool) {
        let shown = async {
            while agent.state().await.unbroken != unbroken {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), shown).await.expect("it is shown");
    }

    /// A machine whose agent has noted that the volume is unbroken.
    async fn noting() -> (Machine, Agent) {
        let (machine, agent) = Machine::holding(1, &[1, 2]).await;
        shows(&agent, true).await;
        agent.fleet.keep_connections().await;
        assert_eq!(grants(&agent).await, 0, "it was made just now");
        sleep(agent.fleet.shared().times.settled).await;
        agent.fleet.keep_connections().await;
        assert_eq!(grants(&agent).await, 1);
        (machine, agent)
    }

    /// The same; the agent has ended.
    async fn noted() -> Machine {
        noting().await.0
    }

    /// How many grants are noted.
    async fn grants(agent: &Agent) -> usize {
        agent.fleet.shared().ledger.connections().await.unwrap().map_or(0, |noted| noted.grants().len())
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
    async fn connections_that_were_made_just_now_are_not_noted() {
        let (machine, agent) = Machine::holding(1, &[1, 2]).await;
        shows(&agent, true).await;
        agent.fleet.keep_connections().await;
        sleep(agent.fleet.shared().times.settled).await;
        // It broke and is live again, and the kernel has not said so yet.
        let one = machine.kernel.world().of("v").remove(0);
        machine.kernel.change(|world| {
            world.reconnected.insert(one, 1);
        });
        agent.fleet.keep_connections().await;
        assert_eq!(grants(&agent).await, 0);
    }

    #[tokio::test]
    async fn a_break_takes_the_grant_out_of_the_note_at_once() {
        let (machine, agent) = noting().await;
        let name = machine.kernel.world().controllers[0].name.clone();
        machine.kernel.tell(&name, Action::Change, Some("connected"));
        shows(&agent, false).await;
        agent.fleet.keep_connections().await;
        assert_eq!(grants(&agent).await, 0);
    }

    #[tokio::test]
    async fn other_connections_of_the_machine_keep_nothing_from_being_noted() {
        let (machine, agent) = Machine::holding(1, &[1, 2]).await;
        shows(&agent, true).await;
        for number in 0..2 {
            machine.kernel.change(|world| {
                world.other_sockets =
                    vec![(portal(9), format!("{number}")), (portal(1), format!("{number}"))];
            });
            agent.fleet.keep_connections().await;
            sleep(agent.fleet.shared().times.settled).await;
        }
        assert_eq!(grants(&agent).await, 1);
    }
}
