//! A few lines that are kept beside the records, in a ConfigMap, written against the version that was read.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};

use crate::api::{ApiError, ApiServer};

/// What is noted, by name.
pub type Lines = BTreeMap<String, String>;

/// The notes of one installation.
#[derive(Clone)]
pub struct Notes {
    server: ApiServer,
    api: Api<ConfigMap>,
    name: String,
}

impl Notes {
    /// In that ConfigMap.
    #[must_use]
    pub fn new(server: ApiServer, namespace: &str, name: &str) -> Self {
        let api = Api::namespaced(server.client.clone(), namespace);
        Self { server, api, name: name.to_owned() }
    }

    /// Changes them, durably. `change` gives nothing where all is as it should be.
    ///
    /// # Errors
    /// If they are not known to be durable.
    pub async fn change(
        &self,
        change: impl Fn(&Lines) -> Result<Option<Lines>, String>,
    ) -> Result<Lines, ApiError> {
        let there = match self.server.ask(self.api.get(&self.name)).await {
            Ok(there) => Some(there),
            Err(ApiError::NotFound) => None,
            Err(error) => return Err(error),
        };
        let lines = there.as_ref().and_then(|map| map.data.clone()).unwrap_or_default();
        let Some(lines) = change(&lines).map_err(ApiError::Refused)? else { return Ok(lines) };
        let mut map = there.clone().unwrap_or_else(|| ConfigMap {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            ..ConfigMap::default()
        });
        map.metadata.managed_fields = None;
        map.data = Some(lines.clone());
        let as_usual = PostParams::default();
        match there {
            Some(_) => self.server.ask(self.api.replace(&self.name, &as_usual, &map)).await?,
            None => self.server.ask(self.api.create(&as_usual, &map)).await?,
        };
        Ok(lines)
    }
}
