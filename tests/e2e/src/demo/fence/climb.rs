//! One rung of the fencing demo, from a writer on node-a to the proof, and on until node-a is let in again.
//!
//! In: a world whose RDS has no disk. Out: lines, and what came of it, also where it broke off. What always holds:
//! the writes of node-a that landed after the proof are counted whether or not the rest went well.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use uuid::Uuid;

use super::super::say::{Say, duration};
use super::silence::Silence;
use super::{FENCE_AFTER, FenceSabotage, RungOutcome};
use crate::sequence::Census;
use crate::world::{Access, Kernels, Look, Node, Rung, Volume, World, Writer, wait_for};

const VOLUME_BYTES: u64 = 192 << 20;
const SOON: Duration = Duration::from_secs(20);
/// Silence, the ladder and its drain on emulated machines.
const FENCED: Duration = Duration::from_secs(60);
/// A session, the Revoke, and the kernel's own reconnects and deletions.
const READMITTED: Duration = Duration::from_secs(150);
/// How long the target's store holds node-a's writes from just before it is cut off.
const HOLD: Duration = Duration::from_secs(4);
/// How long the target is watched after node-a is back: longer than it holds a write.
const WATCHED: Duration = Duration::from_secs(6);
/// The writer's region on the volume is the first of this size or larger; only that is held.
const HELD_BYTES: u64 = 64 << 20;

/// What is shown on a rung, as a headline.
pub(super) fn title(rung: Rung) -> &'static str {
    match rung {
        Rung::Reservation => {
            "Fence by reservation: a survivor on node-b preempts node-a's registration (RWX)"
        }
        Rung::Acl => "Fence by host list, cut and drain, beside a survivor on node-b (RWX)",
        Rung::Secret => "Fence by another in-band secret, which only the survivor on node-b is told (RWX)",
        Rung::ExportOff => "Fence by taking the export off, on a target that ignores host lists",
    }
}

/// Whether node-b has the volume, too, and is to go on with it.
fn survives(rung: Rung) -> bool {
    rung != Rung::ExportOff
}

/// A rung under way.
pub(super) struct Climb<'c> {
    world: &'c World,
    rung: Rung,
    sabotage: Option<FenceSabotage>,
    say: &'c mut Say,
    came: RungOutcome,
    readmitted: bool,
}

/// What is followed of node-a's run.
struct Doubted {
    volume: Volume,
    run: Uuid,
    file: PathBuf,
}

impl<'c> Climb<'c> {
    pub(super) fn new(
        world: &'c World,
        rung: Rung,
        sabotage: Option<FenceSabotage>,
        say: &'c mut Say,
    ) -> Self {
        Self { world, rung, sabotage, say, came: RungOutcome::nothing_yet(rung), readmitted: false }
    }

    pub(super) fn into_parts(self) -> (RungOutcome, bool) {
        (self.came, self.readmitted)
    }

    pub(super) async fn all(&mut self, kernels: Kernels) -> anyhow::Result<()> {
        let world = self.world;
        world.view_target(&self.rung.view(kernels)).await?;
        let access = if survives(self.rung) { Access::RwxBlock } else { Access::RwoBlock };
        let name = format!("fence-{}", self.rung.name());
        let parameters = self.rung.volume_parameters();
        let created = world.create_volume_with(&name, access, VOLUME_BYTES, parameters);
        let volume = created.await.context("CreateVolume")?.value;
        let mut writer = self.start_writer(&volume, world.a(), 0, 16).await?;
        let run = writer.seen().facts.context("a writer without a run")?.nonce;
        let mut survivor = match survives(self.rung) {
            true => Some(self.start_writer(&volume, world.b(), 1, 1).await?),
            false => None,
        };
        let file = world.rds.disk(&volume.id).await?.file;
        let doubted = Doubted { volume, run, file };
        self.came.survivor_rest_ms = survivor.as_ref().map(longest_gap_ms);
        self.cut_off(&doubted).await?;
        let then = self.fence(&doubted).await?;
        if let Some(survivor) = &mut survivor {
            survivor.wait_progress(50, SOON).await?;
            let (longest, rest) = (longest_gap_ms(survivor), self.came.survivor_rest_ms.unwrap_or(0));
            self.say.line(&format!("node-b writes on; its longest stall {longest} ms ({rest} ms at rest)"));
        } else {
            self.refused_elsewhere(&doubted).await?;
        }
        self.heal().await?;
        let back = self.wait_readmitted().await;
        let judged = self.judge(&doubted, &then).await;
        if let Some(survivor) = &mut survivor {
            let stopped = survivor.stop().await?;
            self.came.survivor_errors = Some(stopped.counts.errors);
            self.came.survivor_max_stall_ms = Some(stopped.counts.max_gap_us / 1000);
            ensure!(stopped.counts.errors == 0, "writes of the survivor failed: {:?}", stopped.errors);
        }
        judged.and(back)?;
        // It may have ended by itself: its device is gone.
        let _ = writer.stop().await;
        self.go_on_and_end(&doubted.volume).await
    }

    async fn start_writer(
        &mut self,
        volume: &Volume,
        node: &Node,
        region: u32,
        depth: u16,
    ) -> anyhow::Result<Writer> {
        let attached = self.world.attach(volume, node).await?;
        let mut writer = node.write_on(&attached, region, depth).await?;
        writer.wait_writes(50, SOON).await?;
        self.say.line(&format!("{} is attached and writes, {depth} at a time", node.name()));
        Ok(writer)
    }

