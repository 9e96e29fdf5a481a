//! Where a volume is published on this node, and which device is there: this shows a pod that writes to
//! another disk under the volume's name.
//!
//! Comes in: targets of NodePublish and NodeUnpublish. Goes out: for the volume's state, each target with its
//! device.
//!
//! Always holds: what is reported was read from the mounts and the devices; the record only says where to
//! read. A device number that no disk has any more is no other disk, and is reported only while the volume
//! has a device of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cleat_host::DevT;
use cleat_host::sysfs::{HolderKind, SubsystemView};
use cleat_runtime::exit::Causes;
use tokio::time::Instant;

use crate::ledger::LedgerEntry;
use crate::volume::Volume;
use crate::volume::host::{AtTarget, Host, HostError};
use crate::volume::observe::judge::device;
use crate::volume::state::Staging;

/// Most targets of one volume that are remembered: a block volume of one pod has one.
const MOST: usize = 32;

/// What was seen at the targets.
#[derive(Debug, Default)]
pub(in crate::volume) struct Staged {
    /// What the state reports.
    seen: Vec<Staging>,
    /// When that was read, and which device the volume had then.
    looked: Option<(Instant, Option<DevT>)>,
}

impl Staged {
    /// What was seen at each target.
    pub(in crate::volume) fn seen(&self) -> &[Staging] {
        &self.seen
    }
}

impl<H: Host> Volume<H> {
    /// Remembers a target. The caller has the gate.
    pub(in crate::volume) async fn note_published(&self, target: &Path) {
        self.note_targets(|targets| {
            if targets.iter().any(|known| known == target) {
                return;
            }
            if targets.len() >= MOST {
                targets.remove(0);
            }
            targets.push(target.to_owned());
        })
        .await;
    }

    /// Whether the record says that the volume is published there. The caller has the gate.
    pub(in crate::volume) async fn is_noted(&self, target: &Path) -> bool {
        matches!(self.record().await, Ok(Some(entry)) if entry.published.iter().any(|known| known == target))
    }

    /// Whether a device is, or may be, at one of the targets that a record names.
    pub(in crate::volume) async fn may_be_published(&self, entry: &LedgerEntry) -> bool {
        for target in &entry.published {
            match self.shared.host.at_target(target).await {
                Ok(AtTarget::Nothing | AtTarget::Placeholder) => {}
                Ok(AtTarget::Device(_) | AtTarget::Leftover(_) | AtTarget::Other(_)) | Err(_) => return true,
            }
        }
        false
    }

    /// Forgets a target at which nothing is any more. The caller has the gate.
    pub(in crate::volume) async fn note_unpublished(&self, target: &Path) {
        self.note_targets(|targets| targets.retain(|known| known != target)).await;
    }

    /// A failure costs the comparison, not the operation: what is published was verified by itself.
    async fn note_targets(&self, change: impl FnOnce(&mut Vec<PathBuf>)) {
        let Ok(Some(mut entry)) = self.record().await else { return };
        let before = entry.published.clone();
        change(&mut entry.published);
        if entry.published != before
            && let Err(error) = self.keep(&entry).await
        {
            tracing::warn!(volume = %self.id, error = %Causes(&error), "cannot note where the volume is published");
        }
        self.memory().staged.looked = None;
    }

    /// Reads the targets again if the last reading is older than `every`, or if the volume now has another
    /// device.
    pub(in crate::volume) async fn look_at_staging(&self, every: Duration) {
        let targets = {
            let memory = self.memory();
            memory.record.entry().map(|entry| entry.published.clone()).unwrap_or_default()
        };
        if targets.is_empty() && self.memory().staged.seen.is_empty() {
            return;
        }
        // What was reported last belongs to the same sweep: nothing is read just to find that there is
        // nothing to do.
        let own = self.device_observed();
        let fresh = |(looked, with): (Instant, Option<DevT>)| looked.elapsed() < every && with == own;
        if self.memory().staged.looked.is_some_and(fresh) {
            return;
        }
        let Some(mut view) = self.last_observation() else { return };
        let Some(mut seen) = self.staging(&targets, &view).await else { return };
        if seen.iter().any(|staging| !staging.same) {
            // It may have been published since.
            let Ok(fresh) = self.observe().await else { return };
            view = fresh;
            let Some(again) = self.staging(&targets, &view).await else { return };
            seen = again;
        }
        let own = device(&view).map(|namespace| namespace.dev);
        for elsewhere in seen.iter().filter(|staging| !staging.same) {
            tracing::error!(volume = %self.id, target = elsewhere.path, device = elsewhere.device,
                "another device is published as this volume");
        }
        self.memory().staged = Staged { seen, looked: Some((Instant::now(), own)) };
        self.report(&view);
    }

    /// The device of the volume in the last observation.
    fn device_observed(&self) -> Option<DevT> {
        let last = self.last_observation()?;
        Some(device(&last)?.dev)
    }

    /// What is at the targets; `None` where one could not be read.
    async fn staging(&self, targets: &[PathBuf], view: &SubsystemView) -> Option<Vec<Staging>> {
        let mut seen = Vec::new();
        for target in targets {
            match self.staging_at(target, view).await {
                Ok(staging) => seen.extend(staging),
                Err(error) => {
                    tracing::warn!(volume = %self.id, target = %target.display(), error = error.line(),
                        "cannot find where the volume is published");
                    return None;
                }
            }
        }
        Some(seen)
    }

