//! A writing node that is taken off its volume: what the demo, the benchmark and the tests of late writes do alike.
//!
//! What always holds: "nothing landed" is said of the target's own content, and a look at it that failed is none.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_proto::cleat::v1::EvidenceInfo;
use uuid::Uuid;

use super::{Attached, Burden, Look, Node, Rds, Volume, World, Writer, wait_for};
use crate::sequence::Census;
use crate::writer::{OnError, WriteArgs};

impl Rds {
    /// Has the store hold the writes to a volume's first bytes for so long, and waits until it holds so many.
    ///
    /// # Errors
    /// If rds-sim refuses, or it does not come to hold them within `limit`.
    pub async fn hold_in_flight(
        &self,
        slot: &str,
        time: Duration,
        first_bytes: u64,
        writes: u64,
        limit: Duration,
    ) -> anyhow::Result<Burden> {
        self.hold_writes(slot, time, first_bytes).await?;
        let held = wait_for("the target to hold writes", limit, async || {
            let burden = self.burden().await?;
            let seen = format!("{burden:?}");
            Ok(Look::some(Some(burden).filter(|burden| burden.in_flight >= writes), seen))
        });
        Ok(held.await?)
    }

    /// How many writes of a run have landed in a backing file since then; looks for `watched` unless one is seen.
    ///
    /// # Errors
    /// If the last look fails: a census that could not be taken is not "none".
    pub async fn landed_since(
        &self,
        file: &Path,
        then: &Census,
        run: Uuid,
        watched: Duration,
    ) -> anyhow::Result<u64> {
        let late = wait_for("a late write", watched, async || {
            let late = self.census(file).await?.landed_since(then, run);
            Ok(Look::some(Some(late).filter(|late| *late > 0), "none"))
        });
        match late.await {
            Ok(late) => Ok(late),
            Err(_) => Ok(self.census(file).await?.landed_since(then, run)),
        }
    }
}

impl Node {
    /// Stops the agent where it is: it keeps its connections and answers nothing.
    ///
    /// # Errors
    /// If the machine does not answer.
    pub async fn freeze_agent(&self) -> anyhow::Result<()> {
        self.sh("kill -STOP $(pidof cleat-agent)").await.map(drop)
    }

    /// Lets a stopped agent go on.
    ///
    /// # Errors
    /// If the machine does not answer.
    pub async fn thaw_agent(&self) -> anyhow::Result<()> {
        self.sh("kill -CONT $(pidof cleat-agent)").await.map(drop)
    }

    /// Starts a writer that repeats what failed, in a region of its own, with so many writes at a time.
    ///
    /// # Errors
    /// As [`Node::write`].
    pub async fn write_on(&self, attached: &Attached, region: u32, depth: u16) -> anyhow::Result<Writer> {
        let (volume, name) = (attached.volume.id.parse()?, self.name().parse()?);
        let mut options = WriteArgs::new(&attached.target_path, volume, name, region);
        (options.start_seq, options.interval_us, options.queue_depth) = (Some(0), 5_000, depth);
        options.on_error = OnError::Retry;
        self.write_with(&options).await
    }
}

impl World {
    /// The proof on which a node was taken off a volume.
    ///
    /// # Errors
    /// If none is kept.
    pub async fn evidence(&self, volume: &Volume, node: &Node) -> anyhow::Result<EvidenceInfo> {
        let info = self.controller.volume(&volume.id).await?;
        let proof = info.past_evidence.into_iter().find(|proof| proof.node_id == node.name());
        proof.context("no evidence is kept")
    }

    /// Waits until a node is granted volumes again, with nothing left in its kernel; `seen` is told how it stands.
    ///
    /// # Errors
    /// If it is not within `limit`, or its kernel has a controller left.
    pub async fn wait_readmitted(
        &self,
        node: &Node,
        limit: Duration,
        mut seen: impl FnMut(&str),
    ) -> anyhow::Result<()> {
        let name = node.name();
        wait_for(format!("{name} to be re-admitted"), limit, async || {
            let nodes = self.controller.nodes().await?;
            let info = nodes.into_iter().find(|info| info.node_id == name);
            let info = info.with_context(|| format!("{name} is not known"))?;
            let now = format!("{name} is {} and {}: {}", info.session, info.standing, info.standing_reason);
            seen(&now);
            Ok(Look::holds(info.session == "connected" && info.standing == "Admitted", now))
        })
        .await?;
        let left = node.nvme_controllers().await?;
        ensure!(left.is_empty(), "{name} is re-admitted with {left:?} in its kernel");
        Ok(())
    }

    /// Takes a volume off these nodes as their kubelets would, and deletes it.
    ///
    /// # Errors
    /// With the call that failed.
    pub async fn take_away(&self, volume: &Volume, nodes: &[Node]) -> anyhow::Result<()> {
        for node in nodes {
            node.unpublish(volume).await.with_context(|| format!("NodeUnpublish on {}", node.name()))?;
            node.unstage(volume).await.with_context(|| format!("NodeUnstage on {}", node.name()))?;
            self.unpublish(volume, node).await.context("ControllerUnpublish")?;
        }
        self.delete_volume(volume).await.context("DeleteVolume")?;
        Ok(())
    }
}
