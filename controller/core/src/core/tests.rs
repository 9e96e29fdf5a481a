//! Behaviour, one event at a time, without a world: what is asked for, what is answered, in which words.

use super::*;
use crate::*;

pub(super) struct Bench {
    pub(super) core: Core,
    pub(super) now: u64,
    config: Config,
    /// Of every volume that is published.
    pub(super) min_fence: MinFence,
    requests: u64,
    sessions: u64,
    /// As a store would have it.
    pub(super) stored: BTreeMap<VolumeId, VolumeRecord>,
    pub(super) effects: Vec<Effect>,
}

pub(super) fn v() -> VolumeId {
    VolumeId::new("vol").expect("a volume id")
}

pub(super) fn n(name: &str) -> NodeId {
    NodeId::new(name).expect("a node id")
}

pub(super) fn nqn(name: &str) -> HostNqn {
    HostNqn::new(format!("nqn.2014-08.org.nvmexpress:uuid:{name}")).expect("a host NQN")
}

pub(super) fn identity(name: &str, boot: &str) -> NodeIdentity {
    NodeIdentity {
        host_nqn: nqn(name),
        host_id: format!("id-{name}"),
        storage_addresses: vec![format!("192.0.2.{}", name.len())],
        boot_id: boot.into(),
    }
}

fn spec(access: Access) -> VolumeSpec {
    VolumeSpec {
        id: v(),
        access,
        subsystem_nqn: "nqn.2026-01.io.cleat:vol".into(),
        portals: vec!["192.0.2.100:4420".into()],
        size_bytes: 1 << 30,
        min_fence: MinFence::default(),
    }
}

pub(super) fn ready() -> Outcome {
    Outcome::Ready { identity: Identity { namespace_uuid: "u".into(), nguid: String::new() } }
}

pub(super) fn absent(state: &str) -> Outcome {
    let deleted = vec![Deleted { controller: "nvme0".into(), state: state.into() }];
    Outcome::Absent(Absence { deleted })
}

