//! Loop devices over a block device. The kubelet keeps one over every block volume that it has mapped, and a ticket's
//! command has one for as long as it runs ([`crate::ticket_device`]).

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::scans::{Key, Looking};
use super::{Blind, Places, mounts};
use crate::loop_device;
use crate::name::DevT;
use crate::sysfs::{Attribute, list};
use crate::ticket_device;

/// A loop device whose backing file is the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoopUse {
    /// Kernel name, such as `loop3`.
    pub name: String,
    /// Device number of the loop device itself.
    pub dev: DevT,
    /// The backing file as the kernel names it.
    pub backing_file: String,
    /// Set when the backing file is where the kubelet maps block volumes.
    pub kubelet: Option<KubeletLoop>,
    /// Set when the backing file is where tickets have their devices: the ticket's id.
    pub ticket: Option<String>,
}

/// The kubelet's own loop device: it marks the volume as mapped and carries no I/O.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KubeletLoop {
    /// Name of the persistent volume.
    pub volume: String,
    /// UID of the pod for which the volume is mapped.
    pub pod_uid: String,
}

impl fmt::Display for LoopUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.kubelet, &self.ticket) {
            (Some(KubeletLoop { volume, pod_uid }), _) => {
                write!(f, "the kubelet's {} for volume {volume} of pod {pod_uid}", self.name)
            }
            (None, Some(ticket)) => write!(f, "{} of ticket {ticket}", self.name),
            (None, None) => write!(f, "{} over {}", self.name, self.backing_file),
        }
    }
}

/// Every loop device in use.
#[derive(Debug, Default)]
pub(super) struct LoopTable {
    /// Those over a block device, with that device's number.
    over: Vec<(DevT, LoopUse)>,
    /// What could not be read.
    pub(super) blind: Vec<Blind>,
}

impl LoopTable {
    /// Loop devices over any of `devices`.
    pub(super) fn over<'a>(&'a self, devices: &'a BTreeSet<DevT>) -> impl Iterator<Item = LoopUse> + 'a {
        self.over.iter().filter(|(backing, _)| devices.contains(backing)).map(|(_, one)| one.clone())
    }
}

/// Reads all loop devices. One over a file of a dead server does not answer, and does not hold up the others.
pub(super) fn scan(places: &Places, looking: &Looking) -> LoopTable {
    let class = places.sysfs.root().join("class/block");
    let mut found = LoopTable::default();
    let names = match list(&class) {
        Ok(names) => names,
        Err(error) => {
            found.blind.push(Blind::at(&class, error));
            return found;
        }
    };
    for name in names.into_iter().filter(|name| name.starts_with("loop")) {
        let mut unreadable = Vec::new();
        let mut from = Attribute { dir: class.join(&name), unreadable: &mut unreadable };
        // Only a loop device in use has this directory.
        let backing = from.text("loop/backing_file").zip(from.value::<DevT>("dev"));
        found.blind.extend(unreadable.into_iter().map(Blind::from));
        let Some((backing_file, dev)) = backing else { continue };
        let asked =
            looking.call(&Key::Loop(name.clone()), || backing_device(places, &name, dev, &backing_file));
        match asked.map_err(|stuck| stuck.to_string()).and_then(|asked| asked) {
            Ok(Some(backing)) => {
                let (kubelet, ticket) = (kubelet(&backing_file), ticket_device::ticket_of(&backing_file));
                found.over.push((backing, LoopUse { kubelet, ticket, name, dev, backing_file }));
            }
            Ok(None) => {}
            Err(_) if mounts::host_says_remote(places, Path::new(&backing_file)) => {}
            Err(why) => {
                found.blind.push(Blind { what: format!("backing file {backing_file} of {name}"), why })
            }
        }
    }
    found
}

/// Device number of a loop device's backing file, if that is a block device. Asks the loop device itself,
/// which knows even when the path has been removed; else it reads the path, in our own mount namespace and in
/// that of process 1.
fn backing_device(
    places: &Places,
    name: &str,
    dev: DevT,
    backing_file: &str,
) -> Result<Option<DevT>, String> {
    let node = places.dev_root.join(name);
    let first = match ask(places, &node, dev) {
        Ok(backing) => return Ok(backing),
        Err(error) => error,
    };
    let path = Path::new(backing_file);
    let elsewhere = places.proc_root.join("1/root").join(path.strip_prefix("/").unwrap_or(path));
    (places.rdev)(path)
        .or_else(|_| (places.rdev)(&elsewhere))
        .map_err(|error| format!("{error}; {}: {first}", node.display()))
}

fn ask(places: &Places, node: &Path, dev: DevT) -> io::Result<Option<DevT>> {
    if (places.rdev)(node)? != Some(dev) {
        return Err(io::Error::other("not that loop device"));
    }
    // Opening a loop device for reading changes nothing and does not block.
    let file = File::open(node)?;
    match loop_device::status(&file) {
        Ok(status) => {
            let backing = DevT::from_raw(status.lo_rdevice);
            // A regular file has number 0.
            Ok((status.lo_rdevice != 0).then_some(backing))
        }
        // It lost its backing file meanwhile.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Recognises where the kubelet maps block volumes of a CSI driver:
/// `…/plugins/kubernetes.io/csi/volumeDevices/PV/dev/POD` (in use there under its global map path), or the
/// driver's own `volumeDevices/publish/PV/POD`.
fn kubelet(backing_file: &str) -> Option<KubeletLoop> {
    let path = backing_file.strip_suffix(" (deleted)").unwrap_or(backing_file);
    let (_, rest) = path.split_once("/plugins/kubernetes.io/csi/volumeDevices/")?;
    let (volume, pod_uid) = match rest.split('/').collect::<Vec<_>>()[..] {
        ["publish", volume, pod] => (volume, pod),
        [volume, "dev", pod] => (volume, pod),
        _ => return None,
    };
    uuid::Uuid::try_parse(pod_uid).ok()?;
    Some(KubeletLoop { volume: volume.to_owned(), pod_uid: pod_uid.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_loop_is_known_by_its_place_and_nothing_else_is() {
        let pod = "3b0c5a0e-6a5f-4f5e-9d3e-0d8a2b8c1f11";
        let base = "/var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices";
        for path in [
            format!("{base}/pvc-1/dev/{pod}"),
            format!("{base}/publish/pvc-1/{pod}"),
            format!("{base}/publish/pvc-1/{pod} (deleted)"),
        ] {
            let expected = KubeletLoop { volume: "pvc-1".to_owned(), pod_uid: pod.to_owned() };
            assert_eq!(kubelet(&path), Some(expected), "{path}");
        }
        for path in [format!("{base}/pvc-1/dev/x"), format!("{base}/pvc-1"), "/dev/nvme0n1".to_owned()] {
            assert_eq!(kubelet(&path), None, "{path}");
        }
    }
}
