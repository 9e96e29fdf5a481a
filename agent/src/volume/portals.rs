//! Which storage addresses answer: checked once for all volumes.
//!
//! Comes in: portals that are to be connected, and how connects ended. Goes out: whether the kernel may get a
//! connect to a portal, or why not.
//!
//! The kernel makes one connect at a time and spends 3 s on a portal that drops packets, so a portal is
//! checked from user space before the kernel gets it. A result counts for the whole address, whatever the
//! port: where nothing answers, nothing will at another port. A port that refuses is an answer of its
//! address.
//!
//! Always holds: one task checks an address that does not answer, less and less often, however many volumes
//! want it. A volume that wants it meanwhile gets the reason at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cleat_host::Portal;
use cleat_host::reach::Reached;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::metrics;
use crate::volume::host::{Host, Later};

/// How long to wait for an answer: room for one repetition of the first packet, which Linux sends after 1 s.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long an answer counts.
const FRESH: Duration = Duration::from_secs(1);
/// How long it is remembered that a portal has answered once.
const KEPT: Duration = Duration::from_secs(600);
/// First and longest pause before a silent address is checked again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// An address that no volume has wanted for this long is not checked any more.
const WANTED: Duration = Duration::from_secs(60);
/// Ports of one address that one round checks: a firewall may drop the packets of the first one alone.
const PORTS: usize = 4;
/// A connect that took the kernel longer than this has held up others: its portal comes last from then on.
const SLOW: Duration = Duration::from_secs(2);

/// The storage addresses of this node. Cheap to clone; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Portals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    changed: watch::Sender<u64>,
}

