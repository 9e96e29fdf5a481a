//! Behaviour, one event at a time, without a world: what is asked for, what is answered, in which words.

pub(super) use super::testing::*;
use super::*;
use crate::*;

#[test]
fn publish_allows_the_host_then_attaches_and_answers_on_the_proof() {
    let mut b = Harness::hearing(&["a"]);
    let request = b.publish("a", Access::Rwo);
    assert!(matches!(b.effects.first(), Some(Effect::Persist(_))), "durable before anything is asked");
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Allow { .. }))));
    assert!(b.directed().is_none(), "nobody connects before the RDS allows it");
    b.rds(Ok(()));
    assert!(matches!(b.directed(), Some((_, _, Directive::Attach { .. }))));
    assert!(b.reply(request).is_none(), "attached means proven");
    b.agent(ready());
    let Some(Ok(Reply::Published(grant))) = b.reply(request) else { panic!("{:?}", b.effects) };
    assert_eq!(grant.epoch, Epoch { term: 7, seq: 1 });
    let persisted = b.effects.iter().position(|e| matches!(e, Effect::Persist(_)));
    let replied = b.effects.iter().position(|e| matches!(e, Effect::Reply { .. }));
    assert!(persisted < replied, "what was answered survives a crash");
}

#[test]
fn publish_to_a_node_never_heard_of_says_that_it_is_unknown() {
    let mut b = Harness::new();
    let request = b.publish("a", Access::Rwo);
    assert!(matches!(b.refusal(request), Refusal::UnknownNode { .. }));
}

#[test]
fn publish_to_a_silent_node_says_since_when() {
    let mut b = Harness::hearing(&["a"]);
    b.silent("a");
    let since = b.now;
    let request = b.publish("a", Access::Rwo);
    let refusal = b.refusal(request);
    assert_eq!(refusal, Refusal::Silent { node: n("a"), since: UnixMillis(since) });
}

#[test]
fn a_second_node_on_rwo_is_refused_with_the_holder_and_the_hint() {
    let mut b = alone(TargetAbilities::default());
    // What the holder was granted under counts, not what the second one calls it.
    for access in [Access::Rwo, Access::RwxBlock] {
        let request = b.publish("bb", access);
        assert_eq!(b.refusal(request), Refusal::AttachedElsewhere { volume: v(), node: n("a") });
    }
}

#[test]
fn a_third_node_on_rwx_is_refused_with_both_holders_named() {
    let mut b = shared(TargetAbilities::default());
    let request = b.publish("ccc", Access::RwxBlock);
    let nodes = vec![n("a"), n("bb")];
    assert_eq!(b.refusal(request), Refusal::MigrationLimit { volume: v(), nodes });
}

#[test]
fn a_repeated_publish_joins_and_one_with_other_arguments_is_refused() {
    let mut b = Harness::hearing(&["a"]);
    let first = b.publish("a", Access::Rwo);
    let asked = b.effects.clone();
    let second = b.publish("a", Access::Rwo);
    assert!(b.rds_asked().is_none() && b.reply(second).is_none(), "it joins: {:?}", b.effects);
    b.effects = asked;
    b.rds(Ok(()));
    b.agent(ready());
    assert_eq!(b.reply(first), b.reply(second));
    let third = b.publish("a", Access::Rwo);
    assert!(matches!(b.reply(third), Some(Ok(Reply::Published(grant))) if grant.epoch.seq == 1));
    let other = b.publish("a", Access::RwxBlock);
    assert!(matches!(b.refusal(other), Refusal::Incompatible { .. }));
}

#[test]
fn unpublish_answers_after_agent_and_rds_and_grants_who_waits_at_once() {
    let mut b = alone(TargetAbilities::default());
    let detach = b.unpublish("a");
    let told = b.effects.clone();
    let attach = b.publish("bb", Access::Rwo);
    assert!(b.reply(attach).is_none() && b.rds_asked().is_none(), "it waits for the detach: {:?}", b.effects);
    b.effects = told;
    b.agent(absent("live"));
    assert!(b.reply(detach).is_none(), "the RDS still allows the host");
    b.rds(Ok(()));
    assert_eq!(b.reply(detach), Some(Ok(Reply::Unpublished)));
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Allow { host_nqn, .. })) if host_nqn == nqn("bb")));
}

