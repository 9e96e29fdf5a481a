//! One attach between its first connect and its proof: connect what is missing, observe, judge, and again.
//!
//! Comes in: a grant and a deadline. Goes out: what was proven and when, or the clause that failed with the
//! state of each portal; and what it connected, for the caller to delete again.
//!
//! Always holds: each portal is connected once at a time, and less and less often while it fails. A connect
//! that was under way before does not belong to this attach. What is proven held on one observation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cleat_host::Portal;
use cleat_host::fabrics::ConnectFailure;
use cleat_host::readiness::{Expectation, ReadyFacts, Unready, select};
use cleat_host::sysfs::{SubsystemView, SysfsError};
use cleat_runtime::exit::Causes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::ledger::Grant;
use crate::volume::attach::connects::{ConnectEnd, Why};
use crate::volume::attach::preconditions::unmet;
use crate::volume::clause::FailedClause;
use crate::volume::host::Host;
use crate::volume::observe::events::{Events, Interest};
use crate::volume::plan::{Doomed, PlannedStep, Want, plan};
use crate::volume::reservation;
use crate::volume::{Observation, Volume, clause};

/// First and longest pause before a portal that failed is tried again: a target that restarts, or whose
/// access list is just being changed, is reached soon; one that is down is not flooded.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// How long a clause that does not heal by itself must go on failing before it counts: sysfs shows a
/// namespace that is being made for some milliseconds.
const CONTRADICTED: Duration = Duration::from_millis(300);
/// While connects are under way, an attach observes this many times less often without an event.
const CONNECTING_POLL: u32 = 40;
/// Shortest time between two observations without an event: scanning a namespace takes the kernel some milliseconds.
const SHORTEST_PAUSE: Duration = Duration::from_millis(8);

/// What was proven, and when each part was there.
pub(in crate::volume) struct Proven {
    pub(in crate::volume) view: Observation,
    pub(in crate::volume) facts: ReadyFacts,
    /// The generation of the report that shows this node; `None` where the grant is not reserved.
    pub(in crate::volume) registered: Option<u32>,
    pub(in crate::volume) connected: Instant,
    pub(in crate::volume) device: Instant,
    pub(in crate::volume) checked: Instant,
}

/// One attach, between its first connect and its proof.
pub(in crate::volume) struct Run<'a, H> {
    volume: &'a Volume<H>,
    grant: &'a Grant,
    /// The generation at which this node was last seen registered under the epoch, before this attach.
    registered: Option<u32>,
    /// Whether it has asked the target to register this node.
    pub(in crate::volume) reserving: bool,
    expectation: Expectation,
    deadline: Instant,
    /// Connects that were under way before: what they make does not belong to this attach.
    inherited: BTreeSet<Portal>,
    /// Controllers that it has made.
    pub(in crate::volume) made: Vec<Doomed>,
    failures: BTreeMap<Portal, DirectiveFailure>,
    /// Since when no connect has been under way.
    connected: Option<Instant>,
    /// When the first of several connects ended while others went on.
    first_ended: Option<Instant>,
    /// Since when the structural clauses have held.
    device: Option<Instant>,
    contradicted: Option<Instant>,
    /// Which events are worth an observation. A connect that ends wakes the attach by itself.
    interest: Interest,
}

struct DirectiveFailure {
    text: String,
    /// Whether the secret was the cause.
    authentication: bool,
    pause: Duration,
    again: Instant,
}

impl<'a, H: Host> Run<'a, H> {
    pub(in crate::volume) fn new(
        volume: &'a Volume<H>,
        grant: &'a Grant,
        registered: Option<u32>,
        deadline: Instant,
    ) -> Self {
        volume.connects.take_ended();
        // A connect that an earlier attach has called back is wanted again, as this attach's own.
        let asked = |portal| grant.portals.contains(&portal).then(|| volume.connect_request(portal));
        let again = volume.connects.take_over(asked);
        Self {
            volume,
            grant,
            registered,
            reserving: false,
            expectation: volume.expectation(grant),
            deadline,
            inherited: volume.connects.running().difference(&again).copied().collect(),
            made: Vec::new(),
            failures: BTreeMap::new(),
            connected: None,
            first_ended: None,
            device: None,
            contradicted: None,
            interest: Interest::default(),
        }
    }

