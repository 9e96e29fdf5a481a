//! A virtual machine of a real QEMU on a node, run as KubeVirt and libvirt run one: the volume as a raw block device without
//! a cache, the monitor on a Unix socket, live migration in libvirt's order; and the judges of what it did to its disk.
//!
//! * [`guest`] is what runs in it: a boot sector that writes numbered records.
//! * [`qemu`] starts it on a node, from the image that `hack/setup qemu-image` makes.
//! * [`qmp`] is QEMU's monitor, [`mod@migrate`] the order of a live migration over two of them.
//! * [`on_nodes`] is one of them on two nodes: how it boots on the one and comes to the other.
//! * [`in_pods`] is one of them in a container of a pod.
//! * [`undisturbed`] is a whole migration in which nothing goes wrong, over disks that somebody else attaches.
//! * [`trace`] has the target note every write as it arrives; [`arrivals`] judges their order.
//! * [`records`] judges what lies on the disk in the end.
//!
//! Two guests that both go on after a switchover write the *same* records: the data stays whole, and only the order of
//! arrivals at the target and the guest's time-stamp counter show them.

pub mod arrivals;
pub mod guest;
pub mod in_pods;
pub mod migrate;
pub mod on_nodes;
pub mod qemu;
pub mod qmp;
pub mod records;
#[cfg(test)]
mod scripted;
pub mod trace;
pub mod undisturbed;