#[test]
fn unpublish_of_a_node_without_it_succeeds_and_changes_nothing() {
    let mut b = Harness::hearing(&["a"]);
    b.attach("a", Access::Rwo);
    let request = b.unpublish("bb");
    assert_eq!(b.effects, vec![Effect::Reply { request, result: Ok(Reply::Unpublished) }]);
    assert_eq!(b.phase("a"), Some("Ready"));
}

#[test]
fn a_device_in_use_refuses_the_detach_names_the_user_and_stays_attached() {
    let mut b = alone(TargetAbilities::default());
    let request = b.unpublish("a");
    b.agent(Outcome::Busy { holders: vec!["pid 312 (qemu)".into()] });
    let holders = vec!["pid 312 (qemu)".to_owned()];
    assert_eq!(b.refusal(request), Refusal::InUse { volume: v(), node: n("a"), holders });
    assert_eq!(b.phase("a"), Some("Ready"));
}

#[test]
fn a_controller_not_live_when_deleted_is_drained_after_the_bound() {
    let mut b = alone(TargetAbilities::default());
    let request = b.detach("a", "connecting");
    assert!(b.rds_asked().is_none(), "gone is not drained: {:?}", b.effects);
    let waits = b.core.waits_for(&v(), &n("a")).expect("it waits");
    assert!(
        matches!(&waits.condition, Condition::DrainBound { node, why: BoundCause::MayHaveBroken, .. } if *node == n("a")),
        "{waits:?}"
    );
    b.pass(Config::default().drain_bound_ms - 1_000);
    assert!(b.reply(request).is_none() && b.rds_asked().is_none(), "{:?}", b.effects);
    b.pass(2_000);
    assert!(matches!(b.refusal(request), Refusal::StillWaiting { .. }), "{:?}", b.effects);
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Close { .. }))));
    b.rds(Ok(()));
    let evidence = &b.core.volumes[&v()].past_evidence[0];
    assert!(matches!(evidence.drained, Drained::Bound { .. }));
}

#[test]
fn a_failed_attach_is_refused_and_ended_before_anybody_else_gets_it() {
    let mut b = Harness::hearing(&["a"]);
    let request = b.publish("a", Access::Rwo);
    b.rds(Ok(()));
    let (clause, message) = ("paths".to_owned(), "0 of 2 portals are live".to_owned());
    b.agent(Outcome::Failed { clause, message, nothing_left: true });
    let unready = NodeTrouble::Clause { clause: "paths".into(), message: "0 of 2 portals are live".into() };
    assert_eq!(b.refusal(request), Refusal::NotReady { volume: v(), node: n("a"), unready });
    assert!(matches!(b.directed(), Some((_, _, Directive::Detach { .. }))), "{:?}", b.effects);
    assert!(b.rds_asked().is_none(), "what it was told could still make it connect: {:?}", b.effects);
    b.agent(Outcome::Absent(Absence::default()));
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Close { .. }))), "the host is taken off the list");
    b.rds(Ok(()));
    assert_eq!(b.phase("a"), None);
}

#[test]
fn an_unreachable_rds_is_named_and_the_grant_goes_before_a_new_one() {
    let mut b = Harness::hearing(&["a"]);
    let request = b.publish("a", Access::Rwo);
    b.rds(Err(RdsFailure::Unreachable("timed out".into())));
    assert!(matches!(b.refusal(request), Refusal::Rds { error: RdsFailure::Unreachable(_), .. }));
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Close { .. }))), "it may have been done");
    b.rds(Ok(()));
    assert_eq!(b.phase("a"), None);
    b.attach("a", Access::Rwo);
}

#[test]
fn another_namespace_than_the_pinned_one_is_refused() {
    let mut b = Harness::hearing(&["a", "bb"]);
    b.attach("a", Access::RwxBlock);
    let request = b.publish("bb", Access::RwxBlock);
    b.rds(Ok(()));
    b.agent(Outcome::Ready { identity: namespace(2), shown: None });
    assert!(matches!(
        b.refusal(request),
        Refusal::NotReady { unready: NodeTrouble::OtherNamespace { .. }, .. }
    ));
    assert_eq!(b.phase("bb"), Some("Draining"));
}

