//! ControllerPublishVolume and ControllerUnpublishVolume: what the RDS says of the volume, then the core.

use std::collections::HashMap;

use cleat_core::{Access, NodeId, Phase, VolumeId, VolumeRecord, VolumeSpec};
use cleat_rds::{Freshness, RdsVolume};

use super::call_context::CallContext;
use super::demands::VolumeDemands;
use super::overtaking::OnItsWay;
use super::request::{Publish, Unpublish};
use super::status::CallError;
use super::turns::Turn;
use super::{EPOCH_KEY, NAMESPACE_KEY, SUBSYSTEM_KEY, VOLUME_KEY};
use crate::cluster::{self, Holding};
use crate::engine::RequestError;

/// A list that was read a moment ago for others serves to know what a volume is. That it is *not* there is always
/// asked again.
const LOOKED_UP_WITHIN: Freshness = Freshness::Within(std::time::Duration::from_secs(2));

/// Publishes a volume on a node; gives the PublishContext.
pub(super) async fn publish(
    context: &CallContext,
    publish: Publish,
    on_its_way: OnItsWay,
) -> Result<HashMap<String, String>, CallError> {
    let Publish { volume, node, access, read_only, demands } = publish;
    is_asked_for(context, &volume, &node).await?;
    let known = attached_spec(context, &volume, &node).await?;
    let looked_up = known.is_none();
    let spec = match known {
        Some(spec) => demands.put_into(VolumeSpec { access, ..spec }),
        None => look_up(context, &volume, access, demands).await?,
    };
    // A volume of one node gets no second one in any case.
    let turn = match spec.require_migration && spec.access == Access::RwxBlock {
        true => Some(may_be_second(context, &volume, &node).await?),
        false => None,
    };
    if looked_up || turn.is_some() {
        // Both take seconds, after which it may be that nobody asks for it any more.
        is_asked_for(context, &volume, &node).await?;
    }
    let publishing = on_its_way.hand_over(context.engine.publish(node, spec, read_only)).await;
    drop(turn);
    let grant = publishing.map_err(RequestError::Refused)??.granted().await?;
    let namespace_uuid = grant.identity.map(|identity| identity.namespace_uuid.to_string());
    Ok(HashMap::from([
        (EPOCH_KEY.to_owned(), grant.epoch.to_string()),
        (VOLUME_KEY.to_owned(), volume.to_string()),
        (
            SUBSYSTEM_KEY.to_owned(),
            grant.spec.subsystem_nqn.as_ref().map(ToString::to_string).unwrap_or_default(),
        ),
        (NAMESPACE_KEY.to_owned(), namespace_uuid.unwrap_or_default()),
    ]))
}

/// Checks, for a volume whose owner demands that, that a live migration brings it to the node where another node has it. Until
/// the turn is over no other Publish of the volume is looked at: the next one sees what became of this one.
async fn may_be_second(context: &CallContext, volume: &VolumeId, node: &NodeId) -> Result<Turn, CallError> {
    let turn = context.turns.next(volume).await;
    let (about, of) = (volume.clone(), node.clone());
    let holding =
        context.engine.decided(volume.clone(), move |core, now| Holding::of(core, &about, &of, now));
    cluster::may_be_second(context.attachments.as_deref(), volume, node, holding.await?).await?;
    Ok(turn)
}

/// Takes a volume off a node, or off all.
pub(super) async fn unpublish(context: &CallContext, unpublish: Unpublish) -> Result<(), CallError> {
    let Unpublish { volume, node } = unpublish;
    is_asked_for_no_more(context, &volume, node.as_ref()).await?;
    context.publishes.overtake(&volume, node.as_ref()).await;
    // What is not on record may be on the RDS's list all the same: a store may be lost.
    if !context.engine.record(volume.clone(), |record| record.is_some()).await? {
        context.compare_with_list(&volume).await?;
        // That takes seconds: it may be asked for again, and granted, and this call has no epoch.
        is_asked_for_no_more(context, &volume, node.as_ref()).await?;
    }
    let unpublishing = context.engine.unpublish(volume, node).await?;
    Ok(unpublishing.proven().await?)
}

