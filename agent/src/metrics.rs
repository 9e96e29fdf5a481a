//! Every metric of the agent: names, labels and buckets in one place.
//!
//! Comes in: what happened, as typed values. Goes out: the process-wide recorder. Always holds: label values come
//! from enums of this file or of the protocol, never from a volume, a path or a message, so that their number is
//! bounded.

use std::time::Duration;

use cleat_proto::cleat::v1::VolumeState;
use cleat_proto::cleat::v1::directive_result::Outcome;
use cleat_proto::cleat::v1::volume_state::Phase;
use cleat_runtime::http::Buckets;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

const ATTACH_SECONDS: &str = "cleat_agent_attach_seconds";
const DETACH_SECONDS: &str = "cleat_agent_detach_seconds";
const DIRECTIVES: &str = "cleat_agent_directives_total";
const CSI_CALLS: &str = "cleat_agent_csi_calls_total";
const CSI_SECONDS: &str = "cleat_agent_csi_seconds";
const VOLUMES: &str = "cleat_agent_volumes";
const PATHS: &str = "cleat_agent_paths";
const PHASE_CHANGES: &str = "cleat_agent_phase_changes_total";
const SESSION_UP: &str = "cleat_agent_session_up";
const SESSIONS: &str = "cleat_agent_sessions_total";
const LEDGER_ERRORS: &str = "cleat_agent_ledger_errors_total";
const LOOK_ERRORS: &str = "cleat_agent_look_errors_total";
const SILENT_ADDRESSES: &str = "cleat_agent_silent_storage_addresses";
const PATH_REPAIRS: &str = "cleat_agent_path_repairs_total";
const REASSERTIONS: &str = "cleat_agent_reservation_reassertions_total";

/// Attach and detach take 60 ms to a few seconds when all is well (measured under emulation: 85 ms for one, 1.3 to
/// 6 s for 32 at once); a phase of its own may take a millisecond.
const PHASE_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0,
];

/// Histograms with buckets of their own.
pub const BUCKETS: &[Buckets] = &[(ATTACH_SECONDS, PHASE_BUCKETS), (DETACH_SECONDS, PHASE_BUCKETS)];

/// Tells the recorder what each metric means. Call once the recorder is installed.
pub fn describe() {
    describe_histogram!(ATTACH_SECONDS, "Time of a successful attach by phase; total is receipt to Ready");
    describe_histogram!(DETACH_SECONDS, "Time of a successful detach by phase; total is receipt to Absent");
    describe_counter!(DIRECTIVES, "Directives of the controller by kind and outcome");
    describe_counter!(CSI_CALLS, "CSI calls by method and status code");
    describe_histogram!(CSI_SECONDS, "Time of CSI calls by method");
    describe_gauge!(VOLUMES, "Volumes known to this node by phase");
    describe_gauge!(PATHS, "Paths of all volumes by whether they are live");
    describe_counter!(PHASE_CHANGES, "Changes of a volume's phase by the phase it changed to");
    describe_gauge!(SESSION_UP, "1 while a session with the controller is established");
    describe_counter!(SESSIONS, "Sessions that ended, by reason");
    describe_counter!(LEDGER_ERRORS, "Failures to read or write the ledger");
    describe_counter!(LOOK_ERRORS, "Failures to look at the kernel's state");
    describe_gauge!(SILENT_ADDRESSES, "Storage addresses that volumes want and that do not answer");
    describe_counter!(PATH_REPAIRS, "Attempts to connect a missing path of a volume in use, by result");
    describe_counter!(
        REASSERTIONS,
        "Registrations of this node that a target had forgotten and that were asserted again, by result"
    );
    session_up(false);
    silent_addresses(0);
    counter!(LEDGER_ERRORS).absolute(0);
}

/// A part of the time of an attach.
#[derive(Debug, Clone, Copy)]
pub enum AttachPhase {
    /// Until the controllers that were made were live.
    Connect,
    /// Until the device node was there.
    Device,
    /// Until the predicate held.
    Checks,
    /// All of it.
    Total,
}

/// Records a part of a successful attach.
pub fn attach_seconds(phase: AttachPhase, time: Duration) {
    let phase = match phase {
        AttachPhase::Connect => "connect",
        AttachPhase::Device => "device",
        AttachPhase::Checks => "checks",
        AttachPhase::Total => "total",
    };
    histogram!(ATTACH_SECONDS, "phase" => phase).record(time.as_secs_f64());
}

/// A part of the time of a detach.
#[derive(Debug, Clone, Copy)]
pub enum DetachPhase {
    /// Looking for mounts, openers, holders.
    Checks,
    /// Flushing the device.
    Flush,
    /// Deleting controllers until sysfs shows none.
    Delete,
    /// All of it.
    Total,
}

/// Records a part of a successful detach.
pub fn detach_seconds(phase: DetachPhase, time: Duration) {
    let phase = match phase {
        DetachPhase::Checks => "checks",
        DetachPhase::Flush => "flush",
        DetachPhase::Delete => "delete",
        DetachPhase::Total => "total",
    };
    histogram!(DETACH_SECONDS, "phase" => phase).record(time.as_secs_f64());
}

/// The kinds of directives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectiveKind {
    /// Attach.
    Attach,
    /// Detach.
    Detach,
    /// Revoke.
    Revoke,
    /// Verify.
    Verify,
    /// Preempt.
    Preempt,
    /// Rekey.
    Rekey,
}

impl DirectiveKind {
    /// The kind as logs and metrics say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Revoke => "revoke",
            Self::Verify => "verify",
            Self::Preempt => "preempt",
            Self::Rekey => "rekey",
        }
    }
}

