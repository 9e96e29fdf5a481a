//! What a volume is, for those who want it attached without a call of the orchestrator's: tickets.
//!
//! In comes a volume with what its PersistentVolume says of it; out goes the same spec that a Publish would have. What holds: a
//! volume is called absent only if the RDS has said so.

use std::collections::BTreeMap;
use std::sync::Arc;

use cleat_core::{Access, Phase, VolumeId, VolumeSpec};

use super::call_context::CallContext;
use super::demands::VolumeDemands;
use super::publish::look_up;
use super::status::CallError;

/// Looks volumes up. Cheap to clone.
#[derive(Clone)]
pub(crate) struct VolumeSpecs(Arc<CallContext>);

/// Why there is no spec, as text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoSpec {
    /// There is no such volume, or it is not to be used as it is.
    Unusable(String),
    /// It could not be seen.
    Unknown(String),
}

impl VolumeSpecs {
    pub(super) fn new(context: Arc<CallContext>) -> Self {
        Self(context)
    }

    /// What a volume is. Of one that a node has the RDS is not asked: its record says it.
    pub(crate) async fn of(
        &self,
        volume: &VolumeId,
        access: Access,
        attributes: &BTreeMap<String, String>,
    ) -> Result<VolumeSpec, NoSpec> {
        let demands = VolumeDemands::presumed(Some(attributes));
        let held = self.0.engine.record(volume.clone(), |record| {
            let held = |phase: &Phase| matches!(phase, Phase::Granting | Phase::Connecting | Phase::Ready);
            let record = record.filter(|record| record.attachments.iter().any(|one| held(&one.phase)));
            record.map(|record| record.spec.clone())
        });
        let held = held.await.map_err(|error| NoSpec::Unknown(error.to_string()))?;
        if let Some(spec) = held {
            return Ok(demands.put_into(VolumeSpec { access, ..spec }));
        }
        look_up(&self.0, volume, access, demands).await.map_err(|error| match error {
            CallError::NoSuchVolume(_) | CallError::Unusable { .. } => NoSpec::Unusable(error.to_string()),
            other => NoSpec::Unknown(other.to_string()),
        })
    }
}