/// Checks, in a cluster, that a VolumeAttachment asks for the volume on that node now.
async fn is_asked_for(context: &CallContext, volume: &VolumeId, node: &NodeId) -> Result<(), CallError> {
    match &context.attachments {
        Some(attachments) => Ok(cluster::may_publish(attachments, volume, node).await?),
        None => Ok(()),
    }
}

/// Checks, in a cluster, that no VolumeAttachment asks for the volume on that node now; without a node, on any.
async fn is_asked_for_no_more(
    context: &CallContext,
    volume: &VolumeId,
    node: Option<&NodeId>,
) -> Result<(), CallError> {
    let Some(attachments) = &context.attachments else { return Ok(()) };
    let nodes = match node {
        Some(node) => vec![node.clone()],
        None => {
            let about = volume.clone();
            let holders = context.engine.consult(move |core, _| {
                core.volumes().get(&about).map(VolumeRecord::holders).unwrap_or_default()
            });
            holders.await?
        }
    };
    Ok(cluster::may_unpublish(attachments, volume, nodes, node.is_some()).await?)
}

/// What is known of a volume that this very node has, or is getting: then the RDS is not asked.
///
/// That is safe because nothing is decided by the answer. The core joins this call to the attachment, whose epoch,
/// size and identity stand; a volume that is tracked so cannot have been deleted through us; and if somebody else
/// deleted it, its paths are gone, which the agent sees and the core says. It is useful because a repeated call
/// must find its operation also while the RDS is away (but for the time before its first list after a start).
async fn attached_spec(
    context: &CallContext,
    volume: &VolumeId,
    node: &NodeId,
) -> Result<Option<VolumeSpec>, CallError> {
    let node = node.clone();
    let known = context.engine.record(volume.clone(), move |record| {
        let record = record?;
        let attachment = record.attachment(&node)?;
        match attachment.phase {
            Phase::Granting | Phase::Connecting | Phase::Ready => Some(record.spec.clone()),
            Phase::Stray | Phase::Draining { .. } => None,
        }
    });
    Ok(known.await?)
}

async fn look_up(
    context: &CallContext,
    volume: &VolumeId,
    access: Access,
    demands: VolumeDemands,
) -> Result<VolumeSpec, CallError> {
    Ok(spec_of(context, &usable_volume(context, volume).await?, access, demands))
}

/// The volume, as the RDS has it, if its agents can find it and nobody but its user writes to it.
pub(super) async fn usable_volume(context: &CallContext, volume: &VolumeId) -> Result<RdsVolume, CallError> {
    let mut found = context.find(volume, LOOKED_UP_WITHIN).await?;
    if found.is_none() {
        found = context.find(volume, Freshness::Now).await?;
    }
    let found = found.ok_or_else(|| CallError::NoSuchVolume(volume.clone()))?;
    usable(context, &found)?;
    Ok(found)
}

/// How agents find the volume, for that access and with those demands.
pub(super) fn spec_of(
    context: &CallContext,
    found: &RdsVolume,
    access: Access,
    demands: VolumeDemands,
) -> VolumeSpec {
    VolumeSpec {
        id: found.id.clone(),
        access,
        subsystem_nqn: Some(context.serving.subsystem_nqn(&found.id)),
        portals: context.serving.portals(found),
        size_bytes: found.size.0,
        min_fence: demands.min_fence(),
        migration_timeout_ms: demands.migration_timeout_ms(),
        require_migration: demands.require_migration,
    }
}

/// Checks that agents will find the volume under the name that they are sent, and that nobody but its user writes to
/// it.
fn usable(context: &CallContext, found: &RdsVolume) -> Result<(), CallError> {
    let unusable = |problem| Err(CallError::Unusable { volume: found.id.clone(), problem });
    let nqn = context.serving.subsystem_nqn(&found.id);
    if !found.nqn.is_empty() && found.nqn != nqn.as_str() {
        return unusable(format!("the RDS exports it as {}, not as {nqn} (--nqn-prefix)", found.nqn));
    }
    if found.mountable {
        return unusable(
            "the RDS may mount a file system that it finds in it: set mount-filesystem=no on its disk"
                .to_owned(),
        );
    }
    Ok(())
}
