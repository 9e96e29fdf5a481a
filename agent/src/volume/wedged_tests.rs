//! Connects and deletions that sit in the kernel, and targets that do not answer: what is said meanwhile, and who
//! waits.

use std::time::Duration;

use crate::volume::outcome::Outcome;
use crate::volume::state::VolumePhase;
use cleat_host::NamespaceUuid;
use tokio::time::Instant;

use crate::ledger::Grant;
use crate::link::Link;
use crate::name::VolumeId;
use crate::testing::agent::{Agent, Machine, absent, epoch, failed, grant, pending, ready, secret, volume};
use crate::testing::kernel::{ConnectAnswer, UUID, World, portal};
use crate::testing::target::key;
use crate::volume::StageError;
use crate::volume::clause;
use crate::volume::directive::{Ask, Directive, GivenSecret};
use crate::volume::observe::judge::Activity;
use crate::volume::publish::request::{Granted, Stage};

const SOON: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(20);

fn detach(by: Duration) -> Ask {
    Ask::Detach { deadline: Instant::now() + by, cut_tickets: false }
}

fn revoke(by: Duration) -> Ask {
    Ask::Revoke { deadline: Instant::now() + by }
}

#[tokio::test]
async fn a_volume_with_a_connect_in_the_kernel_is_not_absent() {
    let (machine, agent) = Machine::started();
    machine.kernel.change(|world| world.answer(1, ConnectAnswer::Hang));
    assert!(!failed(agent.attach_by(1, grant(&[1]), SOON).await).2);
    let state = agent.state().await;
    assert_eq!(state.phase, VolumePhase::Connecting);
    assert!(state.unready.unwrap().message.contains("in the kernel"));

    agent.submit(&agent.directive(1, detach(SOON)));
    pending(agent.result().await.outcome);
    // The answer came at its deadline; on a busy machine the end may be on record only after it.
    let end = Instant::now() + LONG;
    let mut state = agent.state().await;
    while !state.epoch_ended {
        assert!(Instant::now() < end, "the grant does not end");
        assert_eq!(state.phase, VolumePhase::Connecting);
        tokio::task::yield_now().await;
        state = agent.state().await;
    }
    assert_eq!(
        (state.phase, state.absence),
        (VolumePhase::Detaching, None),
        "the kernel can make a controller yet"
    );

    machine.kernel.change(|world| world.answers.clear());
    absent(agent.result().await.outcome);
    assert_eq!(agent.state().await.phase, VolumePhase::Absent);
    assert!(machine.kernel.world().controllers.is_empty());
    assert_eq!(machine.kernel.world().connects, [portal(1)]);
}

#[tokio::test]
async fn what_is_connected_is_revoked_while_another_connect_sits_in_the_kernel() {
    let (machine, agent) = Machine::started();
    machine.kernel.change(|world| world.answer(2, ConnectAnswer::Hang));
    agent.ready(1, &[1, 2]).await;
    agent.submit(&agent.directive(1, revoke(SOON)));
    machine.until("the live controller is left", |world| world.controllers.is_empty()).await;
    // Not proven before the connect has ended.
    pending(agent.result().await.outcome);
    assert_eq!(agent.state().await.phase, VolumePhase::Detaching);
    machine.kernel.change(|world| world.answers.clear());
    absent(agent.result().await.outcome);
    assert!(machine.kernel.world().controllers.is_empty());
}

/// Waits until an operation has the volume.
async fn holder(agent: &Agent, what: &str) {
    let volume = agent.fleet.volumes().remove(0);
    let end = Instant::now() + LONG;
    while !volume.gate.holder().is_some_and(|holder| holder.what.starts_with(what)) {
        assert!(Instant::now() < end, "no {what}: {:?}", volume.gate.holder());
        tokio::task::yield_now().await;
    }
}

