//! What of Cleat is in use in a cluster: what keeps it from being uninstalled.
//!
//! Comes in: records and VolumeAttachments. Goes out: a line for each volume that a node has, is to have, or is kept out of.
//! What holds: a record that cannot be read counts as in use; of a node that a person has declared gone nothing is expected.

use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Map, Value};

use crate::api::{ApiError, ApiServer};
use crate::records::{ClusterRecords, Kind, RecordObject};

/// Objects that are asked for at once.
const PAGE: u32 = 500;

/// Everything that is in use, a line each.
///
/// # Errors
/// The API server's answer: then nothing is known.
pub async fn in_use(server: &ApiServer, driver_name: &str) -> Result<Vec<String>, ApiError> {
    let mut found = Vec::new();
    match ClusterRecords::new(server.clone()).list_of(Kind::Volume).await {
        Ok(volumes) => {
            let held =
                |record: &RecordObject| Some(format!("volume {}: {}", record.name, held(&record.value)?));
            found.extend(volumes.iter().filter_map(held));
        }
        // No controller has ever led here.
        Err(ApiError::NotFound) => {}
        Err(error) => return Err(error),
    }
    let api: Api<VolumeAttachment> = Api::all(server.client.clone());
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = server.ask(api.list(&params)).await?;
        for attachment in &page.items {
            if attachment.spec.attacher == driver_name {
                let volume =
                    attachment.spec.source.persistent_volume_name.as_deref().unwrap_or("an inline volume");
                found.push(format!("{volume}: a VolumeAttachment to node {}", attachment.spec.node_name));
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
        }
    }
}

/// Who has the volume, or is kept out of it, by its record.
fn held(value: &Map<String, Value>) -> Option<String> {
    let record = match value.get("record") {
        // A mark alone: nobody has the volume.
        None | Some(Value::Null) => return None,
        Some(record) => record,
    };
    let nodes = |list: &str, counts: fn(&Value) -> bool| -> Option<Vec<&str>> {
        let Some(list) = record.get(list) else { return Some(Vec::new()) };
        list.as_array()?.iter().filter(|one| counts(one)).map(|one| one.get("node")?.as_str()).collect()
    };
    let (Some(attached), Some(fenced)) =
        (nodes("attachments", |_| true), nodes("fenced", |one| !is_gone(one)))
    else {
        return Some("its record cannot be read".to_owned());
    };
    let mut said = Vec::new();
    if !attached.is_empty() {
        said.push(format!("attached to {}", attached.join(", ")));
    }
    if !fenced.is_empty() {
        said.push(format!(
            "{} was fenced from it and has not shown that it holds nothing",
            fenced.join(", ")
        ));
    }
    (!said.is_empty()).then(|| said.join("; "))
}

/// Whether a person has declared a node gone that was fenced.
fn is_gone(fenced: &Value) -> bool {
    fenced["gone"] == true || fenced["evidence"]["source"]["type"] == "node-gone"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_is_in_use_while_a_node_has_it_or_is_kept_out_of_it() {
        for (value, said) in [
            (json!({"unsettled": true}), None),
            (json!({"record": null}), None),
            (json!({"record": {"attachments": [], "fenced": []}}), None),
            (json!({"record": {"attachments": [{"node": "a"}, {"node": "b"}]}}), Some("attached to a, b")),
            (
                json!({"record": {"attachments": [], "fenced": [{"node": "c"}]}}),
                Some("c was fenced from it and has not shown that it holds nothing"),
            ),
            (json!({"record": {"attachments": [], "fenced": [{"node": "c", "gone": true}]}}), None),
            (
                json!({"record": {"fenced": [{"node": "c", "evidence": {"source": {"type": "node-gone"}}}]}}),
                None,
            ),
            (json!({"record": {"attachments": "?"}}), Some("its record cannot be read")),
            (json!({"record": {"attachments": [{}]}}), Some("its record cannot be read")),
        ] {
            let value = value.as_object().cloned().unwrap_or_default();
            assert_eq!(held(&value).as_deref(), said, "{value:?}");
        }
    }
}
