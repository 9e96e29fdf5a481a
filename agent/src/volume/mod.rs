//! One volume on this node: observe, plan, apply.
//!
//! Comes in: directives of the controller and calls of the kubelet. Goes out: outcomes, each with what was
//! seen.
//!
//! Owns: the volume's gate (one operation at a time), its connects under way, its place in the ledger. Every
//! operation reads the kernel, plans purely ([`plan`]), does one step and reads again. It compares with what
//! it remembers, but decides nothing by it.
//!
//! Always holds:
//! - What permits a change is on disk before the change is made.
//! - No operation of one volume waits for another volume.
//! - Only controllers of this volume's subsystem with this node's host NQN are deleted.

mod attach;
pub mod board;
mod carry_over;
pub mod clause;
pub mod count;
mod credentials;
mod deduplicate;
mod detach;
pub mod directive;
pub mod early_reset;
mod execute;
pub mod fleet;
mod forget;
pub mod gate;
pub mod host;
mod keep_heads;
pub mod linux;
mod memory;
mod observe;
pub mod outcome;
pub mod plan;
pub mod portals;
pub mod publish;
mod record;
mod reservation;
pub mod state;
mod supersede;
pub mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cleat_host::fabrics::{ConnectOptions, ConnectRequest};
use cleat_host::readiness::Expectation;
use cleat_host::sysfs::SubsystemView;
use cleat_host::uevents::Uevents;
use cleat_host::{HostId, HostNqn, Portal, SubsystemNqn};
use tokio::time::{Instant, timeout_at};

use crate::ledger::{Grant, Ledger};
use crate::metrics;
use crate::name::{Epoch, NqnPrefix, VolumeId};
use attach::connect_queue::Queue;
use attach::connects::Connects;
use board::{Board, StateChange};
use deduplicate::Operations;
use gate::Gate;
use host::{Checked, Host, HostError};
use memory::Memory;
use observe::events::Events;
use observe::judge::{self, Activity, Seen};
use observe::observation::Observation;
use portals::Portals;
use state::{VolumePhase, VolumeState};
use supersede::Arrivals;

pub use fleet::Fleet;
pub use observe::disconnects::Disconnects;
pub use observe::observation::ObservationNumbers;
pub use publish::errors::{PublishError, StageError, UnpublishError, UnstageError};

/// A judgement has at least this long, however little is left of a deadline: a successful one takes
/// milliseconds.
const SHORTEST_CHECK: Duration = Duration::from_millis(50);

/// The names under which this node connects, and the kernel's settings for its connections.
#[derive(Debug, Clone)]
pub struct ConnectIdentity {
    /// Host NQN of every connect.
    pub host_nqn: HostNqn,
    /// Host identifier of every connect.
    pub host_id: HostId,
    /// The boot of this node: what the kernel had before another boot is gone.
    pub boot_id: String,
    /// The beginning of our subsystems' NQNs, which tells them from others.
    pub prefix: NqnPrefix,
    /// How the kernel treats connections.
    pub connect: ConnectOptions,
}

/// Time limits and intervals of operations.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Longest that one judgement of the whole predicate may take, with direct reads.
    pub check: Duration,
    /// How often an operation that waits for the kernel observes again without an event: events can be lost.
    pub poll: Duration,
    /// Once enough paths are live: how long it still waits for the other portals.
    pub stragglers: Duration,
    /// Longest that a flush before a detach may take; afterwards the controllers are deleted all the same.
    pub flush: Duration,
    /// How long an operation waits for its turn before a CSI call answers Aborted.
    pub turn: Duration,
    /// How long NodeStageVolume waits for the device.
    pub stage: Duration,
    /// Time between two sweeps, which trust no event.
    pub sweep: Duration,
    /// Time between two judgements of the whole predicate of a volume in use: the sweeps in between read all
    /// of sysfs, but no device.
    pub judge: Duration,
    /// How long the record of an ended grant is kept: a controller that has not received its answer asks
    /// again within minutes.
    pub retain: Duration,
    /// How long a device stays after losing its last path, where the kernel can do that; with zero it goes at
    /// once.
    pub stay: Duration,
    /// Longest that a sweep's judgement may take: a failure raises an alarm, and a busy machine must not.
    pub sweep_check: Duration,
    /// How long connections have to have been there before they are noted for the next process.
    pub settled: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            // Direct reads of two blocks take milliseconds; a path that is failing over takes a few seconds.
            check: Duration::from_secs(5),
            poll: Duration::from_millis(250),
            stragglers: Duration::from_secs(1),
            flush: Duration::from_secs(5),
            turn: Duration::from_secs(2),
            stage: Duration::from_secs(10),
            sweep: Duration::from_secs(5),
            judge: Duration::from_secs(30),
            retain: Duration::from_secs(3600),
            stay: Duration::from_secs(30),
            sweep_check: Duration::from_secs(15),
            // A controller is live before the kernel says so, for as long as its command to the target takes: 60 s at most.
            settled: Duration::from_secs(65),
        }
    }
}

