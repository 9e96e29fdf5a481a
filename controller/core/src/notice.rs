//! Notices for people. They change nothing, and nothing waits for it.

use crate::{
    Epoch, Evidence, FenceStep, Migration, MigrationStep, NodeId, ObservedPhase, Rung, Trouble, VolumeId,
};

/// Something that people want to know.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Notice {
    /// A node was granted a volume.
    Granted {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// The grant's epoch.
        epoch: Epoch,
    },
    /// An attachment has come to a phase.
    Phase {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// The grant's epoch.
        epoch: Epoch,
        /// The phase that it has come to.
        phase: &'static str,
        /// How long it was in the phase before, in milliseconds.
        after_ms: u64,
    },
    /// What a node's kernel holds has changed: Degraded, Recovered, Lost.
    Health {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// The phase before.
        from: ObservedPhase,
        /// The phase now.
        to: ObservedPhase,
        /// Live paths now.
        live_paths: u32,
        /// The clause that fails, if one does.
        unready: String,
    },
    /// An attachment is over, on this proof.
    Detached {
        /// The volume.
        volume: VolumeId,
        /// The proof.
        evidence: Box<Evidence>,
    },
    /// A step of a migration.
    Migration {
        /// The volume.
        volume: VolumeId,
        /// The record so far.
        migration: Box<Migration>,
        /// The newest step.
        step: MigrationStep,
    },
    /// What KubeVirt reports of a migration was taken in, beside its steps.
    MigrationReported {
        /// The volume.
        volume: VolumeId,
        /// The record so far.
        migration: Box<Migration>,
    },
    /// A node has written to a volume after the VM had moved to the other one.
    LateWrite {
        /// The volume.
        volume: VolumeId,
        /// The node: the source of the migration.
        node: NodeId,
        /// Where the VM is.
        target: NodeId,
    },
    /// Something does not go on.
    Trouble {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// What is wrong.
        trouble: Box<Trouble>,
    },
    /// A fence has come to a step; `Refused`: no rung was left.
    Fence {
        /// The volume.
        volume: VolumeId,
        /// The node that is fenced.
        node: NodeId,
        /// The rung that the fence takes.
        rung: Rung,
        /// The step that it has come to.
        step: FenceStep,
    },
    /// A fence has begun.
    FenceBegun {
        /// The volume.
        volume: VolumeId,
        /// The node that is fenced.
        node: NodeId,
    },
    /// A node is granted nothing from now on, until it has shown that it holds nothing of the volume.
    Quarantined {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
    },
    /// A node that was fenced from a volume has shown that it holds none of it.
    Readmitted {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
    },
    /// A node's kernel holds a volume that it was not granted.
    StrayFound {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
    },
    /// A node is to have a volume which nobody can name: nobody is let in to a volume without a record before its agent has
    /// reported.
    DesiredUnclear {
        /// The node.
        node: NodeId,
    },
    /// More nodes are to have a volume than may: nobody is let in.
    TooManyDesired {
        /// The volume.
        volume: VolumeId,
        /// The nodes, by name.
        nodes: Vec<NodeId>,
    },
    /// A mistake of the core: what can go on with a volume came to no end. It goes on with what happens next.
    Unsettled {
        /// The volume.
        volume: VolumeId,
    },
}

impl Notice {
    /// What it is about; `None`: no volume that has a name.
    #[must_use]
    pub fn volume(&self) -> Option<&VolumeId> {
        match self {
            Self::DesiredUnclear { .. } => None,
            Self::Granted { volume, .. }
            | Self::Phase { volume, .. }
            | Self::Health { volume, .. }
            | Self::Detached { volume, .. }
            | Self::Migration { volume, .. }
            | Self::MigrationReported { volume, .. }
            | Self::LateWrite { volume, .. }
            | Self::Trouble { volume, .. }
            | Self::Fence { volume, .. }
            | Self::FenceBegun { volume, .. }
            | Self::Quarantined { volume, .. }
            | Self::Readmitted { volume, .. }
            | Self::StrayFound { volume, .. }
            | Self::TooManyDesired { volume, .. }
            | Self::Unsettled { volume } => Some(volume),
        }
    }
}
