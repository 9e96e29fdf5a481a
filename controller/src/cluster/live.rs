//! What the API server says now of a volume on a node, before a call about it is begun.
//!
//! A call has no epoch, and the attacher may send one twice, late, or after another replica's. So a Publish counts only while
//! a VolumeAttachment asks for it, and an Unpublish only while none does.

use std::collections::BTreeSet;

use cleat_core::{NodeId, VolumeId};
use cleat_kubernetes::api::ApiError;
use cleat_kubernetes::attachments::{Attachments, Live};

use super::require_migration::NoMove;

/// Why a call is not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAsClustered {
    /// A Publish that nobody asks for.
    #[error(
        "cannot attach volume {volume} to node {node}: no VolumeAttachment asks for it there, or it is being deleted; there is \
         nothing to do: this Publish is a late one, or not the attacher's"
    )]
    NotAsked {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
    },
    /// An Unpublish of what is to stay.
    #[error(
        "cannot detach volume {volume} from node {node}: a VolumeAttachment asks for it there, and is not being deleted: this \
         Unpublish is a late one; delete that VolumeAttachment to detach it"
    )]
    StillAsked {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
    },
    /// Nobody knows.
    #[error(
        "cannot ask the API server for the VolumeAttachments of volume {volume}: {source}; repeat the call"
    )]
    NotAnswered {
        /// The volume.
        volume: VolumeId,
        /// Its answer.
        source: ApiError,
    },
    /// A Publish for a second node, of a volume whose owner demands a live migration for that.
    #[error(
        "cannot attach volume {volume} to node {node} beside {}: its StorageClass demands a live migration of its VM to {node} \
         for that (requireMigration), and none is under way: {why}; {}",
        named(others), why.to_do()
    )]
    NoMigration {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// Who has it, or is to get it.
        others: Vec<NodeId>,
        /// What was found instead.
        why: Box<NoMove>,
    },
    /// Nobody knows whether that is so.
    #[error(
        "cannot ask the API server whether a live migration moves volume {volume} to node {node}, which its StorageClass demands \
         (requireMigration): {source}; repeat the call"
    )]
    MigrationNotAnswered {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node: NodeId,
        /// Its answer.
        source: ApiError,
    },
}

fn named(nodes: &[NodeId]) -> String {
    let all: Vec<_> = nodes.iter().map(|node| format!("node {node}")).collect();
    all.join(" and ")
}

/// Whether a Publish may be begun.
///
/// # Errors
/// Why not.
pub(crate) async fn may_publish(
    attachments: &Attachments,
    volume: &VolumeId,
    node: &NodeId,
) -> Result<(), NotAsClustered> {
    match live(attachments, volume, node.as_str()).await? {
        Live::Wanted => Ok(()),
        Live::Leaving | Live::Nobody => {
            Err(NotAsClustered::NotAsked { volume: volume.clone(), node: node.clone() })
        }
    }
}

/// Whether an Unpublish may be begun: from these nodes and, without `only_these`, from whichever the cluster names.
///
/// # Errors
/// Why not.
pub(crate) async fn may_unpublish(
    attachments: &Attachments,
    volume: &VolumeId,
    nodes: Vec<NodeId>,
    only_these: bool,
) -> Result<(), NotAsClustered> {
    let mut names: BTreeSet<String> = nodes.iter().map(NodeId::to_string).collect();
    if !only_these {
        let source = ApiError::Unanswered("they were not listed yet".into());
        let unknown = NotAsClustered::NotAnswered { volume: volume.clone(), source };
        names.extend(attachments.wanting(volume.as_str()).ok_or(unknown)?);
    }
    for name in names {
        if live(attachments, volume, &name).await? == Live::Wanted
            && let Ok(node) = NodeId::new(&name)
        {
            return Err(NotAsClustered::StillAsked { volume: volume.clone(), node });
        }
    }
    Ok(())
}

async fn live(attachments: &Attachments, volume: &VolumeId, node: &str) -> Result<Live, NotAsClustered> {
    let unknown = |source| NotAsClustered::NotAnswered { volume: volume.clone(), source };
    attachments.live(volume.as_str(), node).await.map_err(unknown)
}
