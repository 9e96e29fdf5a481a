#![allow(clippy::unwrap_used)]

use super::*;

/// One record, of an API server that answers these errors first.
#[derive(Default)]
struct OneRecord {
    version: u64,
    value: Map<String, Value>,
    status: Value,
    errors: Vec<ApiError>,
    tries: u32,
    /// From which version to which, as the store hears it.
    heard: Vec<(u64, u64)>,
}

type Shared = Arc<Mutex<OneRecord>>;

struct Cluster(Shared);

#[tonic::async_trait]
impl Describe for Cluster {
    async fn describe(&self, _: &str, version: u64, status: &Value) -> Result<u64, ApiError> {
        let mut one = self.0.lock().unwrap();
        one.tries += 1;
        if let Some(error) = one.errors.pop() {
            return Err(error);
        }
        if one.version != version {
            return Err(ApiError::Conflict);
        }
        (one.version, one.status) = (version + 1, status.clone());
        Ok(one.version)
    }

    async fn look(&self, _: &str) -> Result<Option<(u64, Map<String, Value>)>, ApiError> {
        let one = self.0.lock().unwrap();
        Ok(Some((one.version, one.value.clone())))
    }
}

fn held_by(node: &str) -> Map<String, Value> {
    let value = json!({"unsettled": false, "record": {
        "spec": {"id": "v", "access": "RWO", "subsystemNqn": null, "portals": [], "sizeBytes": 4096},
        "identity": null, "migration": null, "pastEvidence": [],
        "attachments": [{
            "node": node, "hostNqn": "nqn.2026-01.test:a", "epoch": "1.1", "role": "primary", "readOnly": false,
            "phase": {"type": "ready"}, "since": 0, "proven": true, "bootId": "b", "mayLandUntil": null,
        }],
    }});
    value.as_object().cloned().unwrap()
}

/// Of version 5, with these answers before any other.
fn cluster(value: &Map<String, Value>, errors: Vec<ApiError>) -> (Shared, Statuses) {
    let one = OneRecord { version: 5, value: value.clone(), errors, ..OneRecord::default() };
    let shared = Arc::new(Mutex::new(one));
    let hears = Arc::clone(&shared);
    let statuses = Statuses::start(Cluster(Arc::clone(&shared)), move |_, from, to| {
        hears.lock().unwrap().heard.push((from, to));
    });
    (shared, statuses)
}

fn reads(shared: &Shared) -> String {
    shared.lock().unwrap().status["nodes"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_status_that_was_not_written_is_right_two_seconds_later() {
    for error in [ApiError::Unanswered("away".into()), ApiError::Forbidden("no".into()), ApiError::Conflict] {
        let value = held_by("node-a");
        let (shared, statuses) = cluster(&value, vec![error]);
        statuses.recorded("v", 5, &value);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(reads(&shared), "node-a (Ready)");
    }
}

#[tokio::test(start_paused = true)]
async fn a_label_that_came_between_is_left_for_the_next_record_to_see() {
    let value = held_by("node-a");
    let (shared, statuses) = cluster(&value, Vec::new());
    shared.lock().unwrap().version = 6;
    statuses.recorded("v", 5, &value);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(reads(&shared), "node-a (Ready)");
    assert_eq!(shared.lock().unwrap().heard, []);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_somebody_else_has_changed_is_not_described() {
    let (shared, statuses) = cluster(&held_by("node-b"), Vec::new());
    shared.lock().unwrap().version = 6;
    statuses.recorded("v", 5, &held_by("node-a"));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!((reads(&shared), shared.lock().unwrap().tries), (String::new(), 1));
}

#[tokio::test(start_paused = true)]
async fn what_was_recorded_since_takes_the_place_of_what_was_not_written() {
    let (first, second) = (held_by("node-a"), held_by("node-b"));
    let (shared, statuses) = cluster(&second, vec![ApiError::Unanswered("away".into())]);
    statuses.recorded("v", 5, &first);
    tokio::time::sleep(Duration::from_millis(500)).await;
    shared.lock().unwrap().version = 6;
    statuses.recorded("v", 6, &second);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!((reads(&shared), shared.lock().unwrap().tries), ("node-b (Ready)".to_owned(), 2));
    assert_eq!(shared.lock().unwrap().heard, [(6, 7)]);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_never_written_is_tried_less_and_less_often() {
    let value = held_by("node-a");
    let (shared, statuses) = cluster(&value, vec![ApiError::Unanswered("away".into()); 1000]);
    statuses.recorded("v", 5, &value);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let tries = shared.lock().unwrap().tries;
    assert!((12..=20).contains(&tries), "{tries}");
    // One of another volume does not wait for it.
    shared.lock().unwrap().errors.clear();
    statuses.recorded("w", 5, &value);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(reads(&shared), "node-a (Ready)");
}

#[tokio::test(start_paused = true)]
async fn a_leader_writes_only_those_that_it_would_write_otherwise() {
    let value = held_by("node-a");
    for (said, tries) in [
        (Some(json!({"nodes": "node-a (Ready)", "evidence": ""})), 0),
        (Some(json!({"nodes": "node-a (Ready)"})), 0),
        (Some(json!({"nodes": "node-b (Ready)", "evidence": ""})), 1),
        (None, 1),
    ] {
        let (shared, statuses) = cluster(&value, Vec::new());
        statuses.found("v", 5, value.clone(), said.clone());
        tokio::time::sleep(Duration::from_secs(12)).await;
        assert_eq!(shared.lock().unwrap().tries, tries, "{said:?}");
    }
    let nothing = json!({"record": null, "unsettled": true}).as_object().cloned().unwrap();
    let (shared, statuses) = cluster(&nothing, Vec::new());
    statuses.found("v", 5, nothing, None);
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(shared.lock().unwrap().tries, 0, "an empty row stays one");
}

#[test]
fn what_is_not_understood_whole_is_not_described() {
    let mut newer = held_by("node-a");
    newer["record"]["attachments"][0]["ofTomorrow"] = json!(1);
    assert_eq!(status(&newer), None);
    newer["record"] = json!({"spec": 1});
    assert_eq!(status(&newer), None);
}
