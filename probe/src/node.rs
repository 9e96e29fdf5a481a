//! This node's connections to the scratch disk.
//!
//! Comes in: host identities that were just made. Goes out: connections under them, and what the kernel
//! shows. Always holds: only controllers of the scratch disk's subsystem **and** of an identity made here are
//! ever deleted. The node's own identity is not even read.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cleat_host::devnode::{self, OpenFor};
use cleat_host::fabrics::{
    ConnectFailure, ConnectOptions, ConnectRequest, DhchapSecret, ExactController, Fabrics, KernelFabrics,
    LossTimeout,
};
use cleat_host::reservations::{BlockReservations, PathReservations};
use cleat_host::sysfs::{Controller, SubsystemView, Sysfs};
use cleat_host::work::Workers;
use cleat_host::{DevT, HostId, HostNqn, NamespaceIdentity, Portal, SubsystemNqn, modules};

use uuid::Uuid;

use crate::trouble::{QuestionError, until};

/// A connect to a target that answers takes milliseconds; the kernel makes one at a time.
const CONNECT: Duration = Duration::from_secs(30);
/// Longest time from a connection to its block device.
const DEVICE: Duration = Duration::from_secs(20);
/// A deletion fails what is in flight, or waits for it.
const DISCONNECT: Duration = Duration::from_secs(45);
/// Reading sysfs asks only the kernel.
const SYSFS: Duration = Duration::from_secs(10);
const FABRICS_DEVICE: &str = "/dev/nvme-fabrics";
const DEV: &str = "/dev";

/// A host identity that was just made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewHost {
    /// Its host NQN, made from the identifier.
    pub nqn: HostNqn,
    /// Its host identifier, a random UUID.
    pub id: HostId,
}

/// How a target answers a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// It admitted the host, which has disconnected again.
    Admitted,
    /// It refused the host, for this reason.
    Refused(ConnectFailure),
}

/// The scratch disk as a block device of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its device number, by which it is opened.
    pub dev: DevT,
    /// UUID and NGUID of its namespace.
    pub identity: NamespaceIdentity,
    /// Its namespace identifier (NSID) at the target.
    pub nsid: u32,
    /// Capacity in bytes, as sysfs shows it.
    pub size_bytes: u64,
    /// Its logical block size in bytes.
    pub block_bytes: usize,
}

/// This node, as far as the scratch disk is concerned.
#[derive(Debug)]
pub struct ProbeNode {
    sysfs: Sysfs,
    fabrics: KernelFabrics,
    workers: Workers,
    reservations: BlockReservations,
    subsystem: SubsystemNqn,
    portals: Vec<Portal>,
    /// Every identity that was made here.
    identities: Mutex<Vec<NewHost>>,
}

impl ProbeNode {
    /// Opens the kernel's interfaces.
    ///
    /// # Errors
    /// Where this kernel has no NVMe/TCP, or the caller is not root.
    pub async fn open(nqn: &str, portals: Vec<Portal>) -> Result<Self, QuestionError> {
        let unusable = |error: &(dyn std::error::Error + 'static)| {
            QuestionError::unclear(cleat_runtime::exit::Causes(error).to_string())
        };
        let sysfs = Sysfs::default();
        modules::ensure_nvme_tcp(&sysfs, Path::new(FABRICS_DEVICE), Path::new("modprobe"))
            .await
            .map_err(|error| unusable(&error))?;
        let workers = Workers::new();
        Ok(Self {
            fabrics: KernelFabrics::new(FABRICS_DEVICE, sysfs.clone()),
            reservations: BlockReservations::at(DEV, sysfs.clone(), workers.clone()),
            subsystem: SubsystemNqn::parse(nqn).map_err(|error| unusable(&error))?,
            sysfs,
            workers,
            portals,
            identities: Mutex::new(Vec::new()),
        })
    }

    /// Makes a host identity that no target has seen.
    pub fn fresh_host(&self) -> NewHost {
        let id = loop {
            if let Some(id) = HostId::from_bytes(Uuid::new_v4().into_bytes()) {
                break id;
            }
        };
        let identity = NewHost { nqn: HostNqn::from_host_id(id), id };
        self.identities.lock().unwrap_or_else(PoisonError::into_inner).push(identity.clone());
        identity
    }

