//! A storage network that drops packets: what attaches and detaches of many volumes make of it.

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, World};
use cleat_rig::Network;
use futures_util::future::join_all;
use tonic::Code;

use crate::fixture::{self, attachment, delete, holds_nothing};

/// As many as are moved when a host is evacuated.
const VOLUMES: usize = 32;

/// The kernel makes one connect at a time, and is at one to a portal that drops packets for 3 s: given to it one by one,
/// they would take a minute and a half, and the node that is heard all the time would be fenced.
pub(crate) async fn holds_up_neither_attaches_nor_detaches_and_fences_nobody(
    world: &World,
) -> anyhow::Result<()> {
    let mut volumes = Vec::new();
    for number in 0..VOLUMES {
        volumes.push(fixture::volume(world, &format!("dead-portal-{number}"), Access::RwoBlock).await?);
    }
    let fences = async || {
        let metrics = world.controller.metrics().await?;
        let [ended, now] = ["cleat_controller_fences_total", "cleat_controller_fences_under_way"]
            .map(|name| metrics.sum(name, &[]));
        anyhow::Ok(ended + now)
    };
    let before = fences().await?;
    world.a().machine().cut_path(Network::Storage1)?;

    let published = join_all(volumes.iter().map(|volume| world.publish(volume, world.a()))).await;
    for (volume, published) in volumes.iter().zip(published) {
        // A slow host may take longer for all of them than a Publish has; its caller repeats it, as a sidecar does.
        if let Err(status) = published {
            ensure!(status.code() == Code::Unavailable, "Publish of {}: {status}", volume.id);
            world
                .publish(volume, world.a())
                .await
                .with_context(|| format!("second Publish of {}", volume.id))?;
        }
        let seen = attachment(world, volume, world.a()).await?.context("no attachment")?;
        let reported = seen.reported.context("nothing is reported")?;
        let live: Vec<&str> = reported
            .paths
            .iter()
            .filter(|path| path.state == "live")
            .map(|path| path.portal.as_str())
            .collect();
        ensure!(live == ["10.77.2.1:4420"], "{}: {:?}", volume.id, reported.paths);
    }
    let unpublished = join_all(volumes.iter().map(|volume| world.unpublish(volume, world.a()))).await;
    for (volume, unpublished) in volumes.iter().zip(unpublished) {
        unpublished.with_context(|| format!("Unpublish of {}", volume.id))?;
        holds_nothing(world, volume, world.a()).await?;
    }
    ensure!(fences().await? == before, "a node that is heard was fenced");

    world.a().machine().restore_path(Network::Storage1)?;
    for volume in &volumes {
        delete(world, volume).await?;
    }
    Ok(())
}
