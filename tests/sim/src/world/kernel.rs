//! One node's kernel: NVMe controllers, devices over them, and who uses those.
//!
//! It behaves as Linux was measured to: a connect goes on when the process that asked for it is killed; a controller
//! whose connection is gone tries to get it back and then sends again what was not answered; deleting a live one
//! waits for its writes, deleting another one does not; what waits in a deleted one's socket is dropped.

use std::collections::{BTreeMap, VecDeque};

use cleat_host::fabrics::{ConnectFailure, DhchapSecret};
use cleat_host::uevents::Action;

use super::target::{Received, Sent};
use super::{NodeIx, PORTALS, VolumeIx, World};

/// Time without an answer after which either side takes a connection for lost.
const KEEP_ALIVE: u64 = 2_000;
/// Between two attempts to get a connection back: less than an agent takes to look again by itself. Linux tells nobody
/// of the break, and of the connection only that it is there.
const RECONNECT: u64 = 400;
/// After which the kernel gives a connection up.
const LOSS: u64 = 15_000;
/// How long a connect waits for an answer.
const DIAL: u64 = 3_000;
/// The I/O timeout: a deletion waits no longer for writes in flight.
pub const IO_TIMEOUT: u64 = 8_000;
/// Writes that one user has under way.
const DEPTH: usize = 4;
/// Between two writes of one user.
const PERIOD: u64 = 60;

/// State of a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Being connected for the first time.
    New {
        /// When the target is asked.
        asks_at: u64,
        /// When it gives up.
        gives_up_at: u64,
    },
    /// Connected.
    Live,
    /// Not connected any more.
    Connecting {
        /// Since when.
        since: u64,
        /// When it tries again.
        retries_at: u64,
    },
    /// Being deleted.
    Deleting {
        /// Since when.
        since: u64,
        /// It was live when that began.
        was_live: bool,
    },
}

/// A controller.
#[derive(Debug, Clone)]
pub struct Controller {
    /// Its number in the kernel.
    pub instance: u32,
    /// To which volume.
    pub volume: VolumeIx,
    /// Over which portal.
    pub portal: usize,
    /// How it stands.
    pub state: State,
    /// Its connection.
    pub session: Option<u64>,
    /// Since when the target has not been heard, if it is not.
    pub silent_since: Option<u64>,
    /// The secret that it authenticates with.
    pub secret: Option<DhchapSecret>,
}

/// A write that its user has not got an answer to.
#[derive(Debug, Clone)]
struct Io {
    write: u64,
    /// The controller that it was given to.
    on: Option<u32>,
    /// The session over which the target has received it.
    received: Option<u64>,
}

/// A multipath device.
#[derive(Debug, Clone, Default)]
pub struct Device {
    /// Somebody has it open, and writes.
    pub open: bool,
    under_way: VecDeque<Io>,
    next_write: u64,
    writes_at: u64,
}

/// A kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    /// Counts boots.
    pub boot: u32,
    /// Its controllers.
    pub controllers: Vec<Controller>,
    /// Its devices.
    pub devices: BTreeMap<VolumeIx, Device>,
    /// Controllers that an agent which lies does not show.
    pub unseen: Vec<u32>,
    /// Deletions do not end while true.
    pub deletions_hang: bool,
    /// How connects that did not succeed have ended.
    pub refusals: BTreeMap<u32, ConnectFailure>,
    instances: u32,
}

impl Kernel {
    /// Begins a connect; gives the controller's number.
    pub fn dial(
        &mut self,
        volume: VolumeIx,
        portal: usize,
        secret: Option<DhchapSecret>,
        now: u64,
        takes: u64,
    ) -> u32 {
        let instance = self.instances;
        self.instances += 1;
        let state = State::New { asks_at: now + takes, gives_up_at: now + DIAL };
        let (session, silent_since) = (None, None);
        self.controllers.push(Controller { instance, volume, portal, state, session, silent_since, secret });
        instance
    }