    /// Whether this kernel can authenticate in band.
    pub fn authenticates(&self) -> bool {
        self.fabrics.authenticates()
    }

    /// Runs work that may block on threads of its own.
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Reservation commands on the block device.
    pub fn reservations(&self) -> &BlockReservations {
        &self.reservations
    }

    fn request(&self, host: &NewHost, portal: Portal, secret: Option<&DhchapSecret>) -> ConnectRequest {
        ConnectRequest {
            subsystem: self.subsystem.clone(),
            portal,
            host_nqn: host.nqn.clone(),
            host_id: host.id,
            options: ConnectOptions {
                nr_io_queues: Some(1),
                reconnect_delay: Some(Duration::from_secs(1)),
                // A connection that a killed probe has left goes by itself soon after the disk.
                ctrl_loss_tmo: Some(LossTimeout::After(Duration::from_secs(60))),
                keep_alive_tmo: Some(Duration::from_secs(5)),
                fast_io_fail_tmo: None,
            },
            secret: secret.cloned(),
        }
    }

    /// Tries whether the target admits a host at any portal; disconnects it again.
    ///
    /// # Errors
    /// Where the target gave neither a yes nor a no.
    pub async fn trial(&self, host: &NewHost, secret: Option<&DhchapSecret>) -> Result<Trial, QuestionError> {
        let mut said = None;
        for portal in &self.portals {
            match self.fabrics.connect(&self.request(host, *portal, secret), CONNECT).await {
                Ok(_) => {
                    self.disconnect(host).await?;
                    return Ok(Trial::Admitted);
                }
                Err(error) => match error.failure() {
                    Some(failure) if failure == ConnectFailure::Rejected || failure.is_authentication() => {
                        said = Some(Trial::Refused(failure));
                    }
                    _ => return Err(error.into()),
                },
            }
        }
        said.ok_or_else(|| QuestionError::unclear("no portal"))
    }

    /// Connects a host at every portal, and waits for the device with a path through each.
    ///
    /// # Errors
    /// Where one portal does not admit the host, or the device does not appear.
    pub async fn connect(&self, host: &NewHost) -> Result<Device, QuestionError> {
        for portal in &self.portals {
            self.fabrics.connect(&self.request(host, *portal, None), CONNECT).await?;
        }
        until("the scratch disk's block device", DEVICE, async || self.device(host).await).await
    }

    /// The device, once all of the host's controllers are live and have a path to it.
    async fn device(&self, host: &NewHost) -> Result<Option<Device>, QuestionError> {
        let view = self.view().await?;
        let ours: Vec<&Controller> = controllers_of(&view, host).collect();
        let [namespace] = &view.namespaces[..] else { return Ok(None) };
        let reached = ours.iter().all(|controller| {
            let path = namespace.paths().iter().any(|path| path.controller == controller.name);
            controller.state.is_live() && (path || namespace.paths().is_empty())
        });
        let (Some(nsid), Some(block)) = (namespace.nsid, namespace.logical_block_bytes) else {
            return Ok(None);
        };
        let there = devnode::find(&self.sysfs, Path::new(DEV), namespace.dev).is_ok();
        if ours.len() < self.portals.len() || !reached || namespace.size_bytes == 0 || !there {
            return Ok(None);
        }
        Ok(Some(Device {
            dev: namespace.dev,
            identity: namespace.identity,
            nsid,
            size_bytes: namespace.size_bytes,
            block_bytes: block as usize,
        }))
    }

    /// Reads what the kernel shows of the scratch disk.
    ///
    /// # Errors
    /// Where that cannot be read.
    pub async fn view(&self) -> Result<SubsystemView, QuestionError> {
        Ok(self.sysfs.view(&self.subsystem, SYSFS).await?)
    }

