//! Runs tests that share one booted world, one after the other.
//!
//! In: a [`Suite`], and its tests as [`tests!`](crate::tests) lists them. Out: their outcomes, with what helps where one
//! failed. What always holds: a test that fails, panics, hangs or leaves something behind ends the world, and the next one
//! gets a fresh one; what is left out is named, because a test that is left out is not one that has passed.
//!
//! Machines are booted only with `CLEAT_MACHINES=1` (which `hack/test` sets); it says so when they are not. Names given as
//! arguments filter as with `cargo test`. `CLEAT_TIMES=1` tells how long each test took.

use std::io::Write;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use cleat_rig::Namespace;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;

/// What becomes of a test.
pub type Outcome<'w> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'w>>;

/// A test: its name as `module::behaviour`, and what it does.
#[derive(Debug)]
pub struct Test<World> {
    name: &'static str,
    body: for<'w> fn(&'w World) -> Outcome<'w>,
    lacks: Option<&'static str>,
}

impl<World> Test<World> {
    /// A test that runs on any kernels.
    pub fn new(name: &'static str, body: for<'w> fn(&'w World) -> Outcome<'w>) -> Self {
        Self { name, body, lacks: None }
    }

    /// Left out where the kernels lack something.
    #[must_use]
    pub fn unless(self, lacks: Option<&'static str>) -> Self {
        Self { lacks, ..self }
    }
}

/// Makes a list of [`Test`]s from paths of `async fn(&World, …) -> anyhow::Result<()>`, each with what it is called with
/// and with what the kernels lack for it, where there is something. The name is the path, and what stands behind the
/// arguments where several have one path.
#[macro_export]
macro_rules! tests {
    ($($module:ident :: $name:ident $(($($argument:expr),*) $suffix:literal)? $(, $lacks:expr)?;)*) => {
        vec![$($crate::suite::Test::new(
            concat!(stringify!($module), "::", stringify!($name) $(, $suffix)?),
            |world| Box::pin($module::$name(world $($(, $argument)*)?)),
        )$(.unless($lacks))?),*]
    };
}

/// What tests share, and how it is kept as it was.
pub trait Suite: Send + Sync + 'static {
    /// What they share.
    type World: Send + 'static;
    /// Its name in what is said, and of the run.
    const NAME: &'static str;

    /// No test takes nearly as long; one that does hangs.
    fn limit(&self) -> Duration;

    /// Boots a world.
    fn boot(&self, run: &Namespace) -> impl Future<Output = anyhow::Result<Self::World>>;

    /// After a test that passed: that the world is as it was before.
    fn tidy(&self, world: &Self::World) -> impl Future<Output = anyhow::Result<()>>;

    /// After each test: what has gone wrong with the world, whatever the test says.
    fn trouble(&self, world: &Self::World) -> Vec<String> {
        let _ = world;
        Vec::new()
    }

    /// What helps whoever looks into a test that failed, such as where the logs are.
    fn clues(&self, world: &Self::World, name: &str) -> impl Future<Output = String>;

    /// When all is over.
    fn end(&self, world: Option<&Self::World>) -> impl Future<Output = ()> {
        let _ = world;
        async {}
    }
}

