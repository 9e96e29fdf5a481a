//! The definition of tickets, as the cluster has to know it.

use cleat_core::TicketType;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use super::{TicketSpec, TicketStatus};
use crate::definitions::{GROUP, REVISION, REVISION_AT, VERSION};
use crate::schema::{NoDefinition, structural};

pub(super) const ONE_SUBJECT: &str = "it has to name either a claim of its namespace or a volume";
const SAME_WISH: &str = "a ticket stays for one volume and one type; make another one";

/// By what the API server knows tickets.
#[must_use]
pub fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, "Ticket"), "tickets")
}

/// The definition of tickets.
///
/// # Errors
/// If there is none of the type, which is a mistake in it.
pub fn definition() -> Result<CustomResourceDefinition, NoDefinition> {
    let mut spec = structural::<TicketSpec>()?;
    let status = structural::<TicketStatus>()?;
    if let Some(types) = spec.pointer_mut("/properties/type/enum").and_then(Value::as_array_mut) {
        types.retain(|name| name != TicketType::Csi.name());
    }
    let same = |field: &str| {
        format!(
            "has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
        )
    };
    let same = format!("self.type == oldSelf.type && {} && {}", same("claim"), same("volume"));
    spec["x-kubernetes-validations"] = json!([
        {"rule": "has(self.claim) != has(self.volume)", "message": ONE_SUBJECT},
        {"rule": same, "message": SAME_WISH},
    ]);
    let column = |name: &str, of: &str, path: &str, priority: u32| json!({"name": name, "type": of, "jsonPath": path, "priority": priority});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("tickets.{GROUP}"),
            "annotations": {REVISION_AT: REVISION.to_string()},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": "Ticket", "listKind": "TicketList", "plural": "tickets", "singular": "ticket"},
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    column("Type", "string", ".spec.type", 0),
                    column("Claim", "string", ".spec.claim", 0),
                    column("Volume", "string", ".spec.volume", 1),
                    column("Holder", "string", ".spec.holder", 1),
                    column("Satisfied", "boolean", ".status.satisfied", 0),
                    column("Node", "string", ".status.node", 0),
                    column("Device", "string", ".status.device", 1),
                    column("Waits for", "string", ".status.waitsFor", 0),
                    column("Waits on", "string", ".status.waitsOn", 1),
                    column("Since", "date", ".status.since", 0),
                    column("Interrupted until", "string", ".status.interruptedUntil", 1),
                    column("Age", "date", ".metadata.creationTimestamp", 0),
                ],
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "description": "Why a volume should be attached somewhere.",
                    "required": ["spec"],
                    "properties": {"spec": spec, "status": status},
                }},
            }],
        },
    });
    Ok(serde_json::from_value(definition)?)
}
