//! What directives do, on a kernel made of memory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::volume::outcome::Outcome;
use crate::volume::state::VolumePhase;
use tokio::time::Instant;

use crate::ledger::Grant;
use crate::testing::agent::{Agent, Machine, absent, epoch, failed, grant, pending, ready, states, volume};
use crate::testing::kernel::{ConnectAnswer, Kernel, SIZE, portal};
use crate::volume::directive::Ask;

const SOON: Duration = Duration::from_millis(400);
const FOREIGN: &str = "nqn.2014-08.org.nvmexpress:uuid:99999999-9999-9999-9999-999999999999";

/// A Verify that is about no pod.
fn look() -> Ask {
    Ask::Verify { pods: BTreeSet::new(), others: BTreeSet::new() }
}

#[tokio::test]
async fn an_attach_connects_every_portal_and_says_ready_with_what_it_proved() {
    let (_node, agent) = Machine::started();
    let state = agent.ready(1, &[1, 2]).await;
    assert_eq!(state.phase, VolumePhase::Ready);
    assert_eq!(state.paths.len(), 2);
    assert_eq!(state.identity.unwrap().size_bytes, SIZE);
    assert_eq!(agent.entry().await.unwrap().may_have_written, [portal(1), portal(2)]);
}

#[tokio::test]
async fn a_repeated_attach_changes_nothing_and_a_missing_portal_is_added() {
    let (node, agent) = Machine::holding(1, &[1]).await;
    agent.ready(1, &[1]).await;
    assert_eq!(node.kernel.world().connects, [portal(1)]);
    let state = agent.ready(1, &[1, 2]).await;
    assert_eq!(state.paths.len(), 2);
    assert_eq!(node.kernel.world().connects, [portal(1), portal(2)]);
    assert!(node.kernel.world().deleted.is_empty());
}

#[tokio::test]
async fn an_observation_reported_late_does_not_undo_a_later_one() {
    let (node, agent) = Machine::holding(1, &[1, 2]).await;
    let [volume] = &agent.fleet.volumes()[..] else { panic!("one volume") };

    let both = node.kernel.world().controllers.clone();
    node.kernel.change(|world| drop(world.controllers.pop()));
    let early = volume.observe().await.unwrap();
    node.kernel.change(|world| world.controllers = both);
    let late = volume.observe().await.unwrap();

    assert_eq!(volume.report(&early).phase, VolumePhase::Degraded);
    assert_eq!(volume.report(&late).phase, VolumePhase::Ready);
    assert_eq!(volume.report(&early).phase, VolumePhase::Ready, "of two looks the later knows better");
    assert_eq!(agent.fleet.shared().board.get(&volume.id).unwrap().phase, VolumePhase::Ready);
}

#[tokio::test]
async fn a_part_of_the_paths_that_meets_the_policy_is_ready_and_degraded() {
    let (node, agent) = Machine::started();
    node.kernel.change(|world| world.answer(2, ConnectAnswer::Refuse));
    let state = agent.ready(1, &[1, 2]).await;
    assert_eq!(state.phase, VolumePhase::Degraded);
    assert!(state.unready.unwrap().message.contains("10.0.2.1"));
    assert_eq!(agent.entry().await.unwrap().may_have_written, [portal(1)], "the other was never connected");
    assert_eq!(absent(agent.detach(1).await), states(&[(1, "live")]));
}

#[tokio::test]
async fn a_policy_that_is_not_met_fails_by_the_deadline_and_leaves_nothing() {
    let (node, agent) = Machine::started();
    node.kernel.change(|world| world.answer(2, ConnectAnswer::Refuse));
    let all = Grant { policy: cleat_host::readiness::PathPolicy::All, ..grant(&[1, 2]) };
    let began = Instant::now();
    let (clause, message, nothing_left) = failed(agent.attach_by(1, all, SOON).await);
    assert_eq!(clause, "live-paths");
    assert!(message.contains("10.0.2.1:4420") && message.contains("cannot reach the portal"), "{message}");
    assert!(nothing_left);
    assert!(began.elapsed() >= SOON && began.elapsed() < SOON * 10);
    assert!(node.kernel.world().controllers.is_empty());
    assert_eq!(absent(agent.detach(1).await), [], "nothing was handed out, nothing is to be drained");
}

