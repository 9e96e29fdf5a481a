//! A host that goes on writing: whether its writes go through is how a cut is seen, or that there is none.
//!
//! In comes an open device; out goes, at any time, what became of the writes so far. What always holds: one write at a
//! time, in a region of its own; it ends with the first that fails, or when it is dropped.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::trouble::Trouble;

/// Where it writes: behind the volley's region, so that neither disturbs the other.
const OFFSET: u64 = 16 << 20;
/// Places that it writes to in turn.
const PLACES: u64 = 64;
/// Between two writes: it is to be seen by, not to load anything.
const PAUSE: Duration = Duration::from_millis(5);
/// Alignment of direct I/O: a page.
const ALIGNMENT: usize = 4096;

/// Memory that direct I/O takes.
#[derive(Debug)]
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    pub(crate) fn new(length: usize) -> Self {
        let bytes = vec![0; length + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { bytes, start, length }
    }

    pub(crate) fn get(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }

    pub(crate) fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// What became of the writes.
#[derive(Debug, Clone, Default)]
pub struct Beats {
    /// How many went through.
    pub written: u64,
    /// When the last one that went through had begun.
    pub last_begun: Option<Instant>,
    /// Why it ended, if it did.
    pub failed: Option<String>,
    /// The longest write that went through.
    pub longest: Duration,
}

impl Beats {
    /// Whether a write that began so late has gone through.
    #[must_use]
    pub fn written_since(&self, moment: Instant) -> bool {
        self.last_begun.is_some_and(|begun| begun >= moment)
    }
}

#[derive(Debug, Default)]
struct PulseState {
    stop: AtomicBool,
    beats: Mutex<Beats>,
}

impl PulseState {
    fn note(&self, change: impl FnOnce(&mut Beats)) {
        change(&mut self.beats.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A writer that goes on.
#[derive(Debug)]
pub struct Pulse {
    shared: Arc<PulseState>,
}

impl Pulse {
    /// Begins to write.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn start(device: Arc<File>, block_bytes: usize) -> Result<Self, Trouble> {
        let shared = Arc::new(PulseState::default());
        let writing = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("probe pulse".to_owned())
            .spawn(move || write_on(&device, block_bytes, &writing))
            .map_err(|source| Trouble::Io { what: "start to write", source })?;
        Ok(Self { shared })
    }

    /// What became of the writes so far.
    #[must_use]
    pub fn beats(&self) -> Beats {
        self.shared.beats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        // The thread ends with its write; one that hangs ends when its connections are taken away.
        self.shared.stop.store(true, Ordering::Release);
    }
}

fn write_on(device: &File, block_bytes: usize, shared: &PulseState) {
    let mut block = Aligned::new(block_bytes);
    let mut number = 0_u64;
    while !shared.stop.load(Ordering::Acquire) {
        number += 1;
        let begun = Instant::now();
        block.get_mut()[..8].copy_from_slice(&number.to_le_bytes());
        let offset = OFFSET + number % PLACES * block_bytes as u64;
        match device.write_all_at(block.get(), offset) {
            Ok(()) => shared.note(|beats| {
                beats.written = number;
                beats.last_begun = Some(begun);
                beats.longest = beats.longest.max(begun.elapsed());
            }),
            Err(error) => return shared.note(|beats| beats.failed = Some(error.to_string())),
        }
        std::thread::park_timeout(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_ends_it_and_says_why() {
        // Not open for writing.
        let pulse = Pulse::start(Arc::new(File::open("/dev/null").expect("there")), 4096).expect("starts");
        let end = Instant::now() + Duration::from_secs(20);
        while pulse.beats().failed.is_none() {
            assert!(Instant::now() < end, "it never failed");
            std::thread::yield_now();
        }
        assert_eq!(pulse.beats().written, 0);
    }

    #[test]
    fn writes_are_counted_by_when_they_began() {
        let before = Instant::now();
        let file = tempfile::tempfile().expect("a file");
        let pulse = Pulse::start(Arc::new(file), 4096).expect("starts");
        let end = Instant::now() + Duration::from_secs(20);
        while !pulse.beats().written_since(before) {
            assert!(Instant::now() < end, "nothing was written");
            std::thread::yield_now();
        }
        assert!(!pulse.beats().written_since(Instant::now()));
    }
}
