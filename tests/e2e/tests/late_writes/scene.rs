//! A node that writes and stops being heard, how it is taken off its volume, and what becomes of it.
//!
//! In: a world, and by what the volume is to be fenced. Out: the time to the proof, the proof, and what the target
//! held at that moment. What always holds: "nothing landed" is said of the target's own content, read at the proof and
//! until all that the target could still hold is over; a look that failed is none.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cleat_e2e::sequence::Census;
use cleat_e2e::world::{
    Access, AgentStart, Look, Rung, Stopped, TargetView, Volume, World, Writer, wait_for,
};
use cleat_proto::cleat::v1::EvidenceInfo;
use uuid::Uuid;

use crate::figures::figure;

/// Room for three runs.
const VOLUME_BYTES: u64 = 3 * REGION_BYTES;
/// Nobody writes to it.
const BYSTANDER_BYTES: u64 = 16 << 20;
/// Each run's part of the volume.
const REGION_BYTES: u64 = cleat_e2e::writer::args::DEFAULT_REGION_BYTES;
/// For what should take a second or two.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Silence, the ladder and its drain on emulated machines.
const FENCED: Duration = Duration::from_secs(60);
/// After the network is back: a session, and the Revoke. The kernel deletes a controller that it still takes for live
/// in its own time: seen are 30 s for the writes that nobody answers, and 60 s more for the shutdown.
const READMITTED: Duration = Duration::from_secs(150);
/// How long the target's store holds node-a's writes from just before it goes silent.
pub(crate) const HOLD: Duration = Duration::from_secs(4);
/// How long the target is watched after everything is as it was: longer than it holds a write.
const WATCHED: Duration = Duration::from_secs(6);
/// What a survivor may be without its volume beyond the time for which writes are held: to notice, and to connect
/// again (the kernel tries once a second), on emulated machines.
const BACK: Duration = Duration::from_secs(8);

/// How node-a stops being heard.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silence {
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
    /// A word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::AgentStopped => "agent-stopped",
            Self::AgentDead => "agent-dead",
            Self::MachineFrozen => "machine-frozen",
        }
    }

    async fn begin(self, world: &World) -> anyhow::Result<()> {
        let a = world.a();
        match self {
            Self::Partition => a.machine().cut_all()?,
            Self::AgentStopped => a.freeze_agent().await?,
            Self::AgentDead => a.kill_agent().await?,
            Self::MachineFrozen => a.machine().freeze()?,
        }
        Ok(())
    }

    pub(crate) async fn end(self, world: &World) -> anyhow::Result<()> {
        let a = world.a();
        match self {
            Self::Partition => a.machine().restore_all()?,
            Self::AgentStopped => a.thaw_agent().await?,
            Self::AgentDead => a.start_agent(AgentStart::default()).await?,
            Self::MachineFrozen => a.machine().resume()?,
        }
        Ok(())
    }
}

/// A volume, and its target, on which one rung of the ladder is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The rung.
    pub(crate) rung: Rung,
    /// What the target does, and is known to do.
    pub(crate) view: TargetView,
    /// The answer to taking the namespace down is lost, so that it is no barrier.
    pub(crate) barrier_unheard: bool,
}

impl Target {
    /// The rung's own, over so many portals.
    pub(crate) fn of(world: &World, rung: Rung, portals: usize) -> Self {
        let view = rung.view(world.kernels()).over_portals(portals);
        Self { rung, view, barrier_unheard: false }
    }

    fn says(&self, name: &str) -> &str {
        self.view.abilities.as_ref().and_then(|abilities| abilities[name].as_str()).unwrap_or_default()
    }

    /// That the proof is the one of this rung, and drained by what this target is known to do.
    pub(crate) fn check(&self, proof: &EvidenceInfo) -> anyhow::Result<()> {
        ensure!(
            proof.source == self.rung.source() && proof.verdict == "Fenced",
            "not this rung's: {proof:?}"
        );
        let drained = match (self.says("export_drains"), self.says("reservations")) {
            ("assumed" | "seen", _) if !self.barrier_unheard => "took the namespace down",
            (_, "abort-waits") if self.rung == Rung::Reservation => "abort waits",
            _ => "drain bound",
        };
        ensure!(proof.drained_by.contains(drained), "not drained as by {drained:?}: {proof:?}");
        let rests_on = match self.rung {
            Rung::Reservation => "without a registration",
            Rung::Acl => "not on its list",
            Rung::Secret => "without the secret",
            Rung::ExportOff => "export off ends all sessions",
        };
        ensure!(proof.assumption.contains(rests_on), "it should rest on {rests_on:?}: {proof:?}");
        Ok(())
    }
}

/// node-a with the volume and a writer on it.
pub(crate) struct Writing<'w> {
    pub(crate) world: &'w World,
    pub(crate) volume: Volume,
    pub(crate) target: Target,
    writer: Writer,
    run: Uuid,
    file: PathBuf,
}

/// A volume that is fenced by nothing weaker than the rung; and another one beside it, which nobody uses: a target that
/// has but one volume is none, and does not listen at all while that one's export is off.
pub(crate) async fn make(world: &World, name: &str, access: Access, rung: Rung) -> anyhow::Result<Volume> {
    world
        .create_volume("fence-bystander", Access::RwoBlock, BYSTANDER_BYTES)
        .await
        .context("CreateVolume")?;
    let made = world.create_volume_with(name, access, VOLUME_BYTES, rung.volume_parameters()).await;
    Ok(made.context("CreateVolume")?.value)
}

