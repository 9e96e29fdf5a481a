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

use std::collections::BTreeMap;

use cleat_core::{IdError, NodeId, Ticket, TicketId, TicketType, UnixMillis};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use kube::core::{ApiResource, GroupVersionKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::definitions::{GROUP, VERSION};
use crate::schema::structural;

/// The annotation whose every change renews a ticket. Its value means nothing; a time is usual.
pub const RENEWED: &str = "cleat.io/renewed";
/// So much of its value counts.
const RENEWED_LONGEST: usize = 64;
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

/// How a ticket stands. The controller writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TicketStatus {
    /// The generation of the ticket that this is about.
    pub observed_generation: u64,
    /// The device is there for it; for `satisfiedGeneration`, and for no later one.
    pub satisfied: bool,
    /// The generation that it is satisfied for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub satisfied_generation: Option<u64>,
    /// The node where the device is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub node: Option<String>,
    /// The device's path on that node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub device: Option<String>,
    /// Why it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub waits_for: Option<String>,
    /// For whom it waits: a ticket or a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub waits_on: Option<String>,
    /// Since when it stands like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub since: Option<String>,
    /// Its holder is to let go of the device, and is cut off after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub interrupted_until: Option<String>,
}

impl TicketStatus {
    /// Whether a ticket of that generation is satisfied. What was said of an earlier one is not said of it.
    #[must_use]
    pub fn is_satisfied(&self, generation: u64) -> bool {
        self.satisfied && self.satisfied_generation == Some(generation)
    }

    /// As a merge patch of the status: what is not said any more goes.
    #[must_use]
    pub fn patch(&self) -> Value {
        json!({"status": {
            "observedGeneration": self.observed_generation,
            "satisfied": self.satisfied,
            "satisfiedGeneration": self.satisfied_generation,
            "node": self.node,
            "device": self.device,
            "waitsFor": self.waits_for,
            "waitsOn": self.waits_on,
            "since": self.since,
            "interruptedUntil": self.interrupted_until,
        }})
    }
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
        let unusable = |why: String| UnusableTicket { namespace: namespace.clone(), name: name.clone(), why };
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

    /// Keeps these, and forgets all others.
    pub fn keep(&mut self, is_there: impl Fn(&TicketId) -> bool) {
        self.seen.retain(|id, _| is_there(id));
    }
}

const ONE_SUBJECT: &str = "it has to name either a claim of its namespace or a volume";
const SAME_WISH: &str = "a ticket stays for one volume and one type; make another one";

/// By what the API server knows tickets.
#[must_use]
pub fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, "Ticket"), "tickets")
}

/// The definition of tickets.
#[must_use]
pub fn definition() -> Option<CustomResourceDefinition> {
    let mut spec = structural::<TicketSpec>();
    if let Some(types) = spec.pointer_mut("/properties/type/enum").and_then(Value::as_array_mut) {
        types.retain(|name| name != TicketType::Csi.name());
    }
    let same = |field: &str| {
        format!(
            "has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
        )
    };
    let same = format!("self.type == oldSelf.type && {} && {}", same("claim"), same("volume"));
    spec["x-kubernetes-validations"] = json!([
        {"rule": "has(self.claim) != has(self.volume)", "message": ONE_SUBJECT},
        {"rule": same, "message": SAME_WISH},
    ]);
    let column = |name: &str, of: &str, path: &str, priority: u32| json!({"name": name, "type": of, "jsonPath": path, "priority": priority});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("tickets.{GROUP}")},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": "Ticket", "listKind": "TicketList", "plural": "tickets", "singular": "ticket"},
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    column("Type", "string", ".spec.type", 0),
                    column("Claim", "string", ".spec.claim", 0),
                    column("Volume", "string", ".spec.volume", 1),
                    column("Holder", "string", ".spec.holder", 1),
                    column("Satisfied", "boolean", ".status.satisfied", 0),
                    column("Node", "string", ".status.node", 0),
                    column("Device", "string", ".status.device", 1),
                    column("Waits for", "string", ".status.waitsFor", 0),
                    column("Age", "date", ".metadata.creationTimestamp", 0),
                ],
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "description": "Why a volume should be attached somewhere.",
                    "required": ["spec"],
                    "properties": {"spec": spec, "status": structural::<TicketStatus>()},
                }},
            }],
        },
    });
    serde_json::from_value(definition).ok()
}

#[cfg(test)]
#[path = "tickets_tests.rs"]
mod tests;
