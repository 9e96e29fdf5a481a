//! One node's machine as its agent sees it: the agent's `Host` and `Fabrics` over the world's kernel.
//!
//! What it shows has the types of the real one, and the real readiness predicate judges it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cleat_agent::volume::host::{AtTarget, Checked, Host, HostError, Later};
use cleat_host::blockio::ReadFact;
use cleat_host::fabrics::{
    ConnectError, ConnectFailure, ConnectRequest, Connected, DeletionFacts, DhchapSecret, DisconnectError,
    Disconnected, ExactController, Fabrics, HowDeleted, Pending, RekeyError,
};
use cleat_host::fixtures::shown;
use cleat_host::readiness::{Expectation, evaluate, select};
use cleat_host::reservations::Reservations;
use cleat_host::sysfs::{
    Controller, ControllerState, NamespaceKind, NativeMultipath, SubsystemNamespace, SubsystemView,
    SysfsError, Topology,
};
use cleat_host::{ControllerName, DevT, Portal, SubsystemNqn};
use tokio::time::{Instant, timeout};

use crate::world::kernel::{self, IO_TIMEOUT, State};
use crate::world::{self, NODES, NodeIx, Planted, Universe, VolumeIx, World};

/// Between two looks at the world of who waits for it.
const LOOK: Duration = Duration::from_millis(10);

/// A node's machine.
#[derive(Debug)]
pub struct Machine {
    pub(crate) universe: Universe,
    pub(crate) node: NodeIx,
}

impl Machine {
    /// The machine of a node.
    #[must_use]
    pub fn new(universe: Universe, node: NodeIx) -> Self {
        Self { universe, node }
    }

