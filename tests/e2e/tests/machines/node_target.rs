//! The kubelet's target path: what lies there is not trusted, and not deleted.

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, World};

use crate::fixture::{self, attached, remove};

/// What a crash left behind, as a mount or as a bare device node: its number is now another disk's, and writing there
/// would be that disk's end.
pub(crate) async fn a_stale_device_at_the_target_is_not_taken_for_the_volume(
    world: &World,
) -> anyhow::Result<()> {
    let node = world.a();
    let other = fixture::volume(world, "other-disk", Access::RwoBlock).await?;
    let volume = fixture::volume(world, "stale-node", Access::RwoBlock).await?;
    let victim = world.attach(&other, node).await?;
    let context = world.publish(&volume, node).await?;
    node.stage(&volume, &context).await?;
    let number = |path: &str| format!("stat -L -c '%t %T' {path}");
    let target = node.target_path(&volume);
    let others = node.sh(&number(&victim.target_path)).await?;
    let device =
        fixture::attachment(world, &volume, node).await?.and_then(|a| a.reported).unwrap_or_default();
    let own = node.sh(&number(&format!("/dev/{}", device.device))).await?;
    ensure!(own != others, "two volumes with one device number: {own}");

    let mounted = format!(": >{target}; mount --bind {} {target}", victim.target_path);
    // stat gives hexadecimal numbers, mknod wants decimal ones.
    let bare = format!("set -- {others}; mknod {target} b $((0x$1)) $((0x$2))");
    node.sh(&format!("mkdir -p $(dirname {target})")).await?;
    for leave in [&mounted, &bare] {
        node.sh(leave).await?;
        node.publish(&volume, &context).await.with_context(|| format!("NodePublishVolume after {leave}"))?;
        let found = node.sh(&number(&target)).await?;
        ensure!(found == own, "the target is {found}, the volume {own}, the other disk {others}");
        node.unpublish(&volume).await?;
        node.sh(leave).await?;
        node.unpublish(&volume).await.with_context(|| format!("NodeUnpublishVolume after {leave}"))?;
        node.sh(&format!("test ! -e {target}")).await?;
    }

    ensure!(
        node.sh(&number(&victim.target_path)).await? == others,
        "the other disk's own target was changed"
    );
    for volume in [&volume, &other] {
        remove(world, volume, node).await?;
    }
    Ok(())
}

/// `rm -rf` of a target path that is a mount has emptied volumes before.
pub(crate) async fn removing_a_target_never_deletes_what_is_mounted_there(
    world: &World,
) -> anyhow::Result<()> {
    let node = world.a();
    let (volume, attached) = attached(world, "trap", Access::RwoBlock, node).await?;
    node.unpublish(&volume).await?;
    let target = &attached.target_path;

    // Somebody's folder is mounted where the pod's device was.
    node.sh(&format!(
        "mkdir -p /data/precious/below {target} && echo keep >/data/precious/below/file && \
         mount --bind /data/precious {target}"
    ))
    .await?;
    let mounted = node.unpublish(&volume).await;
    ensure!(node.sh("cat /data/precious/below/file").await? == "keep", "deleted: {mounted:?}");
    node.sh(&format!("umount {target} 2>/dev/null; rm -rf /data/precious; rmdir {target} 2>/dev/null; true"))
        .await?;

    // And a folder that is not empty, with nothing mounted.
    node.sh(&format!("mkdir -p {target}/below && echo keep >{target}/below/file")).await?;
    let full = node.unpublish(&volume).await;
    ensure!(node.sh(&format!("cat {target}/below/file")).await? == "keep", "deleted: {full:?}");
    ensure!(full.is_err(), "said to be removed, and is there");
    node.sh(&format!("rm -r {target}")).await?;
    node.unpublish(&volume).await?;
    remove(world, &volume, node).await
}
