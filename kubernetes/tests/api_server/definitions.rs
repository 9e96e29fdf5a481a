//! The definitions of our resources: brought up from an older form under its records, and left where a newer program made them.

use std::time::{Duration, Instant};

use cleat_kubernetes::api::ApiError;
use cleat_kubernetes::definitions;
use cleat_kubernetes::records::{Before, ClusterRecords, Kind, RecordWrite, WriteError};
use serde_json::{Map, Value, json};

use cleat_api_server::{Cluster, PATIENCE, connect};

use crate::records::record;

const VOLUMES: &str = "cleatvolumes.cleat.io";
/// What the older form does not have: a field of the record's spec.
const LATER: &str = "requireMigration";

/// The definition of volumes as a program of before would have made it.
fn older() -> Value {
    let ours = definitions::all().unwrap();
    let ours = ours.iter().find(|definition| definition.metadata.name.as_deref() == Some(VOLUMES)).unwrap();
    let mut older = serde_json::to_value(ours).unwrap();
    older["metadata"]["annotations"]["cleat.io/revision"] = json!("1");
    let schema = &mut older["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let fields =
        &mut schema["properties"]["spec"]["properties"]["record"]["properties"]["spec"]["properties"];
    assert!(fields.as_object_mut().unwrap().remove(LATER).is_some(), "there is one");
    older
}

/// What came of a write that lets nobody in, of the only record.
async fn written(
    records: &ClusterRecords,
    before: Option<(u64, &Map<String, Value>)>,
    value: &Map<String, Value>,
) -> Result<u64, WriteError> {
    let before = before.map(|(version, value)| Before { version, value, deleting: false, unguarded: None });
    let write = RecordWrite { kind: Kind::Volume, name: "kept", before, value: Some(value), lets_in: false };
    records.write(7, &write, || true).await.map(|written| written.version)
}

/// The API server says that it does not know the field.
fn is_unknown(refused: &WriteError) -> bool {
    matches!(refused, WriteError::Api(ApiError::Refused(why)) if why.contains(LATER))
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn records_of_an_older_form_come_back_whole_under_ours() {
    let cluster = Cluster::own();
    let server = connect(&cluster.kubeconfig(), Duration::from_secs(20)).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("older.json").display().to_string();
    std::fs::write(&file, older().to_string()).unwrap();
    // As the program of before has done it: under our name.
    cluster.kubectl(&["apply", "--server-side", "--field-manager=cleat-controller", "-f", &file]);
    cluster.kubectl(&["wait", "--for=condition=Established", &format!("crd/{VOLUMES}")]);
    let records = ClusterRecords::new(server.clone());
    let later = record("kept", 1);
    let mut before = later.clone();
    assert!(before["record"]["spec"].as_object_mut().unwrap().remove(LATER).is_some());
    let deadline = Instant::now() + PATIENCE;
    // A kind that was defined a moment ago is not served yet.
    let version = loop {
        match written(&records, None, &before).await {
            Ok(version) => break version,
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let refused = written(&records, Some((version, &before)), &later).await.unwrap_err();
    assert!(is_unknown(&refused), "{refused:?}");

    definitions::install(&server).await.unwrap();
    let there = || async { records.get(Kind::Volume, "kept").await.unwrap().unwrap() };
    let found = there().await;
    assert_eq!((found.version, found.term, &found.value), (version, 7, &before), "nothing was put into it");
    let read: cleat_core::VolumeRecord = serde_json::from_value(found.value["record"].clone()).unwrap();
    assert!(!read.spec.require_migration);
    // The API server takes a moment to go by the definition that it was given.
    loop {
        match written(&records, Some((version, &before)), &later).await {
            Ok(_) => break,
            Err(error) => assert!(is_unknown(&error) && Instant::now() < deadline, "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let found = there().await;
    assert_eq!((found.value, found.unguarded), (later, None));
}

#[tokio::test]
#[ignore = "needs an API server: hack/test --only api-server"]
async fn the_definitions_of_a_newer_program_stay() {
    let cluster = Cluster::own();
    let server = connect(&cluster.kubeconfig(), Duration::from_secs(20)).await;
    definitions::install(&server).await.unwrap();
    definitions::install(&server).await.unwrap();
    cluster.kubectl(&["annotate", "crd", VOLUMES, "cleat.io/revision=9", "--overwrite"]);
    let (name, refused) = definitions::install(&server).await.unwrap_err();
    assert_eq!(name, VOLUMES);
    assert!(matches!(&refused, ApiError::Refused(why) if why.contains("form 9")), "{refused:?}");
}
