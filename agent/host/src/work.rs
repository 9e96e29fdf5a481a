//! Kernel calls that may block for ever, on threads of their own.
//!
//! Comes in: a closure, a key that names what it acts on, a deadline. Goes out: its result, or the fact that
//! it is still running.
//!
//! Always holds:
//! - One thread per piece of work: a call in D state costs one thread, never a place in a pool.
//! - At most one piece of work per key: a device that hangs cannot collect threads. A second caller waits for
//!   its turn while the first is in time; once the first is overdue, it learns at once for how long that has
//!   been running. Work without a key is limited by its name.
//! - A thread whose caller has gone away finishes; what it returns is dropped on its own thread.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// Why a piece of blocking work gave no result.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The deadline passed. The thread goes on without its caller.
    #[error("{what} did not finish within {deadline:?}; it goes on in the background")]
    Overdue {
        /// What was being done, as text for a person.
        what: String,
        /// The deadline that passed.
        deadline: Duration,
    },
    /// An earlier piece of work on the same key is overdue, or did not finish within this caller's deadline.
    #[error("{what} has been running for {:.1} s; not started again", running.as_secs_f64())]
    Busy {
        /// What was being done, as text for a person.
        what: String,
        /// For how long the earlier one has been running.
        running: Duration,
    },
    /// The operating system could not start a thread.
    #[error("cannot start a thread for {what}")]
    Spawn {
        /// What was to be done, as text for a person.
        what: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The work panicked. Its result is unknown.
    #[error("{what} ended without a result")]
    Lost {
        /// What was being done, as text for a person.
        what: String,
    },
}

/// Runs blocking work by key. Cheap to clone; clones share the keys.
#[derive(Debug, Clone, Default)]
pub struct Workers {
    running: Arc<Mutex<HashMap<String, Running>>>,
    /// The simulated duration of work that is done on the caller's own thread; `None` for a thread of its own
    /// each.
    in_place: Option<Duration>,
}

/// A piece of work that has not ended.
#[derive(Debug, Clone)]
struct Running {
    since: Instant,
    /// When its caller no longer waits.
    due: Instant,
    /// Closed when it ends.
    ended: watch::Receiver<()>,
}

/// Takes the key out of the table when the work ends, even by a panic, and then lets the next one begin.
struct Slot {
    workers: Workers,
    key: String,
    _ends: watch::Sender<()>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.workers.table().remove(&self.key);
    }
}

impl Workers {
    /// A table in which nothing runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// For simulations, in which no thread may run beside the simulated ones: the work is done on the
    /// caller's thread, after `delay` of the runtime's own clock.
    pub fn in_place(delay: Duration) -> Self {
        Self { in_place: Some(delay), ..Self::default() }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<String, Running>> {
        // The table is consistent at every point where its owner could panic.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key, or what has it now.
    fn claim(&self, key: &str, due: Instant) -> Result<Slot, Running> {
        let mut table = self.table();
        if let Some(running) = table.get(key) {
            return Err(running.clone());
        }
        let (ends, ended) = watch::channel(());
        table.insert(key.to_owned(), Running { since: Instant::now(), due, ended });
        Ok(Slot { workers: self.clone(), key: key.to_owned(), _ends: ends })
    }

    /// Waits for the key, as long as what has it is in time.
    async fn turn(&self, key: &str, due: Instant) -> Result<Slot, WorkError> {
        loop {
            let mut running = match self.claim(key, due) {
                Ok(slot) => return Ok(slot),
                Err(running) => running,
            };
            // It never changes: this ends when the sender is dropped.
            if tokio::time::timeout_at(running.due.min(due), running.ended.changed()).await.is_err() {
                return Err(WorkError::Busy { what: key.to_owned(), running: running.since.elapsed() });
            }
        }
    }

    /// What is running now, with its age: for an operator who searches for what is stuck.
    pub fn running(&self) -> Vec<(String, Duration)> {
        self.table().iter().map(|(key, running)| (key.clone(), running.since.elapsed())).collect()
    }

    /// Runs `work` on a thread of its own and waits at most `deadline` for its turn and its result. `key` says
    /// what is done and on what, such as `read 259:1`; it appears in errors.
    ///
    /// # Errors
    /// [`WorkError`]; after `Overdue` the work goes on, and its key stays taken until it ends.
    pub async fn run<T, F>(&self, key: &str, deadline: Duration, work: F) -> Result<T, WorkError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let due = Instant::now() + deadline;
        let slot = self.turn(key, due).await?;
        if let Some(delay) = self.in_place {
            tokio::time::sleep(delay).await;
            let result = work();
            drop(slot);
            return Ok(result);
        }
        let (sender, receiver) = oneshot::channel();
        spawn(key, move || {
            let result = work();
            // The key is free before the caller gets the result, so that its next call is not refused.
            drop(slot);
            let _ = sender.send(result);
        })?;
        match tokio::time::timeout_at(due, receiver).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(WorkError::Lost { what: key.to_owned() }),
            Err(_) => Err(WorkError::Overdue { what: key.to_owned(), deadline }),
        }
    }
}

/// How much work of one name and without a key may be overdue at once.
const MOST_OVERDUE: usize = 8;

/// Names of overdue work without a key: on how many threads it runs, and since when.
static OVERDUE: Mutex<BTreeMap<String, (usize, Instant)>> = Mutex::new(BTreeMap::new());

fn overdue() -> std::sync::MutexGuard<'static, BTreeMap<String, (usize, Instant)>> {
    OVERDUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread without a key. Its end and its deadline both report here; the second one sees that the first was
