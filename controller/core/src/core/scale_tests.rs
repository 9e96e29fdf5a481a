//! What is about one node or one volume looks at no others, however many there are.

use super::testing::*;
use crate::volume::looks;
use crate::*;

/// Volumes of other nodes.
const OTHERS: usize = 500;
/// Records that are looked at for one node's sake at most; what it is exactly nobody has to know.
const FEW: usize = 16;

/// Volumes that `a` has, of which one is `v()`.
fn many() -> Harness {
    let mut b = Harness::hearing(&["a"]);
    b.attach("a", Access::Rwo);
    let one = b.stored[&v()].clone();
    for number in 0..OTHERS {
        let id = VolumeId::new(format!("other-{number}")).expect("a volume id");
        let mut other = one.clone();
        other.spec.id = id.clone();
        b.stored.insert(id, other);
    }
    let records: Vec<VolumeRecord> = b.stored.values().cloned().collect();
    let remembered = Remembered { volumes: records, lists_first: true, ..Remembered::default() };
    let term = b.core.term() + 1;
    (b.core, b.effects) = Core::rebuild(b.config.clone(), term, remembered, UnixMillis(b.now));
    b
}

fn new() -> VolumeId {
    VolumeId::new("new").expect("a volume id")
}

/// Of `v()` these may connect, and of one that is new nobody.
fn listed(hosts: &[&str]) -> Event {
    let of = |volume: VolumeId, hosts: &[&str]| ListedVolume {
        volume,
        hosts: hosts.iter().map(|name| nqn(name)).collect(),
        exported: true,
        keeps_list: true,
        problem: None,
        at_rest: true,
    };
    Event::RdsListed { volumes: vec![of(v(), hosts), of(new(), &[])], whole: true }
}

#[test]
fn a_node_that_is_heard_has_no_volumes_of_others_looked_at() {
    let mut b = many();
    looks::take();
    b.up("bb", "boot", vec![]);
    assert!(looks::take() <= FEW);
    b.silent("bb");
    assert!(looks::take() <= FEW);
}

#[test]
fn a_publish_for_a_node_that_nobody_knows_has_few_records_looked_at() {
    let mut b = many();
    b.event(listed(&["a"]));
    looks::take();
    let request = b.publish("zz", Access::Rwo);
    assert!(matches!(b.refusal(request), Refusal::UnknownNode { .. }));
    assert!(looks::take() <= FEW);
}

#[test]
fn a_silent_node_that_has_another_volume_is_known_as_silent() {
    let mut b = many();
    b.event(listed(&["a"]));
    let spec = VolumeSpec { id: new(), ..spec(Access::Rwo) };
    b.event(Event::Publish { request: RequestId(700), node: n("a"), spec, read_only: false });
    assert!(matches!(b.refusal(RequestId(700)), Refusal::Silent { .. }), "{:?}", b.effects);
}

#[test]
fn a_host_found_late_on_a_list_is_its_node_once_that_is_heard() {
    let mut b = many();
    b.event(listed(&["a"]));
    // What the RDS has carried out late of what another has asked for.
    b.event(listed(&["a", "bb"]));
    let holders = b.core.volumes[&v()].holders();
    assert!(holders.iter().any(|holder| holder.as_str().starts_with("unknown-host.")), "{holders:?}");
    b.up("bb", "boot", vec![]);
    assert!(b.core.volumes[&v()].holders().contains(&n("bb")));
}
