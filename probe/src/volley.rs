//! Writes that are on their way: some at once, each to a place of its own, with a stamp that identifies it.
//!
//! Comes in: an open device. Goes out: how long each write took and how it ended, and what the places have at
//! a moment. Always holds: nothing here waits for a write. A place has a volley's stamp only if its write has
//! landed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cleat_host::work::Workers;

use crate::pulse::Aligned;
use crate::trouble::{QuestionError, until};

/// How many writes are sent at once.
pub const WRITES: usize = 16;
/// Distance between two places, in bytes.
const STRIDE: u64 = 64 << 10;
/// Longest time to read sixteen blocks; a target that is busy with its writes may be slow.
const READ: Duration = Duration::from_secs(20);

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Time from its beginning to its end.
    pub took: Duration,
    /// Whether it succeeded.
    pub well: bool,
}

/// Writes that were sent together.
#[derive(Debug)]
pub struct Volley {
    /// The number in each of its blocks.
    pub stamp: u64,
    /// When its first write began.
    pub begun: Instant,
    ended: Arc<Mutex<Vec<Ended>>>,
}

impl Volley {
    /// Sends the writes, each on a thread of its own.
    ///
    /// # Errors
    /// Where a thread cannot be started.
    pub fn send(device: &Arc<File>, block_bytes: usize, stamp: u64) -> Result<Self, QuestionError> {
        let ended = Arc::new(Mutex::new(Vec::new()));
        let begun = Instant::now();
        for place in 0..WRITES {
            let (device, ended) = (Arc::clone(device), Arc::clone(&ended));
            let write = move || {
                let mut block = Aligned::new(block_bytes);
                block.get_mut()[..8].copy_from_slice(&stamp.to_le_bytes());
                let well = device.write_all_at(block.get(), place as u64 * STRIDE).is_ok();
                let took = begun.elapsed();
                ended.lock().unwrap_or_else(PoisonError::into_inner).push(Ended { took, well });
            };
            std::thread::Builder::new()
                .name("probe volley".to_owned())
                .spawn(write)
                .map_err(|source| QuestionError::Io { what: "start to write", source })?;
        }
        Ok(Self { stamp, begun, ended })
    }

    /// The writes that have ended so far.
    #[must_use]
    pub fn ended(&self) -> Vec<Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until all have ended.
    ///
    /// # Errors
    /// Where they have not ended in time.
    pub async fn all_ended(&self, limit: Duration) -> Result<Vec<Ended>, QuestionError> {
        until("the end of the writes", limit, async || {
            let ended = self.ended();
            Ok((ended.len() == WRITES).then_some(ended))
        })
        .await
    }
}

/// The stamps in the places now.
///
/// # Errors
/// Where one cannot be read.
pub async fn read(
    workers: &Workers,
    device: &Arc<File>,
    block_bytes: usize,
) -> Result<Vec<u64>, QuestionError> {
    let device = Arc::clone(device);
    let read = workers.run("read the scratch disk", READ, move || {
        let mut block = Aligned::new(block_bytes);
        let mut stamps = Vec::with_capacity(WRITES);
        for place in 0..WRITES {
            device.read_exact_at(block.get_mut(), place as u64 * STRIDE)?;
            let mut stamp = [0; 8];
            stamp.copy_from_slice(&block.get()[..8]);
            stamps.push(u64::from_le_bytes(stamp));
        }
        Ok(stamps)
    });
    read.await?.map_err(|source| QuestionError::Io { what: "read", source })
}

/// What was seen of a volley around a request that may have waited for it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// How long such a write takes when nothing disturbs it.
    pub usual: Duration,
    /// When the places were first read afterwards, counted from the volley's beginning.
    pub first_read: Duration,
    /// How long the request took that may have waited.
    pub waited: Duration,
    /// How long it takes when there is nothing to wait for.
    pub idle: Duration,
    /// Places with the volley's stamp at that first reading.
    pub landed_before: usize,
    /// When the first place took the stamp only later, counted from that first reading; `None` if none did.
    pub landed_after: Option<Duration>,
}

/// What that shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DrainVerdict {
    /// The request waited: the writes had landed at a time when, without waiting, they would still have been
    /// on their way.
    Waited,
    /// A write landed after the answer, by this much.
    LandedAfter(Duration),
    /// It shows neither; the text says why.
    Unclear(&'static str),
}

impl Seen {
    /// What was seen shows this. Pure.
    #[must_use]
    pub fn verdict(&self) -> DrainVerdict {
        if let Some(after) = self.landed_after {
            return DrainVerdict::LandedAfter(after);
        }
        if self.landed_before == 0 {
            return DrainVerdict::Unclear(
                "none of the writes in flight ever landed, so nothing had to be waited for",
            );
        }
        let for_writes = self.waited.saturating_sub(self.idle);
        if self.first_read.saturating_sub(for_writes) >= self.usual {
            return DrainVerdict::Unclear(
                "looking took so long that the writes may have landed by themselves",
            );
        }
        // Only other writes show how long a write takes.
        if for_writes < self.usual / 2 {
            return DrainVerdict::Unclear("it ended too soon to have waited for them");
        }
        DrainVerdict::Waited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(first_read_ms: u64, waited_ms: u64, before: usize, after: Option<u64>) -> DrainVerdict {
        let ms = Duration::from_millis;
        let landed_after = after.map(ms);
        let (first_read, waited) = (ms(first_read_ms), ms(waited_ms));
        Seen { usual: ms(4000), first_read, waited, idle: ms(60), landed_before: before, landed_after }
            .verdict()
    }

    #[test]
    fn a_barrier_counts_only_if_writes_would_else_still_be_under_way() {
        assert_eq!(seen(5000, 3000, WRITES, None), DrainVerdict::Waited);
        assert_eq!(seen(2000, 50, 0, Some(2100)), DrainVerdict::LandedAfter(Duration::from_millis(2100)));
        assert_eq!(seen(5000, 3000, 15, Some(1)), DrainVerdict::LandedAfter(Duration::from_millis(1)));
        assert!(matches!(seen(5000, 50, WRITES, None), DrainVerdict::Unclear(_)));
        assert!(matches!(seen(5000, 3000, 0, None), DrainVerdict::Unclear(_)));
    }

    #[test]
    fn what_ends_soon_has_waited_for_nothing_however_slow_such_writes_are() {
        // The machine was busy when it was measured how long a write takes, and not when it mattered.
        assert!(matches!(seen(3900, 55, WRITES, None), DrainVerdict::Unclear(_)));
        // A device that takes its time for this anyway.
        let slow = Seen {
            usual: Duration::from_secs(4),
            first_read: Duration::from_millis(5500),
            waited: Duration::from_secs(4),
            idle: Duration::from_millis(3900),
            landed_before: WRITES,
            landed_after: None,
        };
        assert!(matches!(slow.verdict(), DrainVerdict::Unclear(_)));
    }

    #[tokio::test]
    async fn places_hold_a_stamp_once_its_write_has_landed() {
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        file.set_len(STRIDE * WRITES as u64).expect("room");
        assert_eq!(read(&Workers::new(), &file, 4096).await.expect("read"), vec![0; WRITES]);
        let volley = Volley::send(&file, 4096, 7).expect("sent");
        let ended = volley.all_ended(Duration::from_secs(20)).await.expect("ended");
        assert!(ended.iter().all(|ended| ended.well));
        assert_eq!(read(&Workers::new(), &file, 4096).await.expect("read"), vec![7; WRITES]);
    }
}
