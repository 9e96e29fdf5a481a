//! Each clause, alone and in order.

use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::fixtures::shown;
use crate::name::{DevT, NamespaceIdentity, NamespaceUuid};
use crate::openers::{KubeletLoop, LoopUse};
use crate::readiness::PathPolicy;
use crate::sysfs::{ControllerState, NamespacePath, NativeMultipath, Unreadable};

const NQN: &str = "nqn.2026-01.test:v1";
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000011";
const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";
const SIZE: u64 = 1 << 30;
const HEAD: DevT = DevT { major: 259, minor: 1 };

fn identity(uuid: &str) -> NamespaceIdentity {
    NamespaceIdentity { uuid: NamespaceUuid::parse(uuid).ok(), nguid: None }
}

fn controller(instance: u32, ip: &str) -> Controller {
    let portal = format!("{ip}:4420").parse().expect("valid");
    shown::controller(instance, NQN, portal, (HOST, "00000000-0000-0000-0000-000000000011"))
}

fn path(instance: u32) -> NamespacePath {
    let name = format!("nvme0c{instance}n1");
    NamespacePath { name, size_bytes: Some(SIZE), ..shown::path(&ControllerName::from_instance(instance)) }
}

fn namespace(name: &str, kind: NamespaceKind, dev: DevT) -> Namespace {
    Namespace { name: name.to_owned(), dev, ..shown::namespace(0, UUID, SIZE, kind) }
}

fn view() -> SubsystemView {
    SubsystemView {
        nqn: NQN.parse().expect("valid"),
        multipath: NativeMultipath::On,
        controllers: vec![controller(0, "10.77.1.1"), controller(1, "10.77.2.1")],
        namespaces: vec![namespace("nvme0n1", NamespaceKind::Head { paths: vec![path(0), path(1)] }, HEAD)],
        unreadable: Vec::new(),
    }
}

fn expectation() -> Expectation {
    Expectation {
        subsystem: NQN.parse().expect("valid"),
        identity: Some(identity(UUID)),
        size_bytes: Some(SIZE),
        read_only: false,
        host_nqn: HOST.parse().expect("valid"),
        portals: ["10.77.1.1:4420", "10.77.2.1:4420"].map(|p| p.parse().expect("valid")).to_vec(),
        paths: PathPolicy::All,
        asked_holders: Vec::new(),
    }
}

fn io(dev: DevT) -> IoFacts {
    let done = ReadFact::Done { took: Duration::from_millis(1) };
    IoFacts {
        size_bytes: Some(SIZE),
        read_only: Some(false),
        first_read: done.clone(),
        last_read: done,
        ..IoFacts::none(NodeFact::Verified { path: PathBuf::from("/dev/nvme0n1"), dev })
    }
}

fn held(name: &str, kind: HolderKind) -> Holder {
    Holder { name: name.to_owned(), dev: Some(DevT { major: 253, minor: 0 }), kind }
}

fn loop_over(kubelet: Option<KubeletLoop>) -> LoopUse {
    let dev = DevT { major: 7, minor: 0 };
    LoopUse { name: "loop0".to_owned(), dev, backing_file: "/x".to_owned(), kubelet, ticket: None }
}

/// Judges what `change` makes of a volume that is ready; the clause that fails, and its facts.
fn fails(change: impl FnOnce(&mut SubsystemView, &mut Expectation, &mut IoFacts)) -> Unready {
    let (mut view, mut expectation, mut io) = (view(), expectation(), io(HEAD));
    change(&mut view, &mut expectation, &mut io);
    evaluate(&view, &expectation, &io).expect_err("a clause fails")
}

#[test]
fn a_volume_with_everything_in_place_is_ready() {
    let ready = evaluate(&view(), &expectation(), &io(HEAD)).expect("ready");
    assert_eq!((ready.selected.device.as_str(), ready.selected.dev), ("nvme0n1", HEAD));
    assert_eq!(ready.selected.live_paths.len(), 2);
    assert_eq!(ready.selected.identity, identity(UUID));
}