    /// A controller by its number.
    #[must_use]
    pub fn controller(&self, instance: u32) -> Option<&Controller> {
        self.controllers.iter().find(|one| one.instance == instance)
    }

    /// Begins a deletion; gives whether it was live, and its writes in flight.
    pub fn delete(&mut self, instance: u32, now: u64) -> Option<(State, u64)> {
        let one = self.controllers.iter_mut().find(|one| one.instance == instance)?;
        let before = one.state;
        let in_flight = self.devices.get(&one.volume).map_or(0, |device| device.in_flight(instance));
        if !matches!(before, State::Deleting { .. }) {
            one.state = State::Deleting { since: now, was_live: before == State::Live };
        }
        Some((before, in_flight))
    }

    /// Whether the kernel holds anything of a volume.
    #[must_use]
    pub fn holds(&self, volume: VolumeIx) -> bool {
        self.controllers.iter().any(|one| one.volume == volume)
    }
}

impl Device {
    fn in_flight(&self, instance: u32) -> u64 {
        self.under_way.iter().filter(|io| io.on == Some(instance)).count() as u64
    }

    /// Takes back what was given to a controller: it goes to another one, or waits.
    fn give_back(&mut self, instance: u32) {
        for io in self.under_way.iter_mut().filter(|io| io.on == Some(instance)) {
            (io.on, io.received) = (None, None);
        }
    }
}

impl World {
    /// Lets one node's kernel come up to now.
    pub(super) fn run_kernel(&mut self, node: NodeIx) {
        if self.nodes[node].stands_still {
            return;
        }
        let instances: Vec<u32> =
            self.nodes[node].kernel.controllers.iter().map(|one| one.instance).collect();
        for instance in instances {
            self.run_controller(node, instance);
        }
        let volumes: Vec<VolumeIx> = self.nodes[node].kernel.devices.keys().copied().collect();
        for volume in volumes {
            self.run_device(node, volume);
        }
    }

    fn run_controller(&mut self, node: NodeIx, instance: u32) {
        let now = self.now;
        let Some(one) = self.nodes[node].kernel.controller(instance).cloned() else { return };
        let reachable = self.target.up && self.nodes[node].links[one.portal];
        match one.state {
            State::New { asks_at, gives_up_at } => {
                if now >= asks_at && reachable {
                    self.ask(node, &one, true);
                } else if now >= gives_up_at {
                    self.remove(node, instance, Some(ConnectFailure::Unreachable));
                }
            }
            State::Live => {
                let there = one
                    .session
                    .is_some_and(|session| self.target.luns[one.volume].sessions.contains_key(&session));
                let silent = self.heard(node, instance, reachable);
                if (reachable && !there) || silent.is_some_and(|since| now >= since + KEEP_ALIVE) {
                    self.lose(node, instance);
                }
            }
            State::Connecting { since, retries_at } => {
                if now >= since + LOSS {
                    self.remove(node, instance, None);
                } else if now >= retries_at {
                    if reachable {
                        self.ask(node, &one, false);
                    }
                    self.set_state(node, instance, |state| {
                        if let State::Connecting { retries_at, .. } = state {
                            *retries_at = now + RECONNECT;
                        }
                    });
                }
            }
            State::Deleting { since, was_live } => {
                let kernel = &self.nodes[node].kernel;
                let in_flight =
                    kernel.devices.get(&one.volume).map_or(0, |device| device.in_flight(instance));
                let waits = was_live && in_flight > 0 && now < since + IO_TIMEOUT;
                // The least that a deletion takes.
                if !waits && now >= since + 30 && !kernel.deletions_hang {
                    self.remove(node, instance, None);
                }
            }
        }
    }

    /// Notes whether the target is heard on a connection, on both sides; since when it is not.
    fn heard(&mut self, node: NodeIx, instance: u32, reachable: bool) -> Option<u64> {
        let now = self.now;
        let kernel = &mut self.nodes[node].kernel;
        let one = kernel.controllers.iter_mut().find(|one| one.instance == instance)?;
        one.silent_since = if reachable { None } else { one.silent_since.or(Some(now)) };
        one.silent_since
    }

