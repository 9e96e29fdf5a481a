//! Which objects of the cluster an Event is about: the record of a volume or a node, the Node, and the claim of a volume.
//!
//! In come names of Cleat; out go objects with their UIDs, by which `kubectl describe` finds their Events. What holds: an
//! answer is kept for some minutes, so that a storm of Events is no storm of questions; what cannot be looked up costs the
//! UID or the claim's own Event, and nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use kube::Api;
use kube::api::{DynamicObject, ListParams};
use tokio::time::Instant;

use crate::api::ApiServer;
use crate::events::ObjectOfCluster;
use crate::records::Kind;

/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(300);
/// All PersistentVolumes are listed no more often: only one whose name is not its volume's needs that.
const LIST_EVERY: Duration = Duration::from_secs(60);
/// So many answers are kept of each kind.
const ANSWERS: usize = 4096;
const PAGE: u32 = 500;

/// Looks objects up. One task has it.
pub struct References {
    server: ApiServer,
    driver: String,
    /// Until when each counts.
    uids: BTreeMap<(&'static str, String), (Instant, String)>,
    claims: BTreeMap<String, (Instant, Option<ObjectOfCluster>)>,
    listed: Option<Instant>,
}

impl References {
    /// Claims are those of that driver's volumes.
    #[must_use]
    pub fn new(server: ApiServer, driver: &str) -> Self {
        Self {
            server,
            driver: driver.to_owned(),
            uids: BTreeMap::new(),
            claims: BTreeMap::new(),
            listed: None,
        }
    }

    /// The record of a volume.
    pub async fn volume_record(&mut self, volume: &str) -> ObjectOfCluster {
        self.record(Kind::Volume, volume).await
    }

    /// The record of a node.
    pub async fn node_record(&mut self, node: &str) -> ObjectOfCluster {
        self.record(Kind::Node, node).await
    }

    async fn record(&mut self, kind: Kind, name: &str) -> ObjectOfCluster {
        let resource = kind.resource();
        let api: Api<DynamicObject> = Api::all_with(self.server.client.clone(), &resource);
        let look = async |server: &ApiServer| server.ask(api.get_metadata(name)).await.ok()?.metadata.uid;
        let (label, kind) = match kind {
            Kind::Volume => ("volume", resource.kind),
            Kind::Node => ("node record", resource.kind),
        };
        let uid = self.uid(label, name, look).await;
        ObjectOfCluster {
            api_version: resource.api_version,
            kind,
            namespace: None,
            name: name.to_owned(),
            uid,
        }
    }

    /// The Node of that name.
    pub async fn node(&mut self, node: &str) -> ObjectOfCluster {
        let api: Api<Node> = Api::all(self.server.client.clone());
        let look = async |server: &ApiServer| server.ask(api.get_metadata(node)).await.ok()?.metadata.uid;
        let uid = self.uid("node", node, look).await;
        let (api_version, kind) = ("v1".to_owned(), "Node".to_owned());
        ObjectOfCluster { api_version, kind, namespace: None, name: node.to_owned(), uid }
    }

    async fn uid(
        &mut self,
        label: &'static str,
        name: &str,
        look: impl AsyncFnOnce(&ApiServer) -> Option<String>,
    ) -> Option<String> {
        let key = (label, name.to_owned());
        if let Some((until, uid)) = self.uids.get(&key)
            && Instant::now() < *until
        {
            return Some(uid.clone());
        }
        // One that is not there yet may be there in a moment, so only what is there is kept.
        let uid = look(&self.server).await?;
        make_room(&mut self.uids);
        self.uids.insert(key, (Instant::now() + KEPT, uid.clone()));
        Some(uid)
    }

    /// The claim that has the volume, by the PersistentVolume that names it.
    pub async fn claim(&mut self, volume: &str) -> Option<ObjectOfCluster> {
        if let Some((until, claim)) = self.claims.get(volume)
            && Instant::now() < *until
        {
            return claim.clone();
        }
        let api: Api<PersistentVolume> = Api::all(self.server.client.clone());
        // The provisioner names a PersistentVolume as it names the volume.
        let named = self.server.ask(api.get(volume)).await.ok().and_then(|pv| claim_of(&pv, &self.driver));
        let claim = match named {
            Some((handle, claim)) if handle == volume => claim,
            _ => {
                self.list(&api).await;
                self.claims.get(volume).and_then(|(_, claim)| claim.clone())
            }
        };
        make_room(&mut self.claims);
        let kept = if claim.is_some() { KEPT } else { LIST_EVERY };
        self.claims.insert(volume.to_owned(), (Instant::now() + kept, claim.clone()));
        claim
    }

    async fn list(&mut self, api: &Api<PersistentVolume>) {
        if self.listed.is_some_and(|at| at.elapsed() < LIST_EVERY) {
            return;
        }
        let now = Instant::now();
        self.listed = Some(now);
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let Ok(page) = self.server.ask(api.list(&params)).await else { return };
            for (handle, claim) in page.items.iter().filter_map(|pv| claim_of(pv, &self.driver)) {
                make_room(&mut self.claims);
                self.claims.insert(handle, (now + KEPT, claim));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return,
            }
        }
    }
}

/// The volume of a PersistentVolume of ours, and its claim, if it has one.
fn claim_of(pv: &PersistentVolume, driver: &str) -> Option<(String, Option<ObjectOfCluster>)> {
    let spec = pv.spec.as_ref()?;
    let csi = spec.csi.as_ref().filter(|csi| csi.driver == driver)?;
    let claim = spec.claim_ref.as_ref().and_then(|claim| {
        Some(ObjectOfCluster {
            api_version: "v1".to_owned(),
            kind: "PersistentVolumeClaim".to_owned(),
            namespace: Some(claim.namespace.clone()?),
            name: claim.name.clone()?,
            uid: claim.uid.clone(),
        })
    });
    Some((csi.volume_handle.clone(), claim))
}

fn make_room<K: Ord + Clone, V>(kept: &mut BTreeMap<K, (Instant, V)>) {
    if kept.len() < ANSWERS {
        return;
    }
    let now = Instant::now();
    kept.retain(|_, (until, _)| now < *until);
    if kept.len() >= ANSWERS
        && let Some(oldest) = kept.iter().min_by_key(|(_, (until, _))| *until).map(|(key, _)| key.clone())
    {
        kept.remove(&oldest);
    }
}
