//! Tickets as a person makes them: made, renewed and deleted in a namespace, as the user of a kubeconfig.
//!
//! Comes in: a wish. Goes out: which ticket the API server has made of it, or why it has made none and what to do. What always
//! holds: each call is sent once; whether one that was not answered was carried out shows by the name, which is the caller's
//! own; what somebody else has made under that name is neither renewed nor deleted, for both name the ticket by its UID.

use std::time::Duration;

use cleat_runtime::date::rfc3339;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use crate::api::{ApiError, ApiServer, NoClient};
use crate::identity::Kubectl;
use crate::tickets::{RENEWED, resource};

/// What somebody wishes for: the `spec` of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnWish {
    /// The volume, whose claim has to be of the ticket's namespace.
    pub volume: String,
    /// The type, by its name.
    pub kind: String,
    /// The node.
    pub node: String,
    /// Who wants it, for people.
    pub holder: String,
    /// It is lost if it is not renewed for so long.
    pub renew_seconds: u64,
}

/// A ticket that was made here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnTicket {
    /// By what the controller knows it.
    pub uid: String,
    /// Of the wish.
    pub generation: u64,
}

/// Of what kind a namespace is, where an answer is about that.
const NAMESPACES: &str = "namespaces";
/// Why nothing is made in a namespace that is being deleted.
const TERMINATING: &str = "NamespaceTerminating";

/// Why a ticket was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotMade {
    /// There is no such namespace.
    #[error("there is no namespace {0}; name the one that the volume's claim is in")]
    NoNamespace(String),
    /// Nothing is made in it any more.
    #[error(
        "namespace {0} is being deleted, with all that is in it; if the volume is to stay, name the namespace that its claim \
         is in by now"
    )]
    NamespaceGoes(String),
    /// The cluster does not know tickets.
    #[error(
        "the cluster does not know tickets (tickets.cleat.io); see that a controller of this version leads there"
    )]
    NoKind,
    /// Somebody else has made one of that name.
    #[error(
        "namespace {namespace} has a ticket {name} of somebody else, which is left as it is; run this again"
    )]
    NameTaken {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
    },
    /// Rights, a policy or a quota forbid it.
    #[error(
        "the API server does not allow it: {why}; where a right is missing, have the role cleat-tickets-edit granted in \
         namespace {namespace}"
    )]
    NotAllowed {
        /// The namespace.
        namespace: String,
        /// What the API server says.
        why: String,
    },
    /// Something else.
    #[error(transparent)]
    Api(ApiError),
}

impl NotMade {
    /// Whether it is certain that there is none.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        !matches!(self, Self::Api(ApiError::Unanswered(_)))
    }

    /// What an answer says of the namespace, and not of the ticket.
    fn for_namespace(namespace: &str, error: &kube::Error) -> Option<Self> {
        let kube::Error::Api(status) = error else { return None };
        let details = status.details.as_ref()?;
        if status.is_not_found() && details.kind == NAMESPACES {
            return Some(Self::NoNamespace(namespace.to_owned()));
        }
        let goes = details.causes.iter().any(|cause| cause.reason == TERMINATING);
        goes.then(|| Self::NamespaceGoes(namespace.to_owned()))
    }

    fn of(namespace: &str, name: &str, error: ApiError) -> Self {
        let namespace = namespace.to_owned();
        match error {
            ApiError::NotFound => Self::NoKind,
            ApiError::Conflict => Self::NameTaken { namespace, name: name.to_owned() },
            ApiError::Forbidden(why) => Self::NotAllowed { namespace, why },
            error => Self::Api(error),
        }
    }
}

/// The tickets of one namespace, for one person.
#[derive(Clone)]
pub struct OwnTickets {
    server: ApiServer,
    namespace: String,
}

impl OwnTickets {
    /// Those of a namespace, for the user of a kubeconfig.
    ///
    /// # Errors
    /// If there is no client.
    pub fn of(kubectl: &Kubectl, namespace: &str, timeout: Duration) -> Result<Self, NoClient> {
        Ok(Self { server: ApiServer::of(kubectl.0.clone(), timeout)?, namespace: namespace.to_owned() })
    }

    fn api(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.server.client.clone(), &self.namespace, &resource())
    }

    /// Makes one.
    ///
    /// # Errors
    /// Why not; it may be there all the same where that is not certain ([`NotMade::is_certain`]).
    pub async fn make(&self, name: &str, wish: &OwnWish) -> Result<OwnTicket, NotMade> {
        let OwnWish { volume, kind, node, holder, renew_seconds } = wish;
        let mut object = DynamicObject::new(name, &resource()).within(&self.namespace);
        object.data = json!({"spec": {
            "volume": volume, "type": kind, "node": node, "holder": holder, "renewSeconds": renew_seconds,
        }});
        let (api, params, mut about_namespace) = (self.api(), PostParams::default(), None);
        let call = async {
            let made = api.create(&params, &object).await;
            about_namespace = made.as_ref().err().and_then(|no| NotMade::for_namespace(&self.namespace, no));
            made
        };
        let made =
            self.server.ask(call).await.map_err(|error| {
                about_namespace.unwrap_or_else(|| NotMade::of(&self.namespace, name, error))
            })?;
        let generation = made.metadata.generation.and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
        Ok(OwnTicket { uid: made.metadata.uid.unwrap_or_default(), generation })
    }

    /// Renews the one of that UID; `now` is the person's clock in milliseconds, by which nothing is decided.
    ///
    /// # Errors
    /// The API server's answer; it is a refusal where another one has the name by now.
    pub async fn renew(&self, name: &str, uid: &str, now: u64) -> Result<(), ApiError> {
        let patch = json!({"metadata": {"uid": uid, "annotations": {RENEWED: rfc3339(now)}}});
        let patch = Patch::Merge(patch);
        self.server.ask(self.api().patch(name, &PatchParams::default(), &patch)).await.map(drop)
    }

    /// Deletes it; the one of that UID, where that is known. One that is not there is deleted already.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn delete(&self, name: &str, uid: Option<&str>) -> Result<(), ApiError> {
        let only = uid.map(|uid| Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        let params = DeleteParams { preconditions: only, ..DeleteParams::default() };
        match self.server.ask(self.api().delete(name, &params)).await {
            Ok(_) | Err(ApiError::NotFound) => Ok(()),
            // Another one has the name by now.
            Err(ApiError::Conflict) if uid.is_some() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
#[path = "own_tickets_tests.rs"]
mod tests;
