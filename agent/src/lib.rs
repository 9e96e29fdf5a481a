//! The node agent: connects, proves and disconnects NVMe/TCP volumes.
//!
//! Comes in: directives of the controller over the [`session`], calls of the kubelet over [`csi`]. Goes out: the real
//! state of every volume on this node, read from the kernel.
//!
//! Always holds: "attached" means that this node has proven that it can use the device; "absent" that its
//! kernel has no connection to it any more. An epoch that is over changes nothing ([`ledger`]). The agent's
//! own end touches no device.

pub mod addresses;
pub mod args;
pub mod csi;
pub mod identity;
pub mod ledger;
pub mod link;
pub mod metrics;
pub mod name;
pub mod run;
pub mod session;
pub mod volume;

#[cfg(test)]
mod testing;
