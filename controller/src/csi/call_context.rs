//! What every CSI call needs: the engine, the RDS, how volumes are served, and what else is under way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use cleat_core::{Portal, SubsystemNqn, VolumeId};
use cleat_ids::NqnPrefix;
use cleat_kubernetes::attachments::Attachments;
use cleat_rds::{Freshness, Priority, Rds, RdsError, RdsVolume};

use super::in_progress::InProgress;
use super::overtaking::Publishes;
use super::status::CallError;
use super::turns::Turns;
use crate::engine::Engine;
use crate::metrics::{self, RdsCall};

/// How volumes are served to hosts.
#[derive(Clone, Debug)]
pub struct Serving {
    /// What precedes the volume id in a subsystem NQN.
    pub nqn_prefix: NqnPrefix,
    /// Where the RDS serves volumes to hosts.
    pub portals: Vec<Portal>,
}

impl Serving {
    /// The subsystem NQN of a volume.
    pub(super) fn subsystem_nqn(&self, volume: &VolumeId) -> SubsystemNqn {
        self.nqn_prefix.subsystem(volume)
    }

    /// Where a volume is served: at its own port, on all addresses.
    pub(super) fn portals(&self, volume: &RdsVolume) -> Vec<Portal> {
        let at = |portal: &Portal| {
            let address = SocketAddr::new(portal.ip(), volume.port.unwrap_or(portal.port()));
            // Refused is port 0 alone, at which nothing is served.
            Portal::from_address(address).unwrap_or(*portal)
        };
        self.portals.iter().map(at).collect()
    }
}

/// What every call needs.
pub(super) struct CallContext {
    pub(super) engine: Engine,
    pub(super) rds: Arc<dyn Rds>,
    pub(super) serving: Serving,
    /// In a cluster: who is to have what.
    pub(super) attachments: Option<Arc<Attachments>>,
    pub(super) in_progress: InProgress,
    pub(super) publishes: Publishes,
    pub(super) turns: Turns,
}

impl CallContext {
    pub(super) fn new(
        engine: Engine,
        rds: Arc<dyn Rds>,
        serving: Serving,
        attachments: Option<Arc<Attachments>>,
    ) -> Self {
        let (in_progress, publishes, turns) = (InProgress::default(), Publishes::default(), Turns::default());
        Self { engine, rds, serving, attachments, in_progress, publishes, turns }
    }

    /// The volume; `None` only if the RDS has said that it has none.
    pub(super) async fn find(
        &self,
        volume: &VolumeId,
        freshness: Freshness,
    ) -> Result<Option<RdsVolume>, CallError> {
        match measured(RdsCall::Find, self.rds.volume(volume, Priority::Attach, freshness)).await {
            Ok(found) => {
                // Also so that the core holds who may connect against what is on record.
                self.engine.listed(&found).await?;
                Ok(Some(found))
            }
            Err(RdsError::NotFound { .. }) => Ok(None),
            Err(source) => Err(CallError::Rds { volume: volume.clone(), source }),
        }
    }

    /// Has the core hold who may connect to a volume, by the RDS's list of now, against what is on record. What one list
    /// lacks the core does not take for absent.
    pub(super) async fn compare_with_list(&self, volume: &VolumeId) -> Result<(), CallError> {
        let listed = measured(RdsCall::Find, self.rds.listed(volume, Priority::Detach)).await;
        match listed.map_err(|source| CallError::Rds { volume: volume.clone(), source })? {
            Some(listed) => Ok(self.engine.listed(&listed).await?),
            None => Ok(()),
        }
    }
}

/// Measures a call to the RDS.
pub(super) async fn measured<T>(
    call: RdsCall,
    asking: impl Future<Output = Result<T, RdsError>>,
) -> Result<T, RdsError> {
    let began = Instant::now();
    let answer = asking.await;
    let error = answer.as_ref().err().map(crate::engine::rds_failure);
    metrics::rds_call(call, began.elapsed(), error.as_ref());
    answer
}
