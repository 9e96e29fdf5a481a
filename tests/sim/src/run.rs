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
use crate::machines::Machines;
use crate::operator::Operator;
use crate::world::rules::ENDS_WITHIN;
use crate::world::{Planted, Universe, VOLUMES, World};

/// Resolution of the simulation: messages are delivered, and the world goes on, so often.
pub(crate) const TICK: Duration = Duration::from_millis(10);
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
    /// What the target was probed to do.
    pub target: String,
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
        target: world.probed.name().to_owned(),
        seen: seen.clone(),
    };
    (report, trace.to_vec())
}

fn simulate(seed: u64, universe: &Universe) -> turmoil::Result {
    let scratch = scratch()?;
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(60))
        .simulation_duration(Duration::from_millis(LONGEST))
        // A machine that is held back gets all of it at once.
        .tcp_capacity(4096)
        .enable_random_order()
        .build();
    let mut machines = Machines::new(universe, scratch.path(), seed, &mut sim)?;
    sim.client("attacher", {
        let universe = universe.clone();
        async move {
            let clients = (0..VOLUMES).map(|volume| Attacher::new(universe.clone(), volume, seed).run());
            futures_util::future::join_all(clients).await;
            universe.lock().put_away = true;
            Ok(())
        }
    });
    sim.client("operator", {
        let universe = universe.clone();
        async move {
            Operator::new(universe, seed).run().await;
            Ok(())
        }
    });
    let mut plan = Plan::new(seed, &universe.lock());
    loop {
        let now = u64::try_from(sim.elapsed().as_millis())?;
        universe.lock().advance(now);
        plan.apply(now, universe, &mut machines, &mut sim)?;
        let over = sim.step()?;
        machines.run(u64::try_from(sim.elapsed().as_millis())?)?;
        if over || universe.lock().violation().is_some() {
            return Ok(());
        }
    }
}

/// Where machines have their disks: in memory if there is a place for it, since each record is synced.
pub(crate) fn scratch() -> std::io::Result<tempfile::TempDir> {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
}
