//! The troubles, one test each.

use anyhow::{Context as _, ensure};

use super::scene::{Committing, Disk, Scene, all_is_there};

/// A file system with a journal, filled by somebody else.
pub(crate) async fn a_full_disk_ends_by_itself_when_there_is_room_again(scene: &Scene) -> anyhow::Result<()> {
    let disk = scene.disk(24, 0)?;
    disk.format("")?;
    disk.mount()?;
    let (machine, store) = (disk.machine, disk.store());
    let mut committing = Committing::start(machine, &store)?;
    committing.acknowledge(20)?;
    let ballast = format!("{store}.ballast");
    // It ends when nothing more fits, and that is no success of its own.
    machine.sh(&format!("dd if=/dev/zero of={ballast} bs=64k 2>/dev/null || true"))?;
    let reason = committing.refuse()?;
    ensure!(reason.contains("no room on the disk of store /mnt/"), "{reason}");
    machine.sh(&format!("rm {ballast}"))?;
    committing.acknowledge(20).context("there is room again")?;
    all_is_there_after_the_end(&disk, committing)
}

/// Without a journal a file system goes on as soon as its disk does, and so does the store, without a restart. What the
/// kernel could not write it holds for clean, and gives to whoever reads it.
pub(crate) async fn a_disk_that_fails_writes_for_a_while_loses_nothing(scene: &Scene) -> anyhow::Result<()> {
    let mut disk = scene.disk(64, 0)?;
    disk.layer()?;
    disk.format("-O ^has_journal")?;
    disk.mount()?;
    let mut committing = Committing::start(disk.machine, &disk.store())?;
    for _ in 0..3 {
        committing.acknowledge(10 + scene.random(20))?;
        disk.fail_writes(true)?;
        says_that_the_disk_fails(&committing.refuse()?)?;
        disk.fail_writes(false)?;
        committing.acknowledge(10).context("the disk is well again")?;
    }
    all_is_there_after_the_end(&disk, committing)
}

/// With a journal the file system takes no write any more after one of its own has failed, until it is mounted anew.
pub(crate) async fn a_failed_file_system_serves_after_a_restart(scene: &Scene) -> anyhow::Result<()> {
    let mut disk = scene.disk(64, 0)?;
    disk.layer()?;
    disk.format("")?;
    disk.mount()?;
    let mut committing = Committing::start(disk.machine, &disk.store())?;
    committing.acknowledge(10 + scene.random(20))?;
    disk.fail_writes(true)?;
    says_that_the_disk_fails(&committing.refuse()?)?;
    disk.fail_writes(false)?;
    let acknowledged = committing.kill()?;
    disk.unmount()?;
    disk.mount()?;
    all_is_there(disk.machine, &disk.store(), acknowledged)?;
    let mut committing = Committing::start(disk.machine, &disk.store())?;
    committing.acknowledge(20).context("after a restart")?;
    all_is_there_after_the_end(&disk, committing)
}

fn says_that_the_disk_fails(reason: &str) -> anyhow::Result<()> {
    ensure!(reason.contains("/store") && reason.contains("check the disk"), "{reason}");
    Ok(())
}

/// The disk has a write cache of its own, which is lost with its power; what was flushed is kept.
pub(crate) async fn a_power_cut_of_the_disk_loses_nothing_acknowledged(scene: &Scene) -> anyhow::Result<()> {
    let disk = scene.disk(64, 16)?;
    let (machine, device) = (disk.machine, &disk.device);
    // The disk does what it is here for: a write that nobody flushed is gone.
    machine.sh(&format!("yes | dd of={device} bs=4k count=1 iflag=fullblock 2>/dev/null"))?;
    ensure!(machine.sh(&format!("head -c 2 {device}"))? == "y", "not written");
    disk.power(false)?;
    disk.power(true)?;
    ensure!(
        machine.sh(&format!("head -c 4096 {device} | tr -d '\\0'"))?.is_empty(),
        "the disk keeps its cache"
    );

    disk.format("")?;
    let mut acknowledged = 0;
    for round in 0..scene.rounds {
        disk.mount()?;
        all_is_there_if_any(&disk, acknowledged).with_context(|| format!("round {round}"))?;
        let mut committing = Committing::start(machine, &disk.store())?;
        committing.acknowledge(1 + scene.random(60))?;
        disk.power(false)?;
        acknowledged = committing.kill()?;
        disk.unmount()?;
        disk.power(true)?;
    }
    disk.mount()?;
    all_is_there_if_any(&disk, acknowledged)?;
    disk.unmount()
}

fn all_is_there_if_any(disk: &Disk<'_>, acknowledged: u64) -> anyhow::Result<()> {
    if acknowledged == 0 { Ok(()) } else { all_is_there(disk.machine, &disk.store(), acknowledged) }
}

/// All that was in the machine's memory is gone. What its kernel has given to the disk is kept: see [`a_power_cut_of_the_disk_loses_nothing_acknowledged`] for a
/// disk that forgets.
pub(crate) async fn a_reset_of_the_machine_loses_nothing_acknowledged(scene: &Scene) -> anyhow::Result<()> {
    let (machine, store) = (&scene.machine, "/data/store");
    for round in 0..scene.rounds {
        let mut committing = Committing::start(machine, store)?;
        committing.acknowledge(1 + scene.random(60))?;
        machine.reset()?;
        let acknowledged = committing.lost();
        all_is_there(machine, store, acknowledged).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

/// Ends the store, drops what the kernel has in memory of its disk, and looks.
fn all_is_there_after_the_end(disk: &Disk<'_>, committing: Committing) -> anyhow::Result<()> {
    let acknowledged = committing.kill()?;
    disk.unmount()?;
    disk.mount()?;
    all_is_there(disk.machine, &disk.store(), acknowledged)?;
    disk.unmount()
}
