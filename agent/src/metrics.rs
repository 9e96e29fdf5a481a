//! Every metric of the agent: names, labels and buckets in one place.
//!
//! Comes in: what happened. Goes out: the process-wide recorder. Always holds: label values are constants of
//! the program (`&'static str`), never a volume, a path or a message, so that their number is limited.

use std::time::Duration;

use cleat_runtime::metrics::{Metric, code_name};
use metrics::{counter, gauge, histogram};

const ATTACH_SECONDS: Metric = Metric::histogram_in(
    PART_BUCKETS,
    "cleat_agent_attach_seconds",
    "Time of a successful attach, by part; total is receipt to Ready",
);
const DETACH_SECONDS: Metric = Metric::histogram_in(
    PART_BUCKETS,
    "cleat_agent_detach_seconds",
    "Time of a successful detach, by part; total is the start of its turn to Absent",
);
const DIRECTIVES: Metric =
    Metric::counter("cleat_agent_directives_total", "Directives of the controller, by kind and outcome");
const CSI_CALLS: Metric = Metric::counter("cleat_agent_csi_calls_total", "CSI calls, by RPC and code");
const CSI_SECONDS: Metric = Metric::histogram("cleat_agent_csi_seconds", "Time of CSI calls, by RPC");
const VOLUMES: Metric = Metric::gauge("cleat_agent_volumes", "Volumes known to this node, by phase");
const PATHS: Metric = Metric::gauge("cleat_agent_paths", "Paths of all volumes, by whether they are live");
const PHASE_CHANGES: Metric =
    Metric::counter("cleat_agent_phase_changes_total", "Changes of phase of volumes, by the new phase");
const SESSION_UP: Metric =
    Metric::gauge("cleat_agent_session_up", "1 while a session with the controller is established");
const SESSIONS: Metric =
    Metric::counter("cleat_agent_sessions_total", "Sessions with the controller that ended, by reason");
const LEDGER_ERRORS: Metric =
    Metric::counter("cleat_agent_ledger_errors_total", "Failures to read or write the ledger");
const OBSERVATION_ERRORS: Metric =
    Metric::counter("cleat_agent_observation_errors_total", "Failures to read the kernel's state");
const SILENT_ADDRESSES: Metric = Metric::gauge(
    "cleat_agent_silent_storage_addresses",
    "Storage addresses that volumes need and that do not answer",
);
const PATH_REPAIRS: Metric = Metric::counter(
    "cleat_agent_path_repairs_total",
    "Attempts to connect a missing path of a volume in use, by result",
);
const EARLY_RESETS: Metric = Metric::counter(
    "cleat_agent_early_path_resets_total",
    "Paths that were reset before their keep-alive had run out, by result",
);
const EARLY_REFUSALS: Metric = Metric::counter(
    "cleat_agent_early_path_refusals_total",
    "Paths that looked dead and were left to their keep-alive, by reason",
);
const REASSERTIONS: Metric = Metric::counter(
    "cleat_agent_reservation_reassertions_total",
    "Registrations that the target lost, by how registering again ended",
);

/// All metrics of this crate.
pub const METRICS: &[Metric] = &[
    ATTACH_SECONDS,
    DETACH_SECONDS,
    DIRECTIVES,
    CSI_CALLS,
    CSI_SECONDS,
    VOLUMES,
    PATHS,
    PHASE_CHANGES,
    SESSION_UP,
    SESSIONS,
    LEDGER_ERRORS,
    OBSERVATION_ERRORS,
    SILENT_ADDRESSES,
    PATH_REPAIRS,
    EARLY_RESETS,
    EARLY_REFUSALS,
    REASSERTIONS,
];

/// A healthy attach or detach takes 60 ms to a few seconds (measured under emulation: 85 ms for one, 1.3 to 6
/// s for 32 at once); a part of one may take a millisecond.
const PART_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0,
];

/// Makes metrics visible before their first event. Call it once the recorder is installed.
pub fn begin() {
    session_up(false);
    silent_addresses(0);
    counter!(LEDGER_ERRORS.name).absolute(0);
}

/// A part of the time of an attach.
#[derive(Debug, Clone, Copy)]
pub enum AttachPart {
    /// From the directive's receipt until the controllers that were made were live.
    Connect,
    /// From then until the device node was there.
    Device,
    /// From then until the whole predicate held.
    Checks,
    /// From the directive's receipt until Ready.
    Total,
}

/// Records a part of a successful attach.
pub fn attach_seconds(part: AttachPart, time: Duration) {
    let part = match part {
        AttachPart::Connect => "connect",
        AttachPart::Device => "device",
        AttachPart::Checks => "checks",
        AttachPart::Total => "total",
    };
    histogram!(ATTACH_SECONDS.name, "part" => part).record(time.as_secs_f64());
}

/// A part of the time of a detach.
#[derive(Debug, Clone, Copy)]
pub enum DetachPart {
    /// Search for mounts, openers, holders.
    Checks,
    /// Flush of the device.
    Flush,
    /// Deletion of controllers until sysfs shows none.
    Delete,
    /// From the start of the detach, in its turn, until Absent.
    Total,
}

