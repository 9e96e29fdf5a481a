//! An RDS in memory. It can be away, full, or slow to answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cleat_core::{HostNqn, VolumeId};
use cleat_rds::secret::Secret;
use cleat_rds::{
    Admission, ByteSize, Cause, Freshness, Inventory, Made, NewVolume, Priority, Rds, RdsError, RdsVolume,
    SystemResource, Way,
};
use tokio::sync::watch;

use crate::world::PREFIX;

type Late = Box<dyn FnOnce(&mut RdsVolume) + Send>;

pub struct FakeRds {
    /// What there is.
    pub volumes: Mutex<BTreeMap<VolumeId, RdsVolume>>,
    /// Not reached while true.
    pub away: watch::Sender<bool>,
    /// Changes of a host list wait while true.
    pub stuck: watch::Sender<bool>,
    pub full: watch::Sender<bool>,
    /// Look-ups wait while true.
    pub slow: watch::Sender<bool>,
    /// How many look-ups have begun.
    pub looks: watch::Sender<u64>,
    /// The secret that was set last for each volume.
    pub secrets: Mutex<BTreeMap<VolumeId, String>>,
    /// Every change that was asked for, in order.
    pub log: Mutex<Vec<String>>,
    /// While true, changes are received and neither done nor answered: [`FakeRds::land`] does them.
    pub late: watch::Sender<bool>,
    received: Mutex<Vec<(VolumeId, Late)>>,
    /// How long a change without an answer may still be done.
    pub settle: Mutex<Duration>,
    /// How urgent each Deny was.
    pub denied_as: Mutex<Vec<Priority>>,
}

impl FakeRds {
    pub fn new() -> Arc<Self> {
        let switch = || watch::channel(false).0;
        Arc::new(Self {
            volumes: Mutex::default(),
            away: switch(),
            stuck: switch(),
            full: switch(),
            slow: switch(),
            looks: watch::channel(0).0,
            secrets: Mutex::default(),
            log: Mutex::default(),
            late: switch(),
            received: Mutex::default(),
            settle: Mutex::new(Duration::from_millis(300)),
            denied_as: Mutex::default(),
        })
    }

    pub fn hosts(&self, id: &str) -> BTreeSet<String> {
        let volumes = self.volumes.lock().unwrap();
        volumes.get(&VolumeId::new(id).unwrap()).map(|v| v.hosts.clone()).unwrap_or_default()
    }

    pub fn has(&self, id: &str) -> bool {
        self.volumes.lock().unwrap().contains_key(&VolumeId::new(id).unwrap())
    }

    /// Changes a volume behind the controller's back.
    pub fn tamper(&self, id: &str, change: impl FnOnce(&mut RdsVolume)) {
        change(self.volumes.lock().unwrap().get_mut(&VolumeId::new(id).unwrap()).unwrap());
    }

    /// Does what was received and not done, whoever asked for it.
    pub fn land(&self) {
        for (id, change) in std::mem::take(&mut *self.received.lock().unwrap()) {
            change(self.volumes.lock().unwrap().get_mut(&id).unwrap());
        }
    }

    fn answers(&self, what: &str) -> Result<(), RdsError> {
        if *self.away.borrow() {
            let cause = Cause::new("connection refused");
            return Err(RdsError::Unreachable { what: what.to_owned(), way: Way::Connect, cause });
        }
        Ok(())
    }

    async fn change(
        &self,
        id: &VolumeId,
        line: String,
        change: impl FnOnce(&mut RdsVolume) + Send + 'static,
    ) -> Result<Admission, RdsError> {
        self.log.lock().unwrap().push(line);
        if *self.late.borrow() {
            self.received.lock().unwrap().push((id.clone(), Box::new(change)));
            return std::future::pending().await;
        }
        self.stuck.subscribe().wait_for(|stuck| !stuck).await.unwrap();
        self.answers("change hosts")?;
        let mut volumes = self.volumes.lock().unwrap();
        let volume =
            volumes.get_mut(id).ok_or_else(|| RdsError::NotFound { what: format!("volume {id}") })?;
        change(volume);
        Ok(Admission::Enforced)
    }
}