/// Everything that the volumes of this node share.
#[derive(Debug)]
pub struct VolumeContext<H> {
    /// What is asked of the kernel: the real machine, or one in memory for tests.
    pub host: Arc<H>,
    /// What this node has on disk of each volume's grant.
    pub ledger: Ledger,
    /// The latest state of every volume.
    pub board: Board,
    /// The names under which this node connects.
    pub identity: ConnectIdentity,
    /// Time limits and intervals of operations.
    pub times: Times,
    /// Events of the kernel; `None` where they cannot be received.
    pub uevents: Option<Uevents>,
    /// Numbers every observation, in the order in which they begin.
    pub observations: ObservationNumbers,
    /// Which connections broke and came back.
    pub disconnects: Disconnects,
    /// Which storage addresses answer, and which do not.
    pub portals: Portals,
    /// The connects of this node that wait for the kernel.
    pub queue: Queue,
}

/// The latest observation that was reported, and the state that it led to.
#[derive(Debug)]
struct Reported {
    observation: Observation,
    state: VolumeState,
}

/// One volume, and what this process does with it and remembers of it.
#[derive(Debug)]
pub struct Volume<H> {
    id: VolumeId,
    subsystem: SubsystemNqn,
    shared: Arc<VolumeContext<H>>,
    gate: Gate,
    connects: Connects,
    operations: Operations,
    arrivals: Arrivals,
    memory: Mutex<Memory>,
    /// What was reported last. Decisions by the last report use this, not the board.
    reported: Mutex<Option<Reported>>,
    /// One judgement at a time: each of two parallel ones would take the other for a device that does not
    /// answer. This is not the gate: a revoke does not wait for a device.
    judging: tokio::sync::Mutex<()>,
    /// One search for users at a time, for the same reason.
    searching: tokio::sync::Mutex<()>,
}

