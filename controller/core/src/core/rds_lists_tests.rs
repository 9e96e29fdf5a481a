use super::super::testing::*;
use super::*;
use crate::*;

fn listed(hosts: &[&str], exported: bool) -> ListedVolume {
    let hosts = hosts.iter().map(|name| nqn(name)).collect();
    ListedVolume { volume: v(), hosts, exported, keeps_list: true, problem: None, at_rest: false }
}

impl Harness {
    /// A restart whose store has these records of volumes (`true`: what was stored) and of nodes.
    fn restart_with(&mut self, volumes: bool, nodes: bool) {
        let volumes = if volumes { self.stored.values().cloned().collect() } else { Vec::new() };
        let nodes = if nodes { self.core.registry.values().cloned().collect() } else { Vec::new() };
        let remembered = Remembered { volumes, nodes, lists_first: true, ..Remembered::default() };
        let term = self.core.term() + 1;
        (self.core, self.effects) =
            Core::rebuild(self.config.clone(), term, remembered, UnixMillis(self.now));
    }

    fn list(&mut self, volumes: Vec<ListedVolume>) {
        self.event(Event::RdsListed { volumes, whole: true });
    }

    fn waits_for(&self) -> Option<Wait> {
        self.core.waiting(&v(), UnixMillis(self.now)).first().map(|w| w.wait.clone())
    }

    /// The oldest request waits for these nodes' reports, and nothing else.
    fn waits_for_reports_of(&self, name: &str) -> bool {
        matches!(self.waits_for(), Some(Wait::Reports { volume, nodes, .. }) if volume == v() && nodes == [n(name)])
    }
}

fn fencing() -> Harness {
    Harness::with(Config { target: able(), ..Config::default() })
}

/// Attached on `a`, whose agent is silent from then on; then a start of the controller.
fn attached_and_restarted(volumes: bool, nodes: bool) -> Harness {
    let mut b = fencing();
    b.up("a", "1", vec![]);
    b.attach("a", Access::Rwo);
    b.silent("a");
    b.restart_with(volumes, nodes);
    b
}

#[test]
fn before_the_rds_has_listed_nothing_is_answered_as_done() {
    let mut b = attached_and_restarted(false, false);
    b.up("b", "1", vec![]);
    b.unpublish_waits("a");
    b.event(Event::RdsNotListed { error: "connection refused".into() });
    let first_list = Wait::FirstList { since: b.core.began, last: Some("connection refused".into()) };
    assert_eq!(b.waits_for(), Some(first_list.clone()));
    let publish = b.publish_waits("b", Access::Rwo);
    b.event(Event::DeleteBegins { request: RequestId(99), volume: v() });
    assert!(matches!(b.refusal(RequestId(99)), Refusal::StillWaiting { .. }));
    b.pass(b.config.request_limit_ms);
    assert!(
        matches!(b.refusal(publish), Refusal::StillWaiting { wait, .. } if *wait == first_list),
        "{:?}",
        b.effects
    );
    assert_eq!(b.rds_asked(), None);
}

#[test]
fn with_the_store_lost_a_listed_host_is_fenced_before_its_detach_ends() {
    let mut b = attached_and_restarted(false, false);
    b.list(vec![listed(&["a"], true)]);
    let holders: Vec<String> = b.core.volumes[&v()].holders().iter().map(ToString::to_string).collect();
    assert!(holders[0].starts_with("unknown-host."), "{holders:?}");
    b.up("bb", "1", vec![]);
    let publish = b.publish("bb", Access::Rwo);
    assert!(matches!(b.refusal(publish), Refusal::AttachedElsewhere { .. }), "another host may write");
    // The node is not known, so that host may be it.
    let unpublish = b.unpublish_waits("a");
    b.pass(b.config.fence_after_ms + 1);
    assert!(
        matches!(b.rds_asked(), Some((_, RdsRequest::Deny { host_nqn, fence: true, .. })) if host_nqn == nqn("a"))
    );
    b.rds(Ok(()));
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Hide { .. }))));
    b.rds(Ok(()));
    assert_eq!(b.reply(unpublish), Some(Ok(Reply::Unpublished)));
    // It is quarantined under its own name once it is heard.
    b.hello("a", identity("a", "1"));
    assert!(matches!(b.core.nodes[&n("a")].standing, Standing::Quarantined { .. }));
}

