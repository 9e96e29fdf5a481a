//! The six steps, in their order, and what they share.

mod attach;
mod handoff;
mod kill;
mod path;
mod read_back;
mod refusals;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cleat_proto::cleat::v1::{AttachmentInfo, VolumeInfo, volume_state::Phase};

use super::outcome::{Outcome, StepOutcome, WriterOutcome};
use super::say::Say;
use super::{Figures, PATIENCE, Sabotage, Sequence};
use crate::world::{Attached, Look, Node, Volume, World, Writer, wait_for};
use crate::writer::WriteArgs;

/// Size of the volumes: room for the regions of all runs. Only what is written takes place.
const VOLUME_BYTES: u64 = 1 << 30;

/// From one write to the next: so a region of 16384 lasts for a minute, longer than any run.
const WRITE_INTERVAL_US: u64 = 4000;

/// A demo under way.
#[derive(Debug)]
pub(super) struct Demo<'w> {
    world: &'w World,
    say: Say,
    sabotage: Option<Sabotage>,
    steps: Vec<StepOutcome>,
    sequence: Sequence,
    figures: Figures,
    writer: Option<WriterOutcome>,
    switchover_gap: Duration,
    volume: Option<Volume>,
    holder: Option<Holder>,
}

/// The volume where it is in use, and the writer on it.
#[derive(Debug)]
struct Holder {
    attached: Attached,
    writer: Writer,
}

impl<'w> Demo<'w> {
    pub(super) fn new(world: &'w World, say: Say, sabotage: Option<Sabotage>) -> Self {
        Self {
            world,
            say,
            sabotage,
            steps: Vec::new(),
            sequence: Sequence::default(),
            figures: Figures::default(),
            writer: None,
            switchover_gap: Duration::ZERO,
            volume: None,
            holder: None,
        }
    }

    /// All steps, up to the first that fails.
    pub(super) async fn all_steps(&mut self) -> anyhow::Result<()> {
        let begun = self.begin("Create an RWX block volume, attach it to node-a over two portals, write");
        let done = self.attach_and_write().await;
        self.end("attach", begun, done)?;

        let begun = self
            .begin("Attach it to node-b as the migration's target, switch the writer over, detach node-a");
        let done = self.hand_off().await;
        self.end("handoff", begun, done)?;

        let begun = self.begin("Refuse a third node, and a second one for an RWO volume");
        let done = self.refuse().await;
        self.end("refusals", begun, done)?;

        let begun = self.begin("Cut one storage path under the writer, and give it back");
        let done = self.lose_a_path().await;
        self.end("path-loss", begun, done)?;

        let begun = self.begin("Hand off to node-c, and kill the controller with -9 in the middle");
        let done = self.kill_the_controller().await;
        self.end("controller-kill", begun, done)?;

        let begun = self.begin("Read the sequence back on the RDS");
        let done = self.read_back().await;
        self.end("read-back", begun, done)
    }

    fn begin(&mut self, title: &str) -> Instant {
        self.say.step(self.steps.len() + 1, title);
        Instant::now()
    }

    fn end(&mut self, name: &'static str, begun: Instant, done: anyhow::Result<()>) -> anyhow::Result<()> {
        let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.steps.push(StepOutcome { name, ok: done.is_ok(), ms });
        done.with_context(|| format!("step {} ({name})", self.steps.len()))
    }

    /// How it went, also where it ended early.
    pub(super) fn into_parts(self) -> (Say, Outcome) {
        let ok = self.steps.len() == 6 && self.steps.iter().all(|step| step.ok);
        let writer = self.writer.unwrap_or_else(|| self.sequence.outcome(self.switchover_gap));
        (self.say, Outcome { ok, steps: self.steps, writer, figures: self.figures })
    }

    // ---- what the steps share ----

    fn volume(&self) -> anyhow::Result<Volume> {
        self.volume.clone().context("there is no volume yet")
    }

    /// A paced writer for a region of its own.
    fn writer_on(attached: &Attached, node: &Node, region: u32) -> anyhow::Result<WriteArgs> {
        let mut args =
            WriteArgs::new(&attached.target_path, attached.volume.id.parse()?, node.name().parse()?, region);
        args.interval_us = WRITE_INTERVAL_US;
        Ok(args)
    }

    fn holder(&mut self) -> anyhow::Result<&mut Holder> {
        self.holder.as_mut().context("no writer is running")
    }

