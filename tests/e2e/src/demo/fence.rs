//! The fencing demo: a writing node is cut off, taken off its volume on a proof, comes back, and lands nothing.
//!
//! In: [`FenceOptions`] and a run of the rig. Out: lines for people and a [`FenceOutcome`] for machines. What always
//! holds: what landed is read from the target's own content, at the proof and after the node is back; a rung that
//! broke off is in the outcome with what is known of it, and the outcome is then not ok; a rung that the kernel has
//! no part for is named with the reason, never passed over.

mod climb;
mod silence;

use std::time::Duration;

use clap::ValueEnum;
use cleat_rig::Namespace;
use rds_sim::pretend::Pretend;
use serde::Serialize;

use super::say::Say;
use crate::world::{Kernels, Rung, World, WorldOptions};
use climb::Climb;

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct FenceOptions {
    /// Kernel of all machines.
    pub kernel: String,
    /// A step of the fence that the target answers and does not take.
    pub sabotage: Option<FenceSabotage>,
}

/// What the target only pretends to do, so that the check can be seen to fail. Only the rung `acl` is gone through, and
/// nothing but the pretence is other than in the plain run.
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
    /// The rungs that these kernels cannot do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// A rung that is not shown.
#[derive(Debug, Clone, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub name: &'static str,
    /// What is missing.
    pub reason: String,
}

/// What came of a rung. What was not measured, or needs a survivor where there is none, is null.
#[derive(Debug, Clone, Serialize)]
pub struct RungOutcome {
    /// As `minFence` has it: `reservation`, `acl`, `secret` or `export-off`.
    pub name: &'static str,
    /// From the first ControllerUnpublishVolume to the one that succeeded, milliseconds; `FENCE_AFTER` of it is the
    /// wait for the node's own answer.
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
    fn nothing_yet(rung: Rung) -> Self {
        Self {
            name: rung.name(),
            proof_ms: None,
            survivor_max_stall_ms: None,
            survivor_rest_ms: None,
            late_writes: None,
            survivor_errors: None,
            evidence: None,
        }
    }

    fn holds(&self) -> bool {
        self.late_writes == Some(0) && self.survivor_errors.unwrap_or(0) == 0
    }
}

/// How long a node may be silent before it is fenced: policy, and in production 20 s unless set otherwise.
const FENCE_AFTER: Duration = Duration::from_secs(3);

/// Why these kernels cannot do this rung; `None`: they can.
pub(crate) fn left_out(rung: Rung, kernels: Kernels) -> Option<String> {
    let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    let (nodes, target) = (version(kernels.nodes), version(kernels.target));
    (!rung.runs_on(kernels)).then(|| match rung {
        Rung::Reservation => {
            format!("the target's Linux {target} has no NVMe reservations (6.13 and newer have)")
        }
        Rung::Secret if nodes == target => format!("Linux {nodes} was built without in-band authentication"),
        Rung::Secret => format!("Linux {nodes} or {target} was built without in-band authentication"),
        Rung::Acl | Rung::ExportOff => format!("not on Linux {nodes} with a target on {target}"),
    })
}

/// Boots one RDS and two nodes and fences node-a on each rung.
///
/// # Errors
/// Only if the run's own folder or runtime fails: what goes wrong in the demo is in the outcome.
pub async fn run(run: &Namespace, options: &FenceOptions) -> anyhow::Result<FenceOutcome> {
    let mut say = Say::new();
    say.plain(&format!("Cleat demo: fencing a writing node, on Linux {}", options.kernel));
    say.plain("");
    let mut outcome = FenceOutcome { ok: false, rungs: Vec::new(), readmitted: false, left_out: Vec::new() };
    let world_options = world_options(&options.kernel);
    let kernels = Kernels::of(&world_options)?;
    say.line("booting one RDS, whose store can hold writes, and two nodes");
    let world = match boot(run, &world_options).await {
        Ok(world) => world,
        Err(error) => {
            say.failure(&format!("{error:#}"));
            return Ok(outcome);
        }
    };
    let wanted: &[Rung] = if options.sabotage.is_none() { &Rung::ALL } else { &[Rung::Acl] };
    outcome.readmitted = true;
    for (number, rung) in wanted.iter().enumerate() {
        say.step(number + 1, climb::title(*rung));
        if let Some(reason) = left_out(*rung, kernels) {
            say.line(&format!("left out: {reason}"));
            outcome.left_out.push(LeftOut { name: rung.name(), reason });
        } else if !fenced(&world, *rung, kernels, options.sabotage, &mut outcome, &mut say).await {
            return Ok(outcome);
        }
    }
    outcome.ok = true;
    tell(&outcome, &mut say);
    Ok(outcome)
}

