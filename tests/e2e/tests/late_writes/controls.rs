//! Negative controls: fences that are believed in this field and let a write land later. A test here passes if its
//! fence is seen to fail; should a kernel one day make one hold, the test says so by failing.

use std::time::{Duration, Instant};

use cleat_e2e::world::World;
use rds_sim::pretend::Pretend;

use crate::figures::figure;
use crate::flood::{Flood, held, held_and_narrow, held_with_reservations};

/// A host has noticed that it is cut off, and has deleted its controllers, before this.
const UNTIL_NOTICED: Duration = Duration::from_secs(16);

/// Host list, then all sessions cut by taking the portals away, and nothing that waits.
pub(crate) async fn a_plain_cut_lets_a_write_land_later(world: &World) -> anyhow::Result<()> {
    let flood = Flood::begin(world, "control-cut", held()).await?;
    flood.wait_burden("the target to have received the writes", |burden| burden.in_flight >= 100).await?;
    plain_cut(&flood, "plain cut").await
}

/// The same with a store that takes little at a time: the rest of the host's writes waits in the target's sockets.
pub(crate) async fn a_plain_cut_with_full_sockets_lets_writes_land_later(
    world: &World,
) -> anyhow::Result<()> {
    let flood = Flood::begin(world, "control-full", held_and_narrow()).await?;
    flood.wait_burden("the target's sockets to be full", |burden| burden.unread_bytes > 100 << 10).await?;
    plain_cut(&flood, "plain cut, full sockets").await
}

async fn plain_cut(flood: &Flood<'_>, what: &str) -> anyhow::Result<()> {
    flood.world.rds.pretend(Pretend::Drain).await?;
    let begun = Instant::now();
    flood.exclude_a().await?;
    flood.toggle_export().await?;
    let took = begun.elapsed();
    let then = flood.census().await?;
    let late = flood.seen_to_fail(&then).await?;
    figure(what, took, format!("(and {late} writes or more landed later)"));
    Ok(())
}

/// A reservation's preempt-and-abort that answers before what it aborts has landed.
pub(crate) async fn an_abort_that_does_not_wait_lets_a_write_land_later(world: &World) -> anyhow::Result<()> {
    let flood = crate::ladder::reserved(world, "control-abort", held_with_reservations()).await?;
    let begun = Instant::now();
    flood.b.preempt_and_abort(&flood.b_device, 0xb, 0xa).await?;
    let took = begun.elapsed();
    let then = flood.census().await?;
    let late = flood.seen_to_fail(&then).await?;
    figure("preempt-and-abort", took, format!("(and {late} writes or more landed later)"));
    Ok(())
}

/// A host that is cut off deletes its dead controllers and truthfully says that it has none.
pub(crate) async fn deleting_dead_controllers_lets_a_write_land_later(world: &World) -> anyhow::Result<()> {
    let flood = Flood::begin_held_for(world, "control-absent", UNTIL_NOTICED).await?;
    flood.wait_burden("the target to have received the writes", |burden| burden.in_flight >= 100).await?;
    let begun = Instant::now();
    for network in cleat_rig::Network::STORAGE {
        flood.a.node().machine().cut_path(network)?;
    }
    flood.a.wait_dead(&flood.volume).await?;
    flood.a.delete_controllers(&flood.volume).await?;
    let took = begun.elapsed();
    let then = flood.census().await?;
    let late = flood.seen_to_fail(&then).await?;
    figure("cut off, dead controllers deleted", took, format!("(and {late} writes or more landed later)"));
    Ok(())
}
