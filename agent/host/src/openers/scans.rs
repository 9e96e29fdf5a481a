//! Searches of the whole host that many callers share, and that one dead server cannot hold up.
//!
//! Comes in: what to search. Goes out: the result of a search that began after the call, or at a moment that
//! the caller names or later.
//!
//! A search of a busy host costs thousands of system calls, whatever it is for. So callers that came before
//! it began share it, and a caller that names the earliest moment it accepts gets the last search that began
//! since. Some of these system calls can block for ever (a file on a server that is gone, the memory map of a
//! process that hangs in the kernel). Each of those has a [`Key`]. When one does not come back, the search
//! that made it is left behind and a new one begins; until the call comes back, the new one gets [`Stuck`]
//! for everything with that key.
//!
//! Always holds: at most one search runs that has not been left behind, and at most one waits for its turn;
//! at most [`MOST_STUCK`] threads hang.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Places;
use crate::name::DevT;
use crate::work::{self, WorkError};

/// How long one call may take before it counts as stuck. None of them waits for a disk that answers.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a caller checks whether a call is stuck.
const TICK: Duration = Duration::from_millis(100);
/// Most calls that are left behind; each costs a thread until it comes back.
const MOST_STUCK: usize = 16;

/// What a call that may block for ever acts on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// Files on a mount, by its number in `mountinfo`.
    Mount(u64),
    /// Mapped files of a file system, by its device number.
    FileSystem(DevT),
    /// The memory map of a process.
    Maps(u32),
    /// A loop device.
    Loop(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(id) => write!(f, "files on mount {id}"),
            Self::FileSystem(dev) => write!(f, "files on file system {dev}"),
            Self::Maps(pid) => write!(f, "memory map of process {pid}"),
            Self::Loop(name) => write!(f, "loop device {name}"),
        }
    }
}

/// An earlier call of the same key has not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stuck {
    since: Instant,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer for {} s", self.since.elapsed().as_secs())
    }
}

/// Keys of calls that were left behind, and since when each has been waiting. All kinds of searches share it.
#[derive(Debug, Clone, Default)]
pub(super) struct StuckCalls(Arc<Mutex<BTreeMap<Key, Instant>>>);

impl StuckCalls {
    fn table(&self) -> MutexGuard<'_, BTreeMap<Key, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One search under way, as it sees itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Looking {
    stuck: StuckCalls,
    at: Arc<Mutex<At>>,
}

#[derive(Debug, Default)]
struct At {
    call: Option<(Key, Instant)>,
    left_behind: bool,
}

impl Looking {
    fn at(&self) -> MutexGuard<'_, At> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call that may block for ever.
    ///
    /// # Errors
    /// [`Stuck`], without making the call, where an earlier one of the same key has not come back.
    pub(super) fn call<T>(&self, key: &Key, work: impl FnOnce() -> T) -> Result<T, Stuck> {
        if let Some(since) = self.stuck.table().get(key) {
            return Err(Stuck { since: *since });
        }
        self.at().call = Some((key.clone(), Instant::now()));
        let result = work();
        let mut at = self.at();
        if at.call.take().is_some() && at.left_behind {
            self.stuck.table().remove(key);
        }
        Ok(result)
    }

    /// Whether nobody waits for this search any more.
    pub(super) fn is_left_behind(&self) -> bool {
        self.at().left_behind
    }

    /// Leaves this search behind if its call is stuck; true if it is left behind now.
    fn leave_if_stuck(&self) -> bool {
        let mut at = self.at();
        let At { call, left_behind } = &mut *at;
        if let Some((key, since)) = call
            && !*left_behind
            && since.elapsed() >= PATIENCE
        {
            let mut table = self.stuck.table();
            if table.len() < MOST_STUCK {
                table.insert(key.clone(), *since);
                *left_behind = true;
            }
        }
        *left_behind
    }
}

type Found<T> = watch::Receiver<Option<Arc<T>>>;

/// Searches of one kind.
#[derive(Debug)]
pub(super) struct Scans<T> {
    scan: fn(&Places, &Looking) -> T,
    what: &'static str,
    stuck: StuckCalls,
    turn: Arc<Turn<T>>,
}

impl<T> Clone for Scans<T> {
    fn clone(&self) -> Self {
        Self { scan: self.scan, what: self.what, stuck: self.stuck.clone(), turn: Arc::clone(&self.turn) }
    }
}

