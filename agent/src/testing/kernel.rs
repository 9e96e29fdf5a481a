//! A kernel made of memory: subsystems behind portals, controllers, one device per subsystem, users, mounts.
//!
//! It plays `cleat_host`'s part, so what it shows has the real types, and the real predicate judges it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use cleat_host::blockio::{IoFacts, NodeFact, ReadFact};
use cleat_host::fabrics::{
    ConnectError, ConnectFailure, ConnectOptions, ConnectRequest, Connected, Deletion, DeletionFacts,
    DhchapSecret, DisconnectError, Disconnected, Fabrics, LossTimeout, Pending, RekeyError, Target,
    TimeoutsError,
};
use cleat_host::reach::Reached;
use cleat_host::readiness::{Expectation, evaluate, select};
use cleat_host::reservations::Reservations;
use cleat_host::sysfs::{
    Address, AnaState, Controller, Incarnation, Namespace, NamespaceKind, NativeMultipath,
    SubsystemNamespace, SubsystemView, SysfsError, Topology,
};
use cleat_host::uevents::{Action, DeviceEvent, DeviceKind, HostEvent};
use cleat_host::{ControllerName, DevT, NamespaceIdentity, NamespaceUuid, Portal, SubsystemNqn};
use tokio::sync::{broadcast, watch};

use super::target::Reservation;
use crate::volume::host::{AtTarget, Checked, Host, HostError, Later};

pub(crate) const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-1111-1111-111111111111";
pub(crate) const HOST_ID: &str = "11111111-1111-1111-1111-111111111111";
pub(crate) const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";
pub(crate) const SIZE: u64 = 64 << 20;

/// How long the kernel is at a connect whose packets are dropped.
const DROPPED: Duration = Duration::from_secs(3);

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
    Controller {
        name: ControllerName::from_instance(n),
        incarnation: Incarnation(u64::from(n) + 1000),
        subsystem_nqn: Some(subsystem.to_string()),
        subsystem: Some("nvme-subsys0".into()),
        host_nqn: Some(host.to_owned()),
        host_id: Some(HOST_ID.into()),
        transport: Some("tcp".into()),
        kind: Some("io".into()),
        address: Some(Address {
            raw: format!("traddr={},trsvcid={}", portal.ip(), portal.port()),
            portal: Some(portal),
        }),
        state: state.parse().unwrap(),
        cntlid: Some(1),
        numa_node: None,
        queue_count: Some(5),
        reconnect_delay_s: Some(1),
        ctrl_loss_tmo: Some("600".into()),
    }
}

/// A view of volume `v` with these controllers and a head over those that are live.
pub(crate) fn view(controllers: Vec<Controller>) -> SubsystemView {
    let world = World { controllers, ..World::default() };
    world.topology().view(&nqn("v"))
}

/// How a portal answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
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
    pub(crate) answers: BTreeMap<Portal, Answer>,
    /// What the target says of itself, by subsystem.
    pub(crate) uuids: BTreeMap<String, String>,
    pub(crate) sizes: BTreeMap<String, u64>,
    pub(crate) read_only: bool,
    pub(crate) reads_fail: bool,
    /// Judgements of the device wait until this is false.
    pub(crate) reads_hang: bool,
    /// Looks for users wait until this is false.
    pub(crate) users_hang: bool,
    /// Flushes wait until this is false.
    pub(crate) flushes_hang: bool,
    pub(crate) users: Vec<String>,
    pub(crate) users_unknown: bool,
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
    /// It cannot be taken back.
    pub(crate) delay_is_stuck: bool,
    /// Subsystems whose namespace the kernel does not show.
    pub(crate) hidden: BTreeSet<String>,
    /// Heads without a controller.
    pub(crate) heads: Vec<SubsystemNamespace>,
    /// Controllers whose times were set.
    pub(crate) retimed: u32,
    pub(crate) flushed: u32,
    /// Readings of what belongs to one volume.
    pub(crate) views: u32,
    pub(crate) checks: u32,
    next: u32,
}

