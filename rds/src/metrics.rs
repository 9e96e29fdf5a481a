//! The names and labels of what is measured here.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::error::RdsError;

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
    histogram!("cleat_rds_request_seconds", "op" => op.label(), "outcome" => outcome).record(took);
}

/// How long a request waited for its turn.
pub(super) fn queued(op: Op, waited: Duration) {
    histogram!("cleat_rds_queue_seconds", "op" => op.label()).record(waited);
}

/// A list of disks was empty, or lacked one that is there.
pub(super) fn doubtful_list() {
    counter!("cleat_rds_doubtful_lists_total").increment(1);
}

/// How many requests wait for their turn.
pub(super) fn queue_depth(waiting: usize) {
    gauge!("cleat_rds_queue_depth").set(u32::try_from(waiting).unwrap_or(u32::MAX));
}