#[test]
fn every_host_nqn_has_a_name_for_the_host_that_nobody_knows() {
    for text in ["nqn.2014-08.org:x", "nqn.2014-08.a..b:.-x", "nqn.2014-08.-a.:..", "nqn.2014-08.é:ü"] {
        let Ok(nqn) = HostNqn::new(text) else { continue };
        assert!(unknown_host(&nqn).is_some_and(|name| is_unknown_host(&name)), "{text}");
    }
}

#[test]
fn a_node_in_the_registry_is_known_on_the_list_while_it_is_silent() {
    let mut b = attached_and_restarted(false, true);
    b.list(vec![listed(&["a"], true)]);
    assert_eq!(b.core.volumes[&v()].holders(), [n("a")]);
    // Another node is not it.
    let other = b.unpublish("c");
    assert_eq!(b.reply(other), Some(Ok(Reply::Unpublished)), "the one host on the list is a's");
    assert_eq!(b.phase("a"), Some("Stray"));
    let unpublish = b.unpublish_waits("a");
    b.up("a", "1", vec![]);
    b.agent(absent("live"));
    assert_eq!(b.reply(unpublish), None, "nobody knows whether a path had broken before");
    b.rds_does_all();
    assert_eq!(b.core.volumes[&v()].holders(), []);
}

#[test]
fn a_store_rolled_back_to_before_a_grant_lets_nobody_in_beside_it() {
    let mut b = fencing();
    b.up("a", "1", vec![]);
    b.up("bb", "1", vec![]);
    b.attach("a", Access::Rwo);
    let backup = b.stored.clone();
    let unpublish = b.detach("a", "live");
    b.rds_does_all();
    let _ = unpublish;
    b.attach("bb", Access::Rwo);
    b.stored = backup;
    b.restart_with(true, true);
    // By its record a has it, and by the list bb.
    b.up("a", "2", vec![]);
    assert_eq!(b.directed(), None, "nothing is attached before the lists were read");
    b.list(vec![listed(&["bb"], true)]);
    assert_eq!(b.core.volumes[&v()].holders(), [n("a"), n("bb")]);
    assert_eq!((b.rds_asked(), b.directed()), (None, None), "and not beside bb");
    b.unpublish_waits("bb");
    b.pass(b.config.fence_after_ms + 1);
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Deny { host_nqn, .. })) if host_nqn == nqn("bb")));
}

#[test]
fn a_fence_of_an_unknown_host_goes_on_as_its_nodes_when_that_is_heard() {
    let mut b = attached_and_restarted(false, false);
    b.list(vec![listed(&["a"], true)]);
    let host = b.core.volumes[&v()].holders()[0].clone();
    b.fence(80, host.as_str());
    b.up("a", "1", vec![observed_of(ObservedPhase::Ready)]);
    assert!(b.core.volumes[&v()].attachment(&n("a")).is_some());
    assert_eq!(b.reply(RequestId(80)), None, "the node may write");
}

#[test]
fn a_silent_nodes_record_does_not_say_that_it_is_not_an_unknown_host() {
    let mut b = attached_and_restarted(false, true);
    b.list(vec![listed(&["bb"], true)]);
    // It may have been made again since, with another host NQN.
    b.unpublish_waits("a");
}