    /// Waits until the node reports the volume ready with a live path through every portal.
    async fn wait_ready(&self, volume: &Volume, node: &Node) -> anyhow::Result<AttachmentInfo> {
        let portals = self.world.rds.portals().len();
        wait_for(format!("{} to report all {portals} paths live", node.name()), PATIENCE, async || {
            let info = self.world.controller.volume(&volume.id).await?;
            let attachment = attachment(&info, node);
            let live = attachment.and_then(|a| a.reported.as_ref()).filter(|r| {
                r.phase() == Phase::Ready
                    && r.paths.iter().filter(|path| path.state == "live").count() == portals
            });
            Ok(Look::some(attachment.filter(|_| live.is_some()).cloned(), describe(&info)))
        })
        .await
        .map_err(Into::into)
    }

    /// Tells what controller, agent and kernel each say of an attachment, and makes sure that they agree.
    async fn tell_three_views(&mut self, volume: &Volume, node: &Node) -> anyhow::Result<()> {
        let attachment = self.wait_ready(volume, node).await?;
        let epoch = attachment.epoch.unwrap_or_default();
        self.say.detail(&format!(
            "controller: {} is {}, {}, epoch {}.{}",
            node.name(),
            attachment.role,
            attachment.phase,
            epoch.term,
            epoch.seq
        ));
        let reported = attachment.reported.unwrap_or_default();
        let paths: Vec<String> =
            reported.paths.iter().map(|path| format!("{} {}", path.portal, path.state)).collect();
        self.say.detail(&format!("agent:      {} ready on {}", reported.device, paths.join(", ")));
        let kernel = self.kernel_paths(volume, node).await?;
        self.say.detail(&format!("kernel:     {}", kernel.join(", ")));
        ensure!(
            kernel.len() == reported.paths.len(),
            "the kernel of {} shows {} controllers, its agent reports {}",
            node.name(),
            kernel.len(),
            reported.paths.len()
        );
        Ok(())
    }

    /// The controllers of the volume in the node's kernel, as `nvme0 10.77.1.1 live`.
    async fn kernel_paths(&self, volume: &Volume, node: &Node) -> anyhow::Result<Vec<String>> {
        let nqn = self.world.rds.disk(&volume.id).await?.nqn;
        let all = node.nvme_controllers().await?;
        let ours = all.into_iter().filter(|(_, subsystem, ..)| *subsystem == nqn);
        Ok(ours
            .map(|(name, _, address, state)| {
                let portal = address
                    .split(',')
                    .find_map(|part| part.strip_prefix("traddr="))
                    .unwrap_or("?")
                    .to_owned();
                format!("{name} {portal} {state}")
            })
            .collect())
    }

    /// Makes sure that the kernel of a node that was detached holds nothing of the volume, and that the controller
    /// has a proof.
    async fn check_gone(&mut self, volume: &Volume, node: &Node) -> anyhow::Result<()> {
        let left = self.kernel_paths(volume, node).await?;
        ensure!(left.is_empty(), "the kernel of {} still holds {}", node.name(), left.join(", "));
        let info = self.world.controller.volume(&volume.id).await?;
        ensure!(
            attachment(&info, node).is_none(),
            "the controller still has it attached: {}",
            describe(&info)
        );
        let proof = info.past_evidence.iter().find(|evidence| evidence.node_id == node.name());
        let proof = proof
            .with_context(|| format!("the controller has no proof that {} cannot write", node.name()))?;
        ensure!(
            proof.verdict == "Fenced",
            "the proof that {} cannot write says {}",
            node.name(),
            proof.verdict
        );
        ensure!(
            !proof.drained_by.is_empty(),
            "nothing proves that no write of {} is still on its way",
            node.name()
        );
        self.say.detail(&format!("proof: {}; nothing on its way: {}", proof.source, proof.drained_by));
        Ok(())
    }
}

fn attachment<'i>(info: &'i VolumeInfo, node: &Node) -> Option<&'i AttachmentInfo> {
    info.attachments.iter().find(|attachment| attachment.node_id == node.name())
}

/// A volume's attachments in a few words, for messages.
fn describe(info: &VolumeInfo) -> String {
    let words: Vec<String> = info
        .attachments
        .iter()
        .map(|a| {
            let reported = a.reported.as_ref();
            let phase =
                reported.map_or("nothing reported".to_owned(), |r| format!("reports {:?}", r.phase()));
            let live = reported.map_or(0, |r| r.paths.iter().filter(|path| path.state == "live").count());
            let waits =
                if a.waits_for.is_empty() { String::new() } else { format!(", waits for {}", a.waits_for) };
            format!("{} {} {} ({phase}, {live} live paths{waits})", a.node_id, a.role, a.phase)
        })
        .collect();
    if words.is_empty() { "no attachment".to_owned() } else { words.join("; ") }
}
