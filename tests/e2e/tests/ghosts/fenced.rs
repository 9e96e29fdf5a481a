//! A writing node is fenced by Cleat, comes back with what it had queued, and lands none of it.
//!
//! In each test node-a writes through its paths, stops being heard, and is taken off by an Unpublish that is repeated
//! until it succeeds. What is looked at is the target's content at the moment of that success, and ever after.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cleat_e2e::sequence::Census;
use cleat_e2e::world::{
    Access, AgentStart, Attached, Look, Seen, TargetView, Volume, World, Writer, wait_for,
};
use cleat_e2e::writer::{OnError, WriteArgs};
use cleat_proto::cleat::v1::EvidenceInfo;
use serde_json::json;
use tonic::Code;
use uuid::Uuid;

use crate::figures::figure;

const VOLUME_BYTES: u64 = 192 << 20;
const SOON: Duration = Duration::from_secs(20);
/// Silence, the ladder and its drain on emulated machines.
const FENCED: Duration = Duration::from_secs(60);
/// After the network is back: a session, and the Revoke. The kernel deletes a controller that it still takes for live
/// in its own time: seen are 30 s for the writes that nobody answers, and 60 s more for the shutdown.
const READMITTED: Duration = Duration::from_secs(150);
/// How long the target's store holds node-a's writes from just before it goes silent.
const HOLD: Duration = Duration::from_secs(4);
/// How long the target is watched after everything is as it was: longer than it holds a write.
const WATCHED: Duration = Duration::from_secs(6);
/// Each run's part of the volume.
const REGION_BYTES: u64 = cleat_e2e::writer::args::DEFAULT_REGION_BYTES;

/// A target as `cleatctl rds probe` would describe rds-sim's.
fn view(host_acl: &str) -> TargetView {
    let abilities = json!({
        "host_acl": host_acl, "export_cuts": true, "export_cut_ms": 100, "export_drains": "assumed",
        "uuid_kept": true, "password": false, "in_band_auth": false, "reservations": "none",
        "grow_online": false,
    });
    let mut rds_args = vec!["--backing".to_owned(), "held".to_owned()];
    if host_acl == "ignored" {
        rds_args.extend(["--acl".to_owned(), "ignored".to_owned()]);
    }
    TargetView { abilities: Some(abilities), rds_args, ..TargetView::default() }
}

/// How node-a stops being heard.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// Cut off from everything, with writes in flight.
    Partition,
    /// Its agent is stopped; its kernel writes on.
    AgentStopped,
    /// Its agent is dead; its kernel writes on.
    AgentDead,
    /// The machine stands still, and later goes on where it was.
    MachineFrozen,
}

impl Silence {
    async fn begin(self, world: &World) -> anyhow::Result<()> {
        let a = world.a();
        match self {
            Self::Partition => a.machine().cut_all()?,
            Self::AgentStopped => drop(a.sh("kill -STOP $(pidof cleat-agent)").await?),
            Self::AgentDead => a.kill_agent().await?,
            Self::MachineFrozen => a.machine().freeze()?,
        }
        Ok(())
    }

    async fn end(self, world: &World) -> anyhow::Result<()> {
        let a = world.a();
        match self {
            Self::Partition => a.machine().restore_all()?,
            Self::AgentStopped => drop(a.sh("kill -CONT $(pidof cleat-agent)").await?),
            Self::AgentDead => a.start_agent(AgentStart::default()).await?,
            Self::MachineFrozen => a.machine().resume()?,
        }
        Ok(())
    }
}

/// node-a with the volume and a writer on it.
struct Writing<'w> {
    world: &'w World,
    volume: Volume,
    writer: Writer,
    run: Uuid,
    file: std::path::PathBuf,
}

async fn write(
    world: &World,
    node: usize,
    attached: &Attached,
    region: u32,
    depth: u16,
) -> anyhow::Result<Writer> {
    let node = world.node(node);
    let (volume, name) = (attached.volume.id.parse()?, node.name().parse()?);
    let mut options = WriteArgs::new(&attached.target_path, volume, name, region);
    (options.start_seq, options.interval_us, options.queue_depth) = (Some(0), 5_000, depth);
    options.on_error = OnError::Retry;
    node.write_with(&options).await
}