#[derive(Debug)]
struct Turn<T> {
    state: Mutex<State<T>>,
    free: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// The search that has not begun yet: callers can still join it.
    pending: Option<(Found<T>, Looking)>,
    /// The search that runs.
    running: Option<Looking>,
    /// The last search that ended, and when it began.
    last: Option<(Instant, Arc<T>)>,
}

impl<T> Turn<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a result, unless a search that began later has ended first.
    fn keep(&self, began: Instant, found: &Arc<T>) {
        let mut state = self.state();
        if state.last.as_ref().is_none_or(|(last, _)| *last < began) {
            state.last = Some((began, Arc::clone(found)));
        }
    }
}

impl<T: Send + Sync + 'static> Scans<T> {
    pub(super) fn new(what: &'static str, stuck: &StuckCalls, scan: fn(&Places, &Looking) -> T) -> Self {
        let state = Mutex::new(State { pending: None, running: None, last: None });
        Self { scan, what, stuck: stuck.clone(), turn: Arc::new(Turn { state, free: Condvar::new() }) }
    }

    /// The result of a search that begins after this call.
    pub(super) async fn fresh(&self, places: &Places, deadline: Duration) -> Result<Arc<T>, WorkError> {
        let lost = || WorkError::Lost { what: self.what.to_owned() };
        let end = tokio::time::Instant::now() + deadline;
        loop {
            let (mut found, looking) = self.join_or_start(places)?;
            loop {
                let left = end.saturating_duration_since(tokio::time::Instant::now());
                match tokio::time::timeout(left.min(TICK), found.wait_for(Option::is_some)).await {
                    Ok(Ok(result)) => return result.clone().ok_or_else(lost),
                    Ok(Err(_)) => return Err(lost()),
                    Err(_) if left <= TICK => {
                        return Err(WorkError::Overdue { what: self.what.to_owned(), deadline });
                    }
                    Err(_) => self.overtake(),
                }
                if looking.is_left_behind() {
                    break;
                }
            }
        }
    }

    /// The result of a search that began at `since` or later.
    pub(super) async fn since(
        &self,
        places: &Places,
        since: Instant,
        deadline: Duration,
    ) -> Result<Arc<T>, WorkError> {
        let last = self.turn.state().last.clone();
        match last {
            Some((began, found)) if began >= since => Ok(found),
            _ => self.fresh(places, deadline).await,
        }
    }

    /// As [`Scans::fresh`], on the calling thread and shared with nobody.
    pub(super) fn alone(&self, places: &Places) -> T {
        (self.scan)(places, &Looking { stuck: self.stuck.clone(), at: Arc::default() })
    }

    fn overtake(&self) {
        let mut state = self.turn.state();
        if state.running.as_ref().is_some_and(Looking::leave_if_stuck) {
            state.running = None;
            self.turn.free.notify_all();
        }
    }

    fn join_or_start(&self, places: &Places) -> Result<(Found<T>, Looking), WorkError> {
        let mut state = self.turn.state();
        if let Some(pending) = &state.pending {
            return Ok(pending.clone());
        }
        let (sender, receiver) = watch::channel(None);
        let looking = Looking { stuck: self.stuck.clone(), at: Arc::default() };
        let (scans, places, own) = (self.clone(), places.clone(), looking.clone());
        work::spawn(self.what, move || {
            let _running = Running::begin(&scans.turn, &own);
            let began = Instant::now();
            let found = Arc::new((scans.scan)(&places, &own));
            scans.turn.keep(began, &found);
            sender.send_replace(Some(found));
        })?;
        state.pending = Some((receiver.clone(), looking.clone()));
        Ok((receiver, looking))
    }
}

/// While it lives, no other search of its kind begins, unless this one is left behind.
struct Running<'a, T> {
    turn: &'a Turn<T>,
    looking: &'a Looking,
}

impl<'a, T> Running<'a, T> {
    fn begin(turn: &'a Turn<T>, looking: &'a Looking) -> Self {
        let mut state = turn.state();
        while state.running.is_some() {
            state = turn.free.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // From here on it is too late to join.
        state.pending = None;
        state.running = Some(looking.clone());
        Self { turn, looking }
    }
}

impl<T> Drop for Running<'_, T> {
    fn drop(&mut self) {
        let mut state = self.turn.state();
        // Once left behind, the turn belongs to another search.
        if !self.looking.is_left_behind() {
            state.running = None;
            self.turn.free.notify_all();
        }
    }
}
