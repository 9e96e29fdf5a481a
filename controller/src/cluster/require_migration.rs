//! Whether a second node may have a volume whose owner demands a live migration for that (`requireMigration`).
//!
//! In come who has the volume, as the core knows it, and who moves with it, as the API server says now; out goes nothing, or
//! why a Publish is not begun. What holds: this only refuses. Who is let in is the core's to say, nobody is cut off by it, and
//! a node that has the volume already is never refused, whatever the API server says or does not say.

use std::collections::BTreeSet;

use cleat_core::{Attachment, Core, NodeId, Phase, Trouble, UnixMillis, VolumeId, VolumeRecord};
use cleat_kubernetes::attachments::Attachments;
use cleat_kubernetes::kubevirt::live::mover_now;
use cleat_kubernetes::kubevirt::mover::{MoveSeen, MoveStage, MoverSeen};

use super::NotAsClustered;

/// Who has a volume or is to get it, for a node that asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holding {
    /// Whether the node itself has it.
    itself: Itself,
    /// The other nodes, but for those that are being detached, and those that have it for tickets alone.
    others: BTreeSet<NodeId>,
}

/// Whether a node that asks for a volume has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Itself {
    No,
    Yes,
    /// The records were lost, and it was to have the volume: it has it if it was answered that.
    IfAnswered,
}

impl Holding {
    /// As it was decided, durable or not.
    pub(crate) fn of(core: &Core, volume: &VolumeId, node: &NodeId, now: UnixMillis) -> Self {
        let publishes = core.waiting(volume, now).into_iter().filter(|one| one.request == "publish");
        let waiting = publishes.filter_map(|one| one.node).collect();
        Self::from_parts(core.volumes().get(volume), core.unheard_holders(volume), waiting, node)
    }

    fn from_parts(
        record: Option<&VolumeRecord>,
        unheard: BTreeSet<NodeId>,
        waiting: BTreeSet<NodeId>,
        node: &NodeId,
    ) -> Self {
        // What is there for tickets alone gives way, or keeps whoever comes waiting: nobody is let in beside it.
        let of_csi = |one: &&Attachment| one.wanted.csi;
        let own = record.and_then(|record| record.attachment(node)).filter(of_csi);
        let itself = match own.map(|own| (&own.phase, own.trouble())) {
            None if unheard.contains(node) => Itself::IfAnswered,
            None | Some((Phase::Draining { .. }, _)) => Itself::No,
            Some((Phase::Stray, Some(Trouble::DesiredWithoutRecord))) => Itself::IfAnswered,
            Some(_) => Itself::Yes,
        };
        let all = record.into_iter().flat_map(|record| &record.attachments);
        let staying = all.filter(of_csi).filter(|one| !matches!(one.phase, Phase::Draining { .. }));
        let staying = staying.map(|one| one.node.clone());
        let others = staying.chain(unheard).chain(waiting).filter(|other| other != node).collect();
        Self { itself, others }
    }
}

/// Why no live migration lets a second node have a volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoMove {
    /// There is nobody to ask.
    #[error("this controller runs outside a cluster, where nobody says who migrates")]
    NoCluster,
    /// Nobody migrates by KubeVirt.
    #[error(
        "the cluster has no KubeVirt: it knows no VirtualMachineInstances or no VirtualMachineInstanceMigrations"
    )]
    NoKubeVirt,
    /// Whoever uses the volume is no VM.
    #[error("no pod of a KubeVirt VM has the volume's claim")]
    NoVm,
    /// The VM does not move.
    #[error("VM {vm} has it, and has no VirtualMachineInstanceMigration for which a target pod was made")]
    Stays {
        /// The VM.
        vm: String,
    },
    /// A pod was made for a migration that is not there.
    #[error(
        "a pod of VM {vm} was made for migration {uid}, and no VirtualMachineInstanceMigration has that UID"
    )]
    NoObject {
        /// The VM.
        vm: String,
        /// The migration's UID.
        uid: String,
    },
    /// The last one is over.
    #[error("VirtualMachineInstanceMigration {name} of VM {vm} {how}, and there is no later one")]
    Over {
        /// The VM.
        vm: String,
        /// The migration.
        name: String,
        /// How it ended.
        how: &'static str,
    },
    /// It moves between other nodes.
    #[error("VirtualMachineInstanceMigration {name} moves VM {vm} from node {from} to {to}")]
    Elsewhere {
        /// The VM.
        vm: String,
        /// The migration.
        name: String,
        /// The node that it moves from.
        from: String,
        /// Where to.
        to: String,
    },
    /// Nothing is known.
    #[error("what KubeVirt's objects say cannot be true together: {why}")]
    Contradiction {
        /// What they say.
        why: String,
    },
}

