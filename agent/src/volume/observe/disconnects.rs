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
//! Silence proves nothing: a kernel before 5.18 does not send `connected`, and no event arrives in a wrong
//! network namespace. So a connection counts as unbroken only in two cases: its making was seen (`add`, then
//! one `connected`), or the controller existed before this process and events were proven to arrive
//! ([`Disconnects::events_arrive`]).
//!
//! Always holds: what could not be received counts as a break. A controller is judged only once its `remove`
//! has arrived: the kernel sends events in order, so every earlier one has arrived too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cleat_host::uevents::{Action, DeviceEvent, DeviceKind, HostEvent, Uevents};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

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

#[derive(Debug, Default)]
struct Heard {
    controllers: HashMap<String, Name>,
    /// When events were lost: any connection may have broken then.
    overrun: Option<Instant>,
    /// Whether no events come any more.
    deaf: bool,
    /// Whether events arrive and this kernel sends `connected`.
    arrive: bool,
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
    /// Whether its `add` arrived.
    added: bool,
    connected: bool,
    broke: Option<Instant>,
}

/// A controller that is about to be deleted.
#[derive(Debug)]
pub(in crate::volume) struct Removal {
    name: String,
    removals: u64,
}

impl Disconnects {
    /// Receives events until the handle is dropped. Where there are none to receive, every connection may
    /// have broken.
    pub(crate) fn listen(&self, uevents: Option<&Uevents>) -> AbortOnDropHandle<()> {
        let (heard, listener) = (self.clone(), uevents.map(Uevents::listen));
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

    /// Call it before a controller is deleted.
    pub(in crate::volume) fn about_to_delete(&self, controller: &str) -> Removal {
        let removals = self.lock().controllers.get(controller).map_or(0, |name| name.removals);
        Removal { name: controller.to_owned(), removals }
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
        let name = self.controllers.entry(device.name.clone()).or_default();
        match device.action {
            Action::Add => name.life = Life { added: true, ..Life::default() },
            Action::Remove => {
                name.last = std::mem::take(&mut name.life);
                name.removals += 1;
            }
            Action::Change | Action::Other if device.nvme_event.as_deref() == Some("connected") => {
                // A controller that existed before this process had its first connection then.
                if std::mem::replace(&mut name.life.connected, true) || !name.life.added {
                    name.life.broke = Some(Instant::now());
                }
                self.arrive = true;
            }
            Action::Change | Action::Other => {}
        }
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
        let recent = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < LATELY);
        if recent(life.broke) {
            return Some("its connection had broken shortly before");
        }
        if recent(self.overrun) {
            return Some("events were lost shortly before, so its connection may have broken");
        }
        if life.added && !life.connected {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn says(disconnects: &Disconnects, name: &str, action: Action, nvme_event: Option<&str>) {
        disconnects.take(&HostEvent::Device(DeviceEvent {
            action,
            kind: DeviceKind::NvmeController,
            name: name.to_owned(),
            dev: None,
            sequence: 1,
            nvme_event: nvme_event.map(str::to_owned),
        }));
    }

    fn connected(disconnects: &Disconnects, name: &str) {
        says(disconnects, name, Action::Change, Some("connected"));
    }

    /// A controller that is made while this process hears.
    fn made(disconnects: &Disconnects, name: &str) {
        says(disconnects, name, Action::Add, None);
        connected(disconnects, name);
    }

    async fn deleted(disconnects: &Disconnects, name: &str) -> Option<&'static str> {
        let removal = disconnects.about_to_delete(name);
        says(disconnects, name, Action::Remove, None);
        disconnects.broken_before(&removal).await
    }

    #[tokio::test(start_paused = true)]
    async fn one_connection_in_a_whole_life_is_unbroken() {
        let disconnects = Disconnects::default();
        made(&disconnects, "nvme0");
        says(&disconnects, "nvme0", Action::Change, Some("rediscover"));
        assert_eq!(deleted(&disconnects, "nvme0").await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_connection_of_a_life_is_a_break() {
        let disconnects = Disconnects::default();
        made(&disconnects, "nvme0");
        made(&disconnects, "nvme1");
        connected(&disconnects, "nvme0");
        assert!(deleted(&disconnects, "nvme0").await.is_some_and(|why| why.contains("had broken")));
        assert_eq!(deleted(&disconnects, "nvme1").await, None);
        made(&disconnects, "nvme0");
        assert_eq!(deleted(&disconnects, "nvme0").await, None, "another one of that name");
        made(&disconnects, "nvme0");
        connected(&disconnects, "nvme0");
        tokio::time::advance(LATELY).await;
        assert_eq!(
            deleted(&disconnects, "nvme0").await,
            None,
            "as long as a write may be held, and no longer"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_is_a_break_before_the_kernel_says_so() {
        let disconnects = Disconnects::default();
        made(&disconnects, "nvme0");
        disconnects.events_arrive();
        for name in ["nvme0", "nvme1"] {
            disconnects.about_to_reset(name);
            assert!(
                deleted(&disconnects, name).await.is_some_and(|why| why.contains("had broken")),
                "{name}"
            );
        }
        made(&disconnects, "nvme0");
        assert_eq!(deleted(&disconnects, "nvme0").await, None, "another one of that name");
    }

    #[tokio::test(start_paused = true)]
    async fn a_kernel_that_never_says_connected_proves_nothing() {
        let disconnects = Disconnects::default();
        says(&disconnects, "nvme0", Action::Add, None);
        tokio::time::advance(LATELY * 2).await;
        assert!(deleted(&disconnects, "nvme0").await.is_some_and(|why| why.contains("does not say")));
    }

    #[tokio::test(start_paused = true)]
    async fn where_no_event_arrives_nothing_is_proven() {
        let disconnects = Disconnects::default();
        let (uevents, _source) = Uevents::scripted();
        let _hearing = disconnects.listen(Some(&uevents));
        let removal = disconnects.about_to_delete("nvme0");
        assert!(
            disconnects
                .broken_before(&removal)
                .await
                .is_some_and(|why| why.contains("removal was not heard"))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_from_before_this_process_needs_events_that_were_shown_to_arrive() {
        let disconnects = Disconnects::default();
        assert!(deleted(&disconnects, "nvme3").await.is_some_and(|why| why.contains("has no proof that")));
        made(&disconnects, "nvme0");
        assert_eq!(deleted(&disconnects, "nvme3").await, None, "the kernel was heard to say so of another");
        let disconnects = Disconnects::default();
        disconnects.events_arrive();
        assert_eq!(deleted(&disconnects, "nvme3").await, None);
        connected(&disconnects, "nvme3");
        assert!(deleted(&disconnects, "nvme3").await.is_some(), "it had one before");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connected_event_just_before_the_removal_counts() {
        let (disconnects, (uevents, source)) = (Disconnects::default(), Uevents::scripted());
        let _hearing = disconnects.listen(Some(&uevents));
        made(&disconnects, "nvme0");
        let removal = disconnects.about_to_delete("nvme0");
        // In the socket, and not taken in when the deletion has ended.
        for (action, nvme_event) in [(Action::Change, Some("connected")), (Action::Remove, None)] {
            let event = DeviceEvent {
                action,
                kind: DeviceKind::NvmeController,
                name: "nvme0".into(),
                dev: None,
                sequence: 1,
                nvme_event: nvme_event.map(str::to_owned),
            };
            assert!(source.send(HostEvent::Device(event)).is_ok());
        }
        assert!(disconnects.broken_before(&removal).await.is_some_and(|why| why.contains("had broken")));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_heard_counts_as_a_break() {
        let disconnects = Disconnects::default();
        made(&disconnects, "nvme0");
        made(&disconnects, "nvme1");
        disconnects.take(&HostEvent::Overrun);
        assert!(deleted(&disconnects, "nvme0").await.is_some_and(|why| why.contains("lost")));
        tokio::time::advance(LATELY).await;
        assert_eq!(deleted(&disconnects, "nvme1").await, None);
        made(&disconnects, "nvme0");
        let (uevents, source) = Uevents::scripted();
        let hearing = disconnects.listen(Some(&uevents));
        drop((uevents, source));
        assert!(hearing.await.is_ok());
        assert!(deleted(&disconnects, "nvme0").await.is_some(), "no more events come");
    }
}
