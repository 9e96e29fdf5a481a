//! The migration demo: a virtual machine of a real QEMU moves from node to node while it writes, and the target says whether
//! anything was lost, doubled or late.
//!
//! In: [`MigrateOptions`] and a run of the rig. Out: lines for people and a [`MigrateOutcome`] for machines. What always
//! holds: the order of writes is the target's own, on its clock, with the controller by which each came; the data is read
//! back through the node that the machine has moved to, past every cache; what broke off is in the outcome with what is known of it, and
//! the outcome is then not ok.

mod outcome;
mod scene;

use clap::ValueEnum;
use cleat_rig::Namespace;

pub use outcome::{MigrateOutcome, MigrationOutcome};
use scene::Scene;

use super::DRAIN_BOUND;
use super::say::Say;
use crate::vm::qemu;
use crate::world::{World, WorldOptions};

/// A node runs QEMU beside its agent.
const NODE_MEMORY_MIB: u32 = 1024;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct MigrateOptions {
    /// Kernel of all machines.
    pub kernel: String,
    /// What is broken on purpose.
    pub sabotage: Option<MigrateSabotage>,
}

/// What is broken on purpose, so that the check can be seen to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MigrateSabotage {
    /// The source's QEMU is let go on after the switchover, as nothing in QEMU keeps it from.
    SourceGoesOn,
}

/// Boots one RDS and two nodes and moves a virtual machine from the one to the other.
///
/// # Errors
/// Only if the run's own folder or runtime fails: what goes wrong in the demo is in the outcome.
pub async fn run(run: &Namespace, options: &MigrateOptions) -> anyhow::Result<MigrateOutcome> {
    let mut say = Say::new();
    say.plain(&format!(
        "Cleat demo: live migration of a virtual machine of a real QEMU, on Linux {}",
        options.kernel
    ));
    say.plain("");
    let mut outcome = MigrateOutcome { ok: false, migrations: Vec::new() };
    say.line("booting one RDS and two nodes with QEMU");
    let world = match boot(run, &options.kernel).await {
        Ok(world) => world,
        Err(error) => {
            say.failure(&format!("{error:#}"));
            return Ok(outcome);
        }
    };
    say.step(1, "A virtual machine moves from node-a to node-b while it writes");
    let mut scene = Scene::new(&world, options.sabotage, &mut say);
    let done = scene.all().await;
    let came = scene.into_outcome();
    outcome.ok = done.is_ok();
    outcome.migrations.push(came);
    if let Err(error) = done {
        say.failure(&format!("{error:#}"));
        let logs = world.collect_logs("demo-migrate").await;
        say.plain(&format!("logs of every part: {}", logs.display()));
        return Ok(outcome);
    }
    tell(&outcome, &mut say);
    Ok(outcome)
}

fn tell(outcome: &MigrateOutcome, say: &mut Say) {
    say.plain("");
    for migration in &outcome.migrations {
        say.plain(&format!(
            "{}: {}, a pause of {:.0} ms between the last write of the source and the first of the target node",
            migration.vm,
            migration.result.as_deref().unwrap_or("no result"),
            migration.pause_ms.unwrap_or_default()
        ));
    }
    say.plain("");
    say.plain(&format!(
        "ok: {} migration in {:.0} s, no write lost, doubled or late",
        outcome.migrations.len(),
        say.elapsed().as_secs_f64()
    ));
}

async fn boot(run: &Namespace, kernel: &str) -> anyhow::Result<World> {
    let mut options = WorldOptions::on_kernel(kernel).nodes(2);
    options = options.controller_options([["--drain-bound", DRAIN_BOUND]]);
    (options.node_memory_mib, options.node_image) = (NODE_MEMORY_MIB, Some(qemu::image()?));
    if let Ok(filter) = std::env::var("CLEAT_LOG") {
        options.log_filter = filter;
    }
    World::boot(run, options).await
}
