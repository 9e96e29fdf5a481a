//! The volumes that are attached past the controller: made over the RDS's REST API, with the node on their list.

use anyhow::Context;

use crate::world::{Node, World};

/// Another prefix than the world's, so that the world's own agent takes no notice of these volumes.
pub(super) const PREFIX: &str = "nqn.2026-01.io.cleat.bench:";
pub(super) const SIZE_BYTES: u64 = 16 << 20;

/// The id of a volume, which is its slot on the RDS, too.
pub(super) fn id(index: usize) -> String {
    format!("bench-{index}")
}

/// The subsystem of a volume.
pub(super) fn nqn(index: usize) -> String {
    format!("{PREFIX}{}", id(index))
}

/// Makes so many volumes that `node` may connect to.
pub(super) async fn make(world: &World, node: &Node, count: usize) -> anyhow::Result<()> {
    let host_nqn = node.host_nqn().await?;
    for index in 0..count {
        let slot = id(index);
        let properties = serde_json::json!({
            "type": "file",
            "slot": slot,
            "file-path": format!("storage-pool/bench/{slot}.img"),
            "file-size": SIZE_BYTES.to_string(),
            "mount-filesystem": "no",
            "nvme-tcp-export": "yes",
            "nvme-tcp-server-nqn": nqn(index),
            "nvme-tcp-server-allow-host-name": host_nqn,
        });
        world.rds.put_disk(&properties).await.with_context(|| format!("make disk {slot}"))?;
    }
    Ok(())
}
