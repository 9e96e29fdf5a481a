//! A host that goes on writing: whether its writes succeed shows a cut, or that there is none.
//!
//! Comes in: an open device. Goes out: at any time, how the writes so far ended. Always holds: one write at a
//! time, in a region of its own. It ends with the first that fails, or when it is dropped.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::trouble::QuestionError;

/// Where it writes: behind the volley's region, so that neither disturbs the other.
const OFFSET: u64 = 16 << 20;
/// How many places it writes to in turn.
const PLACES: u64 = 64;
/// Pause between two writes: they serve observation, not load.
const PAUSE: Duration = Duration::from_millis(5);
/// Alignment of direct I/O: a page.
const ALIGNMENT: usize = 4096;

/// A buffer that direct I/O accepts.
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

/// How the writes ended.
#[derive(Debug, Clone, Default)]
pub struct Beats {
    /// How many writes succeeded.
    pub written: u64,
    /// When the last successful one had begun.
    pub last_begun: Option<Instant>,
    /// Why it ended; `None` while it goes on.
    pub failed: Option<String>,
    /// The longest time of a successful write.
    pub longest: Duration,
}

impl Beats {
    /// Whether a write that began at this moment or later has succeeded.
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

/// A writer that goes on until it is dropped.
#[derive(Debug)]
pub struct Pulse {
    shared: Arc<PulseState>,
}

impl Pulse {
    /// Begins to write.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(device: Arc<File>, block_bytes: usize) -> Result<Self, QuestionError> {
        let shared = Arc::new(PulseState::default());
        let writing = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("probe pulse".to_owned())
            .spawn(move || write_on(&device, block_bytes, &writing))
            .map_err(|source| QuestionError::Io { what: "start to write", source })?;
        Ok(Self { shared })
    }

    /// How the writes so far ended.
    #[must_use]
    pub fn beats(&self) -> Beats {
        self.shared.beats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        // The thread ends with its write; one that hangs ends when its connections are deleted.
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
