//! A kernel made of memory: subsystems behind portals, controllers, one device per subsystem, users, mounts.
//!
//! It plays `cleat_host`'s part, so what it shows has the real types, and the real predicate judges it.

mod fabrics;
mod host;
mod reservations;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use cleat_host::fabrics::DhchapSecret;
use cleat_host::fixtures::shown;
use cleat_host::openers::HeldDescriptor;
use cleat_host::sockets::SocketsByPortal;
use cleat_host::sysfs::{
    Controller, ControllerState, IoCounters, Namespace, NamespaceKind, NativeMultipath, SubsystemNamespace,
    SubsystemView, SysfsError, Topology,
};
use cleat_host::uevents::{Action, DeviceEvent, DeviceKind, HostEvent};
use cleat_host::{ControllerName, DevT, Portal, SubsystemNqn};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::target::Reservation;
use crate::volume::host::AtTarget;

pub(crate) const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-1111-1111-111111111111";
pub(crate) const HOST_ID: &str = "11111111-1111-1111-1111-111111111111";
pub(crate) const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";
pub(crate) const SIZE: u64 = 64 << 20;

pub(crate) fn portal(n: u8) -> Portal {
    Portal::parse(&format!("10.0.{n}.1:4420")).unwrap()
}

pub(crate) fn nqn(volume: &str) -> SubsystemNqn {
    SubsystemNqn::parse(&format!("nqn.2026-01.io.cleat:{volume}")).unwrap()
}

/// Controller `n` of volume `v`, connected to portal `at`.
pub(crate) fn controller(n: u32, at: u8, state: &str) -> Controller {
    made(n, &nqn("v"), portal(at), HOST, state)
}

fn made(n: u32, subsystem: &SubsystemNqn, portal: Portal, host: &str, state: &str) -> Controller {
    let state = state.parse().unwrap();
    Controller { state, ..shown::controller(n, subsystem.as_str(), portal, (host, HOST_ID)) }
}

/// A view of volume `v` with these controllers and a head over those that are live.
pub(crate) fn view(controllers: Vec<Controller>) -> SubsystemView {
    let world = World { controllers, ..World::default() };
    world.topology().view(&nqn("v"))
}

/// How a portal answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectAnswer {
    Accept,
    Refuse,
    /// Holds the connect in the kernel until the answer changes.
    Hang,
    /// Drops packets: whoever asks hears nothing, and the kernel is at a connect for 3 s.
    Drop,
    /// As `Hang`, and nobody waits for it any more: what it makes is undone.
    Overdue,
}

