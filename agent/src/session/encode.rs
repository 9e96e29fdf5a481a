//! To protobuf: what the agent sends to the controller.
//!
//! Comes in: the agent's own types. Goes out: messages. Decides nothing.

use std::time::Duration;

use cleat_proto::cleat::v1 as proto;
use proto::directive_result::Outcome as WireOutcome;
use proto::volume_state::Phase as WirePhase;

use super::NodeDescription;
use super::counts::CountReport;
use super::decode::RefusedDirective;
use super::outbox::Outgoing;
use crate::ledger::Deletion;
use crate::ledger::rules::Stale;
use crate::name::Epoch;
use crate::volume::clause::FailedClause;
use crate::volume::outcome::{AttachTimes, DirectiveFailure, DirectiveResult, Outcome, Ready, StillRunning};
use crate::volume::state::{Absence, DetachTimes, Path, ShownIdentity, Staging, VolumePhase, VolumeState};

/// The first message of a session: who this node is and what it can do.
pub(super) fn hello(node: &NodeDescription) -> proto::Hello {
    proto::Hello {
        protocol: cleat_proto::SESSION_PROTOCOL,
        node_id: node.node_id.to_string(),
        identity: Some(proto::NodeIdentity {
            host_nqn: node.host_nqn.to_string(),
            host_id: node.host_id.to_string(),
            storage_addresses: node.storage_addresses.iter().map(ToString::to_string).collect(),
            boot_id: node.boot_id.clone(),
        }),
        capabilities: Some(proto::Capabilities {
            kernel_release: node.kernel_release.clone(),
            fabrics: node.fabrics.to_owned(),
            native_multipath: node.native_multipath,
            nqn_prefix: node.nqn_prefix.to_string(),
            in_band_auth: node.in_band_auth,
            reservations: node.reservations,
        }),
        agent_version: node.agent_version.clone(),
        max_volumes: node.max_volumes,
    }
}

/// The message with the state of every volume.
pub(super) fn inventory(volumes: Vec<VolumeState>) -> proto::Inventory {
    proto::Inventory { volumes: volumes.into_iter().map(state).collect() }
}

/// The message of one volume's state.
pub(super) fn state(state: VolumeState) -> proto::VolumeState {
    proto::VolumeState {
        volume_id: state.volume.to_string(),
        epoch: state.epoch.map(epoch),
        epoch_ended: state.epoch_ended,
        phase: phase(state.phase).into(),
        identity: state.identity.map(identity),
        paths: state.paths.into_iter().map(path).collect(),
        unready: state.unready.map(unready),
        openers: state.openers,
        device: state.device.unwrap_or_default(),
        writes: state.writes,
        absence: state.absence.map(absence),
        staging: state.staging.into_iter().map(staging).collect(),
        held_elsewhere: state.held_elsewhere,
        unbroken: state.unbroken,
    }
}

fn epoch(epoch: Epoch) -> proto::Epoch {
    proto::Epoch { term: epoch.term, seq: epoch.seq }
}

fn phase(phase: VolumePhase) -> WirePhase {
    match phase {
        VolumePhase::Absent => WirePhase::Absent,
        VolumePhase::Connecting => WirePhase::Connecting,
        VolumePhase::Ready => WirePhase::Ready,
        VolumePhase::Degraded => WirePhase::Degraded,
        VolumePhase::Lost => WirePhase::Lost,
        VolumePhase::Detaching => WirePhase::Detaching,
    }
}

fn identity(shown: ShownIdentity) -> proto::Identity {
    proto::Identity {
        namespace_uuid: shown.uuid.map(|uuid| uuid.to_string()).unwrap_or_default(),
        nguid: shown.nguid.map(|nguid| nguid.to_string()).unwrap_or_default(),
        size_bytes: shown.size_bytes,
        block_size_bytes: shown.block_size_bytes.unwrap_or_default(),
        read_only: shown.read_only,
    }
}

fn path(path: Path) -> proto::Path {
    let Path { portal, controller, state, ana_state } = path;
    proto::Path { portal, controller, state, ana_state: ana_state.unwrap_or_default() }
}

fn unready(failed: FailedClause) -> proto::Unready {
    proto::Unready { clause: failed.clause.to_owned(), message: failed.message }
}

fn staging(staging: Staging) -> proto::Staging {
    let Staging { path, device, same } = staging;
    proto::Staging { path, device, same }
}

/// What was counted, with its age at this moment.
pub(super) fn writes(report: CountReport) -> proto::WritesCounted {
    let CountReport { asked, counted, at } = report;
    proto::WritesCounted {
        operation_id: asked.operation.to_string(),
        volume_id: asked.volume.to_string(),
        epoch: Some(epoch(asked.epoch)),
        writes: counted.writes,
        last_write_age_us: micros(counted.last_write_age + at.elapsed()),
        open: counted.open,
    }
}

/// The answer to a directive.
pub(super) fn outgoing(outgoing: Outgoing) -> proto::DirectiveResult {
    match outgoing {
        Outgoing::Result(result) => self::result(result),
        Outgoing::Refusal(refusal) => self::refusal(refusal),
    }
}