/// The outcome as logs and metrics say it.
pub fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Ready(_) => "ready",
        Outcome::Absent(_) => "absent",
        Outcome::Busy(_) => "busy",
        Outcome::Failed(_) => "failed",
        Outcome::StaleEpoch(_) => "stale_epoch",
        Outcome::Pending(_) => "pending",
        Outcome::Preempted(_) => "preempted",
        Outcome::Rekeyed(_) => "rekeyed",
    }
}

/// Counts an outcome of a directive.
pub fn directive(kind: DirectiveKind, outcome: &Outcome) {
    counter!(DIRECTIVES, "kind" => kind.as_str(), "outcome" => outcome_name(outcome)).increment(1);
}

/// How asserting a forgotten registration again has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reassertion {
    /// It holds again.
    Done,
    /// It came too late to be sure of the grant, and was taken back.
    TakenBack,
    /// It did not succeed.
    Failed,
}

/// Counts a registration that was asserted again.
pub fn reassertion(how: Reassertion) {
    let result = match how {
        Reassertion::Done => "done",
        Reassertion::TakenBack => "taken_back",
        Reassertion::Failed => "failed",
    };
    counter!(REASSERTIONS, "result" => result).increment(1);
}

/// The CSI methods that do work.
#[derive(Debug, Clone, Copy)]
pub enum CsiMethod {
    /// NodeStageVolume.
    Stage,
    /// NodeUnstageVolume.
    Unstage,
    /// NodePublishVolume.
    Publish,
    /// NodeUnpublishVolume.
    Unpublish,
}

impl CsiMethod {
    /// The method as logs and metrics say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stage => "NodeStageVolume",
            Self::Unstage => "NodeUnstageVolume",
            Self::Publish => "NodePublishVolume",
            Self::Unpublish => "NodeUnpublishVolume",
        }
    }
}

/// Counts a CSI call and its time.
pub fn csi_call(method: CsiMethod, code: tonic::Code, time: Duration) {
    let labels = [("method", method.as_str().to_owned()), ("code", format!("{code:?}"))];
    counter!(CSI_CALLS, &labels).increment(1);
    histogram!(CSI_SECONDS, "method" => method.as_str()).record(time.as_secs_f64());
}

/// The phase as logs and metrics say it.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "unspecified",
        Phase::Absent => "absent",
        Phase::Connecting => "connecting",
        Phase::Ready => "ready",
        Phase::Degraded => "degraded",
        Phase::Lost => "lost",
        Phase::Detaching => "detaching",
    }
}

/// Sets the gauges of volumes by phase and paths by state.
pub fn volumes<'a>(states: impl Iterator<Item = &'a VolumeState>) {
    let phases =
        [Phase::Absent, Phase::Connecting, Phase::Ready, Phase::Degraded, Phase::Lost, Phase::Detaching];
    let mut counts = [0u32; 6];
    let (mut live, mut dead) = (0u32, 0u32);
    for state in states {
        if let Some(index) = phases.iter().position(|phase| *phase == state.phase()) {
            counts[index] += 1;
        }
        for path in &state.paths {
            *if path.state == "live" { &mut live } else { &mut dead } += 1;
        }
    }
    for (phase, count) in phases.into_iter().zip(counts) {
        gauge!(VOLUMES, "phase" => phase_name(phase)).set(f64::from(count));
    }
    gauge!(PATHS, "state" => "live").set(f64::from(live));
    gauge!(PATHS, "state" => "not_live").set(f64::from(dead));
}

/// Counts a change of phase.
pub fn phase_changed(to: Phase) {
    counter!(PHASE_CHANGES, "phase" => phase_name(to)).increment(1);
}

/// Says whether a session is established.
pub fn session_up(up: bool) {
    gauge!(SESSION_UP).set(if up { 1.0 } else { 0.0 });
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// The controller could not be reached.
    Unreachable,
    /// It refused the session, or what it said was no part of the protocol.
    Refused,
    /// It was silent for longer than agreed.
    Silent,
    /// It closed the stream.
    Closed,
    /// The agent stops.
    Stopping,
}

/// Counts the end of a session.
pub fn session_ended(end: SessionEnd) {
    let reason = match end {
        SessionEnd::Unreachable => "unreachable",
        SessionEnd::Refused => "refused",
        SessionEnd::Silent => "silent",
        SessionEnd::Closed => "closed",
        SessionEnd::Stopping => "stopping",
    };
    counter!(SESSIONS, "reason" => reason).increment(1);
}

/// Counts a failure of the ledger.
pub fn ledger_error() {
    counter!(LEDGER_ERRORS).increment(1);
}

/// Counts a failure to look at the kernel.
pub fn look_error() {
    counter!(LOOK_ERRORS).increment(1);
}

/// Says how many storage addresses do not answer.
pub fn silent_addresses(count: usize) {
    gauge!(SILENT_ADDRESSES).set(u32::try_from(count).map_or(f64::INFINITY, f64::from));
}

/// Counts an attempt to connect a missing path of a volume in use.
pub fn path_repair(connected: bool) {
    counter!(PATH_REPAIRS, "result" => if connected { "connected" } else { "failed" }).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_and_paths_are_counted_by_what_they_are() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let path = |state: &str| cleat_proto::cleat::v1::Path { state: state.into(), ..Default::default() };
        let state = VolumeState {
            phase: Phase::Degraded.into(),
            paths: vec![path("live"), path("connecting")],
            ..VolumeState::default()
        };
        metrics::with_local_recorder(&recorder, || volumes([state].iter()));
        let text = recorder.handle().render();
        assert!(text.contains("cleat_agent_volumes{phase=\"degraded\"} 1"), "{text}");
        assert!(text.contains("cleat_agent_volumes{phase=\"ready\"} 0"), "{text}");
        assert!(text.contains("cleat_agent_paths{state=\"not_live\"} 1"), "{text}");
    }
}
