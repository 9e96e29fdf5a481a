//! The questions: what is tried, and what its outcome means.
//!
//! Comes in: a [`Bench`] with nobody connected and nobody on the disk's list. Goes out: an answer, or what
//! prevented one. A question leaves connections behind: [`Bench::clear`] deletes them before the next.

pub(crate) mod acl;
pub(crate) mod auth;
pub(crate) mod drain;
pub(crate) mod grow;
pub(crate) mod reservations;
pub(crate) mod toggle;

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::node::{Device, NewHost, ProbeNode};
use crate::pulse::Pulse;
use crate::scratch::Scratch;
use crate::trouble::{QuestionError, until};
use crate::volley::Volley;

/// Longest time of a first write to a disk that was just connected.
const FIRST_WRITE: Duration = Duration::from_secs(30);
/// A store that needs longer for a write than this is not waited for.
const SLOWEST: Duration = Duration::from_secs(60);
/// A write that takes at least this long shows whether something waits for it: observation has delays of its
/// own.
pub(crate) const SLOW: Duration = Duration::from_secs(1);

/// The scratch disk, and this node's way to it.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) node: ProbeNode,
    pub(crate) scratch: Scratch,
    /// How long a volley's fastest write took when nothing disturbed it.
    usual: Mutex<Option<Duration>>,
}

/// A host that is connected and writes.
pub(crate) struct Writer {
    pub(crate) host: NewHost,
    pub(crate) device: Device,
    pub(crate) pulse: Pulse,
}

impl Bench {
    pub(crate) fn new(node: ProbeNode, scratch: Scratch) -> Self {
        Self { node, scratch, usual: Mutex::new(None) }
    }

    /// Makes it so: nobody connected, nobody on the list, the export on.
    pub(crate) async fn clear(&self) -> Result<(), QuestionError> {
        self.node.disconnect_all().await?;
        self.scratch.admit(&[]).await?;
        self.scratch.show().await?;
        Ok(())
    }

    /// Makes a new host, puts it on the list, connects it and lets it write.
    pub(crate) async fn writer(&self) -> Result<Writer, QuestionError> {
        let host = self.node.fresh_host();
        self.scratch.admit(&[&host]).await?;
        let device = self.node.connect(&host).await?;
        let pulse = Pulse::start(self.node.open_device(&device).await?, device.block_bytes)?;
        until("a first write", FIRST_WRITE, async || match pulse.beats() {
            beats if beats.written > 0 => Ok(Some(())),
            beats => beats
                .failed
                .map_or(Ok(None), |error| Err(QuestionError::unclear(format!("no write: {error}")))),
        })
        .await?;
        Ok(Writer { host, device, pulse })
    }

    /// Makes a new host, puts it on the list beside these others, connects it and opens its device.
    pub(crate) async fn opened(
        &self,
        others: &[&NewHost],
    ) -> Result<(NewHost, Device, Arc<File>), QuestionError> {
        let host = self.node.fresh_host();
        let hosts: Vec<&NewHost> = others.iter().copied().chain([&host]).collect();
        self.scratch.admit(&hosts).await?;
        let device = self.node.connect(&host).await?;
        let file = self.node.open_device(&device).await?;
        Ok((host, device, file))
    }

    /// How long a write takes here when nothing disturbs it: the fastest of a volley. Measured once.
    pub(crate) async fn usual(&self, device: &Device, file: &Arc<File>) -> Result<Duration, QuestionError> {
        if let Some(usual) = *self.usual.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(usual);
        }
        let ended = Volley::send(file, device.block_bytes, fresh_stamp())?.all_ended(SLOWEST).await?;
        if ended.iter().any(|ended| !ended.well) {
            return Err(QuestionError::unclear("a write failed although nothing was done to the disk"));
        }
        let usual = ended.iter().map(|ended| ended.took).min().unwrap_or_default();
        *self.usual.lock().unwrap_or_else(PoisonError::into_inner) = Some(usual);
        Ok(usual)
    }

    /// As [`Bench::usual`], if that is slow enough to show something.
    pub(crate) async fn slow_enough(
        &self,
        device: &Device,
        file: &Arc<File>,
    ) -> Result<Duration, QuestionError> {
        let usual = self.usual(device, file).await?;
        if usual >= SLOW {
            return Ok(usual);
        }
        Err(QuestionError::unclear(format!(
            "writes land within {} ms here, too soon to be seen on their way; they would have to take {} s",
            usual.as_millis().max(1),
            SLOW.as_secs()
        )))
    }
}

/// A stamp that no earlier volley had.
pub(crate) fn fresh_stamp() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

/// Reads the places again and again for `time`; returns when the first of them took the stamp only now,
/// counted from the call.
pub(crate) async fn landed_after(
    bench: &Bench,
    device: &Device,
    file: &Arc<File>,
    (stamp, before): (u64, usize),
    time: Duration,
) -> Result<Option<Duration>, QuestionError> {
    let begun = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(200));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while begun.elapsed() < time {
        pace.tick().await;
        if landed(bench, device, file, stamp).await? > before {
            return Ok(Some(begun.elapsed()));
        }
    }
    Ok(None)
}

/// How many places have the stamp.
pub(crate) async fn landed(
    bench: &Bench,
    device: &Device,
    file: &Arc<File>,
    stamp: u64,
) -> Result<usize, QuestionError> {
    let stamps = crate::volley::read(bench.node.workers(), file, device.block_bytes).await?;
    Ok(stamps.iter().filter(|found| **found == stamp).count())
}
