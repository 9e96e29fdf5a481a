//! Which devices the processes of some pods hold, and whether one of them is another than it should be.
//!
//! Comes in: the pods that have a volume, and the volume's head. Goes out: descriptors of another device. A VM whose disk
//! was opened by a node that has become another device's reads and writes there: by the head alone that looks as if
//! nobody had the volume open.
//!
//! Always holds: a pod that holds nothing, or only what is known, is no difference: it may not have opened its disk yet.
//! What could not be read is listed beside what was found, and says nothing either way: whoever asks has to know. Only what is open counts: a memory
//! map does not say by which name.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::{Blind, Openers, plain};
use crate::name::DevT;
use crate::work::WorkError;

/// A block device that a process has open: one of these for each process and device, however often it has it open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeldDescriptor {
    /// Process id, as `/proc` lists it.
    pub pid: u32,
    /// Its name (15 bytes at most), or `?`.
    pub comm: String,
    /// UID of the Kubernetes pod that it belongs to, read from its cgroup.
    pub pod_uid: Option<String>,
    /// The path by which it was opened, as the process names it.
    pub name: PathBuf,
    /// The number of the device itself, which stays what it was when the path becomes another device's.
    pub rdev: DevT,
}

impl fmt::Display for HeldDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, plain(&self.comm))?;
        if let Some(uid) = &self.pod_uid {
            write!(f, " of pod {uid}")?;
        }
        write!(f, " has block device {} open as {}", self.rdev, plain(&self.name.to_string_lossy()))
    }
}

/// What the processes of `pods` have open in the place of the volume whose head is `head`: of each pod that does not have
/// the head open, every device that is not in `own`, which are the heads of the other volumes that these pods have.
pub fn held_elsewhere(
    all: &[HeldDescriptor],
    pods: &BTreeSet<String>,
    head: DevT,
    own: &BTreeSet<DevT>,
) -> Vec<HeldDescriptor> {
    let of = |held: &HeldDescriptor| held.pod_uid.as_ref().filter(|uid| pods.contains(*uid)).cloned();
    let have_it: BTreeSet<String> = all.iter().filter(|held| held.rdev == head).filter_map(of).collect();
    let lacks_it = |held: &HeldDescriptor| of(held).is_some_and(|uid| !have_it.contains(&uid));
    all.iter().filter(|held| lacks_it(held) && !own.contains(&held.rdev)).cloned().collect()
}

impl Openers {
    /// What the processes of these pods have open, from a search that began at `since` or later, for [`held_elsewhere`].
    ///
    /// # Errors
    /// [`WorkError`] when the search did not end in time. The second part lists which processes could not be read.
    pub async fn held_by(
        &self,
        pods: &BTreeSet<String>,
        since: Instant,
        deadline: Duration,
    ) -> Result<(Vec<HeldDescriptor>, Vec<Blind>), WorkError> {
        let found = self.processes.since(&self.places, since.into_std(), deadline).await?;
        let of_these = |held: &&HeldDescriptor| held.pod_uid.as_ref().is_some_and(|uid| pods.contains(uid));
        Ok((found.held.iter().filter(of_these).cloned().collect(), found.blind.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: DevT = DevT { major: 259, minor: 1 };
    const STALE: DevT = DevT { major: 259, minor: 7 };
    const OTHER: DevT = DevT { major: 259, minor: 3 };

    fn held(pod: &str, pid: u32, rdev: DevT) -> HeldDescriptor {
        HeldDescriptor {
            pid,
            comm: "qemu-kvm".to_owned(),
            pod_uid: (!pod.is_empty()).then(|| pod.to_owned()),
            name: PathBuf::from("/dev/rootdisk"),
            rdev,
        }
    }

    /// The pids whose descriptors are another device, for the pods `a` and `b`.
    fn elsewhere(all: &[HeldDescriptor], own: &[DevT]) -> Vec<u32> {
        let pods = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let own = own.iter().copied().collect();
        held_elsewhere(all, &pods, HEAD, &own).into_iter().map(|held| held.pid).collect()
    }

    #[test]
    fn a_pod_that_holds_another_device_than_the_head_is_found() {
        assert_eq!(elsewhere(&[held("a", 1, STALE)], &[]), [1]);
        assert_eq!(elsewhere(&[held("a", 1, HEAD), held("b", 2, STALE)], &[]), [2], "each pod by itself");
        assert_eq!(elsewhere(&[held("a", 1, OTHER), held("a", 2, STALE)], &[OTHER]), [2]);
        // A number that was given away again, to a volume that is not the pod's.
        assert_eq!(elsewhere(&[held("a", 1, OTHER)], &[]), [1]);
    }

    #[test]
    fn a_pod_that_holds_the_head_may_hold_others_as_well() {
        assert!(elsewhere(&[held("a", 1, HEAD), held("a", 1, OTHER)], &[]).is_empty());
        assert!(elsewhere(&[held("a", 1, HEAD), held("a", 2, OTHER)], &[]).is_empty());
    }

    #[test]
    fn what_holds_nothing_or_is_none_of_the_pods_is_no_difference() {
        assert!(elsewhere(&[], &[]).is_empty());
        assert!(elsewhere(&[held("a", 1, OTHER)], &[OTHER]).is_empty(), "it may not have opened it yet");
        assert!(elsewhere(&[held("c", 1, STALE), held("", 2, STALE)], &[]).is_empty());
    }

    #[test]
    fn a_descriptor_is_named_and_commands_no_terminal() {
        let mut one = held("a", 7, STALE);
        assert_eq!(
            one.to_string(),
            "process 7 (qemu-kvm) of pod a has block device 259:7 open as /dev/rootdisk"
        );
        one.name = PathBuf::from("/dev/\u{1b}[2J");
        one.pod_uid = None;
        assert_eq!(one.to_string(), "process 7 (qemu-kvm) has block device 259:7 open as /dev/\\u{1b}[2J");
    }
}