impl<'w> Writing<'w> {
    async fn begin(world: &'w World, name: &str, access: Access) -> anyhow::Result<Self> {
        let volume = world.create_volume(name, access, VOLUME_BYTES).await.context("CreateVolume")?.value;
        let attached = world.attach(&volume, world.a()).await?;
        let mut writer = write(world, 0, &attached, 0, 16).await?;
        let seen = writer.wait_writes(50, SOON).await?;
        let run = seen.facts.context("a writer without a run")?.nonce;
        let file = world.rds.disk(&volume.id).await?.file;
        Ok(Self { world, volume, writer, run, file })
    }

    /// Lets the target hold what node-a writes, and node-a go silent with that in flight.
    async fn silence(&self, how: Silence) -> anyhow::Result<()> {
        self.world.rds.hold_writes(&self.volume.id, HOLD, REGION_BYTES).await?;
        wait_for("the target to hold writes of node-a", SOON, async || {
            let burden = self.world.rds.burden().await?;
            Ok(Look::holds(burden.in_flight >= 8, format!("{burden:?}")))
        })
        .await?;
        how.begin(self.world).await
    }

    async fn census(&self) -> anyhow::Result<Census> {
        self.world.rds.census(&self.file).await
    }

    /// Unpublishes from node-a until that succeeds; how long it took, and what the target then holds.
    async fn unpublish(&self) -> anyhow::Result<(Duration, Census)> {
        let begun = Instant::now();
        wait_for("ControllerUnpublishVolume of a silent node", FENCED, async || {
            match self.world.unpublish(&self.volume, self.world.a()).await {
                Ok(_) => Ok(Look::Yes(())),
                Err(status) => Ok(Look::Not(status.to_string())),
            }
        })
        .await?;
        let took = begun.elapsed();
        Ok((took, self.census().await?))
    }

    /// The proof on which node-a was taken off.
    async fn evidence(&self) -> anyhow::Result<EvidenceInfo> {
        let info = self.world.controller.volume(&self.volume.id).await?;
        info.past_evidence.into_iter().find(|proof| proof.node_id == "node-a").context("no evidence is kept")
    }

    /// node-a is granted nothing until its agent has shown that it holds nothing; then nothing of it is left.
    async fn readmitted(&self) -> anyhow::Result<()> {
        let a = self.world.a();
        wait_for("node-a to be re-admitted", READMITTED, async || {
            let nodes = self.world.controller.nodes().await?;
            let node = nodes.into_iter().find(|node| node.node_id == "node-a").context("no node-a")?;
            let clean = node.session == "connected" && node.standing == "Admitted";
            Ok(Look::holds(
                clean,
                format!("{} and {}: {}", node.session, node.standing, node.standing_reason),
            ))
        })
        .await?;
        let left = a.nvme_controllers().await?;
        ensure!(left.is_empty(), "re-admitted with {left:?} in its kernel");
        Ok(())
    }

    /// Nothing of node-a's run has landed since, and nothing does for a while.
    async fn nothing_landed_since(&self, then: &Census) -> anyhow::Result<()> {
        let late = wait_for("a late write", WATCHED, async || {
            let late = self.census().await?.landed_since(then, self.run);
            Ok(Look::some(Some(late).filter(|late| *late > 0), "none"))
        })
        .await;
        // Not seen is not enough: a look may have failed each time. The last one has to succeed.
        let late = match late {
            Ok(late) => late,
            Err(_) => self.census().await?.landed_since(then, self.run),
        };
        ensure!(late == 0, "{late} writes of the fenced node landed after the proof");
        Ok(())
    }

    /// Takes the volume off the nodes' file systems and away.
    async fn end(mut self, others: &[usize]) -> anyhow::Result<()> {
        // It may have ended by itself: its device is gone.
        let _ = self.writer.stop().await;
        let nodes = std::iter::once(self.world.a()).chain(others.iter().map(|n| self.world.node(*n)));
        for node in nodes {
            node.unpublish(&self.volume)
                .await
                .with_context(|| format!("NodeUnpublish on {}", node.name()))?;
            node.unstage(&self.volume).await.with_context(|| format!("NodeUnstage on {}", node.name()))?;
            self.world.unpublish(&self.volume, node).await.context("ControllerUnpublish")?;
        }
        self.world.delete_volume(&self.volume).await.context("DeleteVolume")?;
        Ok(())
    }
}

fn stall(seen: &Seen) -> Duration {
    Duration::from_micros(seen.counts.max_gap_us)
}

