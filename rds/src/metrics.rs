//! The names and labels of what is measured here.

use std::time::Duration;

use cleat_runtime::metrics::Metric;
use metrics::{counter, gauge, histogram};

use super::error::RdsError;

const REQUESTS: Metric =
    Metric::histogram("cleat_rds_request_seconds", "Time of a request to the RDS, by operation and outcome");
const QUEUE: Metric = Metric::histogram(
    "cleat_rds_queue_seconds",
    "Time for which a request to the RDS waited for its turn, by operation",
);
const DOUBTFUL_LISTS: Metric = Metric::counter(
    "cleat_rds_doubtful_lists_total",
    "Lists of disks that were empty, or lacked a disk that exists",
);
const QUEUE_DEPTH: Metric =
    Metric::gauge("cleat_rds_queue_depth", "Requests to the RDS that wait for their turn");

/// All of them.
pub const METRICS: &[Metric] = &[REQUESTS, QUEUE, DOUBTFUL_LISTS, QUEUE_DEPTH];

/// What a request does; the value of the `op` label.
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

/// How long a request took, from its turn to its answer, and how it ended.
pub(super) fn request<T>(op: Op, took: Duration, result: &Result<T, RdsError>) {
    let outcome = result.as_ref().err().map_or("ok", RdsError::label);
    histogram!(REQUESTS.name, "op" => op.label(), "outcome" => outcome).record(took);
}

/// How long a request waited for its turn.
pub(super) fn queued(op: Op, waited: Duration) {
    histogram!(QUEUE.name, "op" => op.label()).record(waited);
}

/// A list of disks was empty, or lacked one that is there.
pub(super) fn doubtful_list() {
    counter!(DOUBTFUL_LISTS.name).increment(1);
}

/// How many requests wait for their turn.
pub(super) fn queue_depth(waiting: usize) {
    gauge!(QUEUE_DEPTH.name).set(u32::try_from(waiting).unwrap_or(u32::MAX));
}
