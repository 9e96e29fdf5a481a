//! What the cluster has of one kind of object, kept up to date: listed, watched, and listed again.
//!
//! In come objects; out goes a map of what is needed of them, and a sign when it has changed. What holds:
//! - nothing is said before the first whole list;
//! - a kind that may not be there (`Watched::start_of`) and is not is a state, not an error: there is nothing of it, and
//!   it is looked for again. A kind that each cluster has and that is not found is an answer to rely on for nothing, and a
//!   failure;
//! - a list that is silent is given up, and so is a watch whose connection the kernel finds dead; a history that was
//!   compacted is listed again, and every so often everything is, so that a change that no watch has brought is seen all
//!   the same;
//! - it is behind by an unknown time. Whoever does something about what it says asks the API server itself first.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::select_all;
use futures_util::{StreamExt as _, TryStreamExt as _};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::api::ApiServer;

/// The API server ends a watch after this time, and it is begun again where it ended.
const WATCH_SECONDS: u32 = 25;
/// A list of which nothing is heard for so long is given up. That a watch is silent is nothing unusual: the kernel asks
/// whether its connection lives.
const SILENT: Duration = Duration::from_secs(40);
/// Everything is listed again after this time.
const LIST_EVERY: Duration = Duration::from_secs(300);
/// Between two tries, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A kind that was not there is looked for again after this time.
const ABSENT_EVERY: Duration = Duration::from_secs(30);
/// Objects that are asked for at once.
const PAGE: u32 = 500;

/// What is kept of all objects of one kind, by a name of its own choice.
type All<T> = BTreeMap<String, Arc<T>>;

/// Whether the cluster has a kind of object at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The API server has not answered yet.
    Unknown,
    /// It knows no such kind, or does not any more.
    Absent,
    /// It does, and everything of it was listed.
    There,
}

/// The objects of one kind, watched until this is dropped.
pub struct Watched<T> {
    known: Arc<Known<T>>,
    changes: watch::Receiver<u64>,
    _following: AbortOnDropHandle<()>,
}

struct Known<T> {
    content: Mutex<Content<T>>,
    changes: watch::Sender<u64>,
}

struct Content<T> {
    /// `Unknown` until it was listed whole.
    presence: Presence,
    all: All<T>,
}

/// Signs of changes of several kinds together.
pub struct WatchedChanges(Vec<watch::Receiver<u64>>);

impl WatchedChanges {
    /// Of these, from now on.
    pub(crate) fn of(all: impl IntoIterator<Item = watch::Receiver<u64>>) -> Self {
        let mut changes = Self(all.into_iter().collect());
        changes.catch_up();
        changes
    }

    /// Waits for the next one. `false`: there will be none any more.
    pub async fn next(&mut self) -> bool {
        let (changed, ..) = select_all(self.0.iter_mut().map(|one| Box::pin(one.changed()))).await;
        changed.is_ok()
    }

    /// What has changed up to now is no next one.
    pub fn catch_up(&mut self) {
        self.0.iter_mut().for_each(|one| drop(one.borrow_and_update()));
    }
}

/// Why nothing is heard any more.
enum Lost {
    /// The API server answers that it has no such kind.
    NoSuchKind(String),
    Other(String),
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Begins to watch a kind that each cluster has. `keep` says under which name what is kept of an object; `None`: it is
    /// nothing to us.
    pub(crate) fn start<K>(
        server: &ApiServer,
        api: Api<K>,
        what: &'static str,
        keep: impl Fn(K) -> Option<(String, T)> + Send + Sync + 'static,
    ) -> Self
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        Self::begin(server.timeout(), api, what, None, false, keep)
    }

    /// The same, of a kind that may not be there, and only of those objects that have these labels.
    pub(crate) fn start_of<K>(
        server: &ApiServer,
        api: Api<K>,
        what: &'static str,
        selector: Option<&'static str>,
        keep: impl Fn(K) -> Option<(String, T)> + Send + Sync + 'static,
    ) -> Self
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        Self::begin(server.timeout(), api, what, selector, true, keep)
    }

    fn begin<K>(
        patience: Duration,
        api: Api<K>,
        what: &'static str,
        selector: Option<&'static str>,
        may_be_absent: bool,
        keep: impl Fn(K) -> Option<(String, T)> + Send + Sync + 'static,
    ) -> Self
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let (sender, changes) = watch::channel(0);
        let content = Content { presence: Presence::Unknown, all: All::new() };
        let known = Arc::new(Known { content: Mutex::new(content), changes: sender });
        let following = Arc::clone(&known);
        let task = tokio::spawn(async move {
            let mut pause = PAUSES.0;
            loop {
                let began = Instant::now();
                let error = match following.follow(&api, selector, &keep).await {
                    Ok(()) => continue,
                    Err(Lost::NoSuchKind(_)) if may_be_absent => {
                        following.is_absent(what);
                        pause = PAUSES.0;
                        tokio::time::sleep(ABSENT_EVERY).await;
                        continue;
                    }
                    Err(Lost::NoSuchKind(error) | Lost::Other(error)) => error,
                };
                tracing::warn!("cannot watch {what}: {error}; trying again");
                // One that went well for a while begins with a short pause again.
                if began.elapsed() > SILENT {
                    pause = PAUSES.0;
                }
                tokio::time::sleep(pause.max(patience / 10)).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        });
        Self { known, changes, _following: AbortOnDropHandle::new(task) }
    }

    /// What is known, once everything was listed. Of a kind that is not there, that is nothing.
    pub fn look<R>(&self, look: impl FnOnce(&BTreeMap<String, Arc<T>>) -> R) -> Option<R> {
        let content = self.known.lock();
        (content.presence != Presence::Unknown).then(|| look(&content.all))
    }

    /// Whether everything was listed, or there is nothing to list.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.presence() != Presence::Unknown
    }

    /// Whether the cluster has that kind.
    #[must_use]
    pub fn presence(&self) -> Presence {
        self.known.lock().presence
    }

    /// A sign that is given after each change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

