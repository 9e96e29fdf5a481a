//! The watch: what happens to volumes when nobody asks.
//!
//! Comes in: events of the kernel, and the passing of time. Goes out: states on the board.
//!
//! Always holds: an event is only a reason to observe. From time to time everything is observed without one,
//! more rarely with direct reads, and missing paths are repaired. No observation waits for a device or a
//! target.

use std::future::Future;
use std::time::Duration;

use cleat_host::Portal;
use cleat_host::uevents::{HostEvent, UeventListener, Uevents};
use cleat_runtime::exit::Causes;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::link::Link;
use crate::volume::host::Host;
use crate::volume::observe::judge::Activity;
use crate::volume::{Fleet, Volume};

/// Shortest pause between two observations because of events, which come in storms; and how many times as
/// long as an observation it is at least. Operations under way observe by themselves and must not be slowed
/// down.
const CALM: (Duration, u32) = (Duration::from_millis(200), 20);
/// How long the last note of connections may take when the agent stops.
const LAST_NOTE: Duration = Duration::from_secs(2);
/// Volumes whose devices a sweep reads in parallel.
const SIDE_BY_SIDE: usize = 8;

/// Observes all volumes of a fleet, by events and by time.
pub struct Watch<H> {
    fleet: Fleet<H>,
    events: Option<UeventListener>,
    /// In a task of its own: it must not lag behind when a controller is deleted.
    _hearing: AbortOnDropHandle<()>,
}

impl<H: Host> Watch<H> {
    /// Watches by events and by time; where events cannot be received, by time alone. Events count from now on, although it
    /// looks at nothing before it runs.
    pub fn new(fleet: Fleet<H>) -> Self {
        let shared = fleet.shared();
        let events = shared.uevents.as_ref().map(Uevents::listen);
        let hearing = shared.disconnects.listen(shared.uevents.as_ref());
        Self { fleet, events, _hearing: hearing }
    }

    /// Watches until asked to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut sweep = interval(self.fleet.shared().times.sweep);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look_at: Option<Instant> = None;
        let mut calm_until = Instant::now();
        // Work that asks devices and targets is not waited for: one that does not answer would hide what
        // happens elsewhere.
        let (mut examining, mut reasserting) = (Beside::default(), Beside::default());
        let mut keeping = Beside::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = next(&mut self.events) => {
                    if self.heard(event) {
                        look_at.get_or_insert(Instant::now().max(calm_until));
                    }
                }
                () = at(look_at) => {
                    look_at = None;
                    let began = Instant::now();
                    self.observe().await;
                    calm_until = Instant::now() + CALM.0.max(began.elapsed() * CALM.1);
                    reasserting.begin(|| after_events(self.fleet.clone()));
                }
                _ = sweep.tick() => {
                    self.observe().await;
                    examining.begin(|| examine_all(self.fleet.clone()));
                    keeping.begin(|| keep_connections(self.fleet.clone()));
                }
                () = examining.end() => {}
                () = reasserting.end() => {}
                () = keeping.end() => {}
            }
        }
        if timeout(LAST_NOTE, self.fleet.keep_connections()).await.is_err() {
            tracing::warn!("which connections there are could not be noted in time for the next process");
        }
    }

    /// Takes an event; true where it may concern a volume.
    fn heard(&mut self, event: Option<HostEvent>) -> bool {
        match event {
            Some(HostEvent::Device(device)) => {
                self.fleet.doubt_registration(&device.name);
                device.name.starts_with("nvme") || device.name.starts_with("dm-")
            }
            Some(HostEvent::Overrun) => {
                self.fleet.volumes().iter().for_each(|volume| volume.doubt_registration());
                true
            }
            None => {
                tracing::error!("no more events from the kernel; reading its state only from time to time");
                self.events = None;
                false
            }
        }
    }

    async fn observe(&self) {
        if let Err(error) = self.fleet.sweep().await {
            tracing::error!(error = %Causes(&error), "cannot read the kernel's state");
        }
    }
}

/// What the next process of the agent needs to know of this one's connections.
async fn keep_connections<H: Host>(fleet: Fleet<H>) {
    fleet.keep_connections().await;
}

/// What must not wait for the next sweep: a target that was restarted admits everybody who connects until its
/// registrants have come back.
async fn after_events<H: Host>(fleet: Fleet<H>) {
    let link = fleet.link_now();
    let doubtful = fleet.volumes().into_iter().filter(|volume| volume.registration_is_doubtful());
    futures_util::stream::iter(doubtful)
        .for_each_concurrent(SIDE_BY_SIDE, |volume| async move { volume.look_after_registration(link).await })
        .await;
}

/// What no event shows: whether devices can still be read, which paths are missing, which records may go. A
/// search of the whole machine is made once for all volumes.
async fn examine_all<H: Host>(fleet: Fleet<H>) {
    let (link, began) = (fleet.link_now(), Instant::now());
    for volume in fleet.volumes() {
        // The kernel may be deleting for a long time: nothing else waits for it.
        if volume.has_leftovers() {
            fleet.tasks().spawn(volume.take_leftovers_away());
        }
    }
    let volumes = futures_util::stream::iter(fleet.volumes());
    volumes
        .for_each_concurrent(SIDE_BY_SIDE, |volume| async move { volume.examine(link, began).await })
        .await;
}

