use tokio::time::{sleep, timeout};

use super::*;
use crate::testing::agent::{Agent, Machine, absent};
use crate::testing::kernel::{ConnectAnswer, World, portal};

/// What a write may wait.
const FELT: Duration = Duration::from_secs(2);

/// An agent that has the volume over these portals, and looks for dead paths.
struct Looking {
    machine: Machine,
    agent: Agent,
    stop: CancellationToken,
    looking: tokio::task::JoinHandle<()>,
}

impl Looking {
    async fn at(portals: &[u8]) -> Self {
        let machine = Machine::new();
        let agent = Agent::with_stopped_clock(&machine.kernel, machine.dir.path());
        agent.ready(1, portals).await;
        let stop = CancellationToken::new();
        let looking = tokio::spawn(DeadPaths::new(agent.fleet.clone()).run(stop.clone()));
        sleep(LOOK * 3).await;
        Self { machine, agent, stop, looking }
    }

    fn change(&self, change: impl FnOnce(&mut World)) {
        self.machine.kernel.change(change);
    }

    fn resets(&self) -> Vec<String> {
        self.machine.kernel.world().resets.clone()
    }

    /// The name of the controller at a portal.
    fn controller(&self, at: u8) -> String {
        let world = self.machine.kernel.world();
        let found = world.controllers.iter().find(|one| one.portal() == Some(portal(at)));
        found.unwrap().name.to_string()
    }

    /// That nothing is reset within this time.
    async fn leaves_all_alone(&self, time: Duration) {
        sleep(time).await;
        assert_eq!(self.resets(), Vec::<String>::new());
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(Duration::from_secs(1), self.looking).await.expect("it stops").unwrap();
    }
}

/// Packets to a portal are lost from now on, and a write waits there.
fn cut(world: &mut World, at: u8) {
    world.answer(at, ConnectAnswer::Drop);
    world.lose(at, TIMEOUTS);
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_cut_under_a_write_is_reset_within_two_seconds() {
    let looking = Looking::at(&[1, 2]).await;
    let dead = looking.controller(1);
    looking.change(|world| cut(world, 1));
    let reset = looking.machine.kernel.until(|world| (!world.resets.is_empty()).then_some(()));
    timeout(FELT, reset).await.expect("a reset");
    sleep(Duration::from_secs(30)).await;
    assert_eq!(looking.resets(), [dead], "this one, and once");
    looking.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_detach_after_a_reset_is_not_taken_for_drained() {
    let looking = Looking::at(&[1, 2]).await;
    looking.change(|world| cut(world, 1));
    let reset = looking.machine.kernel.until(|world| (!world.resets.is_empty()).then_some(()));
    timeout(FELT, reset).await.expect("a reset");
    // The kernel has the connection back, and says nothing of it.
    looking.change(|world| {
        world.answer(1, ConnectAnswer::Accept);
        world.set_state(1, "live");
    });
    let live: Vec<String> = absent(looking.agent.detach(1).await)
        .into_iter()
        .filter(|(_, state)| state == "live")
        .map(|(portal, _)| portal)
        .collect();
    assert_eq!(live, [portal(2).to_string()], "the one that was reset counts as broken");
    looking.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_answers_new_connections_is_left_alone() {
    let looking = Looking::at(&[1, 2]).await;
    looking.change(|world| world.lose(1, 5));
    looking.leaves_all_alone(SUSPECTED * 2).await;
    looking.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_answered_once_while_suspected_is_left_alone() {
    let looking = Looking::at(&[1, 2]).await;
    looking.change(|world| world.lose(1, 5));
    sleep(LOOK * 5).await;
    looking.change(|world| world.answer(1, ConnectAnswer::Drop));
    looking.leaves_all_alone(SUSPECTED * 2).await;
    looking.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_silent_while_all_is_acknowledged_is_left_alone() {
    let looking = Looking::at(&[1, 2]).await;
    looking.change(|world| {
        world.answer(1, ConnectAnswer::Drop);
        world.timeouts += 1;
    });
    looking.leaves_all_alone(SUSPECTED * 2).await;
    assert_eq!(looking.machine.kernel.world().asked, [portal(1), portal(2)], "asked at the attach alone");
    looking.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_last_path_is_never_reset() {
    let looking = Looking::at(&[1]).await;
    looking.change(|world| cut(world, 1));
    looking.leaves_all_alone(SUSPECTED * 2).await;
    looking.end().await;
    let looking = Looking::at(&[1, 2]).await;
    looking.change(|world| {
        world.set_state(2, "connecting");
        cut(world, 1);
    });
    looking.leaves_all_alone(SUSPECTED * 2).await;
    looking.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_silent_everywhere_loses_no_path() {
    let looking = Looking::at(&[1, 2]).await;
    // A write waits on one path only; the other address shows what the matter is.
    looking.change(|world| {
        cut(world, 1);
        world.answer(2, ConnectAnswer::Drop);
    });
    looking.leaves_all_alone(SUSPECTED * 2).await;
    looking.end().await;
    let looking = Looking::at(&[1, 2]).await;
    looking.change(|world| {
        cut(world, 1);
        cut(world, 2);
    });
    looking.leaves_all_alone(SUSPECTED * 2).await;
    looking.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_interruption_of_200_ms_costs_nothing() {
    let looking = Looking::at(&[1, 2]).await;
    for _ in 0..10 {
        looking.change(|world| {
            world.answer(1, ConnectAnswer::Drop);
            world.lose(1, 1);
        });
        sleep(Duration::from_millis(200)).await;
        looking.change(|world| world.answer(1, ConnectAnswer::Accept));
        // The data is sent again after another 0.4 s at most.
        sleep(Duration::from_millis(400)).await;
        looking.change(|world| world.waiting.clear());
        looking.leaves_all_alone(Duration::from_secs(3)).await;
    }
    looking.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_path_that_dies_again_and_again_is_reset_once_a_minute() {
    let looking = Looking::at(&[1, 2]).await;
    let begun = Instant::now();
    let mut at = Vec::new();
    while begun.elapsed() < Duration::from_secs(1000) {
        looking.change(|world| {
            world.set_state(1, "live");
            cut(world, 1);
        });
        let before = looking.resets().len();
        sleep(FELT).await;
        at.extend((looking.resets().len() > before).then(|| begun.elapsed()));
        looking.change(|world| {
            world.answer(1, ConnectAnswer::Accept);
            world.waiting.clear();
        });
        sleep(FELT).await;
    }
    assert!(at.windows(2).all(|two| two[1] - two[0] >= verdict::PER_ADDRESS - FELT), "{at:?}");
    assert!((5..=8).contains(&at.len()), "four in ten minutes: {at:?}");
    looking.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_that_hangs_holds_up_nothing() {
    let looking = Looking::at(&[1, 2]).await;
    looking.change(|world| {
        world.resets_hang = true;
        cut(world, 1);
    });
    let reset = looking.machine.kernel.until(|world| (!world.resets.is_empty()).then_some(()));
    timeout(FELT, reset).await.expect("a reset");
    looking.end().await;
}
