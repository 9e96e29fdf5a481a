//! VolumeAttachments that went without an Unpublish: their finalizer was taken off, the controller was away for long, or
//! etcd was set back.
//!
//! In comes the time; out go detaches like a caller's, each after the API server itself has said twice, some time apart and
//! the second time right before, that nobody asks for that volume on that node. Whether the node can write is proven as
//! always. What a node holds without a grant (a stray) goes the same way; of a host that is no node of the cluster, nobody
//! here can know what it has the volume for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cleat_core::{Attachment, NodeId, Phase, VolumeId};
use cleat_kubernetes::attachments::{Attachments, Live};
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;

/// Between two looks: so long a VolumeAttachment is missing at least.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Looks until it is stopped.
pub(crate) async fn follow(attachments: Arc<Attachments>, engine: Engine, stop: CancellationToken) {
    let mut missed = BTreeSet::new();
    let look = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Ok(held) = engine.view(|core, _| held(core)).await else { return };
            let unwanted = unwanted(&attachments, held).await;
            for (volume, node) in unwanted.intersection(&missed) {
                if attachments.live(volume.as_str(), node.as_str()).await != Ok(Live::Nobody) {
                    continue;
                }
                tracing::warn!(
                    %volume, %node,
                    "no VolumeAttachment asks for it there any more, and nobody has called: detaching it"
                );
                // What comes of it is shown like any detach; it is begun again at a later look where it failed.
                drop(engine.unpublish(volume.clone(), Some(node.clone())).await);
            }
            missed = unwanted;
        }
    };
    tokio::select! {
        () = look => {}
        () = stop.cancelled() => {}
    }
}

/// Who has what, or may have it, and is not being detached.
fn held(core: &cleat_core::Core) -> Vec<(VolumeId, NodeId)> {
    let all = core.volumes().values().flat_map(|record| {
        record.attachments.iter().map(move |attachment| (record.spec.id.clone(), attachment))
    });
    let is_known = |a: &Attachment| a.phase != Phase::Stray || core.nodes().contains_key(&a.node);
    // What is there for tickets alone, no VolumeAttachment has ever asked for.
    let stays =
        all.filter(|(_, a)| a.wanted.csi && !matches!(a.phase, Phase::Draining { .. }) && is_known(a));
    stays.map(|(volume, a)| (volume, a.node.clone())).collect()
}

/// Those of them that nobody asks for: by the watch, and then by the API server itself.
async fn unwanted(attachments: &Attachments, held: Vec<(VolumeId, NodeId)>) -> BTreeSet<(VolumeId, NodeId)> {
    let mut unwanted = BTreeSet::new();
    let Some(wanted) = attachments.all_wanted() else { return unwanted };
    for (volume, node) in held {
        // What cannot be seen, or asked, counts as wanted.
        if wanted.unclear.contains(node.as_str())
            || wanted.known.contains(&(volume.to_string(), node.to_string()))
        {
            continue;
        }
        if attachments.live(volume.as_str(), node.as_str()).await == Ok(Live::Nobody) {
            unwanted.insert((volume, node));
        }
    }
    unwanted
}
