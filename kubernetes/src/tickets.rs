//! Tickets as objects of a namespace, `tickets.cleat.io`: what people and programs write, and what they are answered.
//!
//! In come objects as the API server has them; out go the wish that each is to the core, and the patch of its status.
//! What holds:
//! - the wish is the whole `spec`, and each change of it is another generation. A renewal is no change of the wish, so it
//!   is an annotation: in `spec` it would raise the generation, and no ticket that is renewed would ever stay satisfied;
//! - `status` is what the controller answers, and is never read as a wish;
//! - nobody can ask for `csi` here: those tickets are the VolumeAttachments. Which of the other types are open to whom is
//!   for an admission policy to say, since rights do not know fields;
//! - what is kept of an object has a greatest length, whoever has written it.

//!
//! | module | owns |
//! | --- | --- |
//! | `definition` | the kind, as the cluster has to know it |
//! | `status` | what a ticket is answered |
//! | `in_cluster` | all tickets of the cluster: watched, looked up, answered |

use std::collections::BTreeMap;

use cleat_core::{IdError, NodeId, Ticket, TicketId, TicketType, UnixMillis};
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use definition::{definition, resource};
pub use in_cluster::{ClusterTickets, NoVolume, TicketSeen, VolumeWanted};
pub use status::{LOST, SATISFIED, TicketCondition, TicketStatus};

use definition::ONE_SUBJECT;

mod definition;
mod in_cluster;
mod status;

/// The annotation whose every change renews a ticket. Its value means nothing; a time is usual.
pub const RENEWED: &str = "cleat.io/renewed";
/// So much of its value counts.
const RENEWED_LONGEST: usize = 64;
/// So much of what is wrong with a ticket is said: it may quote what somebody has written.
const WHY_LONGEST: usize = 300;
/// The longest holder, claim and node.
const NAME_LONGEST: usize = 253;
/// A ticket that does not say how often it is renewed is to be within this time.
pub const RENEW_SECONDS: u32 = 60;

/// Why a volume should be attached somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TicketSpec {
    /// The PersistentVolumeClaim whose volume is wanted, of the ticket's own namespace. Either this or `volume`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 253))]
    pub claim: Option<String>,
    /// The id of the volume that is wanted; its claim has to be of the ticket's own namespace. Either this or `claim`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 63))]
    pub volume: Option<String>,
    /// What it is wanted for. Of those that no node has yet, restore and expansion come first, then api, then workloads,
    /// then snapshot, backup and clone. Snapshot and backup give way to a workload on another node. A workload's own
    /// tickets are the VolumeAttachments.
    #[serde(rename = "type")]
    pub kind: TicketType,
    /// The node. An api ticket is for this node and no other; any other ticket takes the volume there if no node has it,
    /// and is attached where it is if one has. Without it: where the volume is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 253))]
    pub node: Option<String>,
    /// Who wants it, for people.
    #[schemars(length(min = 1, max = 253))]
    pub holder: String,
    /// A snapshot or backup ticket is lost if its annotation cleat.io/renewed does not change for so long; 60 if it is not
    /// said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(min = 10, max = 3600))]
    pub renew_seconds: Option<u32>,
}

/// A ticket as it is in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketObject {
    /// In which namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// Which one: one that is deleted and made again is another.
    pub uid: TicketId,
    /// Rises with each change of the wish.
    pub generation: u64,
    /// When it was made, by the API server's clock.
    pub created_ms: u64,
    /// It is being deleted.
    pub deleting: bool,
    /// The wish.
    pub spec: TicketSpec,
    /// What its holder has written last to renew it.
    pub renewed: Option<String>,
    /// What it was answered last, where that can be read.
    pub status: Option<TicketStatus>,
}

