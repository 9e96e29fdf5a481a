//! CreateVolume and DeleteVolume: the volume on the RDS, and whether the core lets it go.

use std::time::Duration;

use cleat_core::{Refusal, VolumeDeletion, VolumeId};
use cleat_proto::csi::v1 as csi;
use cleat_rds::{ByteSize, Made, NewVolume, Priority, RdsError, RdsVolume, VolumeParameters};
use tokio::time::Instant;

use super::call_context::{CallContext, measured};
use super::demands::volume_context;
use super::request::{Capacity, Create};
use super::status::CallError;
use crate::engine::RequestError;
use crate::metrics::RdsCall;

/// How long a deletion waits for the RDS's lists after a start: more than the core lets a list lack a volume.
const WAITS_FOR_LISTS: Duration = Duration::from_secs(15);
const LOOKS_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Makes the volume, or finds it made with what was asked for.
pub(super) async fn create(context: &CallContext, create: Create) -> Result<csi::Volume, CallError> {
    let Create { volume, capacity, demands } = create;
    let _begun = context.in_progress.begin(&volume, "CreateVolume", context.engine.now())?;
    let demands = demands.kept_to("parameters", context.attachments.is_some())?;
    if let Some(min_fence) = demands.min_fence {
        // Told now, and not when a node is silent and nothing suffices.
        let met = context.engine.consult(move |core, _| core.target().meets(min_fence)).await?;
        met.map_err(|lacking| CallError::NoSuchFence { min_fence, lacking })?;
    }
    let found = measured(RdsCall::Find, context.rds.listed(&volume, Priority::Attach)).await;
    let found = found.map_err(|source| CallError::Rds { volume: volume.clone(), source })?;
    let parameters = demands.at_the_rds();
    let size = match &found {
        None => {
            nobody_has_it(context, &volume).await?;
            ByteSize(capacity.wanted_bytes)
        }
        Some(found) => match difference(found, capacity, &parameters) {
            None => found.size,
            Some(difference) => return Err(CallError::Exists { volume, difference }),
        },
    };
    // Also where it was found: an earlier attempt may not have come to its end.
    let new = NewVolume { id: volume.clone(), size, parameters };
    let Made { volume: made, added } =
        measured(RdsCall::Create, context.rds.create(&new)).await.map_err(|source| match source {
            RdsError::Conflict { volume, problem } => CallError::Exists { volume, difference: problem },
            source => CallError::Rds { volume: volume.clone(), source },
        })?;
    match added {
        true => context.engine.made(volume.clone()).await?,
        false => context.engine.listed(&made).await?,
    }
    tracing::info!(%volume, size_bytes = made.size.0, "volume made");
    Ok(csi::Volume {
        capacity_bytes: i64::try_from(made.size.0).unwrap_or(i64::MAX),
        volume_id: volume.to_string(),
        volume_context: volume_context(&new.parameters),
        ..Default::default()
    })
}

/// In what a volume that is there is not what is asked for.
fn difference(found: &RdsVolume, capacity: Capacity, asked: &VolumeParameters) -> Option<String> {
    if let Some((parameter, made, asked)) = found.parameters.difference(asked) {
        return Some(format!("parameters[{parameter:?}]: it was made with {made}, asked for {asked}"));
    }
    let too_much = format!("capacity_range: it exists with {}, which the range does not admit", found.size);
    (!capacity.admits(found.size.0)).then_some(too_much)
}

/// A volume that is gone from the RDS behind our back, while somebody still counts as having it, must not come back
/// with other data under the same name.
async fn nobody_has_it(context: &CallContext, volume: &VolumeId) -> Result<(), CallError> {
    let holders = context
        .engine
        .record(volume.clone(), |record| record.map(cleat_core::VolumeRecord::holders).unwrap_or_default());
    let holders: Vec<String> = holders.await?.iter().map(ToString::to_string).collect();
    if holders.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "the RDS has no such volume, but one of this name is still attached to {}: detach it first",
        holders.join(", ")
    );
    Err(CallError::Unusable { volume: volume.clone(), problem })
}

/// Asks the core. Shortly after a start it says to wait, as nobody knows who has what before the RDS has listed it.
async fn delete_begins(context: &CallContext, volume: &VolumeId) -> Result<(), CallError> {
    let began = Instant::now();
    loop {
        match context.engine.delete_begins(volume.clone()).await {
            Err(RequestError::Refused(Refusal::StillWaiting { .. })) if began.elapsed() < WAITS_FOR_LISTS => {
                tokio::time::sleep(LOOKS_AGAIN_AFTER).await;
            }
            begun => return Ok(begun?),
        }
    }
}

/// Deletes the volume, if the core says that nobody has it.
pub(super) async fn delete(context: &CallContext, volume: VolumeId) -> Result<(), CallError> {
    let _begun = context.in_progress.begin(&volume, "DeleteVolume", context.engine.now())?;
    // Who may connect is compared with what is on record, before anything is decided.
    context.compare_with_list(&volume).await?;
    delete_begins(context, &volume).await?;
    // In a task of its own, so that the core hears of the end also after a panic.
    let (rds, id) = (std::sync::Arc::clone(&context.rds), volume.clone());
    let deleted = tokio::spawn(async move { measured(RdsCall::Delete, rds.delete(&id)).await }).await;
    // Only on the RDS's own answer: with one lost the volume may well be there, or go at any time, and it goes on
    // counting as being deleted.
    let deletion = match &deleted {
        Ok(Ok(()) | Err(RdsError::NotFound { .. })) => VolumeDeletion::Done,
        Ok(Err(RdsError::Refused { .. } | RdsError::Conflict { .. })) => VolumeDeletion::NotDone,
        Ok(Err(_)) | Err(_) => VolumeDeletion::Unknown,
    };
    context.engine.delete_ended(volume.clone(), deletion).await?;
    if deletion == VolumeDeletion::Done {
        tracing::info!(%volume, "volume deleted");
        return Ok(());
    }
    deleted?.map_err(|source| CallError::Rds { volume, source })
}
