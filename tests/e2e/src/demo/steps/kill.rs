//! Step 5: the controller dies in the middle of a handoff, and the handoff completes.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rds_sim::faults::{Action, Fault};

use super::attach::SOME_WRITES;
use super::{Demo, attachment, describe};
use crate::demo::PATIENCE;
use crate::demo::say::duration;
use crate::world::{Look, Volume, World, wait_for};

/// The RDS takes this long for a change of a host list, so that the kill surely comes before the detach is done.
const SLOW_RDS: Duration = Duration::from_secs(3);

impl Demo<'_> {
    pub(super) async fn kill_the_controller(&mut self) -> anyhow::Result<()> {
        let world = self.world;
        let (volume, source, target) = (self.volume()?, world.b(), world.c());
        self.switch_over(target).await?;
        let before = world.controller.volume(&volume.id).await?;
        let granted = attachment(&before, target).context("node-c was not granted")?.epoch;

        source.unpublish(&volume).await.context("NodeUnpublishVolume on node-b")?;
        source.unstage(&volume).await.context("NodeUnstageVolume on node-b")?;
        let slow = Action::Slow { delay_ms: u64::try_from(SLOW_RDS.as_millis())? };
        world.rds.add_fault(&Fault { method: Some("PATCH".to_owned()), ..Fault::next(1, slow) }).await?;
        let phase = self.kill_while_detaching(&volume).await?;
        self.say.line(&format!("controller killed with -9: node-c granted, node-b {phase}"));

        let begun = Instant::now();
        world.rds.clear_faults().await?;
        world.controller.start().await?;
        for node in world.nodes() {
            world.wait_session(node, PATIENCE).await?;
        }
        self.say.took("controller started again, all agents are back", begun.elapsed());
        let begun = Instant::now();
        let waited_for = self.unpublish_until_done(&volume).await?;
        self.say.took("node-b's detach, asked for again as the attacher does, completes", begun.elapsed());
        if let Some(reason) = waited_for {
            self.say.detail(&format!("it waited for {reason}"));
        }
        self.check_gone(&volume, source).await?;
        self.check_shut_out(&volume, source).await?;

        let after = world.controller.volume(&volume.id).await?;
        ensure!(after.attachments.len() == 1, "node-c alone should have it: {}", describe(&after));
        let kept = attachment(&after, target).context("node-c's grant was forgotten")?;
        ensure!(kept.epoch == granted, "node-c was granted twice: {granted:?}, then {:?}", kept.epoch);
        let seen = self.holder()?.writer.wait_progress(SOME_WRITES, PATIENCE).await?;
        ensure!(seen.errors.is_empty(), "writes failed on node-c: {}", seen.errors.join("; "));
        self.say.line(&format!(
            "node-c keeps its one grant, and its writer never stopped (longest wait {})",
            duration(Duration::from_micros(seen.counts.max_gap_us))
        ));
        Ok(())
    }

    /// Repeats node-b's Unpublish until it is done; what it waited for, if it did so for long enough to be seen.
    async fn unpublish_until_done(&self, volume: &Volume) -> anyhow::Result<Option<String>> {
        let (world, source) = (self.world, self.world.b());
        let mut reason = None;
        let unpublish = wait_for("Unpublish of node-b", PATIENCE, async || {
            world.unpublish(volume, source).await?;
            Ok(Look::Yes(()))
        });
        let watch = async {
            let seen = wait_for("a reason to wait", PATIENCE, async || {
                let info = world.controller.volume(&volume.id).await?;
                let waits =
                    attachment(&info, source).map(|a| a.waits_for.clone()).filter(|text| !text.is_empty());
                Ok(Look::some(waits, "none"))
            });
            // That it waits for nothing is no fault: then the detach ends first.
            reason = seen.await.ok();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            done = unpublish => done?,
            () = watch => {}
        }
        Ok(reason)
    }

    /// Kills the controller while it carries out node-b's Unpublish; in which phase that was.
    async fn kill_while_detaching(&self, volume: &Volume) -> anyhow::Result<String> {
        let (world, source) = (self.world, self.world.b());
        let unpublish = async {
            let lost = world.unpublish(volume, source).await;
            ensure!(lost.is_err(), "Unpublish was done before the controller could be killed");
            Ok(())
        };
        let kill = async {
            let phase = wait_detaching(world, volume).await?;
            world.controller.kill().await?;
            anyhow::Ok(phase)
        };
        let (lost, phase) = tokio::join!(unpublish, kill);
        lost?;
        phase
    }
}

async fn wait_detaching(world: &World, volume: &Volume) -> anyhow::Result<String> {
    wait_for("node-b's detach to be under way", PATIENCE, async || {
        let info = world.controller.volume(&volume.id).await?;
        let phase = attachment(&info, world.b()).map(|a| a.phase.clone()).filter(|phase| phase != "Ready");
        Ok(Look::some(phase, describe(&info)))
    })
    .await
    .map_err(Into::into)
}
