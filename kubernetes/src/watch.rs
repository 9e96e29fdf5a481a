//! What the cluster has of one kind of object, kept up to date: listed, watched, and listed again.
//!
//! In come objects; out goes a map of what is needed of them, and a sign when it has changed: an object that changes in
//! nothing of that gives none. What holds:
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

#[derive(PartialEq)]
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

impl<T: PartialEq + Send + Sync + 'static> Watched<T> {
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

impl<T: PartialEq> Known<T> {
    fn lock(&self) -> MutexGuard<'_, Content<T>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster does not have that kind. Said once, not at each look.
    fn is_absent(&self, what: &str) {
        let is_new = self.change(|content| {
            let is_new = content.presence != Presence::Absent;
            *content = Content { presence: Presence::Absent, all: All::new() };
            is_new
        });
        if is_new {
            tracing::info!("the cluster has no {what}; looking again from time to time");
        }
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
                    let whole = Content { presence: Presence::There, all: std::mem::take(&mut listed) };
                    self.change(|content| {
                        let is_new = *content != whole;
                        *content = whole;
                        is_new
                    });
                }
                Some(Event::Apply(object)) => {
                    if let Some((name, of)) = keep(object).map(kept) {
                        self.change(|content| {
                            content.all.insert(name, Arc::clone(&of)).is_none_or(|before| before != of)
                        });
                    }
                }
                Some(Event::Delete(object)) => {
                    if let Some((name, _)) = keep(object) {
                        self.change(|content| content.all.remove(&name).is_some());
                    }
                }
            }
        }
    }

    /// Gives a sign if it says that something is another now. Gives what it says.
    fn change(&self, change: impl FnOnce(&mut Content<T>) -> bool) -> bool {
        let is_new = change(&mut self.lock());
        if is_new {
            self.changes.send_modify(|count| *count += 1);
        }
        is_new
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
#[path = "watch_tests.rs"]
mod tests;