#[test]
fn each_clause_fails_by_its_own_name_and_says_what_was_seen() {
    let dev = DevT { major: 259, minor: 7 };
    let cases: [(Clause, &str, Unready); 17] = [
        (Clause::Subsystem, NQN, fails(|v, _, _| v.controllers.clear())),
        (
            Clause::Subsystem,
            "cntlid",
            fails(|v, _, _| {
                let (path, error) = (PathBuf::from("cntlid"), "denied".to_owned());
                v.unreadable.push(Unreadable { path, error });
            }),
        ),
        (Clause::NamespaceIdentity, "no namespace", fails(|v, _, _| v.namespaces.clear())),
        (
            Clause::NamespaceIdentity,
            "aaaaaaaa",
            fails(|_, e, _| {
                e.identity = Some(identity("aaaaaaaa-89ab-cdef-0123-456789abcdef"));
            }),
        ),
        (
            Clause::NamespaceIdentity,
            "neither UUID",
            fails(|v, _, _| {
                v.namespaces[0].identity = NamespaceIdentity::default();
            }),
        ),
        (Clause::Size, "expected at least", fails(|_, e, _| e.size_bytes = Some(SIZE + 1))),
        (Clause::Size, "open device has 512", fails(|_, _, io| io.size_bytes = Some(512))),
        (Clause::ReadOnly, "read-only", fails(|v, _, _| v.namespaces[0].read_only = true)),
        (Clause::ReadOnly, "open device", fails(|_, _, io| io.read_only = Some(true))),
        (Clause::HostNqn, "nqn.x", fails(|v, _, _| v.controllers[1].host_nqn = Some("nqn.x".to_owned()))),
        (Clause::Portal, "10.9.9.9", fails(|v, _, _| v.controllers[1] = controller(1, "10.9.9.9"))),
        (
            Clause::LivePaths,
            "nvme1 is connecting",
            fails(|v, _, _| {
                v.controllers[1].state = ControllerState::Connecting;
            }),
        ),
        (
            Clause::SingleDevice,
            "more than one",
            fails(|v, _, _| {
                let twin = Namespace { name: "nvme0n2".to_owned(), ..v.namespaces[0].clone() };
                v.namespaces.push(twin);
            }),
        ),
        (
            Clause::DeviceNode,
            "259:7",
            fails(move |_, _, io| {
                io.node = NodeFact::Verified { path: PathBuf::from("/dev/nvme0n1"), dev };
            }),
        ),
        (
            Clause::DirectRead,
            "no answer within 5.0 s",
            fails(|_, _, io| {
                io.first_read = ReadFact::Overdue { after: Duration::from_secs(5) };
            }),
        ),
        (
            Clause::Holders,
            "LVM",
            fails(|v, _, _| {
                let (map, uuid) = ("vg-lv".to_owned(), "LVM-abc".to_owned());
                v.namespaces[0].holders.push(held("dm-1", HolderKind::Dm { map, uuid }));
            }),
        ),
        (Clause::Holders, "loop0", fails(|_, _, io| io.loops.push(loop_over(None)))),
    ];
    for (clause, text, unready) in cases {
        assert_eq!(unready.clause, clause, "{unready}");
        assert!(unready.facts.contains(text), "{text:?} in {unready}");
    }
}

#[test]
fn the_first_failing_clause_is_named_in_the_order_of_the_list() {
    let mut failed = Vec::new();
    let (mut view, mut expectation, mut io) = (view(), expectation(), io(HEAD));
    io.loops_unknown = Some("denied".to_owned());
    io.last_read = ReadFact::NotTried;
    io.node = NodeFact::Missing { looked_for: PathBuf::from("/dev/nvme0n1") };
    let mut judge = |view: &_, expectation: &_| {
        failed.push(evaluate(view, expectation, &io).expect_err("fails").clause);
    };
    judge(&view, &expectation);
    let twin = Namespace { name: "nvme0n2".to_owned(), ..view.namespaces[0].clone() };
    view.namespaces.push(twin);
    judge(&view, &expectation);
    view.controllers[1].state = ControllerState::Connecting;
    judge(&view, &expectation);
    expectation.portals.pop();
    judge(&view, &expectation);
    view.controllers[1].host_nqn = None;
    judge(&view, &expectation);
    view.namespaces[0].read_only = true;
    judge(&view, &expectation);
    expectation.size_bytes = Some(u64::MAX);
    judge(&view, &expectation);
    expectation.identity = Some(NamespaceIdentity::default());
    judge(&view, &expectation);
    view.controllers.clear();
    judge(&view, &expectation);
    failed.reverse();
    let mut in_order = failed.clone();
    in_order.sort_unstable();
    assert_eq!(failed, in_order);
    assert_eq!(failed.len(), 9);
    assert_eq!(Clause::ALL.map(Clause::as_str).len(), 11);
}

