//! The records of volumes and nodes as custom resources: listed whole, and written one by one against a version.
//!
//! What holds:
//! - a list is one consistent read of what every earlier write has made durable, over all its pages;
//! - a write is made if the object is of the version that the writer has seen, and not else; what others have changed
//!   beside the record (labels, a deletion that waits) is no other record, and such a write is made over it;
//! - a record that a controller of an earlier term has written in the meantime was never acted on: that controller had
//!   no answer before its claim ended, and nobody acts on what it does not know to be durable. It is written over;
//! - which host a node is, a person may change in its record ([`pinned`]): a node's record is never written over one that
//!   names another host, whoever wrote that, and is over one that names the same;
//! - a record has a finalizer from its first write on: what a person deletes stays until nobody may write any more. One
//!   that has gone all the same is made again: what its writer knows is the truth.

use kube::api::ValidationDirective;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, GroupVersionKind, Request};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Map, Value, json};

use crate::api::{ApiError, ApiServer};
use crate::definitions::{FIELD_MANAGER, GROUP, VERSION};

/// Keeps a record that a person deletes.
pub const FINALIZER: &str = "cleat.io/may-write";
/// Objects that are asked for at once.
const PAGE: u32 = 500;
/// Writes over what counts as no other record, until somebody who keeps changing it is left alone.
const TRIES: u32 = 5;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A volume.
    Volume,
    /// A node.
    Node,
}

impl Kind {
    pub(crate) fn resource(self) -> ApiResource {
        let (kind, plural) = match self {
            Self::Volume => ("CleatVolume", "cleatvolumes"),
            Self::Node => ("CleatNode", "cleatnodes"),
        };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, VERSION, kind), plural)
    }
}

/// A record as it is in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordObject {
    /// About what.
    pub kind: Kind,
    /// Whose.
    pub name: String,
    /// Of which version.
    pub version: u64,
    /// Of the controller that wrote it.
    pub term: u64,
    /// What it says.
    pub value: Map<String, Value>,
    /// A person has deleted it; it stays until nobody may write any more.
    pub deleting: bool,
    /// Our finalizer is missing; these others are there.
    pub unguarded: Option<Vec<String>>,
    /// What people read of it.
    pub status: Option<Value>,
}

/// Why a record was not written.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WriteError {
    /// Somebody else has written it.
    #[error("somebody else has written it")]
    Conflict {
        /// Of which version it is.
        found: u64,
    },
    /// A person has made it the record of another host.
    #[error("somebody has made it the record of {host}")]
    Pinned {
        /// Of which host.
        host: String,
    },
    /// A controller of a later term has written it.
    #[error("a controller of a later term has written it")]
    Overtaken,
    /// The claim ends too soon for one more try.
    #[error("the Lease ends too soon")]
    NotOurs,
    /// It is being deleted, so nobody is let in any more.
    #[error("it is being deleted: nobody is granted the volume before it has gone")]
    Deleting,
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// The records of one cluster.
#[derive(Clone)]
pub struct ClusterRecords {
    server: ApiServer,
}

/// What is to be there before a write.
#[derive(Clone, Debug, PartialEq)]
pub struct Before<'a> {
    /// Of which version.
    pub version: u64,
    /// What it says.
    pub value: &'a Map<String, Value>,
    /// A person has deleted it.
    pub deleting: bool,
    /// Our finalizer is missing; these others are there.
    pub unguarded: Option<&'a [String]>,
}

/// One write of one record.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordWrite<'a> {
    /// About what.
    pub kind: Kind,
    /// Whose.
    pub name: &'a str,
    /// What is to be there before; `None`: nothing.
    pub before: Option<Before<'a>>,
    /// What it is to say; `None`: it is to go.
    pub value: Option<&'a Map<String, Value>>,
    /// It lets somebody in whom the one before did not.
    pub lets_in: bool,
}

/// What a write has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The record's version.
    pub version: u64,
    /// A person has deleted it; it stays until nobody may write any more.
    pub deleting: bool,
}

impl Written {
    /// There is no record any more.
    const GONE: Self = Self { version: 0, deleting: false };
}

impl ClusterRecords {
    /// Those of the server's cluster.
    #[must_use]
    pub fn new(server: ApiServer) -> Self {
        Self { server }
    }

    fn api(&self, kind: Kind) -> Api<DynamicObject> {
        Api::all_with(self.server.client.clone(), &kind.resource())
    }

