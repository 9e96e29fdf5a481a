//! What shows the next process of this agent that no connection has broken between the two.
//!
//! Comes in: what a process has shown to be unbroken, the controllers, and the kernel's sockets to their portals. Goes out, to
//! the next process: which grants have the very same connections.
//!
//! A connection that breaks loses all sockets of its controller, and comes back with others. Sockets do not say which controller
//! they belong to, so they are counted, portal by portal: what is left of the sockets that were noted has to be as many as the
//! controllers that are left have queues. One that is neither live nor without sockets would stand in for others with its own,
//! so its portal is left out.
//!
//! Always holds: what cannot be told apart is not shown. It costs time, and no data.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cleat_host::Portal;
use cleat_host::sockets::{SocketId, SocketsByPortal};
use cleat_host::sysfs::{Controller, ControllerState, Topology};
use serde::{Deserialize, Serialize};

use super::sealed;
use super::{Ledger, LedgerError};
use crate::name::{Epoch, NqnPrefix, VolumeId};

/// The file, in the state directory.
const FILE: &str = "connections.json";

/// The connections of this node at a moment at which some grants were shown to be unbroken.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Connections {
    boot_id: String,
    grants: Vec<UnbrokenGrant>,
    controllers: Vec<KeptController>,
    sockets: BTreeMap<String, BTreeSet<SocketId>>,
}

/// A grant of which nothing had broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UnbrokenGrant {
    pub(crate) volume: VolumeId,
    pub(crate) epoch: Epoch,
    /// Its controllers, by name.
    pub(crate) controllers: BTreeSet<String>,
}

/// A controller, as it is told from others of its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptController {
    name: String,
    incarnation: u64,
    portal: String,
    queues: usize,
}

impl KeptController {
    fn of(controller: &Controller) -> Option<Self> {
        Some(Self {
            name: controller.name.to_string(),
            incarnation: controller.incarnation.0,
            portal: controller.portal()?.to_string(),
            queues: controller.queue_count.and_then(|count| count.try_into().ok())?,
        })
    }

    /// It is there, and live.
    fn is_in(&self, topology: &Topology) -> bool {
        let same = |one: &&Controller| Self::of(one).is_some_and(|one| one == *self);
        topology.controllers.iter().find(same).is_some_and(|one| one.state.is_live())
    }

    /// It is there, its sockets may be, and they are not to be counted: it is being reset or deleted. One that is connecting
    /// has closed its own.
    fn is_in_between(&self, topology: &Topology) -> bool {
        let same =
            |one: &&Controller| one.name.as_str() == self.name && one.incarnation.0 == self.incarnation;
        let is_clear =
            |state: &ControllerState| matches!(state, ControllerState::Live | ControllerState::Connecting);
        topology.controllers.iter().find(same).is_some_and(|one| !is_clear(&one.state))
    }
}

/// The sockets that are in both readings.
pub(crate) fn in_both(one: &SocketsByPortal, other: &SocketsByPortal) -> SocketsByPortal {
    let both = one.iter().filter_map(|(portal, ids)| {
        let ids: BTreeSet<SocketId> = ids.intersection(other.get(portal)?).cloned().collect();
        Some((*portal, ids))
    });
    both.filter(|(_, ids)| !ids.is_empty()).collect()
}

impl Connections {
    /// Of these grants, with the sockets that were there before and after they were shown to be unbroken. A portal to which
    /// there are other sockets than those of controllers is left out, and every grant with it.
    pub(crate) fn of(
        boot_id: &str,
        unbroken: Vec<UnbrokenGrant>,
        topology: &Topology,
        sockets: &SocketsByPortal,
    ) -> Self {
        let controllers: Vec<_> = topology.controllers.iter().filter_map(KeptController::of).collect();
        let queues = |portal: &Portal| {
            let portal = portal.to_string();
            controllers.iter().filter(|one| one.portal == portal).map(|one| one.queues).sum::<usize>()
        };
        let accounted = sockets.iter().filter(|(portal, ids)| queues(portal) == ids.len());
        let sockets: BTreeMap<_, _> =
            accounted.map(|(portal, ids)| (portal.to_string(), ids.clone())).collect();
        let known = |grant: &UnbrokenGrant| {
            grant.controllers.iter().all(|name| {
                controllers.iter().any(|one| one.name == *name && sockets.contains_key(&one.portal))
            })
        };
        let grants = unbroken.into_iter().filter(known).collect();
        Self { boot_id: boot_id.to_owned(), grants, controllers, sockets }
    }

