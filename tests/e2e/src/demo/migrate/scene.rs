//! One migration, from a volume that is made for it to one that is taken away.
//!
//! In: a world with an RDS and two nodes that have QEMU. Out: lines, and what came of it, also where it broke off. What
//! always holds: the volume is attached on either node before its QEMU begins, and detached only after it has ended, as the
//! kubelet does it for a pod; what arrived at the target is noted from before the guest's first write to after the proof that
//! the source cannot write.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cleat_rig::{Machine, Network};
use tokio::task::block_in_place;

use super::super::PATIENCE;
use super::super::say::{Say, duration};
use super::{MigrateSabotage, MigrationOutcome};
use crate::vm::arrivals;
use crate::vm::guest::GuestProgram;
use crate::vm::migrate::{self, MigrateEnd, MigrateSettings, Migrated};
use crate::vm::qemu::{self, Entry, Vm, VmSpec};
use crate::vm::{records, trace};
use crate::world::{Access, Attached, Look, Node, Volume, World, wait_for};

/// The VM, and the volume's name.
const NAME: &str = "vm-demo";
/// Only what is written takes place.
const VOLUME_BYTES: u64 = 1 << 30;
/// Where the target node's QEMU listens for the stream.
const MIGRATION_PORT: u16 = 4445;
/// Writes on either side, in dots of 64.
const SOME_DOTS: usize = 4;
/// Dots of a source that goes on after the switchover, when sabotaged.
const LATE_DOTS: usize = 1;
/// A BIOS in an emulated node's emulator, up to its first writes.
const BOOT: Duration = Duration::from_secs(60);

/// A migration under way.
pub(super) struct Scene<'s> {
    world: &'s World,
    sabotage: Option<MigrateSabotage>,
    say: &'s mut Say,
    came: MigrationOutcome,
}

/// The volume, who writes to it, and by which controllers each side has it.
struct Disk {
    volume: Volume,
    nqn: String,
    program: GuestProgram,
    source: BTreeSet<u32>,
    target: BTreeSet<u32>,
    /// Records of which the guest has said on either node that they were acknowledged.
    acknowledged: u64,
}

impl<'s> Scene<'s> {
    pub(super) fn new(world: &'s World, sabotage: Option<MigrateSabotage>, say: &'s mut Say) -> Self {
        Self { world, sabotage, say, came: MigrationOutcome::of(NAME) }
    }

    pub(super) fn into_outcome(self) -> MigrationOutcome {
        self.came
    }

    pub(super) async fn all(&mut self) -> anyhow::Result<()> {
        let world = self.world;
        let (from, to) = (world.a(), world.b());
        let created = world.create_volume(NAME, Access::RwxBlock, VOLUME_BYTES).await?;
        let volume = created.value.clone();
        let nqn = world.rds.disk(&volume.id).await?.nqn;
        let nonce = u32::from_le_bytes(*uuid::Uuid::new_v4().as_bytes().first_chunk().context("no number")?);
        let program = GuestProgram::filling(nonce, volume.size_bytes);
        let (source, target) = (BTreeSet::new(), BTreeSet::new());
        let mut disk = Disk { volume, nqn, program, source, target, acknowledged: 0 };

        let at_source = world.attach(&disk.volume, from).await?;
        self.say.took("attached to node-a", at_source.times.total());
        let source = self.boot(from, &at_source, &disk.program).await?;
        let at_target = world.attach(&disk.volume, to).await?;
        self.say.took("attached to node-b, beside node-a, whose guest writes", at_target.times.total());
        let target = start(to, &at_target, Entry::Incoming)?;
        wrote(&source, SOME_DOTS).await?;
        self.note_controllers(&mut disk).await?;

        self.migrate(&source, &target, to)?;
        if self.sabotage == Some(MigrateSabotage::SourceGoesOn) {
            self.let_source_go_on(&source).await?;
        }
        wrote(&target, SOME_DOTS).await?;
        self.say.line("the guest writes on node-b");
        self.note_controllers(&mut disk).await?;

        disk.acknowledged = block_in_place(|| source.said())?.acknowledged();
        self.release_source(source, &at_source, &disk).await?;
        block_in_place(|| target.halt())?;
        disk.acknowledged += block_in_place(|| target.said())?.acknowledged();
        let judged = self.judge(&disk, &at_target);
        let ended = block_in_place(|| target.quit());
        judged.and(ended)?;
        world.detach(&at_target, to).await.context("node-b at the end")?;
        world.delete_volume(&disk.volume).await.context("DeleteVolume")?;
        Ok(())
    }

