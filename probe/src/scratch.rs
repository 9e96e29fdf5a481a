//! The scratch disk on the RDS.
//!
//! Comes in: wishes about one disk with a fresh name. Goes out: requests to the RDS about that disk. Always
//! holds: its name is random and did not exist before, so it can be no volume. Its NQN has a prefix that no
//! agent takes for a volume's. Removing it removes its file, and may be repeated.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cleat_ids::{Epoch, VolumeId};
use cleat_rds::secret::{MasterKey, Secret};
use cleat_rds::{
    ByteSize, Config, Freshness, Naming, NewVolume, Priority, ProbedAcl, Rds as _, RdsError, RestRds,
    SystemResource, VolumeParameters,
};
use uuid::Uuid;

use crate::node::NewHost;
use crate::trouble::QuestionError;

/// Room for the volley and the pulse, and small enough to be made at once.
const SIZE: ByteSize = ByteSize(64 << 20);
/// Pause between two tries to remove the disk, doubled each time.
const AGAIN: Duration = Duration::from_secs(1);
/// Tries to remove the disk: with their pauses, about a minute of an RDS that does not answer.
const TRIES: u32 = 6;
const HOSTS: &str = "nvme-tcp-server-allow-host-name";
const PASSWORD: &str = "nvme-tcp-server-password";

/// The scratch disk: one disk with a random name, on the RDS that is probed.
#[derive(Debug)]
pub struct Scratch {
    rds: RestRds,
    id: VolumeId,
    naming: Naming,
    size: AtomicU64,
    /// Whether it was asked for: then something may be there.
    asked_for: AtomicBool,
    /// How the list of hosts is written, once that is known.
    acl: Mutex<Option<ProbedAcl>>,
    key: MasterKey,
}

impl Scratch {
    /// Prepares a disk with a fresh name; asks nothing of the RDS yet.
    ///
    /// # Errors
    /// [`QuestionError::Unclear`] where the URL, the CA file or the password file cannot be used.
    pub fn new(config: Config) -> Result<Self, QuestionError> {
        let naming = config.naming.clone();
        let rds = RestRds::new(config)
            .map_err(|error| QuestionError::unclear(cleat_runtime::exit::Causes(&error).to_string()))?;
        let id = format!("cleat-probe-{}", Uuid::new_v4().simple());
        let id = VolumeId::new(id).map_err(|error| QuestionError::unclear(error.to_string()))?;
        let mut key = [0; 32];
        key[..16].copy_from_slice(Uuid::new_v4().as_bytes());
        key[16..].copy_from_slice(Uuid::new_v4().as_bytes());
        Ok(Self {
            rds,
            id,
            naming,
            size: AtomicU64::new(SIZE.0),
            asked_for: AtomicBool::new(false),
            acl: Mutex::new(None),
            key: MasterKey::passing(&key),
        })
    }

    /// The slot of the disk, which is its id.
    #[must_use]
    pub fn slot(&self) -> &str {
        self.id.as_str()
    }

    /// The NQN of its subsystem, under the probe's own prefix.
    #[must_use]
    pub fn nqn(&self) -> String {
        self.naming.nqn(&self.id)
    }

    /// Its backing file, as `/rest/file` names it.
    #[must_use]
    pub fn file(&self) -> String {
        self.naming.file_name(&self.id)
    }

    /// Its size in bytes, as it was last asked for.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Reads what the RDS reports about itself.
    ///
    /// # Errors
    /// Where it gives no proper answer.
    pub async fn resource(&self) -> Result<SystemResource, RdsError> {
        self.rds.resource().await
    }

    /// Makes the disk, exported, with nobody on its list.
    ///
    /// # Errors
    /// Where the RDS does not make it; [`QuestionError::Unclear`] where one of its name exists.
    pub async fn make(&self) -> Result<(), QuestionError> {
        let inventory = self.rds.volumes(Priority::List, Freshness::Now).await?;
        if inventory.find(&self.id)?.is_some() {
            return Err(QuestionError::unclear(format!("the RDS has a disk {} already", self.id)));
        }
        self.asked_for.store(true, Ordering::Release);
        let parameters = VolumeParameters::default();
        self.rds.create(&NewVolume { id: self.id.clone(), size: SIZE, parameters }).await?;
        Ok(())
    }

    /// Sets how the list of hosts is written from now on.
    pub fn learn(&self, acl: ProbedAcl) {
        *self.acl.lock().unwrap_or_else(PoisonError::into_inner) = Some(acl);
    }

    /// Puts these hosts on the list, in place of all others. A list that accepts one gets the last.
    ///
    /// # Errors
    /// Where the RDS does not accept it.
    pub async fn admit(&self, hosts: &[&NewHost]) -> Result<(), RdsError> {
        let acl = *self.acl.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<&str> = hosts.iter().map(|host| host.nqn.as_str()).collect();
        match (acl, names.last()) {
            (_, None) => self.set_list(&self.nobody()).await,
            (Some(ProbedAcl::List | ProbedAcl::Ignored), _) => self.set_list(&names.join(",")).await,
            (_, Some(last)) => self.set_list(last).await,
        }
    }

    /// Writes exactly this value as the list.
    ///
    /// # Errors
    /// Where the RDS does not accept it.
    pub async fn set_list(&self, value: &str) -> Result<(), RdsError> {
        self.rds.set_properties(&self.id, &[(HOSTS, value)]).await
    }

    /// A host NQN that no host has.
    #[must_use]
    pub fn nobody(&self) -> String {
        format!("{}{}", cleat_rds::NOBODY, self.id)
    }

    /// Switches the export off, and reads that back.
    ///
    /// # Errors
    /// Where the RDS does not do it.
    pub async fn hide(&self) -> Result<(), RdsError> {
        self.rds.hide(&self.id, Priority::List).await
    }

    /// Switches the export on again, and reads that back.
    ///
    /// # Errors
    /// Where the RDS does not do it.
    pub async fn show(&self) -> Result<(), RdsError> {
        self.rds.show(&self.id, Priority::List).await
    }

    /// Asks for a larger disk.
    ///
    /// # Errors
    /// [`RdsError::Refused`] where it does not grow.
    pub async fn grow_to(&self, bytes: u64) -> Result<(), RdsError> {
        self.rds.set_properties(&self.id, &[("file-size", &bytes.to_string())]).await?;
        self.size.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// A secret that is stored nowhere; another number gives another secret.
    #[must_use]
    pub fn secret(&self, number: u64) -> Secret {
        self.key.secret(&self.id, Epoch { term: 1, seq: number })
    }

    /// Sets the secret that hosts have to authenticate with, as the controller does, and reads it back.
    ///
    /// # Errors
    /// Where the RDS does not accept or show it.
    pub async fn set_secret(&self, secret: &Secret) -> Result<(), RdsError> {
        self.rds.set_secret(&self.id, secret, Priority::List).await
    }

    /// Removes the password.
    ///
    /// # Errors
    /// Where the RDS does not do it.
    pub async fn clear_password(&self) -> Result<(), RdsError> {
        self.rds.set_properties(&self.id, &[(PASSWORD, "")]).await
    }

    /// Removes disk and file, and tries again for about a minute. Does nothing where nothing was asked for.
    ///
    /// # Errors
    /// The error of the last try.
    pub async fn remove(&self) -> Result<(), RdsError> {
        if !self.asked_for.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut pause = AGAIN;
        for _ in 1..TRIES {
            match self.rds.delete(&self.id).await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "removing again"),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.rds.delete(&self.id).await
    }
}
