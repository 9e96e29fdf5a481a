//! Each object as it is when it is made. Metadata that the cluster adds is left out.

use serde_json::{Value, json};

use crate::patch::Kind;
use crate::script::{Disk, VmPlan};

/// What nobody runs: where there are kubelets, whoever plays the script gives pods their containers.
const IMAGE: &str = "registry.invalid/none:1";

pub(crate) fn vm(plan: &VmPlan) -> Value {
    let volume = |disk: &Disk| {
        let mut source = json!({"claimName": disk.claim});
        if disk.hotplugged {
            source["hotpluggable"] = json!(true);
        }
        json!({"name": disk.claim, "persistentVolumeClaim": source})
    };
    let volumes: Vec<_> = plan.disks.iter().map(volume).collect();
    json!({
        "metadata": {"finalizers": ["kubevirt.io/foregroundDeleteVirtualMachine"]},
        "spec": {"volumes": volumes},
        "status": {"phase": "Pending", "runtimeUser": 107},
    })
}

/// One that somebody has asked for, or that follows from the drain of that node.
pub(crate) fn migration(plan: &VmPlan, drained: Option<&str>) -> Value {
    let mut object = json!({
        "metadata": {
            "labels": {"kubevirt.io/vmi-name": plan.name},
            "finalizers": ["kubevirt.io/migrationJobFinalize"],
        },
        "spec": {"vmiName": plan.name},
    });
    if let Some(node) = drained {
        object["metadata"]["annotations"] = json!({"kubevirt.io/evacuationMigration": node});
        object["spec"]["priority"] = json!("system-critical");
    }
    object
}

/// A migration's UID and name.
pub(crate) type Job<'a> = Option<(&'a str, &'a str)>;

/// The pod that runs the VM with that UID, or is to take it over by that migration.
pub(crate) fn launcher(plan: &VmPlan, vm_uid: &str, job: Job<'_>) -> Value {
    let labels = json!({
        "kubevirt.io": "virt-launcher", "kubevirt.io/created-by": vm_uid, "vm.kubevirt.io/name": plan.name,
    });
    let annotations = json!({"kubevirt.io/domain": plan.name});
    let owner = owner(Kind::VirtualMachineInstance, &plan.name, vm_uid);
    let disks = plan.disks.iter().filter(|disk| !disk.hotplugged);
    pod("compute", "/dev", labels, annotations, owner, disks, job)
}

/// The pod that has the hotplugged disks of a launcher on the launcher's node.
pub(crate) fn attachment(plan: &VmPlan, vm_uid: &str, launcher: (&str, &str), job: Job<'_>) -> Value {
    let labels = json!({"kubevirt.io": "hotplug-disk"});
    let annotations = json!({"kubevirt.io/owner-vmi-name": plan.name, "kubevirt.io/owner-vmi-uid": vm_uid});
    let (uid, name) = launcher;
    let disks = plan.disks.iter().filter(|disk| disk.hotplugged);
    pod("hotplug-disk", "/path", labels, annotations, owner(Kind::Pod, name, uid), disks, job)
}

fn owner(kind: Kind, name: &str, uid: &str) -> Value {
    json!([{
        "apiVersion": kind.api_version(), "kind": kind.name(), "name": name, "uid": uid,
        "controller": true, "blockOwnerDeletion": true,
    }])
}

fn pod<'a>(
    container: &str,
    devices_at: &str,
    mut labels: Value,
    mut annotations: Value,
    owner: Value,
    disks: impl Iterator<Item = &'a Disk>,
    job: Job<'_>,
) -> Value {
    if let Some((uid, name)) = job {
        labels["kubevirt.io/migrationJobUID"] = json!(uid);
        annotations["kubevirt.io/migrationJobName"] = json!(name);
    }
    let (mut devices, mut volumes) = (Vec::new(), Vec::new());
    for Disk { claim, .. } in disks {
        devices.push(json!({"name": claim, "devicePath": format!("{devices_at}/{claim}")}));
        volumes.push(json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}));
    }
    json!({
        "metadata": {"labels": labels, "annotations": annotations, "ownerReferences": owner},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "containers": [{"name": container, "image": IMAGE, "volumeDevices": devices}],
            "volumes": volumes,
        },
    })
}