fn result(result: DirectiveResult) -> proto::DirectiveResult {
    proto::DirectiveResult {
        operation_id: result.operation.to_string(),
        volume_id: result.volume.to_string(),
        epoch: Some(epoch(result.epoch)),
        outcome: Some(outcome(result.outcome)),
    }
}

fn refusal(refusal: RefusedDirective) -> proto::DirectiveResult {
    proto::DirectiveResult {
        operation_id: refusal.operation,
        volume_id: refusal.volume,
        epoch: refusal.epoch.map(|(term, seq)| proto::Epoch { term, seq }),
        outcome: Some(WireOutcome::Failed(failure(refusal.failure))),
    }
}

fn outcome(outcome: Outcome) -> WireOutcome {
    match outcome {
        Outcome::Ready(ready) => WireOutcome::Ready(self::ready(ready)),
        Outcome::Absent(gone) => WireOutcome::Absent(absence(gone)),
        Outcome::Busy(busy) => WireOutcome::Busy(proto::BusyOutcome { holders: busy.holders }),
        Outcome::Failed(failed) => WireOutcome::Failed(failure(failed)),
        Outcome::StaleEpoch(stale) => WireOutcome::StaleEpoch(self::stale(stale)),
        Outcome::Pending(StillRunning { message, age }) => {
            let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            WireOutcome::Pending(proto::PendingOutcome { message, age_ms })
        }
        Outcome::Preempted(preempted) => WireOutcome::Preempted(proto::PreemptedOutcome {
            left_keys: preempted.left_keys,
            aborted_keys: preempted.aborted_keys,
        }),
        Outcome::Rekeyed => WireOutcome::Rekeyed(proto::RekeyedOutcome {}),
    }
}

fn ready(ready: Ready) -> proto::ReadyOutcome {
    let times = ready.times.map(|AttachTimes { connect, device, checks }| proto::AttachTimes {
        connect_us: micros(connect),
        device_us: micros(device),
        checks_us: micros(checks),
    });
    proto::ReadyOutcome { state: Some(state(*ready.state)), times }
}

fn absence(absence: Absence) -> proto::AbsentOutcome {
    let times = absence.times.map(|DetachTimes { checks, flush, delete }| proto::DetachTimes {
        checks_us: micros(checks),
        flush_us: micros(flush),
        delete_us: micros(delete),
    });
    proto::AbsentOutcome { deleted: absence.deleted.into_iter().map(deletion).collect(), times }
}

fn deletion(deletion: Deletion) -> proto::DeletedController {
    let Deletion { controller, portal, state } = deletion;
    proto::DeletedController { controller, portal, state_at_deletion: state }
}

fn failure(failed: DirectiveFailure) -> proto::FailedOutcome {
    proto::FailedOutcome { unready: Some(unready(failed.unready)), nothing_left: failed.nothing_left }
}

