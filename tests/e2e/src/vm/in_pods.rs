//! QEMU in a container of a pod: what its container runs, and the monitor over the pod's own network.
//!
//! In: a pod's name and address, once its container runs. Out: a [`PodVm`], whose guest runs once it is let. What always holds:
//! all that is heard of the guest comes by the monitor, as nobody has the container's files; what it has said is read once from
//! QEMU, and kept here.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;

use super::guest::Said;
use super::qemu::{Entry, Talk, VmSpec};
use super::qmp::Qmp;
use crate::world::{Look, wait_for};

/// Where the monitor listens.
const MONITOR_PORT: u16 = 4444;
/// Where the target's QEMU listens for the stream.
const MIGRATION_PORT: u16 = 4445;
/// Where the image has it.
const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";
/// QEMU loads and greets within this time in a pod of an emulated node that has just begun to run it.
const START: Duration = Duration::from_secs(120);
/// More than the guest says between two looks, and no more than QEMU keeps.
const AT_ONCE: u32 = 65536;

/// The name of the claim that a pod gives to it as its disk: KubeVirt's pods have a volume at `/dev/CLAIM`, and QEMU its first
/// disk at `/dev/disk0`.
pub const CLAIM: &str = "disk0";

/// What the pod's container runs.
#[must_use]
pub fn command(name: &str, entry: Entry) -> Vec<String> {
    let spec = VmSpec::new(name, CLAIM);
    let words = spec.arguments(entry, Talk::Network { port: MONITOR_PORT });
    std::iter::once(PROGRAM.to_owned()).chain(words).collect()
}

/// A QEMU that runs in a pod.
#[derive(Debug)]
pub struct PodVm {
    /// The pod.
    pub pod: String,
    address: IpAddr,
    qmp: Qmp,
    heard: Mutex<String>,
}

impl PodVm {
    /// Connects with the monitor of the QEMU in that pod. Blocks.
    ///
    /// # Errors
    /// If it does not greet.
    pub fn connect(pod: &str, address: IpAddr) -> anyhow::Result<Self> {
        let qmp = Qmp::connect_tcp(format!("pod {pod}"), SocketAddr::new(address, MONITOR_PORT), START)?;
        Ok(Self { pod: pod.to_owned(), address, qmp, heard: Mutex::default() })
    }

    /// Its monitor.
    #[must_use]
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Where it takes the stream of a migration.
    #[must_use]
    pub fn listens_at(&self) -> SocketAddr {
        SocketAddr::new(self.address, MIGRATION_PORT)
    }

    /// What the guest has said since this QEMU began. Blocks.
    ///
    /// # Errors
    /// If QEMU does not answer.
    pub fn said(&self) -> anyhow::Result<Said> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let new = self.qmp.execute("ringbuf-read", json!({ "device": "serial", "size": AT_ONCE }))?;
        heard.push_str(new.as_str().context("QEMU's answer to ringbuf-read is no text")?);
        ensure!(heard.len() < AT_ONCE as usize, "the guest of {} says more than it has to", self.pod);
        Ok(Said::of(heard.as_bytes()))
    }

    /// Waits until the guest has written on for so many dots, of 64 writes each.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub async fn writes_on(&self, dots: usize, limit: Duration) -> anyhow::Result<()> {
        let wanted = tokio::task::block_in_place(|| self.said())?.dots + dots;
        wait_for(format!("{wanted} times 64 writes in pod {}", self.pod), limit, async || {
            let said = tokio::task::block_in_place(|| self.said())?;
            Ok(Look::holds(said.dots >= wanted, format!("{said:?}")))
        })
        .await
        .map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_disk_is_where_kubevirts_pods_have_the_claim() {
        let words = command("vm-1", Entry::Incoming);
        assert_eq!(words[0], "/usr/bin/qemu-system-x86_64");
        assert!(words.iter().any(|word| word.contains(&format!("filename=/dev/{CLAIM},"))), "{words:?}");
        assert_eq!(words[words.len() - 2..], ["-incoming", "defer"]);
    }
}
