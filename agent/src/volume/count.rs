//! Whether somebody writes to a volume: its device's counters, looked at often for a limited time.
//!
//! Comes in: looks at the counters of the device and of its paths. Goes out: [`Counted`], at the first look, at the first
//! write, and whenever writing has begun again or has ended.
//!
//! Always holds:
//! - A write that a look has shown is reported, however soon the next thing happens; how long ago it was is never said to
//!   be longer than it is, and at most one pause between two looks shorter.
//! - A path or device that goes, comes, or is made again is no write.
//! - A look reads the few files of this device, and no search for who has it open is made while it is written.
//! - At most four reports a second, but for those of the first write and of the end; and an end by itself.
//! - It is for people: nothing may follow from it about who can write.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cleat_host::sysfs::{CountersRead, IoCounters, SubsystemView};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::name::{Epoch, OperationId, VolumeId};
use crate::volume::Volume;
use crate::volume::host::Host;
use crate::volume::observe::judge::device;

/// Without a write for so long, writing has ended. The guest of a VM that writes all the time pauses for up to 0.25 s when
/// it is moved.
const STANDSTILL: Duration = Duration::from_millis(250);
/// Between two reports.
const BETWEEN: Duration = Duration::from_millis(250);
/// Between two looks at the least: each reads a few files of sysfs.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// Between two looks at the most.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Counting ends by itself after so long: no migration may take longer.
const LONGEST: Duration = Duration::from_secs(3600);
/// Between two searches for who has the device open: each goes through all processes.
const OPENERS_EVERY: Duration = Duration::from_secs(2);

/// What the controller has asked to be counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountRequest {
    /// Its operation id, which tells a counting from the one before.
    pub operation: OperationId,
    /// The volume.
    pub volume: VolumeId,
    /// The grant under which writes count.
    pub epoch: Epoch,
    /// How often and how long.
    pub pace: CountPace,
}

/// Writes completed, by the name of the block device that has counted them.
type Counts = BTreeMap<String, u64>;

/// What has been counted so far at a volume's device and at each of its paths: nothing, where there is no device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteCounters {
    device: Counts,
    paths: Counts,
}

impl WriteCounters {
    /// What a view shows. A part whose counters could not be read is left out.
    pub fn of(view: &SubsystemView) -> Self {
        let Some(device) = device(view) else { return Self::default() };
        let count = |name: &str, counters: Option<IoCounters>| Some((name.to_owned(), counters?.writes));
        Self {
            device: count(&device.name, device.counters).into_iter().collect(),
            paths: device.paths().iter().filter_map(|path| count(&path.name, path.counters)).collect(),
        }
    }

    /// The same, of what was read by itself.
    pub(in crate::volume) fn read(read: CountersRead) -> Self {
        let count = |(name, counters): (String, IoCounters)| (name, counters.writes);
        Self {
            device: [read.device].into_iter().map(count).collect(),
            paths: read.paths.into_iter().map(count).collect(),
        }
    }

    /// Takes in a later look; gives the writes that have completed in between. A head counts on some kernels only, and a
    /// path that goes takes its count with it: what more of the two have seen.
    fn advance(&mut self, now: Self) -> u64 {
        advance(&mut self.device, now.device).max(advance(&mut self.paths, now.paths))
    }
}

/// What has been added to each count. One that has not been seen before, or was higher, is of a device that was made
/// meanwhile: it counts from now on. One that is missing is kept, for it may only have been left out.
fn advance(before: &mut Counts, now: Counts) -> u64 {
    let added = now.iter().map(|(name, now)| now.saturating_sub(*before.get(name).unwrap_or(now)));
    let added = added.fold(0, u64::saturating_add);
    before.extend(now);
    added
}

/// How often and how long is looked, within what this node lends itself to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountPace {
    /// Between two looks.
    pub every: Duration,
    /// Until the end.
    pub lasts: Duration,
}

impl CountPace {
    /// As it is asked for, within the bounds.
    #[must_use]
    pub fn within_bounds(every: Duration, lasts: Duration) -> Self {
        Self { every: every.clamp(SHORTEST_PAUSE, LONGEST_PAUSE), lasts: lasts.min(LONGEST) }
    }
}

/// What has been seen of a volume's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Writes since counting began.
    pub writes: u64,
    /// How long ago a look has shown the last one; where there was none, since when none was seen.
    pub last_write_age: Duration,
    /// Somebody has the device open.
    pub open: bool,
}

/// The writes of one volume, from look to look.
#[derive(Debug)]
pub struct WriteCount {
    began: Instant,
    seen: WriteCounters,
    writes: u64,
    moved_at: Option<Instant>,
    sent: Option<Sent>,
}

