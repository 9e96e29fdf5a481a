//! `cleat-writer overwrite`: writes the same blocks over and over, each time with a higher number, and looks at the end
//! whether one holds a lower number than was acknowledged: an old write that landed after a newer one.
//!
//! In: a device, and a line `watch` on standard input when the trouble begins. Out: `ready`, then one JSON object.
//! What always holds: one write of a block at a time, so that a number is handed to the kernel only after the one before
//! it was acknowledged; after the stall a block is written a few times more and then left, so that what lands late stays
//! to be seen.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::engine::AlignedBlock;
use crate::sequence::{BLOCK_BYTES, Block};

/// Writes of each block before `ready`.
const WARM: u64 = 20;

/// `cleat-writer overwrite`.
#[derive(Debug, Clone, Args)]
pub struct OverwriteArgs {
    /// Block device (or file) whose first blocks are written
    #[arg(long, value_name = "PATH")]
    pub device: PathBuf,
    /// How many blocks, each by a thread of its own
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub blocks: u16,
    /// A write that takes so long, in milliseconds, after `watch` is the stall that is waited for
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 400)]
    pub stall_ms: u64,
    /// Writes of a block after its stall
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub more: u64,
    /// How long after the last write the blocks are read back, in milliseconds
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 8000)]
    pub settle_ms: u64,
    /// The longest that the stall is waited for, in milliseconds
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 150_000)]
    pub limit_ms: u64,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overwritten {
    /// Blocks that hold less than was acknowledged.
    pub stale: u32,
    /// Blocks whose write stalled.
    pub stalled: u32,
    /// Writes that failed.
    pub errors: u32,
    /// The longest that a write took.
    pub longest_us: u64,
    /// The first failure, in words.
    pub error: Option<String>,
}

/// One block's end.
#[derive(Default)]
struct OfBlock {
    acked: u64,
    stalled: bool,
    longest: Duration,
    error: Option<String>,
}

struct Shared {
    device: File,
    watch: AtomicBool,
    warm: AtomicUsize,
    begun: Instant,
    first: u64,
}

/// Writes, waits for the stall, and looks.
///
/// # Errors
/// If the device cannot be opened or read back.
pub fn overwrite(args: &OverwriteArgs, out: &mut impl Write) -> io::Result<Overwritten> {
    let direct = |options: &mut OpenOptions| options.custom_flags(OFlag::O_DIRECT.bits()).open(&args.device);
    let device = direct(OpenOptions::new().read(true).write(true))?;
    // Higher than any of a run before.
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let shared = Shared {
        device,
        watch: AtomicBool::new(false),
        warm: AtomicUsize::new(0),
        begun: Instant::now(),
        first: u64::try_from(first).unwrap_or(u64::MAX / 2),
    };
    let blocks = usize::from(args.blocks);
    let ends = std::thread::scope(|scope| {
        let shared = &shared;
        let writers: Vec<_> =
            (0..args.blocks).map(|block| scope.spawn(move || shared.write(args, block.into()))).collect();
        while shared.warm.load(Ordering::Acquire) < blocks {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let said = writeln!(out, "ready").and_then(|()| out.flush());
        // Without a line the blocks are watched at once: nobody is left to say when.
        let _ = io::stdin().lock().lines().next();
        shared.watch.store(true, Ordering::Release);
        let ends: Vec<OfBlock> = writers.into_iter().filter_map(|writer| writer.join().ok()).collect();
        said.map(|()| ends)
    })?;
    // A real pause: what comes late has this long to come.
    #[allow(clippy::disallowed_methods)]
    std::thread::sleep(Duration::from_millis(args.settle_ms));
    let mut found = Overwritten::default();
    let mut memory = AlignedBlock::new();
    for (block, end) in ends.iter().enumerate() {
        found.stalled += u32::from(end.stalled);
        found.errors += u32::from(end.error.is_some());
        found.longest_us = found.longest_us.max(u64::try_from(end.longest.as_micros()).unwrap_or(u64::MAX));
        if found.error.is_none() {
            found.error.clone_from(&end.error);
        }
        shared.device.read_exact_at(memory.block(), offset(block))?;
        found.stale += u32::from(number(memory.block()) < end.acked);
    }
    Ok(found)
}

impl Shared {
    fn write(&self, args: &OverwriteArgs, block: usize) -> OfBlock {
        let mut memory = AlignedBlock::new();
        let mut end = OfBlock::default();
        let (limit, stall) = (Duration::from_millis(args.limit_ms), Duration::from_millis(args.stall_ms));
        let (mut writes, mut more) = (0, args.more);
        while more > 0 && self.begun.elapsed() < limit {
            let next = self.first + writes;
            put(memory.block(), next);
            let begun = Instant::now();
            if let Err(error) = self.device.write_all_at(memory.block(), offset(block)) {
                end.error = Some(error.to_string());
                break;
            }
            let took = begun.elapsed();
            (end.acked, end.longest) = (next, end.longest.max(took));
            writes += 1;
            if writes == WARM {
                self.warm.fetch_add(1, Ordering::AcqRel);
            }
            if end.stalled {
                more -= 1;
            } else if self.watch.load(Ordering::Acquire) && took >= stall {
                end.stalled = true;
            }
        }
        if writes < WARM {
            // Nobody is to wait for it.
            self.warm.fetch_add(1, Ordering::AcqRel);
        }
        end
    }
}

fn offset(block: usize) -> u64 {
    (block * BLOCK_BYTES) as u64
}

/// The same number all over, so that a torn block is a lower number or none.
fn put(block: &mut Block, number: u64) {
    for place in block.chunks_exact_mut(8) {
        place.copy_from_slice(&number.to_le_bytes());
    }
}

fn number(block: &Block) -> u64 {
    let numbers = block
        .chunks_exact(8)
        .map(|place| place.iter().rev().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)));
    numbers.min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_is_older_in_any_part_is_old() {
        let mut block = [0; BLOCK_BYTES];
        put(&mut block, 0x0102_0304_0506_0708);
        assert_eq!(number(&block), 0x0102_0304_0506_0708);
        block[800..808].copy_from_slice(&7_u64.to_le_bytes());
        assert_eq!(number(&block), 7);
    }
}
