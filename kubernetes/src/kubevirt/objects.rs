//! What is read of KubeVirt's objects: its pods, VirtualMachineInstances and VirtualMachineInstanceMigrations.
//!
//! In comes an object as the API server has it; out goes what the join needs of it, or nothing where it is another's or has no
//! identity. What holds: nothing is concluded here, a field of another type than KubeVirt's counts as not there, so does a text
//! that no name, UID or label can be, and times are milliseconds since 1970. Fields are those of `kubevirt.io/v1` (KubeVirt 1.9).

use cleat_runtime::text::is_harmful;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// Which pods are KubeVirt's and have disks of VMs.
pub const POD_SELECTOR: &str = "kubevirt.io in (virt-launcher,hotplug-disk)";

/// No name, UID or value of a label in Kubernetes is longer.
const LONGEST: usize = 253;

/// What a pod is to its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodRole {
    /// It runs the VM, or is to run it.
    Launcher,
    /// It has the hotplugged disks of a launcher on the launcher's node.
    Attachment,
}

/// A pod that has disks of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSeen {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// What it is to its VM.
    pub role: PodRole,
    /// The node, once it has one.
    pub node: Option<String>,
    /// The UID of the VM that it says it is of.
    pub vmi_uid: Option<String>,
    /// The UID of the VM that owns it.
    pub owner_vmi_uid: Option<String>,
    /// The UID of the migration that it was made for: it stays when that is over.
    pub job_uid: Option<String>,
    /// The UID of the pod that owns it: an attachment's launcher.
    pub owner_pod_uid: Option<String>,
    /// The claims of its own namespace that it has.
    pub claims: Vec<String>,
    /// When it was made.
    pub created_ms: u64,
    /// It has ended. It may be there for long after.
    pub ended: bool,
    /// Somebody has deleted it; it may run for a while.
    pub deleted: bool,
}

/// A claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimSeen {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// A running VM: a VirtualMachineInstance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSeen {
    /// Its namespace.
    pub namespace: String,
    /// Its name. One that is started again has the same, and another UID.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The node that runs it.
    pub node: Option<String>,
    /// Its newest migration that a target pod was ready for. It stays when that is over.
    pub state: Option<MigrationStateSeen>,
}

/// What a VM's status says of a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MigrationStateSeen {
    /// The UID of the migration's object.
    pub uid: Option<String>,
    /// Where it goes from.
    pub source_node: Option<String>,
    /// The name of the pod there.
    pub source_pod: Option<String>,
    /// Where it goes to.
    pub target_node: Option<String>,
    /// The name of the pod there.
    pub target_pod: Option<String>,
    /// The UID of the pod that has the hotplugged disks there.
    pub target_attachment_uid: Option<String>,
    /// When the memory began to be copied.
    pub started_ms: Option<u64>,
    /// When it ended, somehow. Nothing is concluded from it.
    pub ended_ms: Option<u64>,
    /// When the target's handler saw the VM run there.
    pub ready_ms: Option<u64>,
    /// It is over: well or, with `failed`, not.
    pub completed: bool,
    /// It has failed.
    pub failed: bool,
    /// Somebody has asked for its end while it ran.
    pub abort_requested: bool,
    /// What became of an abort, asked for or not.
    pub abort_status: Option<String>,
    /// Its other side is another cluster, or another namespace.
    pub elsewhere: bool,
}

/// A VirtualMachineInstanceMigration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmMigrationSeen {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The name of its VM.
    pub vmi_name: String,
    /// Its phase; empty at first.
    pub phase: String,
    /// The name of the pod that it moves the VM from, once it was accepted.
    pub source_pod: Option<String>,
    /// When it came to each phase.
    pub transitions: Vec<(String, u64)>,
    /// When it was made.
    pub created_ms: u64,
    /// Somebody has asked for its end while it ran.
    pub abort_requested: bool,
    /// Its other side is another cluster, or another namespace.
    pub elsewhere: bool,
}

/// A pod that has disks of a VM.
#[must_use]
pub fn pod(object: &Value) -> Option<PodSeen> {
    let label = |key: &str| text(object.pointer("/metadata/labels")?.get(key)?);
    let role = match label("kubevirt.io")?.as_str() {
        "virt-launcher" => PodRole::Launcher,
        "hotplug-disk" => PodRole::Attachment,
        _ => return None,
    };
    let owner = |kind: &str| {
        let owners = object.pointer("/metadata/ownerReferences")?.as_array()?;
        let of_kind = |owner: &&Value| owner.get("kind").and_then(Value::as_str) == Some(kind);
        text(owners.iter().find(of_kind)?.get("uid")?)
    };
    let vmi_uid = match role {
        PodRole::Launcher => label("kubevirt.io/created-by"),
        PodRole::Attachment => text_at(object.pointer("/metadata/annotations"), "kubevirt.io/owner-vmi-uid"),
    };
    let volumes = object.pointer("/spec/volumes").and_then(Value::as_array);
    let claim = |volume: &Value| text(volume.pointer("/persistentVolumeClaim/claimName")?);
    let (namespace, name, uid) = identity(object)?;
    Some(PodSeen {
        namespace,
        name,
        uid,
        role,
        node: text_at(object.get("spec"), "nodeName"),
        vmi_uid,
        owner_vmi_uid: owner("VirtualMachineInstance"),
        job_uid: label("kubevirt.io/migrationJobUID"),
        owner_pod_uid: owner("Pod"),
        claims: volumes.into_iter().flatten().filter_map(claim).collect(),
        created_ms: created(object),
        ended: matches!(text_at(object.get("status"), "phase").as_deref(), Some("Succeeded" | "Failed")),
        deleted: text_at(object.get("metadata"), "deletionTimestamp").is_some(),
    })
}

