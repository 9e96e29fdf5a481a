//! A write as kubectl does it.

use serde_json::{Value, json};

use crate::patch::{Kind, Named, Patch};

/// What kubectl is to be called with.
#[derive(Clone, Debug, PartialEq)]
pub struct Kubectl {
    /// Its arguments.
    pub arguments: Vec<String>,
    /// What the file that they name is to have in it, first.
    pub input: Option<Value>,
}

impl Patch {
    /// As kubectl does it, with a file at that place where it needs one. A made object's UID is what it prints.
    #[must_use]
    pub fn kubectl(&self, file: &str) -> Kubectl {
        let Named { kind, namespace, name } = self.of();
        let object = format!("{}/{name}", kind.name().to_lowercase());
        let patch = |with: &Value, status: bool| {
            let mut arguments = vec!["patch".to_owned(), object.clone(), "--type=merge".into()];
            arguments.extend(status.then(|| "--subresource=status".into()));
            arguments.extend(["-p".into(), with.to_string()]);
            Kubectl { arguments, input: None }
        };
        let mut call = match self {
            Self::Make(_, what) => {
                let mut input = what.clone();
                input["apiVersion"] = json!(kind.api_version());
                input["kind"] = json!(kind.name());
                input["metadata"]["name"] = json!(name);
                input["metadata"]["namespace"] = json!(namespace);
                let arguments = ["create", "-f", file, "-o", "jsonpath={.metadata.uid}"].map(str::to_owned);
                Kubectl { arguments: arguments.into(), input: Some(input) }
            }
            Self::Merge(_, with) => {
                let of_status =
                    *kind == Kind::VirtualMachineInstanceMigration && with.get("status").is_some();
                patch(with, of_status)
            }
            Self::Status(_, with) => patch(&json!({ "status": with }), true),
            Self::Place(_, node) => {
                let target = json!({"apiVersion": "v1", "kind": "Node", "name": node});
                let metadata = json!({"name": name, "namespace": namespace});
                let binding =
                    json!({"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target});
                let at = format!("/api/v1/namespaces/{namespace}/pods/{name}/binding");
                let arguments = ["create", "--raw", &at, "-f", file].map(str::to_owned);
                Kubectl { arguments: arguments.into(), input: Some(binding) }
            }
            Self::Leave(_) => delete(&object, &[]),
            // Where no kubelet ends a pod, nobody else does; where one does, it may be gone.
            Self::Delete(_) if *kind == Kind::Pod => {
                delete(&object, &["--ignore-not-found", "--grace-period=0", "--force"])
            }
            Self::Delete(_) => delete(&object, &[]),
        };
        let namespace = ["-n".to_owned(), namespace.clone()];
        call.arguments = namespace.into_iter().chain(call.arguments).collect();
        call
    }
}

fn delete(object: &str, more: &[&str]) -> Kubectl {
    let arguments = ["delete", object, "--wait=false"].into_iter().chain(more.iter().copied());
    Kubectl { arguments: arguments.map(str::to_owned).collect(), input: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_write_is_a_call_of_kubectl() {
        let of = |kind| Named { kind, namespace: "vms".into(), name: "web".into() };
        let (pod, vm) = (of(Kind::Pod), of(Kind::VirtualMachineInstance));
        let migration = of(Kind::VirtualMachineInstanceMigration);
        let shown = |patch: Patch| patch.kubectl("F").arguments.join(" ");
        let status = json!({"status": {"phase": "Running"}});
        assert_eq!(
            shown(Patch::Make(pod.clone(), json!({}))),
            "-n vms create -f F -o jsonpath={.metadata.uid}"
        );
        assert_eq!(
            shown(Patch::Merge(vm, status.clone())),
            r#"-n vms patch virtualmachineinstance/web --type=merge -p {"status":{"phase":"Running"}}"#
        );
        let on_its_own = shown(Patch::Merge(migration.clone(), status.clone()));
        assert!(on_its_own.contains("--subresource=status"), "{on_its_own}");
        let all = shown(Patch::Merge(migration, json!({"metadata": {"finalizers": null}})));
        assert!(!all.contains("--subresource"), "{all}");
        let of_pod = shown(Patch::Status(pod.clone(), json!({"phase": "Running"})));
        assert!(of_pod.contains("--subresource=status") && of_pod.ends_with(&status.to_string()), "{of_pod}");
        let placed = Patch::Place(pod.clone(), "a".into()).kubectl("F");
        assert_eq!(
            placed.arguments.join(" "),
            "-n vms create --raw /api/v1/namespaces/vms/pods/web/binding -f F"
        );
        assert_eq!(placed.input.map(|input| input["target"]["name"].clone()), Some(json!("a")));
        assert_eq!(shown(Patch::Leave(pod.clone())), "-n vms delete pod/web --wait=false");
        assert_eq!(
            shown(Patch::Delete(pod)),
            "-n vms delete pod/web --wait=false --ignore-not-found --grace-period=0 --force"
        );
    }
}
