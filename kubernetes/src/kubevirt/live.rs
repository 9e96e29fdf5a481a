//! Who moves with one volume now, read of the API server itself: for whoever refuses something by it.
//!
//! In come a volume and the node on which it is asked for; out goes what the join makes of the objects that are there now:
//! the VolumeAttachment, its PersistentVolume and claim, and of the claim's namespace the pods of VMs, the VMs and their
//! migrations. What holds: no watch is asked; each answer and all of them together have a time; the pods are read before the
//! VMs and migrations that they name, so that one which has ended is not taken for one that goes on.

use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, ListParams};
use serde_json::Value;

use super::join::{Objects, movers};
use super::mover::MoverSeen;
use super::objects::{self, ClaimSeen, POD_SELECTOR};
use super::{migration_kind, pod_kind, vm_kind};
use crate::api::{ApiError, ApiServer};
use crate::attachments::Attachments;

/// For all that is read. A caller that was not answered asks again.
const WITHIN: Duration = Duration::from_secs(10);
/// Objects that are asked for at once.
const PAGE: u32 = 500;

/// What the API server says now of a volume that is asked for on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoverNow {
    /// That it is there was answered before.
    pub answered: bool,
    /// Who has the volume. `None`: the cluster has no KubeVirt.
    pub mover: Option<MoverSeen>,
}

/// Asks who has a volume that is asked for on a node.
///
/// # Errors
/// The API server's answer, or that it gave none in time: then nothing is known.
pub async fn mover_now(attachments: &Attachments, handle: &str, node: &str) -> Result<MoverNow, ApiError> {
    let late = |_| Err(ApiError::Unanswered("it took too long".into()));
    tokio::time::timeout(WITHIN, read(attachments, handle, node)).await.unwrap_or_else(late)
}

async fn read(attachments: &Attachments, handle: &str, node: &str) -> Result<MoverNow, ApiError> {
    let (server, asked) = (attachments.server(), attachments.asked_now(handle, node).await?);
    let answered = asked.attachments.iter().any(|seen| seen.attached);
    let mover = |mover| Ok(MoverNow { answered, mover });
    let claim = asked.volumes.values().find_map(|pv| pv.claim.clone());
    let Some((namespace, name, _)) = claim else { return mover(Some(MoverSeen::Nobody)) };
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(server.client.clone(), &namespace);
    let claim = match server.ask(claims.get_metadata(&name)).await {
        Ok(object) => object.metadata.uid.map(|uid| ClaimSeen { namespace: namespace.clone(), name, uid }),
        Err(ApiError::NotFound) => None,
        Err(error) => return Err(error),
    };
    let pods = list(server, &pod_kind(), &namespace, Some(POD_SELECTOR), objects::pod).await?;
    let (of_vms, of_migrations) = (vm_kind(), migration_kind());
    let vms = list(server, &of_vms, &namespace, None, objects::instance);
    let migrations = list(server, &of_migrations, &namespace, None, objects::migration);
    let (vms, migrations) = match tokio::try_join!(vms, migrations) {
        Ok(both) => both,
        Err(ApiError::NotFound) => return mover(None),
        Err(error) => return Err(error),
    };
    let mut found = movers(&Objects {
        attachments: &asked,
        claims: claim.iter().collect(),
        pods: pods.iter().collect(),
        vms: vms.iter().collect(),
        migrations: migrations.iter().collect(),
    });
    mover(Some(found.remove(handle).unwrap_or(MoverSeen::Nobody)))
}

/// All of a kind in a namespace. [`ApiError::NotFound`]: the API server knows no such kind.
async fn list<T>(
    server: &ApiServer,
    kind: &ApiResource,
    namespace: &str,
    selector: Option<&str>,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<T>, ApiError> {
    let api: Api<DynamicObject> = Api::namespaced_with(server.client.clone(), namespace, kind);
    let (mut found, mut params) = (Vec::new(), ListParams::default().limit(PAGE));
    params.label_selector = selector.map(str::to_owned);
    loop {
        let page = server.ask(api.list(&params)).await?;
        found.extend(page.items.iter().filter_map(|one| read(&serde_json::to_value(one).ok()?)));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
        }
    }
}