#[test]
fn what_contradicts_does_not_heal_and_what_is_missing_may() {
    assert!(fails(|v, _, _| v.namespaces.clear()).may_heal);
    assert!(!fails(|_, e, _| e.identity = Some(identity("aaaaaaaa-89ab-cdef-0123-456789abcdef"))).may_heal);
    assert!(fails(|v, _, _| v.controllers[1].state = ControllerState::New).may_heal);
    assert!(!fails(|v, _, _| v.controllers[1].host_nqn = None).may_heal);
}

#[test]
fn the_policy_says_how_many_portals_must_be_live() {
    for (policy, of, needed) in [
        (PathPolicy::Any, 2, 1),
        (PathPolicy::Quorum, 1, 1),
        (PathPolicy::Quorum, 2, 2),
        (PathPolicy::Quorum, 3, 2),
        (PathPolicy::All, 3, 3),
        (PathPolicy::All, 0, 1),
    ] {
        assert_eq!(policy.needed(of), needed, "{policy:?} of {of}");
    }
    let mut view = view();
    view.controllers[1].state = ControllerState::Connecting;
    let any = Expectation { paths: PathPolicy::Any, ..expectation() };
    let ready = evaluate(&view, &any, &io(HEAD)).expect("one path is enough");
    assert_eq!(ready.selected.live_paths.len(), 1);
}

#[test]
fn a_live_controller_without_a_usable_path_does_not_count() {
    let inaccessible = fails(|v, _, _| {
        let mut second = path(1);
        second.ana_state = Some(AnaState::Inaccessible);
        v.namespaces[0].kind = NamespaceKind::Head { paths: vec![path(0), second] };
    });
    assert_eq!(inaccessible.clause, Clause::LivePaths);
    assert!(inaccessible.facts.contains("nvme1 is inaccessible"), "{inaccessible}");
    let none = fails(|v, _, _| v.namespaces[0].kind = NamespaceKind::Head { paths: vec![path(0)] });
    assert!(none.facts.contains("no path"), "{none}");
    // A target without ANA has no state to show.
    let mut view = view();
    let plain = |instance| NamespacePath { ana_state: None, ..path(instance) };
    view.namespaces[0].kind = NamespaceKind::Head { paths: vec![plain(0), plain(1)] };
    evaluate(&view, &expectation(), &io(HEAD)).expect("ready");
}

#[test]
fn a_controller_on_its_way_out_is_nobodys() {
    let mut view = view();
    let mut leaving = controller(2, "10.9.9.9");
    leaving.state = ControllerState::Deleting;
    leaving.host_nqn = None;
    view.controllers.push(leaving);
    evaluate(&view, &expectation(), &io(HEAD)).expect("ready");
}

fn bare_view(holders: &[Holder]) -> SubsystemView {
    let bare = |instance: u32| {
        let controller = ControllerName::from_instance(instance);
        let kind = NamespaceKind::Bare { controller, ana_state: None };
        let name = format!("nvme{instance}n1");
        let dev = DevT { major: 259, minor: instance };
        Namespace { holders: holders.to_vec(), ..namespace(&name, kind, dev) }
    };
    SubsystemView { multipath: NativeMultipath::Off, namespaces: vec![bare(0), bare(1)], ..view() }
}

