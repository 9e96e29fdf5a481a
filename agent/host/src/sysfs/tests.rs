//! The topology of fixture trees with the layout of real kernels.

use super::*;
use crate::fixtures::{ControllerSpec, NamespaceSpec, Tree};
use crate::name::{NamespaceUuid, Portal};

const NQN: &str = "nqn.2026-01.test:v1";
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000011";
const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

fn controller(instance: u32, ip: &str) -> ControllerSpec<'_> {
    ControllerSpec {
        instance,
        subsystem: NQN,
        host_nqn: HOST,
        host_id: "00000000-0000-0000-0000-000000000011",
        portal: (ip, 4420),
        state: "live",
    }
}

fn namespace(dev: &str) -> NamespaceSpec<'_> {
    NamespaceSpec { nsid: 1, uuid: UUID, dev, size_bytes: 1 << 30 }
}

fn two_paths() -> Tree {
    let tree = Tree::new();
    tree.subsystem(0, NQN);
    tree.controller(0, &controller(0, "10.77.1.1"));
    tree.controller(0, &controller(1, "10.77.2.1"));
    tree.head(0, &namespace("259:1"), &[0, 1]);
    tree
}

fn read(tree: &Tree) -> Topology {
    tree.sysfs().read_blocking().expect("readable")
}

#[test]
fn a_host_without_nvme_has_an_empty_topology() {
    let nothing = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(nothing.path().join("class")).expect("made");
    let topology = Sysfs::at(nothing.path()).read_blocking().expect("no NVMe is no error");
    assert!(topology.controllers.is_empty() && topology.namespaces.is_empty());
    assert_eq!(topology.multipath, NativeMultipath::Absent);
}

#[test]
fn a_tree_that_is_not_there_is_no_proof_that_nothing_is_connected() {
    let nothing = tempfile::tempdir().expect("a directory");
    let empty = Sysfs::at(nothing.path()).read_blocking().expect_err("no sysfs");
    assert!(empty.to_string().contains("class"), "{empty}");
    let tree = Tree::new();
    std::fs::remove_dir(tree.root().join("class/nvme")).expect("removed");
    let lost = tree.sysfs().read_blocking().expect_err("the module is there");
    assert!(lost.to_string().contains("class/nvme"), "{lost}");
}

#[test]
fn one_namespace_over_two_portals_is_one_head_with_two_paths() {
    let topology = read(&two_paths());
    assert_eq!(topology.multipath, NativeMultipath::On);
    assert_eq!(topology.subsystem_nqns(), [NQN]);
    assert!(topology.unreadable.is_empty(), "{:?}", topology.unreadable);
    let view = topology.view(&NQN.parse().expect("valid"));
    assert_eq!(view.controllers.len(), 2);
    let first = &view.controllers[0];
    assert_eq!(first.portal(), Portal::parse("10.77.1.1:4420").ok());
    assert_eq!(first.host_nqn.as_deref(), Some(HOST));
    assert_eq!(first.subsystem.as_deref(), Some("nvme-subsys0"));
    assert!(first.state.is_live());
    let [head] = &view.namespaces[..] else { panic!("{:?}", view.namespaces) };
    assert_eq!((head.name.as_str(), head.dev.to_string().as_str()), ("nvme0n1", "259:1"));
    assert_eq!((head.size_bytes, head.logical_block_bytes), (1 << 30, Some(512)));
    assert_eq!(head.identity.uuid, NamespaceUuid::parse(UUID).ok());
    let paths: Vec<_> =
        head.paths().iter().map(|path| (path.name.as_str(), path.controller.as_str())).collect();
    assert_eq!(paths, [("nvme0c0n1", "nvme0"), ("nvme0c1n1", "nvme1")]);
    assert_eq!(head.paths()[0].ana_state, Some(AnaState::Optimized));
}

#[test]
fn a_view_read_alone_is_the_same_as_a_view_of_everything() {
    let tree = two_paths();
    tree.subsystem(1, "nqn.2026-01.test:other");
    tree.controller(1, &ControllerSpec { subsystem: "nqn.2026-01.test:other", ..controller(2, "10.77.1.1") });
    let nqn = NQN.parse().expect("valid");
    assert_eq!(tree.sysfs().view_blocking(&nqn).expect("readable"), read(&tree).view(&nqn));
    let absent =
        tree.sysfs().view_blocking(&"nqn.2026-01.test:none".parse().expect("valid")).expect("readable");
    assert!(absent.is_proven_absent());
}