    /// Puts the guest on the volume and boots it, with the target noting from before its first write.
    async fn boot(&mut self, node: &Node, at: &Attached, program: &GuestProgram) -> anyhow::Result<Vm> {
        block_in_place(|| {
            qemu::install(node.machine(), &at.target_path, program)?;
            trace::begin(self.world.rds.machine())
        })?;
        let vm = start(node, at, Entry::Boot)?;
        block_in_place(|| vm.run())?;
        wait_dots(&vm, 1, BOOT)
            .await
            .with_context(|| format!("QEMU wrote: {}", block_in_place(|| vm.log())))?;
        self.say.line(&format!("a guest of QEMU on {} writes records as fast as it can", node.name()));
        Ok(vm)
    }

    /// Adds the controllers that either node has now: a path that was made again has another one.
    async fn note_controllers(&mut self, disk: &mut Disk) -> anyhow::Result<()> {
        disk.source.extend(self.world.a().controller_ids(&disk.nqn).await?);
        disk.target.extend(self.world.b().controller_ids(&disk.nqn).await?);
        ensure!(!disk.source.is_empty() && !disk.target.is_empty(), "a node has no controller of the volume");
        Ok(())
    }

    fn migrate(&mut self, source: &Vm, target: &Vm, to: &Node) -> anyhow::Result<()> {
        let listen: SocketAddr = (to.machine().address(Network::Management), MIGRATION_PORT).into();
        let settings = MigrateSettings::default();
        let came = block_in_place(|| migrate::migrate(source.qmp(), target.qmp(), listen, &settings))?;
        match &came.end {
            MigrateEnd::Completed => {}
            MigrateEnd::Failed(why) => bail!("QEMU's migration failed: {why}"),
            MigrateEnd::Cancelled => bail!("QEMU's migration was cancelled"),
        }
        self.tell_times(&came);
        Ok(())
    }

    fn tell_times(&mut self, came: &Migrated) {
        let shown = |time: Option<Duration>| time.map_or("unknown".to_owned(), duration);
        self.say.took("QEMU has migrated the guest to node-b", came.began.elapsed());
        self.say.detail(&format!(
            "its own pause: {}; from the source's stop to the target node's go: {}",
            shown(came.downtime),
            shown(came.pause())
        ));
    }

    async fn let_source_go_on(&mut self, source: &Vm) -> anyhow::Result<()> {
        let before = block_in_place(|| source.said())?.dots;
        block_in_place(|| source.run())?;
        self.say.line("sabotage: the source's QEMU is let go on");
        wait_dots(source, before + LATE_DOTS, PATIENCE).await
    }

    /// Ends the source's QEMU, then its attachment, as when its pod goes; what the controller makes of the migration.
    async fn release_source(&mut self, source: Vm, at: &Attached, disk: &Disk) -> anyhow::Result<()> {
        let (world, node) = (self.world, self.world.a());
        block_in_place(|| source.quit())?;
        let times = world.detach(at, node).await?;
        self.say.took("node-a detached", times.total());
        let left = node.controller_ids(&disk.nqn).await?;
        ensure!(left.is_empty(), "the kernel of node-a still has controllers of the volume: {left:?}");
        let recorded = world.controller.migrations().await?;
        let ours = recorded.iter().find(|migration| migration.volume_id == disk.volume.id);
        let ours = ours.context("the controller has no record of the migration")?;
        self.came.result = Some(ours.result.clone());
        let sides = (ours.source_node_id.as_str(), ours.target_node_id.as_str());
        ensure!(sides == ("node-a", "node-b"), "the controller has another migration on record: {ours:?}");
        ensure!(self.came.has_ended_well(), "the controller's record of the migration: {ours:?}");
        let steps: Vec<&str> = ours.steps.iter().map(|step| step.name.as_str()).collect();
        self.say.detail(&format!("recorded: {}, by way of {}", ours.result, steps.join(", ")));
        Ok(())
    }

