//! Attach: connect every portal side by side, and prove that the device can be used.
//!
//! Comes in: a grant and a deadline. Goes out: Ready with the state and where the time went, or the clause that
//! failed and whether anything is left.
//!
//! Always holds:
//! - The epoch is on disk before the first connect.
//! - What existed before is reused and never taken away; what a failed attach made is taken away again.
//! - Ready is said only after the whole predicate held on one look, and, where the grant is reserved, after a report
//!   that showed this node registered and the namespace held.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cleat_host::Portal;
use cleat_host::fabrics::ConnectFailure;
use cleat_host::readiness::{Expectation, ReadyFacts, Unready, select};
use cleat_host::sysfs::{SubsystemView, SysfsError};
use cleat_proto::cleat::v1 as wire;
use cleat_runtime::exit::Causes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use wire::directive_result::Outcome;
use wire::volume_state::Phase;

use super::dials::Dialled;
use super::events::{Events, Interest};
use super::host::Host;
use super::overtake::Overtaken;
use super::plan::{Doomed, Step, Want, plan};
use super::reserve;
use super::state::Activity;
use super::{Look, Volume, clause};
use crate::ledger::rules::{AttachRuling, Stale, may_begin, on_attach};
use crate::ledger::{Entry, Grant, LedgerError};
use crate::metrics::{self, AttachPhase};
use crate::name::Epoch;
use crate::session::directive::Given;

/// First and longest pause before a portal that failed is tried again: a target that restarts, or whose access list
/// is just being changed, is met soon; one that is down is not flooded.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// For how long a clause that does not heal by itself must go on failing before it is believed: sysfs shows a
/// namespace in the making for some milliseconds.
const CONTRADICTED: Duration = Duration::from_millis(300);
/// How many times rarer an attach looks without an event while its connects are under way.
const CONNECTING_POLL: u32 = 40;
/// Shortest time between two looks without an event: scanning a namespace takes the kernel some milliseconds.
const SHORTEST_PAUSE: Duration = Duration::from_millis(8);
/// How long a failed attach waits for connects that sit in the kernel before it says that something may be left.
const CALL_BACK: Duration = Duration::from_secs(1);

