//! The store in a file, for many callers at once: one thread writes, and one fsync serves all who wait.
//!
//! In come commits; each gets its answer when its line is on disk. Commits that arrive while an fsync is under way
//! are written together with the next one, as one line: so they are there all or none, which is more than was
//! asked for. After a failure every later commit fails with the first cause, and [`FileStore::failed`] tells
//! whoever has to end the process.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use metrics::histogram;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::journal::{Journal, OpenError, WriteError};
use super::{Change, CommitError, Loaded, Store};

/// Commits that may wait for the thread, and thus be in one write.
const QUEUE: usize = 1024;

/// A store in a file. Cheap to clone; the file is closed and unlocked when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct FileStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Taken by `drop`, which ends the thread.
    commits: Option<mpsc::Sender<Commit>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    failed: CancellationToken,
}

struct Commit {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), CommitError>>,
}

impl FileStore {
    /// Opens the store, or makes a new one, and begins a new term, durably. Blocks on the disk. `now_ms` is the
    /// wall clock, in milliseconds since 1970.
    ///
    /// # Errors
    /// If another process has it open, it is damaged or of another version, or a step fails; the message names the
    /// file, and the offset where there is one.
    pub fn open(path: &Path, now_ms: u64) -> Result<(Self, Loaded), OpenError> {
        let (journal, loaded) = Journal::open(path, now_ms)?;
        Ok((Self::start(journal), loaded))
    }

    pub(super) fn start(journal: Journal) -> Self {
        let (send, receive) = mpsc::channel(QUEUE);
        let failed = CancellationToken::new();
        let thread = std::thread::spawn({
            let failed = failed.clone();
            move || write_all(journal, receive, &failed)
        });
        let thread = Mutex::new(Some(thread));
        Self { shared: Arc::new(Shared { commits: Some(send), thread, failed }) }
    }

    /// Cancelled when the store has failed: the process has to end.
    pub fn failed(&self) -> CancellationToken {
        self.shared.failed.clone()
    }

    /// [`Store::commit`] for a thread that may block; panics within an async task.
    ///
    /// # Errors
    /// If the changes are not known to be durable.
    pub fn commit_blocking(&self, changes: Vec<Change>) -> Result<(), CommitError> {
        let (done, answer) = oneshot::channel();
        let commits = self.shared.commits.as_ref().ok_or(CommitError::Closed)?;
        commits.blocking_send(Commit { changes, done }).map_err(|_| CommitError::Closed)?;
        answer.blocking_recv().unwrap_or(Err(CommitError::Closed))
    }
}

#[tonic::async_trait]
impl Store for FileStore {
    async fn commit(&self, changes: Vec<Change>) -> Result<(), CommitError> {
        let (done, answer) = oneshot::channel();
        let commits = self.shared.commits.as_ref().ok_or(CommitError::Closed)?;
        commits.send(Commit { changes, done }).await.map_err(|_| CommitError::Closed)?;
        answer.await.unwrap_or(Err(CommitError::Closed))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.commits = None;
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // It has at most the commits that are queued to write; after it, the lock is free for a successor.
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's thread has panicked");
        }
    }
}

fn write_all(mut journal: Journal, mut commits: mpsc::Receiver<Commit>, failed: &CancellationToken) {
    // Also if this thread should panic: nobody may go on as if there were a store.
    let stopped = failed.clone().drop_guard();
    let mut first_failure: Option<Arc<WriteError>> = None;
    while let Some(first) = commits.blocking_recv() {
        let mut group = vec![first];
        while let Ok(next) = commits.try_recv() {
            group.push(next);
        }
        if first_failure.is_none() {
            first_failure = write(&mut journal, &mut group).err().map(Arc::new);
        }
        if let Some(error) = &first_failure
            && !failed.is_cancelled()
        {
            tracing::error!(error = %cleat_runtime::exit::Causes(error.as_ref()), "the store has failed");
            failed.cancel();
        }
        for commit in group {
            let result = first_failure.clone().map_or(Ok(()), |error| Err(CommitError::Failed(error)));
            // A caller that has gone does not want to know.
            let _ = commit.done.send(result);
        }
    }
    if first_failure.is_none() {
        stopped.disarm();
    }
}

fn write(journal: &mut Journal, group: &mut [Commit]) -> Result<(), WriteError> {
    let began = Instant::now();
    let size = u32::try_from(group.len()).unwrap_or(u32::MAX);
    let changes: Vec<Change> =
        group.iter_mut().flat_map(|commit| std::mem::take(&mut commit.changes)).collect();
    if changes.is_empty() {
        return Ok(());
    }
    journal.commit(changes)?;
    histogram!("cleat_store_commit_seconds").record(began.elapsed());
    histogram!("cleat_store_group_commits").record(size);
    Ok(())
}
