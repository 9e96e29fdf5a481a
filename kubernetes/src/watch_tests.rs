use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, Response, header};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Client;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// An API server that answers each list alike, until it is to answer otherwise. A watch that it takes says what it is to say
/// and ends; once there is nothing more to say, watches are silent.
struct Server {
    answer: Mutex<(u16, Value)>,
    to_say: Mutex<VecDeque<Vec<Value>>>,
    lists: AtomicUsize,
    watches: AtomicUsize,
    /// What was asked for, as what.
    accepts: Mutex<BTreeSet<String>>,
}

/// What is kept of an object: its name, and a label.
type Kept = Option<String>;

impl Server {
    fn begin(code: u16, answer: Value) -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new((code, answer)),
            to_say: Mutex::default(),
            lists: AtomicUsize::new(0),
            watches: AtomicUsize::new(0),
            accepts: Mutex::default(),
        })
    }

    /// The next watch says this, and ends.
    fn says(&self, events: Vec<Value>) {
        locked(&self.to_say).push_back(events);
    }

    fn answers(&self, code: u16, answer: Value) {
        *locked(&self.answer) = (code, answer);
    }

    async fn call(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let (code, answer) = locked(&self.answer).clone();
        let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
        locked(&self.accepts).extend(accept.map(str::to_owned));
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        match (is_watch, code) {
            (true, 200) => {
                self.watches.fetch_add(1, Ordering::Relaxed);
                let to_say = locked(&self.to_say).pop_front();
                let Some(events) = to_say else { return std::future::pending().await };
                let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
                return Ok(Response::new(Body::from(lines.into_bytes())));
            }
            (true, _) => {}
            (false, _) => drop(self.lists.fetch_add(1, Ordering::Relaxed)),
        }
        let text = answer.as_str().map_or_else(|| answer.to_string(), str::to_owned);
        let mut response = Response::new(Body::from(text.into_bytes()));
        *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
        Ok(response)
    }

    fn client(self: &Arc<Self>) -> Client {
        let server = Arc::clone(self);
        Client::new(tower::service_fn(move |request| Arc::clone(&server).call(request)), "default")
    }

    fn watched(self: &Arc<Self>, may_be_absent: bool) -> Watched<Kept> {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("cleat.test", "v1", "Thing"));
        let api: Api<DynamicObject> = Api::all_with(self.client(), &kind);
        let keep = |object: DynamicObject| {
            let label = object.metadata.labels.and_then(|labels| labels.get("kept").cloned());
            Some((object.metadata.name?, label))
        };
        Watched::begin(Duration::from_secs(1), api, "Things", None, may_be_absent, keep)
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_found() -> Value {
    // What a path that is nobody's is answered with: no Status, but plain text.
    json!("404 page not found\n")
}

fn status(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "code": code})
}

fn list(names: &[&str]) -> Value {
    let items: Vec<_> = names.iter().map(|name| json!({"metadata": {"name": name}})).collect();
    json!({"kind": "ThingList", "apiVersion": "cleat.test/v1", "metadata": {"resourceVersion": "5"}, "items": items})
}

fn names(watched: &Watched<Kept>) -> Option<Vec<String>> {
    watched.look(|all| all.keys().cloned().collect())
}