/// The host off the list, export off and on: with the volume going to node-b, as a failover does.
async fn fence_by_list(world: &World, name: &str, silence: Silence) -> anyhow::Result<()> {
    world.view_target(&view("list")).await?;
    let writing = Writing::begin(world, name, Access::RwoBlock).await?;
    writing.silence(silence).await?;
    let (took, then) = writing.unpublish().await?;
    figure(&format!("proof by list, cut, drain: {name}"), took, "");
    let proof = writing.evidence().await?;
    ensure!(proof.source == "TargetCut" && proof.verdict == "Fenced", "{proof:?}");
    ensure!(proof.drained_by.contains("took the namespace down"), "not by the barrier: {proof:?}");

    let attached = world.attach(&writing.volume, world.b()).await?;
    let mut successor = write(world, 1, &attached, 1, 1).await?;
    successor.wait_writes(20, SOON).await?;
    let refused = world.publish_within(&writing.volume, world.a(), SOON).await;
    ensure!(refused.is_err(), "a fenced node was granted a volume");
    silence.end(world).await?;
    writing.readmitted().await?;
    successor.wait_progress(20, SOON).await?;
    writing.nothing_landed_since(&then).await?;
    let stopped = successor.stop().await?;
    ensure!(stopped.counts.errors == 0, "writes of node-b failed: {:?}", stopped.errors);
    writing.end(&[1]).await
}

pub(crate) async fn a_partitioned_writer_lands_nothing_after_the_proof(world: &World) -> anyhow::Result<()> {
    fence_by_list(world, "fence-partition", Silence::Partition).await
}

pub(crate) async fn a_writer_whose_agent_is_stopped_lands_nothing_after_the_proof(
    world: &World,
) -> anyhow::Result<()> {
    fence_by_list(world, "fence-stopped", Silence::AgentStopped).await
}

pub(crate) async fn a_writer_whose_agent_is_dead_lands_nothing_after_the_proof(
    world: &World,
) -> anyhow::Result<()> {
    fence_by_list(world, "fence-dead", Silence::AgentDead).await
}

pub(crate) async fn a_frozen_machine_that_goes_on_lands_nothing_after_the_proof(
    world: &World,
) -> anyhow::Result<()> {
    fence_by_list(world, "fence-frozen", Silence::MachineFrozen).await
}

/// A second node of an RWX volume goes on: one stall, no error.
pub(crate) async fn a_survivor_stalls_once_and_sees_no_error(world: &World) -> anyhow::Result<()> {
    world.view_target(&view("list")).await?;
    let writing = Writing::begin(world, "fence-survivor", Access::RwxBlock).await?;
    let attached = world.attach(&writing.volume, world.b()).await?;
    let mut survivor = write(world, 1, &attached, 1, 1).await?;
    survivor.wait_writes(50, SOON).await?;
    let rest = stall(&survivor.seen());
    writing.silence(Silence::Partition).await?;
    let (took, then) = writing.unpublish().await?;
    survivor.wait_progress(50, SOON).await?;
    Silence::Partition.end(world).await?;
    writing.readmitted().await?;
    writing.nothing_landed_since(&then).await?;
    let stopped = survivor.stop().await?;
    ensure!(stopped.counts.errors == 0, "writes of the survivor failed: {:?}", stopped.errors);
    let longest = Duration::from_micros(stopped.counts.max_gap_us);
    figure("proof beside a survivor", took, "");
    figure("its longest stall", longest, format!("({:.3} s at rest)", rest.as_secs_f64()));
    writing.end(&[1]).await
}

/// A target without lists: the export stays off, and nobody gets the volume, until node-a holds nothing any more.
pub(crate) async fn without_lists_nobody_gets_the_volume_until_the_node_is_clean(
    world: &World,
) -> anyhow::Result<()> {
    world.view_target(&view("ignored")).await?;
    let writing = Writing::begin(world, "fence-export", Access::RwoBlock).await?;
    writing.silence(Silence::Partition).await?;
    let (took, then) = writing.unpublish().await?;
    figure("proof by export off", took, "");
    let proof = writing.evidence().await?;
    ensure!(proof.source == "ExportOff" && proof.verdict == "Fenced", "{proof:?}");
    let status = world.publish_within(&writing.volume, world.b(), SOON).await.err();
    let status = status.context("node-b was let in while node-a could come back")?;
    ensure!(status.code() == Code::FailedPrecondition, "{status:?}");
    ensure!(status.message().contains("node-a"), "the refusal does not name the node: {status:?}");
    Silence::Partition.end(world).await?;
    writing.readmitted().await?;
    writing.nothing_landed_since(&then).await?;
    let attached = world.attach(&writing.volume, world.b()).await?;
    let mut successor = write(world, 1, &attached, 1, 1).await?;
    successor.wait_writes(20, SOON).await?;
    successor.stop().await?;
    writing.end(&[1]).await
}
