//! What the cluster says of its Nodes.
//!
//! In comes nothing but time, or a name; out go the Nodes that somebody has marked out of service, and which Node a name
//! stands for, as the API server knows them now. A Node that is not ready, or that is not there any more, says nothing of
//! what its kernel still writes, so neither is read.

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use crate::api::{ApiError, ApiServer};

/// What a person, or what acts for one, puts on a Node that is shut down.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const PAGE: u32 = 500;
/// The value of a taint that Cleat itself has put there: never evidence.
pub const OURS: &str = "cleat.io";

/// A Node that was marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Its name.
    pub node: String,
    /// The taint as `kubectl describe` shows it.
    pub taint: String,
}

/// Every Node that somebody else has marked out of service.
///
/// # Errors
/// The API server's answer.
pub async fn out_of_service(server: &ApiServer) -> Result<Vec<Marked>, ApiError> {
    let api: Api<Node> = Api::all(server.client.clone());
    let (mut found, mut params) = (Vec::new(), ListParams::default().limit(PAGE));
    loop {
        let page = server.ask(api.list(&params)).await?;
        found.extend(page.items.iter().filter_map(marked));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
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

fn marked(node: &Node) -> Option<Marked> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let theirs = |taint: &&Taint| taint.key == OUT_OF_SERVICE && taint.value.as_deref() != Some(OURS);
    let Taint { key, value, effect, .. } = taints.iter().find(theirs)?;
    let value = value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
    Some(Marked { node: node.name_any(), taint: format!("{key}{value}:{effect}") })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(taints: serde_json::Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"taints": taints}}))
            .unwrap_or_default()
    }

    #[test]
    fn a_node_is_marked_by_that_taint_alone_and_not_by_ours() {
        let taint = |key: &str, value: &str| json!({"key": key, "value": value, "effect": "NoExecute"});
        let shown = |taints| marked(&node(taints)).map(|marked| marked.taint);
        assert_eq!(
            shown(json!([taint("x", "y"), taint(OUT_OF_SERVICE, "nodeshutdown")])).as_deref(),
            Some("node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
        );
        assert_eq!(shown(json!([taint(OUT_OF_SERVICE, OURS)])), None);
        for other in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            assert_eq!(shown(json!([taint(other, "")])), None);
        }
        assert_eq!(marked(&Node::default()), None);
    }
}