/// Work beside the watch, in a task of its own, one of its kind at a time; it ends with the watch.
#[derive(Default)]
struct Beside(Option<AbortOnDropHandle<()>>);

impl Beside {
    /// Begins it, unless it is running.
    fn begin<F: Future<Output = ()> + Send + 'static>(&mut self, begin: impl FnOnce() -> F) {
        self.0.get_or_insert_with(|| AbortOnDropHandle::new(tokio::spawn(begin())));
    }

    /// Waits for its end; for ever where it is not running. Cancel safe.
    async fn end(&mut self) {
        let ended = match &mut self.0 {
            Some(going_on) => going_on.await,
            None => std::future::pending().await,
        };
        self.0 = None;
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            // A watch that has lost a part of itself is useless: the agent ends, and is started again.
            std::panic::resume_unwind(panic);
        }
    }
}

impl<H: Host> Volume<H> {
    /// Judges the whole predicate of a granted volume that no operation is changing, and repairs its paths.
    async fn examine(&self, link: &watch::Receiver<Link>, began: Instant) {
        let idle = || self.memory().activity == Activity::None && self.gate.holder().is_none();
        if !idle() {
            return;
        }
        self.retire(self.shared.times.retain).await;
        self.look_at_staging(self.shared.times.judge).await;
        let Some(grant) = self.granted().await else { return };
        // It belongs to this very sweep.
        let Some(told) = self.reported_state() else { return };
        if told.paths.is_empty() {
            return self.revive(link).await;
        }
        let due = self.memory().judged.is_due(self.shared.times.judge);
        if due {
            self.judge_fully(&self.expectation(&grant), began, self.shared.times.sweep_check).await;
            if let Some(view) = self.last_observation() {
                self.bring_times_up_to_date(&view).await;
                self.let_found_heads_stay(&view).await;
                self.look_at_held_again().await;
                self.report(&view);
            }
        }
        if grant.reserve.is_some() && self.registration_is_due(self.shared.times.judge) {
            self.look_after_registration(link).await;
        }
        let is_there = |portal: &Portal| {
            let text = portal.to_string();
            told.paths.iter().any(|path| path.portal == text)
        };
        if !grant.portals.iter().all(is_there) {
            self.repair(link).await;
        }
    }
}

async fn next(events: &mut Option<UeventListener>) -> Option<HostEvent> {
    match events {
        Some(events) => events.next().await,
        None => std::future::pending().await,
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {

    use crate::volume::state::VolumePhase;

    use super::*;
    use crate::name::VolumeId;
    use crate::testing::agent::{Agent, Machine, grant, volume};
    use crate::volume::directive::{Ask, Directive};
    use crate::volume::host::AtTarget;

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn what_happens_is_seen_while_a_device_that_is_judged_does_not_answer() {
        let (machine, agent) = Machine::holding(1, &[1, 2]).await;
        let known = agent.fleet.volumes().remove(0);
        known.memory().judged.make_due();
        machine.kernel.change(|world| world.reads_hang = true);
        let stop = CancellationToken::new();
        let watching = tokio::spawn(Watch::new(agent.fleet.clone()).run(stop.clone()));
        let seen = async {
            while known.judging.try_lock().is_ok() {
                tokio::task::yield_now().await;
            }
            machine.kernel.change(|world| world.set_state(2, "connecting"));
            while agent.fleet.shared().board.get(&volume()).unwrap().phase != VolumePhase::Degraded {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, seen).await.expect("the path that was lost is seen");
        stop.cancel();
        timeout(LONG, watching).await.expect("it stops").unwrap();
    }

    /// How often everything, one volume, and the whole machine are looked at in a sweep that judges this many volumes.
    async fn looks(volumes: usize) -> (u32, u32, u32, u32) {
        let machine = Machine::new();
        let agent = Agent::with_stopped_clock(&machine.kernel, machine.dir.path());
        for number in 0..volumes {
            let id = VolumeId::parse(&format!("v{number}")).unwrap();
            let ask = Ask::Attach { grant: grant(&[1, 2]), secret: None, deadline: Instant::now() + LONG };
            agent.submit(&Directive { volume: id.clone(), ..agent.directive(1, ask) });
            agent.result().await;
            let (known, target) = (agent.fleet.volume(&id), format!("/pods/{number}/volume"));
            let dev = known.memory().dead.number().expect("it has a device");
            machine
                .kernel
                .change(|world| drop(world.targets.insert(target.clone().into(), AtTarget::Device(dev))));
            known.note_published(target.as_ref()).await;
            known.memory().judged.make_due();
        }
        machine
            .kernel
            .change(|world| (world.topologies, world.views, world.scans, world.checks) = (0, 0, 0, 0));
        tokio::time::advance(Duration::from_secs(1)).await;
        agent.fleet.sweep().await.unwrap();
        examine_all(agent.fleet.clone()).await;
        let world = machine.kernel.world();
        (world.topologies, world.views, world.scans, world.checks)
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_volumes_are_judged_the_machine_is_looked_at_once() {
        assert_eq!(looks(1).await, (1, 0, 1, 1));
        assert_eq!(looks(20).await, (1, 0, 1, 20));
    }
}