impl World {
    /// Sets how a portal answers.
    pub(crate) fn answer(&mut self, at: u8, answer: Answer) {
        self.answers.insert(portal(at), answer);
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

    fn identity(&self, subsystem: &str) -> NamespaceIdentity {
        let uuid = self.uuids.get(subsystem).map(String::as_str).unwrap_or(UUID);
        NamespaceIdentity { uuid: NamespaceUuid::parse(uuid).ok(), nguid: None }
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
        let paths = own
            .iter()
            .map(|one| cleat_host::sysfs::Path {
                name: format!("{}c", one.name),
                controller: one.name.clone(),
                ana_state: Some(AnaState::Optimized),
                size_bytes: None,
                counters: None,
            })
            .collect();
        Some(Namespace {
            name: format!("nvme{number}n1"),
            kind: NamespaceKind::Head { paths },
            dev: DevT { major: 259, minor: number },
            nsid: Some(1),
            identity: self.identity(subsystem),
            wwid: None,
            size_bytes: self.sizes.get(subsystem).copied().unwrap_or(SIZE),
            logical_block_bytes: Some(512),
            read_only: self.read_only,
            disk_sequence: None,
            holders: Vec::new(),
            counters: None,
        })
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

    fn answer_of(&self, portal: Portal) -> Answer {
        self.world().answers.get(&portal).copied().unwrap_or(Answer::Accept)
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

fn dial(world: &mut World, request: &ConnectRequest) -> Option<Result<Connected, ConnectError>> {
    let (portal, nqn) = (request.portal, request.subsystem.clone());
    let there = world.controllers.iter().find(|one| {
        one.portal() == Some(portal)
            && one.subsystem_nqn.as_deref() == Some(nqn.as_str())
            && one.host_nqn.as_deref() == Some(request.host_nqn.as_str())
    });
    if let Some(there) = there {
        return Some(Ok(Connected { controller: there.clone(), adopted: true, took: Duration::ZERO }));
    }
    match world.answers.get(&portal).copied().unwrap_or(Answer::Accept) {
        Answer::Hang => None,
        Answer::Overdue => {
            Some(Err(ConnectError::Overdue { subsystem: nqn, portal, deadline: Duration::from_secs(180) }))
        }
        Answer::Refuse | Answer::Drop => Some(Err(ConnectError::Refused {
            subsystem: nqn,
            portal,
            failure: ConnectFailure::Unreachable,
            hint: String::new(),
            source: std::io::Error::from_raw_os_error(111),
        })),
        Answer::Accept if world.wanted_secret.is_some() && request.secret != world.wanted_secret => {
            let (failure, number) = match request.secret {
                Some(_) => (ConnectFailure::Authentication, 129),
                None => (ConnectFailure::SecretRequired, 126),
            };
            let source = std::io::Error::from_raw_os_error(number);
            Some(Err(ConnectError::Refused { subsystem: nqn, portal, failure, hint: String::new(), source }))
        }
        Answer::Accept => {
            let one = made(world.next, &nqn, portal, request.host_nqn.as_str(), "live");
            world.next += 1;
            world.controllers.push(one.clone());
            if let Some(secret) = &request.secret {
                world.secrets.insert(one.name.to_string(), secret.clone());
            }
            Some(Ok(Connected { controller: one, adopted: false, took: Duration::ZERO }))
        }
    }
}

impl Fabrics for Kernel {
    fn connect<'a>(
        &'a self,
        request: &'a ConnectRequest,
        _: Duration,
    ) -> Pending<'a, Result<Connected, ConnectError>> {
        Box::pin(async move {
            self.change(|world| world.connects.push(request.portal));
            let serial = self.world().serial;
            let _turn = match serial {
                Some(takes) => {
                    let turn = self.one_connect.lock().await;
                    tokio::time::sleep(takes).await;
                    Some(turn)
                }
                None => None,
            };
            if self.answer_of(request.portal) == Answer::Drop {
                tokio::time::sleep(DROPPED).await;
            }
            let dialled = self.until(|world| dial(world, request)).await;
            if let Ok(Connected { controller, adopted: false, .. }) = &dialled {
                self.tell(&controller.name, Action::Add, None);
                self.tell(&controller.name, Action::Change, Some("connected"));
            }
            self.changed.send_modify(|count| *count += 1);
            dialled
        })
    }

    fn settled<'a>(&'a self, request: &'a ConnectRequest) -> Pending<'a, ()> {
        let overdue = |world: &mut World| world.answers.get(&request.portal) == Some(&Answer::Overdue);
        Box::pin(self.until(move |world| (!overdue(world)).then_some(())))
    }

    fn disconnect<'a>(
        &'a self,
        target: &'a Target,
        deadline: Duration,
    ) -> Pending<'a, Result<Disconnected, DisconnectError>> {
        Box::pin(async move {
            let found = self.world().controllers.iter().find(|one| one.name == target.controller).cloned();
            let gone = |how| Ok(Disconnected { controller: target.controller.clone(), how });
            let Some(found) = found else { return gone(Deletion::AlreadyGone) };
            assert_eq!(
                found.subsystem_nqn.as_deref(),
                Some(target.subsystem.as_str()),
                "another's controller"
            );
            assert_eq!(found.host_nqn.as_deref(), Some(target.host_nqn.as_str()), "another's controller");
            let state = found.state.clone();
            let subsystem = target.subsystem.as_str();
            let hangs = |world: &World| world.deletions_hang || world.wedged.as_deref() == Some(subsystem);
            let free = self.until(|world| (!hangs(world)).then_some(()));
            if tokio::time::timeout(deadline, free).await.is_err() {
                return Err(DisconnectError::StillDetaching {
                    controller: target.controller.clone(),
                    state: Some(state),
                    since: deadline,
                });
            }
            self.change(|world| {
                let head = world.device(subsystem);
                world.controllers.retain(|one| one.name != target.controller);
                let last = world.is_without_a_path(subsystem);
                if last {
                    world.heads.retain(|head| head.subsystem_nqn != subsystem);
                }
                if world.delayed_removal
                    && last
                    && let Some(mut namespace) = head
                {
                    namespace.kind = NamespaceKind::Head { paths: Vec::new() };
                    world.heads.push(SubsystemNamespace { subsystem_nqn: subsystem.to_owned(), namespace });
                }
                world.deleted.push(target.controller.to_string());
            });
            self.tell(&target.controller, Action::Remove, None);
            gone(Deletion::Deleted(DeletionFacts {
                state,
                in_flight: Some(0),
                portal: found.portal(),
                took: Duration::ZERO,
                io_timeout: Duration::from_secs(30),
            }))
        })
    }

