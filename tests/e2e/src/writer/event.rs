//! What a writer says, one JSON line each. Times are microseconds of the guest's own clock: they are differences,
//! never moments, so that whoever reads them can place them on his own clock.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::sequence::Name;

/// One line of a writer's standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The device is open and the writer waits for `go NUMBER`.
    Armed {
        /// This run's nonce.
        nonce: Uuid,
    },
    /// Writing begins.
    Started {
        /// This run's nonce.
        nonce: Uuid,
        /// The volume that is written into each record.
        volume: Name,
        /// The node that is written into each record.
        node: Name,
        /// The region that this run owns.
        region: u32,
        /// The first number.
        start_sequence: u64,
    },
    /// The first write of this run is complete.
    FirstAck {
        /// Its number.
        sequence: u64,
        /// How long ago it was acknowledged when this line was written.
        age_us: u64,
        /// How long the write took.
        latency_us: u64,
    },
    /// How far it has come.
    Progress(Counts),
    /// A write failed.
    Error {
        /// Its number.
        sequence: u64,
        /// The kernel's error number, if it gave one.
        errno: Option<i32>,
        /// The error in words.
        message: String,
    },
    /// The run is over: nothing is in flight any more.
    Stopped {
        /// Why.
        reason: StopReason,
        /// The final counts.
        #[serde(flatten)]
        counts: Counts,
    },
}

/// What a run has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// The last number up to which all are acknowledged.
    pub last_acked: Option<u64>,
    /// The last number that was handed to the kernel.
    pub last_issued: Option<u64>,
    /// Acknowledged writes.
    pub writes: u64,
    /// Writes that failed.
    pub errors: u64,
    /// The longest time from one acknowledgement to the next.
    pub max_gap_us: u64,
    /// The longest that a write took.
    pub max_latency_us: u64,
    /// How long ago the last acknowledgement was when this line was written.
    pub age_us: u64,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// `stop` on standard input.
    Asked,
    /// SIGTERM or SIGINT.
    Signal,
    /// `--count` writes are done.
    Count,
    /// The region is full.
    RegionFull,
    /// A write failed, and errors end the run.
    Error,
    /// Nobody reads its lines any more.
    Unheard,
}
