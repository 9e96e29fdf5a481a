//! The world of the probe: an RDS and one node, without controller and agent.

use std::time::Duration;

use cleat_e2e::suite::Suite;
use cleat_e2e::world::{World, WorldOptions};
use cleat_rig::Namespace;

use crate::probing::nothing_is_left;

/// The tests of the probe.
pub(crate) struct Probes(WorldOptions);

impl Probes {
    pub(crate) fn from_env() -> anyhow::Result<Self> {
        let mut options = WorldOptions::from_env()?.nodes(1);
        options.node_programs = vec!["cleatctl".to_owned(), "cleat-rds-probe".to_owned()];
        // Its programs are twice the size of those of other worlds.
        options.node_memory_mib = 512;
        Ok(Self(options))
    }
}

impl Suite for Probes {
    type World = World;
    const NAME: &'static str = "probe";

    fn limit(&self) -> Duration {
        Duration::from_secs(420)
    }

    async fn boot(&self, run: &Namespace) -> anyhow::Result<World> {
        let world = World::boot_machines(run, &self.0).await?;
        world.rds.start().await?;
        Ok(world)
    }

    async fn tidy(&self, world: &World) -> anyhow::Result<()> {
        nothing_is_left(world).await
    }

    async fn clues(&self, world: &World, name: &str) -> String {
        world.logs_are_in(name).await
    }
}
