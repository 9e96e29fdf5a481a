//! Which events concern one volume: when many volumes come up in parallel, checking each of them upon every
//! event would be most of the work.

use crate::name::ControllerName;
use crate::sysfs::{NativeMultipath, SubsystemView};
use crate::uevents::{Action, DeviceEvent, DeviceKind, HostEvent};

/// What an event must be about to concern a volume, by its last reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interest {
    controllers: Vec<ControllerName>,
    /// Names of its subsystem's directories, such as `nvme-subsys3`.
    subsystems: Vec<String>,
    /// More portals may become controllers, under names that are not known yet.
    incomplete: bool,
    /// A dm-multipath map may appear.
    maps: bool,
}

impl Interest {
    pub(super) fn new(view: &SubsystemView, portals: usize) -> Self {
        let mut subsystems: Vec<_> = view.controllers.iter().filter_map(|c| c.subsystem.clone()).collect();
        subsystems.dedup();
        Self {
            controllers: view.controllers.iter().map(|controller| controller.name.clone()).collect(),
            incomplete: view.controllers.len() < portals || subsystems.is_empty(),
            subsystems,
            maps: view.multipath != NativeMultipath::On,
        }
    }

    pub(super) fn concerns(&self, event: &HostEvent) -> bool {
        match event {
            HostEvent::Overrun => true,
            HostEvent::Device(event) => match event.kind {
                DeviceKind::NvmeController => {
                    self.controllers.iter().any(|own| own.as_str() == event.name)
                        || (self.incomplete && event.action != Action::Remove)
                }
                DeviceKind::FabricsControl => false,
                DeviceKind::NvmeSubsystem => self.subsystems.contains(&event.name),
                DeviceKind::Block => self.concerns_block(event),
            },
        }
    }

    /// Heads are numbered by their subsystem, bare devices by their controller.
    fn concerns_block(&self, event: &DeviceEvent) -> bool {
        if event.name.starts_with("dm-") {
            return self.maps;
        }
        let Some((owner, _)) = event.name.strip_prefix("nvme").and_then(|rest| rest.split_once('n')) else {
            return false;
        };
        let heads = self.subsystems.iter().any(|name| name.strip_prefix("nvme-subsys") == Some(owner));
        let bare = self.controllers.iter().any(|name| name.as_str().strip_prefix("nvme") == Some(owner));
        // Before the first controller exists, its numbers are unknown.
        heads || bare || self.subsystems.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{FakeKernel, Tree};
    use std::sync::Arc;

    fn event(kind: DeviceKind, action: Action, name: &str) -> HostEvent {
        let (dev, nvme_event) = (None, None);
        HostEvent::Device(DeviceEvent { action, kind, name: name.to_owned(), dev, sequence: 1, nvme_event })
    }

    #[test]
    fn events_of_other_volumes_are_left_alone_and_nothing_of_the_own_is() {
        let kernel = FakeKernel::start(Arc::new(Tree::new()));
        for nqn in ["nqn.2026-01.test:other", "nqn.2026-01.test:v1"] {
            kernel.connect_foreign(&format!("nqn={nqn},traddr=10.0.0.1,trsvcid=4420"));
        }
        let nqn = "nqn.2026-01.test:v1".parse().expect("valid");
        let view = kernel.tree().sysfs().view_blocking(&nqn).expect("readable");
        let complete = Interest::new(&view, 1);
        for (kind, name, expected) in [
            (DeviceKind::Block, "nvme1n1", true),
            (DeviceKind::Block, "nvme0n1", false),
            (DeviceKind::Block, "nvme10n1", false),
            (DeviceKind::Block, "dm-0", false),
            (DeviceKind::Block, "loop1", false),
            (DeviceKind::NvmeController, "nvme1", true),
            (DeviceKind::NvmeController, "nvme0", false),
            (DeviceKind::NvmeSubsystem, "nvme-subsys1", true),
        ] {
            assert_eq!(complete.concerns(&event(kind, Action::Change, name)), expected, "{name}");
        }
        assert!(complete.concerns(&HostEvent::Overrun));
        let incomplete = Interest::new(&view, 2);
        assert!(incomplete.concerns(&event(DeviceKind::NvmeController, Action::Change, "nvme7")));
        let none = Interest::new(
            &kernel
                .tree()
                .sysfs()
                .view_blocking(&"nqn.2026-01.test:v9".parse().expect("valid"))
                .expect("readable"),
            2,
        );
        assert!(none.concerns(&event(DeviceKind::Block, Action::Add, "nvme9n1")));
    }
}