/// Records a part of a successful detach.
pub fn detach_seconds(part: DetachPart, time: Duration) {
    let part = match part {
        DetachPart::Checks => "checks",
        DetachPart::Flush => "flush",
        DetachPart::Delete => "delete",
        DetachPart::Total => "total",
    };
    histogram!(DETACH_SECONDS.name, "part" => part).record(time.as_secs_f64());
}

/// Counts an outcome of a directive.
pub fn directive(kind: &'static str, outcome: &'static str) {
    counter!(DIRECTIVES.name, "kind" => kind, "outcome" => outcome).increment(1);
}

/// How a try to register again, after the target forgot everybody, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reassertion {
    /// This node is registered again.
    Done,
    /// It came too late to be sure of the grant, and was undone.
    TakenBack,
    /// The target or the kernel refused, or did not answer.
    Failed,
}

/// Counts a try to register again.
pub fn reassertion(how: Reassertion) {
    let result = match how {
        Reassertion::Done => "done",
        Reassertion::TakenBack => "taken_back",
        Reassertion::Failed => "failed",
    };
    counter!(REASSERTIONS.name, "result" => result).increment(1);
}

/// The CSI calls that change or prove something, as label values.
#[derive(Debug, Clone, Copy)]
pub enum CsiRpc {
    /// `NodeStageVolume`: proves the device.
    Stage,
    /// `NodeUnstageVolume`: checks that nothing is published.
    Unstage,
    /// `NodePublishVolume`: mounts the device's node.
    Publish,
    /// `NodeUnpublishVolume`: unmounts it.
    Unpublish,
}

impl CsiRpc {
    /// Its name in the CSI specification, for logs and metrics.
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
pub fn csi_call(rpc: CsiRpc, code: tonic::Code, time: Duration) {
    counter!(CSI_CALLS.name, "rpc" => rpc.as_str(), "code" => code_name(code)).increment(1);
    histogram!(CSI_SECONDS.name, "rpc" => rpc.as_str()).record(time.as_secs_f64());
}

/// Sets the gauges of volumes by phase and paths by state.
pub fn volumes(phases: &[(&'static str, u32)], live: u32, not_live: u32) {
    for (phase, count) in phases {
        gauge!(VOLUMES.name, "phase" => *phase).set(f64::from(*count));
    }
    gauge!(PATHS.name, "state" => "live").set(f64::from(live));
    gauge!(PATHS.name, "state" => "not_live").set(f64::from(not_live));
}

/// Counts a change of phase.
pub fn phase_changed(to: &'static str) {
    counter!(PHASE_CHANGES.name, "phase" => to).increment(1);
}

/// Sets whether a session is established.
pub fn session_up(up: bool) {
    gauge!(SESSION_UP.name).set(if up { 1.0 } else { 0.0 });
}

/// Why a session ended: the label `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// The controller could not be reached.
    Unreachable,
    /// It refused the session, or broke the protocol.
    Refused,
    /// It was silent for longer than its Welcome allows.
    Silent,
    /// It closed the stream in good order.
    Closed,
    /// The agent itself stops.
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
    counter!(SESSIONS.name, "reason" => reason).increment(1);
}

/// Counts a failure of the ledger.
pub fn ledger_error() {
    counter!(LEDGER_ERRORS.name).increment(1);
}

/// Counts a failure to read the kernel's state.
pub fn observation_error() {
    counter!(OBSERVATION_ERRORS.name).increment(1);
}

/// Sets how many storage addresses do not answer.
pub fn silent_addresses(count: usize) {
    gauge!(SILENT_ADDRESSES.name).set(u32::try_from(count).map_or(f64::INFINITY, f64::from));
}

/// Counts an attempt to connect a missing path of a volume in use.
pub fn path_repair(connected: bool) {
    counter!(PATH_REPAIRS.name, "result" => if connected { "connected" } else { "failed" }).increment(1);
}

/// What became of the reset of a path that looked dead: the label `result`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyReset {
    /// The kernel has reset it.
    Done,
    /// The kernel had given it up by itself.
    NotNeeded,
    /// The kernel has not answered in time, and goes on.
    Overdue,
    /// The kernel refused, or it is another controller.
    Failed,
}

/// Counts a reset of a path that looked dead.
pub fn early_path_reset(how: EarlyReset) {
    let result = match how {
        EarlyReset::Done => "done",
        EarlyReset::NotNeeded => "not_needed",
        EarlyReset::Overdue => "overdue",
        EarlyReset::Failed => "failed",
    };
    counter!(EARLY_RESETS.name, "result" => result).increment(1);
}

/// Counts a path, or a storage address, that looked dead and was left to its keep-alive.
pub fn early_path_refusal(reason: &'static str) {
    counter!(EARLY_REFUSALS.name, "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests {
    use cleat_runtime::Program as _;

    #[test]
    fn each_metric_has_its_row_in_the_documentation() {
        let document = include_str!("../../docs/metrics.md");
        assert_eq!(
            cleat_runtime::metrics::undocumented(crate::args::Args::METRICS, document),
            Vec::<String>::new()
        );
    }
}