/// What was reported last.
#[derive(Debug, Clone, Copy)]
struct Sent {
    at: Instant,
    state: State,
}

/// What is worth a report when it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    /// The writes until then, where there has been none for a while; `None` while somebody writes.
    rests_at: Option<u64>,
    open: bool,
}

impl WriteCount {
    /// Nothing has been looked at yet.
    #[must_use]
    pub fn begin(now: Instant) -> Self {
        Self { began: now, seen: WriteCounters::default(), writes: 0, moved_at: None, sent: None }
    }

    /// Takes in a look; gives what is to be reported now.
    pub fn look(&mut self, counters: WriteCounters, open: bool, now: Instant) -> Option<Counted> {
        let added = self.seen.advance(counters);
        let first_write = added > 0 && self.writes == 0;
        if added > 0 {
            self.writes = self.writes.saturating_add(added);
            self.moved_at = Some(now);
        }
        let state = self.state(open, now);
        let due = match self.sent {
            None => true,
            Some(sent) => first_write || (sent.state != state && now >= sent.at + BETWEEN),
        };
        due.then(|| self.report(state, now))
    }

    /// Nothing is looked at any more; gives what has not been reported yet.
    pub fn end(mut self, open: bool, now: Instant) -> Option<Counted> {
        let state = State { rests_at: Some(self.writes), open };
        let left = self.sent.is_some_and(|sent| sent.state != state);
        left.then(|| self.report(state, now))
    }

    fn state(&self, open: bool, now: Instant) -> State {
        let rests = self.moved_at.is_none_or(|at| now >= at + STANDSTILL);
        State { rests_at: rests.then_some(self.writes), open }
    }

    fn report(&mut self, state: State, now: Instant) -> Counted {
        self.sent = Some(Sent { at: now, state });
        let since = self.moved_at.unwrap_or(self.began);
        Counted { writes: self.writes, last_write_age: now.duration_since(since), open: state.open }
    }
}

/// Looks at that pace and reports, to the end. A look that could not be made, `None`, says nothing; whether somebody has
/// the device open comes with each.
pub async fn count<L>(pace: CountPace, mut look: impl FnMut() -> L, mut report: impl FnMut(Counted))
where
    L: Future<Output = Option<(WriteCounters, bool)>>,
{
    let ends = Instant::now() + pace.lasts;
    let mut counting = WriteCount::begin(Instant::now());
    let mut ticks = interval(pace.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_open = false;
    while timeout_at(ends, ticks.tick()).await.is_ok() {
        let Ok(looked) = timeout_at(ends, look()).await else { break };
        if let Some((counters, open)) = looked {
            last_open = open;
            counting.look(counters, open, Instant::now()).into_iter().for_each(&mut report);
        }
    }
    counting.end(last_open, Instant::now()).into_iter().for_each(report);
}

/// What the looks of one counting share.
#[derive(Debug, Default)]
struct Looked {
    counters: WriteCounters,
    open: bool,
}

impl<H: Host> Volume<H> {
    /// Counts writes while the grant of that epoch is in force, to the end.
    pub(in crate::volume) async fn count_writes(
        &self,
        epoch: Epoch,
        pace: CountPace,
        report: impl FnMut(Counted),
    ) {
        let looked = Mutex::<Looked>::default();
        tokio::select! {
            biased;
            () = count(pace, || self.look_at_writes(epoch, &looked), report) => {}
            never = self.look_for_openers(&looked) => match never {},
        }
    }

    /// One look; `None` where nothing can be said of that grant.
    async fn look_at_writes(&self, epoch: Epoch, looked: &Mutex<Looked>) -> Option<(WriteCounters, bool)> {
        self.reported_state().filter(|state| state.epoch == Some(epoch) && !state.epoch_ended)?;
        let counters = self.shared.host.write_counters(&self.subsystem).await.ok()?;
        let mut looked = looked.lock().unwrap_or_else(PoisonError::into_inner);
        looked.counters = counters.clone();
        Some((counters, looked.open))
    }

    /// Searches now and then, where no write shows it. A search that fails says nothing, and a detach's own goes before.
    async fn look_for_openers(&self, looked: &Mutex<Looked>) -> Infallible {
        let looked = || looked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ticks = interval(OPENERS_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = WriteCounters::default();
        loop {
            ticks.tick().await;
            let counters = looked().counters.clone();
            if before.advance(counters) > 0 {
                // Whoever writes has it open.
                looked().open = true;
                continue;
            }
            let Ok(_turn) = self.searching.try_lock() else { continue };
            let Ok(view) = self.shared.host.view(&self.subsystem).await else { continue };
            if let Ok(found) = self.shared.host.is_open(&view).await {
                looked().open = found;
            }
        }
    }
}

#[cfg(test)]
#[path = "count_tests.rs"]
mod tests;
