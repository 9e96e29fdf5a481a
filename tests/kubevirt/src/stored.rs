//! Objects as an API server would have them after these writes.
//!
//! What holds: it gives each object a UID of its own and a time, a merge is RFC 7386's, an object with finalizers stays when it
//! is deleted, and goes with the last of them, and a pod that is to leave stays on its node until it is deleted.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::patch::{Kind, Named, Patch};

/// All objects.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    objects: BTreeMap<Named, Value>,
    made: u64,
}

impl Stored {
    /// Writes, at that time. The object's UID, where one was made.
    pub fn apply(&mut self, patch: &Patch, now: &str) -> Option<String> {
        let named = patch.of();
        match patch {
            Patch::Make(_, object) => {
                self.made += 1;
                let uid = format!("00000000-0000-4000-8000-{:012}", self.made);
                let mut object = object.clone();
                let metadata = json!({
                    "uid": uid, "creationTimestamp": now, "name": named.name, "namespace": named.namespace,
                });
                let what = json!({"apiVersion": named.kind.api_version(), "kind": named.kind.name(), "metadata": metadata});
                merge(&mut object, &what);
                self.objects.insert(named.clone(), object);
                return Some(uid);
            }
            Patch::Merge(_, with) => self.merge(named, with),
            Patch::Status(_, with) => self.merge(named, &json!({ "status": with })),
            Patch::Place(_, node) => self.merge(named, &json!({"spec": {"nodeName": node}})),
            Patch::Leave(_) | Patch::Delete(_) => self.delete(patch, now),
        }
        None
    }

    fn delete(&mut self, patch: &Patch, now: &str) {
        let named = patch.of();
        let Some(object) = self.objects.get_mut(named) else { return };
        let leaves = matches!(patch, Patch::Leave(_)) && object["spec"]["nodeName"].is_string();
        if !leaves && !has_finalizers(object) {
            self.objects.remove(named);
            return;
        }
        merge(object, &json!({"metadata": {"deletionTimestamp": now}}));
    }

    fn merge(&mut self, named: &Named, with: &Value) {
        let Some(object) = self.objects.get_mut(named) else { return };
        let was_held = has_finalizers(object);
        merge(object, with);
        if was_held && !has_finalizers(object) && object["metadata"]["deletionTimestamp"].is_string() {
            self.objects.remove(named);
        }
    }

    /// All of a kind.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |(named, _)| named.kind == kind).map(|(_, object)| object)
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, named: &Named) -> Option<&Value> {
        self.objects.get(named)
    }
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty())
}

/// As RFC 7386 has it.
pub(crate) fn merge(target: &mut Value, with: &Value) {
    let Value::Object(with) = with else {
        *target = with.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in with {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> Named {
        Named { kind: Kind::Pod, namespace: "n".into(), name: "p".into() }
    }

    #[test]
    fn a_merge_adds_changes_and_takes_away() {
        let mut stored = Stored::default();
        let uid = stored.apply(&Patch::Make(named(), json!({"spec": {"a": 1, "b": {"c": 2}}})), "t0");
        stored.apply(&Patch::Merge(named(), json!({"spec": {"a": null, "b": {"d": [3]}}})), "t1");
        stored.apply(&Patch::Place(named(), "node-a".into()), "t2");
        stored.apply(&Patch::Status(named(), json!({"phase": "Running"})), "t3");
        let object = stored.get(&named()).cloned().unwrap_or_default();
        assert_eq!(object["spec"], json!({"b": {"c": 2, "d": [3]}, "nodeName": "node-a"}));
        assert_eq!(
            (object["status"]["phase"].as_str(), object["metadata"]["uid"].as_str()),
            (Some("Running"), uid.as_deref())
        );
        assert_eq!(object["metadata"]["creationTimestamp"], "t0");
    }

    #[test]
    fn what_is_deleted_stays_while_it_has_finalizers() {
        let mut stored = Stored::default();
        stored.apply(&Patch::Make(named(), json!({"metadata": {"finalizers": ["f"]}})), "t0");
        stored.apply(&Patch::Delete(named()), "t1");
        assert_eq!(stored.all(Kind::Pod).count(), 1);
        stored.apply(&Patch::Merge(named(), json!({"metadata": {"finalizers": null}})), "t2");
        assert_eq!(stored.all(Kind::Pod).count(), 0);
        stored.apply(&Patch::Make(named(), json!({})), "t3");
        stored.apply(&Patch::Delete(named()), "t4");
        assert_eq!(stored.get(&named()), None);
    }

    #[test]
    fn a_pod_that_is_to_leave_stays_on_its_node_until_it_is_deleted() {
        let mut stored = Stored::default();
        stored.apply(&Patch::Make(named(), json!({})), "t0");
        stored.apply(&Patch::Leave(named()), "t1");
        assert_eq!(stored.get(&named()), None, "it had no node");
        stored.apply(&Patch::Make(named(), json!({})), "t2");
        stored.apply(&Patch::Place(named(), "node-a".into()), "t3");
        stored.apply(&Patch::Leave(named()), "t4");
        stored.apply(&Patch::Status(named(), json!({"phase": "Failed"})), "t5");
        let object = stored.get(&named()).cloned().unwrap_or_default();
        assert_eq!(
            (&object["metadata"]["deletionTimestamp"], &object["status"]["phase"]),
            (&json!("t4"), &json!("Failed"))
        );
        stored.apply(&Patch::Delete(named()), "t6");
        assert_eq!(stored.get(&named()), None);
    }
}
