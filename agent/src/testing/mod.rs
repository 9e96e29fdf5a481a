//! What tests stand on: a kernel made of memory, and an agent around it.

#![allow(clippy::unwrap_used, missing_docs)]

pub(crate) mod agent;
pub(crate) mod kernel;
pub(crate) mod target;

use crate::name::VolumeId;
use crate::volume::state::{VolumePhase, VolumeState};

/// A volume in a phase, of which nothing else is known.
pub(crate) fn state(volume: &str, phase: VolumePhase) -> VolumeState {
    VolumeState {
        volume: VolumeId::parse(volume).unwrap(),
        epoch: None,
        epoch_ended: false,
        phase,
        identity: None,
        paths: Vec::new(),
        unready: None,
        openers: Vec::new(),
        device: None,
        writes: 0,
        absence: None,
        staging: Vec::new(),
        held_elsewhere: Vec::new(),
        unbroken: false,
    }
}
