//! Has the kernel give up a path that is dead before its keep-alive has run out (`--early-path-reset`).
//!
//! Comes in: the kernel's count of retransmission timeouts, then what it has unacknowledged, probes and links.
//! Goes out: resets of controllers, each with a line in the log; each refusal, with its reason, once.
//!
//! A path that drops packets in silence holds up what was sent over it until the keep-alive has run out: 14 s
//! at the default. A reset has the kernel send it on another path at once. It is a trade (docs/decisions/0021): the
//! target may still carry out what it had received on the dead path, after what came on the other one.
//!
//! Only a path on which somebody waits is looked at: where nothing is unacknowledged, the keep-alive is soon
//! enough. So at rest this costs one small read each 100 ms, and no target sees a probe.
//!
//! Always holds: `verdict` decides, on what was read after the suspicion began. A path is reset and never
//! deleted. What may have been on its way is noted before the reset, so that no detach takes the connection
//! for unbroken. A reset that hangs holds up nothing here: it is on a worker.

mod probes;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cleat_host::Portal;
use cleat_host::fabrics::{ExactController, ResetEnd, ResetError};
use cleat_host::sysfs::{AnaState, Controller, NamespaceKind, SubsystemView};
use cleat_runtime::exit::Causes;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::metrics::{self, EarlyReset};
use crate::volume::host::{Host, HostError};
use crate::volume::observe::judge::Activity;
use crate::volume::{Fleet, Volume, VolumeContext};
use probes::Probes;
use verdict::{AT_ONCE, Budget, OtherPath, PROBES, PathFacts, Refusal, Signs, TIMEOUTS};

/// How often the count of timeouts is read, and everything else while an address is suspected.
const LOOK: Duration = Duration::from_millis(100);
/// For how long an address is suspected: the keep-alive has taken over by then.
const SUSPECTED: Duration = Duration::from_secs(15);
/// How often a suspicion that is over is looked at, until its cause is gone.
const OVER: Duration = Duration::from_secs(1);
/// How often the paths over an address are looked at that is to be given up.
const AGAIN: Duration = Duration::from_millis(500);
/// How often it is learned over which interface an address is reached.
const LEARN: Duration = Duration::from_secs(30);
/// How long a reset is waited for. By then I/O has long been on the other path; the kernel may go on for a
/// minute.
const RESET: Duration = Duration::from_secs(10);
/// The most other addresses that are probed.
const MOST_PROBED: usize = 8;

/// Looks for paths that are dead, and has the kernel give them up.
pub struct DeadPaths<H> {
    fleet: Fleet<H>,
    began: Instant,
    /// The kernel's count of timeouts, as it was read last; `None` where it could not be.
    counted: Option<u64>,
    suspects: BTreeMap<IpAddr, Suspicion>,
    probes: Probes,
    budget: Budget,
    learned: Option<Instant>,
    looked: Option<Instant>,
    /// A failure to read has been logged.
    blind: bool,
}

/// A storage address on which sent data is not acknowledged.
#[derive(Debug)]
struct Suspicion {
    since: Instant,
    /// How often a connection has timed out in a row, and to which port.
    timeouts: u32,
    portal: Portal,
    /// The most that was seen at once.
    signs: Signs,
    given_up: bool,
    /// When its paths were looked at for the last time.
    tried: Option<Instant>,
    /// What was refused, and of which controller, so that it is said once.
    said: BTreeSet<(Option<String>, Refusal)>,
}

/// A path over the address that is given up.
struct Candidate<H> {
    volume: Arc<Volume<H>>,
    target: ExactController,
    portal: Portal,
    in_flight: u64,
    decided: Result<(), Refusal>,
}

impl Suspicion {
    fn is_active(&self) -> bool {
        !self.given_up && self.since.elapsed() < SUSPECTED
    }
}

impl<H: Host> DeadPaths<H> {
    /// Looks at the paths of all volumes of a fleet.
    pub fn new(fleet: Fleet<H>) -> Self {
        Self {
            fleet,
            began: Instant::now(),
            counted: None,
            suspects: BTreeMap::new(),
            probes: Probes::default(),
            budget: Budget::default(),
            learned: None,
            looked: None,
            blind: false,
        }
    }

