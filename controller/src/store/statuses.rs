//! What people read in a table of volumes: who has one, and on what evidence others do not any more.
//!
//! In come records that are durable; out go statuses, in the background, the last one of each volume. Nothing rests on them
//! and nobody waits for one: one that cannot be written is tried again, with pauses that grow; one that an earlier leader
//! has left behind is brought to what its record says. A status counts as written only over the version that its record was
//! given, so that it never hides what somebody else has changed; its own version is kept then, so that the next record is
//! not in doubt.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cleat_core::VolumeRecord;
use cleat_kubernetes::api::ApiError;
use cleat_kubernetes::records::{ClusterRecords, Kind};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::left_out;

/// Between two tries of one status, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Before what was found is compared: a start has more urgent things to do, and there may be 10,000.
const BEFORE_FOUND: Duration = Duration::from_secs(10);

/// Where statuses go.
#[tonic::async_trait]
pub(super) trait Describe: Send + Sync + 'static {
    /// Writes it over that version of the record; gives the version that this makes.
    async fn describe(&self, volume: &str, version: u64, status: &Value) -> Result<u64, ApiError>;

    /// The record as it is: of which version, and what it says.
    async fn look(&self, volume: &str) -> Result<Option<(u64, Map<String, Value>)>, ApiError>;
}

#[tonic::async_trait]
impl Describe for ClusterRecords {
    async fn describe(&self, volume: &str, version: u64, status: &Value) -> Result<u64, ApiError> {
        ClusterRecords::describe(self, Kind::Volume, volume, version, status).await
    }

    async fn look(&self, volume: &str) -> Result<Option<(u64, Map<String, Value>)>, ApiError> {
        let found = self.get(Kind::Volume, volume).await?;
        Ok(found.map(|found| (found.version, found.value)))
    }
}

/// Writes statuses until it is dropped.
pub(super) struct Statuses {
    waiting: Arc<Waiting>,
    _writing: AbortOnDropHandle<()>,
}

/// A record whose status is to be written.
struct Recorded {
    version: u64,
    value: Map<String, Value>,
    /// What people read of it, where that is known.
    said: Option<Value>,
    due: Instant,
    pause: Duration,
}

#[derive(Default)]
struct Waiting {
    of: Mutex<BTreeMap<String, Recorded>>,
    more: Notify,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Recorded>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next that is due; else when one will be, if there is any.
    fn next(&self) -> Result<(String, Recorded), Option<Instant>> {
        let (mut of, now) = (self.lock(), Instant::now());
        let due = of.iter().find(|(_, recorded)| recorded.due <= now).map(|(volume, _)| volume.clone());
        due.and_then(|volume| of.remove_entry(&volume)).ok_or_else(|| of.values().map(|r| r.due).min())
    }

    /// It was not written. What was recorded since takes its place.
    fn again(&self, volume: String, recorded: Recorded) {
        let (due, pause) = (Instant::now() + recorded.pause, (recorded.pause * 2).min(PAUSES.1));
        self.lock().entry(volume).or_insert(Recorded { due, pause, ..recorded });
    }
}

impl Statuses {
    /// `written` hears the version that a status has made of another.
    pub(super) fn start(
        records: impl Describe,
        written: impl Fn(&str, u64, u64) + Send + Sync + 'static,
    ) -> Self {
        let waiting = Arc::new(Waiting::default());
        let of = Arc::clone(&waiting);
        let writing = tokio::spawn(async move {
            loop {
                match of.next() {
                    Ok((volume, recorded)) => {
                        if let Err(error) = describe(&records, &volume, &recorded, &written).await {
                            tracing::debug!(volume, "its status is not written yet: {error}");
                            of.again(volume, recorded);
                        }
                    }
                    Err(Some(due)) => tokio::select! {
                        () = of.more.notified() => {}
                        () = tokio::time::sleep_until(due) => {}
                    },
                    Err(None) => of.more.notified().await,
                }
            }
        });
        Self { waiting, _writing: AbortOnDropHandle::new(writing) }
    }

    /// The record of that version is durable.
    pub(super) fn recorded(&self, volume: &str, version: u64, value: &Map<String, Value>) {
        let value = value.clone();
        self.add(volume, Recorded { version, value, said: None, due: Instant::now(), pause: PAUSES.0 });
    }

    /// A leader before has left it, with what people read of it.
    pub(super) fn found(&self, volume: &str, version: u64, value: Map<String, Value>, said: Option<Value>) {
        let (said, due) = (Some(said.unwrap_or_default()), Instant::now() + BEFORE_FOUND);
        self.add(volume, Recorded { version, value, said, due, pause: PAUSES.0 });
    }

    fn add(&self, volume: &str, recorded: Recorded) {
        self.waiting.lock().insert(volume.to_owned(), recorded);
        self.waiting.more.notify_one();
    }

    /// There is no record of it any more.
    pub(super) fn gone(&self, volume: &str) {
        self.waiting.lock().remove(volume);
    }
}

/// Writes one status, where it is another than people read.
///
/// # Errors
/// What may be otherwise at the next try.
async fn describe(
    records: &impl Describe,
    volume: &str,
    recorded: &Recorded,
    written: &impl Fn(&str, u64, u64),
) -> Result<(), ApiError> {
    let Some(status) = status(&recorded.value) else { return Ok(()) };
    if recorded.said.as_ref().is_some_and(|said| reads_as(said, &status)) {
        return Ok(());
    }
    let made = match records.describe(volume, recorded.version, &status).await {
        Ok(now) => {
            written(volume, recorded.version, now);
            return Ok(());
        }
        // Somebody may have changed what is beside the record, such as a label. The version that is made over that is not
        // kept: the next record has to see what was changed.
        Err(ApiError::Conflict) => match records.look(volume).await? {
            Some((version, value)) if value == recorded.value => {
                records.describe(volume, version, &status).await
            }
            _ => return Ok(()),
        },
        failed => failed,
    };
    match made {
        // Its record has gone, or nothing will make the API server take it.
        Ok(_) | Err(ApiError::NotFound | ApiError::Refused(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn reads_as(said: &Value, status: &Value) -> bool {
    let text = |status: &Value, column: &str| status[column].as_str().unwrap_or_default().to_owned();
    ["nodes", "evidence"].into_iter().all(|column| text(said, column) == text(status, column))
}

/// What people are to read of a record; `None`: it says more than is understood here.
fn status(value: &Map<String, Value>) -> Option<Value> {
    let stored = match value.get("record") {
        // Nothing but the mark is kept of it.
        None | Some(Value::Null) => return Some(json!({"nodes": "", "evidence": ""})),
        Some(stored) => stored,
    };
    let record = VolumeRecord::deserialize(stored).ok()?;
    if left_out(stored, &serde_json::to_value(&record).ok()?).is_some() {
        return None;
    }
    let nodes: Vec<_> =
        record.attachments.iter().map(|a| format!("{} ({})", a.node, a.phase.name())).collect();
    let fenced =
        record.fenced.iter().map(|f| format!("{}: {} (quarantined)", f.node, f.evidence.source.name()));
    let past = record.past_evidence.first().map(|e| format!("{}: {}", e.node, e.source.name()));
    let evidence: Vec<_> = fenced.chain(past).collect();
    Some(json!({"nodes": nodes.join(", "), "evidence": evidence.join(", ")}))
}

#[cfg(test)]
#[path = "statuses_tests.rs"]
mod tests;
