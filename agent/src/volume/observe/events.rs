//! Kernel events for operations that wait: only those that may concern the volume wake them.
//!
//! When many volumes come up in parallel, waking every operation upon every event would be most of the work.
//!
//! Always holds: an event that is not passed on is about a device that the last observation did not show as
//! this volume's. Operations also observe from time to time without an event.

use std::collections::BTreeSet;

use cleat_host::sysfs::{NativeMultipath, SubsystemView};
use cleat_host::uevents::{HostEvent, UeventListener, Uevents};

/// What an event must be about to concern a volume, by its last observation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::volume) struct Interest {
    /// Numbers of its controllers and of its subsystems: a head `nvme3n1` has its subsystem's number, a bare
    /// device its controller's.
    numbers: BTreeSet<String>,
    /// A dm-multipath map may appear or change.
    maps: bool,
}

impl Interest {
    pub(in crate::volume) fn in_view(view: &SubsystemView) -> Self {
        let controllers = view.controllers.iter().map(|one| one.name.as_str().trim_start_matches("nvme"));
        let subsystems =
            view.controllers.iter().filter_map(|one| one.subsystem.as_deref()?.strip_prefix("nvme-subsys"));
        Self {
            numbers: controllers.chain(subsystems).map(str::to_owned).collect(),
            maps: view.multipath != NativeMultipath::On,
        }
    }

    fn concerns(&self, event: &HostEvent) -> bool {
        let HostEvent::Device(event) = event else { return true };
        if event.name.starts_with("dm-") {
            return self.maps;
        }
        let Some(rest) = event.name.strip_prefix("nvme-subsys").or_else(|| event.name.strip_prefix("nvme"))
        else {
            return false;
        };
        let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
        self.numbers.contains(&number)
    }
}

/// A listener, or none where there are no events.
#[derive(Debug)]
pub(in crate::volume) struct Events(Option<UeventListener>);

impl Events {
    pub(in crate::volume) fn listen(uevents: Option<&Uevents>) -> Self {
        Self(uevents.map(Uevents::listen))
    }

    /// Drops what has arrived so far: for a caller that is about to observe anyway.
    pub(in crate::volume) fn clear(&mut self) {
        if let Some(listener) = &mut self.0 {
            listener.clear();
        }
    }

    /// Waits for an event that concerns the volume; for ever where there are no events. Cancel safe.
    pub(in crate::volume) async fn concerning(&mut self, interest: &Interest) {
        while let Some(listener) = &mut self.0 {
            match listener.next().await {
                Some(event) if interest.concerns(&event) => return,
                Some(_) => {}
                None => self.0 = None,
            }
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use cleat_host::uevents::{Action, DeviceEvent, DeviceKind};

    use super::*;
    use crate::testing::kernel::{controller, view};

    fn event(name: &str) -> HostEvent {
        let (kind, action) = (DeviceKind::Block, Action::Add);
        HostEvent::Device(DeviceEvent {
            action,
            kind,
            name: name.into(),
            dev: None,
            sequence: 1,
            nvme_event: None,
        })
    }

    #[test]
    fn only_devices_of_the_volume_concern_it() {
        let interest = Interest::in_view(&view(vec![controller(3, 1, "live"), controller(14, 2, "live")]));
        for name in ["nvme3", "nvme14", "nvme0n1", "nvme-subsys0"] {
            assert!(interest.concerns(&event(name)), "{name}");
        }
        for name in ["nvme1", "nvme4n1", "nvme31", "dm-0", "loop3", "sda"] {
            assert!(!interest.concerns(&event(name)), "{name}");
        }
        assert!(interest.concerns(&HostEvent::Overrun));
    }

    #[tokio::test]
    async fn what_does_not_concern_it_does_not_wake_it() {
        let (uevents, source) = Uevents::scripted();
        let mut events = Events::listen(Some(&uevents));
        let interest = Interest::in_view(&view(vec![controller(3, 1, "live")]));
        source.send(event("nvme9n1")).expect("heard");
        source.send(event("nvme3")).expect("heard");
        events.concerning(&interest).await;
        let more =
            tokio::time::timeout(std::time::Duration::from_millis(5), events.concerning(&interest)).await;
        assert!(more.is_err());
    }
}
