//! Step 1: a volume comes to be, is attached, and is written to.

use super::{Demo, Holder, VOLUME_BYTES};
use crate::demo::{PATIENCE, Sabotage};
use crate::world::Access;
use crate::writer::Sabotage as WriterSabotage;

/// Writes that are waited for before a step goes on: some tenths of a second of a running VM.
pub(super) const SOME_WRITES: u64 = 50;

impl Demo<'_> {
    pub(super) async fn attach_and_write(&mut self) -> anyhow::Result<()> {
        let world = self.world;
        let node = world.a();
        let created = world.create_volume("pvc-demo", Access::RwxBlock, VOLUME_BYTES).await?;
        let volume = created.value.clone();
        self.say.took(
            &format!("{} created, {} MiB, on the RDS", volume.id, volume.size_bytes >> 20),
            created.took,
        );
        self.volume = Some(volume.clone());

        let before = world.controller.metrics().await?;
        let attached = world.attach(&volume, node).await?;
        self.figures.attached(attached.times, &before, &world.controller.metrics().await?);
        self.say.took("attached to node-a, a pod could start", attached.times.total());
        self.tell_three_views(&volume, node).await?;

        let mut args = Self::writer_on(&attached, node, 0)?;
        args.start_seq = Some(1);
        args.sabotage = (self.sabotage == Some(Sabotage::SkipBlock)).then_some(WriterSabotage::SkipBlock);
        let mut writer = node.write_with(&args).await?;
        let seen = writer.wait_writes(SOME_WRITES, PATIENCE).await?;
        self.say.line(&format!(
            "node-a writes: {} records so far, slowest {:.1} ms",
            seen.counts.writes,
            seen.counts.max_latency_us as f64 / 1000.0
        ));
        self.holder = Some(Holder { attached, writer });
        Ok(())
    }
}
