//! One request to the RDS and its answer.
//!
//! Comes in: method, path and properties. Goes out: JSON, or an error whose kind is certain (see
//! [`RdsError`]). Always holds: requests go one at a time over one kept-alive connection. Each has a
//! deadline. Nothing that the RDS may have carried out is ever sent twice. The password is read from its
//! file, and again when the RDS does not accept it. With a [`Transport`] in the place of the RDS, all of this
//! is the same except HTTP itself.

use std::error::Error;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use cleat_runtime::text::harmless;
use cleat_runtime::tls::renew::Renewable;
use reqwest::{Client, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::endpoint::{Endpoint, EndpointError};
use super::error::{RdsError, Way};
use super::gate::{Gate, Priority, Turn};
use super::http_client::{HttpClient, Nothing};
use super::metrics::{self, Op};
use super::transport::{OutgoingRequest, Transport};
use super::trust::Trust;

/// The largest answer that is read: a list of a hundred thousand disks.
const ANSWER_MAX_BYTES: usize = 128 << 20;
/// What is longer is parsed where it keeps nobody waiting.
const LONG_BYTES: usize = 1 << 20;
/// A request waits for its turn at most this many times its own deadline.
const QUEUE_DEADLINES: u32 = 3;

/// One request. It may have a secret in it, so it has no `Debug`.
pub(super) struct Request {
    pub(super) op: Op,
    pub(super) method: Method,
    /// The part after `/rest/`, such as `disk/*1F`.
    pub(super) path: String,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) body: Option<Map<String, Value>>,
    /// What it does, for errors: "cannot {what}".
    pub(super) what: String,
}

impl Request {
    /// It changes nothing, so it may be sent twice, and by whoever leads no more.
    fn reads(&self) -> bool {
        self.method == Method::GET || (self.method == Method::POST && self.path.ends_with("/print"))
    }
}

/// Sends one request at a time to one RDS, over HTTP or a substitute.
#[derive(Debug)]
pub(super) struct Http {
    line: Carrier,
    endpoint: Endpoint,
    password: Mutex<Zeroizing<String>>,
    gate: Gate,
    /// Asked before each write, where there is one.
    permission: OnceLock<Permission>,
}

/// Whether a write that may be delivered for so long may still leave this process.
pub(super) struct Permission(pub(super) Arc<dyn Fn(Duration) -> bool + Send + Sync>);

impl std::fmt::Debug for Permission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Permission")
    }
}

/// What carries requests.
#[derive(Debug)]
enum Carrier {
    Http(Arc<HttpClient>),
    Played(Arc<dyn Transport>),
}

/// RouterOS' error body, as `/rest` answers it.
#[derive(Deserialize)]
struct ErrorBody {
    error: u16,
    #[serde(default)]
    message: String,
    #[serde(default)]
    detail: String,
}

/// How one exchange ended.
enum Exchange {
    Answer(StatusCode, Vec<u8>),
    Failed(RdsError),
}

impl Http {
    /// Makes the client; connects to nothing yet.
    pub(super) fn new(endpoint: Endpoint) -> Result<Self, EndpointError> {
        let wrong = |rule| EndpointError::Url { url: endpoint.url.clone(), rule };
        let plaintext = matches!(endpoint.trust, Trust::Plaintext);
        match endpoint.url.scheme() {
            "https" if plaintext => return Err(wrong("plaintext is http://HOST:PORT")),
            "http" if !plaintext => {
                return Err(wrong("https://HOST[:PORT]: the password must not go in clear"));
            }
            "http" | "https" => {}
            _ => return Err(wrong("https://HOST[:PORT]")),
        }
        let bare = endpoint.url.path() == "/" && endpoint.url.query().is_none();
        if !bare || !endpoint.url.username().is_empty() || endpoint.url.password().is_some() {
            return Err(wrong(
                "only scheme, host and port; /rest is added, user and password have options of their own",
            ));
        }
        let http = HttpClient::new(endpoint.trust.clone(), endpoint.timeout)?;
        Self::on(Carrier::Http(Arc::new(http)), endpoint)
    }

    /// Over a carrier; then only the endpoint's user, password, trust and deadline count.
    pub(super) fn carried(endpoint: Endpoint, carrier: Arc<dyn Transport>) -> Result<Self, EndpointError> {
        Self::on(Carrier::Played(carrier), endpoint)
    }

    fn on(line: Carrier, endpoint: Endpoint) -> Result<Self, EndpointError> {
        let password = read_password(&endpoint)
            .map_err(|source| EndpointError::Password { path: endpoint.password_file.clone(), source })?;
        let permission = OnceLock::new();
        Ok(Self { line, endpoint, password: Mutex::new(password), gate: Gate::default(), permission })
    }

    /// From now on writes are sent only while that allows them. The first one stays.
    pub(super) fn ask_before_writes(&self, permission: Permission) {
        let _ = self.permission.set(permission);
    }

