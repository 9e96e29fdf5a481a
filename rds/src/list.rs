//! The list of disks, shared: one request serves every caller that can use its answer.
//!
//! Comes in: callers with a priority and how fresh an answer they need. Goes out: an [`Inventory`]. Callers
//! whose needs one request meets share it, and a recent answer serves those that accept one. Always holds: a
//! caller never gets a list that began before its call (if it asked for `Now`), nor one that began before our
//! latest write had ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cleat_ids::VolumeId;
use reqwest::Method;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::error::{RdsError, Way};
use super::gate::{Priority, Turn};
use super::http::{Http, Request};
use super::metrics::{self, Op};
use super::volume::{Inventory, Naming, PROPERTIES};

/// How often an empty list is requested again, and after which pause.
const AGAIN: u32 = 2;
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// How old an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// From a request that began after the call.
    Now,
    /// From a request that began at most this long before the call, and after our latest write.
    Within(Duration),
}

type ListAnswer = Result<Arc<Inventory>, RdsError>;

/// Requests the list and shares its answers.
#[derive(Debug)]
pub(super) struct Lister {
    http: Arc<Http>,
    naming: Naming,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many of our writes have begun or ended. A list counts only while this number stays the same.
    writes: u64,
    latest: Option<(Begun, Arc<Inventory>)>,
    /// The item number of each volume that a list has shown and that was not denied since.
    numbers: BTreeMap<VolumeId, String>,
    flights: Vec<Flight>,
    flights_ever: u64,
}

/// When a request was sent, and after how many writes.
#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Instant,
    writes: u64,
}

/// A request that waits for its turn or for its answer.
#[derive(Debug)]
struct Flight {
    number: u64,
    priority: Priority,
    begun: Option<Begun>,
    answer: watch::Receiver<Option<ListAnswer>>,
}

impl Lister {
    pub(super) fn new(http: Arc<Http>, naming: Naming) -> Self {
        Self { http, naming, state: Mutex::default() }
    }

    /// Marks that a write is about to be sent, or has just ended: no list from before serves anybody after
    /// it.
    pub(super) fn wrote(&self) {
        self.lock().writes += 1;
    }

    /// The item number of a volume's disk, if a list has shown it and it was not denied since.
    pub(super) fn number(&self, id: &VolumeId) -> Option<String> {
        self.lock().numbers.get(id).cloned()
    }

    /// Notes that the RDS has denied the volume.
    pub(super) fn forget(&self, id: &VolumeId) {
        self.lock().numbers.remove(id);
    }

    /// The list, fresh enough for the caller.
    pub(super) async fn get(self: &Arc<Self>, priority: Priority, freshness: Freshness) -> ListAnswer {
        let mut answer = match self.serve_or_join(priority, freshness) {
            Ok(inventory) => return Ok(inventory),
            Err(answer) => answer,
        };
        let lost = || RdsError::unreachable("list disks", Way::Lost, "the request's task has ended");
        let answered = answer.wait_for(Option::is_some).await.map_err(|_| lost())?;
        answered.clone().unwrap_or_else(|| Err(lost()))
    }

    /// Serves from the latest answer, or joins a request under way, or starts one.
    fn serve_or_join(
        self: &Arc<Self>,
        priority: Priority,
        freshness: Freshness,
    ) -> Result<Arc<Inventory>, watch::Receiver<Option<ListAnswer>>> {
        let now = Instant::now();
        let mut state = self.lock();
        let writes = state.writes;
        let usable = |begun: Begun| match freshness {
            Freshness::Now => false,
            Freshness::Within(age) => begun.writes == writes && now.duration_since(begun.at) <= age,
        };
        if let Some((_, inventory)) = state.latest.as_ref().filter(|(begun, _)| usable(*begun)) {
            return Ok(Arc::clone(inventory));
        }
        // A request that has not begun serves everybody, unless ours would stand further ahead in the queue.
        let joined = state.flights.iter().find(|flight| match flight.begun {
            None => flight.priority <= priority,
            Some(begun) => usable(begun),
        });
        if let Some(flight) = joined {
            return Err(flight.answer.clone());
        }
        let (tell, answer) = watch::channel(None);
        state.flights_ever += 1;
        let number = state.flights_ever;
        state.flights.push(Flight { number, priority, begun: None, answer: answer.clone() });
        drop(state);
        // In a task of its own: the first caller may give up while the others still wait.
        tokio::spawn(Arc::clone(self).fly(number, priority, tell));
        Err(answer)
    }

    async fn fly(self: Arc<Self>, number: u64, priority: Priority, tell: watch::Sender<Option<ListAnswer>>) {
        let landing = Landing { lister: &self, number };
        let what = "list disks";
        let answer = match self.http.turn(priority, Op::ListDisks, what).await {
            Err(error) => Err(error),
            Ok(turn) => {
                let begun = self.begin(number);
                let request = Request {
                    op: Op::ListDisks,
                    method: Method::GET,
                    path: "disk".to_owned(),
                    query: vec![(".proplist", PROPERTIES.to_owned())],
                    body: None,
                    what: what.to_owned(),
                };
                let answer = self.whole_list(&turn, &request).await;
                let answer = answer.and_then(|items| Inventory::parse(&items, &self.naming).map(Arc::new));
                if let Ok(inventory) = &answer {
                    self.keep(begun, inventory);
                }
                answer
            }
        };
        drop(landing);
        tell.send_replace(Some(answer));
    }

    /// The items. An empty list is never believed: at least the disk with the volumes' files has to be there.
    async fn whole_list(&self, turn: &Turn, request: &Request) -> Result<Vec<Value>, RdsError> {
        for again in 0..=AGAIN {
            match self.http.send(turn, request).await? {
                Value::Array(items) if !items.is_empty() => return Ok(items),
                Value::Array(_) => {
                    metrics::doubtful_list();
                    tracing::warn!(again, "the RDS's list of disks is empty, which is impossible");
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                _ => return Err(RdsError::malformed(&request.what, "it is not a list")),
            }
        }
        let problem = "it is empty, and not even the disk that the volumes' files are on is in it";
        Err(RdsError::malformed(&request.what, problem))
    }

    fn begin(&self, number: u64) -> Begun {
        let mut state = self.lock();
        let begun = Begun { at: Instant::now(), writes: state.writes };
        if let Some(flight) = state.flights.iter_mut().find(|flight| flight.number == number) {
            flight.begun = Some(begun);
        }
        begun
    }

    fn keep(&self, begun: Begun, inventory: &Arc<Inventory>) {
        let mut state = self.lock();
        state.numbers.extend(inventory.volumes().map(|volume| (volume.id.clone(), volume.item.clone())));
        if state.latest.as_ref().is_none_or(|(latest, _)| latest.at <= begun.at) {
            state.latest = Some((begun, Arc::clone(inventory)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change under this lock is whole by itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a request off the board however it ends, so that nobody joins one that will not answer.
struct Landing<'a> {
    lister: &'a Lister,
    number: u64,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.lister.lock().flights.retain(|flight| flight.number != self.number);
    }
}