#[tokio::test]
async fn a_portal_that_comes_to_life_before_the_deadline_is_met() {
    let (node, agent) = Machine::started();
    node.kernel.change(|world| world.answer(1, ConnectAnswer::Refuse));
    let directive = agent
        .directive(1, Ask::Attach { grant: grant(&[1]), secret: None, deadline: Instant::now() + SOON * 20 });
    agent.submit(&directive);
    node.until("it tries again", |world| world.connects.len() >= 2).await;
    node.kernel.change(|world| world.answers.clear());
    ready(agent.result().await.outcome);
}

#[tokio::test]
async fn another_namespace_is_refused_without_waiting_for_the_deadline() {
    let (node, agent) = Machine::started();
    let other = "ffffffff-ffff-ffff-ffff-ffffffffffff".to_owned();
    node.kernel.change(|world| drop(world.uuids.insert("nqn.2026-01.io.cleat:v".into(), other.clone())));
    let (clause, message, nothing_left) = failed(agent.attach(1, grant(&[1, 2])).await);
    assert_eq!(clause, "namespace-identity");
    assert!(message.contains(&other), "{message}");
    assert!(nothing_left && node.kernel.world().controllers.is_empty());
}

#[tokio::test]
async fn a_failed_attach_takes_away_only_what_it_made() {
    let node = Machine::new();
    let before = node.kernel.world().connect("nqn.2026-01.io.cleat:v", 1, crate::testing::kernel::HOST);
    node.kernel.change(|world| world.reads_fail = true);
    let agent = node.agent();
    let (clause, _, nothing_left) = failed(agent.attach_by(1, grant(&[1, 2]), SOON).await);
    assert_eq!(clause, "direct-read");
    assert!(!nothing_left);
    assert_eq!(node.kernel.world().of("v"), [before]);
}

#[tokio::test]
async fn a_detach_deletes_exactly_its_controllers_and_names_their_states() {
    let node = Machine::new();
    let boot_disk = node.kernel.world().connect("nqn.2014-08.org.boot:disk", 1, crate::testing::kernel::HOST);
    let other_volume = node.kernel.world().connect("nqn.2026-01.io.cleat:w", 1, crate::testing::kernel::HOST);
    let agent = node.agent();
    agent.ready(1, &[1, 2]).await;
    node.kernel.change(|world| world.set_state(2, "connecting"));
    assert_eq!(absent(agent.detach(1).await), states(&[(1, "live"), (2, "connecting")]));
    let world = node.kernel.world();
    let left: Vec<_> = world.controllers.iter().map(|one| one.name.to_string()).collect();
    assert_eq!(left, [boot_disk, other_volume]);
    assert_eq!(world.flushed, 1);
}

#[tokio::test]
async fn a_detach_of_a_device_in_use_names_the_user_and_touches_nothing() {
    let (node, agent) = Machine::holding(1, &[1]).await;
    node.kernel.change(|world| world.users = vec!["process 312 (qemu-system-x86)".into()]);
    let Outcome::Busy(busy) = agent.detach(1).await else { panic!("not busy") };
    assert_eq!(busy.holders, ["process 312 (qemu-system-x86)"]);
    assert!(!agent.entry().await.unwrap().ended);
    assert_eq!(agent.state().await.phase, VolumePhase::Ready);
    node.kernel.change(|world| {
        world.users.clear();
        world.users_unknown = true;
    });
    // Nobody is known to use it: the controller may begin to fence.
    let (clause, message, nothing_left) = failed(agent.detach(1).await);
    assert!(message.contains("could not look"), "{message}");
    assert_eq!((clause, nothing_left), ("users", false));
    assert!(!agent.entry().await.unwrap().ended);
    assert!(node.kernel.world().deleted.is_empty());
    node.kernel.change(|world| world.users = vec!["process 312 (qemu-system-x86)".into()]);
    assert_eq!(absent(agent.revoke(1).await), states(&[(1, "live")]), "a revoke asks nobody");
}

