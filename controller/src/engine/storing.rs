//! Writes on their way to the store: tried until they are durable, each by itself.
//!
//! In come writes, one at a time for each record; out go their answers, but for "not now", which is asked again here. What
//! holds: a write whose answer was lost is tried again as it was, before anything later of its record; no write waits for
//! another, except in a store that makes those durable together that it is given together; whoever waits for a record that
//! is not written in time learns why.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cleat_core::{NodeId, VolumeId};
use cleat_runtime::hush::Hush;
use cleat_runtime::readiness::ReadyFlag;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::EngineError;
use super::records::Deciding;
use crate::leadership::{ARRIVES, Leadership};
use crate::metrics;
use crate::store::{CommitError, Key, Place, RecordKind, Store, StoredRecord, Version};

/// A write that takes longer is not normal, wherever it goes.
const SLOW_COMMIT: Duration = Duration::from_secs(5);
/// Between two tries of a store that cannot take something now, and between two looks at what is overdue.
const AGAIN: Duration = Duration::from_millis(500);
/// Between two reads of a record that somebody has made unreadable.
const READ_AGAIN: Duration = Duration::from_secs(5);
/// So often it is said again that a record is not written.
const SAY_AGAIN: Duration = Duration::from_secs(30);
/// Writes that are handed to a store together at most, where it makes them durable together.
const GROUP: usize = 256;

/// What the store does not take now, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stalled {
    /// Nothing at all.
    everything: Option<Arc<str>>,
    records: BTreeMap<Key, Arc<str>>,
}

impl Stalled {
    /// Why a request about this volume and this node cannot come to its end; one about no volume waits for all of them.
    pub(super) fn reason(&self, volume: Option<&VolumeId>, node: Option<&NodeId>) -> Option<Arc<str>> {
        let of_volume = match volume {
            Some(volume) => self.records.get(&Key::volume(volume.as_str())),
            None => self.records.iter().find(|(key, _)| key.kind == RecordKind::Volume).map(|(_, why)| why),
        };
        let of_node = || node.and_then(|node| self.records.get(&Key::node(node.as_str())));
        self.everything.as_ref().or(of_volume).or_else(of_node).cloned()
    }
}

/// Where records go, and who learns how that goes.
pub(super) struct Storing {
    store: Arc<dyn Store>,
    ready: ReadyFlag,
    stalled: watch::Sender<Stalled>,
    leadership: Leadership,
    /// Ends the waiting for a store that takes nothing.
    stop: CancellationToken,
    under_way: FuturesUnordered<BoxFuture<'static, Came>>,
    tries: HashMap<Key, Try>,
    /// When the store last did something that it was asked.
    worked: Instant,
    looked: Instant,
    hush: Hush,
}

/// What the store has answered.
enum Came {
    /// To writes that were handed to it together.
    Written { began: Instant, answers: Vec<(Deciding, Result<Version, CommitError>)> },
    /// What somebody else has made of the record of this write.
    Read(Deciding, Result<Option<StoredRecord>, CommitError>),
    /// What a record is now of which no write is under way.
    LookedUp(Key, Result<Option<StoredRecord>, CommitError>),
}

/// One record that is being written.
struct Try {
    began: Instant,
    /// When the store was last asked.
    asked: Instant,
    again: Option<Again>,
    /// It was not taken, and is tried again: once is no trouble yet.
    failed: bool,
    stalled: bool,
    said: Option<Instant>,
}

impl Try {
    fn begun(now: Instant) -> Self {
        Self { began: now, asked: now, again: None, failed: false, stalled: false, said: None }
    }
}

/// What waits to be tried again.
struct Again {
    write: Deciding,
    reads: bool,
    since: Instant,
    pause: Duration,
}

/// What came of a write.
pub(super) enum Answer {
    /// Its record's new version, or why it was not made.
    Written(Deciding, Result<Version, CommitError>),
    /// Its record as somebody else has made it; `None`: it has gone.
    Found(Deciding, Option<StoredRecord>),
    /// A record that was looked up.
    LookedUp(Key, Option<StoredRecord>),
}

impl Storing {
    pub(super) fn new(
        store: Arc<dyn Store>,
        ready: ReadyFlag,
        stalled: watch::Sender<Stalled>,
        leadership: Leadership,
        stop: CancellationToken,
    ) -> Self {
        ready.set(true);
        Self {
            store,
            ready,
            stalled,
            leadership,
            stop,
            under_way: FuturesUnordered::new(),
            tries: HashMap::new(),
            worked: Instant::now(),
            looked: Instant::now(),
            hush: Hush::default(),
        }
    }

