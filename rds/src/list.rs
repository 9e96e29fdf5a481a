//! The list of disks, shared: one request serves every caller that can use its answer.
//!
//! In come callers with a priority and how fresh an answer they need; out goes an [`Inventory`]. Callers whose
//! need one request can meet share it, and a recent answer serves those that take one. What always holds: a
//! caller never gets a list that was begun before it called (if it asked for `Now`), nor one that was begun
//! before our latest write had ended.

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

/// How often an empty list is asked for again, and after what pause.
const AGAIN: u32 = 2;
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// How old an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Begun after the call.
    Now,
    /// Begun at most so long before the call, and after our latest write.
    Within(Duration),
}

type ListAnswer = Result<Arc<Inventory>, RdsError>;

/// Asks for the list.
#[derive(Debug)]
pub(super) struct Lister {
    http: Arc<Http>,
    naming: Naming,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many of our writes have begun or ended. A list counts only while this stands where it stood.
    writes: u64,
    latest: Option<(Begun, Arc<Inventory>)>,
    /// The number of each volume that a list has shown and that was not denied since.
    numbers: BTreeMap<VolumeId, String>,
    flights: Vec<Flight>,
    flights_ever: u64,
}

/// When a request was sent.
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

    /// Marks that a write is about to be sent, or has just ended: no list begun before serves anybody after.
    pub(super) fn wrote(&self) {
        self.lock().writes += 1;
    }

    /// The number of a volume's disk, if a list has shown it and it was not denied since.
    pub(super) fn number(&self, id: &VolumeId) -> Option<String> {
        self.lock().numbers.get(id).cloned()
    }

    /// The RDS has denied the volume.
    pub(super) fn forget(&self, id: &VolumeId) {
        self.lock().numbers.remove(id);
    }

    /// The list.
    pub(super) async fn get(self: &Arc<Self>, priority: Priority, freshness: Freshness) -> ListAnswer {
        let mut answer = match self.serve_or_join(priority, freshness) {
            Ok(inventory) => return Ok(inventory),
            Err(answer) => answer,
        };
        let lost = || RdsError::unreachable("list disks", Way::Lost, "the request's task has ended");
        let answered = answer.wait_for(Option::is_some).await.map_err(|_| lost())?;
        answered.clone().unwrap_or_else(|| Err(lost()))
    }

    /// Serves from the latest answer, or joins a flight, or starts one.
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
        // One that has not begun serves everybody, unless it stands further back in the queue than we would.
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
        // A task of its own: whoever asked first may give up, and the others still wait.
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

    /// The items. An empty list is never believed: there is at least the disk that the volumes' files are on.
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

/// Takes a flight off the board however it ends, so that nobody joins one that will not answer.
struct Landing<'a> {
    lister: &'a Lister,
    number: u64,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.lister.lock().flights.retain(|flight| flight.number != self.number);
    }
}