    fn rekey<'a>(
        &'a self,
        target: &'a Target,
        secret: &'a DhchapSecret,
        _: Duration,
    ) -> Pending<'a, Result<(), RekeyError>> {
        Box::pin(async move {
            let controller = target.controller.clone();
            let mut world = self.world();
            if !world.controllers.iter().any(|one| one.name == controller) {
                return Err(RekeyError::Gone { controller });
            }
            match world.secrets.get_mut(controller.as_str()) {
                Some(has) => {
                    *has = secret.clone();
                    Ok(())
                }
                None => Err(RekeyError::WithoutSecret { controller }),
            }
        })
    }

    fn set_timeouts<'a>(
        &'a self,
        target: &'a Target,
        options: &'a ConnectOptions,
        _: Duration,
    ) -> Pending<'a, Result<bool, TimeoutsError>> {
        Box::pin(async move {
            let mut world = self.world();
            world.retimed += 1;
            for one in world.controllers.iter_mut().filter(|one| one.name == target.controller) {
                one.reconnect_delay_s =
                    options.reconnect_delay.and_then(|time| time.as_secs().try_into().ok());
                one.ctrl_loss_tmo = options.ctrl_loss_tmo.map(|limit| match limit {
                    LossTimeout::After(time) => time.as_secs().to_string(),
                    LossTimeout::Never => "off".to_owned(),
                });
            }
            Ok(true)
        })
    }

    fn secret<'a>(
        &'a self,
        target: &'a Target,
        _: Duration,
    ) -> Pending<'a, Result<Option<DhchapSecret>, RekeyError>> {
        Box::pin(async move { Ok(self.world().secrets.get(target.controller.as_str()).cloned()) })
    }

    fn authenticates(&self) -> bool {
        true
    }

    fn name(&self) -> &'static str {
        "memory"
    }
}

impl Host for Kernel {
    fn fabrics(&self) -> &dyn Fabrics {
        self
    }

