//! The barriers that hold: host list, cut, and the namespace taken down with no session left; and an abort that waits.

use std::time::{Duration, Instant};

use anyhow::ensure;
use cleat_e2e::world::World;

use crate::figures::figure;
use crate::flood::{Flood, SOON, held, held_and_narrow, held_with_reservations, write};

/// What a survivor with two paths may be without its volume beyond the drain itself: to notice, and to connect again
/// (the kernel tries once a second), on emulated machines.
const BACK: Duration = Duration::from_secs(8);

/// Nothing lands afterwards, and a host that is still allowed stalls once and sees no error.
pub(crate) async fn taking_the_namespace_down_waits_for_what_was_received(
    world: &World,
) -> anyhow::Result<()> {
    let flood = Flood::begin(world, "ladder", held()).await?;
    let mut survivor = write(flood.b.node(), &flood.b_device, "ladder", 1, 1, 10_000).await?;
    survivor.wait_writes(20, SOON).await?;
    flood.wait_burden("the target to have received the writes", |burden| burden.in_flight >= 100).await?;
    let (took, drained) = climb(&flood).await?;
    figure("host list, cut, drain", took, format!("(of which {:.3} s drain)", drained.as_secs_f64()));
    survivor.wait_progress(20, SOON).await?;
    let stopped = survivor.stop().await?;
    ensure!(stopped.counts.errors == 0, "writes of the survivor failed: {:?}", stopped.errors);
    let stall = Duration::from_micros(stopped.counts.max_gap_us);
    figure("survivor's longest stall", stall, "");
    ensure!(stall < drained + BACK, "the survivor stalled for {stall:?}, the drain took {drained:?}");
    Ok(())
}

/// What waits in the sockets of a session that was cut must not be taken for a command once the namespace is back.
pub(crate) async fn with_full_sockets_nothing_lands_after_the_namespace_was_down(
    world: &World,
) -> anyhow::Result<()> {
    let flood = Flood::begin(world, "ladder-full", held_and_narrow()).await?;
    let full = flood
        .wait_burden("the target's sockets to be full", |burden| burden.unread_bytes > 100 << 10)
        .await?;
    let (took, _) = climb(&flood).await?;
    figure("host list, cut, drain, full sockets", took, format!("({} KiB unread)", full.unread_bytes >> 10));
    Ok(())
}

async fn climb(flood: &Flood<'_>) -> anyhow::Result<(Duration, Duration)> {
    let begun = Instant::now();
    flood.exclude_a().await?;
    let off = Instant::now();
    flood.world.rds.set_export(&flood.volume.slot, false).await?;
    let drained = off.elapsed();
    flood.world.rds.set_export(&flood.volume.slot, true).await?;
    let took = begun.elapsed();
    let then = flood.census().await?;
    flood.seen_to_hold(&then).await?;
    Ok((took, drained))
}

/// A flood of a host that has registered, and another that has registered beside it.
pub(crate) async fn reserved<'w>(
    world: &'w World,
    slot: &str,
    arguments: Vec<String>,
) -> anyhow::Result<Flood<'w>> {
    let flood = Flood::begin_reserved(world, slot, arguments).await?;
    flood.wait_burden("the target to have received the writes", |burden| burden.in_flight >= 100).await?;
    Ok(flood)
}

/// A target whose abort waits needs nothing else.
pub(crate) async fn an_abort_that_waits_is_a_barrier(world: &World) -> anyhow::Result<()> {
    let flood = reserved(world, "ladder-abort", held_with_reservations()).await?;
    let begun = Instant::now();
    flood.b.preempt_and_abort(&flood.b_device, 0xb, 0xa).await?;
    let took = begun.elapsed();
    let then = flood.census().await?;
    flood.seen_to_hold(&then).await?;
    figure("preempt-and-abort", took, "(and nothing landed later)");
    Ok(())
}