    /// Looks until asked to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => self.look().await,
            }
        }
    }

    fn shared(&self) -> &Arc<VolumeContext<H>> {
        self.fleet.shared()
    }

    async fn look(&mut self) {
        let counted = self.shared().host.timeouts().await;
        let Some(counted) = self.could_read(counted) else { return };
        let happened = self.counted.replace(counted) != Some(counted);
        if !self.suspects.values().any(Suspicion::is_active) {
            let rests = self.looked.is_some_and(|at| at.elapsed() < OVER);
            if !happened && (self.suspects.is_empty() || rests) {
                return self.learn();
            }
        }
        self.looked = Some(Instant::now());
        let portals = self.portals();
        let wanted = portals.iter().map(Portal::address).collect();
        let read = self.shared().host.unacknowledged(&wanted).await;
        let Some(found) = self.could_read(read) else { return };
        let idle = !self.suspects.values().any(Suspicion::is_active);
        for (address, seen) in &found {
            let Ok(portal) = Portal::from_address(SocketAddr::new(*address, seen.port)) else { continue };
            let suspicion = self.suspects.entry(*address).or_insert_with(|| Suspicion {
                since: Instant::now(),
                timeouts: 0,
                portal,
                signs: Signs::default(),
                given_up: false,
                tried: None,
                said: BTreeSet::new(),
            });
            (suspicion.timeouts, suspicion.portal) = (seen.timeouts, portal);
        }
        let over: Vec<IpAddr> =
            self.suspects.keys().filter(|address| !found.contains_key(*address)).copied().collect();
        over.into_iter().for_each(|address| self.acknowledged(address));
        if idle || self.suspects.is_empty() {
            self.probes.begin_again();
        }
        let active: Vec<IpAddr> =
            self.suspects.iter().filter(|(_, one)| one.is_active()).map(|(address, _)| *address).collect();
        if active.is_empty() {
            return;
        }
        self.probe(&portals);
        for address in active {
            self.judge(address).await;
        }
    }

    /// The answer, or `None` with the failure in the log: once, until it is read again.
    fn could_read<T>(&mut self, read: Result<T, HostError>) -> Option<T> {
        match read {
            Ok(value) => {
                self.blind = false;
                Some(value)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.blind, true) {
                    tracing::error!(
                        error = error.line(),
                        "cannot read what the kernel's TCP has unacknowledged; paths are left to their keep-alive"
                    );
                }
                self.suspects.clear();
                None
            }
        }
    }

    /// Learns from time to time, while all is well, over which interfaces addresses are reached.
    fn learn(&mut self) {
        if self.suspects.is_empty() && self.learned.is_none_or(|at| at.elapsed() >= LEARN) {
            self.learned = Some(Instant::now());
            let addresses: BTreeSet<IpAddr> = self.portals().iter().map(Portal::ip).collect();
            for address in addresses {
                self.shared().host.learn_link(address);
            }
        }
    }

    /// Portals over which this node has paths.
    fn portals(&self) -> BTreeSet<Portal> {
        let mut portals = BTreeSet::new();
        for volume in self.fleet.volumes() {
            let Some(view) = volume.last_observation() else { continue };
            let ours = view.controllers.iter().filter(|one| volume.has(one));
            portals.extend(ours.filter_map(Controller::portal));
        }
        portals
    }

    fn probe(&mut self, portals: &BTreeSet<Portal>) {
        // One of each address.
        let portals: BTreeMap<IpAddr, Portal> = portals.iter().map(|portal| (portal.ip(), *portal)).collect();
        let suspected = self.suspects.values().map(|one| one.portal);
        let others = portals.iter().filter(|(address, _)| !self.suspects.contains_key(*address));
        let wanted: Vec<Portal> =
            suspected.chain(others.map(|(_, portal)| *portal).take(MOST_PROBED)).collect();
        let host = self.fleet.shared().host.clone();
        self.probes.go_on(&host, wanted);
    }

    async fn judge(&mut self, address: IpAddr) {
        let link = self.shared().host.link_trouble(address);
        let others_suspected = self.suspects.keys().any(|other| *other != address && self.looks_dead(*other));
        let now = self.began.elapsed();
        let Some(suspicion) = self.suspects.get_mut(&address) else { return };
        // One that answers some of the time is not dead: a part of a bundle of links is.
        let silent =
            self.probes.silent(address) >= PROBES && !self.probes.answered_since(address, suspicion.since);
        let signs =
            Signs { unacknowledged: suspicion.timeouts >= TIMEOUTS, probe: silent, link: link.is_some() };
        if signs.count() >= suspicion.signs.count() {
            suspicion.signs = signs;
        }
        match verdict::of_address(address, signs, others_suspected, &self.budget, now) {
            // All of sysfs is read for it.
            Ok(()) if suspicion.tried.is_some_and(|at| at.elapsed() < AGAIN) => {}
            Ok(()) => {
                suspicion.tried = Some(Instant::now());
                self.give_up(address, signs).await;
            }
            // Signs come one after the other; whether it stays at one is known at the end.
            Err(Refusal::OneSign) => {}
            Err(refusal) => self.refuse(address, None, refusal),
        }
    }

    /// Whether another address is in trouble as well: a single timeout is enough to leave everything alone.
    fn looks_dead(&self, address: IpAddr) -> bool {
        self.suspects.get(&address).is_some_and(|other| !other.given_up) || self.probes.silent(address) > 0
    }

    /// Resets the paths over an address whose volumes all have another way.
    async fn give_up(&mut self, address: IpAddr, signs: Signs) {
        let topology = match self.shared().host.topology().await {
            Ok(topology) if topology.unreadable.is_empty() => topology,
            Ok(_) | Err(_) => return self.refuse(address, None, Refusal::Unreadable),
        };
        let mut candidates = Vec::new();
        for volume in self.fleet.volumes() {
            let view = topology.view(&volume.subsystem);
            for one in view.controllers.iter().filter(|one| volume.has(one)) {
                let Some(portal) = one.portal().filter(|portal| portal.ip() == address) else { continue };
                let Some(target) = ExactController::of(one, &view.nqn, volume.host_nqn()) else { continue };
                let decided = verdict::of_path(&self.facts(&volume, &view, one));
                let (volume, in_flight) = (volume.clone(), in_flight(&view, one));
                candidates.push(Candidate { volume, target, portal, in_flight, decided });
            }
        }
        // Where somebody waits comes first.
        candidates.sort_by_key(|one| std::cmp::Reverse(one.in_flight));
        let now = self.began.elapsed();
        let mut begun = 0;
        for candidate in candidates {
            let refusal = match candidate.decided {
                Ok(()) if begun < AT_ONCE => {
                    begun += 1;
                    self.begin(candidate, signs);
                    continue;
                }
                Ok(()) => Refusal::TooMany,
                Err(refusal) => refusal,
            };
            self.refuse(address, Some(&candidate), refusal);
        }
        if begun > 0 {
            self.budget.spend(address, now);
            if let Some(suspicion) = self.suspects.get_mut(&address) {
                suspicion.given_up = true;
            }
        }
    }

    fn facts(&self, volume: &Volume<H>, view: &SubsystemView, path: &Controller) -> PathFacts {
        let busy = volume.gate.holder().is_some() || volume.memory().activity != Activity::None;
        let mut others = Vec::new();
        for namespace in &view.namespaces {
            match &namespace.kind {
                NamespaceKind::Head { paths } => {
                    if paths.iter().any(|one| one.controller == path.name) {
                        let rest = paths.iter().filter(|one| one.controller != path.name);
                        let other = rest.filter_map(|one| {
                            let controller = view.controller(&one.controller)?;
                            Some(self.other(path, controller, one.ana_state.as_ref()))
                        });
                        others.push(other.collect());
                    }
                }
                // Without native multipath nothing is sent on another path by a reset.
                NamespaceKind::Bare { controller, .. } if *controller == path.name => others.push(Vec::new()),
                NamespaceKind::Bare { .. } => {}
            }
        }
        PathFacts { live: path.state.is_live(), busy, others }
    }

    fn other(&self, path: &Controller, other: &Controller, ana: Option<&AnaState>) -> OtherPath {
        let address = other.portal().map(|portal| portal.ip());
        let elsewhere = address.is_some() && address != path.portal().map(|portal| portal.ip());
        let answers = |address| self.probes.answers(address) && !self.suspects.contains_key(&address);
        OtherPath {
            live: other.state.is_live() && elsewhere,
            optimized: ana.is_none_or(|state| *state == AnaState::Optimized),
            answers: address.is_some_and(answers),
        }
    }

    /// Begins one reset, in a task of its own.
    fn begin(&self, candidate: Candidate<H>, signs: Signs) {
        let (volume, portal) = (candidate.volume.id.to_string(), candidate.portal);
        let (target, shared) = (candidate.target, self.shared().clone());
        let signs = signs.words();
        tracing::warn!(
            volume, controller = %target.controller, %portal, signs, in_flight = candidate.in_flight,
            "the path is dead and another one is live: resetting it before its keep-alive has run out"
        );
        // From here on its deletion proves nothing of what was on its way.
        shared.disconnects.about_to_reset(target.controller.as_str());
        self.fleet.tasks().spawn(async move {
            let begun = Instant::now();
            let ended = shared.host.reset(&target, RESET).await;
            let (took, controller) = (begun.elapsed(), &target.controller);
            let result = match ended {
                Ok(ResetEnd::Done) => {
                    tracing::info!(volume, %controller, %portal, ?took, "the path was reset");
                    EarlyReset::Done
                }
                Ok(ResetEnd::NotLive(_) | ResetEnd::Gone) => {
                    tracing::info!(volume, %controller, %portal, "the kernel gave the path up by itself");
                    EarlyReset::NotNeeded
                }
                Err(error @ ResetError::Work { .. }) => {
                    tracing::warn!(
                        volume, %controller, %portal, error = %Causes(&error),
                        "the reset goes on in the kernel; I/O does not wait for it"
                    );
                    EarlyReset::Overdue
                }
                Err(error) => {
                    tracing::error!(
                        volume, %controller, %portal, error = %Causes(&error),
                        "cannot reset the path; it is left to its keep-alive"
                    );
                    EarlyReset::Failed
                }
            };
            metrics::early_path_reset(result);
        });
    }

    /// Says once, and counts once, why something is left to its keep-alive.
    fn refuse(&mut self, address: IpAddr, of: Option<&Candidate<H>>, refusal: Refusal) {
        let Some(suspicion) = self.suspects.get_mut(&address) else { return };
        let controller = of.map(|one| one.target.controller.to_string());
        if !suspicion.said.insert((controller.clone(), refusal)) {
            return;
        }
        let volume = of.map(|one| one.volume.id.to_string()).unwrap_or_default();
        let (controller, signs) = (controller.unwrap_or_default(), suspicion.signs.words());
        tracing::warn!(
            %address, volume, controller, signs, reason = refusal.as_str(),
            "the storage address may be dead; its paths are left to their keep-alive"
        );
        metrics::early_path_refusal(refusal.as_str());
    }

    /// A suspicion is over: what was sent is acknowledged, or its connections are gone.
    fn acknowledged(&mut self, address: IpAddr) {
        let Some(suspicion) = self.suspects.get(&address) else { return };
        if !suspicion.given_up && suspicion.signs.count() == 1 {
            self.refuse(address, None, Refusal::OneSign);
        }
        self.suspects.remove(&address);
    }
}

impl<H: Host> Volume<H> {
    /// Whether a controller is the volume's, and this node's.
    fn has(&self, controller: &Controller) -> bool {
        ExactController::of(controller, &self.subsystem, self.host_nqn()).is_some()
    }
}

/// Requests in flight on a controller's paths.
fn in_flight(view: &SubsystemView, controller: &Controller) -> u64 {
    let mut sum = 0;
    for namespace in &view.namespaces {
        if let NamespaceKind::Head { paths } = &namespace.kind {
            let own = paths.iter().filter(|path| path.controller == controller.name);
            sum += own.filter_map(|path| Some(path.counters.as_ref()?.in_flight)).sum::<u64>();
        }
    }
    sum
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "early_reset_tests.rs"]
mod tests;
