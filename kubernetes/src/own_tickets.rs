//! Tickets as a person makes them: made, renewed and deleted in a namespace, as the user of a kubeconfig.
//!
//! Comes in: a wish. Goes out: which ticket the API server has made of it. What always holds: each call is sent once; whether
//! one that was not answered was carried out shows by the name, which is the caller's own.

use std::time::Duration;

use cleat_runtime::date::rfc3339;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
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
    /// The API server's answer; after [`ApiError::Unanswered`] it may be there all the same.
    pub async fn make(&self, name: &str, wish: &OwnWish) -> Result<OwnTicket, ApiError> {
        let OwnWish { volume, kind, node, holder, renew_seconds } = wish;
        let mut object = DynamicObject::new(name, &resource()).within(&self.namespace);
        object.data = json!({"spec": {
            "volume": volume, "type": kind, "node": node, "holder": holder, "renewSeconds": renew_seconds,
        }});
        let made = self.server.ask(self.api().create(&PostParams::default(), &object)).await?.metadata;
        let generation = made.generation.and_then(|number| u64::try_from(number).ok()).unwrap_or(0);
        Ok(OwnTicket { uid: made.uid.unwrap_or_default(), generation })
    }

    /// Renews it; `now` is the person's clock in milliseconds, by which nothing is decided.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn renew(&self, name: &str, now: u64) -> Result<(), ApiError> {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {RENEWED: rfc3339(now)}}}));
        self.server.ask(self.api().patch(name, &PatchParams::default(), &patch)).await.map(drop)
    }

    /// Deletes it. One that is not there is deleted already.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn delete(&self, name: &str) -> Result<(), ApiError> {
        match self.server.ask(self.api().delete(name, &DeleteParams::default())).await {
            Ok(_) | Err(ApiError::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
