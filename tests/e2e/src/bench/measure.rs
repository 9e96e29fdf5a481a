//! The four ways, measured one after the other in the same machine.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cleat_rig::Command;
use futures_util::future::join_all;
use serde::Deserialize;

use super::directives::Directives;
use super::disks;
use super::figures::{Series, Way};
use crate::world::{Access, Metrics, Node, Volume, World, blocking};

/// The longest that a command in the guest may take.
const GUEST: Duration = Duration::from_secs(300);
/// After this nvme-cli is taken to hang: 32 volumes take it about 20 s where it does not (emulated).
const NVME_CLI_DEADLINE_S: u64 = 40;
/// CSI calls have longer than in a cluster: what is measured is how long they take.
const CSI: Duration = Duration::from_secs(180);

/// What `bench-guest` prints.
#[derive(Debug, Deserialize)]
struct Measured {
    total_ms: f64,
    failures: u32,
    errors: Vec<String>,
}

/// A world with volumes for all four ways.
#[derive(Debug)]
pub(super) struct Bench<'w> {
    world: &'w World,
    node: &'w Node,
    host_nqn: String,
    host_id: String,
    directives: Directives,
    volumes: Vec<Volume>,
}

impl<'w> Bench<'w> {
    /// Makes so many volumes for each: the controller, the agent past it, and the kernel without either.
    pub(super) async fn prepare(world: &'w World, most: usize) -> anyhow::Result<Self> {
        let node = world.a();
        disks::make(world, node, most).await?;
        let mut volumes = Vec::new();
        for index in 0..most {
            let name = format!("pvc-bench-{index}");
            let created = world.create_volume(&name, Access::RwoBlock, disks::SIZE_BYTES).await;
            volumes.push(created.with_context(|| format!("create {name}"))?.value);
        }
        let (host_nqn, host_id) = (node.host_nqn().await?, node.host_id().await?);
        let directives = Directives::begin(world, node).await?;
        Ok(Self { world, node, host_nqn, host_id, directives, volumes })
    }

    /// Measures all four ways once with so many volumes; which way begins changes from round to round.
    pub(super) async fn round(
        &mut self,
        volumes: usize,
        repetition: usize,
        into: &mut Series,
    ) -> anyhow::Result<()> {
        let mut ways = Way::ALL;
        ways.rotate_left(repetition % Way::ALL.len());
        for way in ways {
            let on = || format!("{} with {volumes} volumes", way.name());
            match way {
                Way::Floor => self.floor(volumes, into).await,
                Way::NvmeCli => self.nvme_cli(volumes, into).await,
                Way::Agent => self.agent(volumes, into).await,
                Way::Csi => self.csi(volumes, into).await,
            }
            .with_context(on)?;
            let left = self.node.nvme_controllers().await?;
            ensure!(left.is_empty(), "{} left {} controllers behind", on(), left.len());
        }
        Ok(())
    }

    async fn floor(&self, volumes: usize, into: &mut Series) -> anyhow::Result<()> {
        let connect = sound(self.guest("floor-connect", volumes, true, 120).await?)?;
        let delete = sound(self.guest("floor-delete", volumes, false, 120).await?)?;
        into.add(Way::Floor, connect, delete);
        Ok(())
    }

    async fn nvme_cli(&self, volumes: usize, into: &mut Series) -> anyhow::Result<()> {
        let connect = self.guest("cli-connect", volumes, true, NVME_CLI_DEADLINE_S).await?;
        let disconnect = self.guest("cli-disconnect", volumes, false, NVME_CLI_DEADLINE_S).await?;
        into.add(Way::NvmeCli, connect.total_ms, disconnect.total_ms);
        for measured in [connect, disconnect] {
            into.nvme_cli_failures += measured.failures;
            into.nvme_cli_errors.extend(measured.errors);
        }
        // What it has left behind must not be in the way of the next.
        sound(self.guest("floor-delete", volumes, false, 120).await?).map(drop)
    }

    async fn agent(&mut self, volumes: usize, into: &mut Series) -> anyhow::Result<()> {
        let attach = self.directives.attach(volumes).await?;
        let detach = self.directives.detach(volumes).await?;
        into.add(Way::Agent, attach.longest_ms, detach.longest_ms);
        into.agent_seen_ms.push((attach.wall_ms, detach.wall_ms));
        into.attach_parts.push(attach.parts);
        into.detach_parts.push(detach.parts);
        Ok(())
    }

    async fn csi(&self, volumes: usize, into: &mut Series) -> anyhow::Result<()> {
        let (world, node, volumes) = (self.world, self.node, &self.volumes[..volumes]);
        let before = world.controller.metrics().await?;
        let begun = Instant::now();
        for answer in join_all(volumes.iter().map(|volume| world.publish_within(volume, node, CSI))).await {
            answer.context("ControllerPublishVolume")?;
        }
        let publish = begun.elapsed();
        let between = world.controller.metrics().await?;
        let begun = Instant::now();
        for answer in join_all(volumes.iter().map(|volume| world.unpublish_within(volume, node, CSI))).await {
            answer.context("ControllerUnpublishVolume")?;
        }
        let unpublish = begun.elapsed();
        let after = world.controller.metrics().await?;
        for volume in volumes {
            let info = world.controller.volume(&volume.id).await?;
            let last =
                info.past_evidence.first().with_context(|| format!("no evidence for {}", volume.id))?;
            into.drain_waits += usize::from(last.drained_by.contains("drain bound"));
        }
        into.add(Way::Csi, publish.as_secs_f64() * 1000.0, unpublish.as_secs_f64() * 1000.0);
        into.rds_ms.push((
            rds_ms(&before, &between, "cleat_controller_attach_seconds"),
            rds_ms(&between, &after, "cleat_controller_detach_seconds"),
        ));
        Ok(())
    }

    async fn guest(
        &self,
        what: &str,
        volumes: usize,
        connects: bool,
        deadline_s: u64,
    ) -> anyhow::Result<Measured> {
        let mut command = Command::new("bench-guest").arg(what).deadline(GUEST);
        command = command.args(["--deadline-s".to_owned(), deadline_s.to_string()]);
        for index in 0..volumes {
            command = command.args(["--nqn".to_owned(), disks::bare_nqn(index)]);
        }
        if connects {
            command = command.args(["--hostnqn", &self.host_nqn, "--hostid", &self.host_id]);
            command = command.args(["--keep-alive-s".to_owned(), super::KEEP_ALIVE_S.to_string()]);
            for portal in self.world.rds.portals() {
                command = command.args(["--portal".to_owned(), portal]);
            }
        }
        let machine = self.node.shared_machine();
        let text = blocking(move || machine.run(&command)).await?;
        serde_json::from_str(&text).with_context(|| format!("understand bench-guest {what}: {text}"))
    }
}

fn sound(measured: Measured) -> anyhow::Result<f64> {
    ensure!(measured.failures == 0, "{} failures: {}", measured.failures, measured.errors.join("; "));
    Ok(measured.total_ms)
}

/// The mean time that a volume's change of the host list took, its turn included.
fn rds_ms(before: &Metrics, after: &Metrics, histogram: &str) -> f64 {
    let labels = [("part", "rds")];
    let count = after.count_since(before, histogram, &labels).max(1);
    after.ms_since(before, histogram, &labels) / count as f64
}
