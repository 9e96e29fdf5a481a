//! The demo's one sequence of writes, through all the nodes that carry it on.

use std::time::Duration;

use super::outcome::WriterOutcome;
use crate::sequence::{Report, RunFacts};
use crate::world::Stopped;

/// The runs so far, in their order.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    runs: Vec<Stopped>,
}

impl Sequence {
    pub(super) fn add(&mut self, run: Stopped) {
        self.runs.push(run);
    }

    /// The region for the next run.
    pub(super) fn next_region(&self) -> u32 {
        u32::try_from(self.runs.len()).unwrap_or(u32::MAX)
    }

    /// What each run said of itself.
    pub(super) fn facts(&self) -> Vec<RunFacts> {
        self.runs.iter().map(|run| run.facts.clone()).collect()
    }

    /// What is known of the writes without having read them back.
    pub(super) fn outcome(&self, switchover_gap: Duration) -> WriterOutcome {
        let longest = self.runs.iter().map(|run| run.counts.max_gap_us).max().unwrap_or(0);
        WriterOutcome {
            writes: self.runs.iter().map(|run| run.counts.writes).sum(),
            errors: self.runs.iter().map(|run| run.counts.errors).sum(),
            max_gap_ms: Duration::from_micros(longest),
            switchover_gap_ms: switchover_gap,
            ..WriterOutcome::default()
        }
    }
}

/// Adds what the target holds.
pub(super) fn judged(outcome: &mut WriterOutcome, report: &Report) {
    outcome.writes = report.writes;
    outcome.gaps = report.gaps;
    outcome.duplicates = report.duplicates;
    outcome.late_writes_by_source = report.late_writes_by_source;
    outcome.errors += report.checksum_errors + report.misplaced + report.foreign;
}
