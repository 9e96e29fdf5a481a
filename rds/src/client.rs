//! The operations, over RouterOS' REST API; `provision` makes and deletes volumes.
//!
//! Comes in: calls of [`Rds`]. Goes out: requests. Each operation reads first, writes only what differs, and
//! reads again before it reports success. Each runs in a task of its own and to its end, whether or not its
//! caller waits.

use std::sync::Arc;
use std::time::Duration;

use cleat_ids::{HostNqn, VolumeId};
use cleat_runtime::tls::renew::Renewable;
use reqwest::Method;
use serde_json::Value;

use super::access::{AccessStep, NOBODY, Wish, next_step, nobody};
use super::endpoint::{Endpoint, EndpointError};
use super::error::{RdsError, Way};
use super::gate::Priority;
use super::http::{Http, Permission, Request};
use super::list::{Freshness, Lister};
use super::metrics::Op;
use super::per_volume::{Held, PerVolume};
use super::ports::{Ports, VolumePorts};
use super::transport::Transport;
use super::volume::{Inventory, Naming, RdsVolume};
use super::{Admission, HostAcl, Made, NewVolume, Rds, SystemResource};
use crate::secret::Secret;

/// The longest way of [`next_step`] has two steps; more means that somebody else writes too.
const STEPS_MAX: usize = 4;

/// An RDS, how to reach it and how to use it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it is, and how to log in.
    pub endpoint: Endpoint,
    /// The directory and the names of our volumes.
    pub naming: Naming,
    /// The TCP port at which volumes are exported.
    pub port: u16,
    /// Whether it limits which hosts may connect.
    pub host_acl: HostAcl,
    /// How long a write without an answer may still take effect once the RDS has received it. MikroTik
    /// documents that the RDS gives up a REST command after 60 s.
    pub settle: Duration,
    /// Pause between two denials of a volume that the list lacks.
    pub absence_pause: Duration,
}

/// An RDS over its REST API. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RestRds {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) http: Arc<Http>,
    pub(super) lister: Arc<Lister>,
    pub(super) volumes: PerVolume,
    pub(super) naming: Naming,
    pub(super) port: u16,
    /// The range from which each new volume gets a port of its own; `None`: all use `port`.
    pub(super) ports: Option<Ports>,
    pub(super) host_acl: HostAcl,
    /// How long a write that was given up may still take effect.
    pub(super) settle: Duration,
    pub(super) absence_pause: Duration,
}

impl RestRds {
    /// Prepares everything; connects to nothing yet.
    ///
    /// # Errors
    /// Where the URL, the CA file or the password file cannot be used.
    pub fn new(config: Config) -> Result<Self, EndpointError> {
        let http = Http::new(config.endpoint.clone())?;
        Ok(Self::over(http, config))
    }

    /// The same, over a transport that takes the place of an RDS.
    ///
    /// # Errors
    /// Where the password file cannot be used.
    pub fn played(config: Config, carrier: Arc<dyn Transport>) -> Result<Self, EndpointError> {
        let http = Http::carried(config.endpoint.clone(), carrier)?;
        Ok(Self::over(http, config))
    }

    fn over(http: Http, config: Config) -> Self {
        let Config { endpoint: _, naming, port, host_acl, settle, absence_pause } = config;
        // First the kernel may still deliver it, then the RDS may still carry it out.
        let settle = settle + http.delivers_for();
        let http = Arc::new(http);
        let lister = Arc::new(Lister::new(Arc::clone(&http), naming.clone()));
        let volumes = PerVolume::default();
        let inner =
            Inner { http, lister, volumes, naming, port, ports: None, host_acl, settle, absence_pause };
        Self { inner: Arc::new(inner) }
    }

    /// Gives each volume that is made from now on a port of its own.
    ///
    /// Call it before the first operation.
    #[must_use]
    pub fn with_volume_ports(self, range: VolumePorts) -> Self {
        let Inner { http, lister, volumes: _, naming, port, ports: _, host_acl, settle, absence_pause } =
            &*self.inner;
        let (http, lister, naming) = (Arc::clone(http), Arc::clone(lister), naming.clone());
        let (volumes, ports) = (PerVolume::default(), Some(Ports::of(range)));
        let (port, host_acl, settle, absence_pause) = (*port, *host_acl, *settle, *absence_pause);
        let inner = Inner { http, lister, volumes, naming, port, ports, host_acl, settle, absence_pause };
        Self { inner: Arc::new(inner) }
    }