/// Why an attach did not end in Ready.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachError {
    #[error("the grant is over")]
    Stale(#[source] Stale),
    #[error("{0}")]
    Conflict(String),
    #[error("the grant could not be recorded")]
    Ledger(#[from] LedgerError),
    #[error("a later directive took its place")]
    Superseded,
    #[error("not ready: {}: {}", .unready.clause, .unready.message)]
    NotReady { unready: wire::Unready, nothing_left: bool },
}

impl AttachError {
    pub(super) fn outcome(self) -> Outcome {
        let failed = |unready, nothing_left| {
            Outcome::Failed(wire::FailedOutcome { unready: Some(unready), nothing_left })
        };
        match self {
            Self::Stale(stale) => stale_outcome(stale),
            Self::Conflict(text) => failed(clause::failed(clause::GRANT, text), false),
            Self::Ledger(error) => failed(clause::failed(clause::LEDGER, Causes(&error)), false),
            Self::Superseded => failed(clause::failed(clause::SUPERSEDED, self), false),
            Self::NotReady { unready, nothing_left } => failed(unready, nothing_left),
        }
    }
}

/// A directive of the past, as the wire has it.
pub(super) fn stale_outcome(stale: Stale) -> Outcome {
    Outcome::StaleEpoch(wire::StaleEpochOutcome {
        highest: Some(stale.highest.to_wire()),
        ended: stale.ended,
    })
}

/// What was proven, and when.
struct Proven {
    view: Look,
    facts: ReadyFacts,
    /// The generation of the report that shows this node, where the grant is reserved.
    registered: Option<u32>,
    connected: Instant,
    device: Instant,
    checked: Instant,
}

impl<H: Host> Volume<H> {
    /// Attaches under an epoch. The caller holds the gate.
    pub(super) async fn attach(
        &self,
        epoch: Epoch,
        grant: &Grant,
        given: Option<Given>,
        received: Instant,
        deadline: Instant,
    ) -> Result<wire::ReadyOutcome, AttachError> {
        let before = self.record().await?;
        may_begin(before.as_ref(), self.shared.ledger.forgotten(), epoch).map_err(AttachError::Stale)?;
        let generation = given.as_ref().and_then(|given| given.generation);
        let entry = match on_attach(before.as_ref(), epoch, grant, generation, self.boot_id()) {
            AttachRuling::Stale(stale) => return Err(AttachError::Stale(stale)),
            AttachRuling::Conflict(text) => return Err(AttachError::Conflict(text)),
            AttachRuling::Recorded => before.clone(),
            AttachRuling::Record(entry) => {
                self.keep(&entry).await?;
                Some(*entry)
            }
        };
        let under_way = self.begin_attach(epoch, before.as_ref().map(|entry| entry.epoch));
        let anew = before.as_ref().is_none_or(|before| before.epoch != epoch);
        self.take_secret(given, anew, entry.as_ref().and_then(|entry| entry.secret_generation));
        let registered = entry.as_ref().and_then(|entry| entry.registered);
        let dated = entry.as_ref().is_some_and(|entry| entry.secret_generation.is_some());
        let mut run = Run::new(self, grant, registered, deadline);
        let stopped = self
            .unless_overtaken(epoch, async {
                self.bring_secret_up_to_date(dated).await;
                run.until_proven().await
            })
            .await;
        drop(under_way);
        let written_before = written_before(before.as_ref(), self.boot_id());
        match stopped {
            Ok(Ok(proven)) => {
                let times = self.proven(epoch, grant, received, &proven);
                if let Some(mut entry) = entry {
                    // Before Ready is said: a preemption has to be told from a registration that never was.
                    let registered = proven.registered.or(entry.registered);
                    let changed = std::mem::replace(&mut entry.registered, registered) != registered;
                    self.note_connected(entry, changed, &proven.view, &written_before).await?;
                }
                let state = self.report(&proven.view);
                Ok(wire::ReadyOutcome { state: Some(state), times: Some(times) })
            }
            // What it made is taken away, or used, by who took its place.
            Err(Overtaken) => Err(AttachError::Superseded),
            Ok(Err(unready)) => {
                let made = std::mem::take(&mut run.made);
                let give_back = written_before.is_empty() && run.reserving;
                let undone = self.unless_overtaken(epoch, async {
                    (give_back && self.give_back_unused(grant).await, self.undo(made).await)
                });
                let Ok((given_back, nothing_left)) = undone.await else {
                    return Err(AttachError::Superseded);
                };
                if let Some(entry) = entry {
                    self.note_failed(entry, given_back, nothing_left.then_some(written_before)).await;
                }
                Err(AttachError::NotReady { unready, nothing_left })
            }
        }
    }

    fn begin_attach(&self, epoch: Epoch, before: Option<Epoch>) -> UnderWay<'_, H> {
        let told = self.shared.board.get(&self.id);
        let was_usable = told.is_some_and(|state| matches!(state.phase(), Phase::Ready | Phase::Degraded));
        let mut memory = self.memory();
        if before != Some(epoch) {
            memory.learned = None;
            memory.registration = reserve::Registration::default();
        } else if was_usable {
            // Told as ready by a look, if not by an attach of this process: it stays so while it is.
            memory.ready_under = Some(epoch);
        }
        memory.failing = None;
        memory.activity = Activity::Connecting;
        drop(memory);
        UnderWay { volume: self }
    }

    /// Controllers that exist already and have another secret get the one of the grant: it may have changed while this
    /// node could not be told.
    async fn bring_secret_up_to_date(&self, dated: bool) {
        if !dated && self.memory().secret.is_none() {
            return;
        }
        // A failed look or gift shows in what follows.
        let Ok(view) = self.look().await else { return };
        // One that is outdated was not taken, and a process that has just started knows of none.
        self.learn_secret(&view).await;
        let Some(secret) = self.memory().secret.clone() else { return };
        for (live, error) in self.give_secret(&view, &secret).await {
            tracing::warn!(volume = %self.id, live, error = %Causes(&error), "a controller keeps another secret");
        }
    }

    /// A failed attach leaves no registration of a node that was told nothing.
    async fn give_back_unused(&self, grant: &Grant) -> bool {
        match self.look().await {
            Ok(view) => self.give_back(Some(grant), &view).await,
            Err(_) => false,
        }
    }

    fn proven(&self, epoch: Epoch, grant: &Grant, received: Instant, proven: &Proven) -> wire::AttachTimes {
        let mut memory = self.memory();
        memory.ready_under = Some(epoch);
        memory.judged = Some(proven.checked);
        if grant.identity.is_empty() {
            memory.learned = Some(proven.facts.selected.identity);
        }
        drop(memory);
        let connect = proven.connected.saturating_duration_since(received);
        let device = proven.device.saturating_duration_since(proven.connected);
        let checks = proven.checked.saturating_duration_since(proven.device);
        metrics::attach_seconds(AttachPhase::Connect, connect);
        metrics::attach_seconds(AttachPhase::Device, device);
        metrics::attach_seconds(AttachPhase::Checks, checks);
        metrics::attach_seconds(AttachPhase::Total, received.elapsed());
        wire::AttachTimes {
            connect_us: micros(connect),
            device_us: micros(device),
            checks_us: micros(checks),
        }
    }

    /// Takes the portals off the record over which nothing can have been written, since none was ever connected.
    async fn note_connected(
        &self,
        mut entry: Entry,
        changed: bool,
        view: &SubsystemView,
        written_before: &BTreeSet<Portal>,
    ) -> Result<(), LedgerError> {
        let mut written: BTreeSet<Portal> = self.dials.running();
        written.extend(view.controllers.iter().filter_map(|controller| controller.portal()));
        written.retain(|portal| entry.may_have_written.contains(portal));
        written.extend(written_before);
        let written: Vec<Portal> = written.into_iter().collect();
        if entry.may_have_written == written && !changed {
            return Ok(());
        }
        entry.may_have_written = written;
        self.keep(&entry).await
    }

    /// After a failure. Where it left nothing, nothing was written over what it had made: nobody was told to use the
    /// device. That this node was registered once is forgotten only where it took that back itself: what somebody
    /// else took away is a preemption, and stays one.
    async fn note_failed(&self, entry: Entry, given_back: bool, written: Option<BTreeSet<Portal>>) {
        let mut noted = entry.clone();
        if given_back {
            noted.registered = None;
        }
        if let Some(written) = written {
            noted.may_have_written = written.into_iter().collect();
        }
        if noted != entry
            && let Err(error) = self.keep(&noted).await
        {
            // The record then claims more than can have been written, or a preemption that was none: safe.
            tracing::error!(volume = %self.id, error = %Causes(&error), "cannot note how the attach failed");
        }
    }

    /// Takes away what a failed attach made; whether it is proven that no controller of the subsystem is left.
    async fn undo(&self, made: Vec<Doomed>) -> bool {
        self.dials.call_back();
        let quiet = timeout(CALL_BACK, self.dials.quiet()).await.is_ok();
        for (doomed, gone) in self.delete(made).await {
            if let Err(error) = gone {
                tracing::error!(
                    volume = %self.id, controller = %doomed.target.controller, error = %Causes(&error),
                    "a failed attach could not take away what it made"
                );
            }
        }
        match self.look().await {
            Ok(view) => {
                self.report(&view);
                quiet && view.is_proven_absent()
            }
            Err(_) => false,
        }
    }
}