pub(super) fn observed_of(phase: ObservedPhase) -> Observed {
    Observed { volume: v(), epoch: None, ended: false, phase, live_paths: 2, unready: String::new() }
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(super) fn with(config: Config) -> Self {
        let (core, effects) = Core::rebuild(config.clone(), 7, Vec::new(), UnixMillis(0));
        assert!(effects.is_empty());
        Self {
            core,
            now: 0,
            config,
            min_fence: MinFence::default(),
            requests: 0,
            sessions: 0,
            stored: BTreeMap::new(),
            effects: Vec::new(),
        }
    }

    pub(super) fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.event(Event::Tick);
    }

    pub(super) fn all_rds_asked(&self) -> Vec<RdsRequest> {
        let asked = |e: &Effect| match e {
            Effect::Rds { request, .. } => Some(request.clone()),
            _ => None,
        };
        self.effects.iter().filter_map(asked).collect()
    }

    /// Takes the event in; `self.effects` are what came of it.
    pub(super) fn event(&mut self, event: Event) {
        self.now += 1;
        self.effects = self.core.step(UnixMillis(self.now), event);
        for effect in &self.effects {
            match effect {
                Effect::Persist(record) => {
                    drop(self.stored.insert(record.spec.id.clone(), (**record).clone()))
                }
                Effect::Forget(volume) => drop(self.stored.remove(volume)),
                _ => {}
            }
        }
    }

    pub(super) fn restart(&mut self) {
        let records = self.stored.values().cloned().collect();
        let (core, effects) =
            Core::rebuild(self.config.clone(), self.core.term() + 1, records, UnixMillis(self.now));
        (self.core, self.effects) = (core, effects);
    }

    pub(super) fn session(&self, name: &str) -> SessionId {
        match &self.core.nodes[&n(name)].session {
            Session::Up { id, .. } => id.clone(),
            Session::Silent { .. } => SessionId::new("gone").expect("a session id"),
        }
    }

    pub(super) fn hello(&mut self, name: &str, identity: NodeIdentity) {
        self.sessions += 1;
        let session = SessionId::new(format!("s{}", self.sessions)).expect("a session id");
        self.event(Event::SessionUp { node: n(name), session, identity });
    }

    pub(super) fn up(&mut self, name: &str, boot: &str, volumes: Vec<Observed>) {
        self.hello(name, identity(name, boot));
        self.event(Event::Inventory { node: n(name), session: self.session(name), volumes });
    }

    pub(super) fn silent(&mut self, name: &str) {
        let session = self.session(name);
        self.event(Event::SessionLost { node: n(name), session });
    }

    pub(super) fn publish(&mut self, name: &str, access: Access) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.event(Event::Publish {
            request,
            node: n(name),
            spec: VolumeSpec { min_fence: self.min_fence, ..spec(access) },
            read_only: false,
        });
        request
    }

    pub(super) fn unpublish(&mut self, name: &str) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.event(Event::Unpublish { request, volume: v(), node: Some(n(name)) });
        request
    }

    pub(super) fn rds(&mut self, result: Result<(), RdsError>) {
        let operation = self.rds_asked().expect("the RDS was asked").0;
        self.event(Event::RdsDone { operation, result });
    }

    pub(super) fn rds_asked(&self) -> Option<(OperationId, RdsRequest)> {
        self.effects.iter().find_map(|e| match e {
            Effect::Rds { operation, request } => Some((*operation, request.clone())),
            _ => None,
        })
    }

    pub(super) fn directed(&self) -> Option<(NodeId, OperationId, Directive)> {
        self.effects.iter().find_map(|e| match e {
            Effect::Direct { node, operation, directive, .. } => {
                Some((node.clone(), *operation, directive.clone()))
            }
            _ => None,
        })
    }

    /// The agent answers what it was told in the last step.
    pub(super) fn agent(&mut self, outcome: Outcome) {
        let (node, operation, directive) = self.directed().expect("an agent was told something");
        let epoch = match directive {
            Directive::Attach { grant } => grant.epoch,
            Directive::Detach { epoch, .. }
            | Directive::Revoke { epoch, .. }
            | Directive::Preempt { epoch, .. }
            | Directive::Rekey { epoch, .. } => epoch,
        };
        let session = self.session(node.as_str());
        self.event(Event::AgentDone { node, session, operation, volume: v(), epoch, outcome });
    }

    pub(super) fn reply(&self, request: RequestId) -> Option<Result<Reply, Refusal>> {
        self.effects.iter().find_map(|e| match e {
            Effect::Reply { request: r, result } if *r == request => Some(result.clone()),
            _ => None,
        })
    }

    pub(super) fn refusal(&self, request: RequestId) -> Refusal {
        self.reply(request).expect("an answer").expect_err("a refusal")
    }

    pub(super) fn attach(&mut self, name: &str, access: Access) {
        let request = self.publish(name, access);
        self.rds(Ok(()));
        self.agent(ready());
        assert!(matches!(self.reply(request), Some(Ok(Reply::Published(_)))), "{:?}", self.effects);
    }

    pub(super) fn phase(&self, name: &str) -> Option<&'static str> {
        self.core.volumes.get(&v())?.attachment(&n(name)).map(|a| a.phase.name())
    }

    pub(super) fn observed(&self, phase: ObservedPhase) -> Observed {
        let epoch = self.core.volumes[&v()].attachments.first().map(|a| a.epoch);
        Observed { epoch, ..observed_of(phase) }
    }
}

#[test]
fn publish_allows_the_host_then_tells_the_agent_and_answers_when_the_agent_has_proven_it() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
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
fn publish_to_a_node_without_a_session_says_since_when() {
    let mut b = Bench::new();
    let request = b.publish("a", Access::Rwo);
    assert!(matches!(b.refusal(request), Refusal::Silent { since: UnixMillis(0), .. }));
    b.up("a", "boot", vec![]);
    b.silent("a");
    let since = b.now;
    let request = b.publish("a", Access::Rwo);
    let refusal = b.refusal(request);
    assert!(matches!(&refusal, Refusal::Silent { since: s, .. } if s.0 == since));
    assert!(refusal.to_string().contains("1970-01-01T00:00:00Z"), "{refusal}");
}