    /// How long the kernel may still deliver a request that was given up: what a peer has not acknowledged
    /// within TCP_USER_TIMEOUT is dropped, even on a connection that is closed already.
    pub(super) fn delivers_for(&self) -> Duration {
        match &self.line {
            Carrier::Http(_) => self.endpoint.timeout,
            Carrier::Played(_) => Duration::ZERO,
        }
    }

    /// Certificates that are renewed while the program runs.
    pub(super) fn certificates(&self) -> Arc<dyn Renewable> {
        match &self.line {
            Carrier::Http(http) => Arc::clone(http) as Arc<dyn Renewable>,
            Carrier::Played(_) => Arc::new(Nothing),
        }
    }

    /// Whether nobody on the way can read what is sent.
    pub(super) fn encrypted(&self) -> bool {
        !matches!(self.endpoint.trust, Trust::Plaintext)
    }

    /// Waits for the turn to send a request.
    pub(super) async fn turn(&self, priority: Priority, op: Op, what: &str) -> Result<Turn, RdsError> {
        let began = Instant::now();
        let limit = self.endpoint.timeout * QUEUE_DEADLINES;
        let turn = tokio::time::timeout(limit, self.gate.turn(priority)).await;
        metrics::queued(op, began.elapsed());
        turn.map_err(|_| RdsError::unreachable(what, Way::Queue, format!("waited {limit:?} behind others")))
    }

    /// Sends the request in its turn, and reads its answer: `Null` where that is empty.
    pub(super) async fn send(&self, _turn: &Turn, request: &Request) -> Result<Value, RdsError> {
        self.measured(request, self.endpoint.timeout).await
    }

    /// The same for a request that may take up to `patience`, where that is longer than any other may take.
    /// Its turn ends after the time of an ordinary one.
    pub(super) async fn send_patiently(
        &self,
        turn: Turn,
        request: &Request,
        patience: Duration,
    ) -> Result<Value, RdsError> {
        let mut answer = pin!(self.measured(request, self.endpoint.timeout.max(patience)));
        tokio::select! {
            answer = &mut answer => return answer,
            () = tokio::time::sleep(self.endpoint.timeout) => drop(turn),
        }
        answer.await
    }

    /// The same for an answer that may be long: others have their turn while it is parsed.
    pub(super) async fn send_for_long(&self, turn: Turn, request: &Request) -> Result<Value, RdsError> {
        self.measured_with(request, self.endpoint.timeout, Some(turn)).await
    }

    async fn measured(&self, request: &Request, limit: Duration) -> Result<Value, RdsError> {
        self.measured_with(request, limit, None).await
    }

    async fn measured_with(
        &self,
        request: &Request,
        limit: Duration,
        turn: Option<Turn>,
    ) -> Result<Value, RdsError> {
        let began = Instant::now();
        let exchange = self.send_authorised(request, limit).await;
        drop(turn);
        let result = match exchange {
            Ok(Exchange::Answer(status, body)) => self.read(request, status, body).await,
            Ok(Exchange::Failed(error)) | Err(error) => Err(error),
        };
        metrics::request(request.op, began.elapsed(), &result);
        if let Err(error) = &result {
            tracing::debug!(op = ?request.op, path = request.path, outcome = error.label(), "RDS request failed");
        }
        result
    }

    async fn send_authorised(&self, request: &Request, limit: Duration) -> Result<Exchange, RdsError> {
        let mut exchange = self.exchange(request, limit).await;
        let lost = matches!(&exchange, Exchange::Failed(RdsError::Unreachable { way: Way::Lost, .. }));
        if lost && request.reads() {
            // The RDS may just have closed an idle connection. Only a read may be repeated without a check.
            exchange = self.exchange(request, limit).await;
        }
        if matches!(exchange, Exchange::Answer(StatusCode::UNAUTHORIZED, _))
            && self.reread_password(request)?
        {
            // A request that was not accepted was not carried out, so even a write may be repeated.
            exchange = self.exchange(request, limit).await;
        }
        Ok(exchange)
    }

    /// Reads the password file again; true if it has another password now.
    fn reread_password(&self, request: &Request) -> Result<bool, RdsError> {
        let fresh = read_password(&self.endpoint).map_err(|error| RdsError::Unauthorised {
            what: request.what.clone(),
            user: self.endpoint.user.clone(),
            detail: format!(
                "and cannot read password file {}: {error}",
                self.endpoint.password_file.display()
            ),
        })?;
        let mut password = self.password.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *password != fresh;
        *password = fresh;
        Ok(changed)
    }

    async fn exchange(&self, request: &Request, limit: Duration) -> Exchange {
        let allowed = self.permission.get().is_none_or(|Permission(ask)| ask(self.delivers_for()));
        if !request.reads() && !allowed {
            let why = "this controller no longer leads, or not for long enough";
            return Exchange::Failed(RdsError::unreachable(&request.what, Way::Queue, why));
        }
        match &self.line {
            Carrier::Http(http) => self.exchange_http(&http.client(), request, limit).await,
            Carrier::Played(carrier) => {
                let outgoing = OutgoingRequest {
                    method: request.method.as_str(),
                    path: &request.path,
                    query: &request.query,
                    body: request.body.as_ref(),
                };
                let carried = tokio::time::timeout(limit, carrier.exchange(outgoing)).await;
                let lost = |way| Exchange::Failed(RdsError::unreachable(&request.what, way, "played"));
                match carried {
                    Ok(Ok((status, body))) => Exchange::Answer(status, body),
                    Ok(Err(way)) => lost(way),
                    Err(_) => lost(Way::Timeout),
                }
            }
        }
    }