/// Portals that may have been written over before this attach, under a grant that has not ended.
fn written_before(before: Option<&Entry>, boot_id: &str) -> BTreeSet<Portal> {
    let open = before.filter(|entry| !entry.ended && entry.boot_id == boot_id);
    open.map(|entry| entry.may_have_written.iter().copied().collect()).unwrap_or_default()
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// While it lives, the volume counts as being connected.
struct UnderWay<'a, H: Host> {
    volume: &'a Volume<H>,
}

impl<H: Host> Drop for UnderWay<'_, H> {
    fn drop(&mut self) {
        self.volume.set_activity(Activity::None);
    }
}

/// One attach, between its first connect and its proof.
struct Run<'a, H> {
    volume: &'a Volume<H>,
    grant: &'a Grant,
    /// Up to which generation this node was registered under the epoch, before this attach.
    registered: Option<u32>,
    /// Whether the target was asked to register this node.
    reserving: bool,
    expectation: Expectation,
    deadline: Instant,
    /// Connects that were under way before: what they make is not this attach's.
    inherited: BTreeSet<Portal>,
    made: Vec<Doomed>,
    failures: BTreeMap<Portal, Failure>,
    /// Since when no connect has been under way.
    connected: Option<Instant>,
    /// When the first of several connects ended while others went on.
    first_ended: Option<Instant>,
    /// Since when the structural clauses hold.
    device: Option<Instant>,
    contradicted: Option<Instant>,
    /// Which events are worth a look. A connect that ends wakes the attach by itself.
    interest: Interest,
}

struct Failure {
    text: String,
    /// Whether it was over the secret.
    authentication: bool,
    pause: Duration,
    again: Instant,
}

