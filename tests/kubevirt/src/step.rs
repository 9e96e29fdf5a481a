//! What can come next in a VM's life.

use std::fmt;

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Somebody makes the VM.
    VmMade,
    /// virt-controller makes its pod.
    LauncherMade,
    /// The scheduler places it, the kubelet has it run, the VM runs.
    LauncherRuns {
        /// Where.
        on: String,
    },
    /// The hotplugged disks come.
    Plugged,
    /// Somebody asks for a migration. KubeVirt lets nobody ask while another one goes on.
    Asked {
        /// The node that the scheduler will choose.
        to: String,
    },
    /// The node of the VM is drained: the eviction marks the VM, and virt-controller asks for a migration.
    Evicted {
        /// The node that the scheduler will choose.
        to: String,
    },
    /// virt-controller takes it on.
    Accepted,
    /// It makes the target pod, once the VM has no other pod than the one that runs it.
    TargetMade,
    /// The scheduler places that: its volumes are published there from now on.
    TargetPlaced,
    /// The kubelet has it run.
    TargetRuns,
    /// virt-controller makes the pod with the hotplugged disks there: these are published from now on.
    TargetPlugs,
    /// The kubelet has it run.
    TargetPlugged,
    /// All pods of the target are ready.
    Scheduled,
    /// The VM's status speaks of the migration: the target's virt-handler begins.
    HandedOver,
    /// virt-controller has seen that.
    Preparing,
    /// The target says where it takes the VM.
    TargetReady,
    /// The source begins to copy the memory.
    Began,
    /// The target has seen the VM's domain.
    Detected,
    /// The VM runs at the target.
    Switched,
    /// The target has the VM: its node is another one.
    Acknowledged,
    /// It is over, and well. From now on somebody may ask for the next one.
    Completed,
    /// The pods that the VM has left end.
    SourceEnds,
    /// Somebody deletes the migration while it is under way.
    AbortAsked,
    /// The source has given it up for that.
    Aborted,
    /// The target's handler was the first to see that: it says nothing of why.
    AbortSeenAtTarget,
    /// KubeVirt gives it up by itself, since it does not get on: it aborts what nobody has asked to be aborted.
    GivenUp,
    /// The source has failed to do it.
    Failed,
    /// The target's pod dies.
    TargetDied,
    /// The source's pod dies with the VM in it.
    SourceDied,
    /// What is left of the target of a migration that was over before its time ends.
    TargetEnds,
    /// Somebody deletes the VM, and it goes with all that it has.
    VmDeleted,
}

/// A step that cannot come now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutOfOrder {
    pub(crate) step: Step,
    pub(crate) lacks: &'static str,
}

impl fmt::Display for OutOfOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot play {:?}: there is no {}; play what makes it first", self.step, self.lacks)
    }
}

impl std::error::Error for OutOfOrder {}