    /// Asks the target for a connection.
    fn ask(&mut self, node: NodeIx, one: &Controller, first: bool) {
        let host = super::host_nqn(node);
        if self.target.admits(one.volume, &host, one.secret.as_ref()) {
            let boot = self.nodes[node].kernel.boot;
            let session = self.target.connect(one.volume, node, boot, one.portal);
            let kernel = &mut self.nodes[node].kernel;
            if let Some(one) = kernel.controllers.iter_mut().find(|it| it.instance == one.instance) {
                (one.state, one.session, one.silent_since) = (State::Live, Some(session), None);
            }
            kernel.devices.entry(one.volume).or_default();
            self.note(format_args!(
                "{} nvme{} live on {}",
                name(node),
                one.instance,
                self.volume(one.volume)
            ));
            if first {
                self.event(node, one.instance, Action::Add, None);
            }
            let heard = first || !self.breaks_are_unheard;
            self.event(node, one.instance, Action::Change, heard.then_some("connected"));
        } else {
            let secret_is_wrong = self.target.admits(one.volume, &host, one.secret.as_ref())
                != self.target.admits(one.volume, &host, self.target.secret(one.volume));
            let failure =
                if secret_is_wrong { ConnectFailure::Authentication } else { ConnectFailure::Rejected };
            self.note(format_args!(
                "{} nvme{} refused by {}: {failure:?}",
                name(node),
                one.instance,
                self.volume(one.volume)
            ));
            // Whoever is refused for good is taken away by its kernel; an export that is off refuses for now.
            let for_good = self.target.luns[one.volume].volume.is_on();
            if first || (for_good && self.gives_up_when_refused) {
                self.remove(node, one.instance, Some(failure));
            }
        }
    }

    /// A connection is gone: its writes wait for it, or for another path.
    fn lose(&mut self, node: NodeIx, instance: u32) {
        let now = self.now;
        let kernel = &mut self.nodes[node].kernel;
        let Some(one) = kernel.controllers.iter_mut().find(|one| one.instance == instance) else { return };
        one.state = State::Connecting { since: now, retries_at: now + RECONNECT };
        one.session = None;
        if let Some(device) = kernel.devices.get_mut(&one.volume) {
            device.give_back(instance);
        }
        self.note(format_args!("{} nvme{instance} lost its connection", name(node)));
    }

    fn set_state(&mut self, node: NodeIx, instance: u32, set: impl FnOnce(&mut State)) {
        let kernel = &mut self.nodes[node].kernel;
        if let Some(one) = kernel.controllers.iter_mut().find(|one| one.instance == instance) {
            set(&mut one.state);
        }
    }

    /// Takes a controller away, and the device with the last one: its user gets I/O errors and gives up.
    fn remove(&mut self, node: NodeIx, instance: u32, failure: Option<ConnectFailure>) {
        let kernel = &mut self.nodes[node].kernel;
        let Some(at) = kernel.controllers.iter().position(|one| one.instance == instance) else { return };
        let one = kernel.controllers.remove(at);
        if let Some(failure) = failure {
            kernel.refusals.insert(instance, failure);
        }
        if let Some(device) = kernel.devices.get_mut(&one.volume) {
            device.give_back(instance);
        }
        if !kernel.holds(one.volume) {
            kernel.devices.remove(&one.volume);
        }
        if let Some(session) = one.session {
            self.target.luns[one.volume].sessions.remove(&session);
        }
        self.note(format_args!("{} nvme{instance} of {} gone", name(node), self.volume(one.volume)));
        self.event(node, instance, Action::Remove, None);
    }