impl<'a, H: Host> Run<'a, H> {
    fn new(volume: &'a Volume<H>, grant: &'a Grant, registered: Option<u32>, deadline: Instant) -> Self {
        volume.dials.take_ended();
        Self {
            volume,
            grant,
            registered,
            reserving: false,
            expectation: volume.expectation(grant),
            deadline,
            inherited: volume.dials.running(),
            made: Vec::new(),
            failures: BTreeMap::new(),
            connected: None,
            first_ended: None,
            device: None,
            contradicted: None,
            interest: Interest::default(),
        }
    }

    /// Goes on until the whole predicate holds; else the clause that failed, at the deadline or once it is clear that
    /// it does not heal. Cancel safe: connects go on by themselves and are not lost sight of.
    async fn until_proven(&mut self) -> Result<Proven, wire::Unready> {
        // Heard from before the first look on, so that nothing falls between.
        let mut events = self.volume.events();
        let mut dialled = self.volume.dials.changes();
        loop {
            // The look covers what has happened so far.
            events.clear();
            dialled.mark_unchanged();
            let unready = match self.volume.look().await {
                Ok(view) => match self.step(view).await {
                    Ok(proven) => return Ok(*proven),
                    Err(unready) => unready,
                },
                Err(error) => not_looked(&error),
            };
            let now = Instant::now();
            if now >= self.deadline || self.is_contradicted(now, unready.heals) {
                return Err(self.explain(unready));
            }
            self.rest(&mut events, &mut dialled).await;
        }
    }

    /// Waits until a look may show something new. While connects are in the kernel only their end does: looking
    /// meanwhile, for many volumes at once, takes the CPU that they need.
    async fn rest(&mut self, events: &mut Events, dialled: &mut watch::Receiver<u64>) {
        loop {
            let connecting = !self.volume.dials.running().is_empty();
            let now = Instant::now();
            let wake = self.next_wake(now, connecting);
            // With a portal that does not answer, what the others have brought is enough after a while.
            let listening =
                !connecting || self.first_ended.is_some_and(|first| now >= self.patient_until(first));
            tokio::select! {
                () = events.concerning(&self.interest), if listening => return,
                _ = dialled.changed() => {
                    if !self.volume.dials.are_running() {
                        return;
                    }
                    self.first_ended.get_or_insert(Instant::now());
                }
                () = sleep_until(wake) => return,
            }
        }
    }

    /// One round: connect what is missing, judge what is there.
    async fn step(&mut self, view: Look) -> Result<Box<Proven>, NotYet> {
        self.note_ended();
        self.dial(&view);
        self.interest = Interest::in_view(&view);
        self.volume.report(&view);
        let now = Instant::now();
        let running = self.volume.dials.running();
        if running.is_empty() {
            self.connected.get_or_insert(now);
        } else {
            self.connected = None;
        }
        let selected = match select(&view, &self.expectation) {
            Ok(selected) => selected,
            Err(unready) => {
                self.device = None;
                return Err(NotYet::from(unready));
            }
        };
        let device = *self.device.get_or_insert(now);
        let complete = selected.live_paths.len() == self.grant.portals.len();
        if !complete && now < self.patient_until(device) {
            return Err(NotYet::heals(clause::failed(
                clause::CONNECT,
                "the other portals are still waited for",
            )));
        }
        let limit = self.volume.shared.times.check.min(self.deadline.saturating_duration_since(now));
        match self.volume.check(&self.expectation, limit).await {
            Ok(Ok(facts)) => Ok(Box::new(Proven {
                registered: self.reserve(&facts).await?,
                view,
                facts,
                connected: self.connected.unwrap_or(device).min(device),
                device,
                checked: Instant::now(),
            })),
            Ok(Err(unready)) => Err(NotYet::from(unready)),
            Err(error) => Err(NotYet::heals(clause::failed(clause::LOOK, error.line()))),
        }
    }

    /// Registers and holds where the grant says so; the generation of the report that shows it.
    async fn reserve(&mut self, facts: &ReadyFacts) -> Result<Option<u32>, NotYet> {
        let Some(key) = self.grant.reserve else { return Ok(None) };
        self.reserving = true;
        match self.volume.hold(facts.selected.dev, key, self.registered).await {
            Ok(report) => {
                self.volume.note_held();
                Ok(Some(report.generation))
            }
            Err(error) => Err(NotYet { unready: reserve::unready(&error), heals: error.may_heal() }),
        }
    }

