//! The demo: the main job from end to end on real kernels, told to a person as it happens.
//!
//! In: [`Options`] and a run of the rig. Out: lines for people, a table of figures, and an [`Outcome`] for machines.
//! What always holds: every step ends with a check of its own that can fail; a step that failed ends the run with
//! its reason, and the outcome is then not ok.

pub mod fence;
mod figures;
pub mod migrate;
mod outcome;
pub mod pods;
mod say;
mod sequence;
mod steps;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use cleat_rig::Namespace;

use crate::world::{World, WorldOptions};

pub use figures::Figures;
pub use outcome::{Outcome, StepOutcome, WriterOutcome};
use say::Say;
use sequence::Sequence;
use steps::Demo;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Kernel of all machines.
    pub kernel: String,
    /// Leave everything running at the end.
    pub keep: bool,
    /// Break something on purpose.
    pub sabotage: Option<Sabotage>,
}

/// What is broken on purpose, so that the checks can be seen to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    /// The writer on the source goes on after the switchover.
    WriterLeftRunning,
    /// The writer says that it has written a block, and has not.
    SkipBlock,
    /// The source is put back on the volume's host list after it was detached.
    AclNotCleared,
}

/// How long this RDS may hold a write that it has received: it is a local file here. What a node had in flight on a
/// path that was lost may land for so long, and nobody else gets the volume's proof before. (60 s by default.)
const DRAIN_BOUND: &str = "10s";

/// Longest wait for anything that is none of a step's own figures.
const PATIENCE: Duration = Duration::from_secs(60);

/// Boots the machines and goes through the six steps. The outcome is told in words here, and given for machines.
///
/// # Errors
/// Only if the run's own folder or runtime fails: what goes wrong in the demo is in the outcome.
pub async fn run(run: &Namespace, options: &Options) -> anyhow::Result<Outcome> {
    let mut say = Say::new();
    let accelerator = match cleat_rig::Accelerator::choose() {
        cleat_rig::Accelerator::Kvm => "KVM",
        cleat_rig::Accelerator::Emulation => "emulated: slow, and the same everywhere",
    };
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    say.plain(&format!(
        "Cleat demo: attach, hand off, detach, on Linux {} in four virtual machines ({accelerator}, {build} build)",
        options.kernel
    ));
    let mut world_options = WorldOptions::on_kernel(&options.kernel);
    world_options = world_options.controller_options([["--drain-bound", DRAIN_BOUND]]);
    if let Ok(filter) = std::env::var("CLEAT_LOG") {
        world_options.log_filter = filter;
    }
    say.plain("");
    say.line("booting one RDS and three nodes");
    let world = match World::boot(run, world_options).await {
        Ok(world) => world,
        Err(error) => {
            say.failure(&format!("{error:#}"));
            return Ok(Outcome::not_begun(say.elapsed()));
        }
    };
    let release = world.a().sh("uname -r").await?;
    say.line(&format!("all up on Linux {release}; each node's agent has its session with the controller"));

    let mut demo = Demo::new(&world, say, options.sabotage);
    let failed = demo.all_steps().await.err();
    let (mut say, outcome) = demo.into_parts();
    if let Some(error) = failed {
        say.failure(&format!("{error:#}"));
        let logs = world.collect_logs("demo").await;
        say.plain(&format!("logs of every part: {}", logs.display()));
        return Ok(outcome);
    }
    outcome.figures.tell(&mut say);
    say.plain("");
    say.plain(&format!(
        "ok: 6 steps in {:.0} s, {} writes, none lost, doubled or late",
        say.elapsed().as_secs_f64(),
        outcome.writer.writes
    ));
    if options.keep {
        keep(world, run, &mut say).context("keep the machines running")?;
    }
    Ok(outcome)
}

fn keep(world: World, run: &Namespace, say: &mut Say) -> anyhow::Result<()> {
    let folder = world.folder().to_owned();
    let options = world.controller.cleatctl_options().join(" ");
    let name = world.keep(run)?;
    let cleatctl = folder.join("cleatctl");
    let (rig, program) = (cleat_rig::program("rig")?, cleat_rig::program("cleatctl")?);
    let script =
        format!("#!/bin/sh\nexec {} host {name} -- {} {options} \"$@\"\n", rig.display(), program.display());
    std::fs::write(&cleatctl, script).with_context(|| format!("write {}", cleatctl.display()))?;
    std::fs::set_permissions(&cleatctl, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} a program", cleatctl.display()))?;
    say.plain("");
    say.plain("Everything is left running. To look inside:");
    say.plain(&format!("  hack/rig sh {name} node-c    a shell on the node that has the volume"));
    say.plain(&format!(
        "  hack/rig sh {name} rds       the target, below /sys/kernel/config/nvmet/subsystems"
    ));
    say.plain(&format!("  {} explain pvc-demo", cleatctl.display()));
    say.plain(&format!("  less {}/controller.log", folder.display()));
    say.plain(&format!("  hack/rig down {name}         ends it all"));
    Ok(())
}