/// Which volume a ticket is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketSubject<'a> {
    /// That of a claim of the ticket's namespace.
    Claim(&'a str),
    /// This one, if its claim is of the ticket's namespace.
    Volume(&'a str),
}

/// A ticket that says nothing that could be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot use the ticket {namespace}/{name}: {why}; see `kubectl explain ticket.spec`")]
pub struct UnusableTicket {
    /// In which namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// What is wrong with it.
    pub why: String,
}

impl TicketObject {
    /// Reads one. A definition that is older than this program, or was changed, may let through what this one does not.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(object: &DynamicObject) -> Result<Self, UnusableTicket> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let unusable = |why: String| {
            let why = why.chars().take(WHY_LONGEST).collect();
            UnusableTicket { namespace: namespace.clone(), name: name.clone(), why }
        };
        let part = |part: &str| object.data.get(part).cloned().unwrap_or_default();
        let spec: TicketSpec =
            serde_json::from_value(part("spec")).map_err(|error| unusable(error.to_string()))?;
        check(&spec).map_err(|why| unusable(why.into()))?;
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let uid = TicketId::new(uid).map_err(|error| unusable(error.to_string()))?;
        let created = object.metadata.creation_timestamp.as_ref();
        let renewed = object.annotations().get(RENEWED);
        Ok(Self {
            uid,
            generation: object.metadata.generation.and_then(|number| u64::try_from(number).ok()).unwrap_or(0),
            created_ms: created.map_or(0, |time| u64::try_from(time.0.as_millisecond()).unwrap_or(0)),
            deleting: object.metadata.deletion_timestamp.is_some(),
            spec,
            renewed: renewed.map(|value| value.chars().take(RENEWED_LONGEST).collect()),
            status: serde_json::from_value(part("status")).ok(),
            namespace,
            name,
        })
    }

    /// Which volume it is about.
    #[must_use]
    pub fn subject(&self) -> TicketSubject<'_> {
        match (&self.spec.claim, &self.spec.volume) {
            (Some(claim), _) => TicketSubject::Claim(claim),
            (None, volume) => TicketSubject::Volume(volume.as_deref().unwrap_or_default()),
        }
    }

    /// What it is to the core, if it was last seen to be renewed at that time of our clock, and waits since that one.
    ///
    /// # Errors
    /// Where its node has a name that no node has.
    pub fn wish(&self, renewed: UnixMillis, waits_since: UnixMillis) -> Result<Ticket, IdError> {
        let renew_seconds = self.spec.renew_seconds.unwrap_or(RENEW_SECONDS);
        Ok(Ticket {
            id: self.uid.clone(),
            kind: self.spec.kind,
            node: self.spec.node.as_deref().map(NodeId::new).transpose()?,
            holder: self.spec.holder.clone(),
            generation: self.generation,
            since: UnixMillis(self.created_ms),
            renewed,
            renew_ms: Some(u64::from(renew_seconds) * 1000),
            waits_since,
        })
    }
}

/// The first thing that is wrong with a wish. The definition says the same.
fn check(spec: &TicketSpec) -> Result<(), &'static str> {
    let names = [Some(&spec.holder), spec.claim.as_ref(), spec.volume.as_ref(), spec.node.as_ref()];
    if names.into_iter().flatten().any(|name| name.is_empty() || name.len() > NAME_LONGEST) {
        return Err("a name in it is empty or too long");
    }
    if spec.claim.is_some() == spec.volume.is_some() {
        return Err(ONE_SUBJECT);
    }
    if spec.kind == TicketType::Csi {
        return Err("csi tickets are the VolumeAttachments");
    }
    Ok(())
}

/// When tickets were last seen to be renewed, by our own clock: what a holder writes as a time is not a clock.
#[derive(Clone, Debug, Default)]
pub struct Renewals {
    seen: BTreeMap<TicketId, (Option<String>, UnixMillis)>,
}

impl Renewals {
    /// Takes note of a ticket as it is now, and says when it was renewed last. One that was not seen before has its whole
    /// time from now on.
    pub fn see(&mut self, ticket: &TicketObject, now: UnixMillis) -> UnixMillis {
        let seen = self.seen.entry(ticket.uid.clone()).or_insert_with(|| (ticket.renewed.clone(), now));
        if seen.0 != ticket.renewed {
            *seen = (ticket.renewed.clone(), now);
        }
        seen.1
    }

    /// Counts it as renewed: whether it was could not be seen.
    pub fn excuse(&mut self, ticket: &TicketObject, now: UnixMillis) {
        self.seen.insert(ticket.uid.clone(), (ticket.renewed.clone(), now));
    }

    /// Keeps these, and forgets all others.
    pub fn keep(&mut self, is_there: impl Fn(&TicketId) -> bool) {
        self.seen.retain(|id, _| is_there(id));
    }
}

#[cfg(test)]
#[path = "tickets_tests.rs"]
mod tests;