#[tonic::async_trait]
impl Rds for FakeRds {
    async fn volumes(&self, _: Priority, _: Freshness) -> Result<Arc<Inventory>, RdsError> {
        self.answers("list disks")?;
        Ok(Arc::new(self.volumes.lock().unwrap().values().cloned().collect()))
    }

    async fn volume(&self, id: &VolumeId, _: Priority, _: Freshness) -> Result<RdsVolume, RdsError> {
        self.looks.send_modify(|looks| *looks += 1);
        self.slow.subscribe().wait_for(|slow| !slow).await.unwrap();
        self.answers("list disks")?;
        let found = self.volumes.lock().unwrap().get(id).cloned();
        found.ok_or_else(|| RdsError::NotFound { what: format!("volume {id}") })
    }

    async fn create(&self, new: &NewVolume) -> Result<Made, RdsError> {
        self.answers("create a volume")?;
        let what = format!("add volume {}", new.id);
        if *self.full.borrow() {
            return Err(RdsError::Full { what, detail: "no space left".into() });
        }
        let NewVolume { id, size, parameters } = new.clone();
        let mut volumes = self.volumes.lock().unwrap();
        let made = RdsVolume {
            id: id.clone(),
            item: "*1".into(),
            size,
            nqn: format!("{PREFIX}{id}"),
            port: Some(4420),
            exported: true,
            mountable: false,
            hosts: BTreeSet::new(),
            parameters,
        };
        let added = !volumes.contains_key(&id);
        let volume = volumes.entry(id.clone()).or_insert(made);
        if volume.size < size {
            let ByteSize(found) = volume.size;
            return Err(RdsError::Conflict { volume: id, problem: format!("it exists with {found} bytes") });
        }
        Ok(Made { volume: volume.clone(), added })
    }

    async fn delete(&self, id: &VolumeId) -> Result<(), RdsError> {
        self.answers("delete a volume")?;
        self.log.lock().unwrap().push(format!("delete {id}"));
        self.volumes.lock().unwrap().remove(id);
        Ok(())
    }

    async fn allow(&self, id: &VolumeId, host: &HostNqn, _: Priority) -> Result<Admission, RdsError> {
        let name = host.to_string();
        self.change(id, format!("allow {id} {host}"), move |volume| {
            volume.hosts.insert(name);
            volume.exported = true;
        })
        .await
    }

    async fn deny(&self, id: &VolumeId, host: &HostNqn, priority: Priority) -> Result<Admission, RdsError> {
        let name = host.to_string();
        self.denied_as.lock().unwrap().push(priority);
        self.change(id, format!("deny {id} {host}"), move |volume| {
            volume.hosts.remove(&name);
        })
        .await
    }

    async fn close(&self, id: &VolumeId, host: &HostNqn, priority: Priority) -> Result<Admission, RdsError> {
        let name = host.to_string();
        self.denied_as.lock().unwrap().push(priority);
        self.change(id, format!("close {id} {host}"), move |volume| {
            volume.hosts.remove(&name);
            volume.exported = false;
        })
        .await
    }

    async fn hide(&self, id: &VolumeId, _: Priority) -> Result<(), RdsError> {
        self.change(id, format!("hide {id}"), |volume| volume.exported = false).await.map(drop)
    }

    async fn show(&self, id: &VolumeId, _: Priority) -> Result<(), RdsError> {
        self.change(id, format!("show {id}"), |volume| volume.exported = true).await.map(drop)
    }

    async fn set_secret(&self, id: &VolumeId, secret: &Secret, _: Priority) -> Result<(), RdsError> {
        self.change(id, format!("set the secret of {id}"), |_| ()).await?;
        self.secrets.lock().unwrap().insert(id.clone(), secret.reveal().to_owned());
        Ok(())
    }

    async fn resource(&self) -> Result<SystemResource, RdsError> {
        self.answers("read the system resource")?;
        Ok(SystemResource { version: "7.24".into(), board: "RDS".into() })
    }

    fn settle(&self) -> Duration {
        *self.settle.lock().unwrap()
    }
}