    /// From now on, writes are sent only while `permission` allows one that may be delivered for so long.
    pub fn ask_before_writes(&self, permission: impl Fn(Duration) -> bool + Send + Sync + 'static) {
        self.inner.http.ask_before_writes(Permission(Arc::new(permission)));
    }

    /// The files and certificates that connections depend on.
    #[must_use]
    pub fn certificates(&self) -> Arc<dyn Renewable> {
        self.inner.http.certificates()
    }

    async fn switch(&self, id: &VolumeId, wish: Wish, priority: Priority) -> Result<(), RdsError> {
        let id = id.clone();
        self.to_the_end("switch an export", async move |rds: Arc<Inner>| {
            let mut held = rds.volumes.hold(&id).await;
            rds.fulfil(&mut held, &id, &wish, priority).await.map(drop)
        })
        .await
    }

    /// Runs an operation to its end, however long its caller waits.
    async fn to_the_end<T, F>(
        &self,
        what: &str,
        operation: impl FnOnce(Arc<Inner>) -> F,
    ) -> Result<T, RdsError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RdsError>> + Send + 'static,
    {
        let ended = tokio::spawn(operation(Arc::clone(&self.inner))).await;
        self.inner.volumes.tidy(self.inner.settle);
        // The task panicked, or the runtime stops: nobody knows what the RDS did.
        ended.unwrap_or_else(|error| Err(RdsError::unreachable(what, Way::Lost, error)))
    }
}

#[async_trait::async_trait]
impl Rds for RestRds {
    async fn volumes(&self, priority: Priority, freshness: Freshness) -> Result<Arc<Inventory>, RdsError> {
        self.inner.lister.get(priority, freshness).await
    }

    async fn volume(
        &self,
        id: &VolumeId,
        priority: Priority,
        freshness: Freshness,
    ) -> Result<RdsVolume, RdsError> {
        self.inner.look(id, priority, freshness).await
    }

    async fn listed(&self, id: &VolumeId, priority: Priority) -> Result<Option<RdsVolume>, RdsError> {
        Ok(self.inner.lister.get(priority, Freshness::Now).await?.find(id)?.cloned())
    }

    async fn create(&self, new: &NewVolume) -> Result<Made, RdsError> {
        let new = new.clone();
        self.to_the_end("create a volume", async move |rds: Arc<Inner>| rds.create(&new).await).await
    }

    async fn delete(&self, id: &VolumeId) -> Result<(), RdsError> {
        let id = id.clone();
        self.to_the_end("delete a volume", async move |rds: Arc<Inner>| rds.delete(&id).await).await
    }

    async fn allow(&self, id: &VolumeId, host: &HostNqn, priority: Priority) -> Result<Admission, RdsError> {
        let (id, host) = (id.clone(), host.clone());
        self.to_the_end("allow a host", async move |rds: Arc<Inner>| rds.allow(&id, host, priority).await)
            .await
    }

    async fn deny(&self, id: &VolumeId, host: &HostNqn, priority: Priority) -> Result<Admission, RdsError> {
        let (id, host) = (id.clone(), host.clone());
        self.to_the_end("deny a host", async move |rds: Arc<Inner>| rds.deny(&id, host, priority).await).await
    }

    async fn close(&self, id: &VolumeId, host: &HostNqn, priority: Priority) -> Result<Admission, RdsError> {
        let (id, host) = (id.clone(), host.clone());
        self.to_the_end("deny the last host", async move |rds: Arc<Inner>| {
            rds.close(&id, host, priority).await
        })
        .await
    }

    async fn hide(&self, id: &VolumeId, priority: Priority) -> Result<(), RdsError> {
        self.switch(id, Wish::Hide, priority).await
    }