    /// The grants that are noted.
    pub(crate) fn grants(&self) -> &[UnbrokenGrant] {
        &self.grants
    }

    /// The same of fewer grants: true whenever it is written.
    pub(crate) fn only(mut self, stays: impl Fn(&UnbrokenGrant) -> bool) -> Self {
        self.grants.retain(stays);
        self
    }

    /// The grants whose connections are there as they were. The sockets were there before the controllers were read, and after
    /// it: one that broke in between is not live, or comes back with an event that is heard, and of one that is gone none is
    /// left.
    pub(crate) fn still_there(
        &self,
        boot_id: &str,
        prefix: &NqnPrefix,
        topology: &Topology,
        sockets: &SocketsByPortal,
    ) -> Vec<(VolumeId, Epoch)> {
        if self.boot_id != boot_id || !topology.unreadable.is_empty() {
            return Vec::new();
        }
        let now: BTreeMap<String, &BTreeSet<SocketId>> =
            sockets.iter().map(|(portal, ids)| (portal.to_string(), ids)).collect();
        let left: Vec<&KeptController> = self.controllers.iter().filter(|one| one.is_in(topology)).collect();
        let in_between: BTreeSet<&String> = self
            .controllers
            .iter()
            .filter(|one| one.is_in_between(topology))
            .map(|one| &one.portal)
            .collect();
        let accounted = |portal: &String| {
            if in_between.contains(portal) {
                return false;
            }
            let Some((before, now)) = self.sockets.get(portal).zip(now.get(portal)) else { return false };
            let queues: usize = left.iter().filter(|one| one.portal == *portal).map(|one| one.queues).sum();
            before.intersection(now).count() == queues
        };
        let same = |grant: &&UnbrokenGrant| {
            let subsystem = prefix.subsystem(&grant.volume);
            let shown = topology.view(&subsystem).controllers;
            let names: BTreeSet<String> = shown.iter().map(|one| one.name.to_string()).collect();
            names == grant.controllers
                && names.iter().all(|name| left.iter().any(|one| one.name == *name && accounted(&one.portal)))
        };
        self.grants.iter().filter(same).map(|grant| (grant.volume.clone(), grant.epoch)).collect()
    }
}

