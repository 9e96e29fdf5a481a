//! The demo's result for machines: one JSON object of a shape that others rely on.

use cleat_proto::cleat::v1::MigrationInfo;
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
    /// The migration's object, as the controller has recorded it; null where no KubeVirt is played.
    pub attributed_to: Option<String>,
    /// Its UID.
    pub migration_uid: Option<String>,
    /// From the source's last write to the target node's first, as the target saw them arrive, milliseconds: all of the
    /// guest's pause that its disk sees. Negative by as much as both wrote.
    pub pause_ms: Option<f64>,
    /// How much of it is storage: by how much it is longer than in the same migration with both nodes attached by hand, measured
    /// in the same run. Less than nothing by chance, where it is nothing.
    pub storage_ms: Option<f64>,
    /// Writes that do not follow on the one before, and records that are not on the disk.
    pub gaps: Option<u64>,
    /// Writes of the source that arrived after the target node's first.
    pub late_writes: Option<u64>,
    /// Writes that arrived twice.
    pub repeats: Option<u64>,
}

/// The result that the controller has to record once this side has gone. Where no KubeVirt is, nobody but itself knows of the
/// migration. The target goes only where it was called off.
pub(super) fn result_to_record(has_kubevirt: bool, left: &str) -> &'static str {
    match (has_kubevirt, left) {
        (false, _) => "unattributed",
        (true, "source") => "completed",
        (true, _) => "rolled_back",
    }
}

impl MigrationOutcome {
    pub(super) fn of(vm: &str) -> Self {
        Self { vm: vm.to_owned(), ..Self::default() }
    }

    pub(super) fn judged(&mut self, arrivals: &ArrivalVerdict, records: &RecordVerdict) {
        self.pause_ms = arrivals.switch_gap_us.map(|gap| gap as f64 / 1000.0);
        self.gaps = Some(arrivals.gaps + records.bad);
        self.late_writes = Some(arrivals.late_writes);
        self.repeats = Some(arrivals.repeats);
    }

    pub(super) fn recorded(&mut self, record: &MigrationInfo) {
        self.result = Some(record.result.clone());
        let known = !record.migration_uid.is_empty();
        self.attributed_to = known.then(|| record.attributed_to.clone());
        self.migration_uid = known.then(|| record.migration_uid.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(result: &str, (attributed_to, uid): (&str, &str)) -> MigrationInfo {
        MigrationInfo {
            result: result.to_owned(),
            attributed_to: attributed_to.to_owned(),
            migration_uid: uid.to_owned(),
            ..MigrationInfo::default()
        }
    }

    #[test]
    fn the_shape_is_the_one_that_others_rely_on() {
        let mut migration = MigrationOutcome::of("vm-demo");
        migration.recorded(&record("completed", ("vms/vm-demo-1", "u-1")));
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
            r#"{"ok":false,"migrations":[{"vm":"vm-demo","result":"completed","attributed_to":"vms/vm-demo-1","#,
            r#""migration_uid":"u-1","pause_ms":238.7,"storage_ms":null,"gaps":3,"late_writes":0,"repeats":3}]}"#
        );
        assert_eq!(serde_json::to_string(&outcome).expect("json"), expected);
    }

    #[test]
    fn a_record_of_which_nobody_says_whose_it_is_names_nobody() {
        let mut migration = MigrationOutcome::of("vm-demo");
        migration.recorded(&record("unattributed", ("unattributed", "")));
        assert_eq!(migration.result.as_deref(), Some("unattributed"));
        assert_eq!((migration.attributed_to, migration.migration_uid), (None, None));
    }

    #[test]
    fn with_kubevirt_the_result_is_by_which_side_has_gone() {
        assert_eq!(result_to_record(true, "source"), "completed");
        assert_eq!(result_to_record(true, "target"), "rolled_back");
        assert_eq!(["source", "target"].map(|left| result_to_record(false, left)), ["unattributed"; 2]);
    }
}