    async fn show(&self, id: &VolumeId, priority: Priority) -> Result<(), RdsError> {
        self.switch(id, Wish::Show, priority).await
    }

    async fn set_secret(&self, id: &VolumeId, secret: &Secret, priority: Priority) -> Result<(), RdsError> {
        let (id, secret) = (id.clone(), secret.clone());
        self.to_the_end("set a secret", async move |rds: Arc<Inner>| {
            rds.set_secret(&id, secret, priority).await
        })
        .await
    }

    async fn resource(&self) -> Result<SystemResource, RdsError> {
        self.inner.resource().await
    }

    fn settle(&self) -> Duration {
        self.inner.settle
    }
}

impl Inner {
    async fn allow(&self, id: &VolumeId, host: HostNqn, priority: Priority) -> Result<Admission, RdsError> {
        let mut held = self.volumes.hold(id).await;
        let (wish, admission) = match self.host_acl {
            HostAcl::None => (Wish::Show, Admission::NotEnforced),
            HostAcl::List => (Wish::Allow(host), Admission::Enforced),
        };
        self.fulfil(&mut held, id, &wish, priority).await?;
        Ok(admission)
    }

    async fn deny(&self, id: &VolumeId, host: HostNqn, priority: Priority) -> Result<Admission, RdsError> {
        if self.host_acl == HostAcl::None {
            return Ok(Admission::NotEnforced);
        }
        let mut held = self.volumes.hold(id).await;
        self.fulfil(&mut held, id, &Wish::Deny(host), priority).await?;
        Ok(Admission::Enforced)
    }

    async fn close(&self, id: &VolumeId, host: HostNqn, priority: Priority) -> Result<Admission, RdsError> {
        let mut held = self.volumes.hold(id).await;
        let (wish, admission) = match self.host_acl {
            HostAcl::None => (Wish::Hide, Admission::NotEnforced),
            HostAcl::List => (Wish::Close(host), Admission::Enforced),
        };
        self.fulfil(&mut held, id, &wish, priority).await?;
        Ok(admission)
    }

    /// Fulfils the wish, and makes sure that no write in doubt can undo it; returns the volume as last read.
    pub(super) async fn fulfil(
        &self,
        held: &mut Held,
        id: &VolumeId,
        wish: &Wish,
        priority: Priority,
    ) -> Result<RdsVolume, RdsError> {
        if matches!(wish, Wish::Allow(_) | Wish::Show) {
            held.cannot_vanish(id, self.settle)?;
        }
        let volume = self.bring_about(held, id, wish, priority).await?;
        match wish {
            Wish::Deny(host) => held.cannot_admit(id, Some(host), self.settle)?,
            Wish::Close(host) => {
                held.cannot_admit(id, Some(host), self.settle)?;
                held.cannot_admit(id, None, self.settle)?;
            }
            Wish::Hide => held.cannot_admit(id, None, self.settle)?,
            Wish::Allow(_) | Wish::Show => {
                held.cannot_hide(id, self.settle)?;
                self.check_name(&volume)?;
            }
        }
        Ok(volume)
    }

    /// Reads, and writes step by step, until the volume as read shows the wish; returns it as last read.
    pub(super) async fn bring_about(
        &self,
        held: &mut Held,
        id: &VolumeId,
        wish: &Wish,
        priority: Priority,
    ) -> Result<RdsVolume, RdsError> {
        let mut volume = self.look(id, priority, Freshness::Now).await?;
        held.read(&volume);
        for _ in 0..STEPS_MAX {
            let Some(step) = self.next_step(held, &volume, wish)? else {
                return Ok(volume);
            };
            self.set(held, &volume, &step, priority).await?;
            volume = self.look(id, priority, Freshness::Now).await?;
            if !step.taken(&volume) {
                let problem = format!("the RDS confirmed it, but shows {volume:?}");
                return Err(RdsError::malformed(&format!("set {step:?} on volume {id}"), problem));
            }
        }
        Err(RdsError::conflict(id, format!("somebody else changes it too; gave up on {wish:?}")))
    }

