//! One migration, from a volume that is made for it to one that is taken away.
//!
//! In: a world with an RDS and two nodes that have QEMU, and what goes wrong in it. Out: lines, and what came of it, also where
//! it broke off. What always holds: a volume is attached on either node before its QEMU begins, and detached only after it has
//! ended, as the kubelet does it for a pod (but from a node that is fenced); what arrived at the target is noted from before
//! the guest's first write to after the proof that the node which lets go cannot write.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cleat_kubevirt::script::Step;
use cleat_rig::Network;
use futures_util::future::try_join_all;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::task::block_in_place;

use super::super::PATIENCE;
use super::super::say::{Say, duration};
use super::kubevirt::{PlayedVm, SWITCHED, whose};
use super::outcome::result_to_record;
use super::{MigrateFault, MigrateSabotage, MigrationOutcome};
use crate::vm::guest::GuestProgram;
use crate::vm::migrate::{self, MigrateEnd, MigrateSettings, Migrated};
use crate::vm::on_nodes;
use crate::vm::qemu::Vm;
use crate::world::{Access, Attached, Look, Node, Rung, Volume, World, wait_for};

/// The VM, and the volume's name.
pub(super) const NAME: &str = "vm-demo";
/// The volume that comes while it runs.
const PLUGGED: &str = "vm-demo-plugged";
/// Only what is written takes place.
pub(super) const VOLUME_BYTES: u64 = 1 << 30;
/// Writes on either side, in dots of 64.
pub(super) const SOME_DOTS: usize = 4;
/// Dots of a source that goes on after the switchover, when sabotaged.
const LATE_DOTS: usize = 1;
/// What agents count of writes reaches the controller within this time.
const COUNTED: Duration = Duration::from_secs(20);
/// What QEMU writes to the disk that came later, on either node: block and byte.
pub(super) const ON_PLUGGED: [(u64, u8); 2] = [(0, 0x5a), (1, 0x5b)];
/// A stream so slow that a guest which writes never comes to its end.
const NEVER_ENDS: u64 = 64 << 10;

/// A migration under way.
pub(super) struct Scene<'s> {
    pub(super) world: &'s World,
    pub(super) fault: Option<MigrateFault>,
    sabotage: Option<MigrateSabotage>,
    pub(super) say: &'s mut Say,
    pub(super) came: MigrationOutcome,
    /// What KubeVirt has of the VM, if that is played.
    pub(super) kubevirt: Option<PlayedVm>,
    /// What was not as it should be, and kept nothing else from being looked at.
    pub(super) amiss: Vec<String>,
}

/// A volume, and by which controllers each side has it.
pub(super) struct Disk {
    pub(super) volume: Volume,
    pub(super) nqn: String,
    pub(super) source: BTreeSet<u32>,
    pub(super) target: BTreeSet<u32>,
    /// The target node's since its kernel had to connect again.
    pub(super) target_again: BTreeSet<u32>,
}

/// The disks of the VM, the first of which its guest writes to.
pub(super) struct Run {
    pub(super) disks: Vec<Disk>,
    pub(super) program: GuestProgram,
    /// Records of which the guest has said on either node that they were acknowledged.
    pub(super) acknowledged: u64,
}

impl Run {
    pub(super) fn first(&self) -> anyhow::Result<&Disk> {
        self.disks.first().context("a VM has a disk")
    }
}

/// Where the disks are on a node.
pub(super) fn paths(all: &[Attached]) -> Vec<String> {
    all.iter().map(|attached| attached.target_path.clone()).collect()
}

impl<'s> Scene<'s> {
    pub(super) fn new(
        world: &'s World,
        sabotage: Option<MigrateSabotage>,
        fault: Option<MigrateFault>,
        say: &'s mut Say,
    ) -> Self {
        let (came, kubevirt, amiss) = (MigrationOutcome::of(NAME), None, Vec::new());
        Self { world, fault, sabotage, say, came, kubevirt, amiss }
    }

    pub(super) fn into_outcome(self) -> MigrationOutcome {
        self.came
    }

    fn is(&self, fault: MigrateFault) -> bool {
        self.fault == Some(fault)
    }

