//! Cleat's fence, as an operator asks for it.
//!
//! The fenced node's agent is stopped and its kernel writes on, so only the target can end it. What always holds: the
//! proof is the one of the rung that was asked about, and drained; the node is let in again before the next round.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cleat_proto::cleat::v1::{EvidenceInfo, FenceRequest};

use super::figures::{Sample, Steps};
use super::load::{Load, Seat, VOLUME_BYTES, hold};
use super::{Round, Scene};
use crate::world::{Access, Metrics, Node, Volume};

const LONG: Duration = Duration::from_secs(120);
/// A session, the Revoke, and the kernel's own reconnects.
const READMITTED: Duration = Duration::from_secs(120);
/// What the controller asks of the RDS for a fence.
const CALLS: [&str; 5] = ["deny", "set_secret", "hide", "close", AFTERWARDS];
/// The call that comes after the proof.
const AFTERWARDS: &str = "show";
/// What else of the proof's time there is: the survivor's agent, the messages, the controller and its store.
const ELSEWHERE: &str = "elsewhere";

impl Scene<'_> {
    pub(super) async fn cleat(&self, round: Round) -> anyhow::Result<Sample> {
        let (world, node) = (self.world, self.world.a());
        let access = if self.survives() { Access::RwxBlock } else { Access::RwoBlock };
        let name = format!("bench-{}", round.number);
        let parameters = self.rung.volume_parameters();
        let created = world.create_volume_with(&name, access, VOLUME_BYTES, parameters);
        let volume = created.await.context("CreateVolume")?.value;
        let seat = self.seat(&volume, node).await?;
        let other = match self.survives() {
            true => Some(self.seat(&volume, world.b()).await?),
            false => None,
        };
        let mut load = Load::begin(&volume.id, &seat, other.as_ref()).await?;
        node.freeze_agent().await?;
        let before = world.controller.metrics().await?;
        if round.held {
            hold(&world.rds, &volume.id).await?;
        }
        let rest_ms = load.stall_ms();
        let proof_ms = self.fence(&volume, node).await?;
        let stall_ms = load.survived().await?;
        let mut steps = steps(&before, &world.controller.metrics().await?);
        let calls: f64 = steps.iter().filter(|(name, _)| *name != AFTERWARDS).map(|(_, ms)| ms).sum();
        steps.insert(ELSEWHERE.to_owned(), (proof_ms - calls).max(0.0));
        node.thaw_agent().await?;
        world.wait_readmitted(node, READMITTED, |_| ()).await?;
        load.end().await;
        self.take_away(&volume).await?;
        Ok(Sample { proof_ms, stall_ms, rest_ms, steps })
    }

    async fn seat<'n>(&self, volume: &Volume, node: &'n Node) -> anyhow::Result<Seat<'n>> {
        let attached = self.world.attach(volume, node).await?;
        Ok(Seat { node, device: attached.target_path })
    }

    /// From the request to its answer, milliseconds.
    async fn fence(&self, volume: &Volume, node: &Node) -> anyhow::Result<f64> {
        let controller = &self.world.controller;
        let request = FenceRequest {
            volume_id: volume.id.clone(),
            node_id: node.name().to_owned(),
            reason: "to see what it costs".to_owned(),
        };
        let begun = Instant::now();
        let answer = tokio::time::timeout(LONG, controller.operator().fence(request)).await;
        let took = begun.elapsed();
        answer.with_context(|| format!("no proof within {LONG:?}"))?.context("Fence")?;
        let proof = self.world.evidence(volume, node).await?;
        ensure!(self.is_proof(&proof), "another proof than this rung's: {proof:?}");
        Ok(took.as_secs_f64() * 1000.0)
    }

    fn is_proof(&self, proof: &EvidenceInfo) -> bool {
        proof.verdict == "Fenced" && proof.source == self.rung.source() && !proof.drained_by.is_empty()
    }

    async fn take_away(&self, volume: &Volume) -> anyhow::Result<()> {
        let world = self.world;
        let used = if self.survives() { 2 } else { 1 };
        world.take_away(volume, &world.nodes()[..used]).await?;
        let left = world.a().nvme_controllers().await?;
        ensure!(left.is_empty(), "{left:?} left behind on {}", world.a().name());
        Ok(())
    }
}

/// How long each of the controller's calls of the RDS took, its turn included.
fn steps(before: &Metrics, after: &Metrics) -> Steps {
    let took = |call: &&str| {
        let labels = [("call", *call)];
        let happened = after.count_since(before, "cleat_controller_rds_call_seconds", &labels) > 0;
        happened.then(|| {
            ((*call).to_owned(), after.ms_since(before, "cleat_controller_rds_call_seconds", &labels))
        })
    };
    CALLS.iter().filter_map(took).collect()
}
