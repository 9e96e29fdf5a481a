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
use crate::store::{CommitError, Key, Place, RecordKind, Store, Version};

/// A write that takes longer is not normal, wherever it goes.
const SLOW_COMMIT: Duration = Duration::from_secs(5);
/// Between two tries of a store that cannot take something now, and between two looks at what is overdue.
const AGAIN: Duration = Duration::from_millis(500);
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
    under_way: FuturesUnordered<BoxFuture<'static, Commit>>,
    tries: HashMap<Key, Try>,
    /// When the store last did something that it was asked.
    worked: Instant,
    looked: Instant,
    hush: Hush,
}

/// Writes that were handed to the store together, with its answers.
struct Commit {
    began: Instant,
    answers: Vec<(Deciding, Result<Version, CommitError>)>,
}

/// One record that is being written.
struct Try {
    began: Instant,
    /// When the store was last asked.
    asked: Instant,
    /// The write, where it waits to be tried again, and since when.
    again: Option<(Deciding, Instant)>,
    /// Why it was not taken the last time: once is no trouble yet.
    failed: Option<Arc<str>>,
    stalled: bool,
    said: Option<Instant>,
}

/// What came of a write.
pub(super) type Answer = (Deciding, Result<Version, CommitError>);

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
            let fresh =
                || Try { began: now, asked: now, again: None, failed: None, stalled: false, said: None };
            self.tries.entry(write.key.clone()).or_insert_with(fresh).asked = now;
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
                Commit { began: now, answers: some.into_iter().zip(answers).collect() }
            }));
        }
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
        let Some(Commit { began, answers }) = self.under_way.next().await else { return Vec::new() };
        let durable = answers.iter().filter(|(_, answer)| answer.is_ok()).count();
        if durable > 0 {
            metrics::engine_commit(began.elapsed(), durable);
        }
        let mut ended = Vec::new();
        for (write, answer) in answers {
            match answer {
                Err(CommitError::Retry { reason }) => self.not_now(write, &reason),
                Ok(_)
                | Err(
                    CommitError::Conflict { .. }
                    | CommitError::Refused { .. }
                    | CommitError::Pinned { .. }
                    | CommitError::Deleting { .. },
                ) => {
                    self.worked = Instant::now();
                    self.tries.remove(&write.write.key);
                    ended.push((write, answer));
                }
                Err(CommitError::LostClaim { .. } | CommitError::Fatal { .. }) => ended.push((write, answer)),
            }
        }
        if !ended.is_empty() {
            self.show();
        }
        ended
    }

    fn not_now(&mut self, write: Deciding, reason: &str) {
        let key = write.write.key.clone();
        let Some(one) = self.tries.get_mut(&key) else { return };
        one.again = Some((write, Instant::now()));
        if one.failed.replace(reason.into()).is_some() {
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
            match one.again.take_if(|(_, since)| now.duration_since(*since) >= AGAIN / 2) {
                Some((write, _)) => again.push(write),
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
        self.begin(again);
    }

    /// At a stop nothing waits for a store that takes nothing: what was decided and is not durable was not decided. Gives
    /// the records, each with why.
    pub(super) fn give_up(&mut self) -> Vec<(Key, CommitError)> {
        if !self.stop.is_cancelled() {
            return Vec::new();
        }
        let waits = self.tries.iter().filter(|(_, one)| one.again.is_some()).map(|(key, _)| key.clone());
        let keys: Vec<Key> = waits.collect();
        keys.into_iter()
            .map(|key| {
                let failed = self.tries.remove(&key).and_then(|one| one.failed);
                let reason = failed.map(|reason| reason.to_string()).unwrap_or_default();
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