#[test]
fn a_stray_of_one_node_does_not_settle_what_is_not_known_of_the_others() {
    let mut b = attached_and_restarted(false, true);
    let unlisted = || vec![ListedVolume { keeps_list: false, ..listed(&[], true) }];
    b.list(unlisted());
    b.up("bb", "1", vec![observed_of(ObservedPhase::Ready)]);
    b.list(unlisted());
    b.unpublish_waits("a");
    assert!(b.waits_for_reports_of("a"), "{:?}", b.waits_for());
}

#[test]
fn what_a_list_lacks_for_a_moment_is_not_absent() {
    let mut b = attached_and_restarted(false, true);
    b.list(vec![]);
    let unpublish = b.unpublish_waits("a");
    let unlisted = Wait::ListOf { volume: v(), lacked_for_ms: ABSENT_FOR_MS, last: None };
    assert_eq!(b.waits_for(), Some(unlisted));
    b.list(vec![listed(&["a"], true)]);
    assert_eq!(b.phase("a"), Some("Draining"), "the request finds it");
    assert_eq!(b.reply(unpublish), None);
    // One that no list has over the whole time is not there.
    let gone = VolumeId::new("gone").expect("it is valid");
    b.event(Event::Unpublish { request: RequestId(90), volume: gone, node: Some(n("a")) });
    assert_eq!(b.reply(RequestId(90)), None);
    b.pass(ABSENT_FOR_MS);
    assert_eq!(b.reply(RequestId(90)), None, "time alone lists nothing");
    b.list(vec![]);
    assert_eq!(b.reply(RequestId(90)), Some(Ok(Reply::Unpublished)));
}

#[test]
fn an_export_found_off_without_a_record_waits_for_every_node_or_the_bound() {
    for enforced in [true, false] {
        let mut b = attached_and_restarted(false, true);
        b.core.config.target.acl = enforced;
        b.list(vec![listed(&[], false)]);
        b.up("bb", "1", vec![]);
        b.publish_waits("bb", Access::Rwo);
        let wait = b.waits_for();
        let found_off = matches!(
            wait,
            Some(
                Wait::Reports { doubt: ListDoubt::FoundOff, .. }
                    | Wait::ListDrainBound { doubt: ListDoubt::FoundOff, .. }
            )
        );
        assert!(found_off, "{wait:?}");
        if enforced {
            b.pass(b.config.drain_bound_ms + 1);
        } else {
            assert!(b.waits_for_reports_of("a"), "{wait:?}");
            b.up("a", "1", vec![]);
            // All have said that they hold nothing; what they had on its way before may land yet.
            assert!(matches!(b.waits_for(), Some(Wait::ListDrainBound { .. })), "{:?}", b.waits_for());
            b.pass(b.config.drain_bound_ms + 1);
        }
        let asked = b.rds_asked();
        assert!(matches!(asked, Some((_, RdsRequest::Allow { .. }))), "{enforced}: {asked:?}");
    }
}

#[test]
fn an_export_on_against_its_record_waits_for_every_node_not_gone() {
    let mut b = fencing();
    b.up("a", "1", vec![]);
    b.attach("a", Access::Rwo);
    b.detach("a", "live");
    b.rds_does_all();
    b.restart_with(true, true);
    b.list(vec![ListedVolume { keeps_list: false, ..listed(&[], true) }]);
    b.up("bb", "1", vec![]);
    b.publish_waits("bb", Access::Rwo);
    assert!(b.waits_for_reports_of("a"), "{:?}", b.waits_for());
    b.declare_gone(90, "a");
    assert_eq!(b.reply(RequestId(90)), Some(Ok(Reply::Declared)));
    b.pass(b.config.drain_bound_ms + 1);
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Allow { .. }))));
}

#[test]
fn who_is_let_in_by_its_record_and_is_on_no_list_is_granted_nothing_by_it() {
    let mut b = attached_and_restarted(true, true);
    let first = b.core.volumes[&v()].attachments[0].epoch;
    b.list(vec![listed(&[], true)]);
    assert_eq!((b.phase("a"), b.rds_asked(), b.directed()), (Some("Stray"), None, None));
    assert!(b.core.volumes[&v()].attachments[0].epoch > first, "the old grant is over");
    b.up("a", "1", vec![]);
    assert_eq!(b.phase("a"), Some("Draining"), "the node says that it holds nothing");
}