#[tokio::test]
async fn what_is_over_changes_nothing() {
    let (node, agent) = Machine::holding(2, &[1]).await;
    for outcome in [agent.attach(1, grant(&[1])).await, agent.detach(1).await, agent.revoke(1).await] {
        let Outcome::StaleEpoch(stale) = outcome else { panic!("{outcome:?}") };
        assert_eq!((stale.highest, stale.ended), (epoch(2), false));
    }
    assert_eq!(agent.state().await.phase, VolumePhase::Ready);
    agent.detach(2).await;
    let late = agent.attach(2, grant(&[1])).await;
    assert!(matches!(late, Outcome::StaleEpoch(ref stale) if stale.ended), "{late:?}");
    assert!(node.kernel.world().controllers.is_empty());
}

#[tokio::test]
async fn a_repeated_detach_answers_with_the_same_proof_also_after_a_restart() {
    let (node, agent) = Machine::holding(1, &[1, 2]).await;
    node.kernel.change(|world| world.set_state(2, "connecting"));
    let first = absent(agent.detach(1).await);
    assert_eq!(absent(agent.detach(1).await), first);
    drop(agent);
    let agent = node.agent();
    let state = agent.state().await;
    assert_eq!(state.phase, VolumePhase::Absent);
    assert!(state.epoch_ended);
    assert_eq!(absent(Outcome::Absent(state.absence.unwrap())), first);
    assert_eq!(absent(agent.detach(1).await), first);
}

#[tokio::test]
async fn a_controller_that_the_kernel_gave_up_is_lost_and_named_at_the_detach() {
    let (node, agent) = Machine::holding(1, &[1, 2]).await;
    node.kernel.change(|world| world.controllers.retain(|one| one.portal() != Some(portal(2))));
    assert_eq!(agent.state().await.phase, VolumePhase::Degraded);
    node.kernel.change(|world| world.controllers.clear());
    assert_eq!(agent.state().await.phase, VolumePhase::Lost);
    assert_eq!(absent(agent.detach(1).await), states(&[(1, "gone"), (2, "gone")]));
}

#[tokio::test]
async fn a_detach_cut_short_is_completed_on_repeat_and_never_attached_again() {
    let (node, agent) = Machine::holding(1, &[1, 2]).await;
    node.kernel.change(|world| world.deletions_hang = true);
    let detach = agent.directive(
        1,
        Ask::Detach { deadline: Instant::now() + Duration::from_millis(50), cut_tickets: false },
    );
    agent.submit(&detach);
    let message = pending(agent.result().await.outcome).message;
    assert!(message.contains("nvme0") && message.contains("in progress"), "{message}");
    // The answer came at its deadline; on a busy machine the deletion may begin only after it.
    let detaching = async {
        while agent.state().await.phase != VolumePhase::Detaching {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), detaching).await.expect("the deletion begins");

    // The process is killed; the kernel finishes one deletion by itself.
    drop(agent);
    let node = Machine { kernel: Arc::new(Kernel::default()), dir: node.dir };
    node.kernel.world().connect("nqn.2026-01.io.cleat:v", 1, crate::testing::kernel::HOST);
    let agent = node.agent_on_a_copy();
    assert_eq!(agent.state().await.phase, VolumePhase::Detaching);
    let again = agent.attach(1, grant(&[1, 2])).await;
    assert!(matches!(again, Outcome::StaleEpoch(_)), "{again:?}");
    assert_eq!(absent(agent.detach(1).await), states(&[(1, "live"), (2, "unknown")]));
}