impl NoMove {
    /// What a person can do.
    pub(super) fn to_do(&self) -> &'static str {
        match self {
            Self::NoCluster | Self::NoKubeVirt => "detach it from there first",
            _ => "migrate the VM by KubeVirt, or detach the volume from there first",
        }
    }
}

/// Whether a Publish may be begun, of a volume whose owner demands a migration for a second node.
///
/// # Errors
/// Why not.
pub(crate) async fn may_be_second(
    attachments: Option<&Attachments>,
    volume: &VolumeId,
    node: &NodeId,
    holding: Holding,
) -> Result<(), NotAsClustered> {
    let Holding { itself, others } = holding;
    if others.is_empty() || itself == Itself::Yes {
        return Ok(());
    }
    let refused = |why| {
        let (others, why) = (others.iter().cloned().collect(), Box::new(why));
        NotAsClustered::NoMigration { volume: volume.clone(), node: node.clone(), others, why }
    };
    let Some(attachments) = attachments else { return Err(refused(NoMove::NoCluster)) };
    let unknown =
        |source| NotAsClustered::MigrationNotAnswered { volume: volume.clone(), node: node.clone(), source };
    let now = mover_now(attachments, volume.as_str(), node.as_str()).await.map_err(unknown)?;
    if itself == Itself::IfAnswered && now.answered {
        return Ok(());
    }
    moves_there(node, &others, now.mover.as_ref()).map_err(refused)
}

/// Whether a VM moves with the volume to that node, from the one node that has it.
fn moves_there(node: &NodeId, others: &BTreeSet<NodeId>, mover: Option<&MoverSeen>) -> Result<(), NoMove> {
    let (vm, seen) = match mover {
        None => return Err(NoMove::NoKubeVirt),
        Some(MoverSeen::Nobody) => return Err(NoMove::NoVm),
        Some(MoverSeen::Contradiction { why }) => return Err(NoMove::Contradiction { why: why.clone() }),
        Some(MoverSeen::Vm { namespace, name, migration, .. }) => (format!("{namespace}/{name}"), migration),
    };
    let Some(seen) = seen.as_deref() else { return Err(NoMove::Stays { vm }) };
    let MoveSeen { uid, name, source, target, stage, .. } = seen;
    // Whoever may make pods may write a UID on one.
    let Some(name) = name.clone() else { return Err(NoMove::NoObject { vm, uid: uid.clone() }) };
    let over = |how| Err(NoMove::Over { vm: vm.clone(), name: name.clone(), how });
    match stage {
        MoveStage::Completed => return over("has completed"),
        MoveStage::Failed => return over("has failed"),
        MoveStage::Aborted => return over("was aborted"),
        MoveStage::Preparing | MoveStage::Running => {}
    }
    let is_there = target.as_deref() == Some(node.as_str());
    if is_there && others.iter().all(|other| other.as_str() == source) {
        return Ok(());
    }
    let to = target.as_ref().map_or_else(|| "no node yet".to_owned(), |target| format!("node {target}"));
    Err(NoMove::Elsewhere { vm, name, from: source.clone(), to })
}

#[cfg(test)]
#[path = "require_migration_tests.rs"]
mod tests;
