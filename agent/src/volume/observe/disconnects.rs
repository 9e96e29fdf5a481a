//! Connections that broke and came back between two observations.
//!
//! Comes in: events of the kernel. Goes out: whether the connection of a controller has broken lately.
//!
//! The kernel sends no event when a controller loses its connection, and may have a new one before anybody
//! reads its state. Whatever was on its way is repeated on the new connection, so the controller is live and
//! its writes succeed; but the target may land the first copies later. What the kernel does send (since 5.18)
//! is `connected`, each time: every one after the first, for the same controller, means that a connection had
//! broken. For as long as a target may hold writes ([`LATELY`]), the deletion of such a controller does not
//! prove that nothing is on its way.
//!
//! The kernel makes a controller live before it sends `connected`, for as long as a command to the target takes. So one that is
//! seen without its connection has broken from then on, whatever is heard later. But a reading takes time: what was heard since
//! it began may be newer than what it shows, and is not held against it.
//!
//! Silence proves nothing: a kernel before 5.18 does not send `connected`, and no event arrives in a wrong
//! network namespace. So a connection counts as unbroken only in two cases: its making was seen (`add`, then
//! one `connected`), or the controller existed before this process and events were proven to arrive
//! ([`Disconnects::events_arrive`]).
//!
//! Of a whole volume it is known, too, whether anything of it has broken or gone ([`Disconnects::show_unbroken`]): a
//! controller that was removed by anybody but this agent, or whose deletion was no proof, is such a loss.
//!
//! Always holds: what could not be received counts as a break. A controller is judged only once its `remove`
//! has arrived: the kernel sends events in order, so every earlier one has arrived too. A loss of which nobody can tell
//! whose it was counts against all volumes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cleat_host::sysfs::Controller;
use cleat_host::uevents::{Action, DeviceEvent, DeviceKind, HostEvent, Uevents};
use cleat_host::{ControllerName, SubsystemNqn};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::name::Epoch;

/// How long a break counts: the longest drain bound that a controller accepts (`--drain-bound`).
const LATELY: Duration = Duration::from_secs(300);
/// How long to wait for the event of a removal. The kernel sends it before the controller has left sysfs, so
/// it is in the socket by then.
const REMOVAL: Duration = Duration::from_secs(2);

/// What events showed of this node's connections. Cheap to clone; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Disconnects(Arc<Listening>);

#[derive(Debug, Default)]
struct Listening {
    heard: Mutex<Heard>,
    /// Signals that a controller was removed, or that no more events come.
    news: Notify,
}

/// How many events there had been when a reading of sysfs began.
#[derive(Debug, Clone, Copy)]
pub(in crate::volume) struct ReadingBegan(u64);

#[derive(Debug, Default)]
struct Heard {
    /// How many events of controllers there were.
    events: u64,
    controllers: HashMap<String, Name>,
    /// When events were lost: any connection may have broken then.
    overrun: Option<Instant>,
    /// Whether no events come any more.
    deaf: bool,
    /// Whether events arrive and this kernel sends `connected`.
    arrive: bool,
    /// Since when they have been received.
    since: Option<Instant>,
    /// Controllers that this agent is deleting.
    deleting: HashSet<String>,
    /// When something of a subsystem broke or went, by its NQN.
    losses: HashMap<String, Instant>,
    /// The same, of one that nobody knows.
    lost: Option<Instant>,
    /// Grants whose connections were shown to be those of the process before, by the subsystem's NQN.
    carried: HashMap<String, Epoch>,
}

/// A name that controllers have, one after the other.
#[derive(Debug, Default)]
struct Name {
    life: Life,
    /// The controller of that name before, which was removed.
    last: Life,
    removals: u64,
}

/// One controller, from its `add` to its `remove`.
#[derive(Debug, Default)]
struct Life {
    /// Which event began it.
    since: u64,
    /// Whether its `add` arrived.
    added: bool,
    /// Which event said first that it has connected.
    connected: Option<u64>,
    broke: Option<Instant>,
    /// NQNs that readings of sysfs have shown under its name: one, but for a name that was given away meanwhile.
    subsystems: BTreeSet<String>,
}

/// A controller that is about to be deleted. Dropped before that was proof that nothing is on its way, it is a loss.
#[derive(Debug)]
pub(in crate::volume) struct Removal {
    of: Disconnects,
    name: String,
    subsystem: String,
    removals: u64,
    proven: AtomicBool,
}

