//! Linux behind traits: everything Cleat's node agent asks of the kernel.
//!
//! Owns: NVMe over fabrics connections ([`fabrics`]), the NVMe topology in sysfs ([`sysfs`]), the proof that
//! a device can be used ([`readiness`]), who uses a device ([`openers`]), kernel events ([`uevents`]), this
//! host's identity ([`identity`]), block device nodes ([`devnode`]), direct reads on them ([`blockio`]) and
//! bind mounts of them ([`mounts`]), who may write to a namespace ([`reservations`]), what the network says
//! of a storage address ([`reach`], [`tcp`], [`links`]), and the device that a ticket's command reads ([`ticket_device`]).
//!
//! Comes in: what somebody wants connected, deleted, read or mounted, always by name (NQN, UUID, address).
//! Goes out: what the kernel says, with its source; never a conclusion kept from earlier.
//!
//! Always holds:
//! - It knows nothing of CSI, gRPC or the controller.
//! - A kernel call that may block for ever runs on a thread of its own with a deadline ([`work`]): it never
//!   occupies tokio's workers, nor a pool that another volume needs.
//! - "Could not be read" is an answer of its own and never means "there is none".
//! - Nothing is found by number: a controller is verified by subsystem NQN, host NQN and incarnation on an
//!   open directory, a device by NQN → namespace identity → `dev_t` on an open file descriptor.

pub mod blockio;
pub mod devnode;
pub mod fabrics;
pub mod head;
pub mod identity;
pub mod links;
mod loop_device;
pub mod modules;
pub mod mountinfo;
pub mod mounts;
pub mod name;
pub mod openers;
pub mod reach;
pub mod readiness;
pub mod reservations;
pub mod sockets;
pub mod sysfs;
pub mod tcp;
pub mod ticket_device;
pub mod uevents;
pub mod work;

#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;

pub use name::{
    ControllerName, DevT, HostId, HostNqn, InvalidName, NamespaceIdentity, NamespaceUuid, Nguid, Portal,
    SubsystemNqn,
};
