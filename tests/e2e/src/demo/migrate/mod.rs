//! The migration demo: a virtual machine of a real QEMU moves from node to node while it writes, and the target says whether
//! anything was lost, doubled or late.
//!
//! In: [`MigrateOptions`] and a run of the rig. Out: lines for people and a [`MigrateOutcome`] for machines. What always
//! holds: the order of writes is the target's own, on its clock, with the controller by which each came; the data is read
//! back through the node that has the machine at the end, past every cache; what broke off is in the outcome with what is known
//! of it, and the outcome is then not ok.

mod faults;
mod judge;
mod kubevirt;
mod outcome;
mod scene;

use clap::ValueEnum;
use cleat_rig::Namespace;

pub use outcome::{MigrateOutcome, MigrationOutcome};
use scene::Scene;

use super::DRAIN_BOUND;
use super::say::Say;
use crate::vm::qemu;
use crate::vm::undisturbed::{self, Writing};
use crate::world::{ByHand, Kernels, Rung, World, WorldOptions};

/// A node runs QEMU beside its agent.
const NODE_MEMORY_MIB: u32 = 1024;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct MigrateOptions {
    /// Kernel of all machines.
    pub kernel: String,
    /// What is broken on purpose.
    pub sabotage: Option<MigrateSabotage>,
    /// The controller keeps its records in a cluster, in which KubeVirt's part is played: who migrates is known then.
    pub kubevirt: bool,
    /// What goes wrong, in one migration after the other; nothing does in one if none is named.
    pub faults: Vec<MigrateFault>,
}

/// What is broken on purpose, so that the check can be seen to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MigrateSabotage {
    /// The source's QEMU is let go on after the switchover, as nothing in QEMU keeps it from.
    SourceGoesOn,
    /// The target shows another namespace under the volume's name when node-b attaches it.
    OtherIdentity,
}

/// What goes wrong in a migration that has to come to a good end all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MigrateFault {
    /// One of node-b's paths is cut while the guest's memory is on its way.
    CutPath,
    /// The migration is called off then.
    Cancel,
    /// The controller is killed then, and starts again once the guest runs on node-b.
    KillController,
    /// node-a's machine stands still from right after the switchover on.
    FreezeSource,
    /// The machine has a second disk, which came while it ran.
    TwoDisks,
}

fn title(fault: Option<MigrateFault>) -> &'static str {
    match fault {
        None => "A virtual machine moves from node-a to node-b while it writes",
        Some(MigrateFault::CutPath) => "It moves, and one path of node-b is cut meanwhile",
        Some(MigrateFault::Cancel) => "It is to move, and that is called off half-way",
        Some(MigrateFault::KillController) => "It moves, and the controller is killed meanwhile",
        Some(MigrateFault::FreezeSource) => {
            "It moves, and node-a's machine stands still right after the switchover"
        }
        Some(MigrateFault::TwoDisks) => "It moves with two disks, one of which came while it ran",
    }
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
    if options.kubevirt {
        say.line("starting an API server, with what deploy/ deploys and KubeVirt's kinds; then one RDS and two nodes with QEMU");
    } else {
        say.line("booting one RDS and two nodes with QEMU");
    }
    let world = match boot(run, options).await {
        Ok(world) => world,
        Err(error) => {
            say.failure(&format!("{error:#}"));
            return Ok(outcome);
        }
    };
    let none = [None];
    let faults: Vec<Option<MigrateFault>> = options.faults.iter().copied().map(Some).collect();
    let wanted = if faults.is_empty() { none.as_slice() } else { faults.as_slice() };
    for (number, fault) in (1..).zip(wanted) {
        say.step(number, title(*fault));
        let mut scene = Scene::new(&world, options.sabotage, *fault, &mut say);
        let done = scene.all().await;
        outcome.migrations.push(scene.into_outcome());
        if let Err(error) = done {
            return failed(&world, error, outcome, &mut say).await;
        }
    }
    if options.sabotage.is_none()
        && outcome.migrations.iter().any(|one| one.pause_ms.is_some())
        && let Err(error) = floor(&world, &mut outcome, &mut say).await
    {
        return failed(&world, error.context("the same with both nodes attached by hand"), outcome, &mut say)
            .await;
    }
    outcome.ok = true;
    tell(&outcome, &mut say);
    Ok(outcome)
}

