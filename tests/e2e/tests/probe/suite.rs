//! Runs tests against one world: an RDS and one node, without controller and agent.
//!
//! In: tests. Out: their outcomes, with the folder of the logs where one failed. What always holds: a world in which a
//! test failed is thrown away.

use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use cleat_e2e::world::{World, WorldOptions};
use cleat_rig::Namespace;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

/// No test takes nearly as long; one that does hangs.
const TEST_LIMIT: Duration = Duration::from_secs(420);

type Outcome<'w> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'w>>;

/// The kernels of node and target, as numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernels {
    pub(crate) node: (u32, u32),
    pub(crate) target: (u32, u32),
}

/// A test: its name as `module::behaviour`, and what it does.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) body: for<'w> fn(&'w World, Kernels) -> Outcome<'w>,
}

/// Makes a list of [`Test`]s from paths of `async fn(&World, Kernels) -> anyhow::Result<()>`.
macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        vec![$($crate::suite::Test {
            name: concat!(stringify!($module), "::", stringify!($name)),
            body: |world, kernels| Box::pin($crate::$module::$name(world, kernels)),
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
        let run = Namespace::enter("probe")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let mut options = WorldOptions::from_env()?.nodes(1);
        options.node_programs = vec!["cleatctl".to_owned(), "cleat-rds-probe".to_owned()];
        match std::env::var("CLEAT_TARGET_KERNEL") {
            Ok(kernel) if !kernel.is_empty() => options.rds_kernel = Some(kernel),
            _ => {}
        }
        let node = numbers(&options.kernel)?;
        let target = numbers(options.rds_kernel.as_ref().unwrap_or(&options.kernel))?;
        let kernels = Kernels { node, target };
        Ok(Arc::new(Self { run, runtime, options, kernels, world: Mutex::default() }))
    }

    /// Runs all tests that the arguments choose.
    pub(crate) fn run(self: Arc<Self>, arguments: &Arguments, tests: Vec<Test>) -> ExitCode {
        let trial = |test: Test| {
            let suite = Arc::clone(&self);
            Trial::test(test.name, move || suite.run_one(&test))
        };
        let conclusion = libtest_mimic::run(arguments, tests.into_iter().map(trial).collect());
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
        let outcome = self.runtime.block_on(async {
            let body = tokio::time::timeout(TEST_LIMIT, (test.body)(&world, self.kernels));
            body.await.with_context(|| format!("not over after {TEST_LIMIT:?}"))?
        });
        if std::env::var_os("CLEAT_TIMES").is_some() {
            let _ = writeln!(std::io::stderr(), "{:6.1} s  {}", begun.elapsed().as_secs_f32(), test.name);
        }
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
}

fn numbers(version: &str) -> anyhow::Result<(u32, u32)> {
    let numbers = version.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.with_context(|| format!("kernel {version:?}"))
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

async fn boot(run: &Namespace, options: &WorldOptions) -> anyhow::Result<World> {
    let world = World::boot_machines(run, options).await.context("the machines do not come up")?;
    world.rds.start().await?;
    Ok(world)
}
