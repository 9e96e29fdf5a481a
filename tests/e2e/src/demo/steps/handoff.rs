//! Step 2: the volume moves from one node to another under a writer, as in a live migration.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cleat_rig::Command;

use super::attach::SOME_WRITES;
use super::{Demo, Holder};
use crate::demo::figures::Figure;
use crate::demo::say::duration;
use crate::demo::{PATIENCE, Sabotage};
use crate::world::{Node, Stopped, Volume, gap};

/// Writes of a source that goes on after the switchover, when sabotaged.
const LATE_WRITES: u64 = 20;

impl Demo<'_> {
    pub(super) async fn hand_off(&mut self) -> anyhow::Result<()> {
        let world = self.world;
        let (source, target) = (world.a(), world.b());
        let gap = self.switch_over(target).await?;
        self.switchover_gap = gap;
        self.figures.switchover = Figure::whole(gap);

        let volume = self.volume()?;
        let attached = crate::world::Attached {
            target_path: source.target_path(&volume),
            node: source.name().to_owned(),
            ..self.holder()?.attached.clone()
        };
        let before = world.controller.metrics().await?;
        let times = world.detach(&attached, source).await?;
        self.figures.detached(times, &before, &world.controller.metrics().await?);
        self.say.took("node-a detached", times.total());
        self.check_gone(&volume, source).await?;
        if self.sabotage == Some(Sabotage::AclNotCleared) {
            let mut hosts = world.rds.allowed_hosts(&volume.id).await?;
            hosts.push(source.host_nqn().await?);
            world.rds.set_allowed_hosts(&volume.id, &hosts).await?;
        }
        self.check_shut_out(&volume, source).await
    }

    /// Attaches the volume to `target`, stops the writer where it runs, and goes on there from the next number.
    /// Answers with the time without an acknowledged write.
    pub(super) async fn switch_over(&mut self, target: &Node) -> anyhow::Result<Duration> {
        let world = self.world;
        let volume = self.volume()?;
        let begun = Instant::now();
        let attached = world.attach(&volume, target).await?;
        self.say
            .took(&format!("attached to {}, beside the node that writes", target.name()), begun.elapsed());
        self.tell_three_views(&volume, target).await?;

        let region = self.sequence.next_region() + 1;
        let mut next = target.write_with(&Self::writer_on(&attached, target, region)?).await?;
        let Holder { mut writer, .. } = self.holder.take().context("no writer is running")?;
        let left_running = self.sabotage == Some(Sabotage::WriterLeftRunning) && region == 1;
        let stopped = if left_running { snapshot(&writer.seen())? } else { writer.stop().await? };
        let last = stopped.facts.last_acked.context("the source has written nothing")?;
        next.go(last + 1).await?;
        let seen = next.wait("its first write", PATIENCE, |seen| seen.first_ack_at.is_some()).await?;
        let gap = gap(&stopped, &seen)?;
        let source = stopped.facts.node.clone();
        self.say.took(
            &format!("{source} stopped after record {last}, {} went on with {}", target.name(), last + 1),
            gap,
        );
        if left_running {
            writer.wait_progress(LATE_WRITES, PATIENCE).await?;
            writer.stop().await?;
        }
        ensure!(stopped.errors.is_empty(), "writes failed on {source}: {}", stopped.errors.join("; "));
        self.sequence.add(stopped);
        next.wait_writes(SOME_WRITES, PATIENCE).await?;
        self.holder = Some(Holder { attached, writer: next });
        Ok(gap)
    }

    /// Makes sure that the RDS lets the node in no more: by its record, its kernel's list, and an attempt.
    pub(super) async fn check_shut_out(&mut self, volume: &Volume, node: &Node) -> anyhow::Result<()> {
        let (host_nqn, disk) = (node.host_nqn().await?, self.world.rds.disk(&volume.id).await?);
        let listed = disk.allow_host_name.unwrap_or_default();
        ensure!(!listed.contains(&host_nqn), "the RDS's record still lets {} in: {listed}", node.name());
        let allowed = self.world.rds.allowed_hosts(&volume.id).await?;
        ensure!(!allowed.contains(&host_nqn), "the target's host list still lets {} in", node.name());
        let portal = self.world.rds.portals()[0].clone();
        let refusal = self.attempt(node, &portal, &disk.nqn, &host_nqn).await?;
        self.say.detail(&format!(
            "{} is off the host list, and its own attempt is refused: {refusal}",
            node.name()
        ));
        Ok(())
    }

    /// Tries to connect past Cleat, with the node's own identity; the kernel's words for the refusal.
    async fn attempt(&self, node: &Node, portal: &str, nqn: &str, host_nqn: &str) -> anyhow::Result<String> {
        let (address, port) = portal.rsplit_once(':').context("a portal without a port")?;
        let host_id = node.host_id().await?;
        let connect = Command::new("nvme")
            .args(["connect", "-t", "tcp", "-a", address, "-s", port, "-n", nqn, "--nr-io-queues", "1"])
            .args(["--hostnqn", host_nqn, "--hostid", &host_id])
            .deadline(Duration::from_secs(20));
        let machine = node.shared_machine();
        let output = crate::world::blocking(move || machine.exec(&connect)).await?;
        if output.success() {
            bail!("{} could connect again after its detach, past Cleat", node.name());
        }
        let line = node.sh("dmesg | grep -i 'is not allowed' | tail -n 1").await?;
        let said = line.rsplit_once("] ").map_or(line.as_str(), |(_, said)| said);
        ensure!(
            said.contains(host_nqn) || said.contains(nqn),
            "{} could not connect, and not because of the host list: {}",
            node.name(),
            output.stderr_text().trim()
        );
        Ok("host is not allowed".to_owned())
    }
}

/// What a writer that is not stopped would have said if it had been.
fn snapshot(seen: &crate::world::Seen) -> anyhow::Result<Stopped> {
    let facts = seen.facts.clone().context("the writer has not begun")?;
    ensure!(facts.last_acked.is_some(), "nothing is written yet after {}", duration(PATIENCE));
    Ok(Stopped {
        facts,
        reason: crate::writer::StopReason::Asked,
        counts: seen.counts.clone(),
        errors: seen.errors.clone(),
        last_ack_at: seen.last_ack_at,
    })
}
