//! KubeVirt's kinds, as far as a cluster has to know them for what is played.

use serde_json::{Value, json};

/// A List of both definitions: `kubectl apply` takes it as it is. As KubeVirt has them, a VM's status is written with the rest
/// of it, and a migration's on its own.
#[must_use]
pub fn definitions() -> Value {
    let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = |kind: &str, subresources: Value| {
        let singular = kind.to_lowercase();
        let plural = format!("{singular}s");
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.kubevirt.io")},
            "spec": {
                "group": "kubevirt.io",
                "scope": "Namespaced",
                "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": singular},
                "versions": [{
                    "name": "v1", "served": true, "storage": true, "subresources": subresources,
                    "schema": {"openAPIV3Schema": any},
                }],
            },
        })
    };
    json!({"apiVersion": "v1", "kind": "List", "items": [
        definition("VirtualMachineInstance", json!({})),
        definition("VirtualMachineInstanceMigration", json!({"status": {}})),
    ]})
}