impl<'w> Writing<'w> {
    /// Brings the target about, makes the volume, and lets node-a write.
    pub(crate) async fn begin(
        world: &'w World,
        name: &str,
        access: Access,
        target: Target,
    ) -> anyhow::Result<Self> {
        world.view_target(&target.view).await?;
        let volume = make(world, name, access, target.rung).await?;
        Self::begin_on(world, volume, target).await
    }

    /// Lets node-a write to a volume that is made.
    pub(crate) async fn begin_on(world: &'w World, volume: Volume, target: Target) -> anyhow::Result<Self> {
        let attached = world.attach(&volume, world.a()).await?;
        let mut writer = world.a().write_on(&attached, 0, 16).await?;
        let seen = writer.wait_writes(50, SOON).await?;
        let run = seen.facts.context("a writer without a run")?.nonce;
        let file = world.rds.disk(&volume.id).await?.file;
        Ok(Self { world, volume, target, writer, run, file })
    }

    /// node-a's writer goes on: it is acknowledged some more writes.
    pub(crate) async fn goes_on(&mut self) -> anyhow::Result<()> {
        self.writer.wait_progress(20, SOON).await.map(drop)
    }

    /// Lets the target hold what node-a writes, and node-a go silent with that in flight.
    pub(crate) async fn silence(&self, how: Silence) -> anyhow::Result<()> {
        self.world.rds.hold_in_flight(&self.volume.id, HOLD, REGION_BYTES, 8, SOON).await?;
        how.begin(self.world).await
    }

    /// Unpublishes from node-a until that succeeds, on this rung's proof; what the target then holds.
    pub(crate) async fn fenced(&self, what: &str) -> anyhow::Result<Census> {
        let begun = Instant::now();
        wait_for("ControllerUnpublishVolume of a silent node", FENCED, async || {
            match self.world.unpublish(&self.volume, self.world.a()).await {
                Ok(_) => Ok(Look::Yes(())),
                Err(status) => Ok(Look::Not(status.to_string())),
            }
        })
        .await?;
        let took = begun.elapsed();
        let then = self.world.rds.census(&self.file).await?;
        figure(&format!("proof: {what}"), took, "");
        self.target.check(&self.world.evidence(&self.volume, self.world.a()).await?)?;
        Ok(then)
    }

    /// node-a is granted nothing until its agent has shown that it holds nothing; then nothing of it is left.
    pub(crate) async fn readmitted(&self) -> anyhow::Result<()> {
        self.world.wait_readmitted(self.world.a(), READMITTED, |_| ()).await
    }

    /// Nothing of node-a's run has landed since, and nothing does for a while.
    pub(crate) async fn nothing_landed_since(&self, then: &Census) -> anyhow::Result<()> {
        let late = self.world.rds.landed_since(&self.file, then, self.run, WATCHED).await?;
        ensure!(late == 0, "{late} writes of the fenced node landed after the proof");
        // What follows is not about time.
        self.world.rds.hold_writes(&self.volume.id, Duration::ZERO, REGION_BYTES).await
    }

    /// Gives node-a, which was let in again, the volume once more, under a grant of its own.
    pub(crate) async fn again(&mut self) -> anyhow::Result<()> {
        let a = self.world.a();
        // It may have ended by itself: its device is gone.
        let _ = self.writer.stop().await;
        a.unpublish(&self.volume).await.context("NodeUnpublish on node-a")?;
        a.unstage(&self.volume).await.context("NodeUnstage on node-a")?;
        let attached = self.world.attach(&self.volume, a).await.context("once more")?;
        self.writer = a.write_on(&attached, 2, 1).await?;
        self.writer.wait_writes(20, SOON).await.map(drop)
    }

    /// Takes the volume off the nodes' file systems and away.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        // It may have ended by itself: its device is gone.
        let _ = self.writer.stop().await;
        self.world.take_away(&self.volume, self.world.nodes()).await
    }
}

/// node-b beside node-a, writing too.
pub(crate) struct Survivor {
    writer: Writer,
    rest: Duration,
    portals: usize,
}

impl Survivor {
    pub(crate) async fn begin(writing: &Writing<'_>) -> anyhow::Result<Self> {
        let attached = writing.world.attach(&writing.volume, writing.world.b()).await?;
        let mut writer = writing.world.b().write_on(&attached, 1, 1).await?;
        writer.wait_writes(50, SOON).await?;
        let rest = Duration::from_micros(writer.seen().counts.max_gap_us);
        Ok(Self { writer, rest, portals: writing.target.view.portals })
    }

    /// It is acknowledged some more writes.
    pub(crate) async fn goes_on(&mut self) -> anyhow::Result<()> {
        self.writer.wait_progress(50, SOON).await.map(drop)
    }

    /// It saw no error, and stalled for no longer than the drain and the way back take.
    pub(crate) async fn end(self, what: &str) -> anyhow::Result<Stopped> {
        self.end_after(what, HOLD).await
    }

    /// It saw no error, and stalled for no longer than the export was off and the way back takes.
    pub(crate) async fn end_after(mut self, what: &str, off: Duration) -> anyhow::Result<Stopped> {
        let stopped = self.writer.stop().await?;
        ensure!(stopped.counts.errors == 0, "writes of the survivor failed: {:?}", stopped.errors);
        let longest = Duration::from_micros(stopped.counts.max_gap_us);
        let more = format!("({:.3} s at rest, {} portals)", self.rest.as_secs_f64(), self.portals);
        figure(&format!("survivor's longest stall: {what}"), longest, more);
        ensure!(longest < off + BACK, "the survivor stalled for {longest:?}");
        Ok(stopped)
    }
}
