//! What goes wrong in a migration on purpose, and what has to come of it.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cleat_kubevirt::script::Step;
use cleat_rig::Network;
use rds_sim::control::NewUuid;
use tokio::task::block_in_place;

use super::super::PATIENCE;
use super::MigrateFault;
use super::kubevirt::SWITCHED;
use super::scene::{Run, SOME_DOTS, Scene};
use crate::vm::migrate::MigrateEnd;
use crate::vm::qemu::Vm;
use crate::vm::{on_nodes, trace};
use crate::world::{Attached, Look, Node, Rung, START, wait_for};

/// The moment in the target's trace from which on node-a is frozen, and its fence is to come.
pub(super) const FENCED: &str = "frozen";
/// Silence, the ladder and its drain on emulated machines.
const FENCE: Duration = Duration::from_secs(90);
/// A session, the Revoke, and the kernel's own reconnects and deletions.
const READMITTED: Duration = Duration::from_secs(150);
/// An identity that no disk of this run has.
const OTHER: &str = "6e0b7f0c-52a3-4f0e-9c1d-2a648d3571e9";

impl Scene<'_> {
    /// Sabotage: node-b would see another namespace under the volume's name. It has to be refused, and by what.
    pub(super) async fn refused_by_identity(&mut self, run: &Run) -> anyhow::Result<()> {
        let (world, volume) = (self.world, &run.first()?.volume);
        let disk = world.rds.disk(&volume.id).await?;
        let own = disk.uuid.to_string();
        let other = NewUuid { slot: disk.slot, uuid: Some(OTHER.parse().context("a UUID")?) };
        world.rds.set_uuid(&other).await?;
        self.say.line("sabotage: the target shows another namespace under the volume's name");
        let refused = wait_for("node-b to be refused for its identity", FENCE, async || {
            match world.publish(volume, world.b()).await {
                Ok(_) => Ok(Look::Yes(None)),
                Err(status) => {
                    let said = status.message().to_owned();
                    let is_named = ["identity", OTHER, own.as_str()].iter().all(|word| said.contains(word));
                    Ok(if is_named { Look::Yes(Some(said)) } else { Look::Not(status.to_string()) })
                }
            }
        })
        .await?;
        let said = refused.context("node-b was let use another namespace than node-a")?;
        bail!("refused by identity: {said}")
    }

    /// Makes good again what was broken while the guest moved, and waits until it is.
    pub(super) async fn heal(&mut self, run: &Run) -> anyhow::Result<()> {
        let world = self.world;
        match self.fault {
            Some(MigrateFault::CutPath) => {
                block_in_place(|| world.b().machine().restore_path(Network::Storage1))?;
                self.wait_paths(run, world.b()).await?;
                self.say.line("node-b's network is whole again, and all of its paths are live");
            }
            Some(MigrateFault::KillController) => {
                world.controller.start().await?;
                for node in world.nodes() {
                    world.wait_session(node, START).await?;
                }
                self.say.line("the controller runs again, and has its sessions");
                for disk in &run.disks {
                    let info = world.controller.volume(&disk.volume.id).await?;
                    ensure!(info.attachments.len() == 2, "it has forgotten a node: {info:?}");
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Waits until the node's kernel has all of its paths to each volume.
    async fn wait_paths(&self, run: &Run, node: &Node) -> anyhow::Result<()> {
        let portals = self.world.rds.portals().len();
        for disk in &run.disks {
            wait_for(format!("all paths of {} on {}", disk.volume.id, node.name()), PATIENCE, async || {
                let found = node.nvme_controllers().await?;
                let ours: Vec<_> = found.iter().filter(|(_, nqn, ..)| *nqn == disk.nqn).collect();
                let live = ours.iter().filter(|(.., state)| state == "live").count();
                Ok(Look::holds(live == portals, format!("{ours:?}")))
            })
            .await?;
        }
        Ok(())
    }

    /// The migration was called off half-way: the guest has never left node-a, and node-b lets go.
    pub(super) async fn called_off(
        &mut self,
        mut run: Run,
        end: MigrateEnd,
        source: Vm,
        target: Vm,
    ) -> anyhow::Result<()> {
        let (from, to) = (self.world.a(), self.world.b());
        ensure!(end == MigrateEnd::Cancelled, "it was called off, and QEMU says {end:?}");
        let status = block_in_place(|| source.qmp().status())?;
        ensure!(status == "running", "QEMU on node-a is {status} after it was called off");
        on_nodes::writes_on(&source, SOME_DOTS, PATIENCE).await?;
        self.say.line("QEMU says cancelled; the guest writes on, on node-a");
        self.play(&[Step::Aborted]).await?;
        self.note_controllers(&mut run, true).await?;
        // It ends by itself when the stream breaks off.
        block_in_place(|| target.quit()).context("QEMU on node-b")?;
        let at_target = self.as_attached(&run, to);
        self.let_go(&run, &at_target, to).await?;
        self.recorded(&run, "target").await?;
        on_nodes::writes_on(&source, SOME_DOTS, PATIENCE).await?;
        block_in_place(|| source.halt())?;
        run.acknowledged = block_in_place(|| source.said())?.acknowledged();
        let at_source = self.as_attached(&run, from);
        let judged = self.judge(&run, from, &at_source);
        let ended = block_in_place(|| source.quit());
        judged.and(ended)?;
        self.put_away(&run, &at_source, from).await
    }

    /// What was attached there. What attaching it took is not known here.
    fn as_attached(&self, run: &Run, node: &Node) -> Vec<Attached> {
        let of = |disk: &super::scene::Disk| Attached {
            target_path: node.target_path(&disk.volume),
            volume: disk.volume.clone(),
            node: node.name().to_owned(),
            context: Default::default(),
            times: Default::default(),
        };
        run.disks.iter().map(of).collect()
    }

    /// node-a's machine stands still from right after the switchover on: it has to be fenced, and the guest goes on.
    pub(super) async fn freeze_source(
        &mut self,
        run: &mut Run,
        source: Vm,
        target: &Vm,
    ) -> anyhow::Result<()> {
        let world = self.world;
        block_in_place(|| world.a().machine().freeze())?;
        self.say.line("node-a's machine stands still from now on");
        let fenced = self.fence_source(run, target).await;
        // Whatever came of that: nobody who looks at the machines afterwards is to wait for this one.
        block_in_place(|| world.a().machine().resume())?;
        self.say.line("node-a goes on");
        fenced?;
        // Its kubelet ends the pod.
        drop(source);
        self.play(&[Step::SourceEnds]).await?;
        let say = &mut *self.say;
        let mut last = String::new();
        world
            .wait_readmitted(world.a(), READMITTED, |now| {
                if last != now {
                    say.line(now.trim_end_matches([':', ' ']));
                    now.clone_into(&mut last);
                }
            })
            .await?;
        for disk in &run.disks {
            world.a().unpublish(&disk.volume).await.context("NodeUnpublish on node-a")?;
            world.a().unstage(&disk.volume).await.context("NodeUnstage on node-a")?;
            world.unpublish(&disk.volume, world.a()).await.context("ControllerUnpublish of node-a, again")?;
        }
        Ok(())
    }

    async fn fence_source(&mut self, run: &mut Run, target: &Vm) -> anyhow::Result<()> {
        let world = self.world;
        on_nodes::writes_on(target, SOME_DOTS, PATIENCE).await?;
        self.say.line("the guest writes on node-b");
        self.play(&SWITCHED).await?;
        self.wait_switchover(run).await?;
        block_in_place(|| trace::mark(world.rds.machine(), FENCED))?;
        let volume = run.first()?.volume.clone();
        let began = std::time::Instant::now();
        wait_for("ControllerUnpublishVolume of a node that stands still", FENCE, async || {
            match world.unpublish(&volume, world.a()).await {
                Ok(_) => Ok(Look::Yes(())),
                Err(status) => Ok(Look::Not(status.to_string())),
            }
        })
        .await?;
        self.say.took("node-a is fenced: its Unpublish has succeeded", began.elapsed());
        let proof = world.evidence(&volume, world.a()).await?;
        self.say.detail(&format!("proof: {}, {}: {}", proof.verdict, proof.source, proof.drained_by));
        let by_acl = proof.verdict == "Fenced" && proof.source == Rung::Acl.source();
        ensure!(by_acl, "the proof is another one: {proof:?}");
        self.wait_paths(run, world.b()).await?;
        self.note_controllers(run, false).await?;
        on_nodes::writes_on(target, SOME_DOTS, PATIENCE).await?;
        self.say.line("the guest goes on writing on node-b");
        self.recorded(run, "source").await
    }
}