#[tokio::test]
async fn a_slow_deletion_is_pending_and_then_absent_under_the_same_operation() {
    let (node, agent) = Machine::holding(1, &[1]).await;
    node.kernel.change(|world| world.deletions_hang = true);
    let detach = agent.directive(
        1,
        Ask::Detach { deadline: Instant::now() + Duration::from_millis(50), cut_tickets: false },
    );
    agent.submit(&detach);
    let pending = agent.result().await;
    assert!(matches!(pending.outcome, Outcome::Pending(_)), "{pending:?}");
    agent.submit(&detach);
    node.kernel.change(|world| world.deletions_hang = false);
    let last = agent.result().await;
    assert_eq!(last.operation, pending.operation);
    assert_eq!(absent(last.outcome), states(&[(1, "live")]));
    assert_eq!(
        agent.outbox.len(),
        2,
        "one result of the attach, one of the detach: the repeated directive joined"
    );
}

#[tokio::test]
async fn a_connect_that_hangs_in_the_kernel_is_never_lost_sight_of() {
    let (node, agent) = Machine::started();
    node.kernel.change(|world| world.answer(1, ConnectAnswer::Hang));
    // The agent waits a moment for the connect to come back before it answers.
    let (_, message, nothing_left) = failed(agent.attach_by(1, grant(&[1]), SOON).await);
    assert!(message.contains("no answer yet"), "{message}");
    assert!(!nothing_left, "the kernel may yet connect");
    let detach = agent.directive(
        1,
        Ask::Detach { deadline: Instant::now() + Duration::from_millis(100), cut_tickets: false },
    );
    agent.submit(&detach);
    assert!(pending(agent.result().await.outcome).message.contains("10.0.1.1"));
    node.kernel.change(|world| world.answers.clear());
    absent(agent.result().await.outcome);
    assert!(node.kernel.world().controllers.is_empty());
    assert_eq!(node.kernel.world().deleted.len(), 1, "what came late was taken away");
}

#[tokio::test]
async fn a_detach_calls_off_the_attach_that_it_overtakes() {
    let (node, agent) = Machine::started();
    node.kernel.change(|world| world.answer(1, ConnectAnswer::Refuse));
    let attach = agent
        .directive(1, Ask::Attach { grant: grant(&[1]), secret: None, deadline: Instant::now() + SOON * 40 });
    agent.submit(&attach);
    node.until("it connects", |world| !world.connects.is_empty()).await;
    let began = Instant::now();
    let detach = agent.directive(1, Ask::Detach { deadline: Instant::now() + SOON * 40, cut_tickets: false });
    agent.submit(&detach);
    let (first, second) = (agent.result().await, agent.result().await);
    assert_eq!(first.operation, attach.operation);
    assert_eq!(failed(first.outcome).0, "superseded");
    absent(second.outcome);
    assert!(began.elapsed() < SOON * 20);
}

#[tokio::test]
async fn a_failed_attach_that_is_doubled_on_its_way_is_answered_from_memory() {
    let (node, agent) = Machine::started();
    node.kernel.change(|world| world.answer(1, ConnectAnswer::Refuse));
    let attach =
        agent.directive(1, Ask::Attach { grant: grant(&[1]), secret: None, deadline: Instant::now() + SOON });
    agent.submit(&attach);
    failed(agent.result().await.outcome);
    node.kernel.change(|world| world.answers.clear());
    agent.submit(&attach);
    failed(agent.result().await.outcome);
    assert!(node.kernel.world().controllers.is_empty(), "the controller has heard that nothing is left");
}

#[tokio::test]
async fn a_damaged_record_refuses_grants_and_says_which_file() {
    let (node, agent) = Machine::holding(1, &[1]).await;
    drop(agent);
    let file = node.dir.path().join("ledger/v.json");
    std::fs::write(&file, "{").unwrap();
    let agent = node.agent();
    let (clause, message, nothing_left) = failed(agent.attach(2, grant(&[1])).await);
    assert_eq!(clause, "ledger");
    assert!(message.contains("v.json"), "{message}");
    assert!(!nothing_left);
    let state = agent.state().await;
    assert_eq!(state.phase, VolumePhase::Connecting);
    assert_eq!(state.paths.len(), 1, "what the kernel holds is reported all the same");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "{");
}

