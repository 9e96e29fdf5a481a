//! What runs on the volume while a host is fenced from it: the same in both ways.
//!
//! In: the volume's device on both hosts. Out: the survivor's longest time between two acknowledged writes. What
//! always holds: the fenced host has writes in flight when its fence begins; a survivor whose write failed is an
//! error, not a figure.

use std::time::Duration;

use anyhow::{Context, ensure};

use super::HOLD;
use crate::world::{Node, Rds, Writer};
use crate::writer::WriteArgs;
use crate::writer::args::DEFAULT_REGION_BYTES;

/// Room for a region of each host, and one more.
pub(super) const VOLUME_BYTES: u64 = 3 * DEFAULT_REGION_BYTES;
/// For what should take a second or two.
pub(super) const SOON: Duration = Duration::from_secs(45);
/// For the survivor to go on: longer than any of the kernel's own timeouts, so that a long stall is a figure.
const GOES_ON: Duration = Duration::from_secs(150);
/// Writes of the fenced host at once; the survivor has one.
const DEPTH: u16 = 16;
const INTERVAL_US: u64 = 5_000;
/// Acknowledged writes that show a writer to be at work.
const AT_WORK: u64 = 60;

/// A volume's device on a host.
pub(super) struct Seat<'n> {
    pub(super) node: &'n Node,
    pub(super) device: String,
}

/// Both writers.
pub(super) struct Load {
    fenced: Writer,
    survivor: Option<Writer>,
}

impl Load {
    /// Starts them and waits until they are at work.
    pub(super) async fn begin(
        volume: &str,
        fenced: &Seat<'_>,
        survivor: Option<&Seat<'_>>,
    ) -> anyhow::Result<Self> {
        let fenced = start(volume, fenced, 0, DEPTH).await.context("the load of the host that is fenced")?;
        let survivor = match survivor {
            Some(seat) => Some(start(volume, seat, 1, 1).await.context("the survivor's load")?),
            None => None,
        };
        Ok(Self { fenced, survivor })
    }

    /// The survivor's longest stall so far, milliseconds.
    pub(super) fn stall_ms(&self) -> Option<f64> {
        self.survivor.as_ref().map(|writer| writer.seen().counts.max_gap_us as f64 / 1000.0)
    }

    /// Waits until the survivor goes on, and stops it; its longest stall, milliseconds.
    pub(super) async fn survived(&mut self) -> anyhow::Result<Option<f64>> {
        let Some(survivor) = &mut self.survivor else {
            return Ok(None);
        };
        survivor.wait_progress(AT_WORK, GOES_ON).await.context("the survivor goes on")?;
        let stopped = survivor.stop().await.context("stop the survivor")?;
        ensure!(stopped.counts.errors == 0, "writes of the survivor failed: {:?}", stopped.errors);
        Ok(Some(stopped.counts.max_gap_us as f64 / 1000.0))
    }

    /// Ends the load of the fenced host, whose device is gone or goes.
    pub(super) async fn end(mut self) {
        // Its writes fail; that it could not be stopped in good order is to be expected.
        let _ = self.fenced.stop().await;
    }
}

async fn start(volume: &str, seat: &Seat<'_>, region: u32, depth: u16) -> anyhow::Result<Writer> {
    let mut args = WriteArgs::new(&seat.device, volume.parse()?, seat.node.name().parse()?, region);
    (args.start_seq, args.interval_us, args.queue_depth) = (Some(0), INTERVAL_US, depth);
    let mut writer = seat.node.write_with(&args).await?;
    writer.wait_writes(AT_WORK, SOON).await?;
    Ok(writer)
}

/// Has the store hold what the fenced host writes from now on, and waits until it does.
pub(super) async fn hold(rds: &Rds, slot: &str) -> anyhow::Result<()> {
    rds.hold_in_flight(slot, HOLD, DEFAULT_REGION_BYTES, u64::from(DEPTH / 2), SOON).await.map(drop)
}