    fn reach(&self, portal: Portal, patience: Duration) -> Later<'_, Reached> {
        Box::pin(async move {
            self.world().asked.push(portal);
            if self.answer_of(portal) != Answer::Drop {
                return Reached::Answers;
            }
            tokio::time::sleep(patience).await;
            Reached::Silent("no answer to TCP".into())
        })
    }

    fn reservations(&self) -> &dyn Reservations {
        self
    }

    fn topology(&self) -> Later<'_, Result<Topology, SysfsError>> {
        Box::pin(async { self.broken().map(|()| self.world().topology()) })
    }

    fn view<'a>(&'a self, nqn: &'a SubsystemNqn) -> Later<'a, Result<SubsystemView, SysfsError>> {
        Box::pin(async {
            let mut world = self.world();
            world.views += 1;
            drop(world);
            self.broken().map(|()| self.world().topology().view(nqn))
        })
    }

    fn check<'a>(
        &'a self,
        expectation: &'a Expectation,
        _: Duration,
    ) -> Later<'a, Result<Checked, HostError>> {
        Box::pin(async {
            self.until(|world| (!world.reads_hang).then_some(())).await;
            let mut world = self.world();
            world.checks += 1;
            let view = world.topology().view(&expectation.subsystem);
            let selected = match select(&view, expectation) {
                Ok(selected) => selected,
                Err(unready) => return Ok(Err(unready)),
            };
            let read = || match world.reads_fail {
                true => ReadFact::Failed { error: "Input/output error".into() },
                false => ReadFact::Done { took: Duration::ZERO },
            };
            let path = PathBuf::from("/dev").join(&selected.device);
            let io = IoFacts {
                size_bytes: Some(selected.size_bytes),
                read_only: Some(selected.read_only),
                first_read: read(),
                last_read: read(),
                ..IoFacts::none(NodeFact::Verified { path, dev: selected.dev })
            };
            Ok(evaluate(&view, expectation, &io))
        })
    }

    fn users<'a>(&'a self, _: &'a SubsystemView) -> Later<'a, Result<Vec<String>, HostError>> {
        Box::pin(async {
            self.until(|world| (!world.users_hang).then_some(())).await;
            let world = self.world();
            match world.users_unknown {
                true => Err(HostError::new("could not look for users", "/proc/1/fd: Permission denied")),
                false => Ok(world.users.clone()),
            }
        })
    }

    fn users_of_device(&self, _: DevT) -> Later<'_, Result<Vec<String>, HostError>> {
        Box::pin(async {
            let world = self.world();
            match world.users_unknown {
                true => Err(HostError::new("could not look for users", "/proc/1/fd: Permission denied")),
                false => Ok(world.users.clone()),
            }
        })
    }

    fn stay_without_paths(&self, _: DevT, stay: Duration) -> Later<'_, Result<bool, HostError>> {
        Box::pin(async move {
            let mut world = self.world();
            if world.delay_is_stuck {
                return Err(HostError::new("the multipath head may outlive its paths", "Input/output error"));
            }
            world.delayed_removal = world.knows_delay && !stay.is_zero();
            Ok(world.knows_delay)
        })
    }

    fn flush(&self, _: DevT, _: Duration) -> Later<'_, Result<(), HostError>> {
        Box::pin(async {
            self.until(|world| (!world.flushes_hang).then_some(())).await;
            self.world().flushed += 1;
            Ok(())
        })
    }

    fn publications(&self, dev: DevT) -> Later<'_, Result<Vec<PathBuf>, HostError>> {
        Box::pin(async move {
            let world = self.world();
            let published = world.targets.iter().filter(|(_, at)| **at == AtTarget::Device(dev));
            Ok(published.map(|(target, _)| target.clone()).collect())
        })
    }

    fn device_name(&self, dev: DevT) -> Later<'_, Result<Option<String>, HostError>> {
        Box::pin(async move { Ok(self.world().disks.get(&dev).cloned()) })
    }

    fn at_target<'a>(&'a self, target: &'a Path) -> Later<'a, Result<AtTarget, HostError>> {
        Box::pin(async move { Ok(self.world().targets.get(target).cloned().unwrap_or(AtTarget::Nothing)) })
    }

    fn publish<'a>(
        &'a self,
        _: &'a Path,
        dev: DevT,
        target: &'a Path,
        read_only: bool,
    ) -> Later<'a, Result<(), HostError>> {
        Box::pin(async move {
            self.change(|world| {
                world.targets.insert(target.to_owned(), AtTarget::Device(dev));
                if read_only {
                    world.read_only_targets.insert(target.to_owned());
                }
            });
            Ok(())
        })
    }

    fn is_read_only<'a>(&'a self, target: &'a Path) -> Later<'a, Result<bool, HostError>> {
        Box::pin(async move { Ok(self.world().read_only_targets.contains(target)) })
    }

    fn unpublish<'a>(&'a self, target: &'a Path) -> Later<'a, Result<(), HostError>> {
        Box::pin(async move {
            if self.world().mounts_busy {
                let busy = std::io::Error::from_raw_os_error(16);
                return Err(HostError::new(format!("umount {}", target.display()), busy));
            }
            self.change(|world| {
                world.targets.remove(target);
                world.read_only_targets.remove(target);
            });
            Ok(())
        })
    }
}