#[test]
fn answers_to_other_operations_sessions_or_epochs_change_nothing() {
    let mut b = Harness::hearing(&["a"]);
    let request = b.publish("a", Access::Rwo);
    b.rds(Ok(()));
    let (node, operation, _) = b.directed().expect("told");
    let before = b.core.clone();
    let epoch = Epoch { term: 7, seq: 1 };
    let wrong = [
        (b.session("a"), OperationId { term: 6, ..operation }, epoch),
        (SessionId::new("old").expect("a session id"), operation, epoch),
        (b.session("a"), operation, Epoch { term: 6, seq: 9 }),
    ];
    for (session, operation, epoch) in wrong {
        b.event(Event::AgentDone {
            node: node.clone(),
            session,
            operation,
            volume: v(),
            epoch,
            outcome: ready(),
        });
        assert_eq!((b.effects.len(), &b.core), (0, &before));
    }
    assert!(b.reply(request).is_none());
}

#[test]
fn a_silent_agent_keeps_an_unpublish_waiting_and_then_it_says_for_whom() {
    let mut b = alone(TargetAbilities::default());
    b.silent("a");
    let request = b.unpublish_waits("a");
    b.pass(Config::default().request_limit_ms);
    let Refusal::CannotFence { agent, .. } = b.refusal(request) else { panic!("{:?}", b.effects) };
    assert_eq!(agent.node, n("a"));
    assert!(matches!(agent.heard, Heard::SilentSince(_)), "{agent:?}");
    assert_eq!(b.phase("a"), Some("Draining"), "and it goes on");
    b.up("a", "boot", vec![b.observed(ObservedPhase::Ready)]);
    assert!(matches!(b.directed(), Some((_, _, Directive::Detach { .. }))));
}

#[test]
fn a_reboot_attaches_again_under_the_same_epoch_and_is_remembered() {
    let mut b = Harness::new();
    b.up("a", "boot-1", vec![]);
    b.attach("a", Access::Rwo);
    b.silent("a");
    b.up("a", "boot-2", vec![b.observed(ObservedPhase::Absent)]);
    assert!(matches!(b.directed(), Some((_, _, Directive::Attach { grant })) if grant.epoch.seq == 1));
    b.agent(ready());
    b.detach("a", "live");
    assert!(b.rds_asked().is_none(), "what the first boot wrote may still land: {:?}", b.effects);
}

#[test]
fn a_path_that_was_lost_and_came_back_is_not_drained_at_once() {
    let mut b = alone(TargetAbilities::default());
    for phase in [ObservedPhase::Degraded, ObservedPhase::Ready] {
        b.says("a", b.observed(phase));
        assert!(
            b.effects.iter().any(|e| matches!(e, Effect::Notice(Notice::Health { to, .. }) if *to == phase))
        );
    }
    b.detach("a", "live");
    assert!(b.rds_asked().is_none(), "a write may have been on that path: {:?}", b.effects);
}

#[test]
fn a_device_that_the_kernel_gave_up_is_not_shown_as_ready() {
    let mut b = alone(TargetAbilities::default());
    let shown =
        |b: &Harness| b.core.phase_shown(&v(), b.core.volumes[&v()].attachment(&n("a")).expect("granted"));
    let tell = |b: &mut Harness, phase, unready: &str| {
        b.says("a", Observed { unready: unready.into(), ..b.observed(phase) });
    };
    assert_eq!((shown(&b), b.core.waits_for(&v(), &n("a"))), ("Ready", None));
    tell(&mut b, ObservedPhase::Degraded, "");
    assert_eq!(shown(&b), "Ready", "it can be used");
    tell(&mut b, ObservedPhase::Lost, "live-paths: lost while held by qemu");
    assert_eq!(shown(&b), "Lost");
    let unready = "live-paths: lost while held by qemu".to_owned();
    let condition = Condition::DeviceBack { node: n("a"), unready };
    assert_eq!(b.core.waits_for(&v(), &n("a")), Some(AttachmentWait { condition, last: None }));
    assert_eq!(b.phase("a"), Some("Ready"), "the grant stands: it may write again at any moment");
    tell(&mut b, ObservedPhase::Ready, "");
    assert_eq!((shown(&b), b.core.waits_for(&v(), &n("a"))), ("Ready", None));
}

#[test]
fn a_device_made_again_during_a_detach_is_not_drained_at_once() {
    let mut b = alone(TargetAbilities::default());
    b.unpublish("a");
    let told = b.effects.clone();
    for phase in [ObservedPhase::Absent, ObservedPhase::Ready] {
        b.says("a", b.observed(phase));
    }
    b.effects = told;
    b.agent(absent("live"));
    assert!(b.rds_asked().is_none(), "what the first connection carried may still land: {:?}", b.effects);
}