fn stale(stale: Stale) -> proto::StaleEpochOutcome {
    proto::StaleEpochOutcome { highest: Some(epoch(stale.highest)), ended: stale.ended }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::name::{OperationId, VolumeId};
    use crate::volume::clause;
    use crate::volume::outcome::{Busy, Preempted};

    const MILLI: Duration = Duration::from_millis(1);

    fn full() -> VolumeState {
        VolumeState {
            volume: VolumeId::parse("v").unwrap(),
            epoch: Some(Epoch::new(3, 4).unwrap()),
            epoch_ended: true,
            phase: VolumePhase::Absent,
            identity: Some(ShownIdentity {
                uuid: None,
                nguid: None,
                size_bytes: 8,
                block_size_bytes: Some(512),
                read_only: true,
            }),
            paths: vec![Path {
                portal: "10.0.1.1:4420".into(),
                controller: "nvme0".into(),
                state: "live".into(),
                ana_state: Some("optimized".into()),
            }],
            unready: Some(clause::failed(clause::CONNECT, "why")),
            openers: vec!["pid 1".into()],
            device: Some("nvme0n1".into()),
            writes: 7,
            absence: Some(gone()),
            staging: vec![Staging { path: "/t".into(), device: "nvme0n1".into(), same: true }],
            held_elsewhere: vec!["process 7".into()],
            unbroken: true,
        }
    }

    fn gone() -> Absence {
        let deleted = vec![Deletion { controller: "nvme0".into(), portal: "p".into(), state: "live".into() }];
        Absence { deleted, times: Some(DetachTimes { checks: MILLI, flush: MILLI * 2, delete: MILLI * 3 }) }
    }

    #[test]
    fn nothing_of_a_state_is_lost() {
        let encoded = state(full());
        let epoch = proto::Epoch { term: 3, seq: 4 };
        assert_eq!(
            (encoded.volume_id.as_str(), encoded.epoch, encoded.epoch_ended),
            ("v", Some(epoch), true)
        );
        assert_eq!(
            (encoded.phase(), encoded.device.as_str(), encoded.writes),
            (WirePhase::Absent, "nvme0n1", 7)
        );
        let identity = encoded.identity.unwrap();
        assert_eq!((identity.size_bytes, identity.block_size_bytes, identity.read_only), (8, 512, true));
        let path = &encoded.paths[0];
        assert_eq!([&path.portal, &path.controller], ["10.0.1.1:4420", "nvme0"]);
        assert_eq!([&path.state, &path.ana_state], ["live", "optimized"]);
        assert_eq!(
            encoded.unready.unwrap(),
            proto::Unready { clause: "connect".into(), message: "why".into() }
        );
        assert_eq!(encoded.openers, ["pid 1"]);
        assert!(encoded.held_elsewhere == ["process 7"] && encoded.unbroken);
        assert_eq!(encoded.absence.unwrap().deleted[0].state_at_deletion, "live");
        assert!(
            encoded.staging[0].same
                && encoded.staging[0].path == "/t"
                && encoded.staging[0].device == "nvme0n1"
        );
        let bare = state(crate::testing::state("v", VolumePhase::Lost));
        let nothing = proto::VolumeState { volume_id: "v".into(), ..Default::default() };
        assert_eq!(bare, proto::VolumeState { phase: WirePhase::Lost.into(), ..nothing });
    }

    #[test]
    fn each_outcome_has_its_message_with_all_that_it_says() {
        let (low, high) = (Epoch::new(1, 2).unwrap(), Epoch::new(3, 4).unwrap());
        let encoded = |outcome| {
            let (operation, volume) = (OperationId::parse("op-1-2").unwrap(), VolumeId::parse("v").unwrap());
            let result =
                outgoing(Outgoing::Result(DirectiveResult { operation, volume, epoch: low, outcome }));
            assert_eq!((result.operation_id.as_str(), result.volume_id.as_str()), ("op-1-2", "v"));
            assert_eq!(result.epoch, Some(proto::Epoch { term: 1, seq: 2 }));
            result.outcome.unwrap()
        };
        let times = AttachTimes { connect: MILLI, device: MILLI * 2, checks: MILLI * 3 };
        let ready = Outcome::Ready(Ready { state: Box::new(full()), times: Some(times) });
        let WireOutcome::Ready(ready) = encoded(ready) else { panic!("ready") };
        assert_eq!(ready.state.unwrap(), state(full()));
        let times = proto::AttachTimes { connect_us: 1000, device_us: 2000, checks_us: 3000 };
        assert_eq!(ready.times, Some(times));
        let WireOutcome::Absent(absent) = encoded(Outcome::Absent(gone())) else { panic!("absent") };
        let times = proto::DetachTimes { checks_us: 1000, flush_us: 2000, delete_us: 3000 };
        assert_eq!((absent.deleted.len(), absent.times), (1, Some(times)));
        let busy = encoded(Outcome::Busy(Busy { holders: vec!["qemu".into()] }));
        assert_eq!(busy, WireOutcome::Busy(proto::BusyOutcome { holders: vec!["qemu".into()] }));
        for nothing_left in [false, true] {
            let unready = clause::failed(clause::DELETE, "why");
            let encoded = encoded(Outcome::Failed(DirectiveFailure { unready, nothing_left }));
            let unready = Some(proto::Unready { clause: "delete".into(), message: "why".into() });
            assert_eq!(encoded, WireOutcome::Failed(proto::FailedOutcome { unready, nothing_left }));
        }
        let stale = encoded(Outcome::StaleEpoch(Stale { highest: high, ended: true }));
        let highest = Some(proto::Epoch { term: 3, seq: 4 });
        assert_eq!(stale, WireOutcome::StaleEpoch(proto::StaleEpochOutcome { highest, ended: true }));
        let pending = encoded(Outcome::Pending(StillRunning { message: "waits".into(), age: MILLI * 5 }));
        let message = "waits".to_owned();
        assert_eq!(pending, WireOutcome::Pending(proto::PendingOutcome { message, age_ms: 5 }));
        let preempted = Preempted { left_keys: vec![1, 2], aborted_keys: vec![3] };
        let (left_keys, aborted_keys) = (vec![1, 2], vec![3]);
        let expected = proto::PreemptedOutcome { left_keys, aborted_keys };
        assert_eq!(encoded(Outcome::Preempted(preempted)), WireOutcome::Preempted(expected));
        assert_eq!(encoded(Outcome::Rekeyed), WireOutcome::Rekeyed(proto::RekeyedOutcome {}));
    }

    #[test]
    fn a_refusal_repeats_what_came_as_it_came() {
        let failure =
            DirectiveFailure { unready: clause::failed(clause::REQUEST, "no"), nothing_left: false };
        let refusal =
            RefusedDirective { operation: "?".into(), volume: "../v".into(), epoch: Some((0, 0)), failure };
        let encoded = outgoing(Outgoing::Refusal(refusal));
        assert_eq!((encoded.operation_id.as_str(), encoded.volume_id.as_str()), ("?", "../v"));
        assert_eq!(encoded.epoch, Some(proto::Epoch::default()));
        assert!(matches!(encoded.outcome, Some(WireOutcome::Failed(failed)) if !failed.nothing_left));
    }
}
