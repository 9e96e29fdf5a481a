//! Waiting for readiness, on fixture trees. No test has a block device, so the last clause that can be
//! reached is that of the device node.

use std::sync::Arc;

use super::*;
use crate::fixtures::{FakeKernel, Tree, Volume};
use crate::readiness::{Clause, PathPolicy};
use crate::uevents::{HostEvent, Uevents};

const NQN: &str = "nqn.2026-01.test:v1";
const LONG: Duration = Duration::from_secs(20);

struct Fixture {
    kernel: FakeKernel,
    checker: Checker,
    expectation: Expectation,
    dev: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let kernel = FakeKernel::start(Arc::new(Tree::new()));
    kernel.export(Volume {
        subsystem: NQN.to_owned(),
        uuid: "01234567-89ab-cdef-0123-456789abcdef".to_owned(),
        dev: "259:1".to_owned(),
        size_bytes: 1 << 20,
    });
    let (sysfs, workers) = (kernel.tree().sysfs(), Workers::new());
    let dev = tempfile::tempdir().expect("a directory");
    let openers = Openers::at("/proc", dev.path(), sysfs.clone(), workers.clone());
    let checker = Checker::at(dev.path(), sysfs, workers, openers);
    let expectation = Expectation {
        subsystem: NQN.parse().expect("valid"),
        identity: None,
        size_bytes: None,
        read_only: false,
        host_nqn: "nqn.2026-01.test:host".parse().expect("valid"),
        portals: vec!["10.0.0.1:4420".parse().expect("valid")],
        paths: PathPolicy::All,
        asked_holders: Vec::new(),
    };
    Fixture { kernel, checker, expectation, dev }
}

fn connect(kernel: &FakeKernel, host: &str) {
    kernel.connect_foreign(&format!("nqn={NQN},traddr=10.0.0.1,trsvcid=4420,hostnqn={host}"));
}

fn clause(result: Result<ReadyFacts, CheckError>) -> Clause {
    match result {
        Err(CheckError::Unready(unready)) => unready.clause,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_second_check_looks_at_no_other_volumes_subsystem() {
    let fixture = fixture();
    connect(&fixture.kernel, "nqn.2026-01.test:host");
    let check = async || clause(fixture.checker.check(&fixture.expectation, LONG).await);
    let first = check().await;
    // Whoever reads it from now on says so.
    let other = fixture.kernel.tree().root().join("class/nvme-subsystem/nvme-subsys9/subsysnqn");
    std::fs::create_dir_all(&other).expect("made");
    assert_eq!(check().await, first);
    let (sysfs, workers) = (fixture.kernel.tree().sysfs(), Workers::new());
    let openers = Openers::at("/proc", fixture.dev.path(), sysfs.clone(), workers.clone());
    let fresh = Checker::at(fixture.dev.path(), sysfs, workers, openers);
    assert_ne!(clause(fresh.check(&fixture.expectation, LONG).await), first, "it reads all of them once");
}

#[tokio::test]
async fn a_deadline_names_the_clause_that_was_waited_for() {
    let fixture = fixture();
    let (uevents, _source) = Uevents::scripted();
    let short = Duration::from_millis(50);
    let result = fixture.checker.wait(&fixture.expectation, &mut uevents.listen(), short).await;
    assert_eq!(clause(result), Clause::Subsystem);
    connect(&fixture.kernel, "nqn.2026-01.test:host");
    let result = fixture.checker.wait(&fixture.expectation, &mut uevents.listen(), short).await;
    assert_eq!(clause(result), Clause::DeviceNode);
}

#[tokio::test]
async fn what_cannot_heal_is_not_waited_for() {
    let fixture = fixture();
    connect(&fixture.kernel, "nqn.2026-01.test:somebody");
    let (uevents, _source) = Uevents::scripted();
    let since = Instant::now();
    let result = fixture.checker.wait(&fixture.expectation, &mut uevents.listen(), LONG).await;
    assert_eq!(clause(result), Clause::HostNqn);
    assert!(since.elapsed() < LONG / 2);
}

#[tokio::test]
async fn waiting_goes_on_when_events_end_and_when_they_overrun() {
    let fixture = fixture();
    for overrun in [false, true] {
        let (uevents, source) = Uevents::scripted();
        let mut listener = uevents.listen();
        if overrun {
            source.send(HostEvent::Overrun).expect("a listener");
        }
        drop((uevents, source));
        let short = Duration::from_millis(50);
        let result = fixture.checker.wait(&fixture.expectation, &mut listener, short).await;
        assert_eq!(clause(result), Clause::Subsystem);
    }
}
