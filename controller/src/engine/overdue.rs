//! Volumes that two nodes have for longer than a migration may take: counted for people.
//!
//! In come records, in the order in which they have become durable; out goes a gauge. Nothing decides by it.

use std::collections::BTreeSet;

use cleat_core::{Migration, VolumeId, VolumeRecord};

use crate::metrics;

/// Those that are now.
#[derive(Debug, Default)]
pub(super) struct Overdue(BTreeSet<VolumeId>);

impl Overdue {
    /// Begins from what was stored.
    pub(super) fn new(records: &[VolumeRecord]) -> Self {
        let volumes = records.iter().filter(|record| is_overdue(record)).map(|record| record.spec.id.clone());
        let overdue = Self(volumes.collect());
        metrics::migrations_overdue(overdue.0.len());
        overdue
    }

    /// A record has become durable; `None`: it is gone.
    pub(super) fn recorded(&mut self, volume: &VolumeId, record: Option<&VolumeRecord>) {
        let changed = match record.is_some_and(is_overdue) {
            true => self.0.insert(volume.clone()),
            false => self.0.remove(volume),
        };
        if changed {
            metrics::migrations_overdue(self.0.len());
        }
    }
}

fn is_overdue(record: &VolumeRecord) -> bool {
    record.migration.as_ref().is_some_and(Migration::is_overdue)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use serde_json::json;

    use super::*;

    fn record(volume: &str, result: &str, steps: &[&str]) -> VolumeRecord {
        let steps: Vec<_> = steps.iter().map(|step| json!({"step": step, "at": 1})).collect();
        let record = json!({
            "spec": {"id": volume, "access": "RWX block", "subsystemNqn": null, "portals": [], "sizeBytes": 4096},
            "identity": null, "attachments": [], "fenced": [], "pastEvidence": [],
            "migration": {
                "source": "a", "sourceEpoch": "1.1", "target": "b", "targetEpoch": "1.2", "result": result,
                "steps": steps,
            },
        });
        serde_json::from_value(record).unwrap()
    }

    #[test]
    fn a_volume_is_overdue_from_its_time_out_to_its_end() {
        let late = |volume| record(volume, "timed_out", &["granted", "timed-out"]);
        let ended = |volume| record(volume, "timed_out", &["granted", "timed-out", "done"]);
        let shown = |run: &dyn Fn() -> Overdue| {
            let recorder = PrometheusBuilder::new().build_recorder();
            ::metrics::with_local_recorder(&recorder, || drop(run()));
            let text = recorder.handle().render();
            let line = text.lines().find(|line| line.starts_with("cleat_controller_migrations_overdue "));
            line.unwrap().rsplit(' ').next().unwrap().to_owned()
        };
        let begins = || Overdue::new(&[late("v"), ended("w"), record("x", "running", &["granted"])]);
        assert_eq!(shown(&begins), "1", "as the process before left it");
        let id = |volume: &str| VolumeId::new(volume).unwrap();
        let also = || {
            let mut overdue = begins();
            overdue.recorded(&id("x"), Some(&late("x")));
            overdue.recorded(&id("x"), Some(&late("x")));
            overdue
        };
        assert_eq!(shown(&also), "2", "each once");
        let over = || {
            let mut overdue = also();
            overdue.recorded(&id("v"), Some(&ended("v")));
            overdue.recorded(&id("x"), None);
            overdue
        };
        assert_eq!(shown(&over), "0");
    }
}
