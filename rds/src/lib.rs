//! The client of an RDS: a few operations on volumes, each proven by what the RDS shows afterwards.
//!
//! Comes in: volume ids, sizes and host NQNs. Goes out: requests to RouterOS' REST API, and answers whose
//! kind is certain. Always holds: success means that the RDS was read after the last write and showed it.
//! Absence is reported only where the RDS itself said so. Operations on one volume do not interleave. An
//! operation that has begun goes on to its end, even if its caller has gone.
//!
//! | file | owns |
//! | --- | --- |
//! | `client` | [`RestRds`]: who may connect, the secret, the system resource |
//! | `provision` | makes and deletes volumes |
//! | `abilities` | what the device can do, by its probe |
//! | `access` | who may connect: the pure plan |
//! | `absence` | whether a volume exists that the list lacks |
//! | `owner` | the mark of the cluster that owns a volume |
//! | `password` | the secret of in-band authentication |
//! | `raw` | properties unchanged, for probing |
//! | `per_volume` | one operation at a time, and writes in doubt |
//! | `list` | the shared list of disks |
//! | `volume` | what the list shows, and which of its disks are ours |
//! | `endpoint` | how to reach the RDS |
//! | `http` | one request, its deadline and its errors |
//! | `http_client` | the HTTP client, and the CA that it uses |
//! | `transport` | what takes the place of HTTP in a simulation |
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
pub use owner::{ClusterId, NotAClusterId, VolumeParameters};
pub use ports::{NotAPortRange, VolumePorts};
pub use transport::{OutgoingRequest, Transport};
pub use trust::{Fingerprint, NotAFingerprint, Trust, TrustError};
pub use volume::{ByteSize, Inventory, Naming, NamingError, RdsVolume};

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

/// What a change of the list of hosts achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The RDS shows a list that has the change.
    Enforced,
    /// The RDS has no lists: nothing keeps any host out, and nothing is proven.
    NotEnforced,
}

/// A volume that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// The id under which hosts, agents and the RDS will know it.
    pub id: VolumeId,
    /// The exact size that it is to have.
    pub size: ByteSize,
    /// What it is made with, and keeps.
    pub parameters: VolumeParameters,
}

/// A volume that was asked for, and exists now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The volume as the RDS lists it now.
    pub volume: RdsVolume,
    /// Whether this call has added it: then nobody can have had it before.
    pub added: bool,
}

/// What the RDS reports about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemResource {
    /// The RouterOS version, such as `7.24 (stable)`.
    pub version: String,
    /// The board's name; empty where there is none.
    pub board: String,
}

/// The operations on an RDS.
#[async_trait::async_trait]
pub trait Rds: Send + Sync + 'static {
    /// Reads all volumes.
    ///
    /// # Errors
    /// Where the RDS gave no list that can be read.
    async fn volumes(&self, priority: Priority, freshness: Freshness) -> Result<Arc<Inventory>, RdsError>;

    /// Reads one volume.
    ///
    /// # Errors
    /// [`RdsError::NotFound`] where the RDS has said that it has none.
    async fn volume(
        &self,
        id: &VolumeId,
        priority: Priority,
        freshness: Freshness,
    ) -> Result<RdsVolume, RdsError> {
        self.volumes(priority, freshness).await?.get(id).cloned()
    }

    /// One volume; `None` if the list lacks it, which proves little: just enough to try to make it.
    ///
    /// # Errors
    /// Where the RDS gave no list that can be read, or where something that is not ours has its place.
    async fn listed(&self, id: &VolumeId, priority: Priority) -> Result<Option<RdsVolume>, RdsError> {
        match self.volume(id, priority, Freshness::Now).await {
            Ok(volume) => Ok(Some(volume)),
            Err(RdsError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a volume. Success if one of the same size exists already.
    ///
    /// # Errors
    /// [`RdsError::Conflict`] where something else is there: another size, a foreign disk, a leftover file.
    async fn create(&self, new: &NewVolume) -> Result<Made, RdsError>;

    /// Deletes a volume and its data. Success if it does not exist.
    ///
    /// # Errors
    /// [`RdsError::Conflict`] where what is there is not ours, or where another disk uses its file.
    async fn delete(&self, id: &VolumeId) -> Result<(), RdsError>;

    /// Lets a host connect.
    ///
    /// # Errors
    /// [`RdsError::NotFound`] where the RDS has said that it has no such volume.
    async fn allow(&self, id: &VolumeId, host: &HostNqn, priority: Priority) -> Result<Admission, RdsError>;

    /// Keeps a host from connecting. This alone does not stop one that is connected.
    ///
    /// # Errors
    /// [`RdsError::NotFound`] where the RDS has said that it has no such volume; [`RdsError::InDoubt`] where
    /// an earlier write without an answer could admit the host again.
    async fn deny(&self, id: &VolumeId, host: &HostNqn, priority: Priority) -> Result<Admission, RdsError>;

    /// Keeps the last host from connecting, and switches the export off with it: as [`Rds::deny`] and
    /// [`Rds::hide`].
    ///
    /// # Errors
    /// As those of the two.
    async fn close(&self, id: &VolumeId, host: &HostNqn, priority: Priority) -> Result<Admission, RdsError>;

    /// Switches the export off: nobody may connect.
    ///
    /// # Errors
    /// [`RdsError::NotFound`] where the RDS has said that it has no such volume; [`RdsError::InDoubt`] where
    /// an earlier write without an answer could switch it on again.
    async fn hide(&self, id: &VolumeId, priority: Priority) -> Result<(), RdsError>;

    /// Switches the export on: hosts on the list (without lists, all) may connect.
    ///
    /// # Errors
    /// [`RdsError::NotFound`] where the RDS has said that it has no such volume; [`RdsError::Conflict`] where
    /// it exports the volume under another name than ours.
    async fn show(&self, id: &VolumeId, priority: Priority) -> Result<(), RdsError>;

    /// Sets the secret that new connections of hosts have to authenticate with. Live connections stay.
    ///
    /// # Errors
    /// [`RdsError::NotFound`] where the RDS has said that it has no such volume; [`RdsError::InDoubt`] where
    /// an earlier write without an answer could replace the secret; [`RdsError::Cleartext`] where the secret
    /// would go over the network unencrypted.
    async fn set_secret(&self, id: &VolumeId, secret: &Secret, priority: Priority) -> Result<(), RdsError>;

    /// Reads what the RDS reports about itself. Also shows whether it can be reached and accepts our user.
    ///
    /// # Errors
    /// Where it gives no proper answer.
    async fn resource(&self) -> Result<SystemResource, RdsError>;

    /// How long a write without an answer may still take effect.
    fn settle(&self) -> Duration;
}
