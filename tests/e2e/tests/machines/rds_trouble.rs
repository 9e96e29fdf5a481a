//! An RDS that is down, hangs, is slow or loses a reply, in the middle of attach and detach.
//!
//! What matters most: a volume that cannot be looked up is never called absent. NotFound makes sidecars forget.

use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, World};
use rds_sim::faults::{Action, Fault};
use tonic::{Code, Status};

use crate::fixture::{
    self, controllers, delete, holds_nothing, publish_until_done, refused, take_off, unpublish_until_done,
    wait_gone, wait_live,
};

/// What a write of the host list looks like at the RDS.
const WRITES: (&str, &str) = ("PATCH", "/rest/disk/");

fn unavailable<T>(call: &str, result: Result<T, Status>) -> anyhow::Result<()> {
    refused(result, Code::Unavailable, &[]).map(drop).with_context(|| call.to_owned())
}

/// Its management plane is away; the data plane, and what is attached, is not concerned.
pub(crate) async fn an_rds_that_is_down_is_unavailable_until_it_is_back(world: &World) -> anyhow::Result<()> {
    let held = fixture::volume(world, "rds-down-held", Access::RwoBlock).await?;
    let wanted = fixture::volume(world, "rds-down-wanted", Access::RwoBlock).await?;
    let unused = fixture::volume(world, "rds-down-unused", Access::RwoBlock).await?;
    let attached = world.attach(&held, world.a()).await?;
    let mut writer = fixture::writing(world.a(), &attached, 0, Some(1), 5).await?;

    world.rds.kill().await?;
    unavailable("Publish", world.publish(&wanted, world.b()).await)?;
    unavailable("DeleteVolume", world.delete_volume(&unused).await)?;
    unavailable("CreateVolume", world.create_volume("rds-down-new", Access::RwoBlock, 1 << 20).await)?;
    // What needs nothing of it goes on.
    ensure!(
        world.publish(&held, world.a()).await?.value == attached.context,
        "the repeat has another context"
    );
    writer.wait_progress(10, fixture::SOON).await?;
    fixture::stop_unharmed(&mut writer).await?;
    world.a().unpublish(&held).await?;
    world.a().unstage(&held).await?;
    unavailable("Unpublish", world.unpublish(&held, world.a()).await)?;

    world.rds.start().await?;
    unpublish_until_done(world, &held, world.a()).await?;
    holds_nothing(world, &held, world.a()).await?;
    publish_until_done(world, &wanted, world.b()).await?;
    wait_live(world.b(), &wanted, 2).await?;
    take_off(world, &wanted, world.b()).await?;
    for volume in [&held, &wanted, &unused] {
        delete(world, volume).await?;
    }
    Ok(())
}

/// It takes requests and answers none: each has its own deadline, and the call goes on when it comes back.
pub(crate) async fn an_rds_that_hangs_is_unavailable_until_it_answers(world: &World) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "rds-hangs", Access::RwoBlock).await?;
    let unused = fixture::volume(world, "rds-hangs-unused", Access::RwoBlock).await?;
    world.rds.add_fault(&Fault::all(Action::Hang)).await?;
    let begun = std::time::Instant::now();
    unavailable("Publish", world.publish(&volume, world.a()).await)?;
    ensure!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
    unavailable("DeleteVolume", world.delete_volume(&unused).await)?;
    world.rds.clear_faults().await?;
    delete(world, &unused).await?;
    publish_until_done(world, &volume, world.a()).await?;
    wait_live(world.a(), &volume, 2).await?;

    // And at the other end: the node has let go, and the host list is not written.
    world.rds.add_fault(&Fault::all(Action::Hang).only(WRITES.0, WRITES.1)).await?;
    let detach = world.unpublish_within(&volume, world.a(), Duration::from_secs(20)).await;
    let code = detach.map(|_| Code::Ok).unwrap_or_else(|status| status.code());
    ensure!(
        matches!(code, Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded),
        "Unpublish: {code:?}"
    );
    wait_gone(world.a(), &volume).await?;
    world.rds.clear_faults().await?;
    unpublish_until_done(world, &volume, world.a()).await?;
    holds_nothing(world, &volume, world.a()).await?;
    delete(world, &volume).await
}

/// A router under load: within the deadline of a request it is only slow.
pub(crate) async fn an_rds_that_is_slow_is_waited_for(world: &World) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "rds-slow", Access::RwoBlock).await?;
    world.rds.add_fault(&Fault::all(Action::Slow { delay_ms: 700 })).await?;
    let attached = world.publish(&volume, world.a()).await.context("Publish")?;
    ensure!(attached.took > Duration::from_millis(700), "the RDS was not asked: {:?}", attached.took);
    wait_live(world.a(), &volume, 2).await?;
    world.unpublish(&volume, world.a()).await.context("Unpublish")?;
    world.rds.clear_faults().await?;
    holds_nothing(world, &volume, world.a()).await?;
    delete(world, &volume).await
}

/// Done and not answered: the repeat finds it done, once.
pub(crate) async fn a_reply_of_the_rds_that_is_lost_is_made_good_by_the_repeat(
    world: &World,
) -> anyhow::Result<()> {
    let volume = fixture::volume(world, "rds-loses", Access::RwoBlock).await?;
    world.rds.add_fault(&Fault::next(1, Action::LoseReply).only(WRITES.0, WRITES.1)).await?;
    publish_until_done(world, &volume, world.a()).await?;
    ensure!(world.rds.allowed_hosts(&volume.id).await? == [world.a().host_nqn().await?], "the host list");
    ensure!(wait_live(world.a(), &volume, 2).await?.len() == 2);

    world.rds.add_fault(&Fault::next(1, Action::LoseReply).only(WRITES.0, WRITES.1)).await?;
    unpublish_until_done(world, &volume, world.a()).await?;
    ensure!(controllers(world.a(), &volume).await?.is_empty());
    holds_nothing(world, &volume, world.a()).await?;
    world.rds.clear_faults().await?;
    delete(world, &volume).await
}
