//! Who is to have a volume, as the cluster says it: VolumeAttachments of our driver, and the PersistentVolumes that they name.
//!
//! What is watched ([`Attachments`]) says what to look at. What is acted on is asked of the API server itself
//! ([`Attachments::live`], [`Attachments::all_now`]): a cache is behind by an unknown time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cleat_ids::VOLUME_KEY;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::api::{ApiError, ApiServer};
use crate::watch::{Watched, WatchedChanges};

/// Objects that are asked for at once.
const PAGE: u32 = 500;
/// Nodes that an annotation names at most.
const NODES_NAMED: usize = 8;
/// The annotations that say who has a volume, and since when.
const NODES_KEY: &str = "cleat.io/attached-nodes";
const SINCE_KEY: &str = "cleat.io/attached-at";

/// A VolumeAttachment of our driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeAttachmentSeen {
    /// Its own name.
    pub name: String,
    /// The PersistentVolume that it is about.
    pub pv: Option<String>,
    /// The volume, where it names that itself, or what was answered to it does.
    pub volume: Option<String>,
    /// The node.
    pub node: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Somebody has deleted it; it stays until the volume is off the node.
    pub deleting: bool,
    /// It was answered as attached.
    pub attached: bool,
    /// What was answered with that.
    pub metadata: BTreeMap<String, String>,
}

/// A PersistentVolume of our driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PersistentVolumeSeen {
    /// Its name.
    pub name: String,
    /// The volume.
    pub handle: String,
    /// It says ReadWriteMany, and that it is a block device.
    pub shared_block: bool,
    /// The claim that it is bound to: namespace, name and UID.
    pub claim: Option<(String, String, String)>,
    /// Its attributes, as CreateVolume has answered them.
    pub attributes: BTreeMap<String, String>,
    /// What it says of who has the volume.
    pub says: SaysWho,
}

/// Who has a volume, as annotations of its PersistentVolume, for people. Nothing decides by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaysWho {
    nodes: Option<String>,
    since: Option<String>,
}

impl SaysWho {
    /// These nodes have it, since then.
    #[must_use]
    pub fn of(nodes: &[String], since: Option<String>) -> Self {
        if nodes.is_empty() {
            return Self::default();
        }
        let named = nodes.iter().take(NODES_NAMED).map(String::as_str).collect::<Vec<_>>().join(",");
        Self { nodes: Some(named), since }
    }
}

/// Both, as a list has them at one moment.
#[derive(Clone, Debug, Default)]
pub struct AllAttachments {
    /// VolumeAttachments, oldest first.
    pub attachments: Vec<VolumeAttachmentSeen>,
    /// PersistentVolumes, by name.
    pub volumes: BTreeMap<String, PersistentVolumeSeen>,
}

impl AllAttachments {
    /// The volume that a VolumeAttachment is about, and its PersistentVolume, where there is one.
    #[must_use]
    pub fn volume_of<'a>(
        &'a self,
        attachment: &'a VolumeAttachmentSeen,
    ) -> (Option<&'a str>, Option<&'a PersistentVolumeSeen>) {
        let pv = attachment.pv.as_ref().and_then(|name| self.volumes.get(name));
        (pv.map(|pv| pv.handle.as_str()).or(attachment.volume.as_deref()), pv)
    }
}

/// What is wanted where.
#[derive(Clone, Debug, Default)]
pub struct AllWanted {
    /// Volumes, and the nodes that are to have them.
    pub known: BTreeSet<(String, String)>,
    /// Nodes that are to have a volume which nothing names.
    pub unclear: BTreeSet<String>,
}

/// What the cluster says of one volume on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// It is to be there.
    Wanted,
    /// It is to go from there.
    Leaving,
    /// Nobody has asked for it.
    Nobody,
}

/// The VolumeAttachments and PersistentVolumes of one driver.
pub struct Attachments {
    server: ApiServer,
    driver: String,
    attachments: Watched<VolumeAttachmentSeen>,
    volumes: Watched<PersistentVolumeSeen>,
}