    /// Goes on until the whole predicate holds; else returns the clause that failed, at the deadline or once
    /// it clearly does not heal. Cancel safe: connects go on by themselves and are not forgotten.
    pub(in crate::volume) async fn until_proven(&mut self) -> Result<Proven, FailedClause> {
        // Listens from before the first observation on, so that no event is missed.
        let mut events = self.volume.events();
        let mut connect_end = self.volume.connects.changes();
        loop {
            // The observation covers all events so far.
            events.clear();
            connect_end.mark_unchanged();
            let unready = match self.volume.observe().await {
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
            self.rest(&mut events, &mut connect_end).await;
        }
    }

    /// Waits until an observation may show something new. While connects are in the kernel, only their end
    /// does: observing meanwhile, for many volumes at once, takes the CPU that they need.
    async fn rest(&mut self, events: &mut Events, connect_end: &mut watch::Receiver<u64>) {
        loop {
            let connecting = !self.volume.connects.running().is_empty();
            let now = Instant::now();
            let wake = self.next_wake(now, connecting);
            // Where one portal does not answer, what the others have brought is enough after a while.
            let listening =
                !connecting || self.first_ended.is_some_and(|first| now >= self.patient_until(first));
            tokio::select! {
                () = events.concerning(&self.interest), if listening => return,
                _ = connect_end.changed() => {
                    if !self.volume.connects.are_running() {
                        return;
                    }
                    self.first_ended.get_or_insert(Instant::now());
                }
                () = sleep_until(wake) => return,
            }
        }
    }

    /// One round: connects what is missing, judges what is there.
    async fn step(&mut self, view: Observation) -> Result<Box<Proven>, NotYet> {
        let identity = &self.volume.shared.identity;
        if let Some(unready) = unmet(&view, self.grant, &identity.host_nqn, identity.host_id) {
            self.volume.report(&view);
            return Err(NotYet { unready, heals: false });
        }
        self.note_ended();
        self.connect_missing(&view);
        self.interest = Interest::in_view(&view);
        self.volume.report(&view);
        let now = Instant::now();
        let running = self.volume.connects.running();
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

    /// Registers and reserves where the grant asks for it; returns the generation of the report that shows
    /// it.
    async fn reserve(&mut self, facts: &ReadyFacts) -> Result<Option<u32>, NotYet> {
        let Some(key) = self.grant.reserve else { return Ok(None) };
        self.reserving = true;
        match self.volume.hold(facts.selected.dev, key, self.registered).await {
            Ok(report) => {
                self.volume.note_held();
                Ok(Some(report.generation))
            }
            Err(error) => Err(NotYet { unready: reservation::unready(&error), heals: error.may_heal() }),
        }
    }

    fn note_ended(&mut self) {
        for (portal, connect_end) in self.volume.connects.take_ended() {
            match connect_end {
                ConnectEnd::Made(target) if !self.inherited.contains(&portal) => {
                    self.failures.remove(&portal);
                    self.made.push(Doomed { target, portal: portal.to_string() });
                }
                ConnectEnd::Made(_) | ConnectEnd::Adopted => drop(self.failures.remove(&portal)),
                ConnectEnd::Failed(error) => {
                    let text = Causes(error.as_ref()).to_string();
                    let before = self.failures.get(&portal).map(|failure| failure.pause);
                    if before.is_none() {
                        tracing::warn!(volume = %self.volume.id, %portal, error = text, "cannot connect");
                    } else {
                        tracing::debug!(volume = %self.volume.id, %portal, error = text, "cannot connect");
                    }
                    let pause = before.map_or(RETRY.0, |pause| (pause * 2).min(RETRY.1));
                    // A refusal that will not change soon is not tried again in haste.
                    let pause = match error.failure() {
                        Some(ConnectFailure::Unreachable | ConnectFailure::Rejected) | None => pause,
                        Some(_) => RETRY.1,
                    };
                    let authentication = error.is_authentication();
                    let again = Instant::now() + pause;
                    self.failures.insert(portal, DirectiveFailure { text, authentication, pause, again });
                }
            }
            self.inherited.remove(&portal);
        }
    }

    fn connect_missing(&mut self, view: &SubsystemView) {
        let running = self.volume.connects.running();
        let wanted = Want::Connected(&self.grant.portals);
        let now = Instant::now();
        for step in plan(view, self.volume.host_nqn(), &running, wanted).steps {
            let PlannedStep::Connect(portal) = step else { continue };
            if self.failures.get(&portal).is_some_and(|failure| now < failure.again) {
                continue;
            }
            self.volume.connects.start(&self.volume.shared, self.volume.connect_request(portal), Why::Attach);
        }
    }

    /// How long to wait without an event. The kernel sends one for a head, but not for a further path under
    /// it (hidden disks have no events). So the pause is short right after the last connect, and grows with
    /// the time waited.
    fn pause(&self, now: Instant, connecting: bool) -> Duration {
        let longest = self.volume.shared.times.poll;
        match self.connected {
            Some(connected) if !connecting => {
                (now.saturating_duration_since(connected) / 2).clamp(SHORTEST_PAUSE.min(longest), longest)
            }
            _ => longest * CONNECTING_POLL,
        }
    }

    /// Until when missing portals are waited for, once the device is there.
    fn patient_until(&self, device: Instant) -> Instant {
        self.first_ended.map_or(device, |first| first.min(device)) + self.volume.shared.times.stragglers
    }

    fn is_contradicted(&mut self, now: Instant, heals: bool) -> bool {
        if heals || !self.volume.connects.running().is_empty() {
            self.contradicted = None;
            return false;
        }
        now >= *self.contradicted.get_or_insert(now) + CONTRADICTED
    }

    /// The next moment at which something may have to be done without an event.
    fn next_wake(&self, now: Instant, connecting: bool) -> Instant {
        let stragglers = self.device.or(self.first_ended).map(|device| self.patient_until(device));
        let retries = self.failures.values().map(|failure| failure.again);
        let contradicted = self.contradicted.map(|since| since + CONTRADICTED);
        let poll = now + self.pause(now, connecting);
        let soonest = stragglers.into_iter().chain(retries).chain(contradicted).filter(|at| *at > now).min();
        soonest.map_or(poll, |at| at.min(poll)).min(self.deadline)
    }

    /// The failed clause, with the reason for each portal that could not be connected.
    fn explain(&self, unready: NotYet) -> FailedClause {
        let mut reasons: Vec<String> = self.failures.values().map(|failure| failure.text.clone()).collect();
        reasons.extend(self.volume.connects.in_words());
        let queued = self.volume.shared.queue.length();
        if queued > 0 {
            reasons.push(format!("{queued} connects of this node wait for the kernel"));
        }
        let mut unready = unready.unready;
        let none_live = self.connected.is_some() && self.device.is_none() && self.made.is_empty();
        if none_live && !self.failures.is_empty() && self.failures.values().all(|one| one.authentication) {
            unready.clause = clause::AUTHENTICATION;
        }
        if !reasons.is_empty() {
            unready.message = format!("{}; {}", unready.message, reasons.join("; "));
        }
        unready
    }
}

/// Why one round did not prove the device usable.
struct NotYet {
    unready: FailedClause,
    heals: bool,
}

impl NotYet {
    fn heals(unready: FailedClause) -> Self {
        Self { unready, heals: true }
    }
}

impl From<Unready> for NotYet {
    fn from(unready: Unready) -> Self {
        Self { unready: FailedClause::from(&unready), heals: unready.may_heal }
    }
}

fn not_looked(error: &SysfsError) -> NotYet {
    NotYet::heals(clause::failed(clause::LOOK, Causes(error)))
}
