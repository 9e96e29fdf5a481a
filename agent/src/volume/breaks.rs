//! Connections that broke and came back between two looks.
//!
//! Comes in: events of the kernel. Goes out: whether the connection of a controller has broken lately.
//!
//! The kernel sends no event when a controller loses its connection, and may have a new one before anybody has looked.
//! What was on its way is repeated on the new one, so the controller is live and its writes succeed; but the target may
//! land the first copies later. What the kernel does send is `connected`, each time: from the second one in the life of
//! a controller on, a connection had broken. For as long as a target may hold writes ([`LATELY`]) the deletion of such
//! a controller does not prove that nothing is on its way.
//!
//! Always holds: what could not be heard counts as a break.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cleat_host::uevents::{Action, DeviceEvent, DeviceKind, HostEvent, Uevents};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// For how long a break counts: the longest drain bound that a controller accepts (`--drain-bound`).
const LATELY: Duration = Duration::from_secs(300);

/// What was heard of the connections of this node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Breaks(Arc<Mutex<Heard>>);

#[derive(Debug, Default)]
struct Heard {
    controllers: HashMap<String, Life>,
    /// Events were lost: any connection may have broken then.
    overrun: Option<Instant>,
    /// No events come.
    deaf: bool,
}

/// The life of one controller, from its `add` on.
#[derive(Debug, Default)]
struct Life {
    connected: bool,
    broke: Option<Instant>,
}

impl Breaks {
    /// Hears events until the handle is dropped; where there are none to be heard, every connection may have broken.
    pub(super) fn hear(&self, uevents: Option<&Uevents>) -> AbortOnDropHandle<()> {
        let (heard, listener) = (self.clone(), uevents.map(Uevents::listen));
        AbortOnDropHandle::new(tokio::spawn(async move {
            if let Some(mut listener) = listener {
                while let Some(event) = listener.next().await {
                    heard.take(&event);
                }
            }
            heard.lock().deaf = true;
        }))
    }

    /// Why a deletion of this controller would not prove that nothing is on its way, if it would not.
    pub(super) fn lately(&self, controller: &str) -> Option<&'static str> {
        let heard = self.lock();
        let recent = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < LATELY);
        if heard.deaf {
            return Some("the kernel's events cannot be heard, so its connection may have broken");
        }
        if recent(heard.controllers.get(controller).and_then(|life| life.broke)) {
            return Some("its connection had broken shortly before");
        }
        recent(heard.overrun).then_some("events were lost shortly before, so its connection may have broken")
    }

    fn take(&self, event: &HostEvent) {
        match event {
            HostEvent::Overrun => self.lock().overrun = Some(Instant::now()),
            HostEvent::Device(device) if device.kind == DeviceKind::NvmeController => {
                self.lock().take(device)
            }
            HostEvent::Device(_) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        // Each change under this lock is whole by itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn take(&mut self, device: &DeviceEvent) {
        if device.action == Action::Add {
            // A name is used again. That of a removed one is kept until then: its deletion may be under judgement.
            self.controllers.insert(device.name.clone(), Life::default());
        } else if device.nvme_event.as_deref() == Some("connected") {
            // One that was there before this process had its first connection then.
            let before = Life { connected: true, broke: None };
            let life = self.controllers.entry(device.name.clone()).or_insert(before);
            if std::mem::replace(&mut life.connected, true) {
                life.broke = Some(Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(breaks: &Breaks, name: &str, action: Action, nvme_event: Option<&str>) {
        breaks.take(&HostEvent::Device(DeviceEvent {
            action,
            kind: DeviceKind::NvmeController,
            name: name.to_owned(),
            dev: None,
            sequence: 1,
            nvme_event: nvme_event.map(str::to_owned),
        }));
    }

    fn connected(breaks: &Breaks, name: &str) {
        says(breaks, name, Action::Change, Some("connected"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_connection_of_a_life_is_a_break_and_counts_for_as_long_as_a_write_may_be_held() {
        let breaks = Breaks::default();
        says(&breaks, "nvme0", Action::Add, None);
        connected(&breaks, "nvme0");
        says(&breaks, "nvme0", Action::Change, Some("rediscover"));
        assert_eq!(breaks.lately("nvme0"), None);
        connected(&breaks, "nvme0");
        assert!(breaks.lately("nvme0").is_some() && breaks.lately("nvme1").is_none());
        says(&breaks, "nvme0", Action::Remove, None);
        assert!(breaks.lately("nvme0").is_some(), "its deletion is judged after it has gone");
        tokio::time::advance(LATELY).await;
        assert_eq!(breaks.lately("nvme0"), None);
        connected(&breaks, "nvme0");
        assert!(breaks.lately("nvme0").is_some());
        says(&breaks, "nvme0", Action::Add, None);
        connected(&breaks, "nvme0");
        assert_eq!(breaks.lately("nvme0"), None, "another one of that name");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_heard_counts_as_a_break() {
        let breaks = Breaks::default();
        connected(&breaks, "nvme3");
        assert!(breaks.lately("nvme3").is_some(), "it was there before");
        assert_eq!(breaks.lately("nvme0"), None);
        breaks.take(&HostEvent::Overrun);
        assert!(breaks.lately("nvme0").is_some());
        tokio::time::advance(LATELY).await;
        assert_eq!(breaks.lately("nvme0"), None);
        let (uevents, source) = Uevents::scripted();
        let hearing = breaks.hear(Some(&uevents));
        drop((uevents, source));
        assert!(hearing.await.is_ok());
        assert!(breaks.lately("nvme0").is_some(), "no more events come");
    }
}