    fn note_ended(&mut self) {
        for (portal, dialled) in self.volume.dials.take_ended() {
            match dialled {
                Dialled::Made(target) if !self.inherited.contains(&portal) => {
                    self.failures.remove(&portal);
                    self.made.push(Doomed { target, portal: portal.to_string() });
                }
                Dialled::Made(_) | Dialled::Adopted => drop(self.failures.remove(&portal)),
                Dialled::Failed(error) => {
                    let text = Causes(error.as_ref()).to_string();
                    tracing::warn!(volume = %self.volume.id, %portal, error = text, "cannot connect");
                    let before = self.failures.get(&portal).map(|failure| failure.pause);
                    let pause = before.map_or(RETRY.0, |pause| (pause * 2).min(RETRY.1));
                    // What will not change by itself soon is not hurried.
                    let pause = match error.failure() {
                        Some(ConnectFailure::Unreachable | ConnectFailure::Rejected) | None => pause,
                        Some(_) => RETRY.1,
                    };
                    let authentication = error.is_authentication();
                    let again = Instant::now() + pause;
                    self.failures.insert(portal, Failure { text, authentication, pause, again });
                }
            }
            self.inherited.remove(&portal);
        }
    }

    fn dial(&mut self, view: &SubsystemView) {
        let running = self.volume.dials.running();
        let wanted = Want::Connected(&self.grant.portals);
        let now = Instant::now();
        for step in plan(view, self.volume.host_nqn(), &running, wanted).steps {
            let Step::Connect(portal) = step else { continue };
            if self.failures.get(&portal).is_some_and(|failure| now < failure.again) {
                continue;
            }
            self.volume.dials.start(&self.volume.shared.host, self.volume.connect_request(portal));
        }
    }

    /// How long to wait without an event. The kernel tells of a head, but not of a further path under it (hidden disks
    /// have no events), so right after the last connect it is short, and grows with what has been waited.
    fn pause(&self, now: Instant, connecting: bool) -> Duration {
        let longest = self.volume.shared.times.poll;
        match self.connected {
            Some(connected) if !connecting => {
                (now.saturating_duration_since(connected) / 2).clamp(SHORTEST_PAUSE.min(longest), longest)
            }
            _ => longest * CONNECTING_POLL,
        }
    }

    /// Until when portals that are missing are waited for, once the device is there.
    fn patient_until(&self, device: Instant) -> Instant {
        self.first_ended.map_or(device, |first| first.min(device)) + self.volume.shared.times.stragglers
    }

    fn is_contradicted(&mut self, now: Instant, heals: bool) -> bool {
        if heals || !self.volume.dials.running().is_empty() {
            self.contradicted = None;
            return false;
        }
        now >= *self.contradicted.get_or_insert(now) + CONTRADICTED
    }

    /// The next moment at which something may have to be done although nothing was heard.
    fn next_wake(&self, now: Instant, connecting: bool) -> Instant {
        let stragglers = self.device.or(self.first_ended).map(|device| self.patient_until(device));
        let retries = self.failures.values().map(|failure| failure.again);
        let contradicted = self.contradicted.map(|since| since + CONTRADICTED);
        let poll = now + self.pause(now, connecting);
        let soonest = stragglers.into_iter().chain(retries).chain(contradicted).filter(|at| *at > now).min();
        soonest.map_or(poll, |at| at.min(poll)).min(self.deadline)
    }

    /// The failed clause with what is known about the portals that could not be connected.
    fn explain(&self, unready: NotYet) -> wire::Unready {
        let mut reasons: Vec<String> = self.failures.values().map(|failure| failure.text.clone()).collect();
        let running = self.volume.dials.running();
        reasons.extend(running.iter().map(|portal| format!("connect to {portal}: no answer yet")));
        let mut unready = unready.unready;
        let none_live = self.connected.is_some() && self.device.is_none() && self.made.is_empty();
        if none_live && !self.failures.is_empty() && self.failures.values().all(|one| one.authentication) {
            unready.clause = clause::AUTHENTICATION.to_owned();
        }
        if !reasons.is_empty() {
            unready.message = format!("{}; {}", unready.message, reasons.join("; "));
        }
        unready
    }
}

/// Why one round did not prove it.
struct NotYet {
    unready: wire::Unready,
    heals: bool,
}

impl NotYet {
    fn heals(unready: wire::Unready) -> Self {
        Self { unready, heals: true }
    }
}

impl From<Unready> for NotYet {
    fn from(unready: Unready) -> Self {
        Self { unready: clause::unready(&unready), heals: unready.may_heal }
    }
}

fn not_looked(error: &SysfsError) -> NotYet {
    NotYet::heals(clause::failed(clause::LOOK, Causes(error)))
}
