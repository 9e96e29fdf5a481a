//! The sequence that shows whether a handoff lost, doubled or mixed up a write.
//!
//! A *run* of the writer owns one *region* of the device and writes records into it, block after block; nothing is
//! ever written over. The sequence number goes on from run to run, so the device as a whole must hold each number
//! exactly once, and a write that lands after its host should have stopped is still there to be seen: its region
//! holds a number that the run was never told was written, or that belongs to the next run.
//!
//! In: blocks as a target holds them, and what each run said of itself. Out: a [`Report`]. Nothing here does I/O
//! but [`scan`].

pub mod census;
pub mod checker;
pub mod record;
pub mod scan;

pub use census::{Census, RunCensus};
pub use checker::{Checker, Report, RunFacts};
pub use record::{BLOCK_BYTES, Block, Name, Record};

/// Where the records of each run lie: regions of equal size, one after the other, from the start of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    region_blocks: u64,
}

/// A region size that holds no record.
#[derive(Debug, thiserror::Error)]
#[error("a region of {bytes} bytes holds no block of {BLOCK_BYTES} bytes, or is no multiple of it")]
pub struct BadRegion {
    bytes: u64,
}

impl Layout {
    /// Regions of this many bytes.
    ///
    /// # Errors
    /// If that is no positive multiple of [`BLOCK_BYTES`].
    pub fn new(region_bytes: u64) -> Result<Self, BadRegion> {
        let block = BLOCK_BYTES as u64;
        if region_bytes == 0 || !region_bytes.is_multiple_of(block) {
            return Err(BadRegion { bytes: region_bytes });
        }
        Ok(Self { region_blocks: region_bytes / block })
    }

    /// How many records a region takes.
    #[must_use]
    pub fn region_blocks(self) -> u64 {
        self.region_blocks
    }

    /// The region that a block belongs to, and its place there.
    #[must_use]
    pub fn place(self, block: u64) -> (u64, u64) {
        (block / self.region_blocks, block % self.region_blocks)
    }

    /// The block where record number `index` of a region lies.
    #[must_use]
    pub fn block(self, region: u32, index: u64) -> u64 {
        u64::from(region) * self.region_blocks + index
    }
}
