//! Revoke: grants that end under an open device, and targets that are gone.

use std::time::Duration;

use crate::volume::outcome::Outcome;
use crate::volume::state::VolumePhase;
use tokio::time::Instant;

use crate::name::VolumeId;
use crate::testing::agent::{Machine, absent, failed, grant, pending, ready, states};
use crate::testing::kernel::HOST;
use crate::volume::directive::{Ask, Directive};

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

fn revoke(by: Duration) -> Ask {
    Ask::Revoke { deadline: Instant::now() + by }
}

#[tokio::test]
async fn a_revoke_deletes_under_an_open_device_that_a_detach_leaves_alone() {
    let (machine, agent) = Machine::holding(1, &[1, 2]).await;
    machine
        .kernel
        .change(|world| world.users = vec!["pid 312 (qemu-system-x86) has /dev/nvme0n1 open".into()]);
    let busy = agent.detach(1).await;
    assert!(matches!(&busy, Outcome::Busy(busy) if busy.holders[0].contains("qemu")), "{busy:?}");
    assert_eq!(machine.kernel.world().of("v").len(), 2);
    assert_eq!(absent(agent.revoke(1).await), states(&[(1, "live"), (2, "live")]));
    assert_eq!(machine.kernel.world().flushed, 0, "what is revoked is not written back");
}

#[tokio::test]
async fn a_revoke_with_the_target_gone_is_pending_and_blocks_nothing_else() {
    let (machine, agent) = Machine::holding(1, &[1, 2]).await;
    machine.kernel.change(|world| {
        world.users = vec!["pid 312 (qemu-system-x86) has /dev/nvme0n1 open".into()];
        world.set_state(1, "connecting");
        world.set_state(2, "connecting");
        world.deletions_hang = true;
    });
    let revoke = agent.directive(1, revoke(SHORT));
    agent.submit(&revoke);
    let waits = agent.result().await;
    assert_eq!(waits.operation, revoke.operation);
    let waits = pending(waits.outcome);
    assert!(waits.age >= Duration::from_millis(50), "{waits:?}");
    assert!(waits.message.contains("revoke") && waits.message.contains("nvme0"), "{waits:?}");
    // Another volume of this node comes and is looked at meanwhile.
    let other = Directive {
        volume: VolumeId::parse("w").unwrap(),
        ..agent
            .directive(2, Ask::Attach { grant: grant(&[3]), secret: None, deadline: Instant::now() + LONG })
    };
    agent.submit(&other);
    let came = agent.result().await;
    assert_eq!(came.operation, other.operation);
    ready(came.outcome);
    assert_eq!(agent.state().await.phase, VolumePhase::Detaching);
    // The kernel lets go.
    machine.kernel.change(|world| world.deletions_hang = false);
    let last = agent.result().await;
    assert_eq!(last.operation, revoke.operation);
    // Not live: this absence is not drained, and says so.
    assert_eq!(absent(last.outcome), states(&[(1, "connecting"), (2, "connecting")]));
    assert_eq!(machine.kernel.world().of("w").len(), 1);
}

#[tokio::test]
async fn a_node_back_without_its_ledger_is_revoked_by_what_its_kernel_holds() {
    let machine = Machine::new();
    machine.kernel.world().connect("nqn.2026-01.io.cleat:v", 1, HOST);
    machine.kernel.world().connect("nqn.2026-01.io.cleat:v", 2, HOST);
    machine.kernel.change(|world| world.set_state(2, "connecting"));
    let agent = machine.agent();
    assert_eq!(agent.state().await.epoch, None, "the inventory names it all the same");
    assert_eq!(absent(agent.revoke(4).await), states(&[(1, "live"), (2, "connecting")]));
    let state = agent.state().await;
    assert_eq!((state.phase, state.epoch_ended), (VolumePhase::Absent, true));
    assert_eq!(
        absent(agent.revoke(4).await),
        states(&[(1, "live"), (2, "connecting")]),
        "again, with the same proof"
    );
    let stale = agent.attach(3, grant(&[1])).await;
    assert!(matches!(stale, Outcome::StaleEpoch(_)), "{stale:?}");
}

#[tokio::test]
async fn a_controller_that_the_kernel_removed_is_absent_and_not_drained() {
    let (machine, agent) = Machine::holding(1, &[1, 2]).await;
    // As after the secret has changed: authentication fails, and the kernel gives its controllers up.
    machine.kernel.change(|world| world.controllers.clear());
    assert_eq!(agent.state().await.phase, VolumePhase::Lost);
    assert_eq!(absent(agent.revoke(1).await), states(&[(1, "gone"), (2, "gone")]));
}

#[tokio::test]
async fn a_head_that_outlives_its_controllers_is_not_absent() {
    let (machine, agent) = Machine::holding(1, &[1]).await;
    machine.kernel.change(|world| {
        world.delayed_removal = true;
        world.delay_is_stuck = true;
    });
    let (_, message, _) = failed(agent.revoke(1).await);
    assert!(message.contains("nvme0n1 is still there without a controller"), "{message}");
    assert!(machine.kernel.world().controllers.is_empty(), "what can write goes all the same");
    assert_eq!(agent.state().await.phase, VolumePhase::Detaching);
    machine.kernel.change(|world| world.heads.clear());
    absent(agent.revoke(1).await);
    assert_eq!(agent.state().await.phase, VolumePhase::Absent);
}

#[tokio::test]
async fn a_delay_of_the_heads_removal_is_taken_back_before_the_deletion() {
    for revoke in [true, false] {
        let (machine, agent) = Machine::holding(1, &[1, 2]).await;
        machine.kernel.change(|world| (world.knows_delay, world.delayed_removal) = (true, true));
        absent(if revoke { agent.revoke(1).await } else { agent.detach(1).await });
        assert!(machine.kernel.world().heads.is_empty());
    }
}

#[tokio::test]
async fn a_head_whose_time_runs_is_waited_for_and_is_no_failure() {
    let machine = Machine::new();
    machine.kernel.change(|world| world.knows_delay = true);
    let agent = machine.agent();
    agent.ready(1, &[1]).await;
    machine.kernel.change(|world| world.give_up());
    let revoke = agent.directive(1, revoke(SHORT));
    agent.submit(&revoke);
    // It would send what it has queued.
    pending(agent.result().await.outcome);
    machine.kernel.change(|world| world.heads.clear());
    absent(agent.result().await.outcome);
}

#[tokio::test]
async fn a_head_is_waited_for_as_long_as_anybody_may_have_had_it_stay() {
    let machine = Machine::new();
    machine.kernel.change(|world| world.knows_delay = true);
    let agent = machine.agent();
    agent.ready(1, &[1]).await;
    let volume = agent.fleet.volumes().remove(0);
    let view = volume.observe().await.unwrap();
    // A process before this one was told another time.
    machine.kernel.change(|world| world.stay = Duration::from_secs(90));
    assert_eq!(volume.let_heads_go(&view).await, Duration::from_secs(90));
    let configured = agent.fleet.shared().times.stay;
    assert_eq!(volume.let_heads_go(&view).await, configured, "what is set now says nothing of what runs");
}
