//! The store in a file, for many callers at once: one thread writes, and one transaction serves all who wait.
//!
//! In come commits; each gets its answers when its transaction is on disk. Commits that arrive while one is being
//! written share the next. No caller's thread ever waits for the disk. A thread that has gone, by a panic too, answers
//! everybody with `Fatal`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use cleat_rds::secret::{Era, KeyId};
use cleat_runtime::metrics::Metric;
use metrics::histogram;
use tokio::sync::{mpsc, oneshot};

use super::database::Database;
use super::refusal::OpenError;
use super::{CommitError, Key, Loaded, Store, Version, Write};

/// Commits that may wait for the thread, and thus be in one transaction.
const QUEUE: usize = 1024;

const COMMIT: Metric =
    Metric::histogram("cleat_store_commit_seconds", "Time of a transaction until it is on disk");
const GROUP: Metric = Metric::histogram_in(
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0],
    "cleat_store_group_commits",
    "Commits that shared a transaction",
);

/// What the store measures.
pub const METRICS: &[Metric] = &[COMMIT, GROUP];

type Answers = Vec<Result<Version, CommitError>>;

/// A store in a file. Cheap to clone; the file is closed and unlocked when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct FileStore {
    thread: Arc<WriterThread>,
}

#[derive(Debug)]
struct WriterThread {
    /// Taken by `drop`, which ends the thread.
    asked: Option<mpsc::Sender<StoreRequest>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

pub(super) enum StoreRequest {
    Term { at_least: u64, done: oneshot::Sender<Result<u64, CommitError>> },
    Key { key: KeyId, before: KeyId, done: oneshot::Sender<Result<Vec<Era>, CommitError>> },
    Eras { done: oneshot::Sender<Result<Vec<Era>, CommitError>> },
    Commit { writes: Vec<Write>, done: oneshot::Sender<Answers> },
}

impl FileStore {
    /// Opens the store, or makes a new one. Blocks on the disk.
    ///
    /// # Errors
    /// If another process has it open, it is damaged or of another version, or a step fails; the message names the
    /// file.
    pub fn open(path: &Path) -> Result<(Self, Loaded), OpenError> {
        let (database, loaded) = Database::open(path)?;
        Ok((Self::start(database), loaded))
    }

    pub(super) fn start(database: Database) -> Self {
        let (send, receive) = mpsc::channel(QUEUE);
        let thread = std::thread::spawn(move || write_all(database, receive));
        Self { thread: Arc::new(WriterThread { asked: Some(send), thread: Mutex::new(Some(thread)) }) }
    }

    /// Which keys secrets were made with, as it is noted.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn eras(&self) -> Result<Vec<Era>, CommitError> {
        self.ask(|done| StoreRequest::Eras { done }).await.unwrap_or_else(|| Err(gone()))
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> StoreRequest) -> Option<T> {
        let (done, answer) = oneshot::channel();
        self.thread.asked.as_ref()?.send(ask(done)).await.ok()?;
        answer.await.ok()
    }
}

fn gone() -> CommitError {
    CommitError::Fatal { reason: "the store's thread has ended".into() }
}

#[tonic::async_trait]
impl Store for FileStore {
    async fn take_term(&self, at_least: u64) -> Result<u64, CommitError> {
        self.ask(|done| StoreRequest::Term { at_least, done }).await.unwrap_or_else(|| Err(gone()))
    }

    async fn take_key(&self, key: KeyId, before: KeyId) -> Result<Vec<Era>, CommitError> {
        self.ask(|done| StoreRequest::Key { key, before, done }).await.unwrap_or_else(|| Err(gone()))
    }

    async fn commit(&self, writes: Vec<Write>) -> Answers {
        let count = writes.len();
        let answers = self.ask(|done| StoreRequest::Commit { writes, done }).await;
        answers.unwrap_or_else(|| vec![Err(gone()); count])
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.asked = None;
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // It has at most what is queued to write; after it, the lock is free for a successor.
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's thread has panicked");
        }
    }
}

pub(super) fn write_all(mut database: Database, mut asked: mpsc::Receiver<StoreRequest>) {
    let mut next = None;
    while let Some(first) = next.take().or_else(|| asked.blocking_recv()) {
        let (writes, done) = match first {
            StoreRequest::Term { at_least, done } => {
                // A caller that has gone does not want to know; likewise below.
                let _ = done.send(database.take_term(at_least));
                continue;
            }
            StoreRequest::Key { key, before, done } => {
                let _ = done.send(database.take_key(key, before));
                continue;
            }
            StoreRequest::Eras { done } => {
                let _ = done.send(database.eras());
                continue;
            }
            StoreRequest::Commit { writes, done } => (writes, done),
        };
        let mut group = Group::default();
        group.add(writes, done);
        loop {
            match asked.try_recv() {
                Ok(StoreRequest::Commit { writes, done }) if group.takes(&writes) => group.add(writes, done),
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        group.write(&mut database);
    }
}

/// Commits that share a transaction. Each key is in it once: the answer to one write of it is what the next expects.
#[derive(Default)]
struct Group {
    writes: Vec<Write>,
    keys: BTreeSet<Key>,
    waiting: Vec<(usize, oneshot::Sender<Answers>)>,
}

impl Group {
    fn takes(&self, writes: &[Write]) -> bool {
        writes.iter().all(|write| !self.keys.contains(&write.key))
    }

    fn add(&mut self, writes: Vec<Write>, done: oneshot::Sender<Answers>) {
        self.keys.extend(writes.iter().map(|write| write.key.clone()));
        self.waiting.push((writes.len(), done));
        self.writes.extend(writes);
    }

    fn write(self, database: &mut Database) {
        let began = Instant::now();
        let size = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        let mut answers = if self.writes.is_empty() { Vec::new() } else { database.commit(&self.writes) };
        histogram!(COMMIT.name).record(began.elapsed());
        histogram!(GROUP.name).record(size);
        for (count, done) in self.waiting {
            let rest = answers.split_off(count.min(answers.len()));
            let _ = done.send(std::mem::replace(&mut answers, rest));
        }
    }
}