    /// What the target saw, and what the disk holds.
    fn judge(&mut self, disk: &Disk, at: &Attached) -> anyhow::Result<()> {
        let noted = block_in_place(|| trace::end(self.world.rds.machine()))?;
        let file = self.world.folder().join("arrivals.trace");
        std::fs::write(&file, &noted).with_context(|| format!("write {}", file.display()))?;
        let judged = self.judge_trace(&noted, disk, at);
        judged.with_context(|| format!("the trace of what arrived is in {}", file.display()))
    }

    fn judge_trace(&mut self, noted: &str, disk: &Disk, at: &Attached) -> anyhow::Result<()> {
        let (node, program) = (self.world.b(), &disk.program);
        let arrived = arrivals::parse(noted)?;
        let order = arrivals::judge(&arrived, &disk.source, &disk.target);
        self.came.late_writes = Some(order.late_writes);
        let last = arrivals::last_record(&arrived, program.first_byte)?.context("nothing arrived")?;
        ensure!(last < u64::from(program.room), "record {last} arrived, which the volume has no room for");
        let read = || qemu::read_records(node.machine(), &at.target_path, program, last + 1);
        let data = records::judge(&block_in_place(read)?, program.nonce, program.first_byte, last);
        self.came.judged(&order, &data);
        self.say.line(&format!(
            "{} writes arrived from node-a, {} from node-b, {} of them twice; {} records are whole on the volume",
            order.from_source, order.from_target, order.repeats, data.whole
        ));
        let longest = |gap: Option<u64>| duration(Duration::from_micros(gap.unwrap_or_default()));
        self.say.detail(&format!(
            "longest time between two writes: {} on node-a, {} on node-b",
            longest(order.longest_source_gap_us),
            longest(order.longest_target_gap_us)
        ));
        ensure!(
            order.late_writes == 0,
            "{} writes of node-a arrived after node-b's first",
            order.late_writes
        );
        ensure!(order.is_clean(), "the order of arrivals: {order:?}");
        ensure!(data.is_clean(), "the records: {data:?}");
        ensure!(data.guest_errors == 0, "the guest saw {} writes fail", data.guest_errors);
        // No path is lost here, for which a write would be sent again.
        ensure!(order.repeats == 0, "{} writes arrived twice", order.repeats);
        ensure!(
            last + 1 >= disk.acknowledged,
            "{} records were acknowledged to the guest, and {} have arrived",
            disk.acknowledged,
            last + 1
        );
        Ok(())
    }
}

/// Starts QEMU on a node that has the volume.
fn start(node: &Node, at: &Attached, entry: Entry) -> anyhow::Result<Vm> {
    let machine: Arc<Machine> = node.shared_machine();
    block_in_place(|| Vm::start(&machine, &VmSpec::new(NAME, &at.target_path), entry))
}

/// Waits until the guest has written on for so many dots.
async fn wrote(vm: &Vm, dots: usize) -> anyhow::Result<()> {
    let before = block_in_place(|| vm.said())?.dots;
    wait_dots(vm, before + dots, PATIENCE).await
}

async fn wait_dots(vm: &Vm, dots: usize, limit: Duration) -> anyhow::Result<()> {
    wait_for(format!("{dots} times 64 writes on {}", vm.machine().name()), limit, async || {
        let said = block_in_place(|| vm.said())?;
        Ok(Look::holds(said.dots >= dots, format!("{said:?}")))
    })
    .await
    .map_err(Into::into)
}