#[test]
fn who_was_being_let_in_before_a_start_is_let_in_on_a_repeat() {
    let mut b = fencing();
    b.up("a", "1", vec![]);
    b.publish("a", Access::Rwo);
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Allow { .. }))));
    b.restart_with(true, true);
    b.up("a", "1", vec![]);
    b.list(vec![listed(&[], true)]);
    assert_eq!((b.phase("a"), b.rds_asked()), (Some("Granting"), None), "the record may be older");
    b.publish("a", Access::Rwo);
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Allow { .. }))));
}

#[test]
fn who_has_had_a_later_grant_than_its_record_has_is_granted_nothing_by_it() {
    for phase in [ObservedPhase::Ready, ObservedPhase::Absent] {
        let mut b = attached_and_restarted(true, true);
        let first = b.core.volumes[&v()].attachments[0].epoch;
        b.list(vec![listed(&["a"], true)]);
        let epoch = Some(Epoch { term: first.term, seq: first.seq + 5 });
        let ended = phase == ObservedPhase::Absent;
        b.up("a", "1", vec![Observed { epoch, ended, ..observed_of(phase) }]);
        assert_eq!(b.phase("a"), Some(if ended { "Draining" } else { "Stray" }));
        let publish = b.publish("a", Access::Rwo);
        let again = b.publish("a", Access::Rwo);
        for request in [publish, again] {
            assert!(!matches!(b.reply(request), Some(Ok(Reply::Published(grant))) if grant.epoch == first));
        }
    }
}

#[test]
fn where_no_lists_are_kept_the_stray_of_one_node_says_nothing_of_another() {
    let mut b = attached_and_restarted(false, true);
    b.list(vec![ListedVolume { keeps_list: false, ..listed(&[], true) }]);
    b.up("bb", "1", vec![observed_of(ObservedPhase::Ready)]);
    assert_eq!(b.phase("bb"), Some("Stray"));
    b.unpublish_waits("a");
    assert!(b.waits_for_reports_of("a"), "{:?}", b.waits_for());
}

#[test]
fn where_no_lists_are_kept_a_silent_node_speaks_for_itself() {
    let mut b = attached_and_restarted(false, true);
    b.list(vec![ListedVolume { keeps_list: false, ..listed(&[], true) }]);
    let unpublish = b.unpublish_waits("a");
    assert!(b.waits_for_reports_of("a"), "{:?}", b.waits_for());
    b.up("a", "1", vec![]);
    assert_eq!(b.reply(unpublish), None, "what it had on its way may land yet");
    b.pass(b.config.drain_bound_ms + 1);
    assert_eq!(b.reply(unpublish), Some(Ok(Reply::Unpublished)));
}

#[test]
fn with_all_lost_a_person_can_say_that_a_node_somebody_asks_about_is_gone() {
    let mut b = attached_and_restarted(false, false);
    b.list(vec![ListedVolume { keeps_list: false, ..listed(&[], true) }]);
    let unpublish = b.unpublish_waits("a");
    b.declare_gone(90, "aa");
    assert!(matches!(b.refusal(RequestId(90)), Refusal::UnknownNode { .. }), "a name not typed right");
    b.declare_gone(90, "a");
    b.pass(b.config.drain_bound_ms + 1);
    assert_eq!(b.reply(unpublish), Some(Ok(Reply::Unpublished)));
}

#[test]
fn a_list_that_cannot_be_read_is_waited_for_until_it_can() {
    let mut b = attached_and_restarted(false, true);
    b.list(vec![ListedVolume { problem: Some("two disks of that name".into()), ..listed(&[], true) }]);
    let unpublish = b.unpublish_waits("a");
    let unreadable = Wait::ReadableList { volume: v(), problem: "two disks of that name".into() };
    assert_eq!(b.waits_for(), Some(unreadable));
    b.list(vec![listed(&[], true)]);
    assert_eq!(b.reply(unpublish), Some(Ok(Reply::Unpublished)), "nobody is on its list");
}

