//! Which state follows from what is seen.

use std::collections::BTreeMap;

use cleat_host::readiness::PathPolicy;

use super::*;
use crate::ledger::rules::ending;
use crate::ledger::{Grant, LedgerEntry};
use crate::testing::kernel::{HOST, UUID, controller, portal, view};

const BOOT: &str = "boot-1";

fn entry(ended: bool) -> LedgerEntry {
    let grant = Grant {
        portals: vec![portal(1), portal(2)],
        identity: Default::default(),
        size_bytes: 0,
        read_only: false,
        policy: PathPolicy::Any,
        reserve: None,
    };
    let mut entry = ending(None, "1.1".parse().unwrap(), &[], BOOT);
    entry.ended = ended;
    entry.grant = Some(grant);
    entry
}

fn expectation(policy: PathPolicy) -> Expectation {
    Expectation {
        subsystem: crate::testing::kernel::nqn("v"),
        identity: cleat_host::NamespaceUuid::parse(UUID)
            .ok()
            .map(|uuid| cleat_host::NamespaceIdentity { uuid: Some(uuid), nguid: None }),
        size_bytes: None,
        read_only: false,
        host_nqn: HostNqn::parse(HOST).unwrap(),
        portals: vec![portal(1), portal(2)],
        paths: policy,
        asked_holders: Vec::new(),
    }
}

struct Case {
    controllers: Vec<Controller>,
    entry: Option<LedgerEntry>,
    policy: PathPolicy,
    activity: Activity,
    was_ready: bool,
}

impl Case {
    fn new(states: &[(u8, &str)]) -> Self {
        let controllers =
            states.iter().enumerate().map(|(n, (at, state))| controller(n as u32, *at, state)).collect();
        let entry = Some(entry(false));
        Self { controllers, entry, policy: PathPolicy::Any, activity: Activity::None, was_ready: true }
    }

    fn state(self) -> VolumeState {
        let (view, host) = (view(self.controllers), HostNqn::parse(HOST).unwrap());
        let expectation = expectation(self.policy);
        judge(&Seen {
            volume: &VolumeId::parse("v").unwrap(),
            view: &view,
            connecting: false,
            host_nqn: &host,
            entry: Ok(self.entry.as_ref()),
            expectation: self.entry.as_ref().map(|_| &expectation),
            activity: self.activity,
            was_ready: self.was_ready,
            failing: None,
            unregistered: None,
            unheld: false,
            staging: &[],
            silent: &BTreeMap::new(),
            dead_users: &[],
            held: &[],
            boot_id: BOOT,
        })
    }

    fn phase(self) -> VolumePhase {
        self.state().phase
    }
}

#[test]
fn the_phase_follows_the_paths() {
    assert_eq!(Case::new(&[(1, "live"), (2, "live")]).phase(), VolumePhase::Ready);
    assert_eq!(Case::new(&[(1, "live"), (2, "connecting")]).phase(), VolumePhase::Degraded);
    assert_eq!(Case::new(&[(1, "live")]).phase(), VolumePhase::Degraded);
    assert_eq!(Case::new(&[(1, "connecting"), (2, "connecting")]).phase(), VolumePhase::Lost);
    assert_eq!(Case::new(&[]).phase(), VolumePhase::Lost);
    let quorum = Case { policy: PathPolicy::All, ..Case::new(&[(1, "live"), (2, "connecting")]) };
    assert_eq!(
        quorum.phase(),
        VolumePhase::Degraded,
        "it works, though fewer paths are live than the policy wants"
    );
}

#[test]
fn absent_is_said_only_when_nothing_is_there_and_nothing_was_lost() {
    let never = Case { was_ready: false, ..Case::new(&[]) };
    assert_eq!(never.phase(), VolumePhase::Absent);
    let over = Case { entry: Some(entry(true)), ..Case::new(&[]) }.state();
    assert_eq!(over.phase, VolumePhase::Absent);
    assert!(over.absence.is_some() && over.epoch_ended);
    let connecting = Case { activity: Activity::Connecting, was_ready: false, ..Case::new(&[]) };
    assert_eq!(connecting.phase(), VolumePhase::Connecting);
}

#[test]
fn a_grant_that_has_ended_with_controllers_left_is_being_detached() {
    let left = Case { entry: Some(entry(true)), ..Case::new(&[(1, "live")]) };
    assert_eq!(left.phase(), VolumePhase::Detaching);
}

#[test]
fn what_no_grant_explains_is_reported_and_never_ready() {
    let state = Case { entry: None, was_ready: false, ..Case::new(&[(1, "live"), (2, "live")]) }.state();
    assert_eq!(state.phase, VolumePhase::Connecting);
    assert_eq!(state.unready.unwrap().clause, clause::GRANT);
    assert_eq!(state.paths.len(), 2);
    assert_eq!(state.device.as_deref(), Some("nvme0n1"));
}
