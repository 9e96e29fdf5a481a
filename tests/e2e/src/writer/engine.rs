//! The writer's machinery: some threads that write, one that talks, one that listens.
//!
//! In: checked options and an opened device. Out: records and [`Event`]s. What always holds: all state is behind
//! one lock that is never held during a write; after `stopped` has been said nothing is in flight; each wait ends
//! at its deadline or when the run is stopped.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;
use nix::time::{ClockId, clock_gettime};
use uuid::Uuid;

use crate::sequence::{BLOCK_BYTES, Block, Layout, Record};

use super::args::{OnError, Sabotage, WriteArgs};
use super::event::{Counts, Event, StopReason};

/// Direct I/O wants memory aligned to the device's block; no device of ours has larger ones.
const ALIGNMENT: usize = 4096;
/// From a failed write to its repetition.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// Which write of a run the sabotage leaves out.
const SKIPPED: u64 = 9;

/// Why a run did not begin.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// The region's size is none.
    #[error(transparent)]
    Region(#[from] crate::sequence::BadRegion),
    /// The device cannot be opened for direct writes.
    #[error("cannot open {} for direct writes", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A run: its options, its device and where it stands.
#[derive(Debug)]
pub struct Engine {
    args: WriteArgs,
    layout: Layout,
    device: File,
    nonce: Uuid,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Where the sequence begins; `None` until `go`.
    start: Option<u64>,
    stop: Option<StopReason>,
    issued: u64,
    /// The instant before which no write may begin.
    next_at: Option<Instant>,
    /// Acknowledged numbers past the first that is not.
    ahead: BTreeSet<u64>,
    last_ack: Option<Instant>,
    counts: Counts,
    writers: u16,
}

impl Engine {
    /// Opens the device.
    ///
    /// # Errors
    /// If the options make no sense or the device cannot be opened.
    pub fn open(args: WriteArgs) -> Result<Self, WriterError> {
        let layout = args.layout()?;
        let device = OpenOptions::new()
            .write(true)
            .custom_flags(OFlag::O_DIRECT.bits())
            .open(&args.device)
            .map_err(|source| WriterError::Open { path: args.device.clone(), source })?;
        let state = State {
            start: args.start_seq,
            stop: None,
            issued: 0,
            next_at: None,
            ahead: BTreeSet::new(),
            last_ack: None,
            counts: Counts::default(),
            writers: args.queue_depth,
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Ok(Self { args, layout, device, nonce: Uuid::new_v4(), state, changed })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the run; the first reason counts.
    pub fn stop(&self, reason: StopReason) {
        self.state().stop.get_or_insert(reason);
        self.changed.notify_all();
    }

    /// Begins the sequence at this number, if it has not begun.
    pub fn go(&self, start: u64) {
        self.state().start.get_or_insert(start);
        self.changed.notify_all();
    }

    /// Writes until the end and says everything on `out`. Returns the reason of the end and whether every write
    /// succeeded.
    pub fn run(&self, out: &mut (impl Write + Send)) -> (StopReason, bool) {
        let out = Mutex::new(out);
        let say = |event: &Event| self.say(&out, event);
        if self.state().start.is_none() {
            say(&Event::Armed { nonce: self.nonce });
        }
        if let Some(start) = self.begun() {
            say(&Event::Started {
                nonce: self.nonce,
                volume: self.args.volume.clone(),
                node: self.args.node.clone(),
                region: self.args.region,
                start_sequence: start,
            });
            std::thread::scope(|scope| {
                for _ in 0..self.args.queue_depth {
                    scope.spawn(|| self.write_all(start, &say));
                }
                self.report(&say);
            });
        }
        let state = self.state();
        let (reason, counts) = (state.stop.unwrap_or(StopReason::Asked), state.counts_now());
        drop(state);
        let sound = counts.errors == 0;
        say(&Event::Stopped { reason, counts });
        (reason, sound)
    }

    /// Waits for `go`; `None` if the run is stopped before.
    fn begun(&self) -> Option<u64> {
        let state = self
            .changed
            .wait_while(self.state(), |state| state.start.is_none() && state.stop.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        state.start.filter(|_| state.stop.is_none())
    }

    fn say(&self, out: &Mutex<&mut (impl Write + Send)>, event: &Event) {
        let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
        let line = serde_json::to_string(event).map_err(io::Error::from);
        let said = line.and_then(|line| writeln!(out, "{line}")).and_then(|()| out.flush());
        if said.is_err() {
            drop(out);
            self.stop(StopReason::Unheard);
        }
    }

    /// Says `progress` until the last writer has ended.
    fn report(&self, say: &impl Fn(&Event)) {
        let period = Duration::from_millis(self.args.progress_ms.max(1));
        let mut state = self.state();
        while state.writers > 0 {
            let (woken, timeout) =
                self.changed.wait_timeout(state, period).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if timeout.timed_out() && state.writers > 0 {
                let progress = Event::Progress(state.counts_now());
                drop(state);
                say(&progress);
                state = self.state();
            }
        }
    }

    fn write_all(&self, start: u64, say: &impl Fn(&Event)) {
        let mut memory = AlignedBlock::new();
        while let Some(index) = self.next_index() {
            self.write_one(start + index, index, memory.block(), say);
        }
        self.state().writers -= 1;
        self.changed.notify_all();
    }

    /// The next place to write to, once it is time for it; `None` at the end.
    fn next_index(&self) -> Option<u64> {
        let mut state = self.state();
        while state.stop.is_none() {
            if self.args.count.is_some_and(|count| state.issued >= count) {
                state.stop = Some(StopReason::Count);
            } else if state.issued >= self.layout.region_blocks() {
                state.stop = Some(StopReason::RegionFull);
            } else {
                let now = Instant::now();
                match state.next_at.and_then(|at| at.checked_duration_since(now)).filter(|d| !d.is_zero()) {
                    Some(early) => state = self.pause(state, early),
                    None => {
                        let index = state.issued;
                        state.issued += 1;
                        state.next_at = Some(now + self.args.interval());
                        return Some(index);
                    }
                }
            }
        }
        drop(state);
        self.changed.notify_all();
        None
    }

    fn pause<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }

    fn write_one(&self, sequence: u64, index: u64, memory: &mut Block, say: &impl Fn(&Event)) {
        *memory = self.record(sequence).encode();
        let offset = self.layout.block(self.args.region, index) * BLOCK_BYTES as u64;
        let skipped = self.args.sabotage == Some(Sabotage::SkipBlock) && index == SKIPPED;
        self.state().issued_now(sequence);
        let begun = Instant::now();
        loop {
            let written = if skipped { Ok(()) } else { self.device.write_all_at(memory, offset) };
            let Err(error) = written else {
                let first = self.state().acked(sequence, begun);
                if first {
                    let latency_us = micros(begun.elapsed());
                    say(&Event::FirstAck { sequence, age_us: 0, latency_us });
                }
                return;
            };
            self.state().counts.errors += 1;
            say(&Event::Error { sequence, errno: error.raw_os_error(), message: error.to_string() });
            match self.args.on_error {
                OnError::Stop => self.stop(StopReason::Error),
                OnError::Skip => {}
                OnError::Retry => {
                    let state = self.pause(self.state(), RETRY_INTERVAL);
                    if state.stop.is_none() {
                        continue;
                    }
                }
            }
            return;
        }
    }

    fn record(&self, sequence: u64) -> Record {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Record {
            nonce: self.nonce,
            sequence,
            region: self.args.region,
            volume: self.args.volume.clone(),
            node: self.args.node.clone(),
            wall_ns: nanos(wall),
            monotonic_ns: nanos(monotonic),
        }
    }
}

impl State {
    fn issued_now(&mut self, sequence: u64) {
        self.counts.last_issued = self.counts.last_issued.max(Some(sequence));
    }

    /// Notes a complete write; true if it is the run's first.
    fn acked(&mut self, sequence: u64, begun: Instant) -> bool {
        let now = Instant::now();
        let counts = &mut self.counts;
        counts.writes += 1;
        counts.max_latency_us = counts.max_latency_us.max(micros(now - begun));
        if let Some(last) = self.last_ack.replace(now) {
            counts.max_gap_us = counts.max_gap_us.max(micros(now - last));
        }
        self.ahead.insert(sequence);
        let mut next = counts.last_acked.map_or(self.start.unwrap_or(sequence), |last| last + 1);
        while self.ahead.remove(&next) {
            counts.last_acked = Some(next);
            next += 1;
        }
        counts.writes == 1
    }

    fn counts_now(&self) -> Counts {
        let age_us = self.last_ack.map_or(0, |last| micros(last.elapsed()));
        Counts { age_us, ..self.counts.clone() }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A block in memory that direct I/O takes: found inside a larger piece, so that no unsafe allocation is needed.
pub(super) struct AlignedBlock {
    memory: Vec<u8>,
    start: usize,
}

impl AlignedBlock {
    pub(super) fn new() -> Self {
        let memory = vec![0; BLOCK_BYTES + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start }
    }

    pub(super) fn block(&mut self) -> &mut Block {
        let (block, _) = self.memory[self.start..].as_chunks_mut::<BLOCK_BYTES>();
        &mut block[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::{Report, RunFacts};
    use crate::writer::verify::verify;
    use crate::writer::{StopReason, VerifyArgs};

    const REGION_BYTES: u64 = 1 << 20;

    fn device() -> tempfile::NamedTempFile {
        // Beside the test's own binary, not in /tmp: a tmpfs has no direct I/O before Linux 6.6.
        let here = std::env::current_exe().expect("this test's path");
        let file = tempfile::NamedTempFile::new_in(here.parent().expect("folder")).expect("file");
        file.as_file().set_len(8 * REGION_BYTES).expect("size");
        file
    }

    fn args(device: &tempfile::NamedTempFile, region: u32, start: Option<u64>) -> WriteArgs {
        let mut args = WriteArgs::new(
            device.path(),
            "pvc-1".parse().expect("name"),
            "node-a".parse().expect("name"),
            region,
        );
        (args.region_bytes, args.interval_us, args.start_seq) = (REGION_BYTES, 0, start);
        args
    }

    fn ran(engine: &Engine) -> (Vec<Event>, StopReason, bool) {
        let mut out = Vec::new();
        let (reason, sound) = engine.run(&mut out);
        let text = String::from_utf8(out).expect("text");
        (text.lines().map(|line| serde_json::from_str(line).expect("event")).collect(), reason, sound)
    }

    fn facts(events: &[Event]) -> RunFacts {
        let Some((node, region, nonce, start_sequence)) = events.iter().find_map(|event| match event {
            Event::Started { node, region, nonce, start_sequence, .. } => {
                Some((node.clone(), *region, *nonce, *start_sequence))
            }
            _ => None,
        }) else {
            panic!("never started: {events:?}")
        };
        let Some(Event::Stopped { counts, .. }) = events.last() else { panic!("never stopped: {events:?}") };
        RunFacts { region, nonce, node, start_sequence, last_acked: counts.last_acked }
    }

    fn judged(device: &tempfile::NamedTempFile, runs: Vec<RunFacts>) -> Report {
        let volume = "pvc-1".parse().expect("name");
        verify(&VerifyArgs { file: device.path().into(), volume, region_bytes: REGION_BYTES, runs })
            .expect("verdict")
    }

    #[test]
    fn two_runs_one_after_the_other_make_a_clean_sequence() {
        let device = device();
        let mut first = args(&device, 0, Some(1));
        first.count = Some(50);
        let (events, reason, sound) = ran(&Engine::open(first).expect("opens"));
        assert_eq!((reason, sound), (StopReason::Count, true));
        let first = facts(&events);
        assert_eq!(first.last_acked, Some(50));

        let mut second = args(&device, 1, None);
        (second.count, second.queue_depth) = (Some(100), 8);
        let engine = Engine::open(second).expect("opens");
        engine.go(51);
        let (events, ..) = ran(&engine);
        let second = facts(&events);
        assert_eq!(second.last_acked, Some(150));

        let report = judged(&device, vec![first, second]);
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.writes, 150);
    }

    #[test]
    fn the_end_of_the_region_ends_the_run() {
        let device = device();
        let (events, reason, _) = ran(&Engine::open(args(&device, 0, Some(1))).expect("opens"));
        assert_eq!(reason, StopReason::RegionFull);
        assert_eq!(facts(&events).last_acked, Some(256));
    }

    #[test]
    fn a_run_that_is_stopped_before_go_writes_nothing() {
        let device = device();
        let engine = Engine::open(args(&device, 0, None)).expect("opens");
        engine.stop(StopReason::Asked);
        let (events, reason, _) = ran(&engine);
        assert_eq!(reason, StopReason::Asked);
        assert!(matches!(events[..], [Event::Armed { .. }, Event::Stopped { .. }]), "{events:?}");
    }

    #[test]
    fn a_block_that_was_skipped_on_purpose_is_found_missing() {
        let device = device();
        let mut lying = args(&device, 0, Some(1));
        (lying.count, lying.sabotage) = (Some(50), Some(Sabotage::SkipBlock));
        let (events, ..) = ran(&Engine::open(lying).expect("opens"));
        let report = judged(&device, vec![facts(&events)]);
        assert_eq!((report.gaps, report.is_clean()), (1, false));
    }

    #[test]
    fn a_failing_device_ends_the_run_and_is_reported() {
        let device = device();
        let mut engine = Engine::open(args(&device, 0, Some(1))).expect("opens");
        engine.device = File::open(device.path()).expect("read-only");
        let (events, reason, sound) = ran(&engine);
        assert_eq!((reason, sound), (StopReason::Error, false));
        assert!(events.iter().any(|event| matches!(event, Event::Error { sequence: 1, .. })), "{events:?}");
        assert_eq!(facts(&events).last_acked, None);
    }
}