    /// How many controllers of a host are live, and how many there are.
    ///
    /// # Errors
    /// Where that cannot be read.
    pub async fn live(&self, host: &NewHost) -> Result<(usize, usize), QuestionError> {
        let view = self.view().await?;
        let live = controllers_of(&view, host).filter(|controller| controller.state.is_live()).count();
        Ok((live, controllers_of(&view, host).count()))
    }

    /// How many connections a host has when all are there.
    pub fn paths(&self) -> usize {
        self.portals.len()
    }

    /// Opens the device for writing past the page cache. It certainly is the scratch disk: a number cannot
    /// pass to another disk while it is open, and the kernel shows it as the scratch disk's afterwards.
    ///
    /// # Errors
    /// Where its node is another device's, the number is another disk's by now, or it does not open in time.
    pub async fn open_device(&self, device: &Device) -> Result<Arc<std::fs::File>, QuestionError> {
        let (sysfs, dev) = (self.sysfs.clone(), device.dev);
        let key = format!("open {dev}");
        let opened = self.workers.run(&key, DEVICE, move || {
            let path: PathBuf = devnode::find(&sysfs, Path::new(DEV), dev)?;
            devnode::open(&path, dev, OpenFor::DirectWrite)
        });
        let opened = Arc::new(opened.await??);
        let view = self.view().await?;
        if !view.namespaces.iter().any(|one| one.dev == dev && one.identity == device.identity) {
            return Err(QuestionError::unclear(format!(
                "block device {dev} is not the scratch disk any more"
            )));
        }
        Ok(opened)
    }

    /// Reservation commands as one host: the head of a kernel that is two hosts uses the paths of either.
    ///
    /// # Errors
    /// Where that host is not connected.
    pub async fn path_reservations(
        &self,
        host: &NewHost,
        device: &Device,
    ) -> Result<PathReservations, QuestionError> {
        let view = self.view().await?;
        let controller = controllers_of(&view, host).find(|controller| controller.state.is_live());
        let target = controller.and_then(|found| ExactController::of(found, &self.subsystem, &host.nqn));
        let target = target.ok_or_else(|| QuestionError::unclear("the host has no live connection"))?;
        Ok(PathReservations::at(DEV, self.sysfs.clone(), self.workers.clone(), target, device.nsid))
    }

    /// Deletes a host's connections.
    ///
    /// # Errors
    /// Where one does not go in time.
    pub async fn disconnect(&self, host: &NewHost) -> Result<(), QuestionError> {
        let view = self.view().await?;
        let targets: Vec<ExactController> = controllers_of(&view, host)
            .filter_map(|controller| ExactController::of(controller, &self.subsystem, &host.nqn))
            .collect();
        let gone = targets.iter().map(|target| self.fabrics.disconnect(target, DISCONNECT));
        for gone in futures_util::future::join_all(gone).await {
            gone?;
        }
        Ok(())
    }

    /// Deletes every connection that was made here, and verifies it.
    ///
    /// # Errors
    /// Where one does not go in time.
    pub async fn disconnect_all(&self) -> Result<(), QuestionError> {
        let hosts = self.identities.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // By what the kernel has, not by what was noted: that includes a late connect.
        for host in &hosts {
            self.disconnect(host).await?;
        }
        until("the end of the probe's connections", DISCONNECT, async || {
            let view = self.view().await?;
            let left = hosts.iter().any(|host| controllers_of(&view, host).next().is_some());
            Ok((!left).then_some(()))
        })
        .await
    }

    /// The names of controllers that are still there.
    pub async fn left(&self) -> Vec<String> {
        let hosts = self.identities.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Ok(view) = self.view().await else { return vec!["(sysfs cannot be read)".to_owned()] };
        let left = view.controllers.iter().filter(|found| hosts.iter().any(|host| is_of(found, host)));
        left.map(|controller| controller.name.to_string()).collect()
    }
}

fn is_of(controller: &Controller, host: &NewHost) -> bool {
    controller.host_nqn.as_deref() == Some(host.nqn.as_str())
}

fn controllers_of<'v>(view: &'v SubsystemView, host: &'v NewHost) -> impl Iterator<Item = &'v Controller> {
    view.controllers.iter().filter(|controller| is_of(controller, host))
}