impl Drop for Removal {
    fn drop(&mut self) {
        let mut heard = self.of.lock();
        heard.deleting.remove(&self.name);
        if !*self.proven.get_mut() {
            heard.loses(&BTreeSet::from([self.subsystem.clone()]));
        }
    }
}

impl Disconnects {
    /// Receives events until the handle is dropped. Where there are none to receive, every connection may
    /// have broken.
    pub(crate) fn listen(&self, uevents: Option<&Uevents>) -> AbortOnDropHandle<()> {
        let (heard, listener) = (self.clone(), uevents.map(Uevents::listen));
        heard.lock().since.get_or_insert_with(Instant::now);
        AbortOnDropHandle::new(tokio::spawn(async move {
            if let Some(mut listener) = listener {
                while let Some(event) = listener.next().await {
                    heard.take(&event);
                }
            }
            heard.lock().deaf = true;
            heard.0.news.notify_waiters();
        }))
    }

    /// States that events were proven to arrive here and that this kernel sends `connected`. What broke
    /// before this process began to listen is not this process's to judge: the controller had no report of
    /// this agent then.
    pub fn events_arrive(&self) {
        self.lock().arrive = true;
    }

    /// Call it before a controller is reset: what was on its way then may land late, whether or not the
    /// kernel says that it has connected again.
    pub(in crate::volume) fn about_to_reset(&self, controller: &str) {
        self.lock().controllers.entry(controller.to_owned()).or_default().life.broke = Some(Instant::now());
    }

    /// Call it before a reading of sysfs.
    pub(in crate::volume) fn reading_begins(&self) -> ReadingBegan {
        ReadingBegan(self.lock().events)
    }

    /// Takes note of whose controllers there are, as a reading of sysfs shows them, and of those that have no connection.
    pub(in crate::volume) fn belong(&self, began: ReadingBegan, controllers: &[Controller]) {
        let mut heard = self.lock();
        for controller in controllers {
            let Some(subsystem) = &controller.subsystem_nqn else { continue };
            let name = heard.controllers.entry(controller.name.to_string()).or_default();
            // The `add` of one that is seen for the first time may be on its way: it may never have had one.
            let before = |event: u64| event <= began.0;
            let known = name.life.connected.is_some_and(before)
                || (!name.life.added && !name.life.subsystems.is_empty());
            let had_one = known && before(name.life.since);
            if !name.life.subsystems.contains(subsystem) {
                name.life.subsystems.insert(subsystem.clone());
            }
            // Of one that is going its removal will say what it means.
            if had_one && !controller.state.is_live() && !controller.state.is_going() {
                name.life.broke = Some(Instant::now());
                heard.loses(&BTreeSet::from([subsystem.clone()]));
            }
        }
    }

    /// States that the connections of this grant were shown to be those of the process before, which had shown them to be
    /// unbroken, while this one was receiving events already.
    pub(in crate::volume) fn carry(&self, subsystem: &SubsystemNqn, epoch: Epoch) {
        self.lock().carried.insert(subsystem.as_str().to_owned(), epoch);
    }