#[test]
fn two_bare_devices_are_never_ready_and_one_map_over_both_is() {
    let bare = evaluate(&bare_view(&[]), &expectation(), &io(HEAD)).expect_err("two devices");
    assert_eq!(bare.clause, Clause::SingleDevice);
    assert!(bare.facts.contains("nvme0n1, nvme1n1"), "{bare}");
    let map = held("dm-0", HolderKind::DmMultipath { map: "mpatha".to_owned() });
    let dm = DevT { major: 253, minor: 0 };
    let ready = evaluate(&bare_view(std::slice::from_ref(&map)), &expectation(), &io(dm)).expect("ready");
    assert_eq!((ready.selected.device.as_str(), ready.selected.dev), ("dm-0", dm));
    let mut half = bare_view(&[]);
    half.namespaces[0].holders.push(map);
    let half = evaluate(&half, &expectation(), &io(dm)).expect_err("a map over one of them");
    assert_eq!(half.clause, Clause::SingleDevice);
    // One bare device is one device only while there is one path.
    let mut single = bare_view(&[]);
    single.namespaces.pop();
    single.controllers.pop();
    let mut one = expectation();
    one.portals.pop();
    let dev = DevT { major: 259, minor: 0 };
    evaluate(&single, &one, &io(dev)).expect("ready");
}

#[test]
fn a_map_over_a_native_head_and_a_holder_on_a_map_are_held_against_it() {
    let map = held("dm-0", HolderKind::DmMultipath { map: "mpatha".to_owned() });
    let native = fails(|v, _, _| v.namespaces[0].holders.push(map.clone()));
    assert_eq!(native.clause, Clause::Holders);
    let mut facts = io(DevT { major: 253, minor: 0 });
    let (name, uuid) = ("vg-lv".to_owned(), "LVM-abc".to_owned());
    facts.map_holders.push(held("dm-1", HolderKind::Dm { map: name, uuid }));
    let stacked = evaluate(&bare_view(&[map]), &expectation(), &facts).expect_err("LVM on the map");
    assert_eq!(stacked.clause, Clause::Holders);
}

#[test]
fn the_loops_of_kubelet_and_tickets_and_expected_holders_are_known() {
    let mut facts = io(HEAD);
    let (volume, pod_uid) = ("pvc-1".to_owned(), "pod".to_owned());
    facts.loops.push(loop_over(Some(KubeletLoop { volume, pod_uid })));
    facts.loops.push(LoopUse {
        ticket: Some("run.1".to_owned()),
        name: "loop1".to_owned(),
        ..loop_over(None)
    });
    let ready = evaluate(&view(), &expectation(), &facts).expect("ready");
    assert_eq!(ready.kubelet_loops, ["loop0"]);
    let mut view = view();
    let (map, uuid) = ("crypt".to_owned(), "CRYPT-x".to_owned());
    view.namespaces[0].holders.push(held("dm-3", HolderKind::Dm { map, uuid }));
    let asked = Expectation { asked_holders: vec!["dm-3".to_owned()], ..expectation() };
    evaluate(&view, &asked, &facts).expect("ready");
}

#[test]
fn a_device_larger_than_expected_is_ready_if_all_agree() {
    let expectation = Expectation { size_bytes: Some(SIZE - 4096), ..expectation() };
    assert_eq!(evaluate(&view(), &expectation, &io(HEAD)).expect("ready").selected.size_bytes, SIZE);
}

#[test]
fn at_the_first_attach_the_one_namespace_is_taken_and_two_are_refused() {
    let first = Expectation { identity: None, size_bytes: None, ..expectation() };
    let ready = evaluate(&view(), &first, &io(HEAD)).expect("ready");
    assert_eq!((ready.selected.identity, ready.selected.size_bytes), (identity(UUID), SIZE));
    let mut two = view();
    let other = Namespace {
        name: "nvme0n2".to_owned(),
        nsid: Some(2),
        identity: identity("aaaaaaaa-89ab-cdef-0123-456789abcdef"),
        ..two.namespaces[0].clone()
    };
    two.namespaces.push(other);
    let refused = evaluate(&two, &first, &io(HEAD)).expect_err("which one?");
    assert_eq!(refused.clause, Clause::NamespaceIdentity);
    evaluate(&two, &expectation(), &io(HEAD)).expect("the pinned one is found among them");
}

#[test]
fn a_read_only_grant_may_get_a_writable_device_but_not_the_reverse() {
    let reading = Expectation { read_only: true, ..expectation() };
    evaluate(&view(), &reading, &io(HEAD)).expect("ready");
    let mut view = view();
    view.namespaces[0].read_only = true;
    evaluate(&view, &reading, &io(HEAD)).expect("ready");
}