    fn next_step(
        &self,
        held: &Held,
        volume: &RdsVolume,
        wish: &Wish,
    ) -> Result<Option<AccessStep>, RdsError> {
        match (self.host_acl, wish) {
            // It shows as off, perhaps because of a request whose answer was lost and that still waits for
            // writes to land. Only an answer proves that it has waited, and a further request is answered
            // after it.
            (_, Wish::Hide) if !held.hid() => Ok(Some(AccessStep::Export(false))),
            (_, Wish::Close(_)) if !held.hid() => {
                Ok(next_step(volume, wish, &nobody(&volume.id)).or(Some(AccessStep::Export(false))))
            }
            // The name of nobody was put there while lists were enforced, perhaps against a node that it
            // fenced: to remove it is not for us to decide.
            (HostAcl::None, Wish::Show) if volume.hosts.iter().any(|host| host.starts_with(NOBODY)) => {
                Err(RdsError::conflict(
                    &volume.id,
                    "its list of hosts is kept as under --host-acl list, and this controller runs without: run it with \
                 --host-acl list, or clear nvme-tcp-server-allow-host-name on its disk once nobody is to be kept out",
                ))
            }
            // Without lists, exporting to everybody is what is meant.
            (HostAcl::None, Wish::Show) => Ok((!volume.exported).then_some(AccessStep::Export(true))),
            _ => Ok(next_step(volume, wish, &nobody(&volume.id))),
        }
    }

    pub(super) async fn set(
        &self,
        held: &mut Held,
        volume: &RdsVolume,
        step: &AccessStep,
        priority: Priority,
    ) -> Result<(), RdsError> {
        let request = Request {
            op: Op::SetDisk,
            method: Method::PATCH,
            path: format!("disk/{}", volume.item),
            query: vec![],
            body: Some(step.properties()),
            what: format!("set {step:?} on volume {}", volume.id),
        };
        held.writing(step);
        // A fence and a detach rely on an answer that came after the hosts' writes; a deletion does not need
        // that.
        let waits = step.switches() == Some(false) && priority != Priority::List;
        let patience = if waits { self.settle } else { Duration::ZERO };
        let written = self.write_patiently(priority, &request, patience).await;
        match &written {
            Ok(_) => held.written(step),
            Err(error) if error.outcome_unknown() => held.doubt(step.clone()),
            Err(_) => {}
        }
        tracing::info!(volume = %volume.id, ?step, outcome = written.as_ref().err().map_or("ok", RdsError::label), "RDS disk set");
        written.map(drop)
    }

    /// Sends a write, and makes sure that a list that began before its end serves nobody after it.
    pub(super) async fn write(&self, priority: Priority, request: &Request) -> Result<Value, RdsError> {
        self.write_patiently(priority, request, Duration::ZERO).await
    }

    /// Sends a write whose answer may take longer than any other request's: an export goes off only when the
    /// hosts' writes have landed. After the time of an ordinary request, others have their turn.
    async fn write_patiently(
        &self,
        priority: Priority,
        request: &Request,
        patience: Duration,
    ) -> Result<Value, RdsError> {
        let turn = self.http.turn(priority, request.op, &request.what).await?;
        self.lister.wrote();
        let answer = self.http.send_patiently(turn, request, patience).await;
        self.lister.wrote();
        answer
    }

    async fn resource(&self) -> Result<SystemResource, RdsError> {
        let what = "read the system resource";
        let request = Request {
            op: Op::Resource,
            method: Method::GET,
            path: "system/resource".to_owned(),
            query: vec![],
            body: None,
            what: what.to_owned(),
        };
        let turn = self.http.turn(Priority::List, request.op, what).await?;
        let answer = self.http.send(&turn, &request).await?;
        // Documented as a list of one; newer versions return an object.
        let item = answer.as_array().and_then(|items| items.first()).unwrap_or(&answer);
        let field = |name: &str| item.get(name).and_then(Value::as_str);
        let version = field("version").ok_or_else(|| RdsError::malformed(what, "it has no version"))?;
        let board = field("board-name").unwrap_or_default();
        Ok(SystemResource { version: version.to_owned(), board: board.to_owned() })
    }
}
