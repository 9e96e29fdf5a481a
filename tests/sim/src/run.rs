//! One seed, from begin to end.
//!
//! Comes in: a seed, and what is planted. Goes out: a [`Report`]. Always holds: it ends, whatever the programs do.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::attacher::Attacher;
use crate::faults::{FAULTS_END, Plan};
use crate::programs::{self, CONTROLLER};
use crate::world::rules::ENDS_WITHIN;
use crate::world::{NODES, Planted, Universe, VOLUMES, World};

/// Resolution of the simulation: messages are delivered, and the world goes on, so often.
const TICK: Duration = Duration::from_millis(10);
/// The longest that a simulation may be, in ms. The clients end earlier, or a request of theirs has taken too long.
const LONGEST: u64 = FAULTS_END + 4 * ENDS_WITHIN;

/// What has become of one seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The first invariant that did not hold, or what else went wrong.
    pub violation: Option<String>,
    /// Hash of the whole trace.
    pub trace_hash: String,
    /// Simulated time, in ms.
    pub simulated_ms: u64,
    /// What has happened, and how often.
    pub seen: BTreeMap<String, u64>,
}

/// Runs a seed. Gives the report, and the trace.
#[must_use]
pub fn run(seed: u64, planted: Option<Planted>) -> (Report, Vec<String>) {
    let universe = Universe::new(World::new(seed, planted));
    // A task that panics is a defect of the program that it belongs to, wherever the panic is caught.
    let hook = panic::take_hook();
    panic::set_hook(Box::new({
        let universe = universe.clone();
        move |panic| universe.lock().violated("none may panic", panic)
    }));
    let ended = panic::catch_unwind(AssertUnwindSafe(|| simulate(seed, &universe)));
    panic::set_hook(hook);
    let mut world = universe.lock();
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => world.violated("programs run until they are killed", error),
        Err(_) => world.violated("none may panic", "the simulation itself"),
    }
    let (trace, hash, seen) = world.record();
    let report = Report {
        seed,
        violation: world.violation().map(str::to_owned),
        trace_hash: format!("{hash:016x}"),
        simulated_ms: world.now,
        seen: seen.iter().map(|(what, count)| ((*what).to_owned(), *count)).collect(),
    };
    (report, trace.to_vec())
}

fn simulate(seed: u64, universe: &Universe) -> turmoil::Result {
    let ledgers = ledgers()?;
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(60))
        .simulation_duration(Duration::from_millis(LONGEST))
        .enable_random_order()
        .build();
    sim.host(CONTROLLER, {
        let universe = universe.clone();
        move || programs::controller(universe.clone())
    });
    for (node, name) in NODES.iter().enumerate() {
        let (universe, dir) = (universe.clone(), ledgers.path().join(name));
        std::fs::create_dir(&dir)?;
        sim.host(*name, move || {
            let (universe, dir) = (universe.clone(), dir.clone());
            async move { programs::agent(universe, node, &dir).await }
        });
    }
    sim.client("attacher", {
        let universe = universe.clone();
        async move {
            let clients = (0..VOLUMES).map(|volume| Attacher::new(universe.clone(), volume, seed).run());
            futures_util::future::join_all(clients).await;
            Ok(())
        }
    });
    let mut plan = Plan::new(seed);
    loop {
        let now = u64::try_from(sim.elapsed().as_millis())?;
        universe.lock().advance(now);
        plan.apply(now, universe, &mut sim);
        if sim.step()? || universe.lock().violation().is_some() {
            return Ok(());
        }
    }
}

/// Where the agents keep their ledgers: in memory if there is a place for it, since each record is synced.
fn ledgers() -> std::io::Result<tempfile::TempDir> {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
}