    fn run_device(&mut self, node: NodeIx, volume: VolumeIx) {
        let now = self.now;
        let period = self.chance.within(PERIOD / 2, PERIOD * 2);
        let Some(device) = self.nodes[node].kernel.devices.get_mut(&volume) else { return };
        if device.open && device.under_way.len() < DEPTH && now >= device.writes_at {
            device.writes_at = now + period;
            device.next_write += 1;
            device.under_way.push_back(Io { write: device.next_write, on: None, received: None });
        }
        let count = device.under_way.len();
        // From the end: what fails is taken out.
        for at in (0..count).rev() {
            self.give_out(node, volume, at);
        }
    }

    /// Gives a write to a live controller, and to the target if that can be reached.
    fn give_out(&mut self, node: NodeIx, volume: VolumeIx, at: usize) {
        let turn = self.chance.index(PORTALS);
        let links = self.nodes[node].links;
        let kernel = &mut self.nodes[node].kernel;
        let Some(io) = kernel.devices.get_mut(&volume).and_then(|device| device.under_way.get_mut(at)) else {
            return;
        };
        if io.on.is_none() {
            let live: Vec<&Controller> = kernel
                .controllers
                .iter()
                .filter(|one| one.volume == volume && one.state == State::Live)
                .collect();
            let Some(one) = live.get(turn % live.len().max(1)) else { return };
            io.on = Some(one.instance);
        }
        let Some(one) = kernel.controllers.iter().find(|one| Some(one.instance) == io.on) else { return };
        let Some(session) = one.session else { return };
        let reachable = self.target.up && links[one.portal];
        let there = self.target.luns[volume].sessions.contains_key(&session);
        if io.received.is_some() || !reachable || !there {
            return;
        }
        if !self.target.takes_writes(volume, node) {
            // A reservation conflict: an I/O error for who wrote.
            if let Some(device) = kernel.devices.get_mut(&volume) {
                device.under_way.remove(at);
            }
            return;
        }
        io.received = Some(session);
        let write = io.write;
        let lands_at = self.now + 5 + self.chance.below(self.target.holds_ms.max(1));
        let sent = Received { host: node, lands_at, write: Sent { write, session } };
        self.target.luns[volume].volume.received.push(sent);
    }

    /// A write has landed: its user hears of it if the connection still stands.
    pub(super) fn answer(&mut self, volume: VolumeIx, landed: &Received) {
        let Some(session) = self.target.luns[volume].sessions.get(&landed.write.session) else { return };
        let state = &mut self.nodes[landed.host];
        if !state.links[session.portal] || session.boot != state.kernel.boot || state.stands_still {
            return;
        }
        if let Some(device) = state.kernel.devices.get_mut(&volume) {
            device
                .under_way
                .retain(|io| io.write != landed.write.write || io.received != Some(landed.write.session));
        }
    }

    /// The target gives up sessions whose host it has not heard for too long.
    pub(super) fn expire_sessions(&mut self) {
        let now = self.now;
        let (nodes, luns) = (&self.nodes, &mut self.target.luns);
        for lun in luns {
            lun.sessions.retain(|_, session| {
                let node = &nodes[session.node];
                let heard =
                    node.links[session.portal] && node.kernel.boot == session.boot && !node.stands_still;
                session.silent_since = if heard { None } else { session.silent_since.or(Some(now)) };
                session.silent_since.is_none_or(|since| now < since + KEEP_ALIVE + 500)
            });
        }
    }

    /// Whether a node could write to a volume: it is connected, or its kernel tries to be and would be let in.
    #[must_use]
    pub fn could_write(&self, node: NodeIx, volume: VolumeIx) -> bool {
        let kernel = &self.nodes[node].kernel;
        let host = super::host_nqn(node);
        kernel.controllers.iter().filter(|one| one.volume == volume).any(|one| {
            let connected =
                one.session.is_some_and(|session| self.target.luns[volume].sessions.contains_key(&session));
            let would_be = !matches!(one.state, State::Deleting { .. })
                && self.target.admits(volume, &host, one.secret.as_ref());
            connected || would_be
        }) && self.target.takes_writes(volume, node)
    }
}

fn name(node: NodeIx) -> &'static str {
    super::NODES[node]
}
