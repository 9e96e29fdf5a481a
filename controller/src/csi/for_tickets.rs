//! What a ticket needs to know of the volume that it wants: as the RDS has it, with what its owner demands of it.
//!
//! In comes a volume's id; out goes what the core grants by. What always holds: of a volume that somebody has, nothing is said
//! here but what he got it under; how many may have one that nobody has said it of counts as one.

use std::collections::BTreeMap;
use std::sync::Arc;

use cleat_core::{Access, VolumeId, VolumeSpec};
use cleat_rds::Rds;
use tonic::Status;

use super::call_context::{CallContext, Serving};
use super::demands::{VolumeDemands, volume_context};
use super::publish::{spec_of, usable_volume};
use super::status::CallError;
use crate::engine::Engine;

/// Volumes, as tickets want them. Cheap to clone.
#[derive(Clone)]
pub struct TicketVolumes(Arc<CallContext>);

impl TicketVolumes {
    /// Those of that RDS.
    #[must_use]
    pub fn new(engine: Engine, rds: Arc<dyn Rds>, serving: Serving) -> Self {
        Self(Arc::new(CallContext::new(engine, rds, serving, None)))
    }

    /// How a volume is granted for a ticket. `access`: how many nodes may have it, where its holder says that.
    ///
    /// # Errors
    /// If there is no such volume, it cannot be used, or nobody knows.
    #[allow(clippy::result_large_err)] // tonic's own
    pub(crate) async fn spec(&self, volume: &VolumeId, access: Option<Access>) -> Result<VolumeSpec, Status> {
        Ok(self.found(volume, access).await?)
    }

    async fn found(&self, volume: &VolumeId, access: Option<Access>) -> Result<VolumeSpec, CallError> {
        let known = self.0.engine.record(volume.clone(), |record| {
            let record = record.filter(|record| !record.deleted)?;
            Some((record.spec.clone(), !record.attachments.is_empty()))
        });
        let before = match known.await? {
            // Also while the RDS is away.
            Some((spec, true)) => return Ok(spec),
            Some((spec, false)) => Some(spec.access),
            None => None,
        };
        let found = usable_volume(&self.0, volume).await?;
        let demands: BTreeMap<String, String> = volume_context(&found.parameters).into_iter().collect();
        let access = access.or(before).unwrap_or(Access::Rwo);
        Ok(spec_of(&self.0, &found, access, VolumeDemands::presumed(Some(&demands))))
    }
}
