//! Connects and deletions that sit in the kernel, and targets that do not answer: what is said meanwhile, and who
//! waits.

use std::sync::Arc;
use std::time::Duration;

use cleat_proto::cleat::v1 as wire;
use tokio::time::Instant;
use wire::directive_result::Outcome;
use wire::volume_state::Phase;

use crate::session::directive::Ask;
use crate::testing::agent::{Agent, BOOT, grant};
use crate::testing::kernel::{Answer, Kernel, World, portal};

const SOON: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

struct Machine {
    kernel: Arc<Kernel>,
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { kernel: Arc::default(), dir: tempfile::tempdir().unwrap() }
    }

    fn agent(&self) -> Agent {
        Agent::start(&self.kernel, self.dir.path(), BOOT)
    }
}

fn detach(by: Duration) -> Ask {
    Ask::Detach { deadline: Instant::now() + by }
}

fn revoke(by: Duration) -> Ask {
    Ask::Revoke { deadline: Instant::now() + by }
}

#[tokio::test]
async fn a_volume_with_a_connect_in_the_kernel_is_not_absent() {
    let machine = Machine::new();
    let agent = machine.agent();
    machine.kernel.change(|world| world.answer(1, Answer::Hang));
    let failed = agent.attach_by(1, grant(&[1]), SOON).await;
    assert!(matches!(&failed, Outcome::Failed(failed) if !failed.nothing_left), "{failed:?}");
    let state = agent.state().await;
    assert_eq!(state.phase(), Phase::Connecting);
    assert!(state.unready.unwrap().message.contains("in the kernel"));

    agent.submit(&agent.directive(1, detach(SOON)));
    let pending = agent.result().await.outcome.unwrap();
    assert!(matches!(&pending, Outcome::Pending(_)), "{pending:?}");
    let state = agent.state().await;
    assert!(state.epoch_ended);
    assert_eq!(
        (state.phase(), state.absence),
        (Phase::Detaching, None),
        "the kernel can make a controller yet"
    );

    machine.kernel.change(|world| world.answers.clear());
    let absent = agent.result().await.outcome.unwrap();
    assert!(matches!(&absent, Outcome::Absent(_)), "{absent:?}");
    assert_eq!(agent.state().await.phase(), Phase::Absent);
    assert!(machine.kernel.world().controllers.is_empty());
    assert_eq!(machine.kernel.world().connects, [portal(1)]);
}

/// Waits for a condition of the kernel.
async fn until(machine: &Machine, what: &str, holds: impl Fn(&World) -> bool) {
    let end = Instant::now() + LONG;
    while !holds(&machine.kernel.world()) {
        assert!(Instant::now() < end, "{what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_is_connected_is_revoked_while_another_connect_sits_in_the_kernel() {
    let machine = Machine::new();
    let agent = machine.agent();
    machine.kernel.change(|world| world.answer(2, Answer::Hang));
    agent.ready(1, &[1, 2]).await;
    agent.submit(&agent.directive(1, revoke(SOON)));
    until(&machine, "the live controller is left", |world| world.controllers.is_empty()).await;
    let pending = agent.result().await.outcome.unwrap();
    assert!(matches!(&pending, Outcome::Pending(_)), "not proven before the connect has ended: {pending:?}");
    assert_eq!(agent.state().await.phase(), Phase::Detaching);
    machine.kernel.change(|world| world.answers.clear());
    let absent = agent.result().await.outcome.unwrap();
    assert!(matches!(&absent, Outcome::Absent(_)), "{absent:?}");
    assert!(machine.kernel.world().controllers.is_empty());
}
