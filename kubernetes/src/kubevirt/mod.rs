//! KubeVirt's objects, where the cluster has them: which VM has a volume, and whether it is migrating.
//!
//! | file | owns |
//! | --- | --- |
//! | [`objects`] | what is read of each object |
//! | [`join`] | which of them belong together |
//! | [`mover`] | what comes out of that |
//! | [`live`] | the same for one volume, as it is now |
//!
//! In comes the API server; out goes a [`MoverSeen`] for each volume, and a sign when something has changed. What holds: a
//! cluster without KubeVirt is a cluster in which no VM has a volume, not an error; nothing is said before all of it was
//! listed; all of it is behind by an unknown time, and says nothing of who can write.

pub mod join;
pub mod live;
pub mod mover;
pub mod objects;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use serde_json::Value;

use crate::api::ApiServer;
use crate::attachments::AllAttachments;
use crate::watch::{Presence, Watched, WatchedChanges};
use join::{Objects, movers};
use mover::MoverSeen;
use objects::{ClaimSeen, POD_SELECTOR, PodSeen, VmMigrationSeen, VmSeen};

/// What KubeVirt has in this cluster, watched until this is dropped.
pub struct KubeVirt {
    claims: Watched<ClaimSeen>,
    pods: Watched<PodSeen>,
    vms: Watched<VmSeen>,
    migrations: Watched<VmMigrationSeen>,
}

impl KubeVirt {
    /// Begins to watch.
    #[must_use]
    pub fn watch(server: &ApiServer) -> Self {
        let all = |kind| Api::<DynamicObject>::all_with(server.client.clone(), &kind);
        let (pods, vms, migrations) = (all(pod_kind()), all(vm_kind()), all(migration_kind()));
        let claims: Api<PartialObjectMeta<PersistentVolumeClaim>> = Api::all(server.client.clone());
        Self {
            claims: Watched::start(server, claims, "PersistentVolumeClaims", |object| {
                let metadata = object.metadata;
                let claim =
                    ClaimSeen { namespace: metadata.namespace?, name: metadata.name?, uid: metadata.uid? };
                Some((format!("{}/{}", claim.namespace, claim.name), claim))
            }),
            pods: Watched::start_of(server, pods, "pods of VMs", Some(POD_SELECTOR), |object| {
                seen(&object, objects::pod, |pod| &pod.uid)
            }),
            vms: Watched::start_of(server, vms, "VirtualMachineInstances", None, |object| {
                seen(&object, objects::instance, |vm| &vm.uid)
            }),
            migrations: Watched::start_of(
                server,
                migrations,
                "VirtualMachineInstanceMigrations",
                None,
                |object| seen(&object, objects::migration, |migration| &migration.uid),
            ),
        }
    }

    /// Whether the cluster has KubeVirt: both VMs and their migrations.
    #[must_use]
    pub fn presence(&self) -> Presence {
        match (self.vms.presence(), self.migrations.presence()) {
            (Presence::Unknown, _) | (_, Presence::Unknown) => Presence::Unknown,
            (Presence::There, Presence::There) => Presence::There,
            _ => Presence::Absent,
        }
    }

    /// Signs of changes, from now on.
    #[must_use]
    pub fn changes(&self) -> WatchedChanges {
        WatchedChanges::of([
            self.claims.changes(),
            self.pods.changes(),
            self.vms.changes(),
            self.migrations.changes(),
        ])
    }

    /// Who has each volume of these attachments, as the watches have it. `None`: not all of it was listed yet.
    #[must_use]
    pub fn movers(&self, attachments: &AllAttachments) -> Option<BTreeMap<String, MoverSeen>> {
        let (claims, pods) = (known(&self.claims)?, known(&self.pods)?);
        let (vms, migrations) = (known(&self.vms)?, known(&self.migrations)?);
        Some(movers(&Objects {
            attachments,
            claims: claims.iter().map(Arc::as_ref).collect(),
            pods: pods.iter().map(Arc::as_ref).collect(),
            vms: vms.iter().map(Arc::as_ref).collect(),
            migrations: migrations.iter().map(Arc::as_ref).collect(),
        }))
    }
}

fn pod_kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"))
}

fn vm_kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("kubevirt.io", "v1", "VirtualMachineInstance"))
}

fn migration_kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("kubevirt.io", "v1", "VirtualMachineInstanceMigration"))
}

/// What is kept of an object, by its UID: one that is made again under the same name is another one.
fn seen<T>(
    object: &DynamicObject,
    read: impl Fn(&Value) -> Option<T>,
    uid: impl Fn(&T) -> &String,
) -> Option<(String, T)> {
    let of = read(&serde_json::to_value(object).ok()?)?;
    Some((uid(&of).clone(), of))
}

fn known<T: PartialEq + Send + Sync + 'static>(watched: &Watched<T>) -> Option<Vec<Arc<T>>> {
    watched.look(|all| all.values().cloned().collect())
}

#[cfg(test)]
mod join_tests;
#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod objects_tests;
#[cfg(test)]
mod testing;