    pub(super) async fn all(&mut self) -> anyhow::Result<()> {
        let world = self.world;
        let (from, to) = (world.a(), world.b());
        let mut run = self.make_disks().await?;

        self.vm_made(&run).await?;
        let at_source = self.attach(&run.disks, from).await?;
        self.say.took("attached to node-a", slowest(&at_source));
        let disks = paths(&at_source);
        let source = on_nodes::boot(NAME, world.rds.machine(), from, &disks, &run.program).await?;
        self.say.line("a guest of QEMU on node-a writes records as fast as it can");
        self.vm_runs(&run).await?;
        self.target_comes().await?;
        if self.sabotage == Some(MigrateSabotage::OtherIdentity) {
            return self.refused_by_identity(&run).await;
        }
        let at_target = self.attach_target(&run, to).await?;
        self.say.took("attached to node-b, beside node-a, whose guest writes", slowest(&at_target));
        let target = on_nodes::receive(NAME, to, &paths(&at_target))?;
        self.play(&[Step::TargetReady]).await?;
        self.wait_attributed(&run).await?;
        on_nodes::writes_on(&source, SOME_DOTS, PATIENCE).await?;
        self.note_controllers(&mut run, true).await?;
        self.write_plugged(&source, 0)?;

        let came = self.migrate(&source, &target, to).await?;
        if self.is(MigrateFault::Cancel) {
            return self.called_off(run, came.end, source, target).await;
        }
        self.completed(&came)?;
        if self.sabotage == Some(MigrateSabotage::SourceGoesOn) {
            self.let_source_go_on(&source).await?;
        }
        if self.is(MigrateFault::FreezeSource) {
            run.acknowledged = block_in_place(|| source.said())?.acknowledged();
            self.freeze_source(&mut run, source, &target).await?;
        } else {
            on_nodes::writes_on(&target, SOME_DOTS, PATIENCE).await?;
            self.say.line("the guest writes on node-b");
            self.play(&SWITCHED).await?;
            self.write_plugged(&target, 1)?;
            self.heal(&run).await?;
            self.note_controllers(&mut run, true).await?;
            self.wait_switchover(&run).await?;
            run.acknowledged = block_in_place(|| source.said())?.acknowledged();
            block_in_place(|| source.quit())?;
            self.play(&[Step::SourceEnds]).await?;
            self.let_go(&run, &at_source, from).await?;
            self.recorded(&run, "source").await?;
        }
        on_nodes::writes_on(&target, SOME_DOTS, PATIENCE).await?;
        block_in_place(|| target.halt())?;
        run.acknowledged += block_in_place(|| target.said())?.acknowledged();
        let judged = self.judge(&run, to, &at_target);
        let ended = block_in_place(|| target.quit());
        judged.and(ended)?;
        self.put_away(&run, &at_target, to).await
    }

    async fn make_disks(&mut self) -> anyhow::Result<Run> {
        let names: &[&str] = if self.is(MigrateFault::TwoDisks) { &[NAME, PLUGGED] } else { &[NAME] };
        let weakest = if self.is(MigrateFault::FreezeSource) { Rung::Acl.volume_parameters() } else { &[] };
        let mut disks = Vec::new();
        for name in names {
            let created =
                self.world.create_volume_with(name, Access::RwxBlock, VOLUME_BYTES, weakest).await?;
            let volume = created.value.clone();
            let nqn = self.world.rds.disk(&volume.id).await?.nqn;
            let (source, target, target_again) = Default::default();
            disks.push(Disk { volume, nqn, source, target, target_again });
        }
        let bytes = disks.first().context("no volume was made")?.volume.size_bytes;
        Ok(Run { disks, program: on_nodes::program(bytes), acknowledged: 0 })
    }

    /// These volumes of the VM, side by side.
    pub(super) async fn attach(&self, disks: &[Disk], node: &Node) -> anyhow::Result<Vec<Attached>> {
        try_join_all(disks.iter().map(|disk| self.world.attach(&disk.volume, node))).await
    }