/// there.
#[derive(Default)]
struct Counted {
    met: AtomicBool,
}

impl Counted {
    fn is_late(&self, what: &str) {
        let mut overdue = overdue();
        if !self.met.swap(true, Ordering::AcqRel) {
            overdue.entry(what.to_owned()).or_insert((0, Instant::now())).0 += 1;
        }
    }

    fn has_ended(&self, what: &str) {
        let mut overdue = overdue();
        if self.met.swap(true, Ordering::AcqRel)
            && let Some((count, _)) = overdue.get_mut(what)
        {
            *count -= 1;
            if *count == 0 {
                overdue.remove(what);
            }
        }
    }
}

/// Counts the end of a thread, even by a panic.
struct Ends {
    of: Arc<Counted>,
    what: String,
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.of.has_ended(&self.what);
    }
}

/// Runs `work` on a thread of its own, without a key: work of one name may run in parallel. Where eight of a
/// name are overdue, no more begin, so that a kernel that does not answer cannot collect threads.
///
/// # Errors
/// [`WorkError`] as for [`Workers::run`].
pub async fn once<T, F>(what: &str, deadline: Duration, work: F) -> Result<T, WorkError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    if let Some((_, since)) = overdue().get(what).filter(|(count, _)| *count >= MOST_OVERDUE) {
        return Err(WorkError::Busy { what: what.to_owned(), running: since.elapsed() });
    }
    let (sender, receiver) = oneshot::channel();
    let late = Arc::new(Counted::default());
    let ends = Ends { of: Arc::clone(&late), what: what.to_owned() };
    spawn(what, move || {
        let _ends = ends;
        let _ = sender.send(work());
    })?;
    match tokio::time::timeout(deadline, receiver).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(_)) => Err(WorkError::Lost { what: what.to_owned() }),
        Err(_) => {
            late.is_late(what);
            Err(WorkError::Overdue { what: what.to_owned(), deadline })
        }
    }
}

/// Starts a named thread that nobody waits for.
pub(crate) fn spawn(what: &str, work: impl FnOnce() + Send + 'static) -> Result<(), WorkError> {
    // Linux shows 15 bytes of a thread's name.
    let name: String = what.chars().filter(|c| *c != '\0').take(15).collect();
    std::thread::Builder::new()
        .name(name)
        .spawn(work)
        .map(drop)
        .map_err(|source| WorkError::Spawn { what: what.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_blocked_call_is_reported_and_not_started_twice() {
        let workers = Workers::new();
        let (release, blocked) = mpsc::channel::<()>();
        let first = workers.run("read 259:1", SHORT, move || blocked.recv().is_ok()).await;
        assert!(matches!(first, Err(WorkError::Overdue { .. })), "{first:?}");
        let second = workers.run("read 259:1", LONG, || true).await;
        assert!(matches!(second, Err(WorkError::Busy { .. })), "{second:?}");
        assert!(workers.run("read 259:2", LONG, || true).await.expect("another key is free"));
        assert_eq!(workers.running().len(), 1);
        release.send(()).expect("the thread waits");
        let deadline = Instant::now() + LONG;
        while !workers.running().is_empty() {
            assert!(Instant::now() < deadline, "the key was never given back");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn work_in_time_is_waited_for_and_work_that_is_overdue_is_not() {
        let workers = Workers::new();
        let (release, blocked) = mpsc::channel::<()>();
        let first = workers.run("mount /pod", LONG, move || blocked.recv().is_ok());
        let second = workers.run("mount /pod", LONG, || true);
        let released = async { release.send(()) };
        let (first, second, _) = tokio::join!(first, second, released);
        assert!(first.expect("it was released") && second.expect("its turn came"));

        let (release, blocked) = mpsc::channel::<()>();
        let first = workers.run("mount /pod", 10 * SHORT, move || blocked.recv().is_ok());
        let impatient = workers.run("mount /pod", SHORT, || true);
        let patient = workers.run("mount /pod", LONG, || true);
        let (first, impatient, patient) = tokio::join!(first, impatient, patient);
        assert!(matches!(first, Err(WorkError::Overdue { .. })), "{first:?}");
        assert!(matches!(impatient, Err(WorkError::Busy { .. })), "its own deadline: {impatient:?}");
        assert!(matches!(patient, Err(WorkError::Busy { .. })), "the first is overdue: {patient:?}");
        drop(release);
    }

    #[tokio::test]
    async fn a_panic_gives_the_key_back_and_no_result() {
        let workers = Workers::new();
        let lost = workers.run("fails", LONG, || panic!("on purpose")).await;
        assert!(matches!(lost, Err(WorkError::Lost { .. })));
        assert_eq!(workers.run("fails", LONG, || 1).await.expect("free again"), 1);
    }

    #[tokio::test]
    async fn work_without_a_key_that_hangs_is_not_begun_for_ever() {
        let what = "hangs on purpose";
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        for _ in 0..MOST_OVERDUE {
            let blocked = Arc::clone(&blocked);
            let late = once(what, SHORT, move || blocked.lock().is_ok_and(|b| b.recv().is_ok())).await;
            assert!(matches!(late, Err(WorkError::Overdue { .. })), "{late:?}");
        }
        let refused = once(what, LONG, || true).await;
        assert!(matches!(refused, Err(WorkError::Busy { .. })), "{refused:?}");
        assert!(once("another name", LONG, || true).await.expect("is free"));
        drop(release);
        let deadline = Instant::now() + LONG;
        while once(what, LONG, || true).await.is_err() {
            assert!(Instant::now() < deadline, "none was ever begun again");
            tokio::task::yield_now().await;
        }
    }
}
