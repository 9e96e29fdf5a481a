//! The writer: successive records, each in its own block, as fast as it is told, until it is told to stop.
//!
//! It runs in guests, so it is built of the standard library's threads only. In: options, and words on standard
//! input. Out: records on the device and [`Event`]s as JSON lines. What always holds: a number is reported as
//! acknowledged only after the kernel has said that its write is complete (direct I/O), and no block is written
//! with anything but its one record.

pub mod args;
pub mod census;
pub mod engine;
pub mod event;
pub mod overwrite;
pub mod verify;

pub use args::{CensusArgs, OnError, Sabotage, VerifyArgs, WriteArgs};
pub use event::{Event, StopReason};
pub use overwrite::{OverwriteArgs, Overwritten};