#[test]
fn a_second_node_on_rwo_is_refused_with_the_holder_and_the_hint() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    b.up("bb", "boot", vec![]);
    b.attach("a", Access::Rwo);
    let request = b.publish("bb", Access::Rwo);
    let words = b.refusal(request).to_string();
    assert!(
        words.ends_with("already attached to node a. For multi-node access, use RWX with block volumes."),
        "{words}"
    );
}

#[test]
fn a_third_node_on_rwx_is_refused_with_both_holders_named() {
    let mut b = Bench::new();
    for name in ["a", "bb", "ccc"] {
        b.up(name, "boot", vec![]);
    }
    b.attach("a", Access::RwxBlock);
    b.attach("bb", Access::RwxBlock);
    let request = b.publish("ccc", Access::RwxBlock);
    let words = b.refusal(request).to_string();
    assert!(
        words.ends_with(
            "already attached to 2 nodes (migration limit). Wait for migration to complete. Attached nodes: a, bb"
        ),
        "{words}"
    );
}

#[test]
fn a_repeated_publish_joins_or_repeats_and_one_with_other_arguments_is_refused() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
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
fn unpublish_answers_after_the_agents_proof_and_the_rds_and_grants_who_waits_at_that_moment() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    b.up("bb", "boot", vec![]);
    b.attach("a", Access::Rwo);
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
fn unpublish_of_a_node_that_holds_nothing_succeeds_and_changes_nothing_for_others() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    b.attach("a", Access::Rwo);
    let request = b.unpublish("bb");
    assert_eq!(b.effects, vec![Effect::Reply { request, result: Ok(Reply::Unpublished) }]);
    assert_eq!(b.phase("a"), Some("Ready"));
}

#[test]
fn a_device_in_use_refuses_the_detach_names_the_user_and_stays_attached() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    b.attach("a", Access::Rwo);
    let request = b.unpublish("a");
    b.agent(Outcome::Busy { holders: vec!["pid 312 (qemu)".into()] });
    assert!(b.refusal(request).to_string().contains("pid 312 (qemu)"));
    assert_eq!(b.phase("a"), Some("Ready"));
}

#[test]
fn a_controller_that_was_not_live_when_deleted_is_not_drained_until_the_bound_has_passed() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    b.attach("a", Access::Rwo);
    let request = b.unpublish("a");
    b.agent(absent("connecting"));
    assert!(b.rds_asked().is_none(), "gone is not drained: {:?}", b.effects);
    let waits = b.core.waits_for(&v(), &n("a")).expect("it waits");
    assert!(waits.contains("drain bound"), "{waits}");
    b.now += Config::default().drain_bound_ms - 1_000;
    b.event(Event::Tick);
    assert!(b.reply(request).is_none() && b.rds_asked().is_none(), "{:?}", b.effects);
    b.now += 2_000;
    b.event(Event::Tick);
    let words = b.refusal(request).to_string();
    assert!(words.contains("it goes on, and a repeated call joins it"), "{words}");
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Deny { .. }))));
    b.rds(Ok(()));
    let evidence = &b.core.volumes[&v()].past_evidence[0];
    assert!(matches!(evidence.drained, Drained::Bound { .. }));
    assert!(evidence.assumption().is_some(), "an assumption is named as one");
}

#[test]
fn an_attach_that_fails_is_refused_with_its_clause_and_ended_on_the_node_before_anybody_else_has_the_volume()
{
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    let request = b.publish("a", Access::Rwo);
    b.rds(Ok(()));
    let (clause, message) = ("paths".to_owned(), "0 of 2 portals are live".to_owned());
    b.agent(Outcome::Failed { clause, message, nothing_left: true });
    assert!(b.refusal(request).to_string().contains("paths: 0 of 2 portals are live"));
    assert!(matches!(b.directed(), Some((_, _, Directive::Detach { .. }))), "{:?}", b.effects);
    assert!(b.rds_asked().is_none(), "what it was told could still make it connect: {:?}", b.effects);
    b.agent(Outcome::Absent(Absence::default()));
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Deny { .. }))), "the host is taken off the list");
    b.rds(Ok(()));
    assert_eq!(b.phase("a"), None);
}

