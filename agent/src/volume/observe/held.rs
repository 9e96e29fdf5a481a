//! What the pods that have the volume hold in its place, once the controller has asked for them.
//!
//! Comes in: pods, and which other volumes they have. Goes out: for the volume's state, each descriptor of another device.
//!
//! Always holds: it is about one grant, and ends with it. A look that fails, or finds no device of the volume to compare with,
//! changes nothing of what was found before; one that could not read each process takes nothing of it away. A block
//! device of another kind than NVMe is the pod's own: no volume's node has ever been one.

use std::collections::BTreeSet;

use cleat_host::DevT;
use cleat_host::openers::held_elsewhere;

use crate::name::Epoch;
use crate::volume::Volume;
use crate::volume::host::{Host, HostError};
use crate::volume::observe::judge::device;

/// Most descriptors that are named.
const MOST: usize = 16;

/// Whom the controller has asked for.
#[derive(Debug, Clone)]
struct Asked {
    epoch: Epoch,
    pods: BTreeSet<String>,
    /// The devices of the other volumes that these pods have.
    own: BTreeSet<DevT>,
}

/// What was found, and for whom.
#[derive(Debug, Default)]
pub(in crate::volume) struct Held {
    asked: Option<Asked>,
    elsewhere: Vec<String>,
}

impl Held {
    /// What was found under the grant of that epoch, each as text for a person.
    pub(in crate::volume) fn elsewhere_under(&self, epoch: Option<Epoch>) -> Vec<String> {
        let is_its = self.asked.as_ref().is_some_and(|asked| Some(asked.epoch) == epoch);
        if is_its { self.elsewhere.clone() } else { Vec::new() }
    }
}

impl<H: Host> Volume<H> {
    /// Looks for what these pods hold; `own` are the devices of other volumes that they have.
    pub(in crate::volume) async fn look_at_held(
        &self,
        epoch: Epoch,
        pods: &BTreeSet<String>,
        own: BTreeSet<DevT>,
    ) {
        self.look_for(Asked { epoch, pods: pods.clone(), own }).await;
    }

    /// Looks again where something was found: who holds it may have ended.
    pub(in crate::volume) async fn look_at_held_again(&self) {
        let asked = {
            let memory = self.memory();
            memory.held.asked.clone().filter(|_| !memory.held.elsewhere.is_empty())
        };
        if let Some(asked) = asked {
            self.look_for(asked).await;
        }
    }

    async fn look_for(&self, asked: Asked) {
        match self.find_elsewhere(&asked).await {
            Ok((mut elsewhere, all_read)) => {
                if !all_read {
                    tracing::warn!(volume = %self.id, "not every process could be read: what pods hold is not wholly known");
                    elsewhere.extend(self.memory().held.elsewhere_under(Some(asked.epoch)));
                    elsewhere.sort_unstable();
                    elsewhere.dedup();
                    elsewhere.truncate(MOST);
                }
                for held in &elsewhere {
                    tracing::warn!(volume = %self.id, epoch = %asked.epoch, held, "a pod holds another device");
                }
                self.memory().held = Held { asked: Some(asked), elsewhere };
            }
            Err(error) => {
                tracing::warn!(volume = %self.id, error = error.line(), "cannot look at what pods hold");
            }
        }
    }

    async fn find_elsewhere(&self, asked: &Asked) -> Result<(Vec<String>, bool), HostError> {
        let last = self.last_observation();
        let Some(head) = last.as_ref().and_then(|last| device(last)).map(|device| device.dev) else {
            return Err(HostError::new(
                "there is nothing to compare with",
                "no device of the volume was seen",
            ));
        };
        let host = &self.shared.host;
        let (all, all_read) = host.held_by(&asked.pods).await?;
        let mut elsewhere = Vec::new();
        for held in held_elsewhere(&all, &asked.pods, head, &asked.own) {
            let name = host.device_name(held.rdev).await?;
            if name.is_none_or(|name| name.starts_with("nvme")) {
                elsewhere.push(held.to_string());
            }
        }
        elsewhere.sort_unstable();
        elsewhere.truncate(MOST);
        Ok((elsewhere, all_read))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::PathBuf;

    use cleat_host::openers::HeldDescriptor;

    use super::*;
    use crate::testing::agent::{Agent, Machine, ready};
    use crate::volume::directive::Ask;

    const STALE: DevT = DevT { major: 259, minor: 77 };

    fn held(pod: &str, rdev: DevT) -> HeldDescriptor {
        HeldDescriptor {
            pid: 7,
            comm: "qemu-kvm".into(),
            pod_uid: Some(pod.into()),
            name: PathBuf::from("/dev/rootdisk"),
            rdev,
        }
    }

    async fn verified(agent: &Agent, pod: &str) -> Vec<String> {
        let ask = Ask::Verify { pods: BTreeSet::from([pod.to_owned()]), others: BTreeSet::new() };
        ready(agent.ask(1, ask).await).held_elsewhere
    }

    #[tokio::test]
    async fn what_a_pod_holds_in_the_volumes_place_is_in_its_state() {
        let (node, agent) = Machine::holding(1, &[1, 2]).await;
        let head = agent.fleet.volumes()[0].memory().dead.number().unwrap();
        node.kernel.change(|world| world.held = vec![held("a", STALE), held("b", head), held("c", STALE)]);
        let found = verified(&agent, "a").await;
        assert_eq!(found, ["process 7 (qemu-kvm) of pod a has block device 259:77 open as /dev/rootdisk"]);
        assert_eq!(agent.state().await.held_elsewhere, found, "and in each report from then on");
        assert!(verified(&agent, "b").await.is_empty());
        // A disk of its own.
        node.kernel.change(|world| drop(world.disks.insert(STALE, "sda".into())));
        assert!(verified(&agent, "a").await.is_empty());
        node.kernel.change(|world| drop(world.disks.insert(STALE, "nvme9n1".into())));
        assert_eq!(verified(&agent, "a").await.len(), 1, "that of another volume");
    }

    #[tokio::test]
    async fn what_was_found_ends_with_its_cause_and_with_the_grant() {
        let (node, agent) = Machine::holding(1, &[1]).await;
        node.kernel.change(|world| world.held = vec![held("a", STALE)]);
        assert_eq!(verified(&agent, "a").await.len(), 1);
        let volume = agent.fleet.volumes()[0].clone();
        node.kernel.change(|world| world.users_unknown = true);
        volume.look_at_held_again().await;
        assert_eq!(agent.state().await.held_elsewhere.len(), 1, "a look that failed");
        node.kernel.change(|world| world.users_unknown = false);
        node.kernel.change(|world| world.held.clear());
        node.kernel.change(|world| world.held_unread = true);
        volume.look_at_held_again().await;
        assert_eq!(agent.state().await.held_elsewhere.len(), 1, "a look that did not read each process");
        node.kernel.change(|world| world.held_unread = false);
        volume.look_at_held_again().await;
        assert!(agent.state().await.held_elsewhere.is_empty());
        node.kernel.change(|world| world.held = vec![held("a", STALE)]);
        assert_eq!(verified(&agent, "a").await.len(), 1);
        agent.revoke(1).await;
        assert!(agent.state().await.held_elsewhere.is_empty());
    }
}