#[test]
fn a_node_is_kept_when_first_heard_and_not_written_again() {
    let mut b = Harness::new();
    b.hello("a", identity("a", "1"));
    let kept = |b: &Harness| {
        b.effects.iter().any(|e| matches!(e, Effect::PersistNode(record) if record.node == n("a")))
    };
    assert!(kept(&b));
    b.hello("a", identity("a", "1"));
    assert!(!kept(&b));
    b.hello("unknown-host.x", identity("x", "1"));
    let reserved = SessionRefusal::ReservedName { node: n("unknown-host.x") };
    assert!(matches!(&b.effects[0], Effect::RefuseSession { refusal, .. } if **refusal == reserved));
}

#[test]
fn a_clock_set_back_over_a_restart_does_not_put_off_a_fence() {
    let mut b = fencing();
    b.now = 100_000_000;
    b.up("a", "1", vec![]);
    b.attach("a", Access::Rwo);
    b.unpublish("a");
    b.silent("a");
    // A day back.
    b.now -= 86_400_000;
    b.restart();
    let record = &b.core.volumes[&v()];
    assert!(record.attachments[0].since <= UnixMillis(b.now));
    b.unpublish("a");
    b.pass(b.config.fence_after_ms + 1);
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Deny { fence: true, .. }))), "{:?}", b.effects);
}

#[test]
fn an_address_may_be_another_hosts_too_but_not_an_nqn_or_id() {
    let mut b = attached_and_restarted(true, true);
    let refused = |b: &Harness| b.effects.iter().any(|e| matches!(e, Effect::RefuseSession { .. }));
    let mut new = identity("bb", "1");
    new.storage_addresses = identity("a", "1").storage_addresses;
    b.hello("bb", new.clone());
    assert!(!refused(&b), "{:?}", b.effects);
    for same_id in [true, false] {
        let mut clone = identity("ccc", "1");
        if same_id {
            clone.host_id = identity("a", "1").host_id;
        } else {
            clone.host_nqn = nqn("a");
        }
        b.hello("ccc", clone);
        assert!(refused(&b), "{same_id}");
    }
    // Nor is an address of one that is heard anything to refuse for.
    let mut third = identity("dddd", "1");
    third.storage_addresses = new.storage_addresses;
    b.hello("dddd", third);
    assert!(!refused(&b), "{:?}", b.effects);
}

/// A restart with a store from when `a` was being detached. Only the RDS's list shows what came after that.
fn restarted_in_a_detach(end: impl Fn(&mut Harness)) -> Harness {
    let mut b = fencing();
    b.up("a", "1", vec![]);
    b.attach("a", Access::Rwo);
    b.unpublish("a");
    end(&mut b);
    assert_eq!(b.phase("a"), Some("Draining"));
    b.restart_with(true, true);
    b
}

#[test]
fn a_proof_on_record_is_worth_nothing_for_a_host_that_may_connect() {
    for controller in ["live", "dead"] {
        let mut b = restarted_in_a_detach(|b| b.agent(absent(controller)));
        b.pass(b.config.drain_bound_ms + 1);
        assert_eq!(b.rds_asked(), None, "{controller}: nobody is taken off a list that was not read");
        b.list(vec![listed(&["a"], true)]);
        let asked = b.rds_asked();
        assert!(matches!(asked, Some((_, RdsRequest::Deny { fence: true, .. }))), "{controller}: {asked:?}");
        let unpublish = b.unpublish("a");
        b.pass(1);
        assert_eq!(b.reply(unpublish), None, "{controller}");
        assert!(b.core.volumes[&v()].attachments[0].evidence().is_none(), "{controller}");
    }
}

