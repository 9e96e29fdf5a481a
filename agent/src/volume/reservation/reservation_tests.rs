//! Reservations and secrets, on a kernel and a target made of memory.

use crate::volume::outcome::Outcome;
use crate::volume::state::VolumePhase;
use cleat_host::fabrics::DhchapSecret;
use cleat_host::reservations::Command;

use super::*;
use crate::testing::agent::{Agent, Machine, absent, epoch, failed, grant, ready, secret};
use crate::testing::kernel::{HOST_ID, portal};
use crate::testing::target::{OTHER_HOST, host, key};
use crate::volume::directive::{Ask, GivenSecret};

fn reserved() -> Grant {
    Grant { reserve: Some(key(1)), ..grant(&[1, 2]) }
}

/// A machine whose agent has the volume, and is registered for it.
async fn registered() -> (Machine, Agent) {
    let (machine, agent) = Machine::started();
    ready(agent.attach(1, reserved()).await);
    (machine, agent)
}

fn keys(machine: &Machine) -> Vec<u64> {
    machine.kernel.world().reservation.keys()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn left(outcome: Outcome) -> Vec<u64> {
    left_and_aborted(outcome).0
}

fn left_and_aborted(outcome: Outcome) -> (Vec<u64>, Vec<u64>) {
    match outcome {
        Outcome::Preempted(preempted) => (preempted.left_keys, preempted.aborted_keys),
        other => panic!("not preempted: {other:?}"),
    }
}

async fn look_after(agent: &Agent, link: Link) {
    let (_sender, link) = watch::channel(link);
    for volume in agent.fleet.volumes() {
        volume.look_after_registration(&link).await;
    }
}

#[tokio::test]
async fn ready_is_said_only_once_the_report_shows_this_node() {
    let (machine, agent) = registered().await;
    {
        let world = machine.kernel.world();
        assert!(world.reservation.kept.is_held());
        assert_eq!(world.reservation.kept.registrants(), [(host(HOST_ID), 1)]);
        assert_eq!(world.reservation.done, [Command::Register, Command::Reserve]);
    }
    assert_eq!(agent.entry().await.unwrap().registered, Some(1));
    ready(agent.attach(1, reserved()).await);
    assert_eq!(machine.kernel.world().reservation.done.len(), 2, "a repeated attach changes nothing");
}

#[tokio::test]
async fn a_second_registrant_joins_what_the_first_holds() {
    let machine = Machine::new();
    machine.kernel.world().reservation.join(OTHER_HOST, 7);
    let agent = machine.agent();
    ready(agent.attach(1, reserved()).await);
    assert_eq!(machine.kernel.world().reservation.done, [Command::Register]);
    assert_eq!(keys(&machine), [7, 1]);
}

#[tokio::test]
async fn a_key_of_an_older_grant_is_replaced() {
    let machine = Machine::new();
    machine.kernel.world().reservation.join(HOST_ID, 9);
    ready(machine.agent().attach(1, reserved()).await);
    assert_eq!(keys(&machine), [1]);
}

#[tokio::test]
async fn what_happens_between_a_report_and_a_command_is_seen() {
    let machine = Machine::new();
    // Another node takes the reservation right after this one has read that nobody has it.
    machine.kernel.world().reservation.interferes = Some(|target| target.join(OTHER_HOST, 7));
    ready(machine.agent().attach(1, reserved()).await);
    assert_eq!(keys(&machine), [7, 1]);
}

#[tokio::test]
async fn a_target_without_reservations_is_named_and_nothing_is_left() {
    let machine = Machine::new();
    machine.kernel.world().reservation.incapable = true;
    let agent = machine.agent();
    let (clause, message, _) = failed(agent.attach(1, reserved()).await);
    assert_eq!(clause, clause::RESERVATION);
    assert!(message.contains("RESCAP 0x00"), "{message}");
    assert!(machine.kernel.world().controllers.is_empty());
}

#[tokio::test]
async fn the_end_of_a_grant_gives_the_registration_back() {
    for revoke in [false, true] {
        let machine = Machine::new();
        machine.kernel.world().reservation.join(OTHER_HOST, 7);
        let agent = machine.agent();
        ready(agent.attach(1, reserved()).await);
        absent(if revoke { agent.revoke(1).await } else { agent.detach(1).await });
        assert_eq!(keys(&machine), [7]);
    }
}

#[tokio::test]
async fn a_target_that_does_not_answer_does_not_keep_a_grant_from_ending() {
    let (machine, agent) = registered().await;
    machine.kernel.change(|world| world.reservation.hangs = true);
    absent(agent.revoke(1).await);
    assert_eq!(keys(&machine), [1], "which is told, and is the fence's to remove");
}

#[tokio::test]
async fn a_preempted_node_never_registers_again_under_the_same_epoch() {
    let (machine, agent) = Machine::started();
    machine.kernel.world().reservation.join(OTHER_HOST, 7);
    ready(agent.attach(1, reserved()).await);
    machine.kernel.world().reservation.lose(1);
    look_after(&agent, Link::Up).await;
    let state = agent.state().await;
    assert_eq!(state.phase, VolumePhase::Lost);
    assert_eq!(state.unready.unwrap().clause, clause::RESERVATION);
    // A message that had been waiting while this node was stopped, also for an agent that was restarted, and also when
    // the one that preempted has gone.
    machine.kernel.world().reservation.lose(7);
    for agent in [&agent, &machine.agent_on_a_copy()] {
        let (clause, message, _) = failed(agent.attach(1, reserved()).await);
        assert_eq!(clause, clause::RESERVATION);
        assert!(message.contains("preempted"), "{message}");
        assert_eq!(keys(&machine), Vec::<u64>::new());
    }
}

#[tokio::test]
async fn a_preempted_node_stays_preempted_over_restarts_and_attaches() {
    let (machine, agent) = Machine::started();
    machine.kernel.world().reservation.join(OTHER_HOST, 7);
    ready(agent.attach(1, reserved()).await);
    machine.kernel.change(|world| {
        world.reservation.lose(1);
        world.controllers.clear();
    });
    drop(agent);
    let agent = Agent::start(&machine.kernel, machine.dir.path(), "boot-2");
    for _ in 0..3 {
        let (clause, message, _) = failed(agent.attach(1, reserved()).await);
        assert_eq!(clause, clause::RESERVATION);
        assert!(message.contains("preempted"), "{message}");
        assert_eq!(keys(&machine), [7]);
    }
}

#[tokio::test]
async fn after_a_target_restart_the_registration_returns_within_a_session() {
    let (machine, agent) = registered().await;
    machine.kernel.world().reservation.forget();
    look_after(&agent, Link::Down).await;
    let state = agent.state().await;
    assert_eq!(state.phase, VolumePhase::Lost);
    assert!(state.unready.unwrap().message.contains("forgotten"));
    assert_eq!(keys(&machine), Vec::<u64>::new(), "without a session nobody knows whether the grant stands");
    look_after(&agent, Link::Up).await;
    assert_eq!(keys(&machine), [1]);
}

#[tokio::test]
async fn after_a_restart_of_the_target_it_does_not_matter_who_comes_back_first() {
    let (machine, agent) = registered().await;
    machine.kernel.world().reservation.join(OTHER_HOST, 7);
    machine.kernel.world().reservation.forget();
    machine.kernel.world().reservation.join(OTHER_HOST, 7);
    look_after(&agent, Link::Up).await;
    assert_eq!(keys(&machine), [7, 1]);
}

/// Who is not registered while the namespace is held has its writes refused. This node has never seen the other one.
#[tokio::test]
async fn after_a_target_restart_the_namespace_is_held_once_others_had_time() {
    let (machine, agent) = registered().await;
    machine.kernel.world().reservation.join(OTHER_HOST, 7);
    machine.kernel.world().reservation.forget();
    look_after(&agent, Link::Up).await;
    assert_eq!(keys(&machine), [1]);
    assert!(!machine.kernel.world().reservation.kept.is_held(), "the other one would get errors");
    let state = agent.state().await;
    assert_eq!(state.phase, VolumePhase::Degraded, "the device can be used");
    assert!(state.unready.unwrap().message.contains("once other nodes had time"));
    // It comes back without holding either, and has its time from then on; this node's is over.
    machine.kernel.world().reservation.join_without_holding(OTHER_HOST, 7);
    let_time_pass(&agent);
    look_after(&agent, Link::Up).await;
    assert!(machine.kernel.world().reservation.kept.is_held());
    assert_eq!(keys(&machine), [1, 7]);
    assert_eq!(agent.state().await.phase, VolumePhase::Ready);
}

#[tokio::test]
async fn one_that_does_not_come_back_is_not_waited_for_for_ever() {
    let (machine, agent) = registered().await;
    machine.kernel.world().reservation.join(OTHER_HOST, 7);
    look_after(&agent, Link::Up).await;
    // After each restart others have the whole of their time.
    for held in [false, false, true] {
        if !held {
            machine.kernel.world().reservation.forget();
            look_after(&agent, Link::Up).await;
        }
        assert!(!machine.kernel.world().reservation.kept.is_held());
        let_time_pass(&agent);
        if held {
            look_after(&agent, Link::Up).await;
        }
        assert_eq!(machine.kernel.world().reservation.kept.is_held(), held);
    }
    assert_eq!(keys(&machine), [1]);
}

/// As if others had had the time to register again.
fn let_time_pass(agent: &Agent) {
    for volume in agent.fleet.volumes() {
        volume.memory().registration.waiting = Instant::now().checked_sub(PATIENCE);
    }
}

/// The preemption comes between the new registration and the hold.
#[tokio::test]
async fn who_is_preempted_while_others_are_waited_for_does_not_register_again() {
    let (machine, agent) = registered().await;
    machine.kernel.world().reservation.join(OTHER_HOST, 7);
    look_after(&agent, Link::Up).await;
    machine.kernel.world().reservation.forget();
    look_after(&agent, Link::Up).await;
    machine.kernel.world().reservation.join(OTHER_HOST, 7);
    machine.kernel.world().reservation.lose(1);
    look_after(&agent, Link::Up).await;
    assert_eq!(keys(&machine), [7]);
    assert!(agent.state().await.unready.unwrap().message.contains("preempted"));
}

#[tokio::test]
async fn a_registration_that_may_have_come_too_late_is_taken_back() {
    let (machine, agent) = registered().await;
    machine.kernel.world().reservation.forget();
    let (sender, link) = watch::channel(Link::Up);
    machine.kernel.change(|world| world.reservation.hangs = true);
    let volumes = agent.fleet.volumes();
    let looking = volumes[0].look_after_registration(&link);
    let meanwhile = async {
        tokio::task::yield_now().await;
        // The first report comes, and the session goes before the registration does.
        machine.kernel.change(|world| {
            world.reservation.hangs = false;
            world.reservation.interferes = Some(|target| target.hangs = true);
        });
        machine.until("the report is read", |world| world.reservation.hangs).await;
        sender.send_replace(Link::Down);
        machine.kernel.change(|world| world.reservation.hangs = false);
    };
    tokio::join!(looking, meanwhile);
    assert_eq!(keys(&machine), Vec::<u64>::new());
    assert_eq!(agent.state().await.phase, VolumePhase::Lost);
    // That was nobody's preemption: with the session back it registers again, whoever has come meanwhile.
    machine.kernel.world().reservation.join(OTHER_HOST, 7);
    machine.kernel.world().reservation.join("33333333-3333-3333-3333-333333333333", 9);
    look_after(&agent, Link::Up).await;
    assert_eq!(keys(&machine), [7, 9, 1]);
    assert_eq!(agent.state().await.phase, VolumePhase::Ready);
}

#[tokio::test]
async fn victims_are_preempted_and_the_report_says_who_is_left() {
    let machine = Machine::new();
    machine.kernel.world().reservation.join(OTHER_HOST, 7);
    let agent = machine.agent();
    ready(agent.attach(1, reserved()).await);
    let ask = || Ask::Preempt { key: key(1), victims: vec![key(7), key(8)], deadline: soon() };
    let (left, aborted) = left_and_aborted(agent.ask(1, ask()).await);
    assert_eq!(
        (&left[..], &aborted[..]),
        (&[1][..], &[7][..]),
        "8 was not registered: nothing of it was aborted"
    );
    let (left, aborted) = left_and_aborted(agent.ask(1, ask()).await);
    assert_eq!((&left[..], &aborted[..]), (&[1][..], &[][..]), "done before");
    let preempted = machine
        .kernel
        .world()
        .reservation
        .done
        .iter()
        .filter(|one| **one == Command::PreemptAndAbort)
        .count();
    assert_eq!(preempted, 1);
}

#[tokio::test]
async fn a_helper_without_a_reserved_grant_registers_first_and_gives_it_back() {
    let machine = Machine::new();
    machine.kernel.world().reservation.join(OTHER_HOST, 7);
    let agent = machine.agent();
    agent.ready(1, &[1, 2]).await;
    let ask = Ask::Preempt { key: key(1), victims: vec![key(7)], deadline: soon() };
    assert_eq!(left(agent.ask(1, ask).await), [1]);
    absent(agent.detach(1).await);
    assert_eq!(keys(&machine), Vec::<u64>::new());
}

#[tokio::test]
async fn only_a_node_with_a_standing_grant_and_a_live_path_preempts() {
    let (machine, agent) = Machine::started();
    let ask = || Ask::Preempt { key: key(1), victims: vec![key(7)], deadline: soon() };
    assert_eq!(failed(agent.ask(1, ask()).await).0, clause::GRANT);
    ready(agent.attach(2, reserved()).await);
    assert!(matches!(agent.ask(1, ask()).await, Outcome::StaleEpoch(_)));
    let other = Ask::Preempt { key: key(3), victims: vec![key(7)], deadline: soon() };
    assert_eq!(failed(agent.ask(2, other).await).0, clause::GRANT);
    machine.kernel.change(|world| {
        world.set_state(1, "connecting");
        world.set_state(2, "connecting");
    });
    assert_eq!(failed(agent.ask(2, ask()).await).0, clause::RESERVATION);
}

#[tokio::test]
async fn a_revoke_does_not_wait_for_a_preemption_that_takes_its_time() {
    let machine = Machine::new();
    machine.kernel.world().reservation.join(OTHER_HOST, 7);
    let agent = machine.agent();
    ready(agent.attach(1, Grant { reserve: None, ..reserved() }).await);
    machine.kernel.change(|world| world.reservation.hangs = true);
    let preempt = agent.directive(1, Ask::Preempt { key: key(1), victims: vec![key(7)], deadline: soon() });
    agent.submit(&preempt);
    let volume = agent.fleet.volumes().remove(0);
    while volume.gate.holder().is_none() {
        tokio::task::yield_now().await;
    }
    agent.submit(&agent.directive(1, Ask::Revoke { deadline: soon() }));
    let first = agent.result().await;
    assert_eq!(failed(first.outcome).0, clause::SUPERSEDED);
    machine.kernel.change(|world| world.reservation.hangs = false);
    absent(agent.result().await.outcome);
}

async fn attach_with(agent: &Agent, seq: u64, letter: Option<char>) -> Outcome {
    attach_by(agent, seq, letter, soon()).await
}

async fn attach_by(agent: &Agent, seq: u64, letter: Option<char>, deadline: Instant) -> Outcome {
    let secret = letter.map(|letter| GivenSecret { secret: secret(letter), generation: None });
    agent.ask(seq, Ask::Attach { grant: grant(&[1, 2]), secret, deadline }).await
}

async fn attach_dated(agent: &Agent, letter: char, generation: u64) -> Outcome {
    let generation = Some(epoch(generation));
    let secret = Some(GivenSecret { secret: secret(letter), generation });
    let deadline = Instant::now() + Duration::from_secs(2);
    agent.ask(1, Ask::Attach { grant: grant(&[1, 2]), secret, deadline }).await
}

fn secrets(machine: &Machine) -> Vec<DhchapSecret> {
    machine.kernel.world().secrets.values().cloned().collect()
}

async fn rekey(agent: &Agent, letter: char, generation: u64) -> Outcome {
    let generation = epoch(generation);
    agent.ask(1, Ask::Rekey { secret: secret(letter), generation, deadline: soon() }).await
}

#[tokio::test]
async fn a_missing_or_refused_secret_is_a_clause_of_its_own() {
    let machine = Machine::new();
    machine.kernel.world().wanted_secret = Some(secret('A'));
    let agent = machine.agent();
    let at_once = || Instant::now() + Duration::from_millis(1500);
    let (clause, message, _) = failed(attach_by(&agent, 1, None, at_once()).await);
    assert_eq!(clause, clause::AUTHENTICATION);
    assert!(message.contains("no secret was given"), "{message}");
    let (clause, message, _) = failed(attach_by(&agent, 2, Some('B'), at_once()).await);
    assert_eq!(clause, clause::AUTHENTICATION);
    assert!(message.contains("did not accept the secret") && !message.contains("BBBB"), "{message}");
    ready(attach_with(&agent, 3, Some('A')).await);
    let record = std::fs::read_dir(machine.dir.path().join("ledger")).unwrap().flatten();
    for file in record {
        let text = std::fs::read_to_string(file.path()).unwrap_or_default();
        assert!(!text.contains("AAAA") && !text.contains("DHHC"), "a secret on disk: {text}");
    }
}

#[tokio::test]
async fn every_controller_gets_a_new_secret_and_an_older_one_changes_nothing() {
    let (machine, agent) = Machine::started();
    ready(attach_with(&agent, 1, Some('A')).await);
    assert!(matches!(rekey(&agent, 'B', 5).await, Outcome::Rekeyed));
    assert_eq!(secrets(&machine), [secret('B'), secret('B')]);
    assert!(matches!(rekey(&agent, 'B', 5).await, Outcome::Rekeyed), "idempotent");
    assert_eq!(failed(rekey(&agent, 'A', 4).await).0, clause::SUPERSEDED);
    assert!(matches!(attach_with(&agent, 1, Some('A')).await, Outcome::Ready(_)), "which may be an old one");
    assert_eq!(secrets(&machine), [secret('B'), secret('B')]);
}

#[tokio::test]
async fn a_newer_secret_of_a_repeated_attach_replaces_one_that_came_by_rekey() {
    let (machine, agent) = Machine::started();
    ready(attach_dated(&agent, 'A', 4).await);
    assert!(matches!(rekey(&agent, 'B', 5).await, Outcome::Rekeyed));
    // The secret changed while the device was lost.
    machine.kernel.change(|world| {
        world.controllers.clear();
        world.secrets.clear();
        world.wanted_secret = Some(secret('C'));
    });
    ready(attach_dated(&agent, 'C', 6).await);
    assert_eq!(secrets(&machine), [secret('C'), secret('C')]);
    assert_eq!(failed(rekey(&agent, 'B', 5).await).0, clause::SUPERSEDED);
}

#[tokio::test]
async fn an_older_secret_of_a_doubled_attach_changes_nothing_after_a_restart() {
    let (machine, agent) = Machine::started();
    ready(attach_dated(&agent, 'A', 4).await);
    assert!(matches!(rekey(&agent, 'B', 5).await, Outcome::Rekeyed));
    ready(attach_dated(&agent, 'A', 4).await);
    assert_eq!(secrets(&machine), [secret('B'), secret('B')]);
    drop(agent);
    let agent = machine.agent();
    ready(attach_dated(&agent, 'A', 4).await);
    assert!(matches!(attach_with(&agent, 1, Some('A')).await, Outcome::Ready(_)), "of unknown generation");
    assert_eq!(secrets(&machine), [secret('B'), secret('B')]);
    // A path that it has to make again gets the newer one, too.
    machine.kernel.change(|world| {
        world.wanted_secret = Some(secret('B'));
        let gone = world.controllers.remove(1);
        world.secrets.remove(gone.name.as_str());
    });
    assert_eq!(ready(attach_dated(&agent, 'A', 4).await).paths.len(), 2);
    assert_eq!(secrets(&machine), [secret('B'), secret('B')]);
}

#[tokio::test]
async fn a_controller_without_a_secret_cannot_be_rekeyed_and_is_named() {
    let (_machine, agent) = Machine::started();
    ready(attach_with(&agent, 1, None).await);
    let (clause, message, _) = failed(rekey(&agent, 'B', 5).await);
    assert_eq!(clause, clause::AUTHENTICATION);
    assert!(message.contains("nvme0") && message.contains("connected without one"), "{message}");
}

#[tokio::test]
async fn a_repeated_attach_brings_controllers_up_to_date() {
    let (machine, agent) = Machine::started();
    ready(attach_with(&agent, 1, Some('A')).await);
    drop(agent);
    let agent = machine.agent();
    ready(attach_with(&agent, 1, Some('B')).await);
    assert_eq!(secrets(&machine), [secret('B'), secret('B')]);
}

#[tokio::test]
async fn after_an_agent_restart_a_path_is_repaired_with_the_kernels_secret() {
    let (machine, agent) = Machine::started();
    ready(attach_with(&agent, 1, Some('A')).await);
    drop(agent);
    machine.kernel.change(|world| {
        world.wanted_secret = Some(secret('A'));
        let gone = world.controllers.remove(1);
        world.secrets.remove(gone.name.as_str());
    });
    let agent = machine.agent();
    agent.fleet.inventory().await.unwrap();
    let volume = &agent.fleet.volumes()[0];
    volume.memory().repair = crate::volume::attach::backoff::Backoff::overdue([portal(1), portal(2)]);
    volume.repair(&watch::channel(Link::Up).1).await;
    machine.until("the path is repaired", |world| world.controllers.len() >= 2).await;
    assert_eq!(secrets(&machine), [secret('A'), secret('A')]);
}