    pub(crate) async fn until<T>(&self, mut found: impl FnMut(&mut World) -> Option<T>) -> T {
        loop {
            if let Some(found) = found(&mut self.universe.lock()) {
                return found;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn shown(&self) -> Topology {
        let world = self.universe.lock();
        let kernel = &world.nodes[self.node].kernel;
        let shown = kernel.controllers.iter().filter(|one| !kernel.unseen.contains(&one.instance));
        let controllers: Vec<_> = shown.map(|one| controller(self.node, one)).collect();
        let namespaces = kernel.devices.keys().filter_map(|volume| namespace(&world, self.node, *volume));
        Topology {
            multipath: NativeMultipath::On,
            namespaces: namespaces.collect(),
            controllers,
            unreadable: Vec::new(),
        }
    }

    /// Whether a read would be answered.
    pub(crate) fn reads(&self, volume: VolumeIx) -> bool {
        let world = self.universe.lock();
        let node = &world.nodes[self.node];
        node.kernel.controllers.iter().any(|one| {
            let there = one.session.is_some_and(|it| world.target.luns[volume].sessions.contains_key(&it));
            one.volume == volume && one.state == State::Live && there && node.links[one.portal]
        })
    }
}

fn nqn(volume: VolumeIx) -> String {
    format!("{}{}", world::PREFIX, world::volume_id(volume))
}

fn volume_of(nqn: &SubsystemNqn) -> Option<VolumeIx> {
    world::volume_of(nqn.as_str().strip_prefix(world::PREFIX)?)
}

fn instance(name: &ControllerName) -> u32 {
    name.as_str().trim_start_matches("nvme").parse().unwrap()
}

fn word(state: State) -> ControllerState {
    match state {
        State::New { .. } => ControllerState::New,
        State::Live => ControllerState::Live,
        State::Connecting { .. } => ControllerState::Connecting,
        State::Deleting { .. } => ControllerState::Deleting,
    }
}

fn controller(node: NodeIx, one: &kernel::Controller) -> Controller {
    let portal = Portal::parse(&world::portal(one.portal)).unwrap();
    let (nqn, host, id) = (nqn(one.volume), world::host_nqn(node), world::host_id(node));
    Controller {
        subsystem: Some(format!("nvme-subsys{}", one.volume)),
        state: word(one.state),
        ctrl_loss_tmo: Some("15".into()),
        ..shown::controller(one.instance, &nqn, portal, (&host, &id))
    }
}

fn namespace(world: &World, node: NodeIx, volume: VolumeIx) -> Option<SubsystemNamespace> {
    let kernel = &world.nodes[node].kernel;
    let connected = |one: &&kernel::Controller| {
        one.volume == volume
            && !matches!(one.state, State::New { .. })
            && !kernel.unseen.contains(&one.instance)
    };
    let paths: Vec<_> = kernel
        .controllers
        .iter()
        .filter(connected)
        .map(|one| shown::path(&ControllerName::from_instance(one.instance)))
        .collect();
    if paths.is_empty() {
        return None;
    }
    let uuid = world::namespace_uuid(volume);
    let namespace = shown::namespace(volume as u32, &uuid, world::SIZE, NamespaceKind::Head { paths });
    Some(SubsystemNamespace { subsystem_nqn: nqn(volume), namespace })
}

fn refused(request: &ConnectRequest, failure: ConnectFailure) -> ConnectError {
    ConnectError::Refused {
        subsystem: request.subsystem.clone(),
        portal: request.portal,
        failure,
        hint: String::new(),
        source: std::io::Error::other("the simulated target"),
    }
}

impl Fabrics for Machine {
    fn connect<'a>(
        &'a self,
        request: &'a ConnectRequest,
        deadline: Duration,
    ) -> Pending<'a, Result<Connected, ConnectError>> {
        Box::pin(async move {
            let began = Instant::now();
            let portal = (0..world::PORTALS).find(|at| world::portal(*at) == request.portal.to_string());
            let (Some(volume), Some(portal)) = (volume_of(&request.subsystem), portal) else {
                return Err(refused(request, ConnectFailure::Rejected));
            };
            let (instance, adopted) = {
                let mut world = self.universe.lock();
                let (now, takes) = (world.now, world.chance.within(20, 120));
                let secret = request.secret.clone();
                let kernel = &mut world.nodes[self.node].kernel;
                let there =
                    kernel.controllers.iter().find(|one| (one.volume, one.portal) == (volume, portal));
                match there.map(|one| one.instance) {
                    Some(instance) => (instance, true),
                    None => {
                        let instance = kernel.dial(volume, portal, secret, now, takes);
                        let (node, volume) = (NODES[self.node], world.volume(volume));
                        world
                            .note(format_args!("{node} nvme{instance} connects {volume} at portal {portal}"));
                        (instance, false)
                    }
                }
            };
            let ended = self.until(|world| {
                let kernel = &world.nodes[self.node].kernel;
                match kernel.controller(instance) {
                    Some(one) if !adopted && matches!(one.state, State::New { .. }) => None,
                    Some(one) => Some(Ok(controller(self.node, one))),
                    None => {
                        let failure = kernel.refusals.get(&instance).copied();
                        Some(Err(failure.unwrap_or(ConnectFailure::Other)))
                    }
                }
            });
            match timeout(deadline, ended).await {
                Ok(Ok(controller)) => Ok(Connected { controller, adopted, took: began.elapsed() }),
                Ok(Err(failure)) => Err(refused(request, failure)),
                Err(_) => Err(ConnectError::Overdue {
                    subsystem: request.subsystem.clone(),
                    portal: request.portal,
                    deadline,
                }),
            }
        })
    }

    fn disconnect<'a>(
        &'a self,
        target: &'a ExactController,
        deadline: Duration,
    ) -> Pending<'a, Result<Disconnected, DisconnectError>> {
        Box::pin(async move {
            let began = Instant::now();
            let name = target.controller.clone();
            let instance = instance(&name);
            let asked = {
                let mut world = self.universe.lock();
                let now = world.now;
                world.note(format_args!("{} deletes nvme{instance}", NODES[self.node]));
                let lies = world.planted == Some(Planted::AgentLies) && world.chance.percent(20);
                let kernel = &mut world.nodes[self.node].kernel;
                if lies && kernel.controller(instance).is_some() {
                    kernel.unseen.push(instance);
                    Some((State::Live, 0))
                } else {
                    kernel.delete(instance, now)
                }
            };
            let Some((before, in_flight)) = asked else {
                return Ok(Disconnected { controller: name, how: HowDeleted::AlreadyGone });
            };
            let portal = |world: &World| {
                let one = world.nodes[self.node].kernel.controller(instance)?;
                Portal::parse(&world::portal(one.portal)).ok()
            };
            let portal = portal(&self.universe.lock());
            let gone = self.until(|world| {
                let kernel = &world.nodes[self.node].kernel;
                (kernel.controller(instance).is_none() || kernel.unseen.contains(&instance)).then_some(())
            });
            if timeout(deadline, gone).await.is_err() {
                let (controller, since) = (name, began.elapsed());
                return Err(DisconnectError::StillDetaching { controller, state: Some(word(before)), since });
            }
            let facts = DeletionFacts {
                state: word(before),
                in_flight: Some(in_flight),
                portal,
                took: began.elapsed(),
                io_timeout: Duration::from_millis(IO_TIMEOUT),
            };
            Ok(Disconnected { controller: name, how: HowDeleted::Deleted(facts) })
        })
    }

    fn rekey<'a>(
        &'a self,
        target: &'a ExactController,
        secret: &'a DhchapSecret,
        _: Duration,
    ) -> Pending<'a, Result<(), RekeyError>> {
        Box::pin(async move {
            tokio::time::sleep(LOOK).await;
            let mut world = self.universe.lock();
            let mut controllers = world.nodes[self.node].kernel.controllers.iter_mut();
            if let Some(one) = controllers.find(|one| one.instance == instance(&target.controller)) {
                one.secret = Some(secret.clone());
            }
            Ok(())
        })
    }

    fn secret<'a>(
        &'a self,
        target: &'a ExactController,
        _: Duration,
    ) -> Pending<'a, Result<Option<DhchapSecret>, RekeyError>> {
        Box::pin(async move {
            let world = self.universe.lock();
            let one = world.nodes[self.node].kernel.controller(instance(&target.controller));
            Ok(one.and_then(|one| one.secret.clone()))
        })
    }

    fn authenticates(&self) -> bool {
        true
    }

    fn name(&self) -> &'static str {
        "simulated"
    }
}