#[test]
fn a_proof_on_record_holds_for_a_host_that_is_off_the_list() {
    let mut b = restarted_in_a_detach(|b| b.agent(absent("live")));
    b.unpublish_waits("a");
    b.list(vec![listed(&[], true)]);
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Close { .. }))), "{:?}", b.effects);
    b.rds(Ok(()));
    assert_eq!(b.phase("a"), None);
}

#[test]
fn a_half_done_fence_starts_over_for_a_host_that_may_connect() {
    let mut b = restarted_in_a_detach(|b| {
        b.silent("a");
        b.pass(b.config.fence_after_ms + 1);
        b.rds(Ok(()));
        assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Hide { .. }))), "{:?}", b.effects);
    });
    assert_eq!(b.rds_asked(), None);
    b.list(vec![listed(&["a"], true)]);
    b.unpublish("a");
    b.pass(b.config.fence_after_ms + 1);
    let first = b.rds_asked();
    assert!(
        matches!(first, Some((_, RdsRequest::Deny { fence: true, .. }))),
        "not cut on an old word: {first:?}"
    );
}

#[test]
fn a_node_without_directive_on_record_may_have_had_one_since() {
    let target = TargetAbilities { acl: true, export_cuts: true, ..TargetAbilities::default() };
    let mut b = Harness::with(Config { target, ..Config::default() });
    b.up("a", "1", vec![]);
    b.publish("a", Access::Rwo);
    b.rds(Ok(()));
    let backup = b.stored.clone();
    b.agent(ready());
    b.silent("a");
    b.stored = backup;
    b.restart_with(true, true);
    b.list(vec![listed(&["a"], true)]);
    let unpublish = b.unpublish("a");
    b.pass(b.config.fence_after_ms + 1);
    b.rds(Ok(()));
    b.rds(Ok(()));
    assert_eq!(b.reply(unpublish), None, "what it wrote may still be on its way");
    b.pass(b.config.drain_bound_ms + 1);
    let evidence = b.core.volumes[&v()]
        .past_evidence
        .first()
        .or(b.core.volumes[&v()].attachments.first().and_then(|a| a.evidence()));
    assert!(matches!(evidence.map(|e| &e.drained), Some(Drained::Bound { .. })), "{evidence:?}");
}

#[test]
fn where_no_lists_are_kept_a_volume_made_is_known_to_be_nobodys() {
    for restarted in [false, true] {
        let mut b = Harness::with(Config::default());
        b.up("a", "1", vec![]);
        b.up("bb", "1", vec![]);
        b.silent("bb");
        b.restart_with(false, true);
        b.list(vec![]);
        b.event(Event::RdsMade { volume: v() });
        if restarted {
            b.restart_with(true, true);
        }
        b.list(vec![ListedVolume { keeps_list: false, ..listed(&[], true) }]);
        b.up("a", "2", vec![]);
        b.publish("a", Access::Rwo);
        assert!(
            matches!(b.rds_asked(), Some((_, RdsRequest::Allow { .. }))),
            "{restarted}: {:?}",
            b.waits_for()
        );
    }
}

#[test]
fn nobody_is_fenced_before_it_is_known_whom_else_that_would_cut() {
    let mut b = restarted_in_a_detach(|b| b.silent("a"));
    b.unpublish("a");
    b.pass(b.config.fence_after_ms + 1);
    assert_eq!((b.rds_asked(), b.core.volumes[&v()].fence(&n("a"))), (None, None));
    b.list(vec![listed(&["a"], true)]);
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Deny { fence: true, .. }))), "{:?}", b.effects);
}

