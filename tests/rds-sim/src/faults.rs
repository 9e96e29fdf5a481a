//! Faults on demand, and the count of what was asked.
//!
//! In: rules from a test (which requests, how many of them, what to do to them) and every REST request. Out: the
//! request goes on, is answered with something else, is held, or its connection is dropped. What always holds: a
//! request is counted before a fault touches it; the first rule that matches is the one that is used; clearing the
//! rules lets every held request go (its connection is dropped).

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use std::{convert::Infallible, sync::Arc};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Method, Request, Response, StatusCode, header};
use axum::{BoxError, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tower::Service;

/// So many addresses are told apart, and so many requests of each; what is beyond is counted together.
const TOLD_APART: usize = 64;
/// Under this name.
const OTHERS: &str = "others";

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Wait, then go on.
    Slow {
        /// How long, in milliseconds.
        delay_ms: u64,
    },
    /// Answer this instead; nothing is done.
    Fail {
        /// The HTTP status.
        status: u16,
        /// The body, verbatim JSON.
        #[serde(default)]
        body: Value,
    },
    /// Never answer; nothing is done.
    Hang,
    /// Drop the connection; nothing is done.
    Drop,
    /// Do it, then drop the connection: the reply is lost.
    LoseReply,
    /// Do it, and leave the item of this slot out of the answer; one that was asked for alone is `no such item`.
    Lack {
        /// The slot.
        slot: String,
    },
}

/// A rule: which requests, how many, and what happens to them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// Only this method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Only paths that begin so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Only so many more; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Only for so many milliseconds from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
    /// What happens to them.
    #[serde(flatten)]
    pub action: Action,
}

impl Fault {
    /// The next `count` requests, whichever they are.
    pub fn next(count: u32, action: Action) -> Self {
        Self { method: None, path: None, count: Some(count), for_ms: None, action }
    }

    /// All requests until the faults are cleared.
    pub fn all(action: Action) -> Self {
        Self { method: None, path: None, count: None, for_ms: None, action }
    }

    /// Only requests of this method to paths that begin so.
    pub fn only(self, method: &str, path: &str) -> Self {
        Self { method: Some(method.to_owned()), path: Some(path.to_owned()), ..self }
    }

    /// Only for so long.
    pub fn lasting(self, time: Duration) -> Self {
        Self { for_ms: u64::try_from(time.as_millis()).ok(), ..self }
    }

    fn matches(&self, method: &Method, path: &str) -> bool {
        self.method.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(method.as_str()))
            && self.path.as_ref().is_none_or(|prefix| path.starts_with(prefix.as_str()))
    }
}

/// What was asked so far.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// How often, by method and path with ids as `*` and no query (`GET /rest/disk/*`).
    pub by_path: BTreeMap<String, u64>,
    /// The same for each address that asked.
    #[serde(default)]
    pub by_source: BTreeMap<String, BTreeMap<String, u64>>,
    /// The most that were under way at once.
    pub max_in_flight: u64,
}

/// The rules in force and the counts.
#[derive(Debug)]
pub struct Faults {
    /// Each with when it began.
    rules: Mutex<VecDeque<(Fault, Instant)>>,
    requests: Mutex<(Requests, u64)>,
    generation: watch::Sender<u64>,
}

impl Default for Faults {
    fn default() -> Self {
        Self { rules: Mutex::default(), requests: Mutex::default(), generation: watch::Sender::new(0) }
    }
}

impl Faults {
    /// Adds a rule after those in force.
    pub fn add(&self, fault: Fault) {
        lock(&self.rules).push_back((fault, Instant::now()));
    }

