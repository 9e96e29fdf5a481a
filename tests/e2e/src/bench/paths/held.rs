//! Writes that the dead path still delivers: what the failover leaves behind.
//!
//! A store that holds all writes alike cannot show it, for what came first lands first. What shows it is a hold that only
//! the dead path has. Here it is the network between: from the cut on, what the node sends over the path in use comes
//! through after `hold`, and nothing comes back (the target's answers go to a neighbour that does not exist). The node sees
//! the same as with a cut, and sends what waited there over the other path; the target gets the first copy when the
//! hold is over.
//!
//! In: a volume whose blocks are written over and over. Out: how many blocks hold less than was acknowledged.

use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_rig::{Command, Network, SlowLink};

use super::figures::Way;
use super::{GOES_ON, SOON, Scene};
use crate::world::blocking;
use crate::writer::Overwritten;

/// No machine has it.
const NOBODY: &str = "02:00:00:00:00:99";

impl Scene<'_> {
    /// Cuts the answers of the path in use, and holds what is sent over it.
    pub(super) async fn held(&mut self, way: Way, hold: Duration) -> anyhow::Result<Overwritten> {
        self.begin(way).await?;
        let machine = self.node.shared_machine();
        let settle = (hold + Duration::from_secs(4)).as_millis().to_string();
        let command = Command::new("cleat-writer")
            .args(["overwrite", "--device", &self.attached.target_path, "--settle-ms", &settle])
            .deadline(GOES_ON * 2);
        let mut process = blocking(move || machine.spawn(&command)).await?;
        let mut input = process.input()?;
        let (mut process, ready) = blocking(move || {
            let line = process.next_line(SOON)?;
            Ok((process, line))
        })
        .await?;
        ensure!(ready.as_deref() == Some("ready"), "the writer does not begin: {ready:?}");
        let path = self.path_in_use().await?;
        self.node.sh("modprobe sch_netem").await?;
        blocking(move || input.write(b"watch\n")).await?;
        let cut = self.hold_back(path, hold).await;
        let said = blocking(move || process.next_line(GOES_ON + hold)).await;
        self.let_go(path).await;
        cut?;
        let line = said?.context("the writer ended and said nothing")?;
        let found: Overwritten = serde_json::from_str(&line).with_context(|| format!("understand {line}"))?;
        ensure!(found.errors == 0, "writes failed: {found:?}");
        ensure!(found.stalled > 0, "no write stalled: the cut was none: {found:?}");
        Ok(found)
    }

    async fn hold_back(&self, network: Network, hold: Duration) -> anyhow::Result<()> {
        let (machine, link) = (self.node.shared_machine(), SlowLink { delay: hold, ..SlowLink::default() });
        blocking(move || machine.slow_path(network, &link)).await.context("hold what the node sends")?;
        let (address, device) = (self.node.machine().address(network), network.interface());
        let astray = format!("ip neigh replace {address} lladdr {NOBODY} dev {device} nud permanent");
        self.world.rds.sh(&astray).await.context("lead the target's answers astray").map(drop)
    }

    /// Undoes it, where there is something to undo.
    pub(super) async fn let_go(&self, network: Network) {
        let (address, device) = (self.node.machine().address(network), network.interface());
        let undone =
            self.world.rds.sh(&format!("ip neigh del {address} dev {device} 2>/dev/null; true")).await;
        let quick = self.node.sh(&format!("tc qdisc del dev {device} root 2>/dev/null; true")).await;
        for error in [undone.err(), quick.err()].into_iter().flatten() {
            super::say(&format!("cannot undo the hold on {device}: {error:#}"));
        }
    }
}