impl Default for Inner {
    fn default() -> Self {
        Self { table: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

/// What does not answer: an address, or one port of it while others answer.
type Place = (IpAddr, Option<u16>);

#[derive(Debug, Default)]
struct Table {
    answered: BTreeMap<Portal, Instant>,
    silent: BTreeMap<Place, Silence>,
    /// Portals that are being checked now.
    asking: BTreeSet<Portal>,
    /// Portals whose connects have held up the kernel lately.
    slow: BTreeSet<Portal>,
}

#[derive(Debug)]
struct Silence {
    since: Instant,
    reason: String,
    /// The earliest moment of the next check.
    until: Instant,
    pause: Duration,
    /// Portals there that volumes have wanted, and when.
    wanted: BTreeMap<Portal, Instant>,
    /// The portal that was checked last.
    last: Portal,
}

enum Asked {
    Answers,
    Silent(String),
    Wait,
    Begin,
}

impl Table {
    fn address_is_fresh(&self, ip: IpAddr) -> bool {
        self.answered.iter().any(|(portal, at)| portal.ip() == ip && at.elapsed() < FRESH)
    }

    /// The port of the same address, other than this one, that answered last.
    fn witness(&self, portal: Portal) -> Option<Portal> {
        let others = self.answered.iter().filter(|(one, _)| one.ip() == portal.ip() && **one != portal);
        others.max_by_key(|(_, at)| **at).map(|(one, _)| *one)
    }

    fn silence_of(&mut self, portal: Portal) -> Option<(Place, &mut Silence)> {
        let whole = (portal.ip(), None);
        let place = if self.silent.contains_key(&whole) { whole } else { (portal.ip(), Some(portal.port())) };
        self.silent.get_mut(&place).map(|silence| (place, silence))
    }

    /// What to do about a portal that is to be connected.
    fn ask(&mut self, portal: Portal) -> Asked {
        if self.answered.get(&portal).is_some_and(|at| at.elapsed() < FRESH) {
            return Asked::Answers;
        }
        let now = Instant::now();
        if let Some((place, silence)) = self.silence_of(portal) {
            silence.wanted.insert(portal, now);
            if now < silence.until {
                return Asked::Silent(silence.words(place));
            }
        }
        // The first answer of the address is waited for: where there is none, no other port need be checked.
        let others = || self.asking.iter().any(|asked| asked.ip() == portal.ip());
        if self.asking.contains(&portal) || (!self.address_is_fresh(portal.ip()) && others()) {
            return Asked::Wait;
        }
        self.asking.insert(portal);
        Asked::Begin
    }

    /// The portals that this round checks, in turn.
    fn round(&mut self, place: Place) -> Vec<Portal> {
        let Some(silence) = self.silent.get_mut(&place) else { return Vec::new() };
        silence.wanted.retain(|_, at| at.elapsed() <= WANTED);
        let after = silence.wanted.range((Bound::Excluded(silence.last), Bound::Unbounded));
        let in_turn = after.chain(&silence.wanted).map(|(portal, _)| *portal);
        let round: Vec<Portal> = in_turn.take(PORTS.min(silence.wanted.len())).collect();
        silence.last = round.last().copied().unwrap_or(silence.last);
        self.asking.extend(&round);
        round
    }
}

impl Silence {
    fn words(&self, place: Place) -> String {
        let (place, silent) = (name(place), self.since.elapsed().as_secs_f64());
        format!("{place} has not answered for {silent:.1} s: {}", self.reason)
    }
}

fn name((ip, port): Place) -> String {
    port.map_or_else(|| ip.to_string(), |port| SocketAddr::new(ip, port).to_string())
}

impl Portals {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every operation on the table is whole before anything could panic.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is clear whether the kernel may get a connect to this portal: it answered a moment ago.
    ///
    /// # Errors
    /// Why not, as text for a person. Cancel safe.
    pub(super) async fn ask<H: Host>(&self, host: &Arc<H>, portal: Portal) -> Result<(), String> {
        let mut changed = self.0.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let asked = self.table().ask(portal);
            match asked {
                Asked::Answers => return Ok(()),
                Asked::Silent(why) => return Err(why),
                Asked::Wait => {}
                // In a task of its own: others wait for the answer too.
                Asked::Begin => drop(tokio::spawn(self.clone().reach(host.clone(), portal))),
            }
            if changed.changed().await.is_err() {
                return Err("the agent stops".to_owned());
            }
        }
    }

    /// Checks one portal, which is in `asking`.
    fn reach<H: Host>(self, host: Arc<H>, portal: Portal) -> Later<'static, ()> {
        Box::pin(async move {
            let _asking = Asking { portals: self.clone(), portal };
            let reached = host.reach(portal, PATIENCE).await;
            // Where another port has answered, that port shows whether the whole address is silent.
            let witness = if reached == Reached::Answers { None } else { self.table().witness(portal) };
            if let Some(witness) = witness
                && host.reach(witness, PATIENCE).await == Reached::Answers
            {
                self.take(witness, Reached::Answers);
            }
            if let Some((place, since)) = self.take(portal, reached) {
                tokio::spawn(self.keep_asking(host, place, since));
            }
        })
    }

    /// Takes note of what a portal did; returns what became silent with it, if anything.
    fn take(&self, portal: Portal, reached: Reached) -> Option<(Place, Instant)> {
        let (ip, now) = (portal.ip(), Instant::now());
        let mut table = self.table();
        table.answered.retain(|_, at| at.elapsed() < KEPT);
        let begun = match reached {
            Reached::Answers => {
                table.answered.insert(portal, now);
                for place in [(ip, None), (ip, Some(portal.port()))] {
                    if let Some(silence) = table.silent.remove(&place) {
                        let silent = silence.since.elapsed();
                        tracing::info!(address = name(place), ?silent, "the storage address answers again");
                    }
                }
                None
            }
            Reached::Silent(reason) => {
                let place = (ip, table.address_is_fresh(ip).then_some(portal.port()));
                if let Some(silence) = table.silent.get_mut(&place) {
                    if silence.until <= now {
                        silence.pause = (silence.pause * 2).min(PAUSE.1);
                    }
                    (silence.reason, silence.until) = (reason, now + silence.pause);
                    None
                } else {
                    tracing::warn!(
                        address = name(place),
                        reason,
                        "the storage address does not answer; connecting nothing there until it does"
                    );
                    let wanted = BTreeMap::from([(portal, now)]);
                    let (until, pause) = (now + PAUSE.0, PAUSE.0);
                    table
                        .silent
                        .insert(place, Silence { since: now, reason, until, pause, wanted, last: portal });
                    Some((place, now))
                }
            }
        };
        metrics::silent_addresses(table.silent.len());
        begun
    }

    /// Checks again until there is an answer or nobody wants it any more.
    async fn keep_asking<H: Host>(self, host: Arc<H>, place: Place, since: Instant) {
        loop {
            let until = match self.table().silent.get(&place) {
                Some(silence) if silence.since == since => silence.until,
                _ => return,
            };
            sleep_until(until).await;
            let round = {
                let mut table = self.table();
                match table.silent.get(&place) {
                    Some(silence) if silence.since == since => {}
                    _ => return,
                }
                let round = table.round(place);
                if round.is_empty() {
                    table.silent.remove(&place);
                    return metrics::silent_addresses(table.silent.len());
                }
                round
            };
            join_all(round.into_iter().map(|portal| self.clone().reach(host.clone(), portal))).await;
        }
    }

    /// Why a path is missing, where its address does not answer. Without an age, so that the text stays the
    /// same meanwhile.
    pub(super) fn silence(&self, portal: Portal) -> Option<String> {
        self.table().silence_of(portal).map(|(place, _)| format!("{} does not answer", name(place)))
    }

    /// Whether the address of a path that a volume misses does not answer. Keeps the checks going then.
    pub(super) fn is_silent_and_wanted(&self, portal: Portal) -> bool {
        let mut table = self.table();
        let found = table.silence_of(portal);
        found.map(|(_, silence)| silence.wanted.insert(portal, Instant::now())).is_some()
    }

    /// Takes note of how long the kernel took for a connect, and whether it connected.
    pub(super) fn note_connect(&self, portal: Portal, took: Duration, connected: bool) {
        let mut table = self.table();
        if took >= SLOW {
            // It has to answer again before the kernel gets another connect.
            table.slow.insert(portal);
            table.answered.remove(&portal);
        } else {
            table.slow.remove(&portal);
            if connected {
                table.answered.insert(portal, Instant::now());
            }
        }
    }

    /// Whether a connect to it has held up others lately.
    pub(super) fn is_slow(&self, portal: Portal) -> bool {
        self.table().slow.contains(&portal)
    }
}

/// While it lives, a portal is being checked.
struct Asking {
    portals: Portals,
    portal: Portal,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.portals.table().asking.remove(&self.portal);
        self.portals.0.changed.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "portals_tests.rs"]
mod tests;