#[tokio::test]
async fn a_reading_of_all_volumes_does_not_undo_a_look_at_one_that_it_overlaps() {
    let (node, agent) = Machine::holding(1, &[1, 2]).await;
    let [volume] = &agent.fleet.volumes()[..] else { panic!("one volume") };
    let mut look = volume.observe().await.unwrap();
    look.ended += 10;
    node.kernel.change(|world| drop(world.controllers.pop()));
    let mut all = volume.observe().await.unwrap();
    (all.number, all.ended, all.of_all) = (look.number + 1, look.number + 5, true);
    assert_eq!(volume.report(&look).phase, VolumePhase::Ready);
    assert_eq!(volume.report(&all).phase, VolumePhase::Ready, "it may have been read before");
    (all.number, all.ended) = (look.ended + 1, look.ended + 2);
    assert_eq!(volume.report(&all).phase, VolumePhase::Degraded, "it was read afterwards");
    assert_eq!(volume.report(&look).phase, VolumePhase::Degraded);
}

#[tokio::test]
async fn an_attach_that_has_not_begun_is_in_the_inventory_with_its_grant() {
    let (_node, agent) = Machine::holding(1, &[1]).await;
    agent.detach(1).await;
    let pass = agent.fleet.volume(&volume()).gate.enter("something else").await;
    let (grant, deadline) = (grant(&[1]), Instant::now() + Duration::from_secs(20));
    agent.submit(&agent.directive(2, Ask::Attach { grant, secret: None, deadline }));
    let state = agent.state().await;
    assert_eq!(
        (state.epoch, state.epoch_ended, state.phase),
        (Some(epoch(2)), false, VolumePhase::Connecting)
    );
    assert_eq!(state.absence, None, "what was deleted is of the grant before");
    drop(pass);
    ready(agent.result().await.outcome);
    assert_eq!(agent.state().await.phase, VolumePhase::Ready);
}

#[tokio::test]
async fn after_a_restart_the_inventory_is_complete_from_the_kernel_alone() {
    let (node, agent) = Machine::holding(3, &[1, 2]).await;
    drop(agent);
    let agent = node.agent();
    let state = agent.state().await;
    assert_eq!((state.phase, state.epoch), (VolumePhase::Ready, Some(epoch(3))));
    assert_eq!(state.paths.len(), 2);
    drop(agent);
    // With the ledger lost as well, what the kernel holds is still told.
    let node = Machine { kernel: node.kernel, dir: tempfile::tempdir().unwrap() };
    let agent = node.agent();
    let state = agent.state().await;
    assert_eq!((state.phase, state.epoch), (VolumePhase::Connecting, None));
    assert_eq!(state.unready.unwrap().clause, "grant");
    let detach = agent.detach(7).await;
    assert_eq!(absent(detach), states(&[(1, "live"), (2, "live")]));
    assert!(agent.entry().await.unwrap().ended);
}

#[tokio::test]
async fn after_a_reboot_the_grant_is_connected_when_the_controller_says_so() {
    let (node, agent) = Machine::holding(1, &[1, 2]).await;
    drop(agent);
    let node = Machine { kernel: Arc::default(), dir: node.dir };
    let agent = Agent::start(&node.kernel, node.dir.path(), "boot-2");
    assert_eq!(agent.state().await.phase, VolumePhase::Absent);
    assert_eq!(agent.state().await.absence, None, "what another boot did proves nothing here");
    assert!(node.kernel.world().connects.is_empty());
    agent.ready(1, &[1, 2]).await;
    assert_eq!(absent(agent.detach(1).await), states(&[(1, "live"), (2, "live")]));
}

