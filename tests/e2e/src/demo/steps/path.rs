//! Step 4: a storage network fails under a writer, and comes back.

use std::time::{Duration, Instant};

use anyhow::ensure;
use cleat_rig::Network;

use super::Demo;
use super::attach::SOME_WRITES;
use crate::demo::PATIENCE;

/// The kernel notices a silent connection by its keep-alive (5 s here) and fails the path some seconds later.
const NOTICED: Duration = Duration::from_secs(60);

impl Demo<'_> {
    pub(super) async fn lose_a_path(&mut self) -> anyhow::Result<()> {
        let world = self.world;
        let (volume, node) = (self.volume()?, world.b());
        let watch = world.controller.watch().await?;
        let mark = watch.mark();
        let cut = Instant::now();
        tokio::task::block_in_place(|| node.machine().cut_path(Network::Storage1))?;
        self.say.line("node-b's first storage network is cut");
        let heard = watch.notice(mark, "volume_degraded", &volume.id, NOTICED).await;
        let (at, notice) = heard.inspect_err(|_| restore(node))?;
        ensure!(
            notice.node_id == node.name(),
            "Degraded came for {}, not for {}",
            notice.node_id,
            node.name()
        );
        self.say.took("Degraded has reached the controller", at.duration_since(cut));
        self.holder()?.writer.wait_progress(SOME_WRITES, PATIENCE).await.inspect_err(|_| restore(node))?;
        self.say.line("the writer goes on over the second network");

        let mark = watch.mark();
        let back = Instant::now();
        tokio::task::block_in_place(|| node.machine().restore_path(Network::Storage1))?;
        let (at, _) = watch.notice(mark, "volume_recovered", &volume.id, NOTICED).await?;
        self.say.took("network restored; Recovered has reached the controller", at.duration_since(back));
        self.wait_ready(&volume, node).await?;
        let seen = self.holder()?.writer.wait_progress(SOME_WRITES, PATIENCE).await?;
        ensure!(seen.errors.is_empty(), "writes failed: {}", seen.errors.join("; "));
        let stall = Duration::from_micros(seen.counts.max_gap_us);
        self.say.took("no write failed; the longest wait for one", stall);
        Ok(())
    }
}

/// Leaves the network as it was for whoever looks at the machines afterwards.
fn restore(node: &crate::world::Node) {
    // The step has failed already, and says why.
    let _ = tokio::task::block_in_place(|| node.machine().restore_path(Network::Storage1));
}
