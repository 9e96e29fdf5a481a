//! Runs tests against one world: an RDS whose stores can hold writes, and two nodes.
//!
//! In: tests, each with what it needs of the target's kernel. Out: their outcomes, with the folder of the logs where
//! one failed. What always holds: each test begins with an RDS that has no disk and nodes that have no controller;
//! a world that cannot be brought there is thrown away.

use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cleat_e2e::world::{Kernels, Look, Rung, World, WorldOptions, wait_for};
use cleat_rig::Namespace;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

use crate::figures;

/// No test takes nearly as long; one that does hangs.
const TEST_LIMIT: Duration = Duration::from_secs(240);
/// What is held has to land, and a host that was cut off has to notice, before all is as it was.
const TIDY_LIMIT: Duration = Duration::from_secs(90);

type Outcome<'w> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'w>>;

/// What a test needs of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Any will do.
    Nothing,
    /// Reservations, with a preempt-and-abort that answers at once.
    HastyAbort,
    /// Reservations, with a preempt-and-abort that waits for what it aborts.
    WaitingAbort,
    /// What this rung of the ladder needs.
    Rung(Rung),
}

impl Need {
    fn met_by(self, kernels: Kernels) -> bool {
        match self {
            Self::Nothing => true,
            Self::HastyAbort => kernels.abort_waits() == Some(false),
            Self::WaitingAbort => kernels.abort_waits() == Some(true),
            Self::Rung(rung) => rung.runs_on(kernels),
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::HastyAbort => "a target whose preempt-and-abort does not wait (6.13 and newer, before 7.2)",
            Self::WaitingAbort => "a target whose preempt-and-abort waits (7.2 and newer)",
            Self::Rung(Rung::Reservation) => "a target with reservations (6.13 and newer)",
            Self::Rung(Rung::Secret) => "in-band authentication at both ends (6.12 and newer)",
            Self::Rung(Rung::Acl | Rung::ExportOff) => "nothing",
        }
    }
}

/// A test: its name as `module::behaviour`, what it needs, and what it does.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) need: Need,
    pub(crate) body: for<'w> fn(&'w World) -> Outcome<'w>,
}

/// Makes a list of [`Test`]s from paths of `async fn(&World, …) -> anyhow::Result<()>`, each with what it is called
/// with and with its need. The name is the path, and what stands behind the arguments where several have one path.
macro_rules! tests {
    ($($module:ident :: $name:ident $(($($argument:expr),*) $suffix:literal)?, $need:expr;)*) => {
        vec![$($crate::suite::Test {
            name: concat!(stringify!($module), "::", stringify!($name) $(, $suffix)?),
            need: $need,
            body: |world| Box::pin($crate::$module::$name(world $($(, $argument)*)?)),
        }),*]
    };
}
pub(crate) use tests;

impl Test {
    /// For a listing only.
    pub(crate) fn listed(self) -> Trial {
        Trial::test(self.name, || Err("only listed".into()))
    }
}

/// The run that all tests are part of.
pub(crate) struct Suite {
    run: Namespace,
    runtime: Runtime,
    options: WorldOptions,
    kernels: Kernels,
    world: Mutex<Option<World>>,
}

impl Suite {
    /// Enters the rig's namespaces; call it while there is only one thread.
    pub(crate) fn enter() -> anyhow::Result<Arc<Self>> {
        let run = Namespace::enter("late-writes")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let options = options()?;
        let kernels = Kernels::of(&options)?;
        Ok(Arc::new(Self { run, runtime, options, kernels, world: Mutex::default() }))
    }

    /// Runs all tests that the arguments choose.
    pub(crate) fn run(self: Arc<Self>, arguments: &Arguments, tests: Vec<Test>) -> ExitCode {
        let mut left_out = Vec::new();
        let trial = |test: Test| {
            let ignored = !test.need.met_by(self.kernels);
            if ignored {
                left_out.push(format!("{}: needs {}", test.name, test.need.in_words()));
            }
            let suite = Arc::clone(&self);
            Trial::test(test.name, move || suite.run_one(&test)).with_ignored_flag(ignored)
        };
        let trials = tests.into_iter().map(trial).collect();
        let conclusion = libtest_mimic::run(arguments, trials);
        let (major, minor) = self.kernels.target;
        let kernels = format!("hosts on {}, target on {major}.{minor}", self.options.kernel);
        figures::tell(&kernels);
        figures::tell_left_out(&kernels, &left_out);
        self.world.lock().unwrap_or_else(PoisonError::into_inner).take();
        conclusion.exit_code()
    }

    fn run_one(&self, test: &Test) -> Result<(), Failed> {
        // Taken out, so that a panic ends the world with the test.
        let world = self.world.lock().unwrap_or_else(PoisonError::into_inner).take();
        let world = match world {
            Some(world) => world,
            None => self.runtime.block_on(boot(&self.run, &self.options)).map_err(failed)?,
        };
        let begun = Instant::now();
        match self.runtime.block_on(attempt(&world, test)) {
            Ok(()) => {
                if std::env::var_os("CLEAT_TIMES").is_some() {
                    let _ =
                        writeln!(std::io::stderr(), "{:6.1} s  {}", begun.elapsed().as_secs_f32(), test.name);
                }
                *self.world.lock().unwrap_or_else(PoisonError::into_inner) = Some(world);
                Ok(())
            }
            Err(error) => {
                let logs = self.runtime.block_on(world.collect_logs(test.name));
                Err(failed(error.context(format!("logs are in {}", logs.display()))))
            }
        }
    }
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

fn options() -> anyhow::Result<WorldOptions> {
    let mut options = WorldOptions::from_env()?.nodes(2);
    // Nothing cuts it short where the target has taken the paths away, so each quarantine would last 25 s longer. How the
    // default serves a device that comes back is shown by the machine tests (`lost_device`).
    options = options.agent_arg("--lost-device-stay").agent_arg("5s");
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
    for word in controller.into_iter().flatten() {
        options = options.controller_arg(word);
    }
    for word in ["--keep-alive", "3s"] {
        options = options.agent_arg(word);
    }
    match std::env::var("CLEAT_TARGET_KERNEL") {
        Ok(kernel) if !kernel.is_empty() => options.rds_kernel = Some(kernel),
        _ => {}
    }
    Ok(options)
}

async fn boot(run: &Namespace, options: &WorldOptions) -> anyhow::Result<World> {
    let world = World::boot_machines(run, options).await.context("the machines do not come up")?;
    world.rds.start().await?;
    Ok(world)
}

async fn attempt(world: &World, test: &Test) -> anyhow::Result<()> {
    tokio::time::timeout(TEST_LIMIT, (test.body)(world))
        .await
        .with_context(|| format!("not over after {TEST_LIMIT:?}"))??;
    tidy(world).await.context("the test passed, but the world is not as it was")
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