    /// What is at one target; `None` where nothing is.
    async fn staging_at(&self, target: &Path, view: &SubsystemView) -> Result<Option<Staging>, HostError> {
        let staged =
            |device: String, same| Ok(Some(Staging { path: target.display().to_string(), device, same }));
        let dev = match self.shared.host.at_target(target).await? {
            AtTarget::Nothing | AtTarget::Placeholder => return Ok(None),
            AtTarget::Device(dev) | AtTarget::Leftover(dev) => dev,
            AtTarget::Other(what) => return staged(what, false),
        };
        for namespace in &view.namespaces {
            let map = |kind: &HolderKind| matches!(kind, HolderKind::DmMultipath { .. });
            let held = namespace.holders.iter().find(|one| one.dev == Some(dev) && map(&one.kind));
            if namespace.dev == dev || held.is_some() {
                return staged(held.map_or(&namespace.name, |holder| &holder.name).clone(), true);
            }
        }
        match self.shared.host.device_name(dev).await? {
            Some(name) => staged(name, false),
            None if view.namespaces.is_empty() => Ok(None),
            None => staged(format!("{dev}, which is gone"), false),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {

    use super::*;
    use crate::testing::agent::{Agent, Machine};

    async fn staging(agent: &Agent) -> Vec<(String, String, bool)> {
        for volume in agent.fleet.volumes() {
            volume.memory().staged.looked = None;
            volume.look_at_staging(Duration::ZERO).await;
        }
        let staging = agent.state().await.staging;
        staging.into_iter().map(|one| (one.path, one.device, one.same)).collect()
    }

    #[tokio::test]
    async fn what_is_published_as_the_volume_is_compared_with_its_device() {
        let (machine, agent) = Machine::holding(1, &[1]).await;
        let target = Path::new("/pods/a/volume");
        let own = DevT { major: 259, minor: 0 };
        let at = |found| machine.kernel.change(|world| drop(world.targets.insert(target.to_owned(), found)));
        let expected = |device: &str, same| vec![(target.display().to_string(), device.to_owned(), same)];
        agent.fleet.volumes()[0].note_published(target).await;
        assert!(staging(&agent).await.is_empty(), "nothing is there");
        at(AtTarget::Device(own));
        assert_eq!(staging(&agent).await, expected("nvme0n1", true));
        // The disk of that number has gone, and another one has got it.
        at(AtTarget::Device(DevT { major: 259, minor: 5 }));
        assert_eq!(staging(&agent).await, expected("259:5, which is gone", false));
        machine
            .kernel
            .change(|world| drop(world.disks.insert(DevT { major: 259, minor: 5 }, "nvme9n1".to_owned())));
        assert_eq!(staging(&agent).await, expected("nvme9n1", false));
        // A new process knows where to look.
        drop(agent);
        let agent = machine.agent();
        agent.state().await;
        assert_eq!(staging(&agent).await, expected("nvme9n1", false));
        agent.fleet.volumes()[0].note_unpublished(target).await;
        assert!(staging(&agent).await.is_empty());
    }

    #[tokio::test]
    async fn nothing_is_looked_at_before_its_time_has_come() {
        let (machine, agent) = Machine::holding(1, &[1]).await;
        let target = Path::new("/pods/a/volume");
        let at = |minor| {
            let found = AtTarget::Device(DevT { major: 259, minor });
            machine.kernel.change(|world| drop(world.targets.insert(target.to_owned(), found)));
        };
        at(0);
        let volume = agent.fleet.volumes().remove(0);
        volume.note_published(target).await;
        let views = || machine.kernel.world().views;
        let often = Duration::from_secs(3600);
        volume.look_at_staging(often).await;
        let first = views();
        for _ in 0..10 {
            agent.state().await;
            volume.look_at_staging(often).await;
        }
        assert_eq!(
            views(),
            first,
            "each sweep has one reading of everything, and none of one volume besides"
        );
        // The volume's device is another one now: that does not wait.
        machine.kernel.change(|world| {
            world.controllers.clear();
            drop(world.connect("nqn.2026-01.io.cleat:v", 1, crate::testing::kernel::HOST));
        });
        agent.state().await;
        volume.look_at_staging(often).await;
        assert_eq!(views(), first + 1);
    }

    #[tokio::test]
    async fn a_number_without_disk_is_reported_only_beside_a_device() {
        let (machine, agent) = Machine::holding(1, &[1]).await;
        let target = Path::new("/pods/a/volume");
        let dev = DevT { major: 259, minor: 0 };
        machine.kernel.change(|world| drop(world.targets.insert(target.to_owned(), AtTarget::Device(dev))));
        agent.fleet.volumes()[0].note_published(target).await;
        assert_eq!(staging(&agent).await.len(), 1);
        agent.revoke(1).await;
        assert!(staging(&agent).await.is_empty(), "the pod is still there, and writes nowhere");
        machine.kernel.change(|world| drop(world.disks.insert(dev, "nvme7n1".to_owned())));
        assert_eq!(staging(&agent).await[0].1, "nvme7n1");
    }
}
