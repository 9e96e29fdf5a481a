//! The REST API: from an HTTP request to an operation and back.
//!
//! In: requests below `/rest`, with HTTP basic authentication. Out: replies in RouterOS' shapes. What always holds:
//! credentials come before anything else; one operation runs at a time, on a thread of its own, and goes on when
//! its client has left.
//!
//! GET prints, PUT adds, PATCH sets, DELETE removes; POST runs the console command that the path ends in. An id
//! whose `*` arrives percent-encoded is refused as `missing or invalid resource identifier` (reported of RouterOS by
//! several clients' authors), so a client that encodes it fails here too.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::query::Selection;
use crate::rds::Rds;
use crate::reply::{ApiError, Item, Reply};
use crate::value::{ItemId, scalar};

/// Larger bodies are refused; a disk's properties are a few hundred bytes.
const BODY_LIMIT_BYTES: usize = 1 << 20;

/// The one account.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its name.
    pub user: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Credentials {
    fn match_header(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let encoded = given.and_then(|value| value.strip_prefix("Basic "));
        let decoded = encoded.and_then(|encoded| STANDARD.decode(encoded.trim()).ok());
        decoded.is_some_and(|given| given == format!("{}:{}", self.user, self.password).as_bytes())
    }
}

#[derive(Clone)]
struct Shared {
    rds: Arc<Mutex<Rds>>,
    credentials: Arc<Credentials>,
}

/// The REST API of the device.
pub fn router(rds: Arc<Mutex<Rds>>, credentials: Credentials) -> Router {
    let shared = Shared { rds, credentials: Arc::new(credentials) };
    Router::new().fallback(handle).with_state(shared)
}

async fn handle(State(shared): State<Shared>, request: Request) -> Response {
    match answer(shared, request).await {
        Ok(reply) => reply.into_response(),
        Err(error) => error.into_response(),
    }
}

async fn answer(shared: Shared, request: Request) -> Result<Reply, ApiError> {
    if !shared.credentials.match_header(request.headers()) {
        return Err(ApiError::unauthorised());
    }
    let (parts, body) = request.into_parts();
    let properties = properties(body).await?;
    let operation = tokio::task::spawn_blocking(move || {
        let mut rds = shared.rds.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = dispatch(&mut rds, &parts.method, &parts.uri, properties);
        match &outcome {
            Ok(_) => tracing::info!(method = %parts.method, uri = %parts.uri, "done"),
            Err(error) => tracing::info!(method = %parts.method, uri = %parts.uri, %error, "refused"),
        }
        outcome
    });
    operation.await.map_err(|error| ApiError::internal(format!("std failure: {error}")))?
}

async fn properties(body: Body) -> Result<Item, ApiError> {
    let bytes: Bytes =
        to_bytes(body, BODY_LIMIT_BYTES).await.map_err(|error| ApiError::bad_request(error.to_string()))?;
    if bytes.is_empty() {
        return Ok(Item::new());
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(item)) => Ok(item),
        // The wording is assumed.
        Ok(_) | Err(_) => Err(ApiError::bad_request("malformed JSON")),
    }
}

