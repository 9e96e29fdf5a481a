//! A device that the kernel has given up is made again under the same grant.
//!
//! The kernel gives up a controller when its time is over, and a device with its last controller. A process
//! that has the device open then has a dead one: the device that is made again is another one, and would
//! appear beside it.
//!
//! Comes in: a granted volume without a controller. Goes out: the device, proven as by any attach; or who
//! still has the dead one.
//!
//! Always holds: only under a grant that has not ended and was connected before, only while there is a
//! session with the controller, and only once nobody has the dead device any more. What could not be read
//! counts as a user.

use std::collections::BTreeSet;
use std::time::Duration;

use cleat_host::DevT;
use cleat_host::sysfs::SubsystemView;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ledger::LedgerEntry;
use crate::link::Link;
use crate::metrics;
use crate::volume::Volume;
use crate::volume::host::{AtTarget, Host};
use crate::volume::observe::judge::device;
use crate::volume::plan::{Want, plan};

/// How long the device has to come back before the next try.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between a failed try and the next one.
pub(in crate::volume) const PAUSE: Duration = Duration::from_secs(10);

/// What this process knows of a device that is gone.
#[derive(Debug, Default)]
pub(in crate::volume) struct Dead {
    /// The number that the volume's device had under this grant.
    number: Option<DevT>,
    /// Who was seen to have it open still.
    users: Vec<String>,
    /// The earliest moment at which it is made again.
    again: Option<Instant>,
}

impl Dead {
    /// Who was seen to have it open still, each as text for a person.
    pub(in crate::volume) fn users(&self) -> &[String] {
        &self.users
    }

    /// The number that the volume's device had under this grant.
    pub(in crate::volume) fn number(&self) -> Option<DevT> {
        self.number
    }
}

impl<H: Host> Volume<H> {
    /// Remembers which device the volume has.
    pub(in crate::volume) fn note_device(&self, view: &SubsystemView) {
        if let Some(namespace) = device(view) {
            let mut memory = self.memory();
            memory.dead.number = Some(namespace.dev);
            memory.dead.users.clear();
        }
    }

    /// Makes the device again if nobody has the dead one. Does nothing while an operation has the volume.
    pub(in crate::volume) async fn revive(&self, link: &watch::Receiver<Link>) {
        let Some(_pass) = self.gate.try_enter("making the device again") else { return };
        let Ok(view) = self.observe().await else { return };
        let controllers = plan(&view, self.host_nqn(), &Default::default(), Want::Gone).steps;
        if !controllers.is_empty() || view.connecting {
            return;
        }
        let Ok(Some(entry)) = self.record().await else { return };
        let handed_out =
            !entry.ended && entry.boot_id == self.boot_id() && !entry.may_have_written.is_empty();
        let Some(grant) = entry.grant.clone().filter(|_| handed_out) else { return };
        let free = self.users_of_dead(&entry, &view).await.is_empty();
        self.report(&view);
        let now = Instant::now();
        let due = self.memory().dead.again.is_none_or(|again| now >= again);
        if !free || !due || *link.borrow() == Link::Down {
            return;
        }
        let silent = |portal| self.shared.portals.is_silent_and_wanted(portal);
        if grant.portals.iter().filter(|portal| silent(**portal)).count() == grant.portals.len() {
            return;
        }
        tracing::info!(volume = %self.id, epoch = %entry.epoch, "making a device again that the kernel has \
            given up");
        let ready_under = self.memory().judged.ready_under();
        let made = self.attach(entry.epoch, &grant, None, now, now + PATIENCE).await;
        metrics::path_repair(made.is_ok());
        if let Err(error) = made {
            let mut memory = self.memory();
            memory.dead.again = Some(Instant::now() + PAUSE);
            memory.judged.set_ready_under(ready_under);
            drop(memory);
            let error = cleat_runtime::exit::Causes(&error).to_string();
            tracing::warn!(volume = %self.id, error, "cannot make the device again yet");
        }
    }