/// Revokes, and expects what had the volume to have given it up.
async fn revoked(machine: &Machine, agent: &Agent, superseded: usize) {
    agent.submit(&agent.directive(1, revoke(LONG)));
    for _ in 0..superseded {
        assert_eq!(failed(agent.result().await.outcome).0, clause::SUPERSEDED);
    }
    absent(agent.result().await.outcome);
    assert!(machine.kernel.world().controllers.is_empty());
}

fn given(letter: char) -> GivenSecret {
    GivenSecret { secret: secret(letter), generation: None }
}

fn attach(grant: Grant) -> Ask {
    Ask::Attach { grant, secret: None, deadline: Instant::now() + LONG }
}

#[tokio::test]
async fn a_revoke_does_not_wait_for_a_rekey_that_waits_for_a_connect() {
    let (machine, agent) = Machine::started();
    machine.kernel.change(|world| world.answer(2, ConnectAnswer::Hang));
    let (grant, deadline) = (grant(&[1, 2]), Instant::now() + LONG);
    ready(agent.ask(1, Ask::Attach { grant, secret: Some(given('A')), deadline }).await);
    let rekey = Ask::Rekey { secret: secret('B'), generation: epoch(5), deadline };
    agent.submit(&agent.directive(1, rekey));
    machine.until("no secret was given", |world| world.secrets.values().any(|one| *one == secret('B'))).await;
    agent.submit(&agent.directive(1, revoke(SOON)));
    assert_eq!(failed(agent.result().await.outcome).0, clause::SUPERSEDED);
    machine.until("the live controller is left", |world| world.controllers.is_empty()).await;
    pending(agent.result().await.outcome);
    machine.kernel.change(|world| world.answers.clear());
    absent(agent.result().await.outcome);
}

#[tokio::test]
async fn a_revoke_does_not_wait_for_an_attach_without_an_answer() {
    type Wedge = fn(&mut World);
    let wedges: [(Grant, Wedge); 2] = [
        (grant(&[1]), |world| world.reads_hang = true),
        (Grant { reserve: Some(key(1)), ..grant(&[1]) }, |world| world.reservation.hangs = true),
    ];
    for (grant, wedge) in wedges {
        let (machine, agent) = Machine::started();
        machine.kernel.change(wedge);
        agent.submit(&agent.directive(1, attach(grant)));
        machine.until("it connects", |world| !world.controllers.is_empty()).await;
        revoked(&machine, &agent, 1).await;
    }
}

#[tokio::test]
async fn a_revoke_does_not_wait_behind_others_that_wait_for_their_turn() {
    let (machine, agent) = Machine::holding(1, &[1]).await;
    machine.kernel.change(|world| {
        world.reads_hang = true;
        world.users_hang = true;
    });
    for _ in 0..3 {
        agent.submit(&agent.directive(1, attach(grant(&[1]))));
    }
    holder(&agent, "attach").await;
    agent.submit(&agent.directive(1, detach(LONG)));
    revoked(&machine, &agent, 4).await;
}