    /// Adds the controllers that either node has now: a path that was made again has another one.
    pub(super) async fn note_controllers(&self, run: &mut Run, both: bool) -> anyhow::Result<()> {
        for disk in &mut run.disks {
            if both {
                disk.source.extend(self.world.a().controller_ids(&disk.nqn).await?);
                disk.target.extend(self.world.b().controller_ids(&disk.nqn).await?);
                let none = disk.source.is_empty() || disk.target.is_empty();
                ensure!(!none, "a node has no controller of {}", disk.volume.id);
            } else {
                disk.target_again = self.world.b().controller_ids(&disk.nqn).await?;
            }
        }
        Ok(())
    }

    fn write_plugged(&self, vm: &Vm, side: usize) -> anyhow::Result<()> {
        if self.is(MigrateFault::TwoDisks)
            && let Some((block, byte)) = ON_PLUGGED.get(side)
        {
            block_in_place(|| vm.write_block(1, *block, *byte))?;
        }
        Ok(())
    }

    async fn migrate(&mut self, source: &Vm, target: &Vm, to: &Node) -> anyhow::Result<Migrated> {
        let (world, fault) = (self.world, self.fault);
        let mut settings = MigrateSettings::default();
        if fault == Some(MigrateFault::Cancel) {
            settings.bandwidth = Some(NEVER_ENDS);
            settings.downtime_limit = Duration::from_millis(1);
        }
        let runtime = Handle::current();
        let (mut done, mut playing, mut kubevirt) = (None, None, self.kubevirt.take());
        let meanwhile = || -> anyhow::Result<()> {
            // Who calls it off does so after it has begun.
            if fault != Some(MigrateFault::Cancel) {
                playing = kubevirt.take().map(|vm| runtime.spawn(vm.begins()));
            }
            match fault {
                Some(MigrateFault::CutPath) => {
                    to.machine().cut_path(Network::Storage1)?;
                    done = Some(
                        "one of node-b's two storage networks is cut, with the guest's memory on its way",
                    );
                }
                Some(MigrateFault::KillController) => {
                    runtime.block_on(world.controller.kill())?;
                    done = Some("the controller is killed, with the guest's memory on its way");
                }
                Some(MigrateFault::Cancel) => {
                    runtime.block_on(on_nodes::writes_on(source, 1, PATIENCE))?;
                    if let Some(vm) = &mut kubevirt {
                        runtime.block_on(vm.play(&[Step::Began, Step::AbortAsked]))?;
                    }
                    source.qmp().execute("migrate_cancel", json!({}))?;
                    done = Some("the migration is called off, with the guest's memory on its way");
                }
                Some(MigrateFault::FreezeSource | MigrateFault::TwoDisks) | None => {}
            }
            Ok(())
        };
        let listen = on_nodes::listens_at(to);
        let came = block_in_place(|| {
            migrate::migrate_with(source.qmp(), target.qmp(), listen, &settings, meanwhile)
        })?;
        if let Some(done) = done {
            self.say.line(done);
        }
        self.kubevirt = match playing {
            Some(playing) => Some(playing.await.context("whoever plays KubeVirt has panicked")??),
            None => kubevirt,
        };
        Ok(came)
    }

    fn completed(&mut self, came: &Migrated) -> anyhow::Result<()> {
        match &came.end {
            MigrateEnd::Completed => {}
            MigrateEnd::Failed(why) => bail!("QEMU's migration failed: {why}"),
            MigrateEnd::Cancelled => bail!("QEMU's migration was cancelled"),
        }
        let shown = |time: Option<Duration>| time.map_or("unknown".to_owned(), duration);
        self.say.took("QEMU has migrated the guest to node-b", came.began.elapsed());
        self.say.detail(&format!(
            "its own pause: {}; from the source's stop to the target node's go: {}",
            shown(came.downtime),
            shown(came.pause())
        ));
        Ok(())
    }

    async fn let_source_go_on(&mut self, source: &Vm) -> anyhow::Result<()> {
        let before = block_in_place(|| source.said())?.dots;
        block_in_place(|| source.run())?;
        self.say.line("sabotage: the source's QEMU is let go on");
        on_nodes::wait_dots(source, before + LATE_DOTS, PATIENCE).await
    }

