//! Detach while something uses the device that no open descriptor shows: inside the kernel, or in a memory map.
//!
//! In each case the detach is refused as in use and changes nothing, and succeeds once the use has ended.

use anyhow::{Context, ensure};
use cleat_e2e::world::{Access, Look, NQN_PREFIX, Node, Volume, World, wait_for};
use cleat_rig::{Command, Daemon};
use tonic::Code;

use crate::fixture::{
    self, SOON, controllers, delete, holds_nothing, refused, unpublish_until_done, wait_live,
};

/// The volume's head on a node.
pub(crate) async fn device(node: &Node, volume: &Volume) -> anyhow::Result<String> {
    let nqn = format!("{NQN_PREFIX}{}", volume.id);
    let script = format!(
        "for s in /sys/class/nvme-subsystem/*; do [ $(cat $s/subsysnqn) = {nqn} ] || continue; \
         for d in $s/nvme*n1; do echo /dev/${{d##*/}} | grep -v c; done; done"
    );
    let device = node.sh(&script).await?.trim().to_owned();
    ensure!(device.starts_with("/dev/nvme") && !device.contains(char::is_whitespace), "device {device:?}");
    Ok(device)
}

/// Attaches a volume that no pod has: where its device is on the node.
async fn attached(world: &World, name: &str) -> anyhow::Result<(Volume, String)> {
    let volume = fixture::volume(world, name, Access::RwoBlock).await?;
    world.attach(&volume, world.a()).await?;
    world.a().unpublish(&volume).await.context("NodeUnpublishVolume")?;
    world.a().unstage(&volume).await.context("NodeUnstageVolume")?;
    wait_live(world.a(), &volume, 2).await?;
    let device = device(world.a(), &volume).await?;
    Ok((volume, device))
}

/// That the detach is refused as in use, with these words, and has touched nothing.
async fn is_refused(world: &World, volume: &Volume, words: &[&str]) -> anyhow::Result<()> {
    let before = controllers(world.a(), volume).await?;
    let words = [&["node-a", "in use"][..], words].concat();
    refused(world.unpublish(volume, world.a()).await, Code::FailedPrecondition, &words)?;
    let after = controllers(world.a(), volume).await?;
    ensure!(before == after, "the refused detach changed the controllers: {after:?}, before {before:?}");
    Ok(())
}

async fn ends(world: &World, volume: &Volume) -> anyhow::Result<()> {
    unpublish_until_done(world, volume, world.a()).await?;
    holds_nothing(world, volume, world.a()).await?;
    delete(world, volume).await
}

/// Starts `use-guest` and waits until it has what it is to have.
pub(crate) async fn guest(node: &Node, what: &str, path: &str) -> anyhow::Result<Daemon> {
    let log = format!("/run/use-guest-{what}.log");
    let (machine, command) = (node.shared_machine(), Command::new("use-guest").args([what, path]));
    let started = log.clone();
    let daemon = tokio::task::block_in_place(|| machine.daemon(&command, &started))?;
    wait_for(format!("use-guest {what} to be ready"), SOON, async || {
        let said = node.sh(&format!("cat {log}")).await?;
        Ok(Look::holds(said.contains("ready"), said))
    })
    .await?;
    Ok(daemon)
}

pub(crate) fn kill(daemon: &Daemon) -> anyhow::Result<()> {
    tokio::task::block_in_place(|| {
        daemon.kill(9)?;
        daemon.wait(SOON).map(drop)
    })?;
    Ok(())
}

pub(crate) async fn an_external_journal_is_refused_as_in_use(world: &World) -> anyhow::Result<()> {
    let (volume, device) = attached(world, "journal").await?;
    let script = format!(
        "set -e; /usr/sbin/mke2fs -q -F -b 4096 -O journal_dev {device}
        truncate -s 64M /data/fs.img; /usr/sbin/mke2fs -q -F -b 4096 -J device={device} /data/fs.img
        mkdir -p /run/fs; mount -t ext4 -o loop /data/fs.img /run/fs; echo written >/run/fs/file; sync"
    );
    world.a().sh(&script).await?;
    is_refused(world, &volume, &["claimed in the kernel"]).await?;
    world.a().sh("umount /run/fs; rm /data/fs.img").await?;
    ends(world, &volume).await
}

pub(crate) async fn a_file_system_that_was_unmounted_lazily_is_refused_as_in_use(
    world: &World,
) -> anyhow::Result<()> {
    let (volume, device) = attached(world, "lazily").await?;
    let script = format!(
        "set -e; /usr/sbin/mke2fs -q -F -t ext4 {device}; mkdir -p /run/fs; mount -t ext4 {device} /run/fs
        exec 3>/run/fs/open; sleep 600 >/dev/null </dev/null 2>&1 & echo $! >/run/holder; exec 3>&-; umount -l /run/fs"
    );
    world.a().sh(&script).await?;
    is_refused(world, &volume, &["claimed in the kernel by ext4 on nvme"]).await?;
    world.a().sh("kill -9 $(cat /run/holder)").await?;
    ends(world, &volume).await
}

pub(crate) async fn a_mount_in_a_namespace_without_a_process_is_refused_as_in_use(
    world: &World,
) -> anyhow::Result<()> {
    let (volume, device) = attached(world, "pinned").await?;
    let script = format!(
        "set -e; /usr/sbin/mke2fs -q -F -t ext4 {device}; mkdir -p /run/fs /run/pins
        mount --bind /run/pins /run/pins; mount --make-private /run/pins; touch /run/pins/mnt
        unshare -m sh -c 'mount -t ext4 {device} /run/fs && touch /run/up && exec sleep 600' \
            >/dev/null 2>&1 </dev/null & pid=$!
        for i in $(seq 100); do [ -e /run/up ] && break; sleep 0.1; done; [ -e /run/up ]
        mount --bind /proc/$pid/ns/mnt /run/pins/mnt; kill -9 $pid; rm /run/up"
    );
    world.a().sh(&script).await?;
    is_refused(world, &volume, &["claimed in the kernel by ext4 on nvme"]).await?;
    world.a().sh("umount /run/pins/mnt; umount /run/pins").await?;
    ends(world, &volume).await
}

pub(crate) async fn a_memory_map_without_a_descriptor_is_refused_with_its_process(
    world: &World,
) -> anyhow::Result<()> {
    let (volume, device) = attached(world, "mapped").await?;
    let mapper = guest(world.a(), "map", &device).await?;
    let pid = format!("process {} (use-guest) by a memory map", mapper.pid());
    is_refused(world, &volume, &[&pid]).await?;
    kill(&mapper)?;
    ends(world, &volume).await
}

/// Root may not look into it, and need not: no device is opened through an ordinary user's mount.
pub(crate) async fn a_users_fuse_mount_does_not_keep_a_volume_from_being_detached(
    world: &World,
) -> anyhow::Result<()> {
    let (volume, _) = attached(world, "fuse").await?;
    world.a().sh("modprobe fuse 2>/dev/null; mkdir -p /run/fuse; chmod 666 /dev/fuse").await?;
    let holder = guest(world.a(), "fuse", "/run/fuse").await?;
    world.unpublish(&volume, world.a()).await.context("ControllerUnpublishVolume")?;
    kill(&holder)?;
    ends(world, &volume).await
}