    /// Whether it is shown that nothing of a subsystem, which has these controllers, has broken or gone since the grant of
    /// this epoch came to this node, or for as long as a target may hold writes. `begun_here`: it came in this process's time.
    pub(in crate::volume) fn show_unbroken<'a>(
        &self,
        subsystem: &SubsystemNqn,
        epoch: Epoch,
        begun_here: bool,
        mut controllers: impl Iterator<Item = &'a ControllerName>,
    ) -> bool {
        let heard = self.lock();
        let Some(since) = heard.since.filter(|_| heard.arrive && !heard.deaf) else { return false };
        let losses = [heard.overrun, heard.lost, heard.losses.get(subsystem.as_str()).copied()];
        if losses.into_iter().any(is_recent) {
            return false;
        }
        let known_before = since.elapsed() >= LATELY || heard.carried.get(subsystem.as_str()) == Some(&epoch);
        controllers.all(|name| match heard.controllers.get(name.as_str()).map(|name| &name.life) {
            Some(life) if is_recent(life.broke) => false,
            Some(life) if life.added => life.connected.is_some() && (begun_here || known_before),
            _ => known_before,
        })
    }

    /// Call it before a controller of this subsystem is deleted.
    pub(in crate::volume) fn about_to_delete(&self, controller: &str, subsystem: &SubsystemNqn) -> Removal {
        let mut heard = self.lock();
        heard.deleting.insert(controller.to_owned());
        let removals = heard.controllers.get(controller).map_or(0, |name| name.removals);
        let (name, subsystem) = (controller.to_owned(), subsystem.as_str().to_owned());
        Removal { of: self.clone(), name, subsystem, removals, proven: AtomicBool::new(false) }
    }

    /// Why the deletion of this controller does not prove that nothing is on its way; `None` if it does. Call
    /// it once the controller has gone.
    pub(in crate::volume) async fn broken_before(&self, removal: &Removal) -> Option<&'static str> {
        let until = Instant::now() + REMOVAL;
        loop {
            let news = self.0.news.notified();
            tokio::pin!(news);
            // From here on no signal is missed.
            news.as_mut().enable();
            if let Some(judged) = self.lock().judge(removal) {
                removal.proven.store(judged.is_none(), Ordering::Relaxed);
                return judged;
            }
            if timeout_at(until, news).await.is_err() {
                return Some(
                    "the kernel's event of its removal was not heard, so its connection may have broken",
                );
            }
        }
    }

    fn take(&self, event: &HostEvent) {
        match event {
            HostEvent::Overrun => self.lock().overrun = Some(Instant::now()),
            HostEvent::Device(device) if device.kind == DeviceKind::NvmeController => {
                self.lock().take(device);
                if device.action == Action::Remove {
                    self.0.news.notify_waiters();
                }
            }
            HostEvent::Device(_) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        // Each change under this lock is whole by itself.
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn take(&mut self, device: &DeviceEvent) {
        self.events += 1;
        let since = self.events;
        let name = self.controllers.entry(device.name.clone()).or_default();
        match device.action {
            Action::Add => name.life = Life { since, added: true, ..Life::default() },
            Action::Remove => {
                name.last = std::mem::replace(&mut name.life, Life { since, ..Life::default() });
                name.removals += 1;
                // One that was made and never connected has carried nothing.
                let carried = name.last.connected.is_some() || !name.last.added;
                let whose = name.last.subsystems.clone();
                if carried && !self.deleting.contains(&device.name) {
                    self.loses(&whose);
                }
            }
            Action::Change | Action::Other if device.nvme_event.as_deref() == Some("connected") => {
                self.arrive = true;
                // A controller that existed before this process had its first connection then.
                let first = name.life.added && name.life.connected.is_none();
                name.life.connected.get_or_insert(since);
                if !first {
                    name.life.broke = Some(Instant::now());
                    let whose = name.life.subsystems.clone();
                    self.loses(&whose);
                }
            }
            Action::Change | Action::Other => {}
        }
    }

    /// Something broke or went that is of one of these subsystems.
    fn loses(&mut self, subsystems: &BTreeSet<String>) {
        let now = Instant::now();
        self.losses.retain(|_, at| is_recent(Some(*at)));
        if subsystems.is_empty() {
            self.lost = Some(now);
        }
        self.losses.extend(subsystems.iter().map(|subsystem| (subsystem.clone(), now)));
    }

    /// `None` while its removal has not arrived.
    fn judge(&self, removal: &Removal) -> Option<Option<&'static str>> {
        if self.deaf {
            return Some(Some(
                "the agent cannot hear the kernel's events, so its connection may have broken",
            ));
        }
        let name = self.controllers.get(&removal.name).filter(|name| name.removals > removal.removals)?;
        Some(self.broken(&name.last))
    }

    fn broken(&self, life: &Life) -> Option<&'static str> {
        if is_recent(life.broke) {
            return Some("its connection had broken shortly before");
        }
        if is_recent(self.overrun) {
            return Some("events were lost shortly before, so its connection may have broken");
        }
        if life.added && life.connected.is_none() {
            return Some(
                "this kernel does not say when a controller connects, so its connection may have broken",
            );
        }
        if !life.added && !self.arrive {
            return Some(
                "it was there before this agent, which has no proof that the kernel's events arrive, so its \
                 connection may have broken",
            );
        }
        None
    }
}

/// A target may still hold what was on its way at that moment.
fn is_recent(at: Option<Instant>) -> bool {
    at.is_some_and(|at| at.elapsed() < LATELY)
}

#[cfg(test)]
#[path = "disconnects_tests.rs"]
mod tests;
