use super::super::testing::*;
use super::*;
use crate::*;

/// A start with these records: `a` is to have a volume which nobody can name.
fn start(volumes: Vec<VolumeRecord>) -> Harness {
    start_at(TargetAbilities::default(), volumes)
}

fn start_at(target: TargetAbilities, volumes: Vec<VolumeRecord>) -> Harness {
    let mut b = Harness::with(Config { target, ..Config::default() });
    let remembered = Remembered { volumes, lists_first: true, ..Remembered::default() };
    let term = b.core.term() + 1;
    (b.core, b.effects) = Core::rebuild(b.config.clone(), term, remembered, UnixMillis(b.now));
    b.event(Event::DesiredUnclear { nodes: [n("a")].into() });
    b
}

/// A target that keeps no lists has the volume as it is on record, and what was on its way at the start has landed.
fn listed(mut b: Harness) -> Harness {
    let (hosts, problem) = (Vec::new(), None);
    let exported = !b.core.volumes.get(&v()).is_some_and(|record| record.hidden);
    let list = ListedVolume { volume: v(), hosts, exported, keeps_list: false, problem, at_rest: false };
    b.event(Event::RdsListed { volumes: vec![list], whole: true });
    b.pass(b.config.drain_bound_ms);
    b.up("bb", "1", vec![]);
    b
}

/// What the only request waits for.
fn wait(b: &Harness) -> Option<Wait> {
    b.core.waiting(&v(), UnixMillis(b.now)).first().map(|waiting| waiting.wait.clone())
}

fn for_reports() -> Option<Wait> {
    Some(Wait::Reports { volume: v(), nodes: vec![n("a")], doubt: ListDoubt::Unclear })
}

fn for_the_bound(b: &Harness) -> Option<Wait> {
    let until = UnixMillis(b.now + b.config.drain_bound_ms);
    Some(Wait::ListDrainBound { volume: v(), until, doubt: ListDoubt::Unclear })
}

#[test]
fn nobody_is_let_in_before_the_node_has_sent_its_inventory() {
    for access in [Access::Rwo, Access::RwxBlock] {
        let mut b = listed(start(Vec::new()));
        b.publish_waits("bb", access);
        assert_eq!(wait(&b), for_reports());
        b.hello("a", identity("a", "1"));
        let of_a = |wait| matches!(wait, Some(Wait::Reports { nodes, .. }) if nodes == [n("a")]);
        assert!(of_a(wait(&b)), "it has not said what it holds");
        b.event(Event::Inventory { node: n("a"), session: b.session("a"), volumes: Vec::new() });
        assert_eq!(wait(&b), for_the_bound(&b), "what it had sent may land");
        b.pass(b.config.drain_bound_ms);
        b.rds(Ok(()));
        b.agent(ready());
        assert_eq!(b.phase("bb"), Some("Ready"), "{access:?}");
    }
}

#[test]
fn what_the_node_turns_out_to_hold_keeps_others_out() {
    let mut b = listed(start(Vec::new()));
    b.publish_waits("bb", Access::Rwo);
    b.up("a", "1", vec![observed_of(ObservedPhase::Ready)]);
    b.pass(b.config.drain_bound_ms);
    assert_eq!((b.phase("a"), b.phase("bb")), (Some("Stray"), None));
}

#[test]
fn the_node_itself_waits_only_for_its_own_inventory() {
    let mut b = listed(start(Vec::new()));
    b.up("a", "1", vec![]);
    b.pass(b.config.drain_bound_ms);
    let publish = b.publish("a", Access::Rwo);
    assert_eq!(b.reply(publish), None);
    assert!(b.rds_asked().is_some(), "{:?}", wait(&b));
}

#[test]
fn a_volume_that_a_record_describes_waits_for_nobody() {
    let mut before = Harness::new();
    before.up("bb", "1", vec![]);
    before.attach("bb", Access::Rwo);
    before.detach("bb", "live");
    before.rds_does_all();
    let mut b = listed(start(before.stored.values().cloned().collect()));
    b.publish("bb", Access::Rwo);
    assert!(b.rds_asked().is_some(), "{:?}", wait(&b));
}

#[test]
fn a_volume_that_somebody_was_only_found_with_waits_for_the_node() {
    let mut before = listed(start(Vec::new()));
    before.up("ccc", "1", vec![observed_of(ObservedPhase::Ready)]);
    assert_eq!(before.phase("ccc"), Some("Stray"));
    let mut b = listed(start(before.stored.values().cloned().collect()));
    b.publish_waits("bb", Access::Rwo);
    assert_eq!((b.phase("ccc"), wait(&b)), (Some("Stray"), for_reports()));
}

#[test]
fn a_volume_that_was_made_since_waits_for_nobody() {
    for target in [TargetAbilities::default(), able()] {
        let mut b = start_at(target, Vec::new());
        b.event(Event::RdsListed { volumes: Vec::new(), whole: true });
        b.event(Event::RdsMade { volume: v() });
        b.up("bb", "1", vec![]);
        b.publish("bb", Access::Rwo);
        assert!(b.rds_asked().is_some(), "{:?}", wait(&b));
    }
}

#[test]
fn a_deletion_and_a_detach_there_wait_and_one_elsewhere_does_not() {
    let mut b = listed(start(Vec::new()));
    let elsewhere = b.unpublish("bb");
    assert_eq!(b.reply(elsewhere), Some(Ok(Reply::Unpublished)));
    b.event(Event::DeleteBegins { request: RequestId(70), volume: v() });
    let Refusal::StillWaiting { wait, .. } = b.refusal(RequestId(70)) else { panic!("{:?}", b.effects) };
    assert_eq!(Some(*wait), for_reports());
    let unpublish = b.unpublish_waits("a");
    b.up("a", "1", vec![]);
    assert_eq!(b.reply(unpublish), Some(Ok(Reply::Unpublished)));
}

#[test]
fn a_declaration_ends_the_wait_unless_the_volume_demands_a_fence() {
    for min_fence in [MinFence::NodeGone, MinFence::Acl] {
        let mut b = listed(start(Vec::new()));
        b.min_fence = min_fence;
        b.publish_waits("bb", Access::Rwo);
        b.declare_gone(77, "a");
        assert_eq!(b.reply(RequestId(77)), Some(Ok(Reply::Declared)), "it is known by name");
        let suffices = min_fence == MinFence::NodeGone;
        assert_eq!(wait(&b), if suffices { for_the_bound(&b) } else { for_reports() });
    }
}

#[test]
fn a_node_whose_volume_is_not_known_is_said_and_its_pin_holds() {
    let b = start(Vec::new());
    let notices: Vec<_> = b.effects.iter().filter(|e| matches!(e, Effect::Notice(_))).collect();
    assert_eq!(notices, [&Effect::Notice(Notice::DesiredUnclear { node: n("a") })]);
    let mut b = Harness::new();
    b.seen.uid = NodeUid::new("u1").ok();
    b.up("a", "1", vec![]);
    b.silent("a");
    b.event(Event::DesiredUnclear { nodes: [n("a")].into() });
    b.seen.uid = NodeUid::new("u2").ok();
    b.hello("a", identity("other", "2"));
    let refused = |e: &Effect| match e {
        Effect::RefuseSession { refusal, .. } => Some((**refusal).clone()),
        _ => None,
    };
    let refusal = b.effects.iter().find_map(refused);
    let in_doubt =
        matches!(&refusal, Some(SessionRefusal::Pinned { holds: PinHolds::InDoubt { volume: None }, .. }));
    assert!(in_doubt, "{refusal:?}");
}
