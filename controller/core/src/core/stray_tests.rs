//! Volumes that somebody has connected by hand, on nodes that are being granted them or were not granted them at all.
//! Each was found by the model, and is here as short as it gets.

use crate::core::tests::{Harness, able, absent, identity, n, observed_of, ready, v};
use crate::*;

/// Shorter than any request may wait.
const DRAIN_BOUND_MS: u64 = 5_000;

fn bench(target: TargetAbilities) -> Harness {
    Harness::with(Config { drain_bound_ms: DRAIN_BOUND_MS, target, ..Config::default() })
}

#[test]
fn a_node_that_holds_the_volume_before_its_attach_has_to_detach_it() {
    let mut b = bench(TargetAbilities::default());
    b.up("a", "boot", vec![]);
    b.publish("a", Access::Rwo);
    let (allow, _) = b.rds_asked().expect("the RDS is asked to allow the host");
    b.says("a", observed_of(ObservedPhase::Ready));
    let request = b.unpublish("a");
    b.event(Event::RdsDone { operation: allow, result: Ok(()) });
    assert!(matches!(b.directed(), Some((_, _, Directive::Detach { .. }))), "{:?}", b.effects);
    b.agent(absent("live"));
    assert!(b.rds_asked().is_none(), "what was on its way before it was heard of may still land");
    b.pass(DRAIN_BOUND_MS);
    b.rds(Ok(()));
    assert_eq!(b.reply(request), Some(Ok(Reply::Unpublished)));
}

#[test]
fn a_path_that_breaks_before_the_attach_took_the_device_is_remembered() {
    let mut b = bench(TargetAbilities::default());
    b.up("a", "boot", vec![]);
    let request = b.publish("a", Access::Rwo);
    b.rds(Ok(()));
    let (_, operation, directive) = b.directed().expect("the agent is told to attach");
    let Directive::Attach { grant } = directive else { panic!("{directive:?}") };
    for phase in [ObservedPhase::Ready, ObservedPhase::Lost, ObservedPhase::Ready] {
        b.says("a", observed_of(phase));
    }
    let outcome = ready();
    let (node, session, epoch) = (n("a"), b.session("a"), grant.epoch);
    b.event(Event::AgentDone { node, session, operation, volume: v(), epoch, outcome });
    assert!(matches!(b.reply(request), Some(Ok(Reply::Published(_)))), "{:?}", b.effects);
    b.detach("a", "live");
    assert!(b.rds_asked().is_none(), "not drained before the bound has passed");
    b.pass(DRAIN_BOUND_MS);
    assert!(b.rds_asked().is_some());
}

#[test]
fn a_recorded_end_does_not_speak_for_a_device_made_since() {
    let mut b = bench(TargetAbilities::default());
    b.up("a", "boot", vec![]);
    b.publish("a", Access::Rwo);
    b.rds(Ok(()));
    b.unpublish("a");
    let epoch = Some(b.core.volumes[&v()].attachments[0].epoch);
    b.says("a", Observed { epoch, ended: true, ..observed_of(ObservedPhase::Ready) });
    let a = &b.stored[&v()].attachments[0];
    assert!(a.proven && a.may_land_until.is_some(), "{a:?}");
}

#[test]
fn a_fence_without_detach_drains_once_the_node_shows_the_volume() {
    let target = TargetAbilities { export_cuts: true, ..TargetAbilities::default() };
    let mut b = bench(target);
    b.up("a", "boot", vec![]);
    b.publish("a", Access::Rwo);
    b.rds(Ok(()));
    b.silent("a");
    b.fence(99, "a");
    b.rds(Ok(())); // The export is off.
    let (deny, _) = b.rds_asked().expect("nobody was told that it may use it: the RDS is asked at once");
    b.up("a", "boot", vec![observed_of(ObservedPhase::Lost)]);
    b.event(Event::RdsDone { operation: deny, result: Ok(()) });
    assert!(b.reply(RequestId(99)).is_none(), "somebody did use it: {:?}", b.effects);
    b.pass(DRAIN_BOUND_MS);
    b.rds(Ok(()));
    assert_eq!(b.reply(RequestId(99)), Some(Ok(Reply::Fenced)));
}