/// A VirtualMachineInstance.
#[must_use]
pub fn instance(object: &Value) -> Option<VmSeen> {
    let (namespace, name, uid) = identity(object)?;
    let status = object.get("status");
    let state = status.and_then(|status| status.get("migrationState")).filter(|state| state.is_object());
    Some(VmSeen {
        namespace,
        name,
        uid,
        node: text_at(status, "nodeName"),
        state: state.map(migration_state),
    })
}

fn migration_state(state: &Value) -> MigrationStateSeen {
    let (own, of_source, of_target) = (Some(state), state.get("sourceState"), state.get("targetState"));
    let is = |key: &str| state.get(key).and_then(Value::as_bool).unwrap_or(false);
    let synchronized = |side: Option<&Value>| text_at(side, "syncAddress").is_some();
    MigrationStateSeen {
        uid: text_at(own, "migrationUid").or_else(|| text_at(of_source, "migrationUID")),
        source_node: text_at(own, "sourceNode").or_else(|| text_at(of_source, "node")),
        source_pod: text_at(own, "sourcePod").or_else(|| text_at(of_source, "pod")),
        target_node: text_at(own, "targetNode").or_else(|| text_at(of_target, "node")),
        target_pod: text_at(own, "targetPod").or_else(|| text_at(of_target, "pod")),
        target_attachment_uid: text_at(own, "targetAttachmentPodUID")
            .or_else(|| text_at(of_target, "attachmentPodUID")),
        started_ms: time_at(own, "startTimestamp"),
        ended_ms: time_at(own, "endTimestamp"),
        ready_ms: time_at(own, "targetNodeDomainReadyTimestamp")
            .or_else(|| time_at(of_target, "domainReadyTimestamp")),
        completed: is("completed"),
        failed: is("failed"),
        abort_requested: is("abortRequested"),
        abort_status: text_at(own, "abortStatus"),
        elsewhere: synchronized(of_source) || synchronized(of_target),
    }
}

/// A VirtualMachineInstanceMigration.
#[must_use]
pub fn migration(object: &Value) -> Option<VmMigrationSeen> {
    let (namespace, name, uid) = identity(object)?;
    let (spec, status) = (object.get("spec"), object.get("status"));
    let list = |key: &str| status.and_then(|status| status.get(key)).and_then(Value::as_array);
    let transition =
        |one: &Value| Some((text_at(Some(one), "phase")?, time_at(Some(one), "phaseTransitionTimestamp")?));
    let aborts = |condition: &Value| {
        let is = |key: &str, value: &str| condition.get(key).and_then(Value::as_str) == Some(value);
        is("type", "migrationAbortRequested") && is("status", "True")
    };
    let has = |key: &str| spec.and_then(|spec| spec.get(key)).is_some_and(Value::is_object);
    Some(VmMigrationSeen {
        namespace,
        name,
        uid,
        vmi_name: text_at(spec, "vmiName")?,
        phase: text_at(status, "phase").unwrap_or_default(),
        source_pod: text_at(status.and_then(|status| status.get("migrationState")), "sourcePod"),
        transitions: list("phaseTransitionTimestamps").into_iter().flatten().filter_map(transition).collect(),
        created_ms: created(object),
        abort_requested: list("conditions").is_some_and(|all| all.iter().any(aborts)),
        elsewhere: has("sendTo") || has("receive"),
    })
}

/// Namespace, name and UID. One that lacks any of them is nobody's.
fn identity(object: &Value) -> Option<(String, String, String)> {
    let metadata = object.get("metadata");
    Some((text_at(metadata, "namespace")?, text_at(metadata, "name")?, text_at(metadata, "uid")?))
}

fn created(object: &Value) -> u64 {
    time_at(object.get("metadata"), "creationTimestamp").unwrap_or(0)
}

/// KubeVirt leaves out what is empty, and some of its writers do not. What tenants may write into an object, such as its
/// owner's UID, the API server takes as it is: it must neither be kept at any length nor end a line of the log.
fn text(value: &Value) -> Option<String> {
    let can_be = |text: &&str| !text.is_empty() && text.len() <= LONGEST && !text.contains(is_harmful);
    value.as_str().filter(can_be).map(str::to_owned)
}

fn text_at(of: Option<&Value>, key: &str) -> Option<String> {
    text(of?.get(key)?)
}

fn time_at(of: Option<&Value>, key: &str) -> Option<u64> {
    let time: Timestamp = of?.get(key)?.as_str()?.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}