/// Goes through one rung; whether all its checks held.
async fn fenced(
    world: &World,
    rung: Rung,
    kernels: Kernels,
    sabotage: Option<FenceSabotage>,
    outcome: &mut FenceOutcome,
    say: &mut Say,
) -> bool {
    let mut climb = Climb::new(world, rung, sabotage, say);
    let done = climb.all(kernels).await;
    let (came, readmitted) = climb.into_parts();
    outcome.readmitted &= readmitted;
    let held = came.holds() && readmitted;
    outcome.rungs.push(came);
    if let Err(error) = &done {
        say.failure(&format!("rung {}: {error:#}", rung.name()));
    }
    if done.is_ok() && held {
        return true;
    }
    let logs = world.collect_logs("demo-fence").await;
    say.plain(&format!("logs of every part: {}", logs.display()));
    false
}

fn tell(outcome: &FenceOutcome, say: &mut Say) {
    say.plain("");
    say.plain(&format!(
        "{:<12}{:>10}{:>22}{:>10}{:>13}",
        "milliseconds", "proof", "survivor's stall", "at rest", "late writes"
    ));
    let cell = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    for rung in &outcome.rungs {
        say.plain(&format!(
            "{:<12}{:>10}{:>22}{:>10}{:>13}",
            rung.name,
            cell(rung.proof_ms),
            cell(rung.survivor_max_stall_ms),
            cell(rung.survivor_rest_ms),
            cell(rung.late_writes)
        ));
    }
    say.plain(&format!(
        "{} ms of each proof are --fence-after, the wait for the node's own answer: policy, not cost",
        FENCE_AFTER.as_millis()
    ));
    for LeftOut { name, reason } in &outcome.left_out {
        say.plain(&format!("{name} is left out: {reason}"));
    }
    say.plain("");
    say.plain(&format!(
        "ok: {} rungs in {:.0} s, nothing of the fenced node landed after its proof",
        outcome.rungs.len(),
        say.elapsed().as_secs_f64()
    ));
}

fn world_options(kernel: &str) -> WorldOptions {
    // What production waits for, shortened to what an emulated machine needs.
    let fence_after = format!("{}ms", FENCE_AFTER.as_millis());
    let controller = [
        ["--drain-bound", "3s"],
        ["--silence-deadline", "5s"],
        ["--heartbeat-interval", "1s"],
        ["--fence-after", fence_after.as_str()],
        // An Unpublish that takes longer is told so meanwhile, and asked for again.
        ["--request-limit", "5s"],
        ["--retry-interval", "500ms"],
    ];
    let options = WorldOptions::on_kernel(kernel).nodes(2);
    let mut options = options.controller_options(controller).agent_options([["--keep-alive", "3s"]]);
    if let Ok(filter) = std::env::var("CLEAT_LOG") {
        options.log_filter = filter;
    }
    options
}

async fn boot(run: &Namespace, options: &WorldOptions) -> anyhow::Result<World> {
    let world = World::boot_machines(run, options).await?;
    world.rds.start().await?;
    Ok(world)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_the_one_that_others_rely_on() {
        let nothing = RungOutcome::nothing_yet(Rung::Acl);
        let rung = RungOutcome { late_writes: Some(0), survivor_errors: Some(0), ..nothing };
        let outcome = FenceOutcome { ok: true, rungs: vec![rung], readmitted: true, left_out: Vec::new() };
        let text = serde_json::to_string(&outcome).expect("json");
        let expected = concat!(
            r#"{"ok":true,"rungs":[{"name":"acl","proof_ms":null,"survivor_max_stall_ms":null,"#,
            r#""survivor_rest_ms":null,"late_writes":0,"survivor_errors":0,"evidence":null}],"readmitted":true}"#
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn what_a_kernel_cannot_do_is_said_with_the_reason() {
        let kernels = |version| Kernels { nodes: version, target: version };
        let reasons = Rung::ALL.map(|rung| left_out(rung, kernels((6, 1))));
        assert!(reasons[0].as_ref().is_some_and(|reason| reason.contains("6.1 has no NVMe reservations")));
        assert!(reasons[2].as_ref().is_some_and(|reason| reason.contains("in-band authentication")));
        assert_eq!((&reasons[1], &reasons[3]), (&None, &None));
        assert!(Rung::ALL.iter().all(|rung| left_out(*rung, kernels((6, 18))).is_none()));
    }
}
