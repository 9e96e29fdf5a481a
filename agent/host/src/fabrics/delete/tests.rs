//! What a deletion proves, by its facts.

use super::*;
use crate::fixtures::{ControllerSpec, NamespaceSpec, Tree};

fn facts(state: ControllerState, in_flight: Option<u64>, took: Duration) -> DeletionFacts {
    DeletionFacts { state, in_flight, portal: None, took, io_timeout: Duration::from_secs(30) }
}

#[test]
fn only_a_live_controller_drains_and_not_past_the_io_timeout() {
    let (quick, slow) = (Duration::from_millis(85), Duration::from_secs(31));
    assert!(facts(ControllerState::Live, Some(3), quick).drained());
    assert!(facts(ControllerState::Live, Some(0), slow).drained());
    assert!(!facts(ControllerState::Live, Some(3), slow).drained());
    assert!(!facts(ControllerState::Live, None, slow).drained());
    for state in [ControllerState::Connecting, ControllerState::Resetting, ControllerState::Dead] {
        assert!(!facts(state, Some(0), quick).drained());
    }
}

#[test]
fn facts_are_read_through_the_open_directory() {
    let tree = Tree::new();
    tree.subsystem(0, "nqn.2026-01.test:v1");
    tree.controller(
        0,
        &ControllerSpec {
            instance: 0,
            subsystem: "nqn.2026-01.test:v1",
            host_nqn: "nqn.2026-01.test:host",
            host_id: "00000000-0000-0000-0000-000000000011",
            portal: ("10.77.1.1", 4420),
            state: "live",
        },
    );
    let uuid = "01234567-89ab-cdef-0123-456789abcdef";
    tree.head(0, &NamespaceSpec { nsid: 1, uuid, dev: "259:1", size_bytes: 4096 }, &[0]);
    tree.write("devices/virtual/nvme-fabrics/ctl/nvme0/nvme0c0n1/inflight", "  1  2\n");
    tree.write("module/nvme_core/parameters/io_timeout", "45\n");
    let dir =
        PinnedDir::open(&tree.sysfs().controller_dir(&ControllerName::from_instance(0))).expect("opens");
    let facts = read_facts(&tree.sysfs(), &dir).expect("there");
    assert_eq!(facts.in_flight, Some(3));
    assert_eq!(facts.io_timeout, Duration::from_secs(45));
    tree.remove_controller(0, 0);
    assert_eq!(incarnation(&tree.sysfs(), &ControllerName::from_instance(0)), None);
}