#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) controllers: Vec<Controller>,
    pub(crate) answers: BTreeMap<Portal, ConnectAnswer>,
    /// What the target says of itself, by subsystem.
    pub(crate) uuids: BTreeMap<String, String>,
    pub(crate) sizes: BTreeMap<String, u64>,
    pub(crate) read_only: bool,
    /// Writes that every device has counted.
    pub(crate) writes: u64,
    pub(crate) reads_fail: bool,
    /// Judgements of the device wait until this is false.
    pub(crate) reads_hang: bool,
    /// Looks for users wait until this is false.
    pub(crate) users_hang: bool,
    /// Flushes wait until this is false.
    pub(crate) flushes_hang: bool,
    pub(crate) users: Vec<String>,
    /// Users of tickets' loop devices.
    pub(crate) ticket_users: Vec<String>,
    /// They do not end.
    pub(crate) tickets_stay: bool,
    /// Cuts wait until this is false.
    pub(crate) cuts_hang: bool,
    /// How often tickets were cut off.
    pub(crate) cuts: u32,
    pub(crate) users_unknown: bool,
    /// A process could not be read.
    pub(crate) held_unread: bool,
    /// What processes of pods have open.
    pub(crate) held: Vec<HeldDescriptor>,
    pub(crate) sysfs_broken: bool,
    /// Deletions wait until this is false.
    pub(crate) deletions_hang: bool,
    /// Deletions of this subsystem do.
    pub(crate) wedged: Option<String>,
    pub(crate) targets: BTreeMap<PathBuf, AtTarget>,
    /// Those that say that they are read-only.
    pub(crate) read_only_targets: BTreeSet<PathBuf>,
    pub(crate) mounts_busy: bool,
    /// Disks that are no volume's.
    pub(crate) disks: BTreeMap<DevT, String>,
    pub(crate) connects: Vec<Portal>,
    /// Portals that were asked from user space.
    pub(crate) asked: Vec<Portal>,
    /// As the real one makes them: connects one after the other, each of which takes this long.
    pub(crate) serial: Option<Duration>,
    pub(crate) deleted: Vec<String>,
    /// The secret that the target asks for, if it asks for one.
    pub(crate) wanted_secret: Option<DhchapSecret>,
    /// What the target holds for subsystem `v`.
    pub(crate) reservation: Reservation,
    /// Secrets of controllers, by name.
    pub(crate) secrets: BTreeMap<String, DhchapSecret>,
    /// It can have heads stay when their last controller goes.
    pub(crate) knows_delay: bool,
    /// Heads stay then, until this is taken back.
    pub(crate) delayed_removal: bool,
    /// For how long.
    pub(crate) stay: Duration,
    /// It cannot be taken back.
    pub(crate) delay_is_stuck: bool,
    /// Subsystems whose namespace the kernel does not show.
    pub(crate) hidden: BTreeSet<String>,
    /// How often a controller's connection was made again, by its name.
    pub(crate) reconnected: BTreeMap<String, u32>,
    /// Sockets that belong to no controller.
    pub(crate) other_sockets: Vec<(Portal, String)>,
    /// Heads without a controller.
    pub(crate) heads: Vec<SubsystemNamespace>,
    /// Controllers whose times were set.
    pub(crate) retimed: u32,
    pub(crate) flushed: u32,
    /// Readings of what belongs to one volume.
    pub(crate) views: u32,
    /// Readings of everything.
    pub(crate) topologies: u32,
    /// Looks at the whole machine for the sake of judgements, and when the last one was.
    pub(crate) scans: u32,
    scanned: Option<Instant>,
    pub(crate) checks: u32,
    /// How often the timers of its TCP have fired.
    pub(crate) timeouts: u64,
    /// How often in a row for each address, while nothing is acknowledged.
    pub(crate) waiting: BTreeMap<IpAddr, u32>,
    /// Controllers that were reset.
    pub(crate) resets: Vec<String>,
    /// Resets wait until this is false.
    pub(crate) resets_hang: bool,
    next: u32,
}

impl World {
    /// Sets how a portal answers.
    pub(crate) fn answer(&mut self, at: u8, answer: ConnectAnswer) {
        self.answers.insert(portal(at), answer);
    }

    /// What is sent over a portal is lost, and was sent again so often.
    pub(crate) fn lose(&mut self, at: u8, timeouts: u32) {
        self.timeouts += 1;
        self.waiting.insert(portal(at).ip(), timeouts);
    }

    pub(crate) fn of(&self, volume: &str) -> Vec<String> {
        let nqn = nqn(volume);
        let ours = self.controllers.iter().filter(|one| one.subsystem_nqn.as_deref() == Some(nqn.as_str()));
        ours.map(|one| one.name.to_string()).collect()
    }

    /// Sets the state of the controller of volume `v` at a portal.
    pub(crate) fn set_state(&mut self, at: u8, state: &str) {
        for one in self.controllers.iter_mut().filter(|one| one.portal() == Some(portal(at))) {
            one.state = state.parse().unwrap();
        }
    }

    /// A controller that was there before the agent.
    pub(crate) fn connect(&mut self, subsystem: &str, at: u8, host: &str) -> String {
        let subsystem = SubsystemNqn::parse(subsystem).unwrap();
        let one = made(self.next, &subsystem, portal(at), host, "live");
        self.next += 1;
        self.controllers.push(one.clone());
        one.name.to_string()
    }

    fn device(&self, subsystem: &str) -> Option<Namespace> {
        let own: Vec<&Controller> =
            self.controllers.iter().filter(|one| one.subsystem_nqn.as_deref() == Some(subsystem)).collect();
        let first = own.first().filter(|_| !self.hidden.contains(subsystem))?;
        let kept = self.heads.iter().find(|head| head.subsystem_nqn == subsystem);
        let number: u32 = match kept {
            Some(kept) => kept.namespace.dev.minor,
            None => first.name.as_str().trim_start_matches("nvme").parse().unwrap(),
        };
        let paths = own.iter().map(|one| shown::path(&one.name)).collect();
        let uuid = self.uuids.get(subsystem).map(String::as_str).unwrap_or(UUID);
        let size = self.sizes.get(subsystem).copied().unwrap_or(SIZE);
        let shown = shown::namespace(number, uuid, size, NamespaceKind::Head { paths });
        let counters = Some(IoCounters { writes: self.writes, ..IoCounters::default() });
        Some(Namespace { read_only: self.read_only, counters, ..shown })
    }

