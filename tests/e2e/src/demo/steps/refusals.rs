//! Step 3: what is refused, and that the refusal says enough.

use anyhow::{bail, ensure};
use tonic::Code;

use super::{Demo, VOLUME_BYTES, describe};
use crate::world::{Access, Node, Timed, Volume};

impl Demo<'_> {
    pub(super) async fn refuse(&mut self) -> anyhow::Result<()> {
        let world = self.world;
        let volume = self.volume()?;
        // Two nodes first: node-b writes, node-a comes back beside it.
        world.publish(&volume, world.a()).await?;
        self.say.line("node-a is granted again beside node-b, so two nodes have the volume");
        let words = [
            "already attached to 2 nodes (migration limit)",
            "Wait for migration to complete",
            "node-a",
            "node-b",
        ];
        self.expect_refusal(&volume, world.c(), &words).await?;
        world.unpublish(&volume, world.a()).await?;
        let info = world.controller.volume(&volume.id).await?;
        ensure!(
            info.attachments.len() == 1 && info.attachments[0].node_id == "node-b",
            "after the rollback node-b alone should have it: {}",
            describe(&info)
        );
        self.say.line("node-a withdrawn: node-b has it alone, its writer has not noticed");

        let single = world.create_volume("pvc-single", Access::RwoBlock, VOLUME_BYTES / 16).await?.value;
        world.publish(&single, world.a()).await?;
        self.say.line(&format!("{}, an RWO volume, is attached to node-a", single.id));
        let words = ["already attached to node node-a", "For multi-node access, use RWX with block volumes"];
        self.expect_refusal(&single, world.b(), &words).await?;
        world.unpublish(&single, world.a()).await?;
        world.delete_volume(&single).await?;
        Ok(())
    }

    async fn expect_refusal(&mut self, volume: &Volume, node: &Node, words: &[&str]) -> anyhow::Result<()> {
        let refusal = match self.world.publish(volume, node).await {
            Ok(Timed { .. }) => bail!("{} was granted {}, which must be refused", node.name(), volume.id),
            Err(refusal) => refusal,
        };
        let message = refusal.message();
        ensure!(refusal.code() == Code::FailedPrecondition, "refused with {:?}: {message}", refusal.code());
        for word in words {
            ensure!(message.contains(word), "the refusal does not say {word:?}: {message}");
        }
        self.say.line(&format!("{} is refused:", node.name()));
        self.say.detail(&format!("\"{message}\""));
        Ok(())
    }
}
