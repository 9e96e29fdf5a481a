//! The custom resources, as the cluster has to know them: `cleat.io/v1alpha1`. Records are cluster-scoped; tickets, which are
//! defined in `tickets/definition.rs`, are of a namespace.
//!
//! Of a record, the whole truth is in `spec`, which only the controller writes, in one write with the finalizer: a create leaves a status
//! out, and a write of the status leaves metadata out. `status` is for people, and nothing is decided by it.

use cleat_core::{NodeRecord, VolumeRecord};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use schemars::JsonSchema;
use serde_json::{Value, json};

use crate::api::{ApiError, ApiServer};
pub use crate::schema::NoDefinition;
use crate::schema::structural;

/// The API group of everything that is Cleat's.
pub const GROUP: &str = "cleat.io";
/// The version of that group.
pub const VERSION: &str = "v1alpha1";
/// Which form of the definitions this program knows: one more whenever a field is added or changed.
pub(crate) const REVISION: u64 = 5;
/// Where a definition says which form it is.
pub(crate) const REVISION_AT: &str = "cleat.io/revision";
/// Who writes, by the name that the API server keeps.
pub(crate) const FIELD_MANAGER: &str = "cleat-controller";

/// What is kept of a volume.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[allow(dead_code, reason = "says the shape alone")]
struct CleatVolumeSpec {
    /// The term of the controller that wrote it.
    term: u64,
    /// The RDS may still be carrying out something that it was asked for the volume.
    unsettled: bool,
    /// Who may still write to the volume, and on what evidence others cannot.
    record: Option<VolumeRecord>,
}

/// What is kept of a node.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[allow(dead_code, reason = "says the shape alone")]
struct CleatNodeSpec {
    /// The term of the controller that wrote it.
    term: u64,
    /// Which host the node is: its host NQN and host id are pinned. An agent cannot change them; a person can.
    record: NodeRecord,
}

/// All definitions: of the records, and of tickets.
///
/// # Errors
/// If there is none of a type, which is a mistake in it.
pub fn all() -> Result<Vec<CustomResourceDefinition>, NoDefinition> {
    let volumes = json!([
        {"name": "Nodes", "type": "string", "jsonPath": ".status.nodes"},
        {"name": "Access", "type": "string", "jsonPath": ".spec.record.spec.access"},
        {"name": "Evidence", "type": "string", "jsonPath": ".status.evidence"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]);
    let nodes = json!([
        {"name": "Host NQN", "type": "string", "jsonPath": ".spec.record.identity.hostNqn"},
        {"name": "Host id", "type": "string", "jsonPath": ".spec.record.identity.hostId"},
        {"name": "Node UID", "type": "string", "jsonPath": ".spec.record.uid", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]);
    Ok(vec![
        definition("CleatVolume", "cleatvolumes", &structural::<CleatVolumeSpec>()?, &volumes)?,
        definition("CleatNode", "cleatnodes", &structural::<CleatNodeSpec>()?, &nodes)?,
        // Last: who may not define tickets defines the records all the same.
        crate::tickets::definition()?,
    ])
}

fn definition(
    kind: &str,
    plural: &str,
    spec: &Value,
    columns: &Value,
) -> Result<CustomResourceDefinition, NoDefinition> {
    let text = json!({"type": "string"});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{GROUP}"),
            // Whoever uninstalls Cleat does not mean to forget who may write.
            "annotations": {"helm.sh/resource-policy": "keep", REVISION_AT: REVISION.to_string()},
        },
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "required": ["spec"],
                    "properties": {
                        "spec": spec,
                        "status": {
                            "type": "object",
                            "description": "For people: nothing is decided by it.",
                            "properties": {"nodes": text, "evidence": text},
                        },
                    },
                }},
            }],
        },
    });
    Ok(serde_json::from_value(definition)?)
}

/// Makes the cluster know them as this program does. What a newer one has made stays: an older form would leave out of
/// records what it does not know.
///
/// # Errors
/// The API server's answer, with the definition's name.
pub async fn install(server: &ApiServer) -> Result<(), (String, ApiError)> {
    let api: Api<CustomResourceDefinition> = Api::all(server.client.clone());
    let by = PatchParams::apply(FIELD_MANAGER).force();
    let definitions = all().map_err(|error| (GROUP.to_owned(), ApiError::Refused(error.to_string())))?;
    for definition in definitions {
        let name = definition.name_any();
        let there = match server.ask(api.get_metadata(&name)).await {
            Ok(there) => there.annotations().get(REVISION_AT).and_then(|text| text.parse().ok()).unwrap_or(0),
            Err(ApiError::NotFound) => 0_u64,
            Err(error) => return Err((name, error)),
        };
        if there > REVISION {
            let why = format!(
                "the cluster knows form {there}, and this program form {REVISION}; run the newer one"
            );
            return Err((name, ApiError::Refused(why)));
        }
        let applied = server.ask(api.patch(&name, &by, &Patch::Apply(&definition))).await;
        applied.map_err(|error| (name, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_definition_whose_schema_has_no_choice_left() {
        let definitions = all().expect("a definition of each");
        assert_eq!(definitions.len(), 3);
        assert!(definitions.iter().all(|definition| definition.annotations().contains_key(REVISION_AT)));
        let text = serde_json::to_string(&definitions).unwrap_or_default();
        for left in ["oneOf", "anyOf", "$ref", "\"const\""] {
            assert!(!text.contains(left), "{left} in {text}");
        }
        assert!(text.contains("mayLandUntil"), "{text}");
    }
}
