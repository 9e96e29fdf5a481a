//! Runs tests against one world: boots it before the first, checks after each that nothing is left, and throws it
//! away after a failure.
//!
//! In: tests, which get a world that is as new. Out: their outcomes, with the folder of the logs where one failed.
//! What always holds: a test never sees what another has left, because that has failed the other and ended the world.

use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use cleat_e2e::world::{Look, Node, World, WorldOptions, wait_for};
use cleat_rig::{Machine, Namespace};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

use crate::fixture::all_rounds;

/// No test takes nearly as long; one that does hangs.
const TEST_LIMIT: Duration = Duration::from_secs(180);
/// Where everything is repeated in full.
const FULL_TEST_LIMIT: Duration = Duration::from_secs(5400);
/// After a test agents may still be dialling a controller that was started again.
const TIDY_LIMIT: Duration = Duration::from_secs(20);

/// What becomes of a test.
type Outcome<'w> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'w>>;

/// A test: its name as `module::behaviour`, and what it does.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) body: for<'w> fn(&'w World) -> Outcome<'w>,
}

/// Makes a list of [`Test`]s from paths of `async fn(&World) -> anyhow::Result<()>`.
macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        vec![$($crate::suite::Test {
            name: concat!(stringify!($module), "::", stringify!($name)),
            body: |world| Box::pin($crate::$module::$name(world)),
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
    world: Mutex<Option<World>>,
    times: Mutex<Vec<(Duration, String)>>,
}

impl Suite {
    /// Enters the rig's namespaces; call it while there is only one thread.
    pub(crate) fn enter() -> anyhow::Result<Arc<Self>> {
        let run = Namespace::enter("machines")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Arc::new(Self { run, runtime, world: Mutex::default(), times: Mutex::default() }))
    }

    /// Runs all tests that the arguments choose.
    pub(crate) fn run(self: Arc<Self>, arguments: &Arguments, tests: Vec<Test>) -> ExitCode {
        let begun = Instant::now();
        let trial = |test: Test| {
            let suite = Arc::clone(&self);
            Trial::test(test.name, move || suite.run_one(&test))
        };
        let conclusion = libtest_mimic::run(arguments, tests.into_iter().map(trial).collect());
        let world = self.world.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(world) = world.filter(|_| std::env::var_os("CLEAT_KEEP_LOGS").is_some()) {
            self.runtime.block_on(world.collect_logs("end"));
        }
        self.tell_times(begun.elapsed());
        conclusion.exit_code()
    }

    fn run_one(&self, test: &Test) -> Result<(), Failed> {
        // Taken out, so that a panic ends the world with the test.
        let world = self.world.lock().unwrap_or_else(PoisonError::into_inner).take();
        let world = match world {
            Some(world) => world,
            None => {
                let begun = Instant::now();
                let world = self.runtime.block_on(boot(&self.run)).map_err(failed)?;
                self.note(begun.elapsed(), "boot");
                world
            }
        };
        let begun = Instant::now();
        let outcome = self.runtime.block_on(attempt(&world, test));
        self.note(begun.elapsed(), test.name);
        let outcome = match kernel_trouble(&world).join("; ") {
            none if none.is_empty() => outcome,
            trouble => Err(outcome.err().unwrap_or_else(|| anyhow!("the test passed")).context(trouble)),
        };
        match outcome {
            Ok(()) => {
                *self.world.lock().unwrap_or_else(PoisonError::into_inner) = Some(world);
                Ok(())
            }
            Err(error) => {
                let logs = self.runtime.block_on(world.collect_logs(test.name));
                Err(failed(error.context(format!("logs are in {}", logs.display()))))
            }
        }
    }

    fn note(&self, took: Duration, what: &str) {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).push((took, what.to_owned()));
    }

    /// Where the time went: asked for, since otherwise nobody wants to read it.
    fn tell_times(&self, all: Duration) {
        if std::env::var_os("CLEAT_TIMES").is_none() {
            return;
        }
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner).clone();
        times.sort_unstable_by(|a, b| b.cmp(a));
        let mut text = format!("machines: {:.1} s in all\n", all.as_secs_f32());
        for (took, what) in times {
            text.push_str(&format!("{:8.1} s  {what}\n", took.as_secs_f32()));
        }
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
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
    ];
    let agent = [["--keep-alive", "3s"]];
    let mut options = WorldOptions::from_env()?;
    for word in controller.into_iter().flatten() {
        options = options.controller_arg(word);
    }
    for word in agent.into_iter().flatten() {
        options = options.agent_arg(word);
    }
    Ok(options)
}

async fn boot(run: &Namespace) -> anyhow::Result<World> {
    World::boot(run, options()?).await.context("the world does not come up")
}

async fn attempt(world: &World, test: &Test) -> anyhow::Result<()> {
    let limit = if all_rounds() { FULL_TEST_LIMIT } else { TEST_LIMIT };
    tokio::time::timeout(limit, (test.body)(world))
        .await
        .with_context(|| format!("not over after {limit:?}"))??;
    nothing_is_left(world).await.context("the test passed, but it left something behind")
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
