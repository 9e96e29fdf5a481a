//! What people read in a table of volumes: who has one, and on what evidence others do not any more.
//!
//! In come records that are durable; out go statuses, in the background, the last one of each volume. Nothing rests on them:
//! one that cannot be written is left out. A status counts as written only over the version that its record was given, so
//! that it never hides what somebody else has changed; its own version is kept, so that the next record is not in doubt.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use cleat_core::VolumeRecord;
use cleat_kubernetes::records::{ClusterRecords, Kind};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// Writes statuses until it is dropped.
pub(super) struct Statuses {
    waiting: Arc<Waiting>,
    _writing: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Waiting {
    of: Mutex<BTreeMap<String, (u64, Value)>>,
    more: Notify,
}

impl Waiting {
    fn next(&self) -> Option<(String, (u64, Value))> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
    }
}

impl Statuses {
    /// `written` hears the version that a status has made of another.
    pub(super) fn start(
        records: ClusterRecords,
        written: impl Fn(&str, u64, u64) + Send + Sync + 'static,
    ) -> Self {
        let waiting = Arc::new(Waiting::default());
        let of = Arc::clone(&waiting);
        let writing = tokio::spawn(async move {
            loop {
                let Some((volume, (version, status))) = of.next() else {
                    of.more.notified().await;
                    continue;
                };
                match records.describe(Kind::Volume, &volume, version, &status).await {
                    Ok(now) => written(&volume, version, now),
                    Err(error) => tracing::debug!(volume, "its status is not written: {error}"),
                }
            }
        });
        Self { waiting, _writing: AbortOnDropHandle::new(writing) }
    }

    /// The record of that version is durable.
    pub(super) fn recorded(&self, volume: &str, version: u64, value: &Map<String, Value>) {
        let status = status(value);
        let mut of = self.waiting.of.lock().unwrap_or_else(PoisonError::into_inner);
        of.insert(volume.to_owned(), (version, status));
        self.waiting.more.notify_one();
    }

    /// There is no record of it any more.
    pub(super) fn gone(&self, volume: &str) {
        self.waiting.of.lock().unwrap_or_else(PoisonError::into_inner).remove(volume);
    }
}

fn status(value: &Map<String, Value>) -> Value {
    let record = value.get("record").cloned().unwrap_or_default();
    // Nothing but the mark is kept of it.
    let Ok(record) = serde_json::from_value::<VolumeRecord>(record) else {
        return json!({"nodes": "", "evidence": ""});
    };
    let nodes: Vec<_> =
        record.attachments.iter().map(|a| format!("{} ({})", a.node, a.phase.name())).collect();
    let fenced =
        record.fenced.iter().map(|f| format!("{}: {} (quarantined)", f.node, f.evidence.source.name()));
    let past = record.past_evidence.first().map(|e| format!("{}: {}", e.node, e.source.name()));
    let evidence: Vec<_> = fenced.chain(past).collect();
    json!({"nodes": nodes.join(", "), "evidence": evidence.join(", ")})
}