impl<H: Host> Volume<H> {
    /// A volume that has not been observed yet.
    fn new(id: VolumeId, shared: Arc<VolumeContext<H>>) -> Self {
        let subsystem = shared.identity.prefix.subsystem(&id);
        Self {
            id,
            subsystem,
            shared,
            gate: Gate::default(),
            connects: Connects::default(),
            operations: Operations::default(),
            arrivals: Arrivals::default(),
            memory: Mutex::default(),
            reported: Mutex::default(),
            judging: tokio::sync::Mutex::default(),
            searching: tokio::sync::Mutex::default(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Each change of it is a single assignment.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn host_nqn(&self) -> &HostNqn {
        &self.shared.identity.host_nqn
    }

    fn boot_id(&self) -> &str {
        &self.shared.identity.boot_id
    }

    /// Judges the whole predicate, with direct reads.
    async fn check(&self, expectation: &Expectation, limit: Duration) -> Result<Checked, HostError> {
        self.check_since(expectation, Instant::now(), limit).await
    }

    /// The same. What needs a search of the whole machine may come from a search for another volume, at
    /// `since` or later.
    async fn check_since(
        &self,
        expectation: &Expectation,
        since: Instant,
        limit: Duration,
    ) -> Result<Checked, HostError> {
        let until = Instant::now() + limit;
        let Ok(_turn) = timeout_at(until, self.judging.lock()).await else {
            return Err(HostError::new("cannot check the device", "an earlier check has not ended"));
        };
        let left = until.saturating_duration_since(Instant::now());
        self.shared.host.check_since(expectation, since, left.max(SHORTEST_CHECK)).await
    }

    /// Who uses the devices of the volume.
    async fn users(&self, view: &SubsystemView) -> Result<Vec<String>, HostError> {
        let _turn = self.searching.lock().await;
        self.shared.host.users(view).await
    }

    /// Who uses the devices of the volume, before they are taken away.
    async fn users_to_end(&self, view: &SubsystemView) -> Result<Vec<String>, HostError> {
        let _turn = self.searching.lock().await;
        self.shared.host.users_to_end(view).await
    }

    /// What the device must be, by a grant and by what was learned under it.
    fn expectation(&self, grant: &Grant) -> Expectation {
        let pinned =
            (!grant.identity.is_empty()).then_some(grant.identity).or(self.memory().judged.learned());
        Expectation {
            subsystem: self.subsystem.clone(),
            identity: pinned,
            size_bytes: (grant.size_bytes != 0).then_some(grant.size_bytes),
            read_only: grant.read_only,
            host_nqn: self.host_nqn().clone(),
            portals: grant.portals.clone(),
            paths: grant.policy,
            asked_holders: Vec::new(),
        }
    }

    fn connect_request(&self, portal: Portal) -> ConnectRequest {
        ConnectRequest {
            subsystem: self.subsystem.clone(),
            portal,
            host_nqn: self.host_nqn().clone(),
            host_id: self.shared.identity.host_id,
            options: self.shared.identity.connect,
            secret: self.memory().secret.get(),
        }
    }

    /// Events from now on.
    fn events(&self) -> Events {
        Events::listen(self.shared.uevents.as_ref())
    }

    fn set_activity(&self, activity: Activity) {
        self.memory().activity = activity;
    }

    /// The state that an observation leads to.
    fn judge(&self, observation: &Observation) -> VolumeState {
        let memory = self.memory();
        let entry = memory.record.reported();
        let epoch = entry.as_ref().ok().and_then(Option::as_ref).map(|entry| entry.epoch);
        let was_ready = memory.judged.was_ready_under(epoch);
        let (activity, failing) = (memory.activity, memory.judged.failing().cloned());
        let unregistered = memory.registration.missing();
        let unheld = memory.registration.waits();
        let staging = memory.staged.seen().to_vec();
        let dead_users = memory.dead.users().to_vec();
        let held = memory.held.elsewhere_under(epoch);
        drop(memory);
        let grant = entry.as_ref().ok().and_then(Option::as_ref).and_then(|entry| entry.grant.as_ref());
        let expectation = grant.map(|grant| self.expectation(grant));
        let wanted = expectation.iter().flat_map(|expectation| &expectation.portals);
        let silent =
            wanted.filter_map(|portal| Some((*portal, self.shared.portals.silence(*portal)?))).collect();
        let mut state = judge::judge(&Seen {
            volume: &self.id,
            view: observation,
            connecting: observation.connecting,
            host_nqn: self.host_nqn(),
            entry: entry.as_ref().map(Option::as_ref).map_err(String::as_str),
            expectation: expectation.as_ref(),
            activity,
            was_ready,
            failing: failing.as_ref(),
            unregistered: unregistered.as_deref(),
            unheld,
            staging: &staging,
            silent: &silent,
            dead_users: &dead_users,
            held: &held,
            boot_id: self.boot_id(),
        });
        state.unbroken = state.phase == VolumePhase::Ready && self.is_unbroken(observation, epoch);
        if let Some(coming) = self.arrivals.newest_attach().filter(|coming| Some(*coming) > state.epoch) {
            state.is_to_be_attached(coming);
        }
        state
    }

    /// Whether it is shown that no connection of the volume has broken or gone under this grant.
    fn is_unbroken(&self, view: &SubsystemView, epoch: Option<Epoch>) -> bool {
        let Some(epoch) = epoch else { return false };
        let begun_here = self.memory().begun_here == Some(epoch);
        let (all, names) = (&view.controllers, view.controllers.iter().map(|one| &one.name));
        all.iter().all(|one| one.state.is_live())
            && self.shared.disconnects.show_unbroken(&self.subsystem, epoch, begun_here, names)
    }

    /// Judges the newest observation (this one, or the one that was reported before) and puts the state on the board. Logs and counts what changed.
    fn report(&self, observation: &Observation) -> VolumeState {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = match reported.take() {
            Some(before) if !observation.is_newer_than(&before.observation) => before.observation,
            _ => observation.clone(),
        };
        self.note_device(&latest);
        self.note_paths(&latest);
        let state = self.judge(&latest);
        *reported = Some(Reported { observation: latest, state: state.clone() });
        if let StateChange::Significant { before } = self.shared.board.put(&self.id, state.clone()) {
            self.log_change(before, &state);
        }
        state
    }

    /// The state that was reported last.
    fn reported_state(&self) -> Option<VolumeState> {
        let reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        reported.as_ref().map(|reported| reported.state.clone())
    }

    fn log_change(&self, before: Option<VolumePhase>, state: &VolumeState) {
        let phase = state.phase;
        if before == Some(phase) {
            tracing::debug!(volume = %self.id, state = ?state, "volume changed");
            return;
        }
        metrics::phase_changed(phase.as_str());
        let from = before.map(VolumePhase::as_str).unwrap_or("unknown");
        let live = state.paths.iter().filter(|path| path.is_live()).count();
        let unready = state.unready.as_ref();
        let clause = unready.map(|unready| unready.clause).unwrap_or_default();
        let message = unready.map(|unready| unready.message.as_str()).unwrap_or_default();
        let (to, paths) = (phase.as_str(), state.paths.len());
        let epoch = state.epoch.map(|epoch| epoch.to_string()).unwrap_or_default();
        if matches!(phase, VolumePhase::Degraded | VolumePhase::Lost) {
            tracing::warn!(volume = %self.id, epoch, from, to, live, paths, clause, message, "volume changed its phase");
        } else {
            tracing::info!(volume = %self.id, epoch, from, to, live, paths, clause, message, "volume changed its phase");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod dead_portal_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "volume_tests.rs"]
mod tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod wedged_tests;
