//! Every metric of the controller that is not the RDS client's or the store's own: names, labels, buckets.
//!
//! Labels come from enums and from the stable names of the core alone, never from volumes, nodes or messages.

use std::time::Duration;

use cleat_core::{MigrationResult, RdsFailure, Rung};
use cleat_runtime::metrics::{Metric, code_name};
use cleat_runtime::tls::ClientKind;
use metrics::{counter, gauge, histogram};
use tonic::Code;

/// How many share a commit.
const GROUPS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// A pure function over maps: from 5 microseconds on.
const MICROSECONDS: &[f64] =
    &[0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.001, 0.005, 0.025];

const CORE_STEP: Metric =
    Metric::histogram_in(MICROSECONDS, "cleat_controller_core_step_seconds", "Time of one step of the core");
const COMMIT: Metric =
    Metric::histogram("cleat_controller_commit_seconds", "Time until the records of a step are durable");
const COMMIT_RECORDS: Metric =
    Metric::histogram_in(GROUPS, "cleat_controller_commit_records", "Records that become durable together");
const STORE_STALLED: Metric = Metric::gauge(
    "cleat_controller_store_stalled",
    "1 while some record is not stored in time, so that what rests on it waits",
);
const VOLUMES_SET_ASIDE: Metric = Metric::counter(
    "cleat_controller_volumes_set_aside_total",
    "Volumes left as they are until a restart, since somebody else wrote their record",
);
const NODES_SET_ASIDE: Metric = Metric::counter(
    "cleat_controller_nodes_set_aside_total",
    "Nodes left as they are until a restart, since somebody else keeps writing their record",
);
const LEADS: Metric =
    Metric::gauge("cleat_controller_leads", "1 at the replica that leads, and answers calls");
const STANDS_BY: Metric = Metric::gauge(
    "cleat_controller_stands_by",
    "1 at a replica that would take over if the one that leads ended",
);
const REQUESTS_WAITING: Metric =
    Metric::gauge("cleat_controller_requests_waiting", "Requests that are not answered yet");
const RDS_CALLS: Metric = Metric::histogram(
    "cleat_controller_rds_call_seconds",
    "Time of a call to the RDS with its wait for a turn, by call and outcome",
);
const ATTACH: Metric = Metric::histogram("cleat_controller_attach_seconds", "Time of an attach, by part");
const DETACH: Metric = Metric::histogram("cleat_controller_detach_seconds", "Time of a detach, by part");
const PHASES: Metric = Metric::histogram(
    "cleat_controller_attachment_phase_seconds",
    "Time in the phase before, by the phase that an attachment entered",
);
const FENCES: Metric =
    Metric::counter("cleat_controller_fences_total", "Fences and their rungs that ended, by rung and result");
const FENCE: Metric = Metric::histogram(
    "cleat_controller_fence_seconds",
    "Time of a fence, by the rung that ended it and result",
);
const FENCES_UNDER_WAY: Metric =
    Metric::gauge("cleat_controller_fences_under_way", "Fences that have not ended");
const NODES_QUARANTINED: Metric = Metric::gauge(
    "cleat_controller_nodes_quarantined",
    "Nodes that are granted nothing until they have shown that they hold nothing",
);
const DRIFT: Metric = Metric::gauge(
    "cleat_controller_drift",
    "Differences between what is there and what is on record, by kind",
);
const NOTICES: Metric = Metric::counter("cleat_controller_notices_total", "Notices to people, by reason");
const MIGRATIONS: Metric =
    Metric::counter("cleat_controller_migrations_total", "Migrations that ended, by result");
const MIGRATIONS_OVERDUE: Metric = Metric::gauge(
    "cleat_controller_migrations_overdue",
    "Volumes that two nodes have for longer than a migration may take",
);
const MIGRATION_STEPS: Metric = Metric::histogram(
    "cleat_controller_migration_step_seconds",
    "Time since the step before, by step of a migration",
);
const AGENT_SESSIONS_ENDED: Metric =
    Metric::counter("cleat_controller_agent_sessions_ended_total", "Sessions of agents that ended, by code");
