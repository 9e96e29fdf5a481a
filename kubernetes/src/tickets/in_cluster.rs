//! All tickets of the cluster: what the watch has of them, which volume each is about, and what each is answered.
//!
//! What holds:
//! - a ticket reaches only volumes of claims of its own namespace, as the API server says it now: a claim that names a
//!   PersistentVolume is not enough, the PersistentVolume has to name the claim, by its UID;
//! - a status is written to the object that was looked at and no other, and against the version of it: what a leader before
//!   writes late changes nothing;
//! - of a volume that is another namespace's no more is said than of one that is not there.

use std::collections::BTreeMap;
use std::sync::Arc;

use cleat_core::TicketId;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tokio::sync::watch;

use super::{TicketObject, TicketStatus, TicketSubject, UnusableTicket, resource};
use crate::api::{ApiError, ApiServer};
use crate::attachments::{Attachments, PersistentVolumeSeen};
use crate::watch::{Presence, Watched};

/// A ticket as the watch has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketSeen {
    /// In which namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// Which one.
    pub uid: TicketId,
    /// Rises with each change of the wish.
    pub generation: u64,
    /// What it says, or why that is of no use.
    pub read: Result<TicketObject, UnusableTicket>,
    /// What it was answered last, where that can be read.
    pub status: Option<TicketStatus>,
    /// Its version, against which a status is written.
    pub version: Option<String>,
}

impl TicketSeen {
    /// What is kept of an object; nothing of one that no API server has made.
    fn of(object: &DynamicObject) -> Option<Self> {
        let read = TicketObject::read(object);
        let status = object.data.get("status").cloned().unwrap_or_default();
        Some(Self {
            namespace: object.namespace()?,
            name: object.name_any(),
            uid: TicketId::new(object.metadata.uid.clone()?).ok()?,
            generation: object.metadata.generation.and_then(|number| u64::try_from(number).ok()).unwrap_or(0),
            read,
            status: serde_json::from_value(status).ok(),
            version: object.metadata.resource_version.clone(),
        })
    }
}

/// The volume that a ticket is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeWanted {
    /// Its id.
    pub handle: String,
    /// Several nodes may have it at once.
    pub shared_block: bool,
    /// What its PersistentVolume says of it.
    pub attributes: BTreeMap<String, String>,
}

/// Why a ticket is about no volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoVolume {
    /// There is no such claim, or not any more.
    #[error("claim {claim}: namespace {namespace} has no such claim")]
    NoClaim {
        /// The ticket's namespace.
        namespace: String,
        /// The claim.
        claim: String,
    },
    /// The claim has no volume yet.
    #[error("claim {claim} to be bound to a volume")]
    NotBound {
        /// The claim.
        claim: String,
    },
    /// It is another driver's.
    #[error("claim {claim}: its volume is none of the driver {driver}")]
    OtherDriver {
        /// The claim.
        claim: String,
        /// Our driver.
        driver: String,
    },
    /// No claim of the namespace has that volume.
    #[error("volume {volume}: no claim of namespace {namespace} is bound to it")]
    NotOfNamespace {
        /// The volume.
        volume: String,
        /// The ticket's namespace.
        namespace: String,
    },
}

impl NoVolume {
    /// The same in one word.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoClaim { .. } => "ClaimNotFound",
            Self::NotBound { .. } => "ClaimNotBound",
            Self::OtherDriver { .. } => "OtherDriver",
            Self::NotOfNamespace { .. } => "VolumeNotOfNamespace",
        }
    }
}

/// The tickets of a cluster.
pub struct ClusterTickets {
    server: ApiServer,
    watched: Watched<TicketSeen>,
}

impl ClusterTickets {
    /// Begins to watch. A cluster that does not know the kind has none.
    #[must_use]
    pub fn watch(server: ApiServer) -> Self {
        let all: Api<DynamicObject> = Api::all_with(server.client.clone(), &resource());
        let watched = Watched::start_of(&server, all, "Tickets", None, |object| {
            TicketSeen::of(&object).map(|seen| (format!("{}/{}", seen.namespace, seen.name), seen))
        });
        Self { server, watched }
    }

    /// Whether the cluster knows tickets.
    #[must_use]
    pub fn presence(&self) -> Presence {
        self.watched.presence()
    }