impl<T> Known<T> {
    fn lock(&self) -> MutexGuard<'_, Content<T>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster does not have that kind. Said once, not at each look.
    fn is_absent(&self, what: &str) {
        let mut content = self.lock();
        if content.presence == Presence::Absent {
            return;
        }
        *content = Content { presence: Presence::Absent, all: All::new() };
        drop(content);
        tracing::info!("the cluster has no {what}; looking again from time to time");
        self.changed();
    }

    /// Lists and watches until everything is to be listed again.
    async fn follow<K>(
        &self,
        api: &Api<K>,
        selector: Option<&str>,
        keep: &impl Fn(K) -> Option<(String, T)>,
    ) -> Result<(), Lost>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let mut config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
        config.label_selector = selector.map(str::to_owned);
        let mut events = watcher::watcher(api.clone(), config).boxed();
        let mut listed = All::new();
        let (until, mut listing) = (Instant::now() + LIST_EVERY, true);
        loop {
            let wait = if listing { Instant::now() + SILENT } else { until };
            let Ok(event) = tokio::time::timeout_at(wait, events.try_next()).await else {
                return if listing { Err(Lost::Other("no answer in time".into())) } else { Ok(()) };
            };
            match event.map_err(lost)? {
                None => return Ok(()),
                Some(Event::Init) => (listed, listing) = (All::new(), true),
                Some(Event::InitApply(object)) => listed.extend(keep(object).map(kept)),
                Some(Event::InitDone) => {
                    listing = false;
                    *self.lock() = Content { presence: Presence::There, all: std::mem::take(&mut listed) };
                    self.changed();
                }
                Some(Event::Apply(object)) => {
                    if let Some((name, of)) = keep(object).map(kept) {
                        self.lock().all.insert(name, of);
                    }
                    self.changed();
                }
                Some(Event::Delete(object)) => {
                    if let Some((name, _)) = keep(object) {
                        self.lock().all.remove(&name);
                    }
                    self.changed();
                }
            }
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// Both a list and a watch of a kind that the API server does not know are answered with 404; that one object was not found
/// is no answer to either.
fn lost(error: watcher::Error) -> Lost {
    let status = match &error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    };
    match status {
        Some(404) => Lost::NoSuchKind(error.to_string()),
        _ => Lost::Other(error.to_string()),
    }
}

fn kept<T>((name, of): (String, T)) -> (String, Arc<T>) {
    (name, Arc::new(of))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Request, Response};
    use kube::Client;
    use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// An API server that answers each list alike, until it is to answer otherwise. A watch that it takes says what it is to
    /// say and ends; once there is nothing more to say, watches are silent.
    struct Server {
        answer: Mutex<(u16, Value)>,
        lists: AtomicUsize,
        watches: AtomicUsize,
        to_say: Mutex<VecDeque<Vec<Value>>>,
    }

    impl Server {
        fn begin(code: u16, answer: Value) -> Arc<Self> {
            let (lists, watches) = (AtomicUsize::new(0), AtomicUsize::new(0));
            Arc::new(Self { answer: Mutex::new((code, answer)), lists, watches, to_say: Mutex::default() })
        }

        /// The next watch says this, and ends.
        fn says(&self, events: Vec<Value>) {
            self.to_say.lock().unwrap_or_else(PoisonError::into_inner).push_back(events);
        }

        fn answers(&self, code: u16, answer: Value) {
            *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = (code, answer);
        }

        async fn call(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, Infallible> {
            let (code, answer) = self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            match (is_watch, code) {
                (true, 200) => {
                    self.watches.fetch_add(1, Ordering::Relaxed);
                    let to_say = self.to_say.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
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

        fn watched(self: &Arc<Self>, may_be_absent: bool) -> Watched<()> {
            let server = Arc::clone(self);
            let service = tower::service_fn(move |request| Arc::clone(&server).call(request));
            let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("cleat.test", "v1", "Thing"));
            let api: Api<DynamicObject> = Api::all_with(Client::new(service, "default"), &kind);
            let keep = |object: DynamicObject| Some((object.metadata.name?, ()));
            Watched::begin(Duration::from_secs(1), api, "Things", None, may_be_absent, keep)
        }
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

    fn names(watched: &Watched<()>) -> Option<Vec<String>> {
        watched.look(|all| all.keys().cloned().collect())
    }

    async fn until(watched: &Watched<()>, presence: Presence) {
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

    fn thing(kind: &str, name: &str, version: &str) -> Value {
        json!({"type": kind, "object": {
            "apiVersion": "cleat.test/v1", "kind": "Thing", "metadata": {"name": name, "resourceVersion": version},
        }})
    }

    /// As soon as it has these.
    async fn until_named(watched: &Watched<()>, expected: &[&str]) {
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
}