impl Ledger {
    /// What the process before has noted; `None` where none has.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub(crate) async fn connections(&self) -> Result<Option<Connections>, LedgerError> {
        self.beside("connections", |dir: &Path| sealed::read(&dir.join(FILE))).await
    }

    /// Notes it for the next process.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub(crate) async fn keep_connections(&self, connections: Connections) -> Result<(), LedgerError> {
        self.beside("connections", move |dir: &Path| sealed::write(dir, FILE, &connections)).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cleat_host::sysfs::Unreadable;

    use super::*;
    use crate::testing::kernel::{HOST, World, portal};

    const BOOT: &str = "boot-1";

    /// Two volumes over two portals.
    fn world() -> World {
        let mut world = World::default();
        for volume in ["v", "w"] {
            for at in [1, 2] {
                world.connect(&format!("nqn.2026-01.io.cleat:{volume}"), at, HOST);
            }
        }
        world
    }

    fn kept(world: &World) -> Connections {
        let grant = |volume: &str| UnbrokenGrant {
            volume: VolumeId::parse(volume).unwrap(),
            epoch: Epoch { term: 1, seq: 1 },
            controllers: world.of(volume).into_iter().collect(),
        };
        Connections::of(BOOT, vec![grant("v"), grant("w")], &world.topology(), &world.sockets())
    }

    fn still(kept: &Connections, world: &World) -> Vec<String> {
        let prefix = NqnPrefix::parse("nqn.2026-01.io.cleat:").unwrap();
        let there = kept.still_there(BOOT, &prefix, &world.topology(), &world.sockets());
        there.into_iter().map(|(volume, _)| volume.to_string()).collect()
    }

    #[test]
    fn connections_that_nobody_touched_are_still_there() {
        let world = world();
        let kept = kept(&world);
        assert_eq!(still(&kept, &world), ["v", "w"]);
        let read: Connections = serde_json::from_str(&serde_json::to_string(&kept).unwrap()).unwrap();
        assert_eq!(read, kept);
        let prefix = NqnPrefix::parse("nqn.2026-01.io.cleat:").unwrap();
        let of_another_boot = kept.still_there("boot-2", &prefix, &world.topology(), &world.sockets());
        assert!(of_another_boot.is_empty());
    }

    #[test]
    fn one_that_broke_and_came_back_is_not_shown_nor_is_its_portal() {
        let mut world = world();
        let kept = kept(&world);
        let broken = world.of("w").remove(0);
        world.reconnected.insert(broken.clone(), 1);
        assert!(still(&kept, &world).is_empty(), "nobody can tell whose sockets are others");
        // As long as it is not back it is known which one it is.
        world.reconnected.clear();
        for one in world.controllers.iter_mut().filter(|one| one.name.as_str() == broken) {
            one.state = "connecting".parse().unwrap();
        }
        assert_eq!(still(&kept, &world), ["v"]);
    }

    #[test]
    fn sockets_of_one_that_goes_do_not_stand_in_for_others() {
        for state in ["deleting", "resetting"] {
            let mut world = world();
            let kept = kept(&world);
            let (broken, going) = (world.of("v").remove(0), world.of("w").remove(0));
            world.reconnected.insert(broken, 1);
            for one in world.controllers.iter_mut().filter(|one| one.name.as_str() == going) {
                one.state = state.parse().unwrap();
            }
            assert!(still(&kept, &world).is_empty(), "{state}");
        }
    }

    #[test]
    fn sockets_that_are_gone_after_the_controllers_were_read_do_not_count() {
        let mut world = world();
        let kept = kept(&world);
        let broken = world.of("v").remove(0);
        world.reconnected.insert(broken, 1);
        let before = world.sockets();
        let gone = world.of("w");
        world.controllers.retain(|one| !gone.contains(&one.name.to_string()));
        let prefix = NqnPrefix::parse("nqn.2026-01.io.cleat:").unwrap();
        let there = in_both(&before, &world.sockets());
        assert!(kept.still_there(BOOT, &prefix, &world.topology(), &there).is_empty());
    }

    #[test]
    fn where_not_all_could_be_read_nothing_is_shown() {
        let world = world();
        let prefix = NqnPrefix::parse("nqn.2026-01.io.cleat:").unwrap();
        let mut topology = world.topology();
        topology
            .unreadable
            .push(Unreadable { path: "/sys/class/nvme/nvme9/state".into(), error: "EIO".into() });
        assert!(kept(&world).still_there(BOOT, &prefix, &topology, &world.sockets()).is_empty());
    }

    #[test]
    fn a_volume_that_was_taken_away_meanwhile_costs_the_others_nothing() {
        let mut world = world();
        let kept = kept(&world);
        let gone = world.of("w");
        world.controllers.retain(|one| !gone.contains(&one.name.to_string()));
        assert_eq!(still(&kept, &world), ["v"]);
        // And made again, under another incarnation.
        world.connect("nqn.2026-01.io.cleat:w", 1, HOST);
        assert_eq!(still(&kept, &world), ["v"]);
    }

    #[test]
    fn a_path_that_was_added_or_sockets_of_others_show_nothing() {
        let mut with_more = world();
        let kept_before = kept(&with_more);
        with_more.connect("nqn.2026-01.io.cleat:v", 3, HOST);
        assert_eq!(still(&kept_before, &with_more), ["w"], "nothing is known of the third path");
        let mut beside = world();
        beside.other_sockets.push((portal(1), "of-a-probe".into()));
        assert!(still(&kept(&beside), &beside).is_empty(), "not accounted for when it was noted");
        let kept_alone = kept(&world());
        assert_eq!(still(&kept_alone, &beside), ["v", "w"], "and harmless later");
    }
}