fn dispatch(rds: &mut Rds, method: &Method, uri: &Uri, properties: Item) -> Result<Reply, ApiError> {
    let Some(path) = uri.path().strip_prefix("/rest/") else {
        return Err(ApiError::not_found());
    };
    let path: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    let selection = || {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| ApiError::bad_request(error.to_string()))?;
        Ok(Selection::from_pairs(pairs))
    };
    match (method.as_str(), path.as_slice()) {
        ("HEAD", _) => Err(ApiError::not_implemented()),
        // Singletons are bare objects (observed on 7.23; an array on 7.1 betas).
        ("GET", ["system", "resource"]) => Ok(Reply::One(selection()?.project(rds.resource()?))),
        ("GET", ["system", "identity"]) => {
            let name = Value::from("rds-sim");
            Ok(Reply::One(Item::from_iter([("name".to_owned(), name)])))
        }
        ("GET", ["disk"]) => Ok(Reply::List(selection()?.apply(rds.disks()?)?)),
        ("GET", ["disk", id]) => Ok(Reply::One(selection()?.project(rds.disk(printed(id)?)?))),
        ("PUT", ["disk"]) => {
            let id = rds.add(&properties)?;
            Ok(Reply::Created(rds.disk(id)?))
        }
        ("PATCH", ["disk", id]) => {
            let id = addressed(id)?;
            rds.set(&[id], &properties)?;
            Ok(Reply::One(rds.disk(id)?))
        }
        ("DELETE", ["disk", id]) => rds.remove(&[addressed(id)?]).map(|()| Reply::Empty),
        ("GET", ["file"]) => Ok(Reply::List(selection()?.apply(rds.files()?)?)),
        ("GET", ["file", id]) => {
            let id = printed(id)?.to_string();
            let found = rds.files()?.into_iter().find(|file| file[".id"] == id.as_str());
            Ok(Reply::One(selection()?.project(found.ok_or_else(ApiError::not_found)?)))
        }
        ("DELETE", ["file", id]) => rds.remove_files(&[addressed(id)?]).map(|()| Reply::Empty),
        ("PATCH" | "DELETE", ["disk" | "file"]) => Err(identifier()),
        ("POST", ["disk", command]) => disk_command(rds, command, properties),
        ("POST", ["file", command]) => file_command(rds, command, properties),
        (_, ["system", "resource" | "identity"] | ["disk" | "file", ..]) => {
            Err(ApiError::not_acceptable(format!("no such command or directory ({})", verb(method))))
        }
        (_, path) => Err(ApiError::bad_request(format!("no such command or directory ({})", path[0]))),
    }
}

fn disk_command(rds: &mut Rds, command: &str, mut properties: Item) -> Result<Reply, ApiError> {
    match command {
        "print" => Selection::from_body(&properties)?.apply(rds.disks()?).map(Reply::List),
        "add" => rds.add(&properties).map(|id| Reply::Returned(id.to_string())),
        "set" => {
            let ids = numbers(rds, &mut properties)?;
            rds.set(&ids, &properties).map(|()| Reply::List(Vec::new()))
        }
        "remove" => {
            let ids = numbers(rds, &mut properties)?;
            only_numbers(&properties)?;
            rds.remove(&ids).map(|()| Reply::List(Vec::new()))
        }
        _ => Err(ApiError::bad_request("no such command")),
    }
}

fn file_command(rds: &mut Rds, command: &str, mut properties: Item) -> Result<Reply, ApiError> {
    match command {
        "print" => Selection::from_body(&properties)?.apply(rds.files()?).map(Reply::List),
        "remove" => {
            let given = given_numbers(&mut properties)?;
            only_numbers(&properties)?;
            let files = rds.files()?;
            let id_of = |text: &str| {
                let found = files.iter().find(|file| file[".id"] == text || file["name"] == text)?;
                found[".id"].as_str()?.parse::<ItemId>().ok()
            };
            let ids: Option<Vec<ItemId>> = given.split(',').map(|text| id_of(text.trim())).collect();
            rds.remove_files(&ids.ok_or_else(ApiError::not_found)?).map(|()| Reply::List(Vec::new()))
        }
        _ => Err(ApiError::bad_request("no such command")),
    }
}

/// The items that a command is for: `.id` or `numbers`, one or several, ids or slots (observed of other menus).
fn numbers(rds: &Rds, properties: &mut Item) -> Result<Vec<ItemId>, ApiError> {
    let given = given_numbers(properties)?;
    rds.resolve(&given).ok_or_else(ApiError::not_found)
}

fn given_numbers(properties: &mut Item) -> Result<String, ApiError> {
    let given = properties.remove(".id").or(properties.remove("numbers"));
    given.as_ref().and_then(scalar).ok_or_else(|| ApiError::bad_request("missing =.id="))
}

fn only_numbers(properties: &Item) -> Result<(), ApiError> {
    match properties.keys().next() {
        None => Ok(()),
        Some(name) => Err(ApiError::bad_request(format!("unknown parameter {name}"))),
    }
}

/// The id of an item to print. Anything else is taken for a command (observed of menus without a `name`).
fn printed(text: &str) -> Result<ItemId, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request("no such command prefix"))
}

/// The id of an item to change.
fn addressed(text: &str) -> Result<ItemId, ApiError> {
    text.parse().map_err(|_| identifier())
}

fn identifier() -> ApiError {
    ApiError::bad_request("missing or invalid resource identifier")
}

fn verb(method: &Method) -> &'static str {
    match method.as_str() {
        "PUT" => "add",
        "PATCH" => "set",
        "DELETE" => "remove",
        _ => "print",
    }
}
