//! How live migrations end: whole programs, and KubeVirt as `tests/kubevirt` plays it, in scenes of which each has one end.
//!
//! Comes in: the name of a [`SCENES`] entry. Goes out: what was not as it has to be, if anything was, and a trace. What always
//! holds: the invariants of [`crate::world::rules`] are judged at every moment of a scene, too; a scene ends, whatever the
//! programs do; each needs a process of its own (its metrics, and its chance, are the process's).

mod badly;
mod hand;
mod many;
mod well;

use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;

use crate::faults;
use crate::machines::Machines;
use crate::run::{TICK, scratch};
use crate::world::probed::Probed;
use crate::world::{Universe, World};
use hand::Hand;

/// The longest that a scene may be.
const LONGEST: Duration = Duration::from_secs(600);
const SEED: u64 = 11;

/// What comes of a scene.
type Came = Result<(), String>;
type Playing = Pin<Box<dyn Future<Output = Came>>>;

/// A scene.
#[derive(Clone, Copy)]
pub struct EndScene {
    /// What happens, and what has to come of it.
    pub name: &'static str,
    play: fn(Hand) -> Playing,
    /// The target was probed to do this.
    probed: Probed,
    /// Volumes; the ones with an odd number may migrate.
    volumes: usize,
}

macro_rules! scene {
    ($part:ident::$name:ident) => {
        EndScene {
            name: stringify!($name),
            play: |hand| Box::pin($part::$name(hand)),
            probed: Probed::List,
            volumes: 2,
        }
    };
}

/// All of them.
pub const SCENES: &[EndScene] = &[
    scene!(well::one_that_goes_well_is_completed),
    scene!(well::a_second_at_once_waits_for_the_first_ones_source),
    scene!(well::there_and_back_is_two_with_the_sides_swapped),
    scene!(well::back_before_the_source_has_let_go_is_a_second_one),
    scene!(well::twenty_in_a_row_are_twenty_and_the_record_stays_small),
    scene!(well::a_controller_killed_at_each_step_changes_no_result),
    scene!(well::an_agent_killed_and_a_session_cut_change_no_result),
    scene!(well::an_api_server_that_is_away_ends_nothing),
    scene!(badly::a_target_that_never_gets_ready_is_a_failure),
    scene!(badly::a_target_that_is_tried_again_is_a_failure_each_time),
    scene!(badly::one_that_is_called_off_is_rolled_back),
    scene!(badly::one_that_kubevirt_fails_to_do_is_rolled_back),
    scene!(badly::a_target_that_dies_before_it_is_ready_is_a_failure),
    scene!(badly::a_target_that_dies_is_fenced_and_rolled_back),
    scene!(badly::a_source_that_dies_before_the_switchover_is_a_failure),
    scene!(badly::a_source_that_freezes_after_the_switchover_completes),
    scene!(badly::both_that_die_are_one_failure_and_nothing_is_left),
    scene!(badly::past_its_time_it_is_timed_out_once_and_nobody_is_cut),
    scene!(badly::an_api_server_that_is_away_stops_no_time_limit),
    scene!(badly::without_kubevirt_it_is_unattributed_and_never_overdue),
    scene!(badly::a_third_node_while_two_have_it_is_refused),
    EndScene { volumes: 20, ..scene!(many::two_drains_of_ten_vms_refuse_nobody_for_good) },
];

/// Plays one. Gives what was not as it has to be, and the trace.
#[must_use]
pub fn play(scene: &EndScene) -> (Option<String>, Vec<String>) {
    let universe = Universe::new(World::of_scene(SEED, scene.probed, scene.volumes));
    universe.lock().kubevirt.begun = true;
    let hook = panic::take_hook();
    panic::set_hook(Box::new({
        let universe = universe.clone();
        move |panic| universe.lock().violated("none may panic", panic)
    }));
    let ended = panic::catch_unwind(AssertUnwindSafe(|| simulate(scene, &universe)));
    panic::set_hook(hook);
    let mut world = universe.lock();
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => world.violated("a scene comes to its end", error),
        Err(_) => world.violated("none may panic", "the simulation itself"),
    }
    let violation = world.violation().map(str::to_owned);
    (violation, world.record().0.to_vec())
}

fn simulate(scene: &EndScene, universe: &Universe) -> turmoil::Result {
    let recorder = PrometheusBuilder::new().build_recorder();
    let counted = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| error.to_string())?;
    let scratch = scratch()?;
    let mut sim = turmoil::Builder::new()
        .rng_seed(SEED)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(20))
        .simulation_duration(LONGEST)
        .tcp_capacity(4096)
        .enable_random_order()
        .build();
    let mut machines = Machines::new(universe, scratch.path(), SEED, &mut sim)?;
    let playing = (scene.play)(Hand::new(universe.clone(), counted));
    sim.client("hand", {
        let universe = universe.clone();
        async move {
            if let Err(why) = playing.await {
                universe.lock().violated("it ends as it has to", why);
            }
            Ok(())
        }
    });
    loop {
        let now = u64::try_from(sim.elapsed().as_millis())?;
        universe.lock().advance(now);
        faults::carry_out_orders(now, universe, &mut machines, &mut sim)?;
        let over = sim.step()?;
        machines.run(u64::try_from(sim.elapsed().as_millis())?)?;
        if over || universe.lock().violation().is_some() {
            return Ok(());
        }
    }
}