#[test]
fn a_drain_bound_that_has_passed_is_not_said_to_be_waited_for() {
    let mut b = attached_and_restarted(false, true);
    b.list(vec![listed(&[], false)]);
    b.hello("bb", identity("bb", "1"));
    b.pass(b.config.drain_bound_ms - 10);
    let publish = b.publish("bb", Access::Rwo);
    assert!(matches!(b.waits_for(), Some(Wait::ListDrainBound { .. })), "{:?}", b.waits_for());
    b.pass(20);
    assert_eq!(b.reply(publish), None);
    assert_eq!(b.waits_for(), Some(Wait::Inventory { node: n("bb") }));
}

/// `a` had a volume that no record shows any more, and its host says Hello as `bb`, under this boot.
fn renamed(boot: &str) -> Harness {
    let mut b = attached_and_restarted(false, true);
    b.list(vec![ListedVolume { keeps_list: false, ..listed(&[], true) }]);
    b.up_as("bb", identity("a", boot), vec![]);
    b.pass(b.config.drain_bound_ms + 1);
    b
}

#[test]
fn a_host_under_another_name_and_the_same_boot_speaks_for_the_old_name() {
    let mut b = renamed("1");
    b.publish("bb", Access::Rwo);
    assert_eq!(b.phase("bb"), Some("Granting"));
    assert!(!b.core.registry.contains_key(&n("a")));
}

#[test]
fn a_host_under_another_name_and_boot_may_be_another_host() {
    let mut b = attached_and_restarted(false, true);
    b.list(vec![ListedVolume { keeps_list: false, ..listed(&[], true) }]);
    b.hello("bb", identity("a", "2"));
    assert!(b.effects.iter().any(|e| matches!(e, Effect::RefuseSession { .. })), "{:?}", b.effects);
    assert!(b.core.registry.contains_key(&n("a")) && !b.core.nodes.contains_key(&n("bb")));
    // A person's declaration ends it.
    b.declare_gone(90, "a");
    b.up_as("bb", identity("a", "2"), vec![]);
    b.pass(b.config.drain_bound_ms + 1);
    b.publish("bb", Access::Rwo);
    assert_eq!(b.phase("bb"), Some("Granting"));
}

#[test]
fn a_host_that_two_names_are_kept_for_is_nobody_before_one_is_gone() {
    let mut b = attached_and_restarted(false, true);
    let again = NodeRecord { node: n("bb"), identity: identity("a", "2"), uid: None };
    b.core.registry.insert(n("bb"), again);
    b.restart_with(false, true);
    b.list(vec![listed(&["a"], true)]);
    let holder = b.core.volumes[&v()].holders()[0].clone();
    assert!(is_unknown_host(&holder), "{holder}");
    b.hello("bb", identity("a", "2"));
    assert_eq!(b.core.volumes[&v()].holders(), [holder], "it may be the other one that is on the list");
    b.declare_gone(90, "a");
    b.hello("bb", identity("a", "2"));
    assert_eq!(b.core.volumes[&v()].holders(), [n("bb")]);
}

/// `a` was fenced from it and `bb` has it, by a controller that has read the lists.
fn moved(target: TargetAbilities) -> Harness {
    let mut b = Harness::with(Config { target, ..Config::default() });
    b.restart_with(false, false);
    b.event(Event::RdsMade { volume: v() });
    b.list(Vec::new());
    b.up("a", "1", vec![]);
    b.attach("a", Access::Rwo);
    b.silent("a");
    b.fence(50, "a");
    b.rds_does_all();
    b
}

fn moved_to_bb() -> Harness {
    let mut b = moved(able());
    b.up("bb", "1", vec![]);
    b.attach("bb", Access::Rwo);
    b
}

fn at_rest(hosts: &[&str], exported: bool) -> Vec<ListedVolume> {
    vec![ListedVolume { at_rest: true, ..listed(hosts, exported) }]
}

fn asked(b: &Harness) -> Vec<&RdsRequest> {
    b.effects
        .iter()
        .filter_map(|e| if let Effect::Rds { request, .. } = e { Some(request) } else { None })
        .collect()
}

