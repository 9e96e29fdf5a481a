//! The demo's result for machines: one JSON object of a shape that others rely on.

use serde::Serialize;

use crate::vm::arrivals::ArrivalVerdict;
use crate::vm::records::RecordVerdict;

/// `{"ok":bool,"migrations":[…]}`
#[derive(Debug, Clone, Serialize)]
pub struct MigrateOutcome {
    /// Whether every migration's checks held.
    pub ok: bool,
    /// The migrations in their order, up to the first that failed.
    pub migrations: Vec<MigrationOutcome>,
}

/// What came of a migration. What was not measured is null.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct MigrationOutcome {
    /// The VM.
    pub vm: String,
    /// As the controller has recorded it.
    pub result: Option<String>,
    /// From the source's last write to the target node's first, as the target saw them arrive, milliseconds: all of the
    /// guest's pause that its disk sees. Negative by as much as both wrote.
    pub pause_ms: Option<f64>,
    /// How much of it is storage: by how much it is longer than in the same migration with both nodes attached by hand, measured
    /// in the same run. Less than nothing by chance, where it is nothing. In pods there is no such migration: what of the pause is
    /// not between QEMU's stop and its go, which is the most that storage can have of it.
    pub storage_ms: Option<f64>,
    /// Writes that do not follow on the one before, and records that are not on the disk.
    pub gaps: Option<u64>,
    /// Writes of the source that arrived after the target node's first.
    pub late_writes: Option<u64>,
    /// Writes that arrived twice.
    pub repeats: Option<u64>,
}

/// The result that the controller records of a migration that nobody but itself knows of, once one side has gone: there is
/// no KubeVirt here.
const ENDED_WELL: &str = "unattributed";

impl MigrationOutcome {
    pub(in crate::demo) fn of(vm: &str) -> Self {
        Self { vm: vm.to_owned(), ..Self::default() }
    }

    pub(in crate::demo) fn judged(&mut self, arrivals: &ArrivalVerdict, records: &RecordVerdict) {
        self.pause_ms = arrivals.switch_gap_us.map(|gap| gap as f64 / 1000.0);
        self.gaps = Some(arrivals.gaps + records.bad);
        self.late_writes = Some(arrivals.late_writes);
        self.repeats = Some(arrivals.repeats);
    }

    /// Whether its record has ended as it should.
    pub(super) fn has_ended_well(&self) -> bool {
        self.result.as_deref().is_some_and(|result| result == ENDED_WELL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_the_one_that_others_rely_on() {
        let mut migration = MigrationOutcome::of("vm-demo");
        migration.result = Some("unattributed".to_owned());
        let arrivals = ArrivalVerdict {
            switch_gap_us: Some(238_700),
            gaps: 1,
            late_writes: 0,
            repeats: 3,
            ..ArrivalVerdict::default()
        };
        migration.judged(&arrivals, &RecordVerdict { bad: 2, ..RecordVerdict::default() });
        let outcome = MigrateOutcome { ok: false, migrations: vec![migration] };
        let expected = concat!(
            r#"{"ok":false,"migrations":[{"vm":"vm-demo","result":"unattributed","pause_ms":238.7,"#,
            r#""storage_ms":null,"gaps":3,"late_writes":0,"repeats":3}]}"#
        );
        assert_eq!(serde_json::to_string(&outcome).expect("json"), expected);
    }

    #[test]
    fn a_record_that_runs_on_or_failed_has_not_ended_well() {
        let ended = |result: Option<&str>| {
            MigrationOutcome { result: result.map(str::to_owned), ..MigrationOutcome::default() }
                .has_ended_well()
        };
        assert!(ended(Some("unattributed")) && !ended(Some("completed")));
        for other in [None, Some("running"), Some("rolled_back"), Some("timed_out"), Some("failed")] {
            assert!(!ended(other), "{other:?}");
        }
    }
}
