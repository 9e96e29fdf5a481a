//! Notices for people. They change nothing, and nothing waits for it.

use crate::{
    Epoch, Evidence, FenceStep, Migration, MigrationStep, NodeId, ObservedPhase, Rung, Trouble, VolumeId,
};

/// Something that people want to know.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Notice {
    /// A node was granted a volume.
    Granted {
        /// What.
        volume: VolumeId,
        /// Where.
        node: NodeId,
        /// Under which epoch.
        epoch: Epoch,
    },
    /// An attachment has come to a phase.
    Phase {
        /// What.
        volume: VolumeId,
        /// Where.
        node: NodeId,
        /// Under which epoch.
        epoch: Epoch,
        /// Which.
        phase: &'static str,
        /// How long it was in the phase before, in milliseconds.
        after_ms: u64,
    },
    /// What a node's kernel holds has changed: Degraded, Recovered, Lost.
    Health {
        /// What.
        volume: VolumeId,
        /// Where.
        node: NodeId,
        /// Before.
        from: ObservedPhase,
        /// Now.
        to: ObservedPhase,
        /// Live paths now.
        live_paths: u32,
        /// The clause that fails, if one does.
        unready: String,
    },
    /// An attachment is over, on this proof.
    Detached {
        /// What.
        volume: VolumeId,
        /// The proof.
        evidence: Box<Evidence>,
    },
    /// A step of a migration.
    Migration {
        /// What.
        volume: VolumeId,
        /// The record so far.
        migration: Box<Migration>,
        /// The newest step.
        step: MigrationStep,
    },
    /// Something does not go on.
    Trouble {
        /// What.
        volume: VolumeId,
        /// Where.
        node: NodeId,
        /// What is wrong.
        trouble: Box<Trouble>,
    },
    /// A fence has come to a step; `Refused`: no rung was left.
    Fence {
        /// What.
        volume: VolumeId,
        /// Who is fenced.
        node: NodeId,
        /// Which rung.
        rung: Rung,
        /// Which step of it.
        step: FenceStep,
    },
    /// A node that was fenced from a volume has shown that it holds none of it.
    Readmitted {
        /// What.
        volume: VolumeId,
        /// Who.
        node: NodeId,
    },
    /// A node's kernel holds a volume that it was not granted.
    StrayFound {
        /// What.
        volume: VolumeId,
        /// Where.
        node: NodeId,
    },
}