#[tokio::test]
async fn a_controller_of_another_host_nqn_stays_and_no_absence_is_claimed() {
    let (node, agent) = Machine::holding(1, &[1]).await;
    let other = node.kernel.world().connect("nqn.2026-01.io.cleat:v", 2, FOREIGN);
    let (clause, message, nothing_left) = failed(agent.detach(1).await);
    assert_eq!(clause, "host-nqn");
    assert!(message.contains(&other), "{message}");
    assert!(!nothing_left);
    assert_eq!(node.kernel.world().of("v"), [other]);
}

#[tokio::test]
async fn a_kernel_that_cannot_be_read_is_never_read_as_empty() {
    let (node, agent) = Machine::holding(1, &[1]).await;
    node.kernel.change(|world| world.sysfs_broken = true);
    let (clause, _, nothing_left) = failed(agent.detach(1).await);
    assert_eq!((clause, nothing_left), ("look", false));
    assert!(!agent.entry().await.unwrap().ended);
    assert!(agent.fleet.inventory().await.is_err());
}

#[tokio::test]
async fn verify_looks_afresh_and_says_what_fails() {
    let (node, agent) = Machine::holding(1, &[1]).await;
    ready(agent.ask(1, look()).await);
    node.kernel.change(|world| world.reads_fail = true);
    assert_eq!(failed(agent.ask(1, look()).await).0, "direct-read");
    assert_eq!(agent.state().await.phase, VolumePhase::Lost);
    agent.detach(1).await;
    absent(agent.ask(1, look()).await);
}

#[tokio::test]
async fn a_volume_that_was_only_verified_is_forgotten() {
    let (_node, agent) = Machine::started();
    absent(agent.ask(1, look()).await);
    assert_eq!(agent.fleet.inventory().await.unwrap(), []);
    assert!(agent.fleet.volumes().is_empty());
}

#[tokio::test]
async fn a_volume_in_use_stays_ready_while_it_is_attached_again() {
    let (node, agent) = Machine::holding(1, &[1, 2]).await;
    drop(agent);
    let agent = node.agent();
    assert_eq!(agent.state().await.phase, VolumePhase::Ready);
    // The controller would take any other word for a path that was lost, and its writes for undrained.
    node.kernel.change(|world| world.reads_fail = true);
    let again = agent
        .directive(1, Ask::Attach { grant: grant(&[1, 2]), secret: None, deadline: Instant::now() + SOON });
    agent.submit(&again);
    node.until("it is looked at again", |world| world.checks >= 3).await;
    assert_eq!(agent.state().await.phase, VolumePhase::Ready);
    node.kernel.change(|world| world.reads_fail = false);
    ready(agent.result().await.outcome);
}

#[tokio::test]
async fn a_missing_path_is_repaired_only_while_the_controller_is_there() {
    let (node, agent) = Machine::started();
    node.kernel.change(|world| world.answer(2, ConnectAnswer::Refuse));
    agent.ready(1, &[1, 2]).await;
    node.kernel.change(|world| {
        world.answers.clear();
        world.connects.clear();
    });
    let volume = agent.fleet.volumes().into_iter().find(|one| one.id == volume()).unwrap();
    let (link, linked) = tokio::sync::watch::channel(crate::link::Link::Up);
    volume.repair(&linked).await;
    assert!(node.kernel.world().connects.is_empty(), "what has just gone may come back by itself");
    volume.memory().repair = crate::volume::attach::backoff::Backoff::overdue([portal(2)]);
    link.send_replace(crate::link::Link::Down);
    volume.repair(&linked).await;
    assert!(node.kernel.world().connects.is_empty());
    link.send_replace(crate::link::Link::Up);
    volume.repair(&linked).await;
    volume.connects.quiet().await;
    assert_eq!(node.kernel.world().connects, [portal(2)]);
    assert_eq!(agent.entry().await.unwrap().may_have_written, [portal(1), portal(2)]);
    assert_eq!(agent.state().await.phase, VolumePhase::Ready);
}
