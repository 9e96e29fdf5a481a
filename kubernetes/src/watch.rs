//! What the cluster has of one kind of object, kept up to date: listed, watched, and listed again.
//!
//! In come objects; out goes a map of what is needed of them, and a sign when it has changed. What holds:
//! - nothing is said before the first whole list;
//! - a list that is silent is given up, and so is a watch whose connection the kernel finds dead; a history that was compacted is listed again, and every so often everything is,
//!   so that a change that no watch has brought is seen all the same;
//! - it is behind by an unknown time. Whoever does something about what it says asks the API server itself first.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
/// Objects that are asked for at once.
const PAGE: u32 = 500;

/// What is kept of all objects of one kind, by a name of its own choice.
type All<T> = BTreeMap<String, Arc<T>>;

/// The objects of one kind, watched until this is dropped.
pub struct Watched<T> {
    known: Arc<Known<T>>,
    changes: watch::Receiver<u64>,
    _following: AbortOnDropHandle<()>,
}

struct Known<T> {
    /// `None`: not listed whole yet.
    all: Mutex<Option<All<T>>>,
    changes: watch::Sender<u64>,
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Begins to watch. `keep` says under which name what is kept of an object; `None`: it is nothing to us.
    pub(crate) fn start<K>(
        server: &ApiServer,
        api: Api<K>,
        what: &'static str,
        keep: impl Fn(K) -> Option<(String, T)> + Send + Sync + 'static,
    ) -> Self
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        K::DynamicType: Default,
    {
        let (sender, changes) = watch::channel(0);
        let known = Arc::new(Known { all: Mutex::default(), changes: sender });
        let (following, patience) = (Arc::clone(&known), server.timeout());
        let task = tokio::spawn(async move {
            let mut pause = PAUSES.0;
            loop {
                let began = Instant::now();
                if let Err(error) = following.follow(&api, &keep).await {
                    tracing::warn!("cannot watch {what}: {error}; trying again");
                    // One that went well for a while begins with a short pause again.
                    if began.elapsed() > SILENT {
                        pause = PAUSES.0;
                    }
                    tokio::time::sleep(pause.max(patience / 10)).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        });
        Self { known, changes, _following: AbortOnDropHandle::new(task) }
    }

    /// What is known, once everything was listed.
    pub fn look<R>(&self, look: impl FnOnce(&BTreeMap<String, Arc<T>>) -> R) -> Option<R> {
        self.known.lock().as_ref().map(look)
    }

    /// Whether everything was listed.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.known.lock().is_some()
    }

    /// A sign that is given after each change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

impl<T> Known<T> {
    fn lock(&self) -> MutexGuard<'_, Option<All<T>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists and watches until everything is to be listed again.
    async fn follow<K>(&self, api: &Api<K>, keep: &impl Fn(K) -> Option<(String, T)>) -> Result<(), String>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        K::DynamicType: Default,
    {
        let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
        let mut events = watcher::watcher(api.clone(), config).boxed();
        let mut listed = All::new();
        let (until, mut listing) = (Instant::now() + LIST_EVERY, true);
        loop {
            let wait = if listing { Instant::now() + SILENT } else { until };
            let Ok(event) = tokio::time::timeout_at(wait, events.try_next()).await else {
                return if listing { Err("no answer in time".into()) } else { Ok(()) };
            };
            match event.map_err(|error| error.to_string())? {
                None => return Ok(()),
                Some(Event::Init) => (listed, listing) = (All::new(), true),
                Some(Event::InitApply(object)) => listed.extend(keep(object).map(kept)),
                Some(Event::InitDone) => {
                    listing = false;
                    *self.lock() = Some(std::mem::take(&mut listed));
                    self.changed();
                }
                Some(Event::Apply(object)) => {
                    if let (Some(all), Some((name, of))) = (self.lock().as_mut(), keep(object)) {
                        all.insert(name, Arc::new(of));
                    }
                    self.changed();
                }
                Some(Event::Delete(object)) => {
                    if let (Some(all), Some((name, _))) = (self.lock().as_mut(), keep(object)) {
                        all.remove(&name);
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

fn kept<T>((name, of): (String, T)) -> (String, Arc<T>) {
    (name, Arc::new(of))
}