    /// Nothing leaves this process that could arrive after another has begun to lead.
    pub(super) fn still_leads(&self) -> Result<(), EngineError> {
        if self.leadership.outlives(ARRIVES) {
            return Ok(());
        }
        Err(EngineError::SteppedDown { reason: "the Lease was lost, or is about to be".into() })
    }

    /// Hands writes to the store.
    pub(super) fn begin(&mut self, writes: Vec<Deciding>) {
        let now = Instant::now();
        if self.tries.is_empty() {
            self.looked = now;
        }
        for Deciding { write, .. } in &writes {
            self.tries.entry(write.key.clone()).or_insert_with(|| Try::begun(now)).asked = now;
        }
        let together = match self.store.place() {
            Place::Disk => GROUP,
            Place::ApiServer => 1,
        };
        let mut writes = writes.into_iter().peekable();
        while writes.peek().is_some() {
            let some: Vec<Deciding> = writes.by_ref().take(together).collect();
            let store = Arc::clone(&self.store);
            self.under_way.push(Box::pin(async move {
                let answers = store.commit(some.iter().map(|one| one.write.clone()).collect()).await;
                Came::Written { began: now, answers: some.into_iter().zip(answers).collect() }
            }));
        }
    }

    /// Reads the record of a write that was not made, since somebody else has changed it.
    pub(super) fn read(&mut self, write: Deciding) {
        let key = write.write.key.clone();
        let now = Instant::now();
        self.tries.entry(key.clone()).or_insert_with(|| Try::begun(now)).asked = now;
        let store = Arc::clone(&self.store);
        self.under_way.push(Box::pin(async move {
            let found = store.read(&key).await;
            Came::Read(write, found)
        }));
    }

    /// Looks up a record that somebody else may have changed.
    pub(super) fn look_up(&mut self, key: Key) {
        if !self.reads() || self.tries.contains_key(&key) {
            return;
        }
        let store = Arc::clone(&self.store);
        self.under_way.push(Box::pin(async move {
            let found = store.read(&key).await;
            Came::LookedUp(key, found)
        }));
    }

    /// The same later: nobody can say what the record says now.
    pub(super) fn read_later(&mut self, write: Deciding, reason: &str) {
        let key = write.write.key.clone();
        let now = Instant::now();
        self.tries.entry(key.clone()).or_insert_with(|| Try::begun(now)).again =
            Some(Again { write, reads: true, since: now, pause: READ_AGAIN });
        self.stall(&key, reason);
    }

    /// Whether a record that somebody else has changed can be read.
    pub(super) fn reads(&self) -> bool {
        self.store.place() == Place::ApiServer
    }

