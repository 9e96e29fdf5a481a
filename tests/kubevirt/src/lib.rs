//! KubeVirt's objects, written as its own programs write them, without KubeVirt.
//!
//! In comes which step comes next; out goes what virt-controller, virt-handler, the scheduler and the kubelet write then, in
//! their order, with their fields (README.md: which of KubeVirt's functions says so). Pure, but for [`play`] and [`cluster`]:
//! whoever plays it has the cluster, or [`stored::Stored`], which is as much of one as a test of the script needs. What holds:
//! nothing is written that KubeVirt 1.9 would not write, as far as Cleat reads it; UIDs are the cluster's, so what needs one is
//! written only once it is known.

pub mod cluster;
pub mod definitions;
mod ends;
pub mod kubectl;
mod migrate;
mod objects;
pub mod patch;
pub mod play;
mod pods;
pub mod scenes;
pub mod script;
mod step;
pub mod stored;

#[cfg(test)]
mod joined_testing;
#[cfg(test)]
mod joined_tests;
#[cfg(test)]
mod scenes_tests;