    /// Takes all rules away and lets held requests go.
    pub fn clear(&self) {
        lock(&self.rules).clear();
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// The rules in force.
    pub fn list(&self) -> Vec<Fault> {
        lock(&self.rules).iter().filter(|rule| in_force(rule)).map(|(fault, _)| fault.clone()).collect()
    }

    /// What was asked so far.
    pub fn requests(&self) -> Requests {
        lock(&self.requests).0.clone()
    }

    /// Starts counting again.
    pub fn reset_requests(&self) {
        lock(&self.requests).0 = Requests::default();
    }

    fn take(&self, method: &Method, path: &str) -> Option<Action> {
        let mut rules = lock(&self.rules);
        rules.retain(in_force);
        let place = rules.iter().position(|(fault, _)| fault.matches(method, path))?;
        let action = rules[place].0.action.clone();
        if let Some(count) = &mut rules[place].0.count {
            *count = count.saturating_sub(1);
            if *count == 0 {
                rules.remove(place);
            }
        }
        Some(action)
    }

    fn count(self: &Arc<Self>, from: IpAddr, method: &Method, path: &str) -> InFlight {
        let plain: Vec<&str> =
            path.split('/').map(|part| if part.starts_with('*') { "*" } else { part }).collect();
        let asked = format!("{method} {}", plain.join("/"));
        let mut requests = lock(&self.requests);
        let Requests { by_path, by_source, .. } = &mut requests.0;
        *by_path.entry(asked.clone()).or_default() += 1;
        let of_source = told_apart(by_source, from.to_string());
        *told_apart(of_source, asked) += 1;
        requests.1 += 1;
        requests.0.max_in_flight = requests.0.max_in_flight.max(requests.1);
        InFlight(Arc::clone(self))
    }
}

fn told_apart<V: Default>(kept: &mut BTreeMap<String, V>, name: String) -> &mut V {
    let is_told = kept.len() < TOLD_APART || kept.contains_key(&name);
    kept.entry(if is_told { name } else { OTHERS.to_owned() }).or_default()
}

fn in_force((fault, began): &(Fault, Instant)) -> bool {
    fault.for_ms.is_none_or(|time| began.elapsed() < Duration::from_millis(time))
}

/// One request under way.
struct InFlight(Arc<Faults>);

impl Drop for InFlight {
    fn drop(&mut self) {
        lock(&self.0.requests).1 -= 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The connection is dropped on purpose.
#[derive(Debug, thiserror::Error)]
#[error("connection dropped by a fault")]
pub struct Dropped;

/// The REST API behind its faults. It is a service and not a layer of the router because a router cannot fail, and
/// failing is how a connection is dropped without an answer.
#[derive(Debug, Clone)]
pub struct FaultGate {
    router: Router,
    faults: Arc<Faults>,
    from: IpAddr,
}

impl FaultGate {
    /// The router behind the faults, for a connection from that address.
    pub fn new(router: Router, faults: Arc<Faults>, from: IpAddr) -> Self {
        Self { router, faults, from }
    }
}

impl<B> Service<Request<B>> for FaultGate
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Dropped;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Dropped>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Dropped>> {
        Poll::Ready(Ok(())) // a Router is always ready
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let in_flight = self.faults.count(self.from, request.method(), &path);
        let action = self.faults.take(request.method(), &path);
        let mut cleared = self.faults.generation.subscribe();
        let mut router = self.router.clone();
        Box::pin(async move {
            let _in_flight = in_flight;
            if let Some(action) = &action {
                tracing::info!(%path, ?action, "fault");
            }
            match action {
                Some(Action::Fail { status, body }) => return Ok(failed(status, &body)),
                Some(Action::Drop) => return Err(Dropped),
                Some(Action::Hang) => {
                    // Fails only when the sender is gone, and then there is nobody left to answer either.
                    let _ = cleared.changed().await;
                    return Err(Dropped);
                }
                Some(Action::Slow { delay_ms }) => tokio::time::sleep(Duration::from_millis(delay_ms)).await,
                Some(Action::LoseReply | Action::Lack { .. }) | None => {}
            }
            let answered: Result<_, Infallible> = router.call(request.map(Body::new)).await;
            match (action, answered) {
                (Some(Action::LoseReply), _) => Err(Dropped),
                (Some(Action::Lack { slot }), Ok(response)) => Ok(lacking(response, &slot).await),
                (_, Ok(response)) => Ok(response),
                (_, Err(never)) => match never {},
            }
        })
    }
}

/// The answer without the item of a slot.
async fn lacking(response: Response<Body>, slot: &str) -> Response<Body> {
    let status = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap_or_default();
    let its = |item: &Value| item.get("slot").and_then(Value::as_str) == Some(slot);
    match serde_json::from_slice(&bytes) {
        Ok(Value::Array(items)) => {
            failed(status, &items.into_iter().filter(|item| !its(item)).collect::<Vec<_>>().into())
        }
        Ok(item) if its(&item) => {
            failed(404, &serde_json::json!({"error": 404, "message": "Not Found", "detail": "no such item"}))
        }
        Ok(other) => failed(status, &other),
        Err(_) => failed(status, &Value::Null),
    }
}

fn failed(status: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_requests_beyond_a_number_are_counted_together() {
        let faults = Arc::new(Faults::default());
        for number in 0..=255 {
            drop(faults.count([10, 0, 0, number].into(), &Method::GET, "/rest/disk"));
            drop(faults.count([10, 0, 0, 0].into(), &Method::PATCH, &format!("/rest/disk/x{number}")));
        }
        let by_source = faults.requests().by_source;
        assert_eq!(by_source.len(), TOLD_APART + 1);
        assert_eq!(by_source["10.0.0.1"], BTreeMap::from([("GET /rest/disk".to_owned(), 1)]));
        assert_eq!(by_source[OTHERS]["GET /rest/disk"], 256 - TOLD_APART as u64);
        assert_eq!(by_source["10.0.0.0"].len(), TOLD_APART + 1);
        assert_eq!(by_source["10.0.0.0"].values().sum::<u64>(), 257);
    }
}