impl Host for Machine {
    fn fabrics(&self) -> &dyn Fabrics {
        self
    }

    fn reservations(&self) -> &dyn Reservations {
        self
    }

    fn topology(&self) -> Later<'_, Result<Topology, SysfsError>> {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(3)).await;
            Ok(self.shown())
        })
    }

    fn view<'a>(&'a self, nqn: &'a SubsystemNqn) -> Later<'a, Result<SubsystemView, SysfsError>> {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(self.shown().view(nqn))
        })
    }

    fn check<'a>(
        &'a self,
        expectation: &'a Expectation,
        deadline: Duration,
    ) -> Later<'a, Result<Checked, HostError>> {
        Box::pin(async move {
            let view = self.shown().view(&expectation.subsystem);
            let selected = match select(&view, expectation) {
                Ok(selected) => selected,
                Err(unready) => return Ok(Err(unready)),
            };
            let answered = volume_of(&expectation.subsystem).is_some_and(|volume| self.reads(volume));
            tokio::time::sleep(if answered { LOOK } else { deadline.min(Duration::from_secs(1)) }).await;
            let read = match answered {
                true => ReadFact::Done { took: LOOK },
                false => ReadFact::Failed { error: "Input/output error".into() },
            };
            let view = self.shown().view(&expectation.subsystem);
            Ok(evaluate(&view, expectation, &shown::probed(&selected, read)))
        })
    }

    fn users<'a>(&'a self, view: &'a SubsystemView) -> Later<'a, Result<Vec<String>, HostError>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let world = self.universe.lock();
            let devices = &world.nodes[self.node].kernel.devices;
            let open = volume_of(&view.nqn).and_then(|volume| devices.get(&volume)).is_some_and(|it| it.open);
            Ok(if open { vec!["pid 4242 (writer) has the device open".to_owned()] } else { Vec::new() })
        })
    }

    fn flush(&self, dev: DevT, deadline: Duration) -> Later<'_, Result<(), HostError>> {
        Box::pin(async move {
            let answered = self.reads(dev.minor as usize);
            tokio::time::sleep(if answered { LOOK } else { deadline }).await;
            if answered { Ok(()) } else { Err(HostError::new("flush", "Input/output error")) }
        })
    }

    fn publications(&self, _: DevT) -> Later<'_, Result<Vec<PathBuf>, HostError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn at_target<'a>(&'a self, _: &'a Path) -> Later<'a, Result<AtTarget, HostError>> {
        Box::pin(async { Ok(AtTarget::Nothing) })
    }

    fn publish<'a>(&'a self, _: &'a Path, _: DevT, _: &'a Path, _: bool) -> Later<'a, Result<(), HostError>> {
        Box::pin(async { Err(HostError::new("publish", "not simulated")) })
    }

    fn is_read_only<'a>(&'a self, _: &'a Path) -> Later<'a, Result<bool, HostError>> {
        Box::pin(async { Ok(false) })
    }

    fn unpublish<'a>(&'a self, _: &'a Path) -> Later<'a, Result<(), HostError>> {
        Box::pin(async { Err(HostError::new("unpublish", "not simulated")) })
    }
}