const AGENT_SESSIONS: Metric = Metric::gauge("cleat_controller_agent_sessions", "Open sessions of agents");
const AGENT_FACTS_REFUSED: Metric = Metric::counter(
    "cleat_controller_agent_facts_refused_total",
    "Facts about volumes from agents that were not granted them",
);
const EVENTS_WRITTEN: Metric = Metric::counter(
    "cleat_controller_events_written_total",
    "Events that were written beside the cluster's objects, or counted in one that is there",
);
const EVENTS_DROPPED: Metric = Metric::counter(
    "cleat_controller_events_dropped_total",
    "Events that were left out: the API server did not take them, or too many waited",
);
const CLIENTS_REFUSED: Metric = Metric::counter(
    "cleat_controller_clients_refused_total",
    "Clients refused for what their certificate or token says, by listener",
);
const TOKEN_REVIEWS: Metric = Metric::counter(
    "cleat_controller_token_reviews_total",
    "Tokens of agents and operators that were judged, by result",
);
const OPERATORS_DENIED: Metric = Metric::counter(
    "cleat_controller_operators_denied_total",
    "Calls of operators that their rights in the cluster do not allow",
);
const CSI_CALLS: Metric = Metric::counter("cleat_controller_csi_calls_total", "CSI calls, by RPC and code");
const CSI: Metric = Metric::histogram("cleat_controller_csi_seconds", "Time of CSI calls, by RPC");

/// All of them.
pub const METRICS: &[Metric] = &[
    CORE_STEP,
    COMMIT,
    COMMIT_RECORDS,
    STORE_STALLED,
    VOLUMES_SET_ASIDE,
    NODES_SET_ASIDE,
    LEADS,
    STANDS_BY,
    REQUESTS_WAITING,
    RDS_CALLS,
    ATTACH,
    DETACH,
    PHASES,
    FENCES,
    FENCE,
    FENCES_UNDER_WAY,
    NODES_QUARANTINED,
    DRIFT,
    NOTICES,
    MIGRATIONS,
    MIGRATIONS_OVERDUE,
    MIGRATION_STEPS,
    AGENT_SESSIONS_ENDED,
    AGENT_SESSIONS,
    AGENT_FACTS_REFUSED,
    EVENTS_WRITTEN,
    EVENTS_DROPPED,
    CLIENTS_REFUSED,
    TOKEN_REVIEWS,
    OPERATORS_DENIED,
    CSI_CALLS,
    CSI,
];

/// A call of the engine or of the CSI edge to the RDS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RdsCall {
    /// A host may connect.
    Allow,
    /// A host may not connect.
    Deny,
    /// The last host off the list and the export off.
    Close,
    /// The export goes off.
    Hide,
    /// The export goes on.
    Show,
    /// Another secret comes into force.
    SetSecret,
    /// Looking a volume up.
    Find,
    /// Making a volume.
    Create,
    /// Deleting a volume.
    Delete,
}

impl RdsCall {
    /// The label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Close => "close",
            Self::Hide => "hide",
            Self::Show => "show",
            Self::SetSecret => "set_secret",
            Self::Find => "find",
            Self::Create => "create",
            Self::Delete => "delete",
        }
    }
}

/// A part of an attach or a detach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The RDS's host list.
    Rds,
    /// The agent: until all controllers were live.
    Connect,
    /// The agent: until the device node was there.
    Device,
    /// The agent: the readiness predicate, or a detach's look for users.
    Checks,
    /// The agent: flushing the device.
    Flush,
    /// The agent: deleting the controllers.
    Delete,
}

impl Part {
    /// The label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rds => "rds",
            Self::Connect => "connect",
            Self::Device => "device",
            Self::Checks => "checks",
            Self::Flush => "flush",
            Self::Delete => "delete",
        }
    }
}

/// What has become of a fence, or of a rung of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceResult {
    /// The node cannot write, and nothing that it wrote is on its way.
    Proven,
    /// The rung could not be taken, or did not hold.
    Failed,
    /// No rung was left.
    Refused,
    /// The node proved by itself that it holds nothing, or goes on as before.
    Overtaken,
}

impl FenceResult {
    /// The label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Overtaken => "overtaken",
        }
    }
}

/// One step of the core.
pub(crate) fn core_step(took: Duration) {
    histogram!(CORE_STEP.name).record(took);
}

/// Records how long the engine waited for a commit, and how many records shared it.
pub(crate) fn engine_commit(took: Duration, records: usize) {
    histogram!(COMMIT.name).record(took);
    histogram!(COMMIT_RECORDS.name).record(count(records));
}

/// Makes what alerts rest on visible before its first event: what rises from nothing is no rise. Call it once the recorder is
/// installed.
pub(crate) fn begin() {
    leads(false);
    stands_by(false);
    store_stalled(false);
    fences(0, 0);
    migrations_overdue(0);
    for counter in [&VOLUMES_SET_ASIDE, &NODES_SET_ASIDE, &AGENT_FACTS_REFUSED] {
        counter!(counter.name).absolute(0);
    }
    for rung in Rung::LADDER {
        counter!(FENCES.name, "rung" => rung.name(), "result" => FenceResult::Refused.name()).absolute(0);
    }
    for result in MigrationResult::ENDS {
        counter!(MIGRATIONS.name, "result" => result.name()).absolute(0);
    }
}

/// Whether some record is not stored in time, so that what rests on it waits.
pub(crate) fn store_stalled(stalled: bool) {
    gauge!(STORE_STALLED.name).set(if stalled { 1.0 } else { 0.0 });
}

