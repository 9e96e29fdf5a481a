//! The fencing demo: a writing node is cut off, taken off its volume on a proof, comes back, and lands nothing.
//!
//! In: [`FenceOptions`] and a run of the rig. Out: lines for people and a [`FenceOutcome`] for machines. What always
//! holds: what landed is read from the target's own content, at the proof and after the node is back; a rung that
//! broke off is in the outcome with what is known of it, and the outcome is then not ok.

mod rung;

use clap::ValueEnum;
use cleat_rig::Namespace;
use rds_sim::pretend::Pretend;
use serde::Serialize;

use super::say::Say;
use crate::world::{World, WorldOptions};
use rung::Rung;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct FenceOptions {
    /// Kernel of all machines.
    pub kernel: String,
    /// A step of the fence that the target answers and does not take.
    pub sabotage: Option<FenceSabotage>,
}

/// What the target only pretends to do, so that the check can be seen to fail. Only the first rung is gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FenceSabotage {
    /// The host list is recorded and not enforced.
    NoAcl,
    /// Export off is recorded, sessions stay.
    NoCut,
    /// Export off ends the sessions and waits for nothing.
    NoDrain,
}

impl FenceSabotage {
    fn pretend(self) -> Pretend {
        match self {
            Self::NoAcl => Pretend::Acl,
            Self::NoCut => Pretend::Cut,
            Self::NoDrain => Pretend::Drain,
        }
    }
}

/// `{"ok":bool,"rungs":[…],"readmitted":bool}`
#[derive(Debug, Clone, Serialize)]
pub struct FenceOutcome {
    /// Whether every rung's checks held.
    pub ok: bool,
    /// The rungs in their order, up to the first that failed.
    pub rungs: Vec<RungOutcome>,
    /// Whether the fenced node was let in again each time, once it held nothing.
    pub readmitted: bool,
}

/// What came of a rung. What was not measured, or needs a survivor where there is none, is null.
#[derive(Debug, Clone, Serialize)]
pub struct RungOutcome {
    /// `acl` or `export-off`.
    pub name: &'static str,
    /// From the first ControllerUnpublishVolume to the one that succeeded, milliseconds.
    pub proof_ms: Option<u64>,
    /// The survivor's longest time between two acknowledged writes, milliseconds.
    pub survivor_max_stall_ms: Option<u64>,
    /// The same before anything was cut.
    pub survivor_rest_ms: Option<u64>,
    /// Writes of the fenced node that landed after the proof.
    pub late_writes: Option<u64>,
    /// Writes of the survivor that failed.
    pub survivor_errors: Option<u64>,
    /// The proof in words.
    pub evidence: Option<String>,
}

impl RungOutcome {
    fn holds(&self) -> bool {
        self.late_writes == Some(0) && self.survivor_errors.unwrap_or(0) == 0
    }
}

/// Boots one RDS and two nodes and fences node-a on each rung.
///
/// # Errors
/// Only if the run's own folder or runtime fails: what goes wrong in the demo is in the outcome.
pub async fn run(run: &Namespace, options: &FenceOptions) -> anyhow::Result<FenceOutcome> {
    let mut say = Say::new();
    say.plain(&format!("Cleat demo: fencing a writing node, on Linux {}", options.kernel));
    say.plain("");
    say.line("booting one RDS, whose store can hold writes, and two nodes");
    let mut outcome = FenceOutcome { ok: false, rungs: Vec::new(), readmitted: false };
    let world = match boot(run, &options.kernel).await {
        Ok(world) => world,
        Err(error) => {
            say.failure(&format!("{error:#}"));
            return Ok(outcome);
        }
    };
    let rungs: &[Rung] = match options.sabotage {
        None => &[Rung::Acl, Rung::ExportOff],
        Some(_) => &[Rung::Acl],
    };
    outcome.readmitted = true;
    for (number, rung) in rungs.iter().enumerate() {
        say.step(number + 1, rung.title());
        let mut climb = rung::Climb::new(&world, *rung, options.sabotage, &mut say);
        let done = climb.all().await;
        let (came, readmitted) = climb.into_parts();
        outcome.readmitted &= readmitted;
        let held = came.holds() && readmitted;
        outcome.rungs.push(came);
        if let Err(error) = &done {
            say.failure(&format!("rung {}: {error:#}", rung.name()));
        }
        if done.is_err() || !held {
            let logs = world.collect_logs("demo-fence").await;
            say.plain(&format!("logs of every part: {}", logs.display()));
            return Ok(outcome);
        }
    }
    outcome.ok = true;
    say.plain("");
    say.plain(&format!(
        "ok: {} rungs in {:.0} s, nothing of the fenced node landed after its proof",
        outcome.rungs.len(),
        say.elapsed().as_secs_f64()
    ));
    Ok(outcome)
}

async fn boot(run: &Namespace, kernel: &str) -> anyhow::Result<World> {
    let mut options = WorldOptions::on_kernel(kernel).nodes(2);
    // What production waits for, shortened to what an emulated machine needs.
    let controller = [
        ["--drain-bound", "3s"],
        ["--silence-deadline", "5s"],
        ["--heartbeat-interval", "1s"],
        ["--fence-after", "3s"],
        // An Unpublish that takes longer is told so meanwhile, and asked for again.
        ["--request-limit", "5s"],
        ["--retry-interval", "500ms"],
    ];
    for word in controller.into_iter().flatten() {
        options = options.controller_arg(word);
    }
    options = options.agent_arg("--keep-alive").agent_arg("3");
    if let Ok(filter) = std::env::var("CLEAT_LOG") {
        options.log_filter = filter;
    }
    let world = World::boot_machines(run, &options).await?;
    world.rds.start().await?;
    Ok(world)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_the_one_that_others_rely_on() {
        let rung = RungOutcome { late_writes: Some(0), survivor_errors: Some(0), ..Rung::Acl.nothing_yet() };
        let outcome = FenceOutcome { ok: true, rungs: vec![rung], readmitted: true };
        let text = serde_json::to_string(&outcome).expect("json");
        let expected = concat!(
            r#"{"ok":true,"rungs":[{"name":"acl","proof_ms":null,"survivor_max_stall_ms":null,"#,
            r#""survivor_rest_ms":null,"late_writes":0,"survivor_errors":0,"evidence":null}],"readmitted":true}"#
        );
        assert_eq!(text, expected);
    }
}
