//! What a cluster has of a volume: its PersistentVolume and claim, and that somebody wants it somewhere.

use cleat_kubernetes::attachments::usual_name;
use serde_json::{Value, json};

use super::{Cluster, DRIVER};

impl Cluster {
    /// What a provisioner leaves: a claim for a shared block device, and the PersistentVolume `pv-VOLUME` that is bound to it.
    ///
    /// # Errors
    /// What kubectl says where it is refused.
    pub fn try_bound(&self, volume: &str, namespace: &str, claim: &str) -> Result<(), String> {
        let uid = self.made(
            &format!("{volume}-claim"),
            &json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {"name": claim, "namespace": namespace},
                "spec": {
                    "accessModes": ["ReadWriteMany"], "volumeMode": "Block", "storageClassName": "",
                    "volumeName": format!("pv-{volume}"), "resources": {"requests": {"storage": "1Gi"}},
                },
            }),
        )?;
        self.made(
            &format!("{volume}-pv"),
            &json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("pv-{volume}")},
                "spec": {
                    "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "volumeMode": "Block",
                    "csi": {"driver": DRIVER, "volumeHandle": volume},
                    "claimRef": {
                        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": claim,
                        "uid": uid,
                    },
                },
            }),
        )
        .map(drop)
    }

    /// Makes an object; its UID.
    fn made(&self, file: &str, object: &Value) -> Result<String, String> {
        let file = self.folder.path().join(format!("{file}.json"));
        std::fs::write(&file, object.to_string()).unwrap();
        self.try_kubectl(&["create", "-f", &file.display().to_string(), "-o", "jsonpath={.metadata.uid}"])
    }

    /// The claim and the PersistentVolume go, and nobody is asked.
    ///
    /// # Errors
    /// What kubectl says where it is refused.
    pub fn try_unbound(&self, volume: &str, namespace: &str, claim: &str) -> Result<(), String> {
        let pv = format!("pv-{volume}");
        for object in [&["-n", namespace, "pvc", claim][..], &["pv", pv.as_str()]] {
            // What protects them is taken off by controllers that no API server has.
            let free = ["--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#];
            self.try_kubectl(&[&["patch"][..], object, &free].concat())?;
            self.try_kubectl(&[&["delete", "--wait=false"][..], object].concat())?;
        }
        Ok(())
    }

    /// What the attach/detach controller writes for a pod that is to run there, and the volume that it names: as
    /// ReadWriteMany (`shared`) or ReadWriteOnce.
    pub fn wants(&self, volume: &str, node: &str, shared: bool) {
        self.try_wants(volume, node, shared).unwrap();
    }

    /// The same, for whoever has to say what failed.
    ///
    /// # Errors
    /// What kubectl says where it is refused.
    pub fn try_wants(&self, volume: &str, node: &str, shared: bool) -> Result<(), String> {
        let mode = if shared { "ReadWriteMany" } else { "ReadWriteOnce" };
        let name = usual_name(volume, DRIVER, node);
        let apply = |what: &str, objects: String| {
            let file = self.folder.path().join(format!("{name}-{what}.yaml"));
            std::fs::write(&file, objects).unwrap();
            self.try_kubectl(&["apply", "-f", &file.display().to_string()])
        };
        // One that a test has made itself stays as it is.
        if self.try_kubectl(&["get", "pv", &format!("pv-{volume}")]).is_err() {
            apply(
                "pv",
                format!(
                    "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: pv-{volume}}}\n\
                     spec: {{capacity: {{storage: 1Gi}}, accessModes: [{mode}], volumeMode: Block, \
                     persistentVolumeReclaimPolicy: Retain, csi: {{driver: {DRIVER}, volumeHandle: {volume}}}}}\n"
                ),
            )?;
        }
        apply(
            "va",
            format!(
                "apiVersion: storage.k8s.io/v1\nkind: VolumeAttachment\nmetadata: {{name: {name}}}\n\
                 spec: {{attacher: {DRIVER}, nodeName: {node}, source: {{persistentVolumeName: pv-{volume}}}}}\n"
            ),
        )
        .map(drop)
    }

    /// What the attacher writes when its Publish was answered.
    pub fn attached(&self, volume: &str, node: &str, epoch: &str) {
        let status = format!(
            r#"{{"status": {{"attached": true, "attachmentMetadata": {{"cleat.io/epoch": "{epoch}"}}}}}}"#
        );
        let name = usual_name(volume, DRIVER, node);
        self.kubectl(&[
            "patch",
            "volumeattachment",
            &name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ]);
    }

    /// The VolumeAttachment goes.
    pub fn wants_no_more(&self, volume: &str, node: &str) {
        self.kubectl(&["delete", "volumeattachment", &usual_name(volume, DRIVER, node)]);
    }

    /// The same, where it may be gone.
    ///
    /// # Errors
    /// What kubectl says where it is refused.
    pub fn try_wants_no_more(&self, volume: &str, node: &str) -> Result<(), String> {
        let name = usual_name(volume, DRIVER, node);
        self.try_kubectl(&["delete", "volumeattachment", &name, "--ignore-not-found"]).map(drop)
    }
}