/// A volume's record was written by somebody else.
pub(crate) fn volume_set_aside() {
    counter!(VOLUMES_SET_ASIDE.name).increment(1);
}

/// A node's record was written by somebody else as often as by us.
pub(crate) fn node_set_aside() {
    counter!(NODES_SET_ASIDE.name).increment(1);
}

/// Requests that the core has not answered yet.
pub(crate) fn waiting_requests(waiting: usize) {
    gauge!(REQUESTS_WAITING.name).set(count(waiting));
}

/// Records a call to the RDS as its caller saw it, the wait for its turn included.
pub(crate) fn rds_call(call: RdsCall, took: Duration, error: Option<&RdsFailure>) {
    let outcome = match error {
        None => "ok",
        Some(RdsFailure::NotFound(_)) => "not_found",
        Some(RdsFailure::Refused(_)) => "refused",
        Some(RdsFailure::Full(_)) => "full",
        Some(RdsFailure::Unreachable(_)) => "unreachable",
        Some(RdsFailure::Unauthorised(_)) => "unauthorised",
    };
    histogram!(RDS_CALLS.name, "call" => call.name(), "outcome" => outcome).record(took);
    match call {
        RdsCall::Allow => attach_part(Part::Rds, took),
        RdsCall::Deny | RdsCall::Close => detach_part(Part::Rds, took),
        RdsCall::Hide
        | RdsCall::Show
        | RdsCall::SetSecret
        | RdsCall::Find
        | RdsCall::Create
        | RdsCall::Delete => {}
    }
}

/// Where the time of an attach went.
pub(crate) fn attach_part(part: Part, took: Duration) {
    histogram!(ATTACH.name, "part" => part.name()).record(took);
}

/// Where the time of a detach went.
pub(crate) fn detach_part(part: Part, took: Duration) {
    histogram!(DETACH.name, "part" => part.name()).record(took);
}

/// Records how long an attachment was in the phase before the one that it has entered.
pub(crate) fn phase_entered(entered: &'static str, after: Duration) {
    histogram!(PHASES.name, "entered" => entered).record(after);
}

/// A result of a rung (a stable name of the core).
pub(crate) fn fence(rung: &'static str, result: FenceResult) {
    counter!(FENCES.name, "rung" => rung, "result" => result.name()).increment(1);
}

/// A fence has ended after so long.
pub(crate) fn fence_ended(rung: &'static str, result: FenceResult, after: Duration) {
    fence(rung, result);
    histogram!(FENCE.name, "rung" => rung, "result" => result.name()).record(after);
}

/// Fences that have not ended, and nodes that are quarantined.
pub(crate) fn fences(under_way: usize, quarantined: usize) {
    gauge!(FENCES_UNDER_WAY.name).set(count(under_way));
    gauge!(NODES_QUARANTINED.name).set(count(quarantined));
}

/// Whether this replica leads.
pub(crate) fn leads(leads: bool) {
    gauge!(LEADS.name).set(if leads { 1.0 } else { 0.0 });
}

/// Whether this replica would take over from the one that leads.
pub(crate) fn stands_by(stands_by: bool) {
    gauge!(STANDS_BY.name).set(if stands_by { 1.0 } else { 0.0 });
}

/// Things that are not where they should be, by kind.
pub(crate) fn drift(kind: &'static str, found: usize) {
    gauge!(DRIFT.name, "kind" => kind).set(count(found));
}

/// A notice, by its stable name.
pub(crate) fn notice(reason: &'static str) {
    counter!(NOTICES.name, "reason" => reason).increment(1);
}

/// A migration has ended.
pub(crate) fn migration_ended(result: &'static str) {
    counter!(MIGRATIONS.name, "result" => result).increment(1);
}

/// Volumes that two nodes have for longer than a migration may take.
pub(crate) fn migrations_overdue(volumes: usize) {
    gauge!(MIGRATIONS_OVERDUE.name).set(count(volumes));
}

/// The time from one step of a migration to the next.
pub(crate) fn migration_step(step: &'static str, after: Duration) {
    histogram!(MIGRATION_STEPS.name, "step" => step).record(after);
}

/// Open agent sessions.
pub(crate) fn sessions(open: usize) {
    gauge!(AGENT_SESSIONS.name).set(count(open));
}

/// An agent session has ended.
pub(crate) fn session_ended(code: Code) {
    counter!(AGENT_SESSIONS_ENDED.name, "code" => code_name(code)).increment(1);
}

/// Counts a report about a volume that the agent's node was not granted.
pub(crate) fn fact_refused() {
    counter!(AGENT_FACTS_REFUSED.name).increment(1);
}

/// An Event was written.
pub(crate) fn event_written() {
    counter!(EVENTS_WRITTEN.name).increment(1);
}