    /// All records, as they are now.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn list(&self) -> Result<Vec<RecordObject>, ApiError> {
        let (mut found, nodes) =
            futures_util::try_join!(self.list_of(Kind::Volume), self.list_of(Kind::Node))?;
        found.extend(nodes);
        Ok(found)
    }

    /// One record, as it is now; `None`: there is none.
    ///
    /// # Errors
    /// The API server's answer.
    pub async fn get(&self, kind: Kind, name: &str) -> Result<Option<RecordObject>, ApiError> {
        match self.server.ask(self.api(kind).get(name)).await {
            Ok(object) => read(kind, &object).map(Some),
            Err(ApiError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All records of one kind, as they are now.
    pub(crate) async fn list_of(&self, kind: Kind) -> Result<Vec<RecordObject>, ApiError> {
        let (api, mut found) = (self.api(kind), Vec::new());
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = self.server.ask(api.list(&params)).await?;
            for object in &page.items {
                found.push(read(kind, object)?);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(found),
            }
        }
    }

    /// Writes one record, as the controller of that term.
    ///
    /// # Errors
    /// Why it was not written; after [`ApiError::Unanswered`] the same write may be tried again, and is made once.
    /// `may_send` is asked before each call that changes something.
    pub async fn write(
        &self,
        term: u64,
        write: &RecordWrite<'_>,
        may_send: impl Fn() -> bool,
    ) -> Result<Written, WriteError> {
        let api = self.api(write.kind);
        let before = write.before.as_ref();
        if write.lets_in && before.is_some_and(|before| before.deleting) {
            return Err(WriteError::Deleting);
        }
        let mut version = before.map(|before| before.version);
        // A finalizer can only be added while nothing is being deleted.
        let mut finalizers = before
            .filter(|before| !before.deleting)
            .and_then(|before| before.unguarded)
            .map(<[String]>::to_vec);
        for _ in 0..TRIES {
            if !may_send() {
                return Err(WriteError::NotOurs);
            }
            let made = match (version, write.value) {
                (None, None) => return Ok(Written::GONE),
                (None, Some(value)) => match self.create(&api, term, write, value).await {
                    Err(ApiError::NotFound) => return Err(ApiError::NotFound.into()),
                    made => made.map_err(WriteError::from),
                },
                (Some(version), Some(value)) => {
                    let spec = spec(term, value);
                    let made = self.replace(&api, write.name, version, &spec, finalizers.take()).await;
                    made.map_err(WriteError::from)
                }
                (Some(version), None) => self.remove(&api, write.name, version, &may_send).await,
            };
            match made {
                Err(WriteError::Api(ApiError::Conflict | ApiError::NotFound)) => {}
                made => return made,
            }
            let found = match self.server.ask(api.get(write.name)).await {
                Ok(object) => object,
                Err(ApiError::NotFound) if write.value.is_none() => return Ok(Written::GONE),
                Err(ApiError::NotFound) => {
                    tracing::warn!(
                        name = write.name,
                        "a record has gone that nobody was to delete: it is made again"
                    );
                    version = None;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let found = read(write.kind, &found)?;
            if write.value == Some(&found.value) && found.term == term {
                return Ok(Written { version: found.version, deleting: found.deleting });
            }
            if found.term > term {
                return Err(WriteError::Overtaken);
            }
            let unchanged = before.is_some_and(|before| *before.value == found.value);
            match write.value.filter(|_| write.kind == Kind::Node && !unchanged) {
                Some(value) if pinned(value) == pinned(&found.value) => {}
                Some(_) => return Err(WriteError::Pinned { host: pinned(&found.value) }),
                None if !unchanged && found.term >= term => {
                    return Err(WriteError::Conflict { found: found.version });
                }
                None => {}
            }
            if found.deleting && write.lets_in {
                return Err(WriteError::Deleting);
            }
            finalizers = found.unguarded.filter(|_| !found.deleting);
            version = Some(found.version);
        }
        Err(ApiError::Unanswered("somebody keeps changing it".into()).into())
    }

    /// Says for people how a record of that version stands; gives the version that this makes. Nothing rests on it, so its
    /// failure need fail nothing.
    ///
    /// # Errors
    /// The API server's answer; [`ApiError::Conflict`] if the record is of another version by now.
    pub async fn describe(
        &self,
        kind: Kind,
        name: &str,
        version: u64,
        status: &Value,
    ) -> Result<u64, ApiError> {
        let metadata = json!({ "resourceVersion": version.to_string() });
        let patch = Patch::Merge(json!({ "metadata": metadata, "status": status }));
        let (api, as_usual) = (self.api(kind), PatchParams::default());
        self::version(&self.server.ask(api.patch_status(name, &as_usual, &patch)).await?)
    }

    async fn create(
        &self,
        api: &Api<DynamicObject>,
        term: u64,
        write: &RecordWrite<'_>,
        value: &Map<String, Value>,
    ) -> Result<Written, ApiError> {
        let mut object = DynamicObject::new(write.name, &write.kind.resource());
        object.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        let spec = spec(term, value);
        object.data = json!({ "spec": spec });
        let by_us = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), dry_run: false };
        let made = self.server.ask(strictly_created(&self.server.client, api, &by_us, &object)).await?;
        written(&made, &spec)
    }

    async fn replace(
        &self,
        api: &Api<DynamicObject>,
        name: &str,
        version: u64,
        spec: &Value,
        finalizers: Option<Vec<String>>,
    ) -> Result<Written, ApiError> {
        let mut patch = vec![
            json!({"op": "replace", "path": "/metadata/resourceVersion", "value": version.to_string()}),
            json!({"op": "replace", "path": "/spec", "value": spec}),
        ];
        if let Some(mut finalizers) = finalizers {
            finalizers.push(FINALIZER.to_owned());
            patch.push(json!({"op": "add", "path": "/metadata/finalizers", "value": finalizers}));
        }
        written(&self.patch(api, name, patch).await?, spec)
    }

    /// Takes the finalizer off, and deletes what is left, if it is still that version.
    async fn remove(
        &self,
        api: &Api<DynamicObject>,
        name: &str,
        version: u64,
        may_send: impl Fn() -> bool,
    ) -> Result<Written, WriteError> {
        let there = self.server.ask(api.get(name)).await?;
        if self::version(&there)? != version {
            return Err(ApiError::Conflict.into());
        }
        if !may_send() {
            return Err(WriteError::NotOurs);
        }
        let others: Vec<_> = there.finalizers().iter().filter(|name| *name != FINALIZER).collect();
        let patch = vec![
            json!({"op": "replace", "path": "/metadata/resourceVersion", "value": version.to_string()}),
            json!({"op": "add", "path": "/metadata/finalizers", "value": others}),
        ];
        let left = self.patch(api, name, patch).await?;
        if left.metadata.deletion_timestamp.is_some() {
            return Ok(Written::GONE);
        }
        let only = Preconditions { resource_version: left.metadata.resource_version, uid: left.metadata.uid };
        let params = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
        if !may_send() {
            return Err(WriteError::NotOurs);
        }
        self.server.ask(api.delete(name, &params)).await?;
        Ok(Written::GONE)
    }

    async fn patch(
        &self,
        api: &Api<DynamicObject>,
        name: &str,
        operations: Vec<Value>,
    ) -> Result<DynamicObject, ApiError> {
        let unusable = |error: serde_json::Error| ApiError::Refused(error.to_string());
        let patch: Patch<()> =
            Patch::Json(serde_json::from_value(Value::Array(operations)).map_err(unusable)?);
        let by_us = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            // What the cluster's definition does not know would be left out, and nothing said.
            field_validation: Some(ValidationDirective::Strict),
            ..PatchParams::default()
        };
        self.server.ask(api.patch(name, &by_us, &patch)).await
    }
}

