//! The CA of the cluster's client certificates, as the API server publishes it.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;

use crate::api::{ApiError, ApiServer};

/// The ConfigMap that has it.
pub const WHERE: &str = "kube-system/extension-apiserver-authentication";
const KEY: &str = "client-ca-file";

/// Reads it, PEM; `None` where the cluster takes no client certificates.
///
/// # Errors
/// The API server's answer.
pub async fn read(server: &ApiServer) -> Result<Option<String>, ApiError> {
    let (namespace, name) = WHERE.split_once('/').unwrap_or_default();
    let api: Api<ConfigMap> = Api::namespaced(server.client.clone(), namespace);
    match server.ask(api.get(name)).await {
        Ok(map) => Ok(map.data.and_then(|mut data| data.remove(KEY))),
        Err(ApiError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}
