//! Volumes that nobody but an administrator has attached, to two nodes: what a migration costs without any driver.
//!
//! In: a world, and their sizes. Out: where they are on node-a and node-b. What always holds: neither controller nor agent has a
//! part in it.

use std::time::Duration;

use anyhow::{Context, ensure};
use cleat_rig::{Command, Network};

use super::raw::{RawHost, RawVolume};
use super::{Node, RDS_NUMBER, World, blocking};

/// Emulated machines that connect many at once stall for longer than the usual 5 s.
const KEEP_ALIVE_S: u32 = 30;
/// Connecting many takes minutes on emulated machines.
const LONG: Duration = Duration::from_secs(600);

/// Volumes that both nodes have.
#[derive(Debug)]
pub struct ByHand<'w> {
    world: &'w World,
    volumes: Vec<RawVolume>,
    at: [Vec<String>; 2],
}

impl<'w> ByHand<'w> {
    /// Makes one of each of these sizes and connects both nodes.
    ///
    /// # Errors
    /// If the RDS or a kernel refuses.
    pub async fn attach(world: &'w World, sizes: &[u64]) -> anyhow::Result<Self> {
        let nodes = [world.a(), world.b()];
        let hosts = nodes.map(|node| RawHost::on(node).nqn());
        let mut volumes = Vec::new();
        for (index, size_bytes) in sizes.iter().enumerate() {
            let slot = format!("by-hand-{index}");
            volumes.push(RawVolume::make(&world.rds, &slot, *size_bytes, &hosts).await?);
        }
        let mut by_hand = Self { world, volumes, at: Default::default() };
        for (node, at) in nodes.into_iter().zip(0..) {
            by_hand.at[at] = connect(node, &by_hand.volumes).await?;
        }
        Ok(by_hand)
    }

    /// The first one's subsystem.
    ///
    /// # Errors
    /// If there is none.
    pub fn first_nqn(&self) -> anyhow::Result<&str> {
        Ok(&self.volumes.first().context("no volume was made by hand")?.nqn)
    }

    /// Where the first `count` of them are on node-a and on node-b.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn disks(&self, count: usize) -> anyhow::Result<[&[String]; 2]> {
        let [a, b] = &self.at;
        Ok([a.get(..count).context("too few")?, b.get(..count).context("too few")?])
    }

    /// Takes all of it away.
    ///
    /// # Errors
    /// If a controller does not go, or the RDS refuses.
    pub async fn take_away(self) -> anyhow::Result<()> {
        for volume in &self.volumes {
            for node in [self.world.a(), self.world.b()] {
                RawHost::on(node).delete_controllers(volume).await?;
            }
            self.world.rds.remove_disk(&volume.slot).await?;
        }
        Ok(())
    }
}

/// Connects over all portals; the devices, in the order of the volumes.
async fn connect(node: &Node, volumes: &[RawVolume]) -> anyhow::Result<Vec<String>> {
    let host = RawHost::on(node);
    let portals: Vec<String> =
        Network::STORAGE.into_iter().map(|network| network.address(RDS_NUMBER).to_string()).collect();
    let nqns: Vec<&str> = volumes.iter().map(|volume| volume.nqn.as_str()).collect();
    let script = format!(
        "set -e; for n in {}; do for p in {}; do \
         nvme connect -t tcp -a $p -s 4420 -n $n --hostnqn {} --hostid {} --reconnect-delay 1 --keep-alive-tmo {KEEP_ALIVE_S} >/run/connect 2>&1 || \
         {{ cat /run/connect; exit 1; }}; done; done
         for n in {}; do tries=0; while :; do found=; \
         for s in /sys/class/nvme-subsystem/nvme-subsys*; do [ \"$(cat $s/subsysnqn)\" = $n ] || continue; \
         for d in $s/nvme*n*; do [ ! -b /dev/${{d##*/}} ] || found=/dev/${{d##*/}}; done; done; \
         [ -z \"$found\" ] || {{ echo $found; break; }}; \
         tries=$((tries + 1)); [ $tries -lt 300 ] || {{ echo no device of $n; exit 1; }}; sleep 0.1 || sleep 1; done; done",
        nqns.join(" "),
        portals.join(" "),
        host.nqn(),
        host.id(),
        nqns.join(" "),
    );
    let (machine, command) = (node.shared_machine(), Command::shell(script).deadline(LONG));
    let output = blocking(move || machine.exec(&command)).await?;
    let said = output.stdout_text();
    ensure!(output.success(), "connect by hand on {}: {said} {}", node.name(), output.stderr_text().trim());
    for volume in volumes {
        host.wait_live(volume, Network::STORAGE.len()).await?;
    }
    let devices: Vec<String> = said.lines().map(|line| line.trim().to_owned()).collect();
    ensure!(devices.len() == volumes.len(), "devices on {}: {devices:?}", node.name());
    Ok(devices)
}