#[test]
fn an_rds_that_cannot_be_reached_is_said_so_and_the_grant_is_taken_back_before_it_is_made_anew() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    let request = b.publish("a", Access::Rwo);
    b.rds(Err(RdsError::Unreachable("timed out".into())));
    assert!(matches!(b.refusal(request), Refusal::Rds { error: RdsError::Unreachable(_), .. }));
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Deny { .. }))), "it may have been done");
    b.rds(Ok(()));
    assert_eq!(b.phase("a"), None);
    b.attach("a", Access::Rwo);
}

#[test]
fn another_namespace_than_the_pinned_one_is_refused() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    b.up("bb", "boot", vec![]);
    b.attach("a", Access::RwxBlock);
    let request = b.publish("bb", Access::RwxBlock);
    b.rds(Ok(()));
    let identity = Identity { namespace_uuid: "other".into(), nguid: String::new() };
    b.agent(Outcome::Ready { identity });
    assert!(matches!(b.refusal(request), Refusal::NotReady { clause, .. } if clause == "identity"));
    assert_eq!(b.phase("bb"), Some("Draining"));
}

#[test]
fn answers_to_other_operations_sessions_or_epochs_change_nothing() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
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
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    b.attach("a", Access::Rwo);
    b.silent("a");
    let request = b.unpublish("a");
    assert!(b.reply(request).is_none());
    b.now += Config::default().request_limit_ms;
    b.event(Event::Tick);
    let words = b.refusal(request).to_string();
    assert!(words.contains("the agent of node a, silent since"), "{words}");
    assert_eq!(b.phase("a"), Some("Draining"), "and it goes on");
    b.up("a", "boot", vec![b.observed(ObservedPhase::Ready)]);
    assert!(matches!(b.directed(), Some((_, _, Directive::Detach { .. }))));
}

#[test]
fn a_reboot_under_an_attachment_attaches_again_under_the_same_epoch_and_is_remembered() {
    let mut b = Bench::new();
    b.up("a", "boot-1", vec![]);
    b.attach("a", Access::Rwo);
    b.silent("a");
    b.up("a", "boot-2", vec![b.observed(ObservedPhase::Absent)]);
    assert!(matches!(b.directed(), Some((_, _, Directive::Attach { grant })) if grant.epoch.seq == 1));
    b.agent(ready());
    b.unpublish("a");
    b.agent(absent("live"));
    assert!(b.rds_asked().is_none(), "what the first boot wrote may still land: {:?}", b.effects);
}

#[test]
fn a_path_that_was_lost_and_came_back_is_not_drained_at_once() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    b.attach("a", Access::Rwo);
    for phase in [ObservedPhase::Degraded, ObservedPhase::Ready] {
        let (session, observed) = (b.session("a"), b.observed(phase));
        b.event(Event::Delta { node: n("a"), session, observed });
        assert!(
            b.effects.iter().any(|e| matches!(e, Effect::Notice(Notice::Health { to, .. }) if *to == phase))
        );
    }
    b.unpublish("a");
    b.agent(absent("live"));
    assert!(b.rds_asked().is_none(), "a write may have been on that path: {:?}", b.effects);
}

#[test]
fn a_device_that_the_kernel_gave_up_and_made_again_during_a_detach_is_not_drained_at_once() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    b.attach("a", Access::Rwo);
    b.unpublish("a");
    let told = b.effects.clone();
    for phase in [ObservedPhase::Absent, ObservedPhase::Ready] {
        let (session, observed) = (b.session("a"), b.observed(phase));
        b.event(Event::Delta { node: n("a"), session, observed });
    }
    b.effects = told;
    b.agent(absent("live"));
    assert!(b.rds_asked().is_none(), "what the first connection carried may still land: {:?}", b.effects);
}

