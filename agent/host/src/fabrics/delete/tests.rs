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
    assert!(facts(ControllerState::Live, Some(0), Duration::from_secs(10)).drained());
    // How old a request was when the deletion began is not known: it may have run into its own timeout.
    assert!(!facts(ControllerState::Live, Some(3), Duration::from_secs(2)).drained());
    assert!(!facts(ControllerState::Live, None, Duration::from_secs(2)).drained());
    // Nothing was in flight at the look; what came between it and the deletion can have run into the timeout.
    assert!(!facts(ControllerState::Live, Some(0), slow).drained());
    assert!(!facts(ControllerState::Live, Some(3), slow).drained());
    assert!(!facts(ControllerState::Live, None, slow).drained());
    for state in [ControllerState::Connecting, ControllerState::Resetting, ControllerState::Dead] {
        assert!(!facts(state, Some(0), quick).drained());
    }
}

fn one_controller() -> (Tree, ExactController) {
    let tree = Tree::new();
    tree.subsystem(0, "nqn.2026-01.test:v1");
    let spec = ControllerSpec {
        instance: 0,
        subsystem: "nqn.2026-01.test:v1",
        host_nqn: "nqn.2026-01.test:host",
        host_id: "00000000-0000-0000-0000-000000000011",
        portal: ("10.77.1.1", 4420),
        state: "live",
    };
    tree.controller(0, &spec);
    let target = ExactController {
        controller: ControllerName::from_instance(0),
        subsystem: "nqn.2026-01.test:v1".parse().expect("valid"),
        host_nqn: "nqn.2026-01.test:host".parse().expect("valid"),
        incarnation: None,
    };
    (tree, target)
}

#[test]
fn a_controller_whose_state_cannot_be_read_is_deleted_and_not_drained() {
    let (tree, target) = one_controller();
    let state = tree.root().join("class/nvme/nvme0/state");
    std::fs::remove_file(&state).expect("removed");
    std::fs::create_dir(&state).expect("made");
    let sysfs = tree.sysfs();
    let deletes: Means = Box::new(move |_, _| {
        tree.remove_controller(0, 0);
        Ok(())
    });
    let gone = run(&sysfs, &target, deletes, |_| {}).expect("deleted");
    assert!(matches!(gone.how, HowDeleted::Deleted(_)) && !gone.drained(), "{gone:?}");
}

#[test]
fn a_controller_that_cannot_be_looked_at_after_its_deletion_is_not_gone() {
    let (tree, target) = one_controller();
    let class = tree.root().join("class/nvme/nvme0");
    // As with no descriptor left to open it with.
    let unreadable: Means = Box::new(move |_, _| {
        std::fs::rename(&class, class.with_file_name("aside"))?;
        std::os::unix::fs::symlink("nvme0", &class)
    });
    let work = {
        let sysfs = tree.sysfs();
        move || run_for(&sysfs, &target, unreadable, |_| {}, Duration::from_millis(30))
    };
    let error = work().expect_err("nobody has seen it gone");
    assert!(matches!(error, DisconnectError::StillDetaching { .. }), "{error}");
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
    let facts = read_facts(&tree.sysfs(), &dir);
    assert_eq!(facts.in_flight, Some(3));
    tree.write("devices/virtual/nvme-fabrics/ctl/nvme0/nvme0c0n1/queue/iostats", "0\n");
    assert_eq!(read_facts(&tree.sysfs(), &dir).in_flight, None, "a kernel that does not count says 0");
    assert_eq!(facts.io_timeout, Duration::from_secs(45));
    tree.remove_controller(0, 0);
    assert_eq!(incarnation(&tree.sysfs(), &ControllerName::from_instance(0)), None);
}