#[test]
fn a_host_let_in_by_a_late_request_is_fenced_and_the_holder_comes_back() {
    let mut b = moved_to_bb();
    b.list(at_rest(&["a"], true));
    let requests = asked(&b);
    assert!(
        requests.iter().any(|r| matches!(r, RdsRequest::Deny { host_nqn, .. } if *host_nqn == nqn("a"))),
        "{requests:?}"
    );
    assert!(
        requests.iter().any(|r| matches!(r, RdsRequest::Allow { host_nqn, .. } if *host_nqn == nqn("bb"))),
        "{requests:?}"
    );
    let mut meanwhile = b.clone();
    let third = meanwhile.publish("ccc", Access::Rwo);
    assert!(!matches!(meanwhile.reply(third), Some(Ok(_))), "{:?}", meanwhile.effects);
    meanwhile.list(at_rest(&["a"], true));
    assert!(asked(&meanwhile).is_empty(), "it is asked for already: {:?}", meanwhile.effects);
    for effect in b.effects.clone() {
        if let Effect::Rds { operation, .. } = effect {
            b.event(Event::RdsDone { operation, result: Ok(()) });
        }
    }
    b.rds_does_all();
    assert_eq!((b.phase("a"), b.phase("bb")), (None, Some("Ready")), "{:?}", b.core.volumes);
    let evidence = &b.core.volumes[&v()].past_evidence[0];
    assert_eq!((&evidence.node, evidence.statement.is_some()), (&n("a"), true));
    b.list(at_rest(&["bb"], true));
    assert!(b.effects.is_empty(), "{:?}", b.effects);
}

#[test]
fn a_list_as_the_record_is_or_not_read_at_rest_changes_nothing() {
    let mut b = moved_to_bb();
    let before = b.core.clone();
    b.list(at_rest(&["bb"], true));
    b.list(vec![listed(&["a"], true)]);
    b.list(vec![ListedVolume { problem: Some("two disks".into()), at_rest: true, ..listed(&["a"], true) }]);
    assert_eq!(b.core.volumes, before.volumes);
    b.unpublish("bb");
    b.agent(absent("live"));
    let mut closing = b.clone();
    closing.list(at_rest(&["bb"], true));
    assert_eq!(closing.core.volumes, b.core.volumes, "its Close is under way");
    b.rds_does_all();
    assert_eq!(b.phase("bb"), None);
    let closed = b.core.clone();
    b.list(at_rest(&[], false));
    assert_eq!(b.core.volumes, closed.volumes);
}

#[test]
fn an_export_that_went_off_under_who_has_it_comes_back() {
    let mut b = moved_to_bb();
    b.list(at_rest(&["bb"], false));
    assert!(matches!(asked(&b)[..], [RdsRequest::Show { .. }]), "{:?}", b.effects);
    b.rds_does_all();
    assert_eq!(b.phase("bb"), Some("Ready"));
    b.list(at_rest(&["bb"], true));
    assert!(b.effects.is_empty(), "{:?}", b.effects);
}

#[test]
fn an_export_that_came_on_while_nobody_has_it_is_in_doubt() {
    let mut b = moved(able());
    b.up("bb", "1", vec![]);
    b.list(at_rest(&[], true));
    b.publish("bb", Access::Rwo);
    assert!(b.waits_for_reports_of("a"), "{:?}", b.waits_for());
}

#[test]
fn a_proof_by_the_list_is_taken_back_while_the_list_has_the_host_again() {
    let mut b = moved(TargetAbilities { export_drains: false, ..able() });
    assert_eq!(b.phase("a"), Some("Draining"), "what it sent may still land");
    b.list(at_rest(&["a"], true));
    let requests = asked(&b);
    assert!(matches!(requests[..], [RdsRequest::Deny { fence: true, .. }]), "{requests:?}");
    b.rds_does_all();
    b.pass(b.config.drain_bound_ms + 1);
    b.rds_does_all();
    assert_eq!(b.phase("a"), None);
}