#[test]
fn a_restart_in_mid_migration_keeps_both_sides_their_roles_and_the_record() {
    let mut b = shared(TargetAbilities::default());
    b.unpublish("a");
    b.restart();
    let record = &b.core.volumes[&v()];
    let roles: Vec<_> = record.attachments.iter().map(|a| (a.node.as_str(), a.role.name())).collect();
    assert_eq!(roles, [("a", "primary"), ("bb", "migration-target")]);
    b.up("a", "boot", vec![b.observed(ObservedPhase::Ready)]);
    b.agent(absent("live"));
    assert!(
        b.rds_asked().is_none(),
        "nobody watched its paths while the controller was away: {:?}",
        b.effects
    );
    b.pass(Config::default().drain_bound_ms);
    b.rds(Ok(()));
    let record = &b.core.volumes[&v()];
    let migration = record.migration.as_ref().expect("a record");
    assert_eq!((migration.result, migration.left), (MigrationResult::Unattributed, Some(Side::Source)));
    let steps: Vec<_> = migration.steps.iter().map(|taken| taken.step.name()).collect();
    assert_eq!(
        steps,
        ["granted", "target_connecting", "target_ready", "releasing", "released", "evidence", "done"]
    );
    assert_eq!(record.attachments[0].role, Role::Primary);
}

#[test]
fn a_publish_beside_a_detach_is_no_migration() {
    let mut b = Harness::hearing(&["a", "bb"]);
    b.attach("a", Access::RwxBlock);
    b.unpublish("a");
    let asked = b.effects.clone();
    b.publish("bb", Access::RwxBlock);
    let record = &b.core.volumes[&v()];
    assert_eq!((record.holders().len(), &record.migration), (2, &None), "it stops there and starts here");
    b.effects = asked;
    b.agent(absent("live"));
    b.rds(Ok(()));
    let record = &b.core.volumes[&v()];
    assert_eq!((record.attachments[0].role, &record.migration), (Role::Primary, &None));
}

#[test]
fn a_migration_that_follows_another_keeps_four_of_those_before() {
    let mut b = shared(TargetAbilities::default());
    for _ in 0..10 {
        b.detach("bb", "live");
        b.rds(Ok(()));
        b.attach("bb", Access::RwxBlock);
    }
    let record = &b.core.volumes[&v()];
    assert_eq!(record.past_migrations.len(), VolumeRecord::PAST_MIGRATIONS);
    let newest = record.past_migrations[0].target_epoch;
    assert!(record.past_migrations.iter().all(|m| m.is_over() && m.target_epoch <= newest));
    assert_eq!(record.migration.as_ref().map(|m| m.result), Some(MigrationResult::Running));
}

#[test]
fn a_live_path_of_the_target_is_a_step_before_it_is_ready() {
    let mut b = Harness::hearing(&["a", "bb"]);
    b.attach("a", Access::RwxBlock);
    b.publish("bb", Access::RwxBlock);
    b.rds(Ok(()));
    let asked = b.effects.clone();
    let epoch = b.core.volumes[&v()].attachment(&n("bb")).map(|a| a.epoch);
    b.says("bb", Observed { epoch, ..observed_of(ObservedPhase::Connecting) });
    b.effects = asked;
    b.agent(ready());
    let migration = b.core.volumes[&v()].migration.as_ref().expect("a record");
    let steps: Vec<_> = migration.steps.iter().map(|taken| taken.step.name()).collect();
    assert_eq!(steps, ["granted", "target_connecting", "target_connected", "target_ready"]);
}

#[test]
fn a_stray_blocks_others_and_can_be_published_or_unpublished_there() {
    let mut b = Harness::with(Config { drain_bound_ms: 5_000, ..Config::default() });
    b.up("a", "boot", vec![]);
    b.up("bb", "boot", vec![observed_of(ObservedPhase::Ready)]);
    assert_eq!(b.phase("bb"), Some("Stray"));
    let request = b.publish("a", Access::Rwo);
    assert!(matches!(b.refusal(request), Refusal::AttachedElsewhere { .. }));
    let request = b.detach("bb", "live");
    assert!(b.rds_asked().is_none(), "a path may have broken before it was heard of, and come back");
    b.pass(5_000);
    b.rds(Ok(()));
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
}

