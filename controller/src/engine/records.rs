//! What the store keeps: `volume/ID` with each volume's record as JSON, and `rds/ID` for each volume of which the RDS
//! may still be carrying out something (`unsettled`).

use std::collections::{BTreeMap, BTreeSet};

use cleat_core::{Effect, VolumeId, VolumeRecord};
use serde_json::Value;

use super::{EngineError, Step};
use crate::store::Change;

const VOLUMES: &str = "volume/";
const UNSETTLED: &str = "rds/";

/// All that was stored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Records {
    /// What is kept of each volume.
    pub volumes: Vec<VolumeRecord>,
    /// Volumes of which the RDS may still be carrying out something that an earlier process has asked.
    pub unsettled: BTreeSet<VolumeId>,
}

/// What is stored cannot be read. Nothing may be granted then: somebody may still write who would be forgotten.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A kind of record that this version does not know.
    #[error(
        "the store has {key:?}, which this version does not know: it was written by a newer one, run that"
    )]
    Unknown {
        /// The key.
        key: String,
    },
    /// The record is not one.
    #[error("the store's {key:?} cannot be read: was it written by another version?")]
    Unreadable {
        /// The key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The record is another volume's.
    #[error("the store's {key:?} is the record of volume {volume}")]
    Misplaced {
        /// The key.
        key: String,
        /// Whose it is.
        volume: VolumeId,
    },
}

/// Reads what was stored.
///
/// # Errors
/// The first record that cannot be read.
pub fn read(stored: BTreeMap<String, Value>) -> Result<Records, RecordError> {
    let mut records = Records::default();
    for (key, value) in stored {
        if let Some(id) = key.strip_prefix(UNSETTLED) {
            let Ok(volume) = VolumeId::new(id) else { return Err(RecordError::Unknown { key }) };
            records.unsettled.insert(volume);
            continue;
        }
        let Some(id) = key.strip_prefix(VOLUMES) else { return Err(RecordError::Unknown { key }) };
        let record: VolumeRecord = match serde_json::from_value(value) {
            Ok(record) => record,
            Err(source) => return Err(RecordError::Unreadable { key, source }),
        };
        if record.spec.id.as_str() != id {
            return Err(RecordError::Misplaced { key, volume: record.spec.id });
        }
        records.volumes.push(record);
    }
    Ok(records)
}

/// The RDS may be carrying out something for the volume.
pub(super) fn mark(volume: &VolumeId) -> Change {
    Change::Put(format!("{UNSETTLED}{volume}"), Value::Bool(true))
}

/// It is not any more.
pub(super) fn unmark(volume: &VolumeId) -> Change {
    Change::Delete(format!("{UNSETTLED}{volume}"))
}

fn key(volume: &VolumeId) -> String {
    format!("{VOLUMES}{volume}")
}

/// The records of all steps, in their order. A volume's may be among them more than once: the last one counts.
pub(super) fn changes(group: &[Step]) -> Result<Vec<Change>, EngineError> {
    let effects = group.iter().flat_map(|step| &step.effects);
    let change = |effect: &Effect| match effect {
        Effect::Persist(record) => Some(match serde_json::to_value(record) {
            Ok(value) => Ok(Change::Put(key(&record.spec.id), value)),
            Err(source) => Err(EngineError::Record { volume: record.spec.id.clone(), source }),
        }),
        Effect::Forget(volume) => Some(Ok(Change::Delete(key(volume)))),
        _ => None,
    };
    effects.filter_map(change).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record() -> Value {
        json!({
            "spec": {"id": "v", "access": "RWO", "subsystem_nqn": "", "portals": [], "size_bytes": 4096},
            "identity": null, "attachments": [], "migration": null, "past_evidence": [],
        })
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_its_key() {
        let stored = |key: &str, value| BTreeMap::from([(key.to_owned(), value)]);
        assert_eq!(read(stored("volume/v", record())).unwrap().volumes[0].spec.id.as_str(), "v");
        assert!(read(stored("rds/v", json!(true))).unwrap().unsettled.iter().any(|v| v.as_str() == "v"));
        for (key, value, words) in [
            ("ticket/1", json!({}), "newer"),
            ("volume/v", json!({"spec": 1}), "cannot be read"),
            ("volume/w", record(), "record of volume v"),
        ] {
            let error = read(stored(key, value)).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(words), "{error}");
        }
    }
}
