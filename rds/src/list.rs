//! The list of disks, shared: one request serves every caller that can use its answer.
//!
//! Comes in: callers with a priority and how fresh an answer they need. Goes out: an [`Inventory`]. Callers
//! whose needs one request meets share it, and a recent answer serves those that accept one. Where there are so
//! many disks that a list is long, who wants to know of one volume has that one asked for, with those of others
//! who wait. Always holds: a caller never gets an answer that began before its call (if it asked for `Now`), nor
//! one that began before our latest write had ended; that a question has found nothing proves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cleat_ids::VolumeId;
use reqwest::Method;
use serde_json::{Map, Value};
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
/// A list of so many disks costs hardly more than a question about one, and serves everybody.
const SHORT_LIST: usize = 256;
/// So many volumes are asked for with one request.
const ASKED_AT_ONCE: usize = 64;
/// More items are read where that keeps nobody waiting.
const MANY_ITEMS: usize = 4_096;

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
    /// Questions that wait for their turn.
    questions: Vec<Question>,
    flights_ever: u64,
}

/// A request for some volumes alone.
#[derive(Debug)]
struct Question {
    number: u64,
    priority: Priority,
    about: BTreeSet<VolumeId>,
    answer: watch::Receiver<Option<ListAnswer>>,
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
        match self.serve_or_join(priority, freshness) {
            Ok(inventory) => Ok(inventory),
            Err(answer) => Self::answered(answer).await,
        }
    }

    /// What the RDS says of one volume and perhaps of others, asked for from now on; `None`: the list says it as soon, or
    /// the RDS does not take the question.
    pub(super) async fn ask(
        self: &Arc<Self>,
        id: &VolumeId,
        priority: Priority,
        freshness: Freshness,
    ) -> Result<Option<Arc<Inventory>>, RdsError> {
        let Some(answer) = self.ask_or_join(id, priority, freshness) else { return Ok(None) };
        match Self::answered(answer).await {
            Ok(inventory) => Ok(Some(inventory)),
            Err(RdsError::Refused { .. } | RdsError::NotFound { .. } | RdsError::Malformed { .. }) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn answered(mut answer: watch::Receiver<Option<ListAnswer>>) -> ListAnswer {
        let lost = || RdsError::unreachable("list disks", Way::Lost, "the request's task has ended");
        let answered = answer.wait_for(Option::is_some).await.map_err(|_| lost())?;
        answered.clone().unwrap_or_else(|| Err(lost()))
    }

    fn ask_or_join(
        self: &Arc<Self>,
        id: &VolumeId,
        priority: Priority,
        freshness: Freshness,
    ) -> Option<watch::Receiver<Option<ListAnswer>>> {
        let now = Instant::now();
        let mut state = self.lock();
        let (begun, list) = state.latest.as_ref()?;
        let is_fresh = match freshness {
            Freshness::Now => false,
            Freshness::Within(age) => begun.writes == state.writes && now.duration_since(begun.at) <= age,
        };
        if is_fresh || list.disks() <= SHORT_LIST {
            return None;
        }
        // One that has not begun serves everybody who does not stand further ahead in the queue.
        let may_join = |one: &&mut Question| one.priority <= priority && one.about.len() < ASKED_AT_ONCE;
        if let Some(question) = state.questions.iter_mut().find(may_join) {
            question.about.insert(id.clone());
            return Some(question.answer.clone());
        }
        let (tell, answer) = watch::channel(None);
        state.flights_ever += 1;
        let number = state.flights_ever;
        let about = BTreeSet::from([id.clone()]);
        state.questions.push(Question { number, priority, about, answer: answer.clone() });
        drop(state);
        // In a task of its own: the first caller may give up while the others still wait.
        tokio::spawn(Arc::clone(self).inquire(number, priority, tell));
        Some(answer)
    }

    async fn inquire(
        self: Arc<Self>,
        number: u64,
        priority: Priority,
        tell: watch::Sender<Option<ListAnswer>>,
    ) {
        let landing = Landing { lister: &self, number };
        let answer = match self.http.turn(priority, Op::ListDisks, "look for volumes").await {
            Err(error) => Err(error),
            Ok(turn) => {
                let request = question(&self.begin_question(number));
                let answer = self.http.send(&turn, &request).await;
                drop(turn);
                let items = answer.and_then(|answer| match answer {
                    Value::Array(items) => Ok(items),
                    _ => Err(RdsError::malformed(&request.what, "it is not a list")),
                });
                items.and_then(|items| Inventory::parse(&items, &self.naming).map(Arc::new))
            }
        };
        if let Ok(inventory) = &answer {
            self.lock().number(inventory);
        }
        drop(landing);
        tell.send_replace(Some(answer));
    }

    /// From here on nobody joins it.
    fn begin_question(&self, number: u64) -> BTreeSet<VolumeId> {
        let mut state = self.lock();
        let begun = state.questions.iter().position(|question| question.number == number);
        begun.map(|at| state.questions.remove(at).about).unwrap_or_default()
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
                match self.whole_list(turn, priority, &request).await {
                    Ok(items) => self.inventory(items).await.inspect(|inventory| self.keep(begun, inventory)),
                    Err(error) => Err(error),
                }
            }
        };
        drop(landing);
        tell.send_replace(Some(answer));
    }

    async fn inventory(&self, items: Vec<Value>) -> ListAnswer {
        if items.len() <= MANY_ITEMS {
            return Inventory::parse(&items, &self.naming).map(Arc::new);
        }
        let naming = self.naming.clone();
        let reading = tokio::task::spawn_blocking(move || Inventory::parse(&items, &naming).map(Arc::new));
        reading.await.map_err(|error| RdsError::unreachable("list disks", Way::Lost, error))?
    }

    /// The items. An empty list is never believed: at least the disk with the volumes' files has to be there.
    async fn whole_list(
        &self,
        turn: Turn,
        priority: Priority,
        request: &Request,
    ) -> Result<Vec<Value>, RdsError> {
        let mut turn = Some(turn);
        for again in 0..=AGAIN {
            let turn = match turn.take() {
                Some(turn) => turn,
                None => self.http.turn(priority, request.op, &request.what).await?,
            };
            match self.http.send_for_long(turn, request).await? {
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
        state.number(inventory);
        if state.latest.as_ref().is_none_or(|(latest, _)| latest.at <= begun.at) {
            state.latest = Some((begun, Arc::clone(inventory)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change under this lock is whole by itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&mut self, inventory: &Inventory) {
        self.numbers.extend(inventory.volumes().map(|volume| (volume.id.clone(), volume.item.clone())));
    }
}

/// Asks for some volumes by their slots: one by a filter of a GET, several by a query of the console's `print`.
fn question(about: &BTreeSet<VolumeId>) -> Request {
    let what = "look for volumes".to_owned();
    let mut slots = about.iter();
    if let (Some(slot), None) = (slots.next(), slots.next()) {
        let query = vec![("slot", slot.to_string()), (".proplist", PROPERTIES.to_owned())];
        let (method, path, body) = (Method::GET, "disk".to_owned(), None);
        return Request { op: Op::ListDisks, method, path, query, body, what };
    }
    let mut words: Vec<Value> = Vec::with_capacity(about.len() * 2);
    for slot in about {
        words.push(format!("slot={slot}").into());
        // Either of this one and of all before it.
        words.extend((words.len() > 1).then(|| Value::from("#|")));
    }
    let body = Map::from_iter([
        (".proplist".to_owned(), Value::from(PROPERTIES)),
        (".query".to_owned(), Value::from(words)),
    ]);
    let (method, path) = (Method::POST, "disk/print".to_owned());
    Request { op: Op::ListDisks, method, path, query: vec![], body: Some(body), what }
}

/// Takes a request off the board however it ends, so that nobody joins one that will not answer.
struct Landing<'a> {
    lister: &'a Lister,
    number: u64,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut state = self.lister.lock();
        state.flights.retain(|flight| flight.number != self.number);
        state.questions.retain(|question| question.number != self.number);
    }
}