#[test]
fn two_nodes_with_one_identity_are_refused_with_both_names() {
    let mut b = Harness::hearing(&["a"]);
    let stolen = NodeIdentity { boot_id: boot_id("boot-2"), ..identity("a", "boot") };
    b.hello("bb", stolen);
    let refused = |b: &Harness| match b.effects.first() {
        Some(Effect::RefuseSession { refusal, .. }) => (**refusal).clone(),
        other => panic!("{other:?}"),
    };
    let shared =
        SessionRefusal::SharedIdentity { node: n("bb"), other: n("a"), claim: Claim::HostNqn(nqn("a")) };
    assert_eq!(refused(&b), shared);
    // And two hosts under one node name.
    let other = identity("zzzz", "boot-9");
    b.hello("a", other);
    let (known, new) = ((nqn("a"), host_id("a")), (nqn("zzzz"), host_id("zzzz")));
    assert_eq!(refused(&b), SessionRefusal::TwoHosts { node: n("a"), known, new });
}

#[test]
fn a_silent_namesake_hides_no_node_that_is_heard_and_claims_the_same() {
    let mut b = Harness::hearing(&["a"]);
    b.silent("a");
    b.up("c", "boot", vec![]);
    let of_both = NodeIdentity { host_id: identity("c", "boot").host_id, ..identity("a", "boot") };
    b.hello("bb", of_both);
    let Some(Effect::RefuseSession { refusal, .. }) = b.effects.first() else { panic!("{:?}", b.effects) };
    let (node, other, claim) = (n("bb"), n("c"), Claim::HostId(host_id("c")));
    assert_eq!(**refusal, SessionRefusal::SharedIdentity { node, other, claim });
    assert!(b.core.nodes.contains_key(&n("a")), "who is refused changes nothing");
}

#[test]
fn a_node_that_has_seen_a_later_term_is_quarantined_and_nobody_else() {
    let mut b = Harness::hearing(&["a", "bb"]);
    let request = b.publish("a", Access::Rwo);
    b.rds(Ok(()));
    b.agent(Outcome::Stale { highest: Epoch { term: 99, seq: 1 }, ended: false });
    let later = LaterTerm { volume: v(), highest: Epoch { term: 99, seq: 1 }, term: 7 };
    let unready = NodeTrouble::LaterTerm(later);
    assert_eq!(b.refusal(request), Refusal::NotReady { volume: v(), node: n("a"), unready });
    assert!(matches!(b.core.nodes[&n("a")].standing, Standing::Quarantined { .. }));
    // It carries out no Detach either: nothing is concluded.
    b.agent(Outcome::Stale { highest: Epoch { term: 99, seq: 1 }, ended: false });
    assert_eq!(b.phase("a"), Some("Draining"));
    let request = b.publish("a", Access::Rwo);
    assert!(matches!(b.refusal(request), Refusal::Quarantined { .. }));
    assert_eq!(b.core.nodes[&n("bb")].standing, Standing::Admitted);
}

#[test]
fn a_volume_is_deleted_only_when_nobody_has_or_gets_it() {
    let mut b = alone(TargetAbilities::default());
    b.event(Event::DeleteBegins { request: RequestId(100), volume: v() });
    assert!(matches!(b.refusal(RequestId(100)), Refusal::StillAttached { .. }));
    b.detach("a", "live");
    b.rds(Ok(()));
    b.event(Event::DeleteBegins { request: RequestId(101), volume: v() });
    assert_eq!(b.reply(RequestId(101)), Some(Ok(Reply::MayDelete)));
    let request = b.publish("a", Access::Rwo);
    assert!(matches!(b.refusal(request), Refusal::Deleting { .. }));
    b.event(Event::DeleteEnded { volume: v(), deletion: VolumeDeletion::Done });
    assert_eq!(b.effects, vec![Effect::Forget(v())]);
}

#[test]
fn a_term_that_is_lower_than_a_stored_grants_is_raised_above_it() {
    let mut b = Harness::hearing(&["a"]);
    b.attach("a", Access::RwxBlock);
    let records: Vec<VolumeRecord> = b.stored.values().cloned().collect();
    let granted = records[0].attachments[0].epoch;
    (b.core, b.effects) = Core::rebuild(b.config.clone(), 3, records, UnixMillis(b.now));
    b.up("bb", "boot", vec![]);
    b.publish("bb", Access::RwxBlock);
    let later = b.core.volumes[&v()].attachments[1].epoch;
    assert!(later > granted, "a node obeys nothing below what it has seen: {later} after {granted}");
}
