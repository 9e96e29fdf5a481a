//! Every metric of this crate: names, labels and buckets.

use std::time::Duration;

use cleat_runtime::metrics::Metric;
use metrics::{counter, gauge, histogram};

use super::error::RdsError;

const REQUESTS: Metric =
    Metric::histogram("cleat_rds_request_seconds", "Time of a request to the RDS, by operation and outcome");
const QUEUE: Metric = Metric::histogram(
    "cleat_rds_queue_seconds",
    "Time that a request to the RDS waits for its turn, by operation",
);
const DOUBTFUL_LISTS: Metric = Metric::counter(
    "cleat_rds_doubtful_lists_total",
    "Lists of disks that were empty, or lacked a disk that exists",
);
const QUEUE_DEPTH: Metric =
    Metric::gauge("cleat_rds_queue_depth", "Requests to the RDS that wait for their turn");

/// All metrics of this crate.
pub const METRICS: &[Metric] = &[REQUESTS, QUEUE, DOUBTFUL_LISTS, QUEUE_DEPTH];

/// What a request does: the value of the label `op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    ListDisks,
    AddDisk,
    SetDisk,
    RemoveDisk,
    ListFiles,
    RemoveFile,
    Resource,
}

impl Op {
    fn label(self) -> &'static str {
        match self {
            Self::ListDisks => "list_disks",
            Self::AddDisk => "add_disk",
            Self::SetDisk => "set_disk",
            Self::RemoveDisk => "remove_disk",
            Self::ListFiles => "list_files",
            Self::RemoveFile => "remove_file",
            Self::Resource => "resource",
        }
    }
}

/// Records how long a request took, from its turn to its answer, and how it ended.
pub(super) fn request<T>(op: Op, took: Duration, result: &Result<T, RdsError>) {
    let outcome = result.as_ref().err().map_or("ok", RdsError::label);
    histogram!(REQUESTS.name, "op" => op.label(), "outcome" => outcome).record(took);
}

/// Records how long a request waited for its turn.
pub(super) fn queued(op: Op, waited: Duration) {
    histogram!(QUEUE.name, "op" => op.label()).record(waited);
}

/// Counts a list of disks that was empty, or lacked a disk that exists.
pub(super) fn doubtful_list() {
    counter!(DOUBTFUL_LISTS.name).increment(1);
}

/// Sets how many requests wait for their turn.
pub(super) fn queue_depth(waiting: usize) {
    gauge!(QUEUE_DEPTH.name).set(u32::try_from(waiting).unwrap_or(u32::MAX));
}