    /// Who has a dead device of this volume, each as text for a person.
    pub(in crate::volume) async fn users_of_dead(
        &self,
        entry: &LedgerEntry,
        view: &SubsystemView,
    ) -> Vec<String> {
        let mut users = BTreeSet::new();
        let mut numbers: BTreeSet<DevT> = self.memory().dead.number.into_iter().collect();
        for target in &entry.published {
            match self.shared.host.at_target(target).await {
                Ok(AtTarget::Device(dev) | AtTarget::Leftover(dev)) => drop(numbers.insert(dev)),
                Ok(AtTarget::Nothing | AtTarget::Placeholder | AtTarget::Other(_)) => {}
                Err(error) => drop(users.insert(error.line())),
            }
        }
        numbers.retain(|dev| view.namespaces.iter().all(|namespace| namespace.dev != *dev));
        for dev in numbers {
            // The kernel gives a number to another disk only once nobody has the old one open.
            match self.shared.host.device_name(dev).await {
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(error) => drop(users.insert(error.line())),
            }
            match self.shared.host.users_of_device(dev).await {
                Ok(found) => users.extend(found),
                Err(error) => drop(users.insert(error.line())),
            }
        }
        let users: Vec<String> = users.into_iter().collect();
        let mut memory = self.memory();
        if memory.dead.users != users && !users.is_empty() {
            tracing::warn!(volume = %self.id, users = users.join("; "), "the kernel gave the device up \
                 while it is in use; connecting it again once nobody uses it");
        }
        memory.dead.users.clone_from(&users);
        users
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use crate::volume::outcome::Outcome;
    use crate::volume::state::{VolumePhase, VolumeState};

    use super::*;
    use crate::testing::agent::{Agent, Machine, grant};
    use crate::testing::kernel::ConnectAnswer;

    struct Given {
        machine: Machine,
        agent: Agent,
        link: watch::Sender<Link>,
    }

    /// A volume that is published and open, and whose controllers the kernel has given up.
    async fn given_up() -> Given {
        let (machine, agent) = Machine::holding(1, &[1, 2]).await;
        let target = Path::new("/pods/a/volume");
        let dev = agent.fleet.volumes()[0].memory().dead.number.unwrap();
        machine.kernel.change(|world| {
            world.targets.insert(target.to_owned(), AtTarget::Device(dev));
            world.users = vec!["process 312 (qemu)".into(), "still published at /pods/a/volume".into()];
            world.controllers.clear();
            world.connects.clear();
        });
        agent.fleet.volumes()[0].note_published(target).await;
        Given { machine, agent, link: watch::Sender::new(Link::Up) }
    }

    impl Given {
        async fn revive(&self) -> VolumeState {
            self.agent.state().await;
            self.agent.fleet.volumes()[0].revive(&self.link.subscribe()).await;
            self.agent.state().await
        }

        fn free(&self) {
            self.machine.kernel.change(|world| {
                world.users.clear();
                world.targets.clear();
            });
        }
    }

    #[tokio::test]
    async fn a_device_that_was_given_up_is_made_again_once_nobody_has_the_dead_one() {
        let given = given_up().await;
        let state = given.revive().await;
        let message = state.unready.clone().unwrap().message;
        assert_eq!(state.phase, VolumePhase::Lost);
        assert!(message.contains("process 312 (qemu)") && message.contains("/pods/a/volume"), "{message}");
        assert!(given.machine.kernel.world().connects.is_empty());
        // The controller asks for it, too: not beside the dead one.
        let asked = given.agent.attach(1, grant(&[1, 2])).await;
        assert!(matches!(&asked, Outcome::Failed(failed) if failed.unready.message.contains("qemu")));
        assert!(given.machine.kernel.world().connects.is_empty());
        // What cannot be looked at is somebody.
        given.free();
        given.machine.kernel.change(|world| world.users_unknown = true);
        assert_eq!(given.revive().await.phase, VolumePhase::Lost);
        given.machine.kernel.change(|world| world.users_unknown = false);
        given.link.send_replace(Link::Down);
        assert_eq!(given.revive().await.phase, VolumePhase::Lost, "this node may have been fenced");
        given.link.send_replace(Link::Up);
        let state = given.revive().await;
        assert_eq!((state.phase, state.paths.len()), (VolumePhase::Ready, 2));
    }

    #[tokio::test]
    async fn a_head_that_stays_gets_its_paths_back_under_whoever_has_it_open() {
        let machine = Machine::new();
        machine.kernel.change(|world| world.knows_delay = true);
        let agent = machine.agent();
        let before = agent.ready(1, &[1, 2]).await.device;
        assert!(machine.kernel.world().delayed_removal, "set at the attach");
        machine.kernel.change(|world| {
            world.users = vec!["process 312 (qemu)".into()];
            world.give_up();
        });
        let given = Given { machine, agent, link: watch::Sender::new(Link::Up) };
        let state = given.revive().await;
        assert_eq!((state.phase, state.paths.len(), state.device), (VolumePhase::Ready, 2, before));
        // One that a process before this one attached stays, too.
        let Given { machine, agent, link } = given;
        machine.kernel.change(|world| {
            world.delayed_removal = false;
            world.users.clear();
        });
        drop(agent);
        let given = Given { agent: machine.agent(), machine, link };
        given.agent.state().await;
        let volume = given.agent.fleet.volumes().remove(0);
        let view = volume.observe().await.unwrap();
        volume.let_found_heads_stay(&view).await;
        assert!(given.machine.kernel.world().delayed_removal);
        let gone = given.agent.detach(1).await;
        assert!(matches!(gone, Outcome::Absent(_)), "{gone:?}");
        assert!(
            given.machine.kernel.world().heads.is_empty() && !given.machine.kernel.world().delayed_removal
        );
        volume.let_found_heads_stay(&view).await;
        assert!(!given.machine.kernel.world().delayed_removal, "not after the grant");
    }

    #[tokio::test]
    async fn what_comes_back_is_proven_before_it_is_ready() {
        let given = given_up().await;
        given.free();
        let other = "ffffffff-ffff-ffff-ffff-ffffffffffff".to_owned();
        given.machine.kernel.change(|world| drop(world.uuids.insert("nqn.2026-01.io.cleat:v".into(), other)));
        let state = given.revive().await;
        assert_eq!(state.phase, VolumePhase::Lost);
        assert!(given.machine.kernel.world().controllers.is_empty(), "another namespace is not kept");
        given.agent.fleet.volumes()[0].memory().dead.again = None;
        given.machine.kernel.change(|world| world.uuids.clear());
        assert_eq!(given.revive().await.phase, VolumePhase::Ready);
    }

    #[tokio::test]
    async fn a_new_process_knows_of_the_dead_device_by_where_it_is_published() {
        let given = given_up().await;
        let Given { machine, agent, link } = given;
        drop(agent);
        let agent = machine.agent();
        let given = Given { machine, agent, link };
        let state = given.revive().await;
        assert_eq!(state.phase, VolumePhase::Lost);
        assert!(state.unready.unwrap().message.contains("process 312 (qemu)"));
        given.free();
        assert_eq!(given.revive().await.phase, VolumePhase::Ready);
    }

    #[tokio::test]
    async fn nothing_is_made_again_after_its_grant_or_before_its_first_connection() {
        let given = given_up().await;
        given.free();
        given.agent.detach(1).await;
        assert_eq!(given.revive().await.phase, VolumePhase::Absent);
        assert!(given.machine.kernel.world().connects.is_empty());

        let machine = Machine::new();
        machine.kernel.change(|world| world.answer(1, ConnectAnswer::Refuse));
        let agent = machine.agent();
        agent.attach_by(1, grant(&[1]), Duration::from_millis(100)).await;
        machine.kernel.change(|world| {
            world.answers.clear();
            world.connects.clear();
        });
        let given = Given { machine, agent, link: watch::Sender::new(Link::Up) };
        given.revive().await;
        assert!(given.machine.kernel.world().connects.is_empty());
    }
}