#[test]
fn without_native_multipath_each_controller_has_its_own_device_and_map() {
    let tree = Tree::new();
    tree.write("module/nvme_core/parameters/multipath", "N\n");
    tree.subsystem(0, NQN);
    for (instance, ip, dev) in [(0, "10.77.1.1", "259:0"), (1, "10.77.2.1", "259:1")] {
        tree.controller(0, &controller(instance, ip));
        tree.bare(instance, &namespace(dev));
    }
    tree.dm("dm-0", "253:0", &format!("mpath-uuid.{UUID}"), "mpatha", &["nvme0n1", "nvme1n1"]);
    let topology = read(&tree);
    assert_eq!(topology.multipath, NativeMultipath::Off);
    let names: Vec<_> = topology.namespaces.iter().map(|n| n.namespace.name.as_str()).collect();
    assert_eq!(names, ["nvme0n1", "nvme1n1"]);
    for found in &topology.namespaces {
        assert!(matches!(found.namespace.kind, NamespaceKind::Bare { .. }));
        let [holder] = &found.namespace.holders[..] else { panic!("{found:?}") };
        assert_eq!(holder.kind, HolderKind::DmMultipath { map: "mpatha".to_owned() });
        assert_eq!(holder.dev.map(|dev| dev.to_string()).as_deref(), Some("253:0"));
    }
}

#[test]
fn each_kind_of_holder_is_recognised() {
    let tree = two_paths();
    tree.dm("dm-1", "253:1", "LVM-abcdef", "vg-lv", &["nvme0n1"]);
    let topology = read(&tree);
    let holder = &topology.namespaces[0].namespace.holders[0];
    assert!(
        matches!(&holder.kind, HolderKind::Dm { map, uuid } if map == "vg-lv" && uuid.starts_with("LVM-"))
    );
    assert!(holder.to_string().contains("LVM"), "{holder}");
}

#[test]
fn what_sits_on_a_partition_sits_on_the_device() {
    let tree = two_paths();
    tree.partition("nvme0n1", "nvme0n1p3", "259:9");
    tree.dm("dm-1", "253:1", "LVM-abcdef", "guest-root", &["nvme0n1p3"]);
    let topology = read(&tree);
    let names: Vec<_> = topology.namespaces[0].namespace.holders.iter().map(|h| h.name.as_str()).collect();
    assert_eq!(names, ["dm-1"]);
    assert_eq!(topology.namespaces.len(), 1, "a partition is no namespace");
}

#[test]
fn an_nguid_in_the_place_of_the_uuid_is_not_taken_for_one() {
    let tree = two_paths();
    let head = "devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1";
    tree.write(&format!("{head}/wwid"), "eui.0123456789abcdef0123456789abcdef\n");
    tree.write(&format!("{head}/nguid"), &format!("{UUID}\n"));
    let identity = read(&tree).namespaces[0].namespace.identity;
    assert_eq!(identity.uuid, None);
    assert_eq!(
        identity.nguid.map(|nguid| nguid.to_string()).as_deref(),
        Some("0123456789abcdef0123456789abcdef")
    );
}

#[test]
fn what_vanishes_while_it_is_read_is_left_out() {
    let tree = two_paths();
    // Links that lead nowhere: the class entry is still listed, the device has gone.
    std::fs::remove_dir_all(tree.root().join("devices/virtual/nvme-fabrics/ctl/nvme1")).expect("removed");
    std::fs::remove_file(tree.root().join("devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1/dev"))
        .expect("removed");
    let topology = read(&tree);
    assert_eq!(topology.controllers.len(), 1);
    assert!(topology.namespaces.is_empty(), "a head without a number is on its way out");
    assert!(topology.unreadable.is_empty(), "{:?}", topology.unreadable);
}

#[test]
fn what_is_there_and_cannot_be_read_is_listed() {
    let tree = two_paths();
    tree.set(0, "cntlid", "many");
    let topology = read(&tree);
    assert_eq!(topology.unreadable.len(), 1);
    assert!(topology.unreadable[0].path.ends_with("cntlid"), "{:?}", topology.unreadable);
    assert!(!topology.view(&"nqn.2026-01.test:none".parse().expect("valid")).is_proven_absent());
}

#[test]
fn writes_are_counted_at_the_head_or_its_paths() {
    let tree = two_paths();
    let stat = |dir: &str, writes: u64, sectors: u64| {
        tree.write(&format!("{dir}/stat"), &format!("0 0 0 0 {writes} 0 {sectors} 0 0 0 0 0 0 0 0 0 0\n"));
    };
    // As on 6.1: the head does not count.
    stat("class/block/nvme0n1", 0, 0);
    stat("class/block/nvme0c0n1", 3, 24);
    stat("class/block/nvme0c1n1", 2, 16);
    assert_eq!(read(&tree).namespaces[0].namespace.written(), (5, 40 * 512));
    // As on 6.12: both count the same requests.
    stat("class/block/nvme0n1", 5, 40);
    assert_eq!(read(&tree).namespaces[0].namespace.written(), (5, 40 * 512));
}
