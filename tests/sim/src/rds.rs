//! The RDS as the controller sees it: the controller's `Rds` over the world's target, with a management that can be
//! away, slow, or lose answers.
//!
//! Always holds what the trait promises: success means that the change is in force, and a change whose answer was
//! lost can come into force later, until when everything else about its volume is answered as in doubt.

use std::sync::Arc;
use std::time::Duration;

use cleat_controller::rds::{
    Admission, ByteSize, Cause, Freshness, Inventory, NewVolume, Priority, Rds, RdsError, SystemResource,
    Volume, Way,
};
use cleat_controller::secret::Secret;
use cleat_core::{HostNqn, VolumeId};
use cleat_host::fabrics::DhchapSecret;

use crate::world::target::Change;
use crate::world::{self, Universe, VolumeIx, World};

/// How long a request without an answer is waited for, in ms.
const TIMEOUT: u64 = 1_500;
/// How much later than it was sent a change without an answer may come into force, in ms.
const LATE: u64 = 2_500;

/// The RDS.
#[derive(Debug)]
pub struct SimulatedRds(Universe);

impl SimulatedRds {
    /// The RDS of a world.
    #[must_use]
    pub fn new(universe: Universe) -> Self {
        Self(universe)
    }

    /// What it takes to be answered.
    async fn answered(&self, what: &str) -> Result<(), RdsError> {
        let (takes, away) = {
            let mut world = self.0.lock();
            (world.chance.within(5, 30) + world.rds.slow_ms, world.rds.away)
        };
        tokio::time::sleep(Duration::from_millis(takes)).await;
        if away || self.0.lock().rds.away {
            return Err(unreachable(what, Way::Connect));
        }
        Ok(())
    }

    async fn change(&self, id: &VolumeId, change: Change) -> Result<(), RdsError> {
        let volume = known(id)?;
        let what = format!("change {id}: {change:?}");
        self.answered(&what).await?;
        let lost = {
            let mut world = self.0.lock();
            doubt(&world, id, volume)?;
            if is_met(&world, volume, &change) {
                return Ok(());
            }
            let lost = world.chance.below(100) < world.rds.loses;
            world.note(format_args!("rds: {id} {change:?}{}", if lost { ", answer lost" } else { "" }));
            match (lost, world.chance.index(3)) {
                (false, _) | (true, 0) => world.target.change(volume, &change),
                (true, 1) => {
                    let at = world.now + world.chance.within(1, LATE);
                    world.target.luns[volume].late.push((at, change));
                }
                (true, _) => {}
            }
            lost
        };
        if lost {
            tokio::time::sleep(Duration::from_millis(TIMEOUT)).await;
            return Err(unreachable(&what, Way::Timeout));
        }
        Ok(())
    }
}

fn unreachable(what: &str, way: Way) -> RdsError {
    RdsError::Unreachable { what: what.to_owned(), way, cause: Cause::new("simulated") }
}

fn known(id: &VolumeId) -> Result<VolumeIx, RdsError> {
    world::volume_of(id.as_str()).ok_or_else(|| RdsError::NotFound { what: format!("volume {id}") })
}

/// Refuses while an earlier change without an answer may still come into force.
fn doubt(world: &World, id: &VolumeId, volume: VolumeIx) -> Result<(), RdsError> {
    let Some((at, earlier)) = world.target.luns[volume].late.first() else { return Ok(()) };
    Err(RdsError::InDoubt {
        volume: id.clone(),
        earlier: format!("{earlier:?}"),
        wait: Duration::from_millis(at.saturating_sub(world.now)),
    })
}

fn is_met(world: &World, volume: VolumeIx, change: &Change) -> bool {
    let lun = &world.target.luns[volume];
    match change {
        Change::Add(host) => lun.hosts.contains(host),
        Change::Remove(host) => !lun.hosts.contains(host),
        Change::Export(on) => lun.exported == *on,
        Change::Secret(secret) => lun.secret.as_ref() == Some(secret),
    }
}

#[tonic::async_trait]
impl Rds for SimulatedRds {
    async fn volumes(&self, _: Priority, _: Freshness) -> Result<Arc<Inventory>, RdsError> {
        self.answered("list disks").await?;
        let world = self.0.lock();
        let volumes = world.target.luns.iter().enumerate().map(|(volume, lun)| Volume {
            id: VolumeId::new(world::volume_id(volume)).unwrap(),
            item: format!("*{volume}"),
            size: ByteSize(world::SIZE),
            nqn: format!("{}{}", world::PREFIX, world::volume_id(volume)),
            port: Some(4420),
            exported: lun.exported,
            mountable: false,
            hosts: lun.hosts.clone(),
        });
        Ok(Arc::new(volumes.collect()))
    }

    async fn create(&self, new: &NewVolume) -> Result<Volume, RdsError> {
        self.volume(&new.id, Priority::Attach, Freshness::Now).await
    }

    async fn delete(&self, id: &VolumeId) -> Result<(), RdsError> {
        Err(RdsError::Conflict { volume: id.clone(), problem: "not simulated".to_owned() })
    }

    async fn allow(&self, id: &VolumeId, host: &HostNqn, _: Priority) -> Result<Admission, RdsError> {
        self.change(id, Change::Add(host.to_string())).await?;
        self.change(id, Change::Export(true)).await?;
        Ok(Admission::Enforced)
    }

    async fn deny(&self, id: &VolumeId, host: &HostNqn, _: Priority) -> Result<Admission, RdsError> {
        self.change(id, Change::Remove(host.to_string())).await?;
        Ok(Admission::Enforced)
    }

    async fn hide(&self, id: &VolumeId, _: Priority) -> Result<(), RdsError> {
        let volume = known(id)?;
        self.change(id, Change::Export(false)).await?;
        // Whoever asks gives up before this could take for ever.
        while self.0.lock().target.still_drains(volume) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn show(&self, id: &VolumeId, _: Priority) -> Result<(), RdsError> {
        self.change(id, Change::Export(true)).await
    }

    async fn set_secret(&self, id: &VolumeId, secret: &Secret, _: Priority) -> Result<(), RdsError> {
        let secret = DhchapSecret::parse(secret.reveal()).unwrap();
        self.change(id, Change::Secret(secret)).await
    }

    async fn resource(&self) -> Result<SystemResource, RdsError> {
        self.answered("read the system resource").await?;
        Ok(SystemResource { version: "7.24".into(), board: "simulated".into() })
    }
}
