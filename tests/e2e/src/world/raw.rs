//! Hosts and volumes without Cleat: nvme-cli by hand, a disk made as an administrator makes one. What a driver that
//! trusts less than Cleat does is shown with these, and what the target's own commands cost.
//!
//! In: a node whose agent does not run, or keeps to its own NQN prefix. Out: what the kernel says. What always holds:
//! nothing here goes through controller or agent; the NQNs are none of Cleat's, so that no agent touches them.

use std::time::Duration;

use anyhow::{Context, bail};
use cleat_rig::Network;
use serde_json::json;

use super::rds::BASE_PATH;
use super::{Look, Node, RDS_NUMBER, Rds, wait_for};

/// Subsystems that no agent takes for Cleat's.
const PREFIX: &str = "nqn.2026-01.test:";
/// To connect, or to be gone.
const SOON: Duration = Duration::from_secs(45);

/// A volume that was made by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawVolume {
    /// Its slot on the RDS.
    pub slot: String,
    /// Its subsystem.
    pub nqn: String,
}

impl RawVolume {
    /// Makes a disk that these hosts may connect to.
    ///
    /// # Errors
    /// If the RDS refuses.
    pub async fn make(rds: &Rds, slot: &str, size_bytes: u64, hosts: &[String]) -> anyhow::Result<Self> {
        let nqn = format!("{PREFIX}{slot}");
        let properties = json!({
            "type": "file", "slot": slot, "file-path": format!("/{BASE_PATH}/{slot}.img"),
            "file-size": size_bytes.to_string(), "mount-filesystem": "no", "nvme-tcp-export": "yes",
            "nvme-tcp-server-port": "4420", "nvme-tcp-server-nqn": nqn,
            "nvme-tcp-server-allow-host-name": hosts.join(","),
        });
        rds.put_disk(&properties).await?;
        Ok(Self { slot: slot.to_owned(), nqn })
    }
}

/// How a host connects.
#[derive(Debug, Clone, Default)]
pub struct Connect {
    /// What it authenticates with.
    pub secret: Option<String>,
    /// Seconds between two signs of life; the kernel's own without it.
    pub keep_alive: Option<u32>,
}

/// A node as a host of its own making.
#[derive(Debug, Clone)]
pub struct RawHost<'n> {
    node: &'n Node,
    id: String,
}

impl<'n> RawHost<'n> {
    /// The node, with an identity made of its number.
    #[must_use]
    pub fn on(node: &'n Node) -> Self {
        Self { node, id: format!("00000000-0000-0000-0000-{:012}", node.machine().number()) }
    }

    /// The node, as a host that is none of the nodes. A kernel makes one device of the paths of all its hosts, so only
    /// one of them should be connected at a time.
    #[must_use]
    pub fn another_on(node: &'n Node) -> Self {
        Self { node, id: format!("00000000-0000-0000-0001-{:012}", node.machine().number()) }
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &'n Node {
        self.node
    }

    /// Its host id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its host NQN.
    #[must_use]
    pub fn nqn(&self) -> String {
        format!("nqn.2014-08.org.nvmexpress:uuid:{}", self.id)
    }

    /// Connects over all portals, and spreads writes over them; the volume's device.
    ///
    /// # Errors
    /// If the kernel refuses, or the device does not come.
    pub async fn connect(&self, volume: &RawVolume, how: &Connect) -> anyhow::Result<String> {
        let mut options = format!("--hostnqn {} --hostid {} --reconnect-delay 1", self.nqn(), self.id);
        if let Some(secret) = &how.secret {
            options += &format!(" --dhchap-secret {secret}");
        }
        if let Some(seconds) = how.keep_alive {
            options += &format!(" --keep-alive-tmo {seconds}");
        }
        for network in Network::STORAGE {
            let portal = network.address(RDS_NUMBER);
            let connect = format!("nvme connect -t tcp -a {portal} -s 4420 -n {} {options}", volume.nqn);
            self.node.sh(&format!("{connect} 2>&1")).await.with_context(|| format!("connect to {portal}"))?;
        }
        let what = format!("the device of {} on {}", volume.slot, self.node.name());
        let device = wait_for(what, SOON, async || {
            let script = format!(
                "for s in /sys/class/nvme-subsystem/nvme-subsys*; do [ \"$(cat $s/subsysnqn)\" = {} ] || continue; \
                 echo round-robin >$s/iopolicy; for d in $s/nvme*n*; do [ -b /dev/${{d##*/}} ] && echo ${{d##*/}}; done; done; true",
                volume.nqn
            );
            let names = self.node.sh(&script).await?;
            Ok(Look::some(names.lines().next().map(|name| format!("/dev/{name}")), "none"))
        })
        .await?;
        self.wait_live(volume, Network::STORAGE.len()).await?;
        Ok(device)
    }