async fn until(watched: &Watched<Kept>, presence: Presence) {
    let mut changes = watched.changes();
    let seen = async {
        while watched.presence() != presence {
            changes.changed().await.expect("it goes on");
        }
    };
    tokio::time::timeout(Duration::from_secs(900), seen).await.expect("in time");
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_may_be_absent_is_seen_as_it_comes_and_goes() {
    for absent in [not_found(), status(404)] {
        let server = Server::begin(404, absent.clone());
        let watched = server.watched(true);
        assert_eq!((watched.presence(), names(&watched)), (Presence::Unknown, None));
        until(&watched, Presence::Absent).await;
        assert_eq!(names(&watched), Some(Vec::new()), "nothing of it is there");
        assert!(watched.is_whole());

        tokio::time::sleep(ABSENT_EVERY * 4).await;
        assert!((4..=6).contains(&server.lists.load(Ordering::Relaxed)), "now and then");
        assert_eq!(*watched.changes().borrow(), 1, "nothing has changed");

        server.answers(200, list(&["a", "b"]));
        until(&watched, Presence::There).await;
        assert_eq!(names(&watched), Some(vec!["a".to_owned(), "b".to_owned()]));

        server.answers(404, absent);
        until(&watched, Presence::Absent).await;
        assert_eq!(names(&watched), Some(Vec::new()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_each_cluster_has_is_never_absent() {
    let server = Server::begin(404, not_found());
    let watched = server.watched(false);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!((watched.presence(), names(&watched)), (Presence::Unknown, None));
    assert!(server.lists.load(Ordering::Relaxed) > 10, "it is asked for with the usual pauses");

    server.answers(200, list(&["a"]));
    until(&watched, Presence::There).await;
    server.answers(404, not_found());
    tokio::time::sleep(LIST_EVERY * 2).await;
    assert_eq!(names(&watched), Some(vec!["a".to_owned()]), "what was listed stays");
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_another_kind_is_no_absence() {
    for code in [403, 500, 503] {
        let server = Server::begin(code, status(code));
        let watched = server.watched(true);
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!((watched.presence(), names(&watched)), (Presence::Unknown, None), "{code}");

        server.answers(200, list(&["a"]));
        until(&watched, Presence::There).await;
        server.answers(code, status(code));
        tokio::time::sleep(LIST_EVERY * 2).await;
        assert_eq!(names(&watched), Some(vec!["a".to_owned()]), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_change_of_what_is_kept_gives_a_sign() {
    let server = Server::begin(200, list(&["a"]));
    let event = |what: &str, metadata: Value| {
        let mut metadata = metadata;
        metadata["resourceVersion"] = json!("6");
        json!({"type": what, "object": {"apiVersion": "cleat.test/v1", "kind": "Thing", "metadata": metadata}})
    };
    server.says(vec![
        event("MODIFIED", json!({"name": "a", "annotations": {"seen": "now"}})),
        event("MODIFIED", json!({"annotations": {"of": "nobody"}})),
        event("DELETED", json!({"name": "c"})),
    ]);
    let watched = server.watched(true);
    until(&watched, Presence::There).await;
    let sent = async || {
        while !locked(&server.to_say).is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        *watched.changes().borrow()
    };
    assert_eq!(sent().await, 1, "nothing of that is kept");
    tokio::time::sleep(LIST_EVERY * 2).await;
    assert_eq!(sent().await, 1, "the same was listed again");

    server.says(vec![
        event("MODIFIED", json!({"name": "a", "labels": {"kept": "x"}})),
        event("ADDED", json!({"name": "b"})),
        event("DELETED", json!({"name": "b"})),
    ]);
    assert_eq!(sent().await, 4);
    tokio::time::sleep(LIST_EVERY * 2).await;
    assert_eq!(sent().await, 5, "a change that no watch has brought");
    assert_eq!(names(&watched), Some(vec!["a".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn metadata_alone_is_asked_for_where_no_more_is_kept() {
    let server = Server::begin(200, list(&["a"]));
    let claims: Api<PartialObjectMeta<PersistentVolumeClaim>> = Api::all(server.client());
    let keep = |object: PartialObjectMeta<PersistentVolumeClaim>| Some((object.metadata.name?, None));
    let watched: Watched<Kept> = Watched::begin(Duration::from_secs(1), claims, "claims", None, false, keep);
    until(&watched, Presence::There).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let accepts: Vec<String> = locked(&server.accepts).iter().cloned().collect();
    let metadata = |kind| format!("application/json;as={kind};g=meta.k8s.io;v=v1");
    assert_eq!(accepts, ["PartialObjectMetadata", "PartialObjectMetadataList"].map(metadata));
}

fn thing(kind: &str, name: &str, version: &str) -> Value {
    json!({"type": kind, "object": {
        "apiVersion": "cleat.test/v1", "kind": "Thing", "metadata": {"name": name, "resourceVersion": version},
    }})
}

/// As soon as it has these.
async fn until_named(watched: &Watched<Kept>, expected: &[&str]) {
    let mut changes = watched.changes();
    let seen = async {
        while names(watched).is_none_or(|names| names != expected) {
            changes.changed().await.expect("it goes on");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen).await.expect("long before the next list");
}

#[tokio::test(start_paused = true)]
async fn a_history_that_was_compacted_is_listed_again() {
    let server = Server::begin(200, list(&["a"]));
    let compacted = json!({"type": "ERROR", "object": status(410)});
    server.says(vec![thing("ADDED", "b", "6"), compacted]);
    let watched = server.watched(false);
    until_named(&watched, &["a", "b"]).await;
    server.answers(200, list(&["a", "c"]));
    until_named(&watched, &["a", "c"]).await;
    assert_eq!(server.lists.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_goes_on_where_it_was() {
    let server = Server::begin(200, list(&["a"]));
    server.says(Vec::new());
    server.says(vec![thing("ADDED", "b", "6"), thing("DELETED", "a", "7")]);
    let watched = server.watched(false);
    until_named(&watched, &["b"]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (lists, watches) = (server.lists.load(Ordering::Relaxed), server.watches.load(Ordering::Relaxed));
    assert_eq!((lists, watches), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn what_went_without_a_word_is_gone_with_the_next_list() {
    let server = Server::begin(200, list(&["a", "b"]));
    let watched = server.watched(false);
    until_named(&watched, &["a", "b"]).await;
    server.answers(200, list(&["b"]));
    tokio::time::sleep(LIST_EVERY - Duration::from_secs(1)).await;
    assert_eq!(names(&watched), Some(vec!["a".to_owned(), "b".to_owned()]), "no watch has said so");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(names(&watched), Some(vec!["b".to_owned()]));
}