#[test]
fn a_restart_in_mid_migration_keeps_both_sides_their_roles_and_the_record() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    b.up("bb", "boot", vec![]);
    b.attach("a", Access::RwxBlock);
    b.attach("bb", Access::RwxBlock);
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
    b.now += Config::default().drain_bound_ms;
    b.event(Event::Tick);
    b.rds(Ok(()));
    let record = &b.core.volumes[&v()];
    let migration = record.migration.as_ref().expect("a record");
    assert_eq!(migration.result, MigrationResult::Completed);
    let steps: Vec<_> = migration.steps.iter().map(|(s, _)| s.name()).collect();
    assert_eq!(
        steps,
        ["granted", "target_connecting", "target_ready", "releasing", "released", "evidence", "done"]
    );
    assert_eq!(record.attachments[0].role, Role::Primary);
}

#[test]
fn a_volume_held_without_a_grant_blocks_others_and_can_be_published_or_unpublished_there() {
    let mut b = Bench::with(Config { drain_bound_ms: 5_000, ..Config::default() });
    b.up("a", "boot", vec![]);
    let ghost = Observed {
        volume: v(),
        epoch: None,
        ended: false,
        phase: ObservedPhase::Ready,
        live_paths: 2,
        unready: String::new(),
    };
    b.up("bb", "boot", vec![ghost]);
    assert_eq!(b.phase("bb"), Some("Ghost"));
    let request = b.publish("a", Access::Rwo);
    assert!(matches!(b.refusal(request), Refusal::AttachedElsewhere { .. }));
    let request = b.unpublish("bb");
    b.agent(absent("live"));
    assert!(b.rds_asked().is_none(), "a path may have broken before it was heard of, and come back");
    b.pass(5_000);
    b.rds(Ok(()));
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
}

#[test]
fn two_nodes_with_one_identity_are_refused_with_both_names() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    let stolen = NodeIdentity { boot_id: "boot-2".into(), ..identity("a", "boot") };
    b.hello("bb", stolen);
    let Some(Effect::RefuseSession { reason, .. }) = b.effects.first() else { panic!("{:?}", b.effects) };
    assert!(reason.contains("nodes bb and a both claim"), "{reason}");
    // And two hosts under one node name.
    let other = identity("zzzz", "boot-9");
    b.hello("a", other);
    let Some(Effect::RefuseSession { reason, .. }) = b.effects.first() else { panic!("{:?}", b.effects) };
    assert!(reason.contains("two hosts claim to be node a"), "{reason}");
}

#[test]
fn a_later_controllers_epoch_makes_this_one_step_down() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    b.publish("a", Access::Rwo);
    b.rds(Ok(()));
    b.agent(Outcome::Stale { highest: Epoch { term: 99, seq: 1 }, ended: false });
    assert!(b.effects.iter().any(|e| matches!(e, Effect::StepDown { .. })), "{:?}", b.effects);
}

#[test]
fn a_volume_is_deleted_only_when_nobody_has_it_and_nobody_gets_it_meanwhile() {
    let mut b = Bench::new();
    b.up("a", "boot", vec![]);
    b.attach("a", Access::Rwo);
    b.event(Event::DeleteBegins { request: RequestId(100), volume: v() });
    assert!(matches!(b.refusal(RequestId(100)), Refusal::StillAttached { .. }));
    b.unpublish("a");
    b.agent(absent("live"));
    b.rds(Ok(()));
    b.event(Event::DeleteBegins { request: RequestId(101), volume: v() });
    assert_eq!(b.reply(RequestId(101)), Some(Ok(Reply::MayDelete)));
    let request = b.publish("a", Access::Rwo);
    assert!(matches!(b.refusal(request), Refusal::Deleting { .. }));
    b.event(Event::DeleteEnded { volume: v(), deleted: true });
    assert_eq!(b.effects, vec![Effect::Forget(v())]);
}
