//! The volumes that are attached past the controller: made over the RDS's REST API, with the node on their list.

use anyhow::Context;

use crate::world::{Node, World};

/// Another prefix than the world's, so that the world's own agent takes no notice of these volumes.
pub(super) const PREFIX: &str = "nqn.2026-01.io.cleat.bench:";
/// And another than the second agent's: what is connected by hand is nobody's. An agent takes away the controllers of
/// a volume whose grant has ended.
const BARE_PREFIX: &str = "nqn.2026-01.io.cleat.bare:";
pub(super) const SIZE_BYTES: u64 = 16 << 20;

/// The id of the second agent's volume, which is its slot on the RDS, too.
pub(super) fn id(index: usize) -> String {
    format!("bench-{index}")
}

/// The subsystem of the second agent's volume.
pub(super) fn nqn(index: usize) -> String {
    format!("{PREFIX}{}", id(index))
}

/// The subsystem of a volume that is connected without any agent.
pub(super) fn bare_nqn(index: usize) -> String {
    format!("{BARE_PREFIX}bare-{index}")
}

/// Makes so many volumes of both kinds that `node` may connect to.
pub(super) async fn make(world: &World, node: &Node, count: usize) -> anyhow::Result<()> {
    make_for_the_agent(world, node, count).await?;
    let host_nqn = node.host_nqn().await?;
    for index in 0..count {
        make_one(world, &host_nqn, &format!("bare-{index}"), &bare_nqn(index)).await?;
    }
    Ok(())
}

/// Makes so many volumes of the second agent's.
pub(super) async fn make_for_the_agent(world: &World, node: &Node, count: usize) -> anyhow::Result<()> {
    let host_nqn = node.host_nqn().await?;
    for index in 0..count {
        make_one(world, &host_nqn, &id(index), &nqn(index)).await?;
    }
    Ok(())
}

async fn make_one(world: &World, host_nqn: &str, slot: &str, nqn: &str) -> anyhow::Result<()> {
    let properties = serde_json::json!({
        "type": "file",
        "slot": slot,
        "file-path": format!("storage-pool/bench/{slot}.img"),
        "file-size": SIZE_BYTES.to_string(),
        "mount-filesystem": "no",
        "nvme-tcp-export": "yes",
        "nvme-tcp-server-nqn": nqn,
        "nvme-tcp-server-allow-host-name": host_nqn,
    });
    world.rds.put_disk(&properties).await.with_context(|| format!("make disk {slot}"))
}