    /// The volume's controllers: name and state.
    ///
    /// # Errors
    /// If the machine does not answer.
    pub async fn controllers(&self, volume: &RawVolume) -> anyhow::Result<Vec<(String, String)>> {
        let all = self.node.nvme_controllers().await?;
        Ok(all
            .into_iter()
            .filter(|(_, nqn, ..)| *nqn == volume.nqn)
            .map(|(name, .., state)| (name, state))
            .collect())
    }

    /// Waits until so many of the volume's controllers are live.
    ///
    /// # Errors
    /// If they are not in time.
    pub async fn wait_live(&self, volume: &RawVolume, count: usize) -> anyhow::Result<()> {
        let what = format!("{count} live controllers of {} on {}", volume.slot, self.node.name());
        wait_for(what, SOON, async || {
            let found = self.controllers(volume).await?;
            let live = found.iter().filter(|(_, state)| state == "live").count();
            Ok(Look::holds(live == count, format!("{found:?}")))
        })
        .await
        .map_err(Into::into)
    }

    /// Waits until none of the volume's controllers is live any more, as the host itself notices.
    ///
    /// # Errors
    /// If one still is.
    pub async fn wait_dead(&self, volume: &RawVolume) -> anyhow::Result<()> {
        let what = format!("{} to notice that it is cut off", self.node.name());
        wait_for(what, SOON, async || {
            let found = self.controllers(volume).await?;
            Ok(Look::holds(!found.iter().any(|(_, state)| state == "live"), format!("{found:?}")))
        })
        .await
        .map_err(Into::into)
    }

    /// Deletes the volume's controllers, and waits until sysfs shows none.
    ///
    /// # Errors
    /// If one does not go.
    pub async fn delete_controllers(&self, volume: &RawVolume) -> anyhow::Result<()> {
        for (name, _) in self.controllers(volume).await? {
            // In the background: a deletion may wait for writes in flight. Gone already is as good.
            let path = format!("/sys/class/nvme/{name}/delete_controller");
            self.node.sh(&format!("(echo 1 >{path}) >/dev/null 2>&1 & true")).await?;
        }
        let what = format!("the end of {} on {}", volume.slot, self.node.name());
        wait_for(what, SOON, async || {
            let found = self.controllers(volume).await?;
            Ok(Look::holds(found.is_empty(), format!("{found:?}")))
        })
        .await
        .map_err(Into::into)
    }

    /// Registers a key at the volume's namespace.
    ///
    /// # Errors
    /// If the target refuses.
    pub async fn register(&self, device: &str, key: u64) -> anyhow::Result<()> {
        self.node.sh(&format!("nvme resv-register {device} --nrkey={key:#x} --rrega=0 2>&1")).await.map(drop)
    }

    /// Reserves the namespace, Write Exclusive - All Registrants.
    ///
    /// # Errors
    /// If the target refuses.
    pub async fn reserve(&self, device: &str, key: u64) -> anyhow::Result<()> {
        self.node
            .sh(&format!("nvme resv-acquire {device} --crkey={key:#x} --rtype=5 --racqa=0 2>&1"))
            .await
            .map(drop)
    }

    /// Takes another's registration away and aborts its writes, as the target understands that.
    ///
    /// # Errors
    /// If the target refuses.
    pub async fn preempt_and_abort(&self, device: &str, key: u64, victim: u64) -> anyhow::Result<()> {
        let command =
            format!("nvme resv-acquire {device} --crkey={key:#x} --prkey={victim:#x} --rtype=5 --racqa=2");
        let said = self.node.sh(&format!("{command} 2>&1")).await?;
        if said.contains("NVMe status") {
            bail!("preempt-and-abort on {}: {said}", self.node.name());
        }
        Ok(())
    }
}