#[test]
fn a_publish_that_waits_for_an_inventory_says_so_whoever_has_the_volume() {
    let mut b = bench(TargetAbilities::default());
    b.up("a", "boot", vec![]);
    b.attach("a", Access::RwxBlock);
    b.hello("bb", identity("bb", "boot"));
    b.publish("bb", Access::RwxBlock);
    let waiting = b.core.waiting(&v(), UnixMillis(b.now));
    assert_eq!(waiting[0].wait, Wait::Inventory { node: n("bb") });
}

#[test]
fn a_stray_whose_node_says_that_it_is_in_use_stays_one_and_is_no_grant() {
    let mut b = bench(TargetAbilities::default());
    b.up("a", "boot", vec![observed_of(ObservedPhase::Ready)]);
    let request = b.unpublish("a");
    b.agent(Outcome::Busy { holders: vec!["qemu (12)".into()] });
    assert!(matches!(b.refusal(request), Refusal::InUse { .. }));
    assert_eq!(b.phase("a"), Some("Stray"));
    let request = b.publish("a", Access::Rwo);
    assert!(b.reply(request).is_none(), "it has to be allowed and attached first: {:?}", b.effects);
    assert!(matches!(b.rds_asked(), Some((_, RdsRequest::Allow { .. }))));
}

#[test]
fn what_agents_never_answer_is_not_kept_for_ever() {
    let mut b = bench(TargetAbilities {
        acl: true,
        export_cuts: true,
        export_drains: true,
        ..TargetAbilities::default()
    });
    b.up("a", "boot", vec![]);
    for _ in 0..3 {
        b.attach("a", Access::Rwo);
        b.unpublish("a");
        assert!(b.directed().is_some(), "told to detach, which it never answers");
        b.fence(99, "a");
        b.rds_does_all();
        let epoch = b.core.volumes[&v()].past_evidence.first().map(|e| e.epoch);
        b.says("a", Observed { epoch, ended: true, ..observed_of(ObservedPhase::Absent) });
    }
    assert!(b.core.operations.is_empty(), "{:?}", b.core.operations);
}

#[test]
fn a_node_that_cannot_be_connected_keeps_nobody_out_by_saying_it_is() {
    let mut b = Harness::with(Config { target: able(), ..Config::default() });
    b.up("a", "1", vec![]);
    b.up("bb", "1", vec![]);
    b.attach("a", Access::RwxBlock);
    let lies = |name: &str, b: &mut Harness| b.up(name, "1", vec![observed_of(ObservedPhase::Ready)]);
    // Nobody has seen the export off since this process began: whoever says so may be connected.
    lies("ccc", &mut b);
    assert_eq!(b.phase("ccc"), Some("Stray"));
    for node in ["ccc", "a"] {
        b.detach(node, "live");
        b.rds_does_all();
    }
    assert_eq!(b.core.volumes[&v()].holders(), []);
    b.publish("a", Access::RwxBlock);
    b.rds_does_all();
    b.agent(ready());
    lies("dddd", &mut b);
    assert_eq!(b.core.volumes[&v()].holders(), [n("a")], "all sessions were ended before a was let in");
    let told = b.directed();
    assert!(matches!(&told, Some((node, _, Directive::Revoke { .. })) if *node == n("dddd")), "{told:?}");
    let Standing::Quarantined { causes } = &b.core.nodes[&n("dddd")].standing else {
        panic!("it is granted nothing");
    };
    assert!(
        matches!(&causes[..], [QuarantineCause::ClaimsTooMuch { volume, .. }] if *volume == v()),
        "{causes:?}"
    );
    // Others go on as if nothing had been said.
    b.attach("bb", Access::RwxBlock);
    // One that was let in since is another matter: that it is absent was its own report.
    b.detach("bb", "live");
    b.rds(Ok(()));
    assert_eq!(b.phase("bb"), None);
    lies("bb", &mut b);
    assert_eq!(b.phase("bb"), Some("Stray"));
}