    /// Lets the target hold what node-a writes, and cuts node-a off with that in flight.
    async fn cut_off(&mut self, doubted: &Doubted) -> anyhow::Result<()> {
        let rds = &self.world.rds;
        if let Some(sabotage) = self.sabotage {
            rds.pretend(sabotage.pretend()).await?;
            self.say.line(&format!("sabotage: the target only pretends ({:?})", sabotage.pretend()));
        }
        let burden = rds.hold_in_flight(&doubted.volume.id, HOLD, HELD_BYTES, 8, SOON).await?;
        let silence = Silence::of(self.rung);
        silence.begin(self.world.a())?;
        self.say.line(&format!(
            "node-a is cut off from {}; {} of its writes in flight at the target",
            silence.in_words(),
            burden.in_flight
        ));
        Ok(())
    }

    /// Lets the partition last until node-a's kernel knows of it, and ends it.
    async fn heal(&mut self) -> anyhow::Result<()> {
        let node = self.world.a();
        match Silence::of(self.rung).sunk_in(node).await {
            Ok(()) => self.say.line("node-a's kernel has noticed that its connections are gone"),
            // Then it has to be fenced all the same, and its clearing up only takes longer.
            Err(error) => self.say.line(&error.to_string()),
        }
        node.machine().restore_all()?;
        self.say.line("the network heals");
        Ok(())
    }

    /// Unpublishes from node-a until that succeeds; what the target then holds.
    async fn fence(&mut self, doubted: &Doubted) -> anyhow::Result<Census> {
        let world = self.world;
        let begun = Instant::now();
        self.say.line("ControllerUnpublishVolume of node-a is asked for");
        let mut told = String::new();
        let say = &mut *self.say;
        wait_for("ControllerUnpublishVolume of a silent node", FENCED, async || {
            match world.unpublish(&doubted.volume, world.a()).await {
                Ok(_) => Ok(Look::Yes(())),
                Err(status) => {
                    if told != status.message() {
                        status.message().clone_into(&mut told);
                        say.line(&format!("not yet: {:?}: {told}", status.code()));
                    }
                    Ok(Look::Not(status.to_string()))
                }
            }
        })
        .await?;
        let took = begun.elapsed();
        let then = world.rds.census(&doubted.file).await?;
        self.came.proof_ms = u64::try_from(took.as_millis()).ok();
        self.say.line(&format!(
            "fenced: Unpublish succeeds after {}, of which {} are --fence-after",
            duration(took),
            duration(FENCE_AFTER)
        ));
        let proof = world.evidence(&doubted.volume, world.a()).await?;
        let words = format!("{}, {}: {}", proof.verdict, proof.source, proof.drained_by);
        self.say.detail(&format!("proof: {words}"));
        if !proof.assumption.is_empty() {
            self.say.detail(&format!("rests on: {}", proof.assumption));
        }
        self.came.evidence = Some(words);
        ensure!(proof.source == self.rung.source() && proof.verdict == "Fenced", "not this rung: {proof:?}");
        Ok(then)
    }

    /// Nobody gets the volume while its fence is the export that is off.
    async fn refused_elsewhere(&mut self, doubted: &Doubted) -> anyhow::Result<()> {
        let status = self.world.publish_within(&doubted.volume, self.world.b(), SOON).await.err();
        let status = status.context("node-b was let in while node-a could come back")?;
        ensure!(status.message().contains("node-a"), "the refusal does not name the node: {status:?}");
        self.say.line(&format!("node-b is refused: {}", status.message()));
        Ok(())
    }

    /// node-a is granted nothing until its agent has shown that it holds nothing.
    async fn wait_readmitted(&mut self) -> anyhow::Result<()> {
        let world = self.world;
        let mut told = String::new();
        let say = &mut *self.say;
        world
            .wait_readmitted(world.a(), READMITTED, |now| {
                if told != now {
                    say.line(now.trim_end_matches([':', ' ']));
                    now.clone_into(&mut told);
                }
            })
            .await?;
        self.say.line("node-a is re-admitted: what it held is revoked, its kernel has no controller left");
        self.readmitted = true;
        Ok(())
    }

    /// Looks for writes of node-a that landed since the proof, and for a while for one that still does.
    async fn judge(&mut self, doubted: &Doubted, then: &Census) -> anyhow::Result<()> {
        let rds = &self.world.rds;
        let late = rds.landed_since(&doubted.file, then, doubted.run, WATCHED).await?;
        self.came.late_writes = Some(late);
        ensure!(late == 0, "{late} writes of node-a landed after the proof");
        self.say.line("nothing of node-a has landed since the proof");
        Ok(())
    }

    /// Where nobody survived, node-b gets the volume now; then everything is taken away.
    async fn go_on_and_end(&mut self, volume: &Volume) -> anyhow::Result<()> {
        let world = self.world;
        // A detach flushes, which a store that holds writes makes wait as well: longer than FENCE_AFTER.
        world.rds.hold_writes(&volume.id, Duration::ZERO, HELD_BYTES).await?;
        if self.rung == Rung::ExportOff {
            let mut successor = self.start_writer(volume, world.b(), 1, 1).await?;
            successor.stop().await?;
        }
        world.take_away(volume, world.nodes()).await
    }
}

fn longest_gap_ms(writer: &Writer) -> u64 {
    writer.seen().counts.max_gap_us / 1000
}