/// The name that the attach/detach controller gives a VolumeAttachment.
#[must_use]
pub fn usual_name(handle: &str, driver: &str, node: &str) -> String {
    let hash = Sha256::digest(format!("{handle}{driver}{node}"));
    format!("csi-{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

impl Attachments {
    /// Begins to watch.
    #[must_use]
    pub fn watch(server: ApiServer, driver: &str) -> Self {
        let (ours, of) = (driver.to_owned(), driver.to_owned());
        let attachments = Watched::start(&server, Api::all(server.client.clone()), "VolumeAttachments", {
            move |object| attachment(object, &ours).map(|seen| (seen.name.clone(), seen))
        });
        let volumes = Watched::start(&server, Api::all(server.client.clone()), "PersistentVolumes", {
            move |object| volume(object, &of).map(|seen| (seen.name.clone(), seen))
        });
        Self { server, driver: driver.to_owned(), attachments, volumes }
    }

    /// Whose volumes are ours.
    pub(crate) fn driver(&self) -> &str {
        &self.driver
    }

    /// The names of PersistentVolumes that are that volume, as the watch has it.
    pub(crate) fn named(&self, handle: &str) -> Vec<String> {
        let of = |all: &BTreeMap<String, Arc<PersistentVolumeSeen>>| {
            all.values().filter(|pv| pv.handle == handle).map(|pv| pv.name.clone()).collect()
        };
        self.volumes.look(of).unwrap_or_default()
    }

    /// A PersistentVolume of our driver, as it is now.
    pub(crate) async fn volume_now(&self, name: &str) -> Result<Option<PersistentVolumeSeen>, ApiError> {
        let api: Api<PersistentVolume> = Api::all(self.server.client.clone());
        match self.server.ask(api.get(name)).await {
            Ok(object) => Ok(volume(object, &self.driver)),
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Who is asked.
    pub(crate) fn server(&self) -> &ApiServer {
        &self.server
    }

    /// Whether all of both were listed.
    #[must_use]
    pub fn are_whole(&self) -> bool {
        self.attachments.is_whole() && self.volumes.is_whole()
    }

    /// Waits until all of both were listed.
    pub async fn whole(&self) {
        let (mut attachments, mut volumes) = (self.attachments.changes(), self.volumes.changes());
        while !self.are_whole() {
            // Their senders are ours.
            let _ = tokio::select! {
                changed = attachments.changed() => changed,
                changed = volumes.changed() => changed,
            };
        }
    }

    /// All PersistentVolumes, as the watch has them.
    #[must_use]
    pub fn volumes(&self) -> Vec<Arc<PersistentVolumeSeen>> {
        self.volumes.look(|all| all.values().cloned().collect()).unwrap_or_default()
    }

    /// Everything, as the watches have it, oldest first. `None`: they have not listed everything yet.
    #[must_use]
    pub fn all(&self) -> Option<AllAttachments> {
        let attachments = self.attachments.look(|all| all.values().cloned().collect::<Vec<_>>())?;
        let volumes = self.volumes.look(|all| all.values().cloned().collect::<Vec<_>>())?;
        let mut attachments: Vec<_> = attachments.into_iter().map(Arc::unwrap_or_clone).collect();
        attachments.sort_by(|a, b| (a.created_ms, &a.name).cmp(&(b.created_ms, &b.name)));
        let volumes = volumes.into_iter().map(Arc::unwrap_or_clone);
        Some(AllAttachments { attachments, volumes: volumes.map(|pv| (pv.name.clone(), pv)).collect() })
    }

    /// Signs of changes of both, from now on.
    #[must_use]
    pub fn changes(&self) -> WatchedChanges {
        WatchedChanges::of([self.attachments.changes(), self.volumes.changes()])
    }

    /// Everything, as it is now.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn all_now(&self) -> Result<AllAttachments, ApiError> {
        // In this order: the PersistentVolume of each VolumeAttachment is there by then.
        let attachments: Vec<VolumeAttachment> = self.list().await?;
        let volumes: Vec<PersistentVolume> = self.list().await?;
        let volumes = volumes.into_iter().filter_map(|object| volume(object, &self.driver));
        let mut attachments: Vec<_> =
            attachments.into_iter().filter_map(|object| attachment(object, &self.driver)).collect();
        attachments.sort_by(|a, b| (a.created_ms, &a.name).cmp(&(b.created_ms, &b.name)));
        Ok(AllAttachments { attachments, volumes: volumes.map(|pv| (pv.name.clone(), pv)).collect() })
    }

    async fn list<K>(&self) -> Result<Vec<K>, ApiError>
    where
        K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::all(self.server.client.clone());
        let (mut found, mut params) = (Vec::new(), ListParams::default().limit(PAGE));
        loop {
            let page = self.server.ask(api.list(&params)).await?;
            found.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(found),
            }
        }
    }

    /// What the cluster says now of a volume on a node. The usual name is asked for first, then whatever other name the
    /// watch knows.
    ///
    /// # Errors
    /// The API server's answer: then nothing is known.
    pub async fn live(&self, handle: &str, node: &str) -> Result<Live, ApiError> {
        Ok(match self.seen_now(handle, node).await? {
            None => Live::Nobody,
            Some(seen) if seen.deleting => Live::Leaving,
            Some(_) => Live::Wanted,
        })
    }

    /// The VolumeAttachment by which a volume is to be on a node now, and the PersistentVolume that it names; neither, where it
    /// is not to be there.
    ///
    /// # Errors
    /// The API server's answer: then nothing is known.
    pub async fn asked_now(&self, handle: &str, node: &str) -> Result<AllAttachments, ApiError> {
        let mut asked = AllAttachments::default();
        let Some(seen) = self.seen_now(handle, node).await?.filter(|seen| !seen.deleting) else {
            return Ok(asked);
        };
        if let Some(name) = &seen.pv {
            asked.volumes.extend(self.volume_now(name).await?.map(|pv| (pv.name.clone(), pv)));
        }
        asked.attachments.push(seen);
        Ok(asked)
    }

    /// Of the VolumeAttachments that ask for it there, one that is not being deleted.
    async fn seen_now(&self, handle: &str, node: &str) -> Result<Option<VolumeAttachmentSeen>, ApiError> {
        let usual = usual_name(handle, &self.driver, node);
        let others = self.attachments.look(|all| {
            let about = |seen: &&Arc<VolumeAttachmentSeen>| {
                seen.node == node && seen.name != usual && self.handle_of(seen).as_deref() == Some(handle)
            };
            all.values().filter(about).map(|seen| seen.name.clone()).collect::<Vec<_>>()
        });
        let mut leaving = None;
        for name in std::iter::once(usual.clone()).chain(others.into_iter().flatten()) {
            match self.one(&name).await? {
                Some(seen) if seen.node != node => {}
                Some(seen) if seen.deleting => leaving = Some(seen),
                Some(seen) => return Ok(Some(seen)),
                None => {}
            }
        }
        Ok(leaving)
    }

    async fn one(&self, name: &str) -> Result<Option<VolumeAttachmentSeen>, ApiError> {
        let api: Api<VolumeAttachment> = Api::all(self.server.client.clone());
        match self.server.ask(api.get(name)).await {
            Ok(object) => Ok(attachment(object, &self.driver)),
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn handle_of(&self, seen: &VolumeAttachmentSeen) -> Option<String> {
        let of = |name: &String| self.volumes.look(|all| all.get(name).map(|pv| pv.handle.clone())).flatten();
        seen.pv.as_ref().and_then(of).or_else(|| seen.volume.clone())
    }

    /// Nodes that are to have a volume, as the watch has it. `None`: it has not listed everything yet.
    #[must_use]
    pub fn wanting(&self, handle: &str) -> Option<Vec<String>> {
        let about = |seen: &&Arc<VolumeAttachmentSeen>| self.handle_of(seen).as_deref() == Some(handle);
        self.attachments.look(|all| all.values().filter(about).map(|seen| seen.node.clone()).collect())
    }

    /// Nodes that were answered that they have a volume, as the watch has it; none before it has listed everything.
    #[must_use]
    pub fn answered(&self, handle: &str) -> Vec<String> {
        let about = |seen: &&Arc<VolumeAttachmentSeen>| {
            seen.attached && self.handle_of(seen).as_deref() == Some(handle)
        };
        let nodes = |all: &BTreeMap<_, Arc<VolumeAttachmentSeen>>| {
            all.values().filter(about).map(|seen| seen.node.clone()).collect()
        };
        self.attachments.look(nodes).unwrap_or_default()
    }

    /// All volumes and the nodes that are to have them, and the nodes that are to have one which cannot be seen, as the
    /// watch has it. `None`: it has not listed everything yet.
    #[must_use]
    pub fn all_wanted(&self) -> Option<AllWanted> {
        self.attachments.look(|all| {
            let mut wanted = AllWanted::default();
            for seen in all.values() {
                match self.handle_of(seen) {
                    Some(volume) => drop(wanted.known.insert((volume, seen.node.clone()))),
                    None => drop(wanted.unclear.insert(seen.node.clone())),
                }
            }
            wanted
        })
    }

    /// Writes for people who has a volume, and since when. Nothing reads it.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn annotate(&self, pv: &str, says: &SaysWho) -> Result<(), ApiError> {
        let api: Api<PersistentVolume> = Api::all(self.server.client.clone());
        // `null` takes an annotation away.
        let patch = json!({"metadata": {"annotations": {NODES_KEY: says.nodes, SINCE_KEY: says.since}}});
        self.server.ask(api.patch(pv, &PatchParams::default(), &Patch::Merge(&patch))).await.map(drop)
    }
}

fn attachment(object: VolumeAttachment, driver: &str) -> Option<VolumeAttachmentSeen> {
    if object.spec.attacher != driver {
        return None;
    }
    let name = object.name_any();
    let created = object.metadata.creation_timestamp.as_ref();
    let created_ms = created.map_or(0, |time| u64::try_from(time.0.as_millisecond()).unwrap_or(0));
    let deleting = object.metadata.deletion_timestamp.is_some();
    let source = object.spec.source;
    let csi = source.inline_volume_spec.and_then(|spec| spec.csi);
    let (attached, metadata) =
        object.status.map(|status| (status.attached, status.attachment_metadata)).unwrap_or_default();
    let metadata = metadata.unwrap_or_default();
    Some(VolumeAttachmentSeen {
        name,
        pv: source.persistent_volume_name,
        volume: csi.map(|csi| csi.volume_handle).or_else(|| metadata.get(VOLUME_KEY).cloned()),
        node: object.spec.node_name,
        created_ms,
        deleting,
        attached,
        metadata,
    })
}

fn volume(object: PersistentVolume, driver: &str) -> Option<PersistentVolumeSeen> {
    let name = object.name_any();
    let annotation = |key| object.annotations().get(key).cloned();
    let says = SaysWho { nodes: annotation(NODES_KEY), since: annotation(SINCE_KEY) };
    let spec = object.spec?;
    let csi = spec.csi.filter(|csi| csi.driver == driver)?;
    let many = spec.access_modes.unwrap_or_default().iter().any(|mode| mode == "ReadWriteMany");
    let claim = spec.claim_ref.and_then(|claim| Some((claim.namespace?, claim.name?, claim.uid?)));
    Some(PersistentVolumeSeen {
        name,
        handle: csi.volume_handle,
        shared_block: many && spec.volume_mode.as_deref() == Some("Block"),
        claim,
        attributes: csi.volume_attributes.unwrap_or_default(),
        says,
    })
}

#[cfg(test)]
#[path = "attachments_tests.rs"]
mod tests;
