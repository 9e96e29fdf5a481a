//! The world of the machine tests: an RDS, a controller and three nodes, and what has to be as it was after each test.
//!
//! What always holds: a test never sees what another has left, because that has failed the other and ended the world.

use std::time::Duration;

use cleat_e2e::suite::Suite;
use cleat_e2e::world::{Look, Node, World, WorldOptions, wait_for};
use cleat_rig::{Machine, Namespace};

use crate::fixture::all_rounds;

const TEST_LIMIT: Duration = Duration::from_secs(180);
/// Where everything is repeated in full.
const FULL_TEST_LIMIT: Duration = Duration::from_secs(5400);
/// After a test agents may still be dialling a controller that was started again.
const TIDY_LIMIT: Duration = Duration::from_secs(20);

/// The machine tests.
pub(crate) struct Machines;

impl Suite for Machines {
    type World = World;
    const NAME: &'static str = "machines";

    fn limit(&self) -> Duration {
        if all_rounds() { FULL_TEST_LIMIT } else { TEST_LIMIT }
    }

    async fn boot(&self, run: &Namespace) -> anyhow::Result<World> {
        World::boot(run, options()?).await
    }

    async fn tidy(&self, world: &World) -> anyhow::Result<()> {
        nothing_is_left(world).await
    }

    fn trouble(&self, world: &World) -> Vec<String> {
        kernel_trouble(world)
    }

    async fn clues(&self, world: &World, name: &str) -> String {
        world.logs_are_in(name).await
    }

    async fn end(&self, world: Option<&World>) {
        if let Some(world) = world.filter(|_| std::env::var_os("CLEAT_KEEP_LOGS").is_some()) {
            world.collect_logs("end").await;
        }
    }
}

/// The times that production waits are shortened to what an emulated machine needs: what is tested is that they are
/// kept to, not that a minute has sixty seconds.
fn options() -> anyhow::Result<WorldOptions> {
    let controller = [
        ["--drain-bound", "3s"],
        ["--rds-timeout", "2s"],
        ["--rds-settle", "4s"],
        ["--attach-deadline", "8s"],
        ["--detach-deadline", "8s"],
        ["--silence-deadline", "5s"],
        ["--heartbeat-interval", "1s"],
        ["--request-limit", "25s"],
        ["--retry-interval", "500ms"],
        ["--detach-grace-period", "15s"],
        ["--interrupt-grace", "5s"],
    ];
    let mut options = WorldOptions::from_env()?;
    options.node_programs = vec!["cleatctl".to_owned()];
    // Its programs are twice the size of those of other worlds.
    options.node_memory_mib = 512;
    Ok(options.controller_options(controller).agent_options([["--keep-alive", "3s"]]))
}

/// What the machines' kernels complain of on their consoles: a node that panics takes every VM on it along.
fn kernel_trouble(world: &World) -> Vec<String> {
    const WORDS: [&str; 5] = ["Kernel panic", "BUG: ", "Oops: ", "WARNING: CPU", " blocked for more than "];
    let machines = world.nodes().iter().map(Node::machine).chain([world.rds.machine()]);
    let complaint = |machine: &Machine| {
        let text = std::fs::read(machine.console()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().find(|line| WORDS.iter().any(|word| line.contains(word)))?;
        Some(format!("the kernel of {} says: {}", machine.name(), line.trim()))
    };
    machines.filter_map(complaint).collect()
}

/// That the world is as it was before the test.
async fn nothing_is_left(world: &World) -> anyhow::Result<()> {
    wait_for("the world to be as it was", TIDY_LIMIT, async || {
        let mut left = Vec::new();
        let rds = world.rds.state().await?;
        left.extend(rds.disks.iter().map(|disk| format!("volume {} on the RDS", disk.slot)));
        left.extend(rds.faults.iter().map(|fault| format!("fault {fault:?} at the RDS")));
        left.extend(rds.holds.iter().map(|hold| format!("hold {hold:?} at the RDS")));
        for volume in world.controller.volumes().await? {
            left.push(format!("volume {} in the controller: {volume:?}", volume.volume_id));
        }
        for node in world.controller.nodes().await? {
            if node.session != "connected" || node.standing != "Admitted" {
                left.push(format!("node {} is {} and {}", node.node_id, node.session, node.standing));
            }
        }
        for node in world.nodes() {
            left.extend(left_on(node).await?);
        }
        Ok(Look::holds(left.is_empty(), left.join("; ")))
    })
    .await
    .map_err(Into::into)
}

/// What a node's kernel still has: controllers of any kind, and mounts below the kubelet's folder.
async fn left_on(node: &Node) -> anyhow::Result<Vec<String>> {
    let mut left: Vec<String> = Vec::new();
    for controller in node.nvme_controllers().await? {
        left.push(format!("{}: controller {controller:?}", node.name()));
    }
    let mounts = node.sh("grep kubernetes.io /proc/mounts || true").await?;
    left.extend(mounts.lines().map(|mount| format!("{}: mount {mount}", node.name())));
    Ok(left)
}