    /// Whether the store has something to answer.
    pub(super) fn is_asking(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Whether some record is not written yet.
    pub(super) fn is_busy(&self) -> bool {
        !self.tries.is_empty()
    }

    /// The next answers of the store, but for those that are asked again.
    pub(super) async fn answers(&mut self) -> Vec<Answer> {
        let (began, answers) = match self.under_way.next().await {
            Some(Came::Written { began, answers }) => (began, answers),
            Some(Came::Read(write, found)) => return self.read_back(write, found),
            // Whoever wants to know comes again.
            Some(Came::LookedUp(_, Err(_))) => return Vec::new(),
            Some(Came::LookedUp(key, Ok(found))) => return vec![Answer::LookedUp(key, found)],
            None => return Vec::new(),
        };
        let durable = answers.iter().filter(|(_, answer)| answer.is_ok()).count();
        if durable > 0 {
            metrics::engine_commit(began.elapsed(), durable);
        }
        let mut ended = Vec::new();
        for (write, answer) in answers {
            match answer {
                Err(CommitError::Retry { reason }) => self.not_now(write, false, &reason),
                Ok(_)
                | Err(
                    CommitError::Conflict { .. } | CommitError::Refused { .. } | CommitError::Deleting { .. },
                ) => {
                    self.worked = Instant::now();
                    self.tries.remove(&write.write.key);
                    ended.push(Answer::Written(write, answer));
                }
                Err(CommitError::LostClaim { .. } | CommitError::Fatal { .. }) => {
                    ended.push(Answer::Written(write, answer));
                }
            }
        }
        if !ended.is_empty() {
            self.show();
        }
        ended
    }

    fn read_back(
        &mut self,
        write: Deciding,
        found: Result<Option<StoredRecord>, CommitError>,
    ) -> Vec<Answer> {
        match found {
            Ok(found) => {
                self.worked = Instant::now();
                self.tries.remove(&write.write.key);
                self.show();
                vec![Answer::Found(write, found)]
            }
            Err(error @ (CommitError::LostClaim { .. } | CommitError::Fatal { .. })) => {
                vec![Answer::Written(write, Err(error))]
            }
            Err(error) => {
                self.not_now(write, true, &error.to_string());
                Vec::new()
            }
        }
    }

    fn not_now(&mut self, write: Deciding, reads: bool, reason: &str) {
        let key = write.write.key.clone();
        let Some(one) = self.tries.get_mut(&key) else { return };
        one.again = Some(Again { write, reads, since: Instant::now(), pause: AGAIN / 2 });
        if std::mem::replace(&mut one.failed, true) {
            self.stall(&key, reason);
        }
    }

    /// When to look again; only what is not written in time needs it.
    pub(super) fn next_look(&self) -> Instant {
        self.looked + AGAIN
    }

    /// Tries again what is due, and says what is overdue.
    pub(super) fn look(&mut self) {
        let now = Instant::now();
        if now < self.next_look() {
            return;
        }
        self.looked = now;
        let mut again = Vec::new();
        let mut silent = Vec::new();
        for (key, one) in &mut self.tries {
            match one.again.take_if(|again| now.duration_since(again.since) >= again.pause) {
                Some(due) => again.push(due),
                None if one.again.is_none() && now.duration_since(one.asked) >= SLOW_COMMIT => {
                    silent.push(key.clone());
                }
                None => {}
            }
        }
        let reason = self.store.place().is_silent();
        for key in silent {
            // Something that hangs cannot be helped from here; but who waits for it should know.
            self.stall(&key, reason);
        }
        let (reads, writes): (Vec<Again>, Vec<Again>) = again.into_iter().partition(|again| again.reads);
        self.begin(writes.into_iter().map(|again| again.write).collect());
        for again in reads {
            self.read(again.write);
        }
    }

    /// At a stop nothing waits for a store that takes nothing: what was decided and is not durable was not decided. Gives
    /// the records, each with why.
    pub(super) fn give_up(&mut self) -> Vec<(Key, CommitError)> {
        if !self.stop.is_cancelled() {
            return Vec::new();
        }
        let stalled = self.stalled.borrow().clone();
        let waits = self.tries.iter().filter(|(_, one)| one.again.is_some()).map(|(key, _)| key.clone());
        let keys: Vec<Key> = waits.collect();
        keys.into_iter()
            .map(|key| {
                self.tries.remove(&key);
                let reason = stalled.records.get(&key).or(stalled.everything.as_ref());
                let reason = reason.map(ToString::to_string).unwrap_or_default();
                (key, CommitError::Retry { reason })
            })
            .collect()
    }

    /// Says that a record is not written now: readiness, metric, log, and whoever waits for it.
    fn stall(&mut self, key: &Key, reason: &str) {
        let Some(one) = self.tries.get_mut(key) else { return };
        let first = !std::mem::replace(&mut one.stalled, true);
        if one.said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            one.said = Some(Instant::now());
            let waited_s = one.began.elapsed().as_secs();
            self.hush.warn(|skipped| {
                tracing::error!(
                    %key, waited_s, skipped,
                    "the record of {key} is not stored: {reason}; nothing is done that rests on it until it is"
                );
            });
        }
        let alone = self.store.place() == Place::ApiServer;
        // One record may be in trouble by itself; a store that has done nothing else since then is as a whole.
        if !alone || self.worked <= one.began {
            self.ready.set(false);
        }
        let reason: Arc<str> = reason.into();
        self.stalled.send_if_modified(|stalled| {
            let everything = (!alone).then(|| Arc::clone(&reason));
            let before = stalled.records.insert(key.clone(), Arc::clone(&reason));
            let changed = first || before != Some(reason) || stalled.everything != everything;
            stalled.everything = everything;
            changed
        });
        metrics::store_stalled(true);
    }

    /// Says what the store takes again.
    fn show(&mut self) {
        self.ready.set(true);
        let tries = &self.tries;
        self.stalled.send_if_modified(|stalled| {
            let before = stalled.records.len();
            stalled.records.retain(|key, _| tries.get(key).is_some_and(|one| one.stalled));
            stalled.everything.take().is_some() || stalled.records.len() != before
        });
        metrics::store_stalled(!self.stalled.borrow().records.is_empty());
    }
}
