//! What the cluster says of its Nodes.
//!
//! In come the Nodes, watched, or a name; out go those that somebody has marked out of service, and which Node a name stands
//! for. The watch says whom to ask about: what is acted on, the API server says now ([`Nodes::mark_now`], [`uid`]). A Node that
//! is not ready, or that is not there any more, says nothing of what its kernel still writes, so neither is read.

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::Api;
use tokio::sync::watch;

use crate::api::{ApiError, ApiServer};
use crate::watch::Watched;

/// What a person, or what acts for one, puts on a Node that is shut down.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// The value of a taint that Cleat itself has put there: never evidence.
pub const OURS: &str = "cleat.io";

/// The Nodes of a cluster, watched until this is dropped. Of each, its name and its mark are kept: whole, those of a large
/// cluster are many megabytes.
pub struct Nodes {
    server: ApiServer,
    watched: Watched<Option<String>>,
}

impl Nodes {
    /// Begins to watch.
    #[must_use]
    pub fn watch(server: ApiServer) -> Self {
        let all: Api<Node> = Api::all(server.client.clone());
        let watched = Watched::start(&server, all, "Nodes", |node: Node| {
            let mark = mark(&node);
            Some((node.metadata.name?, mark))
        });
        Self { server, watched }
    }

    /// Signs of changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.watched.changes()
    }

    /// The names of the Nodes that somebody else has marked out of service, as the watch has it. `None`: it has not listed
    /// everything yet.
    #[must_use]
    pub fn marked(&self) -> Option<Vec<String>> {
        self.watched
            .look(|all| all.iter().filter(|(_, mark)| mark.is_some()).map(|(name, _)| name.clone()).collect())
    }

    /// The taint by which the Node of that name is marked now, as `kubectl describe` shows it; `None`: it is not, or there is
    /// no such Node.
    ///
    /// # Errors
    /// The API server's answer: then nothing is known.
    pub async fn mark_now(&self, name: &str) -> Result<Option<String>, ApiError> {
        let api: Api<Node> = Api::all(self.server.client.clone());
        match self.server.ask(api.get(name)).await {
            Ok(node) => Ok(mark(&node)),
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Which Node has that name now, by its UID; `None`: none.
///
/// # Errors
/// The API server's answer.
pub async fn uid(server: &ApiServer, name: &str) -> Result<Option<String>, ApiError> {
    let api: Api<Node> = Api::all(server.client.clone());
    match server.ask(api.get_metadata(name)).await {
        Ok(node) => Ok(node.metadata.uid),
        Err(ApiError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn mark(node: &Node) -> Option<String> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let theirs = |taint: &&Taint| taint.key == OUT_OF_SERVICE && taint.value.as_deref() != Some(OURS);
    let Taint { key, value, effect, .. } = taints.iter().find(theirs)?;
    let value = value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
    Some(format!("{key}{value}:{effect}"))
}

#[cfg(test)]
#[path = "nodes_tests.rs"]
mod tests;