    /// Signs of changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.watched.changes()
    }

    /// All of them that are not being deleted. `None`: not everything was listed yet.
    #[must_use]
    pub fn all(&self) -> Option<Vec<Arc<TicketSeen>>> {
        let goes = |seen: &&Arc<TicketSeen>| seen.read.as_ref().is_ok_and(|ticket| ticket.deleting);
        self.watched.look(|all| all.values().filter(|seen| !goes(seen)).cloned().collect())
    }

    fn of_namespace(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.server.client.clone(), namespace, &resource())
    }

    /// The ticket as it is now; `None`: it is not there any more.
    ///
    /// # Errors
    /// The API server's answer: then nothing is known.
    pub async fn now(&self, seen: &TicketSeen) -> Result<Option<TicketSeen>, ApiError> {
        match self.server.ask(self.of_namespace(&seen.namespace).get(&seen.name)).await {
            Ok(object) => Ok(TicketSeen::of(&object).filter(|now| now.uid == seen.uid)),
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The volume that a ticket is about, as the API server says it now.
    ///
    /// # Errors
    /// The API server's answer: then nothing is known.
    pub async fn volume_of(
        &self,
        ticket: &TicketObject,
        attachments: &Attachments,
    ) -> Result<Result<VolumeWanted, NoVolume>, ApiError> {
        match ticket.subject() {
            TicketSubject::Claim(claim) => self.of_claim(&ticket.namespace, claim, attachments).await,
            TicketSubject::Volume(volume) => self.of_volume(&ticket.namespace, volume, attachments).await,
        }
    }

    async fn of_claim(
        &self,
        namespace: &str,
        name: &str,
        attachments: &Attachments,
    ) -> Result<Result<VolumeWanted, NoVolume>, ApiError> {
        let claim = || name.to_owned();
        let Some(there) = self.claim_now(namespace, name).await? else {
            return Ok(Err(NoVolume::NoClaim { namespace: namespace.to_owned(), claim: claim() }));
        };
        let bound = there.spec.as_ref().and_then(|spec| spec.volume_name.clone());
        let Some(pv) = bound.filter(|pv| !pv.is_empty()) else {
            return Ok(Err(NoVolume::NotBound { claim: claim() }));
        };
        let Some(pv) = attachments.volume_now(&pv).await? else {
            let driver = attachments.driver().to_owned();
            return Ok(Err(NoVolume::OtherDriver { claim: claim(), driver }));
        };
        // Whoever makes a claim may name any PersistentVolume in it.
        Ok(if is_of(&pv, namespace, &there) {
            Ok(wanted(pv))
        } else {
            Err(NoVolume::NotBound { claim: claim() })
        })
    }

    async fn of_volume(
        &self,
        namespace: &str,
        volume: &str,
        attachments: &Attachments,
    ) -> Result<Result<VolumeWanted, NoVolume>, ApiError> {
        for name in attachments.named(volume) {
            let Some(pv) = attachments.volume_now(&name).await?.filter(|pv| pv.handle == volume) else {
                continue;
            };
            let Some((_, claim, _)) = pv.claim.clone().filter(|(of, ..)| of == namespace) else { continue };
            let Some(claim) = self.claim_now(namespace, &claim).await? else { continue };
            if is_of(&pv, namespace, &claim) {
                return Ok(Ok(wanted(pv)));
            }
        }
        Ok(Err(NoVolume::NotOfNamespace { volume: volume.to_owned(), namespace: namespace.to_owned() }))
    }

    async fn claim_now(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, ApiError> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.server.client.clone(), namespace);
        match self.server.ask(claims.get(name)).await {
            Ok(claim) => Ok(Some(claim)),
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Answers a ticket, if it is still the one that was seen, as it was seen.
    ///
    /// # Errors
    /// The API server's answer. [`ApiError::Conflict`]: it has changed since; the watch brings what it is now.
    pub async fn answer(&self, seen: &TicketSeen, status: &TicketStatus) -> Result<(), ApiError> {
        let mut patch = status.patch();
        patch["metadata"] = json!({"uid": seen.uid.as_str(), "resourceVersion": seen.version});
        let of = self.of_namespace(&seen.namespace);
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        self.server.ask(of.patch_status(&seen.name, &params, &patch)).await.map(drop)
    }
}

/// Whether a PersistentVolume is bound to that claim.
fn is_of(pv: &PersistentVolumeSeen, namespace: &str, claim: &PersistentVolumeClaim) -> bool {
    let (name, uid) = (claim.metadata.name.as_ref(), claim.metadata.uid.as_ref());
    let bound = |(of, by_name, by_uid): &(String, String, String)| {
        of == namespace && Some(by_name) == name && Some(by_uid) == uid
    };
    pv.claim.as_ref().is_some_and(bound)
}

fn wanted(pv: PersistentVolumeSeen) -> VolumeWanted {
    let PersistentVolumeSeen { handle, shared_block, attributes, .. } = pv;
    VolumeWanted { handle, shared_block, attributes }
}

#[cfg(test)]
#[path = "in_cluster_tests.rs"]
mod tests;
