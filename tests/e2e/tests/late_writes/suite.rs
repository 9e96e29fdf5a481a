//! The world of late writes: an RDS whose stores can hold writes, and two nodes.
//!
//! What always holds: each test begins with an RDS that has no disk and nodes that have no controller; a world that cannot
//! be brought there is thrown away.

use std::time::Duration;

use anyhow::ensure;
use cleat_e2e::suite::Suite;
use cleat_e2e::world::{Kernels, Look, Rung, World, WorldOptions, wait_for};
use cleat_rig::Namespace;

use crate::figures;

/// What is held has to land, and a host that was cut off has to notice, before all is as it was.
const TIDY_LIMIT: Duration = Duration::from_secs(90);

/// What a test needs of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Reservations, with a preempt-and-abort that answers at once.
    HastyAbort,
    /// Reservations, with a preempt-and-abort that waits for what it aborts.
    WaitingAbort,
    /// Reservations.
    Reservations,
    /// In-band authentication.
    Secrets,
}

impl Need {
    /// What these kernels lack of it, in words.
    pub(crate) fn lacking(self, kernels: Kernels) -> Option<&'static str> {
        let (met, words) = match self {
            Self::HastyAbort => (
                kernels.abort_waits() == Some(false),
                "a target whose preempt-and-abort does not wait (6.13 and newer, before 7.2)",
            ),
            Self::WaitingAbort => (
                kernels.abort_waits() == Some(true),
                "a target whose preempt-and-abort waits (7.2 and newer)",
            ),
            Self::Reservations => {
                (Rung::Reservation.runs_on(kernels), "a target with reservations (6.13 and newer)")
            }
            Self::Secrets => {
                (Rung::Secret.runs_on(kernels), "in-band authentication at both ends (6.12 and newer)")
            }
        };
        (!met).then_some(words)
    }
}

/// The tests of late writes.
pub(crate) struct LateWrites {
    options: WorldOptions,
    pub(crate) kernels: Kernels,
}

impl LateWrites {
    pub(crate) fn from_env() -> anyhow::Result<Self> {
        let options = options()?;
        Ok(Self { kernels: Kernels::of(&options)?, options })
    }
}

impl Suite for LateWrites {
    type World = World;
    const NAME: &'static str = "late-writes";

    fn limit(&self) -> Duration {
        Duration::from_secs(240)
    }

    async fn boot(&self, run: &Namespace) -> anyhow::Result<World> {
        let world = World::boot_machines(run, &self.options).await?;
        world.rds.start().await?;
        Ok(world)
    }

    async fn tidy(&self, world: &World) -> anyhow::Result<()> {
        tidy(world).await
    }

    async fn clues(&self, world: &World, name: &str) -> String {
        world.logs_are_in(name).await
    }

    async fn end(&self, _: Option<&World>) {
        let (major, minor) = self.kernels.target;
        figures::tell(&format!("hosts on {}, target on {major}.{minor}", self.options.kernel));
    }
}

fn options() -> anyhow::Result<WorldOptions> {
    // What production waits for, shortened to what an emulated machine needs.
    let controller = [
        // Longer than the target's store holds a write: else it bounds nothing.
        ["--drain-bound", "6s"],
        ["--silence-deadline", "5s"],
        ["--heartbeat-interval", "1s"],
        ["--fence-after", "2s"],
        // A request that holds writes takes 4 s; nothing goes on for longer.
        ["--rds-settle", "5s"],
        ["--request-limit", "25s"],
        ["--retry-interval", "500ms"],
        // What is exported at one port with others leaves no survivor its device.
        ["--rds-volume-ports", "4421-4499"],
    ];
    let agent = [
        // Nothing cuts it short where the target has taken the paths away, so each quarantine would last 25 s longer. How
        // the default serves a device that comes back is shown by the machine tests (`lost_device`).
        ["--lost-device-stay", "5s"],
        ["--keep-alive", "3s"],
    ];
    Ok(WorldOptions::from_env()?.nodes(2).controller_options(controller).agent_options(agent))
}

/// Lets everything go that a test has held or cut, takes its volumes away, and makes sure of it.
async fn tidy(world: &World) -> anyhow::Result<()> {
    world.rds.pretend_nothing().await?;
    for node in world.nodes() {
        node.machine().restore_all()?;
        node.sh("for c in /sys/class/nvme/nvme*/delete_controller; do [ -e $c ] && (echo 1 >$c) >/dev/null 2>&1 & done; true")
            .await?;
    }
    // First the nodes: a deletion whose target goes meanwhile waits for 60 s.
    wait_for("the nodes to have no controller", TIDY_LIMIT, async || {
        for node in world.nodes() {
            let left = node.nvme_controllers().await?;
            if !left.is_empty() {
                return Ok(Look::Not(format!("{}: {left:?}", node.name())));
            }
        }
        Ok(Look::Yes(()))
    })
    .await?;
    for disk in world.rds.state().await?.disks {
        world.rds.remove_disk(&disk.slot).await?;
    }
    ensure!(world.rds.state().await?.disks.is_empty(), "the RDS still has disks");
    Ok(())
}