#[tokio::test]
async fn a_revoke_does_not_wait_for_a_detach_that_looks_for_users_or_flushes() {
    let wedges: [fn(&mut World); 2] = [|world| world.users_hang = true, |world| world.flushes_hang = true];
    for (wedge, superseded) in wedges.into_iter().zip([1, 0]) {
        let (machine, agent) = Machine::holding(1, &[1]).await;
        machine.kernel.change(wedge);
        agent.submit(&agent.directive(1, detach(LONG)));
        holder(&agent, "detach").await;
        if superseded == 0 {
            let volume = agent.fleet.volumes().remove(0);
            let begins = async {
                while volume.memory().activity != Activity::Detaching {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(LONG, begins).await.expect("the detach begins");
            agent.submit(&agent.directive(1, revoke(LONG)));
            // The detach itself goes on.
            absent(agent.result().await.outcome);
        }
        revoked(&machine, &agent, superseded).await;
    }
}

#[tokio::test]
async fn a_revoke_waits_for_neither_the_kubelet_nor_the_reservation() {
    let (machine, agent) = Machine::started();
    let reserved = Grant { reserve: Some(key(1)), ..grant(&[1]) };
    assert!(matches!(agent.attach(1, reserved).await, Outcome::Ready(_)));
    machine.kernel.change(|world| world.reservation.hangs = true);
    let (_sender, link) = tokio::sync::watch::channel(Link::Up);
    let known = agent.fleet.volumes().remove(0);
    let look = tokio::spawn(async move { known.look_after_registration(&link).await });
    holder(&agent, "look at the reservation").await;
    // Giving the registration back is tried for a moment.
    revoked(&machine, &agent, 0).await;
    look.await.unwrap();

    let (machine, agent) = Machine::holding(1, &[1]).await;
    machine.kernel.change(|world| world.reads_hang = true);
    let namespace = NamespaceUuid::parse(UUID).unwrap();
    let stage = Stage { volume: volume(), granted: Granted { epoch: epoch(1), namespace } };
    let fleet = agent.fleet.clone();
    let staging = tokio::spawn(async move { fleet.stage(stage).await });
    holder(&agent, "NodeStageVolume").await;
    revoked(&machine, &agent, 0).await;
    let error = staging.await.unwrap().unwrap_err();
    assert!(matches!(error, StageError::InProgress(_)), "{error}");
}

#[tokio::test]
async fn a_connect_that_outlives_the_patience_with_it_still_counts() {
    let (machine, agent) = Machine::started();
    machine.kernel.change(|world| world.answer(1, ConnectAnswer::Overdue));
    assert!(!failed(agent.attach_by(1, grant(&[1]), SOON).await).2);
    agent.submit(&agent.directive(1, revoke(SOON)));
    pending(agent.result().await.outcome);
    machine.kernel.change(|world| world.answers.clear());
    absent(agent.result().await.outcome);
}

#[tokio::test]
async fn a_volume_whose_deletion_blocks_is_detaching_and_delays_no_other() {
    let (machine, agent) = Machine::holding(1, &[1, 2]).await;
    machine.kernel.change(|world| {
        world.wedged = Some("nqn.2026-01.io.cleat:v".into());
        world.set_state(1, "connecting");
    });
    let wedged = agent.directive(1, revoke(SOON));
    agent.submit(&wedged);
    let Outcome::Pending(pending) = agent.result().await.outcome else { panic!("not pending") };
    assert!(pending.age >= Duration::from_millis(50) && pending.message.contains("revoke"), "{pending:?}");
    for controller in ["nvme0", "nvme1"] {
        let said = format!("the kernel has been deleting {controller} for 0.");
        assert!(pending.message.contains(&said), "{pending:?}");
    }
    for seq in 2..5 {
        for ask in [attach(grant(&[3])), detach(LONG)] {
            let other = Directive { volume: VolumeId::parse("w").unwrap(), ..agent.directive(seq, ask) };
            agent.submit(&other);
            let result = agent.result().await;
            assert_eq!(result.operation, other.operation);
            let done = matches!(result.outcome, Outcome::Ready(_) | Outcome::Absent(_));
            assert!(done, "{result:?}");
        }
    }
    let end = Instant::now() + LONG;
    while agent.state().await.phase != VolumePhase::Detaching {
        assert!(Instant::now() < end, "it is not told");
        tokio::task::yield_now().await;
    }
    // What comes for it waits, and is told for whom.
    agent.submit(
        &agent.directive(6, Ask::Attach { grant: grant(&[1]), secret: None, deadline: Instant::now() }),
    );
    let waits = agent.result().await.outcome;
    assert!(matches!(&waits, Outcome::Pending(waits) if waits.message.contains("revoke op-1-")), "{waits:?}");
    machine.kernel.change(|world| world.wedged = None);
    let last = agent.result().await;
    assert_eq!(last.operation, wedged.operation);
    let Outcome::Absent(absent) = last.outcome else { panic!("{last:?}") };
    let mut states: Vec<_> = absent.deleted.iter().map(|one| one.state.as_str()).collect();
    states.sort_unstable();
    assert_eq!(states, ["connecting", "live"]);
}
