//! A cut of the path in use, an interruption of it, and the way back.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cleat_rig::Network;

use super::figures::Way;
use super::{AT_WORK, BACK, FLAP, GOES_ON, SOON, Scene, unharmed};
use crate::world::{Look, RDS_NUMBER, wait_for};

/// For how long the writes on each path are counted, to find the one in use.
const COUNTED: Duration = Duration::from_millis(300);

/// One cut, or one interruption.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Felt {
    /// The longest write, milliseconds.
    pub(super) longest_ms: f64,
    /// Writes that failed.
    pub(super) errors: u64,
    /// Paths that were reset.
    pub(super) resets: u64,
    /// What was refused.
    pub(super) refusals: u64,
    /// How long the path was cut, milliseconds.
    cut_ms: f64,
}

impl fmt::Display for Felt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "longest write {:>6.0} ms, {} errors, {} resets, {} refusals (cut for {:.0} ms)",
            self.longest_ms, self.errors, self.resets, self.refusals, self.cut_ms
        )
    }
}

impl Scene<'_> {
    /// Cuts the path in use in silence, until the writer goes on.
    pub(super) async fn cut(&mut self, way: Way) -> anyhow::Result<Felt> {
        self.begin(way).await?;
        let before = self.counts().await?;
        let mut writer = self.writer().await?;
        let path = self.path_in_use().await?;
        let begun = Instant::now();
        self.node.machine().cut_path(path)?;
        let went_on = writer.wait_progress(AT_WORK, GOES_ON).await.context("the writer goes on");
        let cut_ms = begun.elapsed().as_secs_f64() * 1000.0;
        self.node.machine().restore_path(path)?;
        went_on?;
        let stopped = writer.stop().await.context("stop the writer")?;
        unharmed(&stopped.errors)?;
        let felt = self.felt(before, stopped.counts.max_latency_us, stopped.counts.errors, cut_ms).await?;
        ensure!(way == Way::Cleat || felt.resets == 0, "a path was reset without the option");
        Ok(felt)
    }

    /// Interrupts the path in use for 200 ms.
    pub(super) async fn flap(&mut self) -> anyhow::Result<Felt> {
        self.go(Way::Cleat).await?;
        let before = self.counts().await?;
        let mut writer = self.writer().await?;
        let path = self.path_in_use().await?;
        let begun = Instant::now();
        self.node.machine().cut_path(path)?;
        tokio::time::sleep(FLAP.saturating_sub(begun.elapsed())).await;
        self.node.machine().restore_path(path)?;
        let cut_ms = begun.elapsed().as_secs_f64() * 1000.0;
        // Long enough for whatever the agent makes of it.
        let after = writer.wait_progress(2 * AT_WORK, GOES_ON).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        after.context("the writer goes on")?;
        let stopped = writer.stop().await.context("stop the writer")?;
        self.felt(before, stopped.counts.max_latency_us, stopped.counts.errors, cut_ms).await
    }

    async fn felt(
        &self,
        before: (f64, f64),
        longest_us: u64,
        errors: u64,
        cut_ms: f64,
    ) -> anyhow::Result<Felt> {
        let after = self.counts().await?;
        let since = |after: f64, before: f64| (after - before).max(0.0) as u64;
        let (resets, refusals) = (since(after.0, before.0), since(after.1, before.1));
        Ok(Felt { longest_ms: longest_us as f64 / 1000.0, errors, resets, refusals, cut_ms })
    }

    /// The network over which the volume's writes go: more than over the others, while somebody writes.
    pub(super) async fn path_in_use(&self) -> anyhow::Result<Network> {
        let before = self.writes().await?;
        tokio::time::sleep(COUNTED).await;
        let after = self.writes().await?;
        let more = |network: Network| {
            let of = |all: &[(Network, u64)]| {
                all.iter().filter(|(n, _)| *n == network).map(|(_, w)| w).sum::<u64>()
            };
            of(&after).saturating_sub(of(&before))
        };
        let most = Network::STORAGE.into_iter().max_by_key(|network| more(*network));
        let network = most.filter(|network| more(*network) > 0);
        network.with_context(|| format!("nobody writes: {before:?}, then {after:?}"))
    }

    /// Writes that each path of the volume has completed.
    async fn writes(&self) -> anyhow::Result<Vec<(Network, u64)>> {
        let script = format!(
            "for c in /sys/class/nvme/nvme*; do [ \"$(cat $c/subsysnqn 2>/dev/null)\" = '{}' ] || continue; \
             a=$(sed -n 's/^NVME_TRADDR=//p' $c/uevent); \
             for p in $c/nvme*c*n*; do [ -e $p/stat ] || continue; set -- $(cat $p/stat); echo $a $5; done; done",
            self.nqn()
        );
        let text = self.node.sh(&script).await?;
        let row = |line: &str| {
            let (address, writes) = line.split_once(' ')?;
            let of = |network: &Network| network.address(RDS_NUMBER).to_string() == address;
            Some((Network::STORAGE.into_iter().find(of)?, writes.trim().parse().ok()?))
        };
        Ok(text.lines().filter_map(row).collect())
    }

    /// Waits until both paths are live.
    pub(super) async fn wait_live(&self) -> anyhow::Result<()> {
        let nqn = self.nqn();
        wait_for("two live paths", BACK, async || {
            let all = self.node.nvme_controllers().await?;
            let ours: Vec<_> = all.iter().filter(|(_, subsystem, ..)| *subsystem == nqn).collect();
            let live = ours.iter().filter(|(.., state)| state == "live").count();
            Ok(Look::holds(ours.len() == live && live == Network::STORAGE.len(), format!("{ours:?}")))
        })
        .await?;
        // Connected is not served: the path has to have its namespace.
        let what = "a namespace on both paths";
        wait_for(what, SOON, async || {
            let paths = self.writes().await?;
            Ok(Look::holds(paths.len() == Network::STORAGE.len(), format!("{paths:?}")))
        })
        .await
        .map_err(Into::into)
    }

    /// After a failure: nothing is cut or slow any more, and both paths are live.
    pub(super) async fn heal(&mut self) -> anyhow::Result<()> {
        self.node.machine().restore_all()?;
        for network in Network::STORAGE {
            self.let_go(network).await;
        }
        self.node.sh("kill -9 $(pidof cleat-writer) 2>/dev/null; true").await?;
        // Its agent may be the one that failed.
        self.way = None;
        self.go(Way::KeepAlive).await
    }
}

#[cfg(test)]
impl Felt {
    pub(super) fn of(longest_ms: f64, errors: u64, resets: u64) -> Self {
        Self { longest_ms, errors, resets, refusals: 0, cut_ms: 0.0 }
    }
}