async fn failed(
    world: &World,
    error: anyhow::Error,
    outcome: MigrateOutcome,
    say: &mut Say,
) -> anyhow::Result<MigrateOutcome> {
    say.failure(&format!("{error:#}"));
    let logs = world.collect_logs("demo-migrate").await;
    say.plain(&format!("logs of every part: {}", logs.display()));
    Ok(outcome)
}

/// The same migration, with both nodes attached by hand before it begins: what of the pause is not storage's.
async fn floor(world: &World, outcome: &mut MigrateOutcome, say: &mut Say) -> anyhow::Result<()> {
    say.plain("");
    say.line("the same once more without Cleat, with both nodes attached by hand before it begins");
    let by_hand = ByHand::attach(world, &[scene::VOLUME_BYTES]).await?;
    let [at_a, at_b] = by_hand.disks(1)?;
    let writing =
        Writing::begin(world, "vm-by-hand", (by_hand.first_nqn()?, scene::VOLUME_BYTES), at_a).await?;
    let order = writing.moves(at_b).await?.judge()?;
    let gap = undisturbed::gap_ms(&order)?;
    by_hand.take_away().await?;
    say.line(&format!("its pause is {gap:.0} ms"));
    for migration in &mut outcome.migrations {
        migration.storage_ms = migration.pause_ms.map(|pause| pause - gap);
    }
    Ok(())
}

fn tell(outcome: &MigrateOutcome, say: &mut Say) {
    say.plain("");
    for migration in &outcome.migrations {
        let result = migration.result.as_deref().unwrap_or("no result");
        let pause = match (migration.pause_ms, migration.storage_ms) {
            (Some(pause), Some(storage)) => format!(
                "a pause of {pause:.0} ms between the last write of the source and the first of the target node, \
                 {storage:.0} ms more than by hand"
            ),
            (Some(pause), None) => format!("a pause of {pause:.0} ms"),
            (None, _) => "no pause, for it has never left node-a".to_owned(),
        };
        let moved_by = migration.attributed_to.as_deref().unwrap_or("nobody known");
        say.plain(&format!("{}: {result} by {moved_by}, {pause}", migration.vm));
    }
    say.plain("");
    let count = outcome.migrations.len();
    say.plain(&format!(
        "ok: {count} {} in {:.0} s, no write lost, doubled or late",
        if count == 1 { "migration" } else { "migrations" },
        say.elapsed().as_secs_f64()
    ));
}

async fn boot(run: &Namespace, options: &MigrateOptions) -> anyhow::Result<World> {
    let mut world = WorldOptions::on_kernel(&options.kernel).nodes(2);
    world.in_cluster = options.kubevirt;
    if options.faults.contains(&MigrateFault::FreezeSource) {
        // What production waits for, shortened to what an emulated machine needs.
        world = world.agent_options([["--keep-alive", "3s"]]).controller_options([
            ["--drain-bound", "3s"],
            ["--silence-deadline", "5s"],
            ["--heartbeat-interval", "1s"],
            ["--fence-after", "3s"],
        ]);
        world.target = Rung::Acl.view(Kernels::of(&world)?);
    } else {
        world = world.controller_options([["--drain-bound", DRAIN_BOUND]]);
    }
    (world.node_memory_mib, world.node_image) = (NODE_MEMORY_MIB, Some(qemu::image()?));
    if let Ok(filter) = std::env::var("CLEAT_LOG") {
        world.log_filter = filter;
    }
    World::boot(run, world).await
}