/// As [`Api::create`], and refused where the cluster's definition would leave something out.
async fn strictly_created(
    client: &Client,
    api: &Api<DynamicObject>,
    by_us: &PostParams,
    object: &DynamicObject,
) -> kube::Result<DynamicObject> {
    let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
    let request = Request::new(api.resource_url()).create(by_us, body).map_err(kube::Error::BuildRequest)?;
    let (mut parts, body) = request.into_parts();
    let uri = format!("{}&fieldValidation=Strict", parts.uri);
    parts.uri = uri.parse().map_err(|error: http::uri::InvalidUri| kube::Error::HttpError(error.into()))?;
    client.request(http::Request::from_parts(parts, body)).await
}

/// Which host a node's record names, for people and to be compared.
#[must_use]
pub fn pinned(value: &Map<String, Value>) -> String {
    let identity = value.get("record").and_then(|record| record.get("identity"));
    let text = |field| identity.and_then(|identity| identity.get(field)).and_then(Value::as_str);
    let text = |field| text(field).unwrap_or("none");
    format!("host NQN {} with host id {}", text("hostNqn"), text("hostId").to_ascii_lowercase())
}

fn spec(term: u64, value: &Map<String, Value>) -> Value {
    let mut spec = value.clone();
    spec.insert("term".into(), term.into());
    Value::Object(spec)
}

/// What was written is what was meant: a cluster that knows an older definition leaves fields out, and says nothing.
fn written(object: &DynamicObject, spec: &Value) -> Result<Written, ApiError> {
    if object.data.get("spec") != Some(spec) {
        return Err(ApiError::Refused(format!(
            "the cluster's definition of {} has left out a part of the record; bring it to this version",
            object.types.as_ref().map_or("this resource", |types| types.kind.as_str())
        )));
    }
    Ok(Written { version: version(object)?, deleting: object.metadata.deletion_timestamp.is_some() })
}

fn version(object: &DynamicObject) -> Result<u64, ApiError> {
    let text = object.metadata.resource_version.as_deref().unwrap_or_default();
    text.parse().map_err(|_| ApiError::Refused(format!("its resource version {text:?} is no number")))
}

/// The finalizers of others, where ours is missing.
fn other_finalizers(object: &DynamicObject) -> Option<Vec<String>> {
    let finalizers = object.finalizers();
    (!finalizers.iter().any(|name| name == FINALIZER)).then(|| finalizers.to_vec())
}

fn read(kind: Kind, object: &DynamicObject) -> Result<RecordObject, ApiError> {
    let mut value = object.data.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
    // The definition asks for one.
    let term = value.remove("term").and_then(|term| term.as_u64()).unwrap_or_default();
    let deleting = object.metadata.deletion_timestamp.is_some();
    let (version, unguarded) = (version(object)?, other_finalizers(object));
    let (name, status) = (object.name_any(), object.data.get("status").cloned());
    Ok(RecordObject { kind, name, version, term, value, deleting, unguarded, status })
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