    /// The sockets of all queues: a connection that was made again has others. One that is being reset or deleted still has
    /// them.
    pub(crate) fn sockets(&self) -> SocketsByPortal {
        let mut all = SocketsByPortal::new();
        let has_some = |state: &ControllerState| {
            matches!(state, ControllerState::Live | ControllerState::Resetting | ControllerState::Deleting)
        };
        for one in self.controllers.iter().filter(|one| has_some(&one.state)) {
            let made = self.reconnected.get(one.name.as_str()).copied().unwrap_or_default();
            let ids =
                (0..one.queue_count.unwrap()).map(|queue| format!("{}-{made}-{queue}", one.incarnation.0));
            all.entry(one.portal().unwrap()).or_default().extend(ids);
        }
        for (portal, id) in &self.other_sockets {
            all.entry(*portal).or_default().insert(id.clone());
        }
        all
    }

    fn is_without_a_path(&self, subsystem: &str) -> bool {
        self.controllers.iter().all(|one| one.subsystem_nqn.as_deref() != Some(subsystem))
    }

    /// The kernel gives up all controllers; a head that may stay does.
    pub(crate) fn give_up(&mut self) {
        if self.delayed_removal {
            let mut heads = self.topology().namespaces;
            for head in &mut heads {
                head.namespace.kind = NamespaceKind::Head { paths: Vec::new() };
            }
            self.heads = heads;
        }
        self.controllers.clear();
    }

    pub(crate) fn topology(&self) -> Topology {
        let nqns: BTreeSet<&str> =
            self.controllers.iter().filter_map(|one| one.subsystem_nqn.as_deref()).collect();
        let namespaces = nqns
            .into_iter()
            .filter_map(|nqn| {
                Some(SubsystemNamespace { subsystem_nqn: nqn.to_owned(), namespace: self.device(nqn)? })
            })
            .chain(self.heads.iter().filter(|head| self.is_without_a_path(&head.subsystem_nqn)).cloned())
            .collect();
        Topology {
            multipath: NativeMultipath::On,
            controllers: self.controllers.clone(),
            namespaces,
            unreadable: Vec::new(),
        }
    }
}

/// The kernel. What changes in it wakes whoever waits.
#[derive(Debug)]
pub(crate) struct Kernel {
    world: Mutex<World>,
    changed: watch::Sender<u64>,
    /// The kernel's own lock around a connect.
    one_connect: tokio::sync::Mutex<()>,
    /// Where the agent hears of controllers.
    events: Mutex<Option<broadcast::Sender<HostEvent>>>,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            world: Mutex::default(),
            changed: watch::Sender::new(0),
            one_connect: Default::default(),
            events: Mutex::default(),
        }
    }
}

impl Kernel {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.world());
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) async fn until<T>(&self, found: impl Fn(&mut World) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(found) = found(&mut self.world()) {
                return found;
            }
            changed.changed().await.unwrap();
        }
    }

    fn answer_of(&self, portal: Portal) -> ConnectAnswer {
        self.world().answers.get(&portal).copied().unwrap_or(ConnectAnswer::Accept)
    }

    /// From now on its events are heard there.
    pub(crate) fn heard_by(&self, events: broadcast::Sender<HostEvent>) {
        *self.events.lock().unwrap() = Some(events);
    }

    /// Tells who listens of a controller.
    pub(crate) fn tell(&self, controller: &ControllerName, action: Action, nvme_event: Option<&str>) {
        let event = DeviceEvent {
            action,
            kind: DeviceKind::NvmeController,
            name: controller.to_string(),
            dev: None,
            sequence: 1,
            nvme_event: nvme_event.map(str::to_owned),
        };
        if let Some(events) = &*self.events.lock().unwrap() {
            let _ = events.send(HostEvent::Device(event));
        }
    }

    fn broken(&self) -> Result<(), SysfsError> {
        match self.world().sysfs_broken {
            false => Ok(()),
            true => Err(SysfsError::List { path: "/sys".into(), source: std::io::Error::other("broken") }),
        }
    }
}