/// Runs all tests that the arguments choose. Call it while there is only one thread.
pub fn run<S: Suite>(suite: S, mut tests: Vec<Test<S::World>>) -> ExitCode {
    let (mut arguments, filters) = arguments(std::env::args());
    // A test whose output nobody reads still has its exit code.
    let say = |line: &str| drop(writeln!(std::io::stderr(), "{}: {line}", S::NAME));
    if std::env::var_os("CLEAT_MACHINES").is_none_or(|value| value != "1") && !arguments.list {
        say("NOT RUN: they boot virtual machines; run them with CLEAT_MACHINES=1 (hack/test does)");
        return ExitCode::SUCCESS;
    }
    if !filters.is_empty() {
        let chosen = |name: &str, filter: &String| {
            if arguments.exact { name == filter } else { name.contains(filter) }
        };
        tests.retain(|test| filters.iter().any(|filter| chosen(test.name, filter)));
    }
    // One after the other: they share the world, and two emulated worlds are slower than one after the other.
    arguments.test_threads = Some(1);
    if arguments.list {
        let listed = tests.iter().map(|test| Trial::test(test.name, || Err("only listed".into())));
        return libtest_mimic::run(&arguments, listed.collect()).exit_code();
    }
    // Before any thread is started; in a namespace of its own this returns, outside of it never.
    let stage = match Stage::enter(suite) {
        Ok(stage) => Arc::new(stage),
        Err(error) => {
            say(&format!("FAILED: {error:#}"));
            return ExitCode::FAILURE;
        }
    };
    let mut left_out = Vec::new();
    let trial = |test: Test<S::World>| {
        left_out.extend(test.lacks.map(|lacks| format!("{}: needs {lacks}", test.name)));
        let stage = Arc::clone(&stage);
        let ignored = test.lacks.is_some();
        Trial::test(test.name, move || stage.run_one(&test)).with_ignored_flag(ignored)
    };
    let trials = tests.into_iter().map(trial).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let world = stage.world().take();
    stage.runtime.block_on(stage.suite.end(world.as_ref()));
    if !left_out.is_empty() {
        say(&format!("LEFT OUT:\n  {}", left_out.join("\n  ")));
    }
    conclusion.exit_code()
}

/// The run that all tests are part of.
struct Stage<S: Suite> {
    suite: S,
    world: Mutex<Option<S::World>>,
    runtime: Runtime,
    run: Namespace,
}

impl<S: Suite> Stage<S> {
    /// Enters the rig's namespaces.
    fn enter(suite: S) -> anyhow::Result<Self> {
        let run = Namespace::enter(S::NAME)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Self { suite, world: Mutex::default(), runtime, run })
    }

    fn world(&self) -> MutexGuard<'_, Option<S::World>> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_one(&self, test: &Test<S::World>) -> Result<(), Failed> {
        // Taken out, so that a panic ends the world with the test.
        let world = self.world().take();
        let world = match world {
            Some(world) => world,
            None => {
                let booted = self.runtime.block_on(self.suite.boot(&self.run));
                booted.context("the world does not come up").map_err(failed)?
            }
        };
        let begun = Instant::now();
        let outcome = self.runtime.block_on(self.attempt(&world, test));
        if std::env::var_os("CLEAT_TIMES").is_some() {
            let _ = writeln!(std::io::stderr(), "{:6.1} s  {}", begun.elapsed().as_secs_f32(), test.name);
        }
        let outcome = match self.suite.trouble(&world).join("; ") {
            none if none.is_empty() => outcome,
            trouble => Err(outcome.err().unwrap_or_else(|| anyhow!("the test passed")).context(trouble)),
        };
        match outcome {
            Ok(()) => {
                *self.world() = Some(world);
                Ok(())
            }
            Err(error) => {
                let clues = self.runtime.block_on(self.suite.clues(&world, test.name));
                Err(failed(error.context(clues)))
            }
        }
    }

    async fn attempt(&self, world: &S::World, test: &Test<S::World>) -> anyhow::Result<()> {
        let limit = self.suite.limit();
        tokio::time::timeout(limit, (test.body)(world))
            .await
            .with_context(|| format!("not over after {limit:?}"))??;
        self.suite.tidy(world).await.context("the test passed, but the world is not as it was")
    }
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

/// The options, and the filters: cargo's own harness takes any number of them, libtest-mimic one.
fn arguments(words: impl Iterator<Item = String>) -> (Arguments, Vec<String>) {
    let (mut options, mut filters) = (Vec::new(), Vec::new());
    let mut is_value = true;
    for word in words {
        if is_value || word.starts_with('-') {
            is_value = ["--skip", "--test-threads", "--logfile", "--color", "--format", "-Z"]
                .contains(&word.as_str());
            options.push(word);
        } else {
            filters.push(word);
        }
    }
    (Arguments::from_iter(options), filters)
}