    async fn exchange_http(&self, client: &Client, request: &Request, limit: Duration) -> Exchange {
        let password = self.password.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut url = self.endpoint.url.clone();
        url.set_path(&format!("/rest/{}", request.path));
        let mut http = client
            .request(request.method.clone(), url)
            .timeout(limit)
            .basic_auth(&self.endpoint.user, Some(password.as_str()));
        if !request.query.is_empty() {
            http = http.query(&request.query);
        }
        if let Some(body) = &request.body {
            http = http.json(body);
        }
        let failed = |error| Exchange::Failed(transport_error(&request.what, error));
        let mut response = match http.send().await {
            Ok(response) => response,
            Err(error) => return failed(error),
        };
        let status = response.status();
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() <= ANSWER_MAX_BYTES => {
                    body.extend_from_slice(&chunk)
                }
                Ok(Some(_)) => {
                    let problem = format!("it is longer than {ANSWER_MAX_BYTES} bytes");
                    return Exchange::Failed(RdsError::malformed(&request.what, problem));
                }
                Ok(None) => return Exchange::Answer(status, body),
                Err(error) => return failed(error),
            }
        }
    }

    async fn read(&self, request: &Request, status: StatusCode, body: Vec<u8>) -> Result<Value, RdsError> {
        if status.is_success() {
            if body.is_empty() {
                return Ok(Value::Null);
            }
            let parsed = if body.len() > LONG_BYTES {
                let parsing = tokio::task::spawn_blocking(move || serde_json::from_slice::<Value>(&body));
                parsing.await.map_err(|error| RdsError::unreachable(&request.what, Way::Lost, error))?
            } else {
                serde_json::from_slice(&body)
            };
            return parsed
                .map_err(|error| RdsError::malformed(&request.what, format!("it is not JSON: {error}")));
        }
        let error: Option<ErrorBody> = serde_json::from_slice(&body).ok();
        let error = error.filter(|error| error.error == status.as_u16()).map(|error| ErrorBody {
            message: harmless(&error.message, &[]),
            detail: harmless(&error.detail, &[]),
            ..error
        });
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            let detail = error
                .map_or_else(|| status.to_string(), |error| format!("{} {}", error.message, error.detail));
            let user = self.endpoint.user.clone();
            return Err(RdsError::Unauthorised {
                what: request.what.clone(),
                user,
                detail: detail.trim().to_owned(),
            });
        }
        // A proxy or another server on the way has statuses too; only RouterOS' own body counts as its
        // answer.
        let Some(error) = error else {
            let problem = format!("status {status} without RouterOS' error body");
            return Err(RdsError::malformed(&request.what, problem));
        };
        Err(refusal(&request.what, error))
    }
}

/// Which kind of refusal RouterOS' text means.
fn refusal(what: &str, error: ErrorBody) -> RdsError {
    let what = what.to_owned();
    let detail = error.detail.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| detail.contains(word));
    if error.error == 404 {
        return RdsError::NotFound { what: format!("item to {what} ({})", error.detail) };
    }
    // MikroTik documents "Session closed" for a command that ran for 60 s: it may go on all the same.
    if says(&["session closed", "timeout", "timed out", "interrupted"]) {
        return RdsError::unreachable(&what, Way::Timeout, error.detail);
    }
    // What RouterOS says when a pool is full is not documented; these are Linux' texts and its own.
    if error.error == 507
        || says(&["no space", "not enough space", "not enough disk", "disk full", "out of space"])
    {
        return RdsError::Full { what, detail: error.detail };
    }
    RdsError::Refused { what, status: error.error, message: error.message, detail: error.detail }
}

/// Which part of the way failed.
fn transport_error(what: &str, error: reqwest::Error) -> RdsError {
    let error = error.without_url();
    let way = if error.is_connect() {
        if in_tls(&error) { Way::Tls } else { Way::Connect }
    } else if error.is_timeout() {
        Way::Timeout
    } else {
        Way::Lost
    };
    RdsError::unreachable(what, way, error)
}

/// Whether rustls is among the causes; an I/O error may have it inside.
fn in_tls(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if cause.is::<rustls::Error>() || inner.is_some_and(|inner| in_tls(inner)) {
            return true;
        }
        next = cause.source();
    }
    false
}

/// The password, without the line end that editors add. A small file, mounted from a secret: read in place.
fn read_password(endpoint: &Endpoint) -> std::io::Result<Zeroizing<String>> {
    let text = Zeroizing::new(std::fs::read_to_string(&endpoint.password_file)?);
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}