    /// What agents count of the first disk is to show the switchover; where KubeVirt says so, it is to be seen of each. That it
    /// is not is said at the end: all else can be looked at without.
    pub(super) async fn wait_switchover(&mut self, run: &Run) -> anyhow::Result<()> {
        let disks = if self.kubevirt.is_some() { run.disks.len() } else { 1 };
        for disk in run.disks.iter().take(disks) {
            let volume = &disk.volume.id;
            let seen = wait_for(format!("the switchover of {volume} on record"), COUNTED, async || {
                let recorded = self.world.controller.migrations().await?;
                let ours = recorded.into_iter().find(|one| one.volume_id == *volume);
                let mut steps = ours.iter().flat_map(|one| &one.steps);
                let step = steps.find(|step| step.name == "switchover").cloned();
                Ok(Look::some(step, format!("{ours:?}")))
            })
            .await;
            match seen {
                Ok(step) => {
                    self.say.line(&format!("the switchover of {volume} is on record, by {}", step.by))
                }
                Err(error) => {
                    self.say.line(&format!("NOT SEEN: {error}"));
                    self.amiss.push(error.to_string());
                }
            }
        }
        Ok(())
    }

    /// Detaches all volumes of the VM from a node, as when its pod goes.
    pub(super) async fn let_go(&mut self, run: &Run, at: &[Attached], node: &Node) -> anyhow::Result<()> {
        let times = try_join_all(at.iter().map(|attached| self.world.detach(attached, node))).await?;
        let slowest = times.iter().map(|times| times.total()).max().unwrap_or_default();
        self.say.took(&format!("{} detached", node.name()), slowest);
        for disk in &run.disks {
            let left = node.controller_ids(&disk.nqn).await?;
            ensure!(left.is_empty(), "the kernel of {} still has controllers: {left:?}", node.name());
        }
        Ok(())
    }

    /// What the controller has made of the migration of each volume, once this side has gone.
    pub(super) async fn recorded(&mut self, run: &Run, left: &str) -> anyhow::Result<()> {
        let recorded = self.world.controller.migrations().await?;
        let expected = result_to_record(self.kubevirt.is_some(), left);
        for disk in &run.disks {
            let ours = recorded.iter().find(|migration| migration.volume_id == disk.volume.id);
            let ours = ours.context("the controller has no record of the migration")?;
            self.came.recorded(ours);
            let sides = (ours.source_node_id.as_str(), ours.target_node_id.as_str());
            ensure!(
                sides == ("node-a", "node-b"),
                "the controller has another migration on record: {ours:?}"
            );
            let came = (ours.result.as_str(), ours.left.as_str());
            ensure!(
                came == (expected, left),
                "the migration is on record as {came:?}, and has ended as {:?}: {ours:?}",
                (expected, left)
            );
            let (says, is) = (whose(ours), self.whose());
            ensure!(
                says == is,
                "the record says that it is the migration of {says:?}, and it is that of {is:?}"
            );
            let steps: Vec<&str> = ours.steps.iter().map(|step| step.name.as_str()).collect();
            let once: BTreeSet<&str> = steps.iter().copied().collect();
            ensure!(once.len() == steps.len(), "a step is on record twice: {steps:?}");
            self.say.detail(&format!(
                "recorded: {}, {}, the {left} has gone, by way of {}",
                ours.result,
                ours.attributed_to,
                steps.join(", ")
            ));
        }
        self.noticed(run, left).await?;
        self.drawn(run).await
    }

    /// Ends what is left, and says what was amiss.
    pub(super) async fn put_away(&mut self, run: &Run, at: &[Attached], node: &Node) -> anyhow::Result<()> {
        self.play(&[Step::VmDeleted]).await?;
        for attached in at {
            self.world.detach(attached, node).await.with_context(|| format!("{} at the end", node.name()))?;
        }
        self.unbind(run)?;
        for disk in &run.disks {
            self.world.delete_volume(&disk.volume).await.context("DeleteVolume")?;
        }
        ensure!(self.amiss.is_empty(), "{}", self.amiss.join("; "));
        Ok(())
    }
}

fn slowest(all: &[Attached]) -> Duration {
    all.iter().map(|attached| attached.times.total()).max().unwrap_or_default()
}