/// So many Events were left out.
pub(crate) fn events_dropped(many: u64) {
    counter!(EVENTS_DROPPED.name).increment(many);
}

/// A client was refused, on the listener for this kind.
pub(crate) fn client_refused(kind: ClientKind) {
    counter!(CLIENTS_REFUSED.name, "listener" => kind.word()).increment(1);
}

/// What became of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Review {
    /// It is somebody's.
    Accepted,
    /// It proves nothing.
    Refused,
    /// The API server gave no certain answer.
    Unanswered,
    /// Nobody was asked: too many were.
    Limited,
}

/// A token was judged.
pub(crate) fn token_reviewed(review: Review) {
    let result = match review {
        Review::Accepted => "accepted",
        Review::Refused => "refused",
        Review::Unanswered => "unanswered",
        Review::Limited => "limited",
    };
    counter!(TOKEN_REVIEWS.name, "result" => result).increment(1);
}

/// The cluster does not allow an operator what he asked for.
pub(crate) fn operator_denied() {
    counter!(OPERATORS_DENIED.name).increment(1);
}

/// A CSI call has been answered.
pub(crate) fn csi_call(rpc: &'static str, took: Duration, code: Code) {
    counter!(CSI_CALLS.name, "rpc" => rpc, "code" => code_name(code)).increment(1);
    histogram!(CSI.name, "rpc" => rpc).record(took);
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use cleat_runtime::metrics::{describe, undescribed};
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn each_metric_has_its_row_in_the_documentation() {
        use cleat_runtime::Program as _;
        let document = include_str!("../../docs/metrics.md");
        assert_eq!(
            cleat_runtime::metrics::undocumented(crate::cli::Cli::METRICS, document),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_result_of_a_migration_is_there_from_the_start() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, begin);
        let text = recorder.handle().render();
        for result in ["completed", "rolled_back", "failed", "timed_out", "unattributed"] {
            let line = format!("cleat_controller_migrations_total{{result=\"{result}\"}} 0");
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        assert!(text.contains("cleat_controller_migrations_overdue 0"), "{text}");
    }

    #[test]
    fn names_and_labels_are_what_dashboards_know() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe(METRICS);
            let took = Duration::from_millis(3);
            core_step(took);
            engine_commit(took, 32);
            leads(true);
            stands_by(true);
            waiting_requests(2);
            store_stalled(true);
            volume_set_aside();
            node_set_aside();
            rds_call(RdsCall::Allow, took, None);
            rds_call(RdsCall::Deny, took, Some(&RdsFailure::Unreachable("x".into())));
            attach_part(Part::Connect, took);
            detach_part(Part::Flush, took);
            phase_entered("Ready", took);
            notice("volume_degraded");
            migration_ended("completed");
            migrations_overdue(4);
            migration_step("target_ready", took);
            sessions(3);
            session_ended(Code::DeadlineExceeded);
            csi_call("ControllerPublishVolume", took, Code::FailedPrecondition);
        });
        let text = recorder.handle().render();
        for line in [
            "cleat_controller_core_step_seconds_count 1",
            "cleat_controller_commit_seconds_count 1",
            "cleat_controller_commit_records_sum 32",
            "cleat_controller_leads 1",
            "cleat_controller_stands_by 1",
            "cleat_controller_requests_waiting 2",
            "cleat_controller_store_stalled 1",
            "cleat_controller_volumes_set_aside_total 1",
            "cleat_controller_nodes_set_aside_total 1",
            "cleat_controller_rds_call_seconds_count{call=\"deny\",outcome=\"unreachable\"} 1",
            "cleat_controller_attach_seconds_count{part=\"rds\"} 1",
            "cleat_controller_attach_seconds_count{part=\"connect\"} 1",
            "cleat_controller_detach_seconds_count{part=\"rds\"} 1",
            "cleat_controller_detach_seconds_count{part=\"flush\"} 1",
            "cleat_controller_attachment_phase_seconds_count{entered=\"Ready\"} 1",
            "cleat_controller_notices_total{reason=\"volume_degraded\"} 1",
            "cleat_controller_migrations_total{result=\"completed\"} 1",
            "cleat_controller_migrations_overdue 4",
            "cleat_controller_migration_step_seconds_count{step=\"target_ready\"} 1",
            "cleat_controller_agent_sessions 3",
            "cleat_controller_agent_sessions_ended_total{code=\"DEADLINE_EXCEEDED\"} 1",
            "cleat_controller_csi_calls_total{rpc=\"ControllerPublishVolume\",code=\"FAILED_PRECONDITION\"} 1",
            "cleat_controller_csi_seconds_count{rpc=\"ControllerPublishVolume\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert_eq!(undescribed(&text), Vec::<&str>::new());
    }
}
