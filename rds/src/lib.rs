//! The client of an RDS: a few operations on volumes, each proven by what the RDS shows afterwards.
//!
//! In come volume ids, sizes and host NQNs; out go requests to RouterOS' REST API, and answers whose kind is
//! certain. What always holds: success means that the RDS was read after the last write and showed it; absence
//! is said only where the RDS itself said so; operations on one volume do not interleave; and an operation once
//! begun goes on to its end even if its caller has gone.
//!
//! | file | owns |
//! | --- | --- |
//! | `client` | [`RestRds`]: access, probe |
//! | `provision` | create, delete |
//! | `abilities` | what the device was probed to do |
//! | `access` | who may connect: the pure plan |
//! | `absence` | whether a volume is there that the list lacks |
//! | `owner` | the mark that says whose a volume is |
//! | `password` | the secret of in-band authentication |
//! | `raw` | properties as they are, for probing |
//! | `per_volume` | one operation at a time, and writes in doubt |
//! | `list` | the shared list of disks |
//! | `volume` | what the list says, and what of it is ours |
//! | `http` | one request, its deadline and its errors |
//! | `http_client` | the HTTP client, and the CA that it goes by |
//! | `transport` | what stands in the place of HTTP in a simulation |
//! | `secret` | the secrets of in-band authentication, from the master key |
//! | `gate` | one request at a time, the most urgent first |
//! | `trust` | CA or pinned certificate |

use std::sync::Arc;
use std::time::Duration;

use cleat_ids::{HostNqn, VolumeId};

mod abilities;
mod absence;
mod access;
mod client;
mod endpoint;
mod error;
mod gate;
mod http;
mod http_client;
mod list;
mod metrics;
mod owner;
mod password;
mod per_volume;
mod ports;
mod provision;
mod raw;
pub mod secret;
#[cfg(test)]
mod tests;
mod transport;
mod trust;
mod volume;

pub use self::metrics::METRICS;
pub use abilities::{Abilities, AbilitiesError, ProbedAcl, ProbedDrain, ProbedReservations};
pub use access::NOBODY;
pub use client::{Config, RestRds};
pub use endpoint::{Endpoint, EndpointError};
pub use error::{Cause, RdsError, Way};
pub use gate::Priority;
pub use list::Freshness;
pub use owner::{ClusterId, NotAClusterId};
pub use ports::{NotAPortRange, VolumePorts};
pub use transport::{OutgoingRequest, Transport};
pub use trust::{Fingerprint, NotAFingerprint, Trust, TrustError};
pub use volume::{ByteSize, Inventory, Naming, NamingError, Volume};

use secret::Secret;

/// How the RDS limits which hosts may connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum HostAcl {
    /// Not at all: whoever reaches the portal may connect.
    None,
    /// By a comma-separated list of host NQNs on each disk.
    #[default]
    List,
}

/// What a change of the list of hosts has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The RDS shows a list that says so.
    Enforced,
    /// The RDS has no lists: nothing keeps any host out, and nothing was proven.
    NotEnforced,
}

/// A volume to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// Its id.
    pub id: VolumeId,
    /// Its size: exactly this is made.
    pub size: ByteSize,
    /// The weakest fence that suffices for it, where that was said.
    pub min_fence: Option<String>,
}

/// A volume that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// As the RDS lists it now.
    pub volume: Volume,
    /// This call has added it: nobody can have had it before.
    pub added: bool,
}

/// What the RDS says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemResource {
    /// The RouterOS version, such as `7.24 (stable)`.
    pub version: String,
    /// The board's name, empty where there is none.
    pub board: String,
}

/// The operations on an RDS.
#[async_trait::async_trait]
pub trait Rds: Send + Sync + 'static {
    /// All volumes.
    ///
    /// # Errors
    /// If the RDS did not give a list that can be read.
    async fn volumes(&self, priority: Priority, freshness: Freshness) -> Result<Arc<Inventory>, RdsError>;

    /// One volume.
    ///
    /// # Errors
    /// [`RdsError::NotFound`] if the RDS has said that it has none.
    async fn volume(
        &self,
        id: &VolumeId,
        priority: Priority,
        freshness: Freshness,
    ) -> Result<Volume, RdsError> {
        self.volumes(priority, freshness).await?.get(id).cloned()
    }

    /// One volume, or `None` if the list lacks it, which proves little: enough to try to make it.
    ///
    /// # Errors
    /// If the RDS did not give a list that can be read, or something that is not ours is in its place.
    async fn listed(&self, id: &VolumeId, priority: Priority) -> Result<Option<Volume>, RdsError> {
        match self.volume(id, priority, Freshness::Now).await {
            Ok(volume) => Ok(Some(volume)),
            Err(RdsError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a volume. One that is there already with the same size is success.
    ///
    /// # Errors
    /// [`RdsError::Conflict`] if something else is there: another size, a foreign disk, a file left behind.
    async fn create(&self, new: &NewVolume) -> Result<Made, RdsError>;

    /// Deletes a volume and its data. One that is not there is success.
    ///
    /// # Errors
    /// [`RdsError::Conflict`] if what is there is not ours, or its file is in use by another disk.
    async fn delete(&self, id: &VolumeId) -> Result<(), RdsError>;

    /// Lets a host connect.
    ///
    /// # Errors
    /// [`RdsError::NotFound`] if the RDS has said that there is no such volume.
    async fn allow(&self, id: &VolumeId, host: &HostNqn, priority: Priority) -> Result<Admission, RdsError>;

    /// Keeps a host from connecting. This alone does not stop one that is connected.
    ///
    /// # Errors
    /// [`RdsError::NotFound`] if the RDS has said that there is no such volume; [`RdsError::InDoubt`] if an
    /// earlier write without an answer could let it in again.
    async fn deny(&self, id: &VolumeId, host: &HostNqn, priority: Priority) -> Result<Admission, RdsError>;

    /// Keeps the last host from connecting, and switches the export off with it: as [`Rds::deny`] and [`Rds::hide`].
    ///
    /// # Errors
    /// As theirs.
    async fn close(&self, id: &VolumeId, host: &HostNqn, priority: Priority) -> Result<Admission, RdsError>;

    /// Switches the export off: nobody may connect.
    ///
    /// # Errors
    /// [`RdsError::NotFound`] if the RDS has said that there is no such volume; [`RdsError::InDoubt`] if an
    /// earlier write without an answer could switch it on again.
    async fn hide(&self, id: &VolumeId, priority: Priority) -> Result<(), RdsError>;

    /// Switches the export on: those on the list (without lists, all) may connect.
    ///
    /// # Errors
    /// [`RdsError::NotFound`] if the RDS has said that there is no such volume; [`RdsError::Conflict`] if it exports
    /// it under another name than ours.
    async fn show(&self, id: &VolumeId, priority: Priority) -> Result<(), RdsError>;

    /// Sets the secret with which hosts have to authenticate on new connections. Those that are up stay up.
    ///
    /// # Errors
    /// [`RdsError::NotFound`] if the RDS has said that there is no such volume; [`RdsError::InDoubt`] if an
    /// earlier write without an answer could put another secret in its place; [`RdsError::Cleartext`] if the secret
    /// would go over the network unencrypted.
    async fn set_secret(&self, id: &VolumeId, secret: &Secret, priority: Priority) -> Result<(), RdsError>;

    /// What the RDS says of itself: also the way to see whether it can be reached and knows our user.
    ///
    /// # Errors
    /// If it does not answer properly.
    async fn resource(&self) -> Result<SystemResource, RdsError>;

    /// How long a write without an answer may still take effect.
    fn settle(&self) -> Duration;
}
