//! A virtual machine on two nodes that have its disks: it boots on the one, and the other takes it.
//!
//! In: a world, a node, and where on it the disks are. Out: QEMUs that are where a step of a migration has them. What always
//! holds: the guest is put on the first disk before anybody has it open; each wait has a limit, and says what the guest has
//! said last.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use cleat_rig::{Machine, Network};
use tokio::task::block_in_place;

use super::guest::GuestProgram;
use super::qemu::{self, Entry, Vm, VmSpec};
use super::trace;
use crate::world::{Look, Node, wait_for};

/// A BIOS in an emulated node's emulator, up to its first writes.
const BOOT: Duration = Duration::from_secs(60);
/// Where the target node's QEMU listens for the stream.
const MIGRATION_PORT: u16 = 4445;

/// A guest that fills a disk of this size; its records are those of no other run.
#[must_use]
pub fn program(disk_bytes: u64) -> GuestProgram {
    let (nonce, ..) = uuid::Uuid::new_v4().as_fields();
    GuestProgram::filling(nonce, disk_bytes)
}

/// Puts the guest on the first disk and boots it; it writes, and the target notes its writes from the first on. The further
/// disks come while it runs.
///
/// # Errors
/// With what QEMU wrote, if the guest does not come to write.
pub async fn boot(
    name: &str,
    rds: &Machine,
    node: &Node,
    disks: &[String],
    program: &GuestProgram,
) -> anyhow::Result<Vm> {
    let first = disks.first().context("a VM boots from a disk")?;
    block_in_place(|| {
        qemu::install(node.machine(), first, program)?;
        trace::begin(rds)
    })?;
    let vm = start(name, node, disks, Entry::Boot)?;
    block_in_place(|| vm.run())?;
    let writes = wait_dots(&vm, 1, BOOT).await;
    writes.with_context(|| format!("QEMU wrote: {}", block_in_place(|| vm.log())))?;
    plug_all(&vm, disks)?;
    Ok(vm)
}

/// Starts a QEMU that waits for the machine, with all of its disks. Blocks.
///
/// # Errors
/// With what QEMU wrote, if it does not come up.
pub fn receive(name: &str, node: &Node, disks: &[String]) -> anyhow::Result<Vm> {
    let vm = start(name, node, disks, Entry::Incoming)?;
    plug_all(&vm, disks)?;
    Ok(vm)
}

fn start(name: &str, node: &Node, disks: &[String], entry: Entry) -> anyhow::Result<Vm> {
    let first = disks.first().context("a VM has a disk")?;
    let spec = VmSpec { takes_disks: disks.len() > 1, ..VmSpec::new(name, first) };
    block_in_place(|| Vm::start(&node.shared_machine(), &spec, entry))
}

fn plug_all(vm: &Vm, disks: &[String]) -> anyhow::Result<()> {
    for (number, disk) in (0..).zip(disks).skip(1) {
        let plugged = block_in_place(|| vm.plug(number, disk));
        plugged.with_context(|| format!("add disk {number} on {}", vm.machine().name()))?;
    }
    Ok(())
}

/// Where the stream of a migration goes.
#[must_use]
pub fn listens_at(node: &Node) -> SocketAddr {
    (node.machine().address(Network::Management), MIGRATION_PORT).into()
}

/// Waits until the guest has written on for so many dots, of 64 writes each.
///
/// # Errors
/// If it does not within `limit`.
pub async fn writes_on(vm: &Vm, dots: usize, limit: Duration) -> anyhow::Result<()> {
    let before = block_in_place(|| vm.said())?.dots;
    wait_dots(vm, before + dots, limit).await
}

/// Waits until the guest has said so many dots in all.
///
/// # Errors
/// If it does not within `limit`.
pub async fn wait_dots(vm: &Vm, dots: usize, limit: Duration) -> anyhow::Result<()> {
    wait_for(format!("{dots} times 64 writes on {}", vm.machine().name()), limit, async || {
        let said = block_in_place(|| vm.said())?;
        Ok(Look::holds(said.dots >= dots, format!("{said:?}")))
    })
    .await
    .map_err(Into::into)
}
